"""Batch normalization, dropout, augmentation, schedules, averaged weights: each does what its
source says, and a run that uses them all resumes to the same bits."""

import functools
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import config_of, result_of, run, start, wait_for
from networks import Normalized

import mnist_cnn
from mnist_cnn.analysis import export_formats
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.models.apply import forward, scale
from mnist_cnn.runner.checkpoint import Checkpoints, sha256
from mnist_cnn.training import batches
from mnist_cnn.training.components import adam, build_hyperparameters
from mnist_cnn.training.options import augment_images, training_loss
from mnist_cnn.training.schedule import scheduled
from mnist_cnn.training.scoring import score
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import train_step

EXPERIMENT = """
import mnist_cnn
from flax import linen as nn
from mnist_cnn.models import layers

class Normalized(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Dense(16)(images.reshape(images.shape[0], -1)))
        x = layers.BatchNorm(train)(x)
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))

def get_config():
    return mnist_cnn.experiment(
        name="options", model=Normalized(), manual_dir={manual_dir!r}, batch_size=32, num_steps=40,
        log_every=7, checkpoint_every=10, eval_batch_size=100, report=False,
        schedule="cosine", warmup_steps=5, label_smoothing=0.1, ema=0.9,
        rotation=10.0, zoom=0.1, shear=0.1, shift=1.0,
    )
"""


@pytest.fixture(scope="module")
def batch(hundred_images):
    return batches.take(hundred_images, jnp.arange(32))


@pytest.fixture(scope="module")
def experiment(small_mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "options.py"
    path.write_text(EXPERIMENT.format(manual_dir=str(small_mnist)))
    return path


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("options") / "run"
    run("mnist_cnn.main", "--config", experiment, "--workdir", workdir)
    return workdir


def on_host(tree):
    return jax.tree.map(np.array, tree)


# A whole run.


@pytest.mark.slow
def test_a_killed_run_with_all_options_ends_with_the_same_bits(experiment, finished, tmp_path):
    command = ("mnist_cnn.main", "--config", experiment, "--workdir", tmp_path)
    process = start(*command)
    wait_for(lambda: (tmp_path / "checkpoints" / "10").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = run(*command)
    assert "resuming from the checkpoint of step" in out
    for key in ("params_sha256", "test"):
        assert result_of(tmp_path)[key] == result_of(finished)[key]


@pytest.mark.slow
def test_the_averaged_network_is_tested_loaded_and_exported(experiment, finished):
    config = config_of(experiment)
    network = mnist_cnn.load(finished, config)
    assert sha256(network.variables) == result_of(finished)["params_sha256"][0]
    images = data.open_dataset("mnist", config["manual_dir"]).read("test")[0]
    kept = np.load(finished / "predictions.npz")["logits"]
    np.testing.assert_allclose(network(images), kept.reshape(-1, 10), atol=1e-5)
    program = jax.export.deserialize(bytearray(export_formats.stablehlo(network)))
    np.testing.assert_allclose(program.call(images), kept.reshape(-1, 10), atol=1e-4)
    named = export_formats.safetensors(network)
    assert b"BatchNorm_0.mean" in named and b"Dense_0.kernel" in named
    saved = Checkpoints(finished / "checkpoints", keep=None).restore(None, print)[1]["state"]
    assert sha256(saved["averaged"]) == sha256(network.variables)
    assert sha256(saved["params"]) != sha256(network.params)


@pytest.mark.slow
def test_exported_weights_return_with_their_batch_statistics(experiment, finished, tmp_path):
    network = mnist_cnn.load(finished, config_of(experiment))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(export_formats.safetensors(network))
    config = config_of(experiment)
    config.update(
        init_from=str(path), num_steps=1, learning_rate=1e-12, ema=0.0, schedule="constant",
        warmup_steps=0,
    )  # fmt: skip
    mnist_cnn.run(config, tmp_path / "run")
    again = mnist_cnn.load(tmp_path / "run", config)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), network.params, again.params
    )
    before, after = (
        one.variables["batch_stats"]["BatchNorm_0"]["mean"] for one in (network, again)
    )
    np.testing.assert_allclose(after, before, atol=0.02)  # one batch moves it by a hundredth
    assert np.abs(before).max() > 0.1


@pytest.mark.slow
def test_a_run_is_not_prolonged_if_its_schedule_depends_on_its_length(experiment, finished):
    config = config_of(experiment)
    config.num_steps = 50
    with pytest.raises(ConfigError, match="num_steps: was 40, now 50"):
        mnist_cnn.run(config, finished)


# The model.


@pytest.mark.slow
def test_a_module_may_require_the_argument_train(batch):
    class Requiring(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = images.reshape(images.shape[0], -1)
            return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))

    state, _ = train_step(create_state(mnist_cnn.experiment(model=Requiring())), batch)
    assert forward(state.model, state.variables, batch.images).shape == (32, 10)


