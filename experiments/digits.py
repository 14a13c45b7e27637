"""The network that comes with the package: reads anybody's handwriting, and says "no digit".

    python -m mnist_cnn.main --config experiments/digits.py --workdir runs/digits

Result:
Cost:

Strokes get wider, thinner, softer and coarser at random, as in photos and scans of other people's
digits. To each batch of MNIST's images come as many as a quarter of it that are made: digits drawn
in printed and European forms; and letters, scribbles, several digits, parts of digits and
textures, which are no digits. "No digit" is an eleventh class whose logit is always 0: the
probabilities are softmax([logits, 0]), the accuracy over ten classes is what it always is.
"""

import jax
import jax.numpy as jnp
import optax

import mnist_cnn as m
from mnist_cnn.training import augment, drawings

EPOCHS = 12
NO_DIGIT = 10
MADE = {"digits": 10, "letters": 12, "scribbles": 3, "pairs": 6, "scraps": 2, "textures": 3}


def resampling():
    """The soft and coarse forms of 28 pixels as matrices [forms, 28, 28], the first unchanged."""
    pixels = jnp.arange(28.0)
    forms = [jnp.eye(28)] * 4
    for sigma in (0.6, 0.9, 1.3):
        blur = jnp.exp(-((pixels[:, None] - pixels) ** 2) / (2 * sigma**2))
        forms.append(blur / blur.sum(1, keepdims=True))
    for size in (10, 11, 12, 14, 18, 22):  # a digit of 7 to 16 pixels
        small = jax.image.resize(jnp.eye(28), (size, 28), "linear")
        forms.append(jax.image.resize(small, (28, 28), "cubic"))
    return jnp.stack(forms)


def widen(images):
    """The largest value among each pixel and its four neighbours."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.maximum(padded[:, 2:, 1:-1], padded[:, :-2, 1:-1])
    columns = jnp.maximum(padded[:, 1:-1, 2:], padded[:, 1:-1, :-2])
    return jnp.maximum(images, jnp.maximum(rows, columns))


def restyle(key, images):
    """Other pens, papers and cameras: stroke width, faint parts, lines, resolution, contrast."""
    keys = jax.random.split(key, 10)

    def uniform(number, low, high, *shape):
        shape = (len(images), *(shape or (1, 1)), 1)
        return jax.random.uniform(keys[number], shape, minval=low, maxval=high)

    amount = uniform(0, -0.7, 1.8)  # below 0 thinner, above wider
    wider, thinner = widen(images), 1 - widen(1 - images)
    x = images + jnp.minimum(jnp.abs(amount), 1) * (jnp.where(amount > 0, wider, thinner) - images)
    x += jnp.maximum(amount - 1, 0) * (widen(wider) - wider)
    patches = jax.image.resize(uniform(1, 0, 1, 5, 5), images.shape, "linear")
    x = x * (1 - jnp.maximum(uniform(2, -1, 0.8), 0) * patches)
    x = jnp.maximum(x, remnants(keys[3], len(images)))
    forms = resampling()
    form = forms[jax.random.randint(keys[4], (len(images),), 0, len(forms))]
    soft = jnp.einsum("bij,bjkc->bikc", form, x)
    soft = jnp.einsum("bij,bkjc->bkic", form, soft).clip(0, 1)
    x = soft * jnp.where(uniform(5, 0, 1) < 0.3, box_of(x), 1)  # cut out: with flat ends
    ink = (x**2).sum((1, 2, 3), keepdims=True) / (x.sum((1, 2, 3), keepdims=True) + 1e-3)
    x = (x / jnp.maximum(1.1 * ink, 0.1)).clip(0, 1)  # the usual pixel of ink is white
    x = x ** uniform(6, 0.6, 1.6)
    hard = ((x - 0.5) * uniform(7, 1, 4) + 0.5).clip(0, 1)
    x = jnp.where(uniform(8, 0, 1) < 0.5, hard, x)
    return jnp.where(uniform(9, 0, 1) < 0.2, images, x)


def box_of(images):
    """1 within the smallest box around the ink of each image, 0 outside."""

    def between(ink, axis):
        inside = [jax.lax.cummax(ink, axis, reverse=reverse) for reverse in (False, True)]
        return jnp.minimum(*inside)

    ink = (images > 0.3 * images.max((1, 2, 3), keepdims=True)).astype(jnp.float32)
    return between(ink.max(2, keepdims=True), 1) * between(ink.max(1, keepdims=True), 2)


def remnants(key, count):
    """On 6 % of the images a piece of a printed line, near the border."""
    keys = jax.random.split(key, 5)
    place = jax.random.uniform(keys[0], (count, 1, 1), minval=9.0, maxval=13.0)
    place = 13.5 + place * jnp.where(jax.random.bernoulli(keys[1], 0.5, place.shape), 1, -1)
    start, stop = jnp.split(jax.random.uniform(keys[2], (count, 2, 1), minval=2, maxval=26), 2, 1)
    pixels = jnp.arange(28.0)
    across = (1.3 - jnp.abs(pixels[:, None] - place)).clip(0, 1)  # [N, 28, 1]
    along = (pixels >= jnp.minimum(start, stop)) & (pixels <= jnp.maximum(start, stop))
    line = across * along
    line = jnp.where(jax.random.bernoulli(keys[3], 0.5, place.shape), line, line.swapaxes(1, 2))
    return (line * jax.random.bernoulli(keys[4], 0.06, place.shape))[..., None]


def several(key, one, other):
    """Two digits beside or over each other, scaled into the box of one."""
    keys = jax.random.split(key, 3)
    count = len(one)
    scale = jax.random.uniform(keys[0], (count, 1, 1), minval=1.3, maxval=1.9)
    matrix = scale * jnp.eye(2)
    apart = jax.random.uniform(keys[1], (count,), minval=5.0, maxval=10.0)
    angle = jnp.where(jax.random.uniform(keys[2], (count,)) < 0.8, 0.0, jnp.pi / 2)
    offset = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1) * apart[:, None]
    return jnp.maximum(augment.warp(one, matrix, offset), augment.warp(other, matrix, -offset))


def scraps(key, images):
    """Parts of digits, enlarged."""
    keys = jax.random.split(key, 2)
    scale = jax.random.uniform(keys[0], (len(images), 1, 1), minval=0.3, maxval=0.6)
    offset = jax.random.uniform(keys[1], (len(images), 2), minval=-7, maxval=7)
    return boxed(augment.warp(images, scale * jnp.eye(2), offset))


def textures(key, count):
    """Smooth noise at random scales, as what remains of photos."""
    keys = jax.random.split(key, 3)
    noise = jnp.stack(
        [
            jax.image.resize(
                jax.random.normal(keys[0], (count, size, size, 1)), (count, 28, 28, 1), "cubic"
            )
            for size in (4, 7, 14)
        ]
    )
    share = jax.random.uniform(keys[1], (3, count, 1, 1, 1)) ** 2
    gain = jax.random.uniform(keys[2], (count, 1, 1, 1), minval=0.5, maxval=4)
    return boxed(((share * noise).sum(0) * gain + 0.4).clip(0, 1))


def boxed(images):
    """`images` in MNIST's box of 20 x 20 pixels."""
    return jnp.pad(images[:, 4:24, 4:24], ((0, 0), (4, 4), (4, 4), (0, 0)))


