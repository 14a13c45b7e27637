"""The step is pure, its randomness is a function of (seed, step), and every image is seen once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import read_idx
from flax import linen as nn

import mnist_cnn
from mnist_cnn.models import summary
from mnist_cnn.models.cnn import CNN
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.training import batches, rng, step as step_lib
from mnist_cnn.training.batches import Split
from mnist_cnn.training.scoring import score, summarize
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import epoch_order, step, train_step, train_steps


class Linear(nn.Module):
    """The least network: what it claims of the step and the loop holds of any other."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images.reshape(images.shape[0], -1))


@pytest.fixture(scope="module")
def data():
    images = read_idx("t10k-images-idx3-ubyte")[:100]
    labels = read_idx("t10k-labels-idx1-ubyte")[:100].astype(np.int32)
    return Split(jnp.asarray(images), jnp.asarray(labels))


def batch_of(data, rows):
    return batches.take(data.images, data.labels, jnp.asarray(rows))


def test_the_network_is_the_tutorials():
    layers = summary.summarize(CNN())
    assert sum(layer.parameters for layer in layers) == 3_274_634
    assert [(layer.name, layer.output_shape) for layer in layers] == [
        ("conv1", (14, 14, 32)), ("conv2", (7, 7, 64)), ("dense1", (1024,)), ("dense2", (10,)),
    ]  # fmt: skip
    assert sum(layer.multiply_adds for layer in layers) == (
        28 * 28 * 25 * 32 + 14 * 14 * 25 * 32 * 64 + 3136 * 1024 + 1024 * 10
    )


def test_a_submodule_that_gives_a_single_number_is_no_layer_of_images():
    class Temperature(nn.Module):
        @nn.compact
        def __call__(self):
            return self.param("value", nn.initializers.ones, ())

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(10)(images.reshape(images.shape[0], -1)) / Temperature()()

    assert [layer.name for layer in summary.summarize(Network())] == ["Dense_0"]


def test_kernels_are_glorot_uniform_and_biases_zero():
    params = create_state(mnist_cnn.experiment()).params
    for name, fan_in, fan_out in (
        ("conv1", 25, 800), ("conv2", 800, 1600), ("dense1", 3136, 1024), ("dense2", 1024, 10),
    ):  # fmt: skip
        limit = np.sqrt(6 / (fan_in + fan_out))
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel).max() <= limit
        assert np.isclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
        assert not np.asarray(params[name]["bias"]).any()


def test_a_step_is_adam_on_the_mean_loss(data):
    config = mnist_cnn.experiment(model=Linear(), learning_rate=0.01)
    state = create_state(config)
    before = jax.tree.map(np.asarray, state.params)
    batch = batch_of(data, np.arange(20))
    after, metrics = jax.jit(step)(state, batch)

    def loss(params):
        logits = Linear().apply({"params": params}, batch.images / 255.0)
        chosen = jax.nn.log_softmax(logits)[jnp.arange(20), batch.labels]
        return -chosen.mean()

    gradient = jax.grad(loss)(before)
    np.testing.assert_allclose(metrics.loss, 20 * loss(before), rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.01 * g / (jnp.abs(g) + 1e-8), before, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, expected)
    assert after.step == 1 and metrics.examples == 20


