"""Random changes of style: images as if other pens, papers and cameras had made them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mnist_cnn.training import augment

Images = Float[Array, "B 28 28 1"]  # 0..1


def _resampling() -> Float[Array, "forms 28 28"]:
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


def _widen(images: Images) -> Images:
    """The largest value among each pixel and its four neighbours."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.maximum(padded[:, 2:, 1:-1], padded[:, :-2, 1:-1])
    columns = jnp.maximum(padded[:, 1:-1, 2:], padded[:, 1:-1, :-2])
    return jnp.maximum(images, jnp.maximum(rows, columns))


def restyle(key: Key[Array, ""], images: Images) -> Images:
    """Other pens, papers and cameras: width, faint parts, gaps, lines, resolution, contrast."""
    keys = jax.random.split(key, 13)

    def uniform(number: int, low: float, high: float, *shape: int) -> Array:
        size = (len(images), *(shape or (1, 1)), 1)
        return jax.random.uniform(keys[number], size, minval=low, maxval=high)

    images = _stretched(keys[12], images)
    amount = uniform(0, -0.7, 1.8)  # below 0 thinner, above wider
    amount += jnp.maximum(uniform(10, -18, 2), 0)  # of one in ten a marker's
    wider, thinner = _widen(images), 1 - _widen(1 - images)
    x = images + jnp.minimum(jnp.abs(amount), 1) * (jnp.where(amount > 0, wider, thinner) - images)
    for more in (1, 2, 3):
        wider, before = _widen(wider), wider
        x += jnp.clip(amount - more, 0, 1) * (wider - before)
    patches = jax.image.resize(uniform(1, 0, 1, 5, 5), images.shape, "linear")
    x = x * (1 - jnp.maximum(uniform(2, -1, 0.8), 0) * patches) * _gaps(keys[11], len(images))
    x = jnp.maximum(x, _remnants(keys[3], len(images)))
    forms = _resampling()
    form = forms[jax.random.randint(keys[4], (len(images),), 0, len(forms))]
    soft = jnp.einsum("bij,bjkc->bikc", form, x)
    soft = jnp.einsum("bij,bkjc->bkic", form, soft).clip(0, 1)
    x = soft * jnp.where(uniform(5, 0, 1) < 0.3, _box(x), 1)  # cut out: with flat ends
    ink = (x**2).sum((1, 2, 3), keepdims=True) / (x.sum((1, 2, 3), keepdims=True) + 1e-3)
    x = (x / jnp.maximum(1.1 * ink, 0.1)).clip(0, 1)  # the usual pixel of ink is white
    x = x ** uniform(6, 0.6, 1.6)
    hard = ((x - 0.5) * uniform(7, 1, 4) + 0.5).clip(0, 1)
    x = jnp.where(uniform(8, 0, 1) < 0.5, hard, x)
    return jnp.where(uniform(9, 0, 1) < 0.2, images, x)


def _box(images: Images) -> Images:
    """1 within the smallest box around the ink of each image, 0 outside."""

    def between(ink: Array, axis: int) -> Array:
        inside = [jax.lax.cummax(ink, axis, reverse=reverse) for reverse in (False, True)]
        return jnp.minimum(*inside)

    ink = (images > 0.3 * images.max((1, 2, 3), keepdims=True)).astype(jnp.float32)
    return between(ink.max(2, keepdims=True), 1) * between(ink.max(1, keepdims=True), 2)


def _stretched(key: Key[Array, ""], images: Images) -> Images:
    """A fifth with wider digits, of up to 14 pixels, as scans that fill a square have."""
    keys = jax.random.split(key, 2)
    columns = images.sum((1, 3)) + 1e-6
    columns, place = columns / columns.sum(1, keepdims=True), jnp.arange(28.0) - 13.5
    mean = (columns * place).sum(1, keepdims=True)
    width = jnp.sqrt(12 * (columns * (place - mean) ** 2).sum(1)).clip(2, 14)  # of a uniform bar
    wider = width + (14 - width) * jax.random.uniform(keys[0], width.shape)
    stretched = jax.random.bernoulli(keys[1], 0.2, width.shape)
    shrink = jnp.where(stretched, width / wider, 1)
    matrix = jnp.eye(2) * jnp.stack([jnp.ones_like(shrink), shrink], -1)[:, None]
    return augment.warp(images, matrix, jnp.zeros((len(images), 2)))


def _gaps(key: Key[Array, ""], count: int) -> Images:
    """0 along a line across 20 % of the images, else 1: where a fine pen has left no ink."""
    keys = jax.random.split(key, 4)
    shape = (count, 1, 1, 1)
    angle = jax.random.uniform(keys[0], shape, maxval=jnp.pi)
    place = jax.random.uniform(keys[1], shape, minval=-8, maxval=8)  # from the centre
    half = jax.random.uniform(keys[2], shape, minval=0.5, maxval=1.5)  # of its width
    y, x = jnp.arange(28.0)[:, None, None] - 13.5, jnp.arange(28.0)[:, None] - 13.5
    ink = jnp.abs(jnp.cos(angle) * x + jnp.sin(angle) * y - place) - half
    return jnp.where(jax.random.bernoulli(keys[3], 0.2, shape), ink.clip(0, 1), 1)


def _remnants(key: Key[Array, ""], count: int) -> Images:
    """On 10 % of the images a piece of a printed line, near the border."""
    keys = jax.random.split(key, 5)
    place = jax.random.uniform(keys[0], (count, 1, 1), minval=9.0, maxval=13.0)
    place = 13.5 + place * jnp.where(jax.random.bernoulli(keys[1], 0.5, place.shape), 1, -1)
    start, stop = jnp.split(jax.random.uniform(keys[2], (count, 2, 1), minval=2, maxval=26), 2, 1)
    pixels = jnp.arange(28.0)
    across = (1.3 - jnp.abs(pixels[:, None] - place)).clip(0, 1)  # [N, 28, 1]
    along = (pixels >= jnp.minimum(start, stop)) & (pixels <= jnp.maximum(start, stop))
    line = across * along
    line = jnp.where(jax.random.bernoulli(keys[3], 0.5, place.shape), line, line.swapaxes(1, 2))
    return (line * jax.random.bernoulli(keys[4], 0.1, place.shape))[..., None]
