"""The step is pure, and how the steps are cut into calls changes no bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import Linear

import mnist_cnn
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.training import batches
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.state import create_state, from_dict, is_finite, to_dict
from mnist_cnn.training.step import step, train_step, train_steps

pure_step = jax.jit(step)  # unlike train_step, it does not donate its state


@pytest.fixture(scope="module")
def config():
    return mnist_cnn.experiment(model=Linear(), learning_rate=0.01)


def batch_of(split, rows):
    return batches.take(split, jnp.asarray(rows))


def order_of(seed, num_examples, batch_size):
    return batches.epoch_order(jnp.uint32(seed), jnp.int32(0), num_examples, batch_size)


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


def test_a_step_is_adam_on_the_mean_loss(hundred_images, config):
    state = create_state(config)
    batch = batch_of(hundred_images, np.arange(20))
    after, metrics = pure_step(state, batch)

    def loss(params):
        logits = Linear().apply({"params": params}, batch.images / 255.0)
        chosen = jax.nn.log_softmax(logits)[jnp.arange(20), batch.labels]
        return -chosen.mean()

    gradient = jax.grad(loss)(state.params)
    np.testing.assert_allclose(metrics.loss, 20 * loss(state.params), rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.01 * g / (jnp.abs(g) + 1e-8), state.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, expected)
    assert after.step == 1 and metrics.examples == 20


def test_the_state_is_immutable_and_train_step_donates_it(hundred_images, config):
    state = create_state(config)
    with pytest.raises(AttributeError):
        state.step = 3
    before = sha256(jax.device_get(state.params))
    pure_step(state, batch_of(hundred_images, np.arange(20)))
    assert sha256(jax.device_get(state.params)) == before
    assert "donates `state`" in train_step.__doc__ and "donates" in train_steps.__doc__
    train_step(state, batch_of(hundred_images, np.arange(20)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_missing_images_of_a_partial_batch_have_no_effect(hundred_images, config):
    state = create_state(config)
    whole, metrics = pure_step(state, batch_of(hundred_images, np.arange(7)))
    partial, partial_metrics = pure_step(state, batch_of(hundred_images, [*range(7), -1, -1, -1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, partial.params
    )
    assert metrics.examples == partial_metrics.examples == 7
    assert metrics.correct == partial_metrics.correct


def test_how_the_steps_are_cut_into_calls_changes_no_bit(hundred_images, config):
    order = order_of(1337, 100, 8)
    digests = []
    for cuts in ([0, 13], [0, 1, 2, 7, 13], [0, 12, 13]):
        state, sums = create_state(config), Metrics.zero()
        for start, stop in itertools.pairwise(cuts):
            state, sums = train_steps(
                state, sums, hundred_images, order, np.int32(start), np.int32(stop)
            )
        digests.append(sha256(jax.device_get((state.params, state.opt_state, sums))))
        assert int(sums.examples) == 100 and int(state.step) == 13
    state = create_state(config)
    for rows in order:
        state, _ = train_step(state, batch_of(hundred_images, rows))
    digests.append(sha256(jax.device_get((state.params, state.opt_state, sums))))
    assert len(set(digests)) == 1


def test_the_first_step_whose_loss_is_not_finite_is_recorded(hundred_images):
    config = mnist_cnn.experiment(
        model=Linear(), optimizer=lambda rate: optax.sgd(rate), learning_rate=1e38
    )
    state, sums = train_steps(
        create_state(config), Metrics.zero(), hundred_images, order_of(0, 100, 10),
        np.int32(0), np.int32(9),
    )  # fmt: skip
    assert 2 <= int(sums.first_bad_step) <= 3 and int(state.step) == 9


def test_one_number_that_is_not_finite_is_found_wherever_it_is(config):
    state = create_state(config)
    leaves, tree = jax.tree.flatten(jax.device_get((state.params, state.opt_state)))
    assert len(leaves) == 7  # two parameters, their averages, and a count

    def finite(leaves):
        params, opt_state = jax.tree.unflatten(tree, leaves)
        return bool(is_finite(state.replace(params=params, opt_state=opt_state)))

    assert finite([np.full_like(leaf, 3e38) if leaf.ndim else leaf for leaf in leaves])
    generator = np.random.default_rng(0)
    for place, value in itertools.product(range(len(leaves)), (np.nan, np.inf, -np.inf)):
        if leaves[place].ndim:
            leaf = leaves[place].copy()
            leaf.flat[generator.integers(leaf.size)] = value
            assert not finite([*leaves[:place], leaf, *leaves[place + 1 :]]), (place, value)


def test_the_checkpoint_of_a_plain_network_has_no_optional_entries():
    """It is what it was before there were statistics and averages."""
    state = create_state(mnist_cnn.experiment(model=Linear()))
    tree = to_dict(state)
    assert tree.keys() == {"step", "seed", "hyper", "params", "opt_state"}
    assert sha256(to_dict(from_dict(state, tree))) == sha256(tree)