def test_the_step_changes_nothing_in_place_and_donates_its_state(data):
    state = create_state(mnist_cnn.experiment(model=Linear()))
    with pytest.raises(AttributeError):
        state.step = 3
    before = sha256(jax.device_get(state.params))
    jax.jit(step)(state, batch_of(data, np.arange(5)))
    assert sha256(jax.device_get(state.params)) == before
    train_step(state, batch_of(data, np.arange(5)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_partial_batch_weighs_only_what_it_holds(data):
    state = create_state(mnist_cnn.experiment(model=Linear()))
    step = jax.jit(step_lib.step)
    whole, metrics = step(state, batch_of(data, np.arange(7)))
    partial, partial_metrics = step(state, batch_of(data, [*range(7), -1, -1, -1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, partial.params
    )
    assert metrics.examples == partial_metrics.examples == 7
    assert metrics.correct == partial_metrics.correct


@pytest.mark.parametrize(("examples", "batch_size"), [(100, 10), (101, 10), (7, 7), (9, 4), (5, 1)])
def test_every_image_is_seen_once_an_epoch(examples, batch_size):
    seen = []
    for epoch in range(3):
        order = np.asarray(epoch_order(np.uint32(3), np.int32(epoch), examples, batch_size))
        assert order.shape == (-(-examples // batch_size), batch_size)
        rows = order[order >= 0]
        np.testing.assert_array_equal(np.sort(rows), np.arange(examples))
        seen.append(rows.tolist())
    assert examples == 5 or (seen[0] != seen[1] != seen[2])


def test_streams_are_functions_of_seed_name_and_step():
    def draw(*stream):
        return jax.random.key_data(rng.key(*stream)).tolist()

    assert draw(1, "order", 2) == draw(1, "order", 2)
    others = [draw(1, "order", 3), draw(2, "order", 2), draw(1, "init", 2), draw(2, "order", 1)]
    assert draw(1, "order", 2) not in others and len({tuple(o) for o in others}) == 4
    assert draw(1, "order", 2) == [2262184720, 3470315938]  # for ever: published runs rest on it


def test_how_the_steps_are_cut_into_calls_changes_no_bit(data):
    config = mnist_cnn.experiment(model=Linear())
    order = epoch_order(np.uint32(1337), np.int32(0), 100, 8)
    digests = []
    for cuts in ([0, 13], [0, 1, 2, 7, 13], [0, 12, 13]):
        state, sums = create_state(config), train.Metrics.zero()
        for start, stop in itertools.pairwise(cuts):
            state, sums = train_steps(state, sums, data, order, np.int32(start), np.int32(stop))
        digests.append(sha256(jax.device_get((state.params, state.opt_state, sums))))
        assert int(sums.examples) == 100 and int(state.step) == 13
    state = create_state(config)
    for rows in order:
        state, _ = train_step(state, batch_of(data, rows))
    digests.append(sha256(jax.device_get((state.params, state.opt_state, sums))))
    assert len(set(digests)) == 1


def test_the_first_step_without_a_finite_loss_is_remembered(data):
    config = mnist_cnn.experiment(
        model=Linear(), optimizer=lambda rate: optax.sgd(rate), learning_rate=1e38
    )
    order = epoch_order(np.uint32(0), np.int32(0), 100, 10)
    state, sums = train_steps(
        create_state(config), train.Metrics.zero(), data, order, np.int32(0), np.int32(9)
    )
    assert 2 <= int(sums.first_bad_step) <= 3 and int(state.step) == 9


def test_a_single_number_that_is_none_is_found_wherever_it_is():
    state = create_state(mnist_cnn.experiment(model=Linear()))
    leaves, tree = jax.tree.flatten(jax.device_get((state.params, state.opt_state)))
    assert len(leaves) == 7  # two parameters, their averages, and a count

    def is_finite(leaves):
        params, opt_state = jax.tree.unflatten(tree, leaves)
        return bool(is_finite(state.replace(params=params, opt_state=opt_state)))

    assert is_finite([np.full_like(leaf, 3e38) if leaf.ndim else leaf for leaf in leaves])
    rng = np.random.default_rng(0)
    for place, value in itertools.product(range(len(leaves)), (np.nan, np.inf, -np.inf)):
        if leaves[place].ndim:
            leaf = leaves[place].copy()
            leaf.flat[rng.integers(leaf.size)] = value
            assert not is_finite([*leaves[:place], leaf, *leaves[place + 1 :]]), (place, value)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_every_image_is_scored_once_whatever_the_batch_size(data, batch_size):
    state = create_state(mnist_cnn.experiment(model=Linear()))
    logits, losses = score(
        state.model, state.loss, state.variables, data.images, data.labels, batch_size
    )
    expected = Linear().apply({"params": state.params}, data.images / 255.0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    labels = np.asarray(data.labels)
    metrics = summarize(np.asarray(logits), np.asarray(losses), labels)
    assert metrics["examples"] == 100
    assert metrics["correct"] == int((np.asarray(expected).argmax(-1) == labels).sum())
    assert metrics["accuracy"] == metrics["correct"] / 100
    loss = -jax.nn.log_softmax(expected)[np.arange(100), labels].mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