def make(key, images):
    """Images that MNIST lacks, and their labels."""
    keys = iter(jax.random.split(key, 10))
    first, last = len(drawings.LABELS), len(drawings.TABLE.points)
    third = last - len(drawings.SCRIBBLES)

    def some(low, high, count):
        return jax.random.randint(next(keys), (count,), low, high)

    digits = some(0, first, MADE["digits"])
    letters = some(first, third, MADE["letters"])
    scribbles = some(third, last, 2 * MADE["scribbles"])
    drawn = drawings.draw(next(keys), jnp.concatenate([digits, letters, scribbles]))
    n = MADE["scribbles"]
    drawn = jnp.concatenate([drawn[: -2 * n], jnp.maximum(drawn[-2 * n : -n], drawn[-n:])])
    p, s = MADE["pairs"], MADE["scraps"]
    images = images[jnp.arange(2 * p + s) % len(images)]
    made = [
        drawn,
        several(next(keys), images[:p], images[p : 2 * p]),
        scraps(next(keys), images[2 * p :]),
        textures(next(keys), MADE["textures"]),
    ]
    labels = jnp.asarray(drawings.LABELS)[digits]
    return jnp.concatenate(made), jnp.pad(
        labels, (0, sum(MADE.values()) - len(labels)), constant_values=NO_DIGIT
    )


def train_step(state, batch, data_axis=None):
    """A step on the batch and on what `make` makes."""
    key = m.random_key(state.seed, "make", state.step)
    if data_axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(data_axis))
    images = m.scale(batch.images)
    made, made_labels = make(key, images)
    images = m.augment_images(state, jnp.concatenate([images, made]), data_axis)
    labels = jnp.concatenate([batch.labels, made_labels])

    def losses(params):
        logits, batch_stats = m.training_forward(state, params, images, data_axis)
        eleven = jnp.pad(logits, ((0, 0), (0, 1)))
        each = optax.softmax_cross_entropy_with_integer_labels(eleven, labels)
        count = len(batch.labels)
        each = each[:count] + each[count:].sum() / count
        return each, logits[:count], batch_stats

    return m.descend(state, batch, losses, data_axis)


def get_config():
    return m.experiment(
        name="digits",
        model="compact",
        train_step=train_step,
        augment=restyle,
        learning_rate=2e-3,
        b2=0.99,
        schedule="cosine",
        warmup_steps=600,
        ema=0.999,
        rotation=12.0,
        zoom=0.2,
        shear=0.25,
        shift=1.5,
        batch_size=100,
        num_epochs=EPOCHS,
        log_every=200,
        checkpoint_every=600,
    )
