"""The networks of the experiments are what their files say."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from mnist_cnn.models import summary
from mnist_cnn.models.compact import Compact
from mnist_cnn.training import augment, batches
from mnist_cnn.training.components import build_model
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import train_step


def module_of(name):
    """The module of an experiment file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def accuracy():
    return module_of("accuracy")


@pytest.mark.slow
def test_the_accuracy_network_answers_by_the_mean_probability_of_eleven_views(
    accuracy, hundred_images, monkeypatch
):
    images = hundred_images.images[:4] / 255.0
    seen = accuracy.views(images)
    assert seen.shape == (11, 4, 28, 28, 1)
    assert jnp.array_equal(seen[0], images)
    assert len({np.asarray(view).tobytes() for view in seen}) == 11
    # Each change has its opposite: a spot to the upper right of the middle moves there and back.
    rows, columns = jnp.meshgrid(jnp.arange(28.0), jnp.arange(28.0), indexing="ij")
    spot = jnp.exp(-((rows - 8) ** 2 + (columns - 18) ** 2) / 4)[None, ..., None]
    centres = jnp.stack(
        [(accuracy.views(spot) * axis[..., None]).sum((1, 2, 3, 4)) for axis in (rows, columns)], -1
    ) / accuracy.views(spot).sum((1, 2, 3, 4))[:, None]  # fmt: skip
    moved = (centres - centres[0])[1:].reshape(5, 2, 2)  # change, way, axis
    assert (jnp.abs(moved).max((1, 2)) > 0.2).all()
    assert (jnp.abs(moved.sum(1)) < 0.1).all()
    model = accuracy.Thin()
    variables = model.init(jax.random.key(0), images)
    answer = model.apply(variables, images)
    monkeypatch.setattr(accuracy, "views", lambda images: images[None])
    alone = [jax.nn.softmax(model.apply(variables, view)) for view in seen]
    np.testing.assert_allclose(jnp.exp(answer), jnp.mean(jnp.stack(alone), 0), atol=1e-6)
    np.testing.assert_allclose(jnp.exp(answer).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["accuracy", "ensemble"])
def test_the_cost_of_a_tested_image_counts_its_eleven_views(name):
    model = module_of(name).get_config()["model"]
    tested, trained = summary.summarize(model), summary.summarize(model, train=True)
    assert [layer.multiply_adds for layer in tested] == [
        11 * layer.multiply_adds for layer in trained
    ]
    assert [layer[:3] for layer in tested] == [layer[:3] for layer in trained]
    assert sum(layer.parameters for layer in trained) == 177_386


@pytest.mark.slow
def test_the_first_layer_of_the_speedrun_is_gabor_filters_and_is_not_trained(hundred_images):
    state = create_state(module_of("speedrun").get_config())
    before = jax.tree.map(np.array, state.params)
    kernel = before["conv1"]["kernel"]  # of blocks of 2 x 2 pixels
    bank = kernel.reshape(3, 3, 2, 2, 16).transpose(0, 2, 1, 3, 4).reshape(6, 6, 16)
    np.testing.assert_allclose((bank**2).sum((0, 1)), 1, atol=1e-6)
    np.testing.assert_allclose(bank.sum((0, 1)), 0, atol=1e-6)  # blind to even brightness
    np.testing.assert_allclose(bank[..., :8], -bank[::-1, ::-1, :8], atol=1e-6)
    np.testing.assert_allclose(bank[..., 8:], bank[::-1, ::-1, 8:], atol=1e-6)
    batch = batches.take(hundred_images, jnp.arange(32))
    for _ in range(2):
        state, _ = train_step(state, batch)
    moved = jax.tree.map(lambda old, new: (old != new).any().item(), before, dict(state.params))
    assert moved == {
        layer: dict.fromkeys(("bias", "kernel"), layer != "conv1")
        for layer in ("conv1", "conv2", "dense1", "dense2")
    }


@pytest.fixture(scope="module")
def digits():
    return module_of("digits")


def test_the_network_of_digits_fits_into_a_megabyte(digits):
    layers = summary.summarize(build_model(digits.get_config()))
    assert sum(layer.parameters for layer in layers) * 4 < 0.75e6


@pytest.mark.slow
def test_the_network_of_digits_answers_by_the_mean_probability_of_three_views(
    digits, hundred_images
):
    images, key = hundred_images.images[:4] / 255.0, jax.random.key(0)
    model, one = build_model(digits.get_config()), Compact()
    variables = model.init(key, images)
    seen = []  # "none" included
    for degrees in (0.0, 6.0, -6.0):
        changes = (jnp.full(4, degrees), jnp.zeros((4, 2)), jnp.zeros(4))
        view = augment.warp(images, augment.matrix(*changes), jnp.zeros((4, 2)))
        seen.append(jax.nn.softmax(jnp.pad(one.apply(variables, view), ((0, 0), (0, 1)))))
    assert not np.allclose(seen[0], seen[1]) and not np.allclose(seen[1], seen[2])
    answer = jax.nn.softmax(jnp.pad(model.apply(variables, images), ((0, 0), (0, 1))))
    np.testing.assert_allclose(answer, np.mean(seen, 0), atol=1e-6)
    options = {"train": True, "rngs": {"dropout": key}, "mutable": ["batch_stats"]}
    for ours, theirs in zip(
        jax.tree.leaves(model.apply(variables, images, **options)),
        jax.tree.leaves(one.apply(variables, images, **options)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_what_digits_adds_to_a_batch_is_labelled(digits, hundred_images):
    images = hundred_images.images / 255.0
    make = jax.jit(digits.make)
    made, labels = make(jax.random.key(0), images)
    assert made.shape == (sum(digits.MADE.values()), 28, 28, 1) and made.dtype == jnp.float32
    assert labels.shape == (len(made),)
    assert (labels < 10).sum() == digits.MADE["digits"]
    assert set(np.asarray(labels[digits.MADE["digits"] :]).tolist()) == {digits.NO_DIGIT}
    assert made.min() >= 0 and made.max() <= 1 and (made.max((1, 2, 3)) > 0.2).all()
    few, _ = make(jax.random.key(0), images[:3])  # a batch that devices share
    assert few.shape == made.shape


@pytest.mark.slow
def test_a_step_of_digits_teaches_no_digit_and_counts_mnists_images_alone(digits, hundred_images):
    config = digits.get_config()
    config.update(learning_rate=0.01, schedule="constant", warmup_steps=0)
    state = create_state(config)
    batch = batches.take(hundred_images, jnp.arange(20))
    step = jax.jit(digits.train_step)
    first, metrics = step(state, batch)
    again, _ = step(state, batch)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first.params, again.params))
    assert metrics.examples == 20
    made, labels = jax.jit(digits.make)(jax.random.key(5), hundred_images.images / 255.0)

    def loss_of_no_digits(state):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        kept = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
        logits, _ = state.model.apply(variables, made, train=True, **kept)
        return state.loss(logits, labels)[labels == digits.NO_DIGIT].mean()

    before = loss_of_no_digits(state)
    for _ in range(15):
        state, last = step(state, batch)
    assert last.loss < metrics.loss / 1.5
    assert loss_of_no_digits(state) < before / 2