@pytest.mark.slow
def test_batch_normalization_uses_the_batch_in_training_and_the_averages_in_evaluation(batch):
    state = create_state(mnist_cnn.experiment(model=Normalized(), learning_rate=1e-9))
    kernel = state.params["Dense_0"]["kernel"]
    inputs = np.asarray(batch.images, np.float32).reshape(32, -1) / 255 @ np.asarray(kernel)
    state, _ = train_step(state, batch)
    stats = state.batch_stats["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.01 * inputs.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * inputs.var(0), atol=1e-4)
    one, _ = score(state.model, state.loss, state.variables, batch.images, batch.labels, 1)
    many, _ = score(state.model, state.loss, state.variables, batch.images, batch.labels, 32)
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_alone(batch):
    def loss(seed, step, rate=0.5):
        params = create_state(mnist_cnn.experiment(model=Normalized())).params
        state = create_state(mnist_cnn.experiment(model=Normalized(rate), seed=seed))
        state = state.replace(step=jnp.int32(step), params=params)
        return float(train_step(state, batch)[1].loss)

    assert loss(3, 5) == loss(3, 5)
    assert len({loss(3, 5), loss(3, 6), loss(4, 5)}) == 3
    assert loss(3, 5, 0.0) == loss(4, 6, 0.0)


@pytest.mark.slow
def test_augmentation_depends_on_seed_and_step_alone_and_differs_for_each_image(batch):
    state = create_state(mnist_cnn.experiment(model=Normalized(), rotation=10.0))
    same = jnp.broadcast_to(scale(batch.images[:1]), batch.images.shape)
    changed = jax.jit(lambda state: augment_images(state, same, None))

    def images(step, seed=1):
        return np.asarray(changed(state.replace(step=jnp.int32(step), seed=jnp.uint32(seed))))

    assert len({image.tobytes() for image in images(0)}) == 32
    assert (images(3) == images(3)).all()
    assert (images(3) != images(4)).any() and (images(3) != images(3, 2)).any()
    plain = create_state(mnist_cnn.experiment(model=Normalized()))
    assert augment_images(plain, same, None) is same


# The schedule.


def test_the_schedule_rises_linearly_and_falls_by_half_a_cosine():
    config = mnist_cnn.experiment(
        schedule="cosine", warmup_steps=10, num_steps=110, learning_rate=0.5
    )
    hyper = build_hyperparameters(config, None, 110)
    rates = [float(scheduled(hyper, jnp.int32(n))["learning_rate"]) for n in range(111)]
    np.testing.assert_allclose(rates[:10], 0.5 * np.arange(1, 11) / 10, rtol=1e-5)
    cosine = optax.cosine_decay_schedule(0.5, 100)
    np.testing.assert_allclose(rates[10:], [cosine(n) for n in range(101)], atol=1e-6)
    constant = build_hyperparameters(mnist_cnn.experiment())
    assert scheduled(constant, jnp.int32(7)) is constant


@pytest.mark.parametrize("optimizer", ["adam", pytest.param(optax.sgd, marks=pytest.mark.slow)])
def test_a_step_uses_the_rate_of_its_position_in_the_schedule(optimizer, batch):
    def change(**fields):
        config = mnist_cnn.experiment(
            model=Normalized(), optimizer=optimizer, learning_rate=0.1, num_steps=8, **fields
        )
        state = create_state(config)
        before = on_host(state.params)
        state, _ = train_step(state, batch)
        return jax.tree.leaves(jax.tree.map(np.subtract, on_host(state.params), before))

    quarter, whole = change(schedule="cosine", warmup_steps=4), change()
    for scheduled_change, constant_change in zip(quarter, whole, strict=True):
        np.testing.assert_allclose(4 * scheduled_change, constant_change, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"warmup_steps": 5}, "set schedule='cosine'"),
        ({"schedule": "linear"}, "expected constant or cosine"),
        ({"ema": 1.0}, "expected a number from 0 to below 1"),
        ({"rotation": -1.0}, "expected a number from 0 to 180"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields, text):
    with pytest.raises(ConfigError, match="config") as error:
        mnist_cnn.config.validate(mnist_cnn.experiment(**fields))
    assert text in str(error.value)


def test_a_warm_up_longer_than_the_training_is_refused(experiment, tmp_path):
    config = config_of(experiment)
    config.warmup_steps = 40
    with pytest.raises(UserError, match="expected fewer than the 40 steps"):
        mnist_cnn.run(config, tmp_path / "run")


# The loss, the optimizer and the average.


@pytest.mark.slow
def test_label_smoothing_is_that_of_szegedy_et_al():
    state = create_state(mnist_cnn.experiment(model=Normalized(), label_smoothing=0.3))
    logits, labels = jax.random.normal(jax.random.key(0), (7, 10)), jnp.arange(7)
    target = 0.7 * jax.nn.one_hot(labels, 10) + 0.03
    expected = -(target * jax.nn.log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(training_loss(state, logits, labels), expected, rtol=1e-5)


def test_weight_decay_is_decoupled():
    hyper = build_hyperparameters(mnist_cnn.experiment(weight_decay=0.5, learning_rate=0.01))
    plain = {key: value for key, value in hyper.items() if key != "weight_decay"}
    params, gradients = {"w": jnp.array([2.0, -3.0])}, {"w": jnp.array([0.1, 0.2])}
    updates = []
    for values in (hyper, plain):
        optimizer = adam(values)
        updates.append(optimizer.update(gradients, optimizer.init(params), params)[0]["w"])
    np.testing.assert_allclose(updates[0] - updates[1], -0.01 * 0.5 * params["w"], rtol=1e-4)


def test_the_average_covers_parameters_and_statistics_and_is_evaluated(batch):
    state = create_state(mnist_cnn.experiment(model=Normalized(), ema=0.15))
    expected = on_host(state.variables)
    for decay in (0.1, 0.15):  # min(ema, (1 + t) / (10 + t))
        state, _ = train_step(state, batch)
        now = on_host({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new, expected, now
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), on_host(state.variables), expected
    )
    assert state.variables is state.ema_variables
    plain = create_state(mnist_cnn.experiment(model=Normalized()))
    assert plain.variables == {"params": plain.params, "batch_stats": plain.batch_stats}
