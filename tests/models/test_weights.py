"""The network and the tutorial's program in Keras 3 (on JAX) compute the same."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_idx

import mnist_cnn
from mnist_cnn.errors import ConfigError
from mnist_cnn.models import layers, weights
from mnist_cnn.models.apply import forward, scale
from mnist_cnn.training import batches, step as step_lib
from mnist_cnn.training.components import adam
from mnist_cnn.training.state import create_state

if os.environ.get("CI"):
    import keras
else:
    keras = pytest.importorskip("keras", reason="needs keras: pip install 'mnist_cnn[parity]'")

FORMATS = ("channels_first", "channels_last")


def tutorial(data_format):
    """The tutorial's model, line by line, in the names of Keras 3."""
    keras.utils.clear_session()
    shape = (1, 28, 28) if data_format == "channels_first" else (28, 28, 1)
    return keras.Sequential([
        keras.Input(shape),
        keras.layers.Conv2D(32, 5, strides=1, padding="same", data_format=data_format),
        keras.layers.Activation("relu"),
        keras.layers.MaxPooling2D(2, 2, "same", data_format=data_format),
        keras.layers.Conv2D(64, 5, strides=1, padding="same", data_format=data_format),
        keras.layers.Activation("relu"),
        keras.layers.MaxPooling2D(2, 2, "same", data_format=data_format),
        keras.layers.Flatten(),
        keras.layers.Dense(1024),
        keras.layers.Activation("relu"),
        keras.layers.Dense(10),
        keras.layers.Activation("softmax"),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    images = read_idx("train-images-idx3-ubyte")[:16]
    labels = read_idx("train-labels-idx1-ubyte")[:16].astype(np.int32)
    return batches.Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(16))


@pytest.fixture(scope="module")
def state():
    return create_state(mnist_cnn.experiment())


def keras_images(images, data_format):
    """The images as the tutorial prepares them: `reshape(-1, 1, 28, 28) / 255.`."""
    shape = (-1, 1, 28, 28) if data_format == "channels_first" else (-1, 28, 28, 1)
    return np.asarray(images).reshape(shape).astype(np.float32) / 255.0


def assert_close(ours, theirs, tolerance=1e-5):
    """Arrays differ by at most `tolerance` times their largest value."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * np.abs(b).max()


@pytest.fixture(scope="module")
def computed(state, batch):
    """The logits at evaluation, the mean loss, and its gradients."""

    def mean_loss(params):
        logits = state.model.apply({"params": params}, scale(batch.images))
        return state.loss(logits, batch.labels).mean()

    @jax.jit
    def compute(params):
        return forward(state.model, {"params": params}, batch.images), *jax.value_and_grad(
            mean_loss
        )(params)

    return compute(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_weights_convert_both_ways_and_logits_loss_and_gradients_are_the_same(
    data_format, state, batch, computed
):
    model = tutorial(data_format)
    assert model.count_params() == 3_274_634
    converted = weights.to_keras(state.params, data_format)
    model.set_weights(converted)
    back = weights.from_keras(model.get_weights(), data_format)
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(state.params))

    model = keras.Model(model.inputs, [model.layers[-2].output, model.outputs[0]])
    images = keras_images(batch.images, data_format)
    target = keras.utils.to_categorical(np.asarray(batch.labels), num_classes=10)

    def mean_loss(variables):
        (logits, probabilities), _ = model.stateless_call(variables, [], images)
        return keras.losses.categorical_crossentropy(target, probabilities).mean(), logits

    variables = [variable.value for variable in model.trainable_variables]
    compute = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (their_loss, their_logits), their_gradients = compute(variables)
    logits, loss, gradients = computed
    np.testing.assert_allclose(logits, their_logits, atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, their_loss, rtol=1e-5)
    assert [g.shape for g in their_gradients] == [array.shape for array in converted]
    assert_close(weights.to_keras(gradients, data_format), their_gradients)


@pytest.mark.slow
def test_twenty_adam_steps_are_the_same_each_from_the_same_state(state, batch):
    """Epsilon is adapted: Keras does not divide it by sqrt(1 - b2**t)."""
    data_format = "channels_first"
    model = tutorial(data_format)
    model.set_weights(weights.to_keras(state.params, data_format))
    model.compile(optimizer=keras.optimizers.Adam(), loss="categorical_crossentropy")
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)
    model.optimizer.build(model.trainable_variables)
    images, labels = keras_images(batch.images, data_format), np.asarray(batch.labels)
    target = keras.utils.to_categorical(labels, num_classes=10)
    step = jax.jit(step_lib.step)
    adam = state.opt_state[0]
    for number in range(1, 21):
        rows = np.random.default_rng(number).permutation(16)[:8]
        part = batches.Batch(batch.images[rows], batch.labels[rows], jnp.ones(8))
        eps = model.optimizer.epsilon / np.sqrt(1 - model.optimizer.beta_2**number)
        state = state.replace(hyper=state.hyper | {"eps": jnp.float32(eps)})
        state, _ = step(state, part)
        model.train_on_batch(images[rows], target[rows])
        theirs = weights.from_keras(model.get_weights(), data_format)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), state.params, theirs
        )
        # The next step starts from Keras' state, because small differences would grow.
        optimizer = model.optimizer
        mu, nu = (
            weights.from_keras([v.numpy() for v in averages], data_format)
            for averages in (optimizer._momentums, optimizer._velocities)
        )
        adam = state.opt_state[0]._replace(mu=mu, nu=nu)
        state = state.replace(params=theirs, opt_state=(adam, *state.opt_state[1:]))
    assert int(adam.count) == 20


def test_adams_epsilon_is_added_at_another_place_than_in_keras():
    """The first step on a gradient g: Keras divides by |g| + eps / sqrt(1 - b2), ours |g| + eps."""
    gradient, eps, rate = np.float32(1e-7), 1e-7, 1e-3
    optimizer = adam({
        key: jnp.float32(value)
        for key, value in {"learning_rate": rate, "b1": 0.9, "b2": 0.999, "eps": eps}.items()
    })  # fmt: skip
    ours = optimizer.update(jnp.array([gradient]), optimizer.init(jnp.zeros(1)))[0]
    variable = keras.Variable([0.0])
    keras.optimizers.Adam(rate, epsilon=eps).apply([jnp.array([gradient])], [variable])
    np.testing.assert_allclose(ours, -rate * gradient / (gradient + eps), rtol=1e-3)
    expected = -rate * gradient / (gradient + eps / np.sqrt(1 - 0.999))
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-3)


def test_the_first_of_equal_values_takes_the_gradient_of_a_max_pool_in_both():
    images = jnp.floor(2 * jax.random.uniform(jax.random.key(0), (2, 6, 6, 3)))
    pool = keras.layers.MaxPooling2D(2, 2, "same")

    @jax.jit
    @jax.grad
    def ours(x):
        return (layers.max_pool(x, (2, 2)) ** 2).sum()

    @jax.jit
    @jax.grad
    def theirs(x):
        return (pool(x) ** 2).sum()

    np.testing.assert_array_equal(ours(images), theirs(images))


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_are_read_without_keras(data_format, suffix, state, tmp_path):
    model = tutorial(data_format)
    path = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    found = weights.read_variables(path, {"params": state.params})["params"]
    stated = data_format if suffix == ".keras" else "channels_last"  # weights alone do not state it
    expected = weights.from_keras(model.get_weights(), stated)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_keras_weights_of_another_network_are_refused_naming_the_tensor(state, tmp_path):
    template = {"params": state.params}
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Conv2D(16, 5)])
    model.save_weights(tmp_path / "small.weights.h5")
    with pytest.raises(ConfigError, match="2 arrays, expected 8"):
        weights.read_variables(tmp_path / "small.weights.h5", template)
    model = tutorial("channels_last")
    model = keras.Sequential([keras.Input((28, 28, 1)), *model.layers[:-2], keras.layers.Dense(9)])
    model.save(tmp_path / "nine.keras")
    with pytest.raises(ConfigError, match=r"dense2.bias has shape \[9\], expected \[10\]"):
        weights.read_variables(tmp_path / "nine.keras", template)
