"""Batch normalisation, dropout, augmentation, schedules and averaged weights: each does what its
source says, and a run that has them all goes on to the same bits."""

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, result_of, run, start, wait_for

import mnist_cnn
from mnist_cnn import export
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.models import layers, summary
from mnist_cnn.runner.checkpoint import Checkpoints, sha256
from mnist_cnn.training import augment, batches

EXPERIMENT = """
import mnist_cnn
from flax import linen as nn
from mnist_cnn.models import layers

class Normed(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Dense(16)(images.reshape(images.shape[0], -1)))
        x = layers.BatchNorm(train)(x)
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))

def get_config():
    return mnist_cnn.experiment(
        name="recipe", model=Normed(), manual_dir={manual_dir!r}, batch_size=32, num_steps=40,
        log_every=7, checkpoint_every=10, eval_batch_size=100, report=False,
        schedule="cosine", warmup_steps=5, label_smoothing=0.1, ema=0.9,
        rotation=10.0, zoom=0.1, shear=0.1, shift=1.0,
    )
"""


class Normed(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(8)(images.reshape(images.shape[0], -1))
        x = nn.Dropout(self.rate, deterministic=not train)(layers.BatchNorm(train)(x))
        return nn.Dense(10)(x)


@pytest.fixture(scope="module")
def batch(small_mnist):
    images, labels = data.open_dataset("mnist", str(small_mnist)).read("train")
    return batches.take(jnp.asarray(images), jnp.asarray(labels, jnp.int32), jnp.arange(32))


@pytest.fixture(scope="module")
def experiment(small_mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "recipe.py"
    path.write_text(EXPERIMENT.format(manual_dir=str(small_mnist)))
    return path


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("recipe") / "run"
    run("mnist_cnn.main", "--config", experiment, "--workdir", workdir)
    return workdir


def host(tree):
    return jax.tree.map(np.array, tree)


# A whole run.


def test_a_killed_run_of_them_all_ends_with_the_same_bits(experiment, finished, tmp_path):
    command = ("mnist_cnn.main", "--config", experiment, "--workdir", tmp_path)
    process = start(*command)
    wait_for(lambda: (tmp_path / "checkpoints" / "10").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = run(*command)
    assert "going on from the checkpoint of step" in out
    for key in ("params_sha256", "test"):
        assert result_of(tmp_path)[key] == result_of(finished)[key]


def test_what_is_tested_is_what_is_loaded_and_exported(experiment, finished):
    config = mnist_cnn.config.experiment(**_fields(experiment))
    network = mnist_cnn.load(finished, config)
    assert sha256(network.variables) == result_of(finished)["params_sha256"][0]
    images = data.open_dataset("mnist", config["manual_dir"]).read("test")[0]
    kept = np.load(finished / "predictions.npz")["logits"]
    np.testing.assert_allclose(network(images), kept.reshape(-1, 10), atol=1e-5)
    program = jax.export.deserialize(bytearray(export.stablehlo(network)))
    np.testing.assert_allclose(program.call(images), kept.reshape(-1, 10), atol=1e-4)
    named = export.safetensors(network)
    assert b"BatchNorm_0.mean" in named and b"Dense_0.kernel" in named
    averaged = Checkpoints(finished / "checkpoints", keep=None).restore(None, print)[1]["state"]
    assert sha256(averaged["averaged"]) == sha256(network.variables)
    assert sha256(averaged["params"]) != sha256(network.params)


def test_what_is_exported_comes_back_with_its_statistics(experiment, finished, tmp_path):
    network = mnist_cnn.load(finished, mnist_cnn.config.experiment(**_fields(experiment)))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(export.safetensors(network))
    fields = _fields(experiment) | {
        "init_from": str(path), "num_steps": 1, "learning_rate": 1e-12, "ema": 0.0,
        "schedule": "constant", "warmup_steps": 0,
    }  # fmt: skip
    mnist_cnn.run(mnist_cnn.config.experiment(**fields), tmp_path / "run")
    again = mnist_cnn.load(tmp_path / "run", mnist_cnn.config.experiment(**fields))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), network.params, again.params
    )
    # One batch moves the averages by a hundredth.
    before, after = (
        one.variables["batch_stats"]["BatchNorm_0"]["mean"] for one in (network, again)
    )
    np.testing.assert_allclose(after, before, atol=0.02)
    assert np.abs(before).max() > 0.1


def test_a_module_may_leave_it_to_be_told_whether_it_is_trained(batch):
    class Told(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = images.reshape(images.shape[0], -1)
            return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))

    state, _ = train_step(create_state(mnist_cnn.experiment(model=Told())), batch)
    assert forward(state.model, state.variables, batch.images).shape == (32, 10)


def _fields(experiment):
    import runpy

    return dict(runpy.run_path(str(experiment))["get_config"]().items())


def test_a_run_whose_schedule_knows_its_length_is_not_prolonged(experiment, finished, tmp_path):
    _, err = run(
        "mnist_cnn.main", "--config", experiment, "--workdir", finished, "--config.num_steps=50",
        status=2,
    )  # fmt: skip
    assert "num_steps: was 40, now 50" in err and err.count("\n") == 1


def test_a_checkpoint_of_a_plain_network_is_what_it_was_before_there_were_statistics():
    state = create_state(mnist_cnn.experiment())
    tree = to_dict(state)
    assert tree.keys() == {"step", "seed", "hyper", "params", "opt_state"}
    assert sha256(to_dict(from_dict(state, tree))) == sha256(tree)


# The schedule.


def test_the_schedule_rises_evenly_and_falls_by_half_a_cosine():
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
    assert total_steps(mnist_cnn.experiment(num_epochs=3), 100) == 3 * 4


def test_the_step_takes_the_rate_of_its_own_place(batch):
    config = mnist_cnn.experiment(model=Normed(), schedule="cosine", warmup_steps=4, num_steps=8)
    state = create_state(config)
    before = host(state.params)
    state, _ = train_step(state, batch)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, host(state.params))
    # Adam's first step moves a parameter by the learning rate: a quarter of 1e-3 here.
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), 1e-3 / 4, rtol=1e-2)


def test_an_optimiser_of_ones_own_is_given_the_rate_of_the_step(batch):
    def change(**fields):
        config = mnist_cnn.experiment(
            model=Normed(), optimizer=optax.sgd, learning_rate=0.1, num_steps=8, **fields
        )
        state = create_state(config)
        before = host(state.params)
        state, _ = train_step(state, batch)
        return jax.tree.map(np.subtract, host(state.params), before)

    quarter, whole = change(schedule="cosine", warmup_steps=4), change()
    for scheduled, constant in zip(*map(jax.tree.leaves, (quarter, whole)), strict=True):
        np.testing.assert_allclose(4 * scheduled, constant, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"warmup_steps": 5}, "set schedule='cosine'"),
        ({"schedule": "linear"}, "expected constant or cosine"),
        ({"ema": 1.0}, "expected a number from 0 to below 1"),
        ({"rotation": -1.0}, "expected a number from 0 to 180"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, said):
    with pytest.raises(ConfigError, match="config") as error:
        mnist_cnn.config.validate(mnist_cnn.experiment(**fields))
    assert said in str(error.value)


def test_a_warm_up_longer_than_the_training_is_refused(experiment, tmp_path):
    config = mnist_cnn.experiment(**_fields(experiment) | {"warmup_steps": 40})
    with pytest.raises(UserError, match="expected fewer than the 40 steps"):
        mnist_cnn.run(config, tmp_path / "run")


# The average.


def test_the_average_is_of_parameters_and_statistics_and_is_what_is_evaluated(batch):
    state = create_state(mnist_cnn.experiment(model=Normed(), ema=0.15))
    expected = host(state.variables)
    for decay in (0.1, 0.15):  # min(ema, (1 + t) / (10 + t))
        state, _ = train_step(state, batch)
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new, expected, host(now)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 host(state.variables), expected)  # fmt: skip
    assert state.variables is state.averaged
    plain = create_state(mnist_cnn.experiment(model=Normed()))
    assert plain.variables == {"params": plain.params, "batch_stats": plain.batch_stats}


# Batch normalisation and dropout.


def test_while_trained_a_batch_is_normalised_by_itself_then_by_the_averages(batch):
    state = create_state(mnist_cnn.experiment(model=Normed(), learning_rate=1e-9))
    kernel = state.params["Dense_0"]["kernel"]
    inputs = np.asarray(batch.images, np.float32).reshape(32, -1) / 255 @ np.asarray(kernel)
    state, _ = train_step(state, batch)
    stats = state.batch_stats["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.01 * inputs.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * inputs.var(0), atol=1e-4)
    one, _ = score(state.model, state.loss, state.variables, batch.images, batch.labels, 1)
    many, _ = score(state.model, state.loss, state.variables, batch.images, batch.labels, 32)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_dropout_follows_from_seed_and_step_alone(batch):
    def loss(seed, step, rate=0.5):
        params = create_state(mnist_cnn.experiment(model=Normed())).params
        state = create_state(mnist_cnn.experiment(model=Normed(rate), seed=seed))
        state = state.replace(step=jnp.int32(step), params=params)
        return float(train_step(state, batch)[1].loss)

    assert loss(3, 5) == loss(3, 5)
    assert len({loss(3, 5), loss(3, 6), loss(4, 5)}) == 3
    assert loss(3, 5, 0.0) == loss(4, 6, 0.0)


def test_a_partial_batch_is_filled_with_images_that_weigh_nothing(batch):
    rows = jnp.array([7, -1, -1, -1])
    filled = batches.take(batch.images, batch.labels, rows)
    assert filled.weights.tolist() == [1, 0, 0, 0]
    assert (filled.images[0] == batch.images[7]).all()
    assert len({image.tobytes() for image in np.asarray(filled.images)}) == 4


SHARED = """
import json, sys
import jax
import numpy as np
import optax
sys.path.insert(0, "tests")
from test_recipe import Normed
import mnist_cnn
from mnist_cnn.data import dataset as data
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.mesh import replicas
from mnist_cnn.models.apply import forward, scale
from mnist_cnn.training.batches import total_steps
from mnist_cnn.training.components import build_hyperparameters
from mnist_cnn.training.options import augment_images, scheduled
from mnist_cnn.training.scoring import score
from mnist_cnn.training.state import create_state, from_dict, to_dict
from mnist_cnn.training.step import train_step

images, labels = data.open_dataset("mnist", sys.argv[1]).read("train")

def end(mesh):
    config = mnist_cnn.experiment(
        mesh=mesh, batch_size=32, model=Normed(), rotation=10.0, shift=2.0, ema=0.5,
        optimizer=optax.sgd, learning_rate=0.1,  # Adam would magnify roundings of what is 0
    )
    network = replicas.Replicas(
        config, make_mesh(config, 1, jax.devices()), images, labels
    )
    network.advance(0, 0, 5)
    return jax.tree.leaves(network.variables([0])[0])

print(json.dumps([float(np.abs(a - b).max()) for a, b in zip(end("1x1"), end("1x4"))]))
"""


def test_devices_that_share_a_batch_normalise_and_augment_it_as_one_would(small_mnist):
    done = subprocess.run(
        [sys.executable, "-c", SHARED, str(small_mnist)], cwd=ROOT, text=True,
        capture_output=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    apart = json.loads(done.stdout)
    assert len(apart) == 8 and max(apart) < 1e-4


# Augmentation.


def draw(count=500, step=0, **amounts):
    return augment.draw(jax.random.key(step), amounts, count)


def test_an_image_is_turned_scaled_and_shifted_as_said(batch):
    images = scale(batch.images[:1])
    picture = np.asarray(images)[0, :, :, 0]

    def warped(matrix, offset=(0.0, 0.0)):
        return np.asarray(augment.warp(images, jnp.array([matrix]), jnp.array([offset])))[0, ..., 0]

    same = [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_array_equal(warped(same), picture)
    np.testing.assert_allclose(warped([[0.0, 1.0], [-1.0, 0.0]]), np.rot90(picture), atol=1e-5)
    np.testing.assert_allclose(warped(same, (0.0, 3.0))[:, :25], picture[:, 3:], atol=1e-5)
    assert not warped(same, (0.0, 3.0))[:, 25:].any()
    np.testing.assert_allclose(
        warped(same, (0.5, 0.0))[:-1], (picture[1:] + picture[:-1]) / 2, atol=1e-5
    )
    halved = warped([[2.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(halved.sum(), picture.sum() / 4, rtol=0.05)
    assert not warped(same, (100.0, 0.0)).any()


def test_what_is_drawn_is_in_its_range_and_fills_it():
    matrix, offset = map(np.asarray, draw(rotation=30.0, shift=2.0))
    angle = np.degrees(np.arctan2(matrix[:, 0, 1], matrix[:, 0, 0]))
    assert 28 < angle.max() <= 30 and -30 <= angle.min() < -28
    assert 1.9 < offset.max() <= 2 and -2 <= offset.min() < -1.9
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-5)
    scales = 1 / np.asarray(draw(zoom=0.2)[0])[:, [0, 1], [0, 1]]
    assert 1.19 < scales.max() <= 1.2 and 0.8 <= scales.min() < 0.81
    assert not np.asarray(draw(zoom=0.2)[1]).any()
    shear = np.asarray(draw(shear=0.3)[0])
    assert 0.29 < shear[:, 1, 0].max() <= 0.3 and not shear[:, 0, 1].any()


def module_of(name):
    """The module of an experiment of ours."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def accuracy():
    return module_of("accuracy")


def test_the_accuracy_network_answers_by_the_mean_probability_of_eleven_views(
    accuracy, batch, monkeypatch
):
    images = scale(batch.images)[:4]
    seen = accuracy.views(images)
    assert seen.shape == (11, 4, 28, 28, 1)
    assert jnp.array_equal(seen[0], images)
    assert len({np.asarray(view).tobytes() for view in seen}) == 11
    # Each change has its opposite: a spot to the upper right of the middle goes there and back.
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
def test_the_cost_of_views_is_counted_where_they_are_seen(name):
    model = module_of(name).get_config()["model"]
    tested, trained = summary.summarize(model), summary.summarize(model, train=True)
    assert [layer.multiply_adds for layer in tested] == [
        11 * layer.multiply_adds for layer in trained
    ]
    assert [layer[:3] for layer in tested] == [layer[:3] for layer in trained]
    assert sum(layer.parameters for layer in trained) == 177_386


def test_the_first_layer_of_the_speedrun_is_gabor_filters_and_stays_so(batch):
    state = create_state(module_of("speedrun").get_config())
    before = jax.tree.map(np.array, state.params)
    kernel = before["conv1"]["kernel"]  # of blocks of 2 x 2 pixels
    bank = kernel.reshape(3, 3, 2, 2, 16).transpose(0, 2, 1, 3, 4).reshape(6, 6, 16)
    np.testing.assert_allclose((bank**2).sum((0, 1)), 1, atol=1e-6)
    np.testing.assert_allclose(bank.sum((0, 1)), 0, atol=1e-6)  # blind to even brightness
    np.testing.assert_allclose(bank[..., :8], -bank[::-1, ::-1, :8], atol=1e-6)
    np.testing.assert_allclose(bank[..., 8:], bank[::-1, ::-1, 8:], atol=1e-6)
    for _ in range(2):
        state, _ = train_step(state, batch)
    moved = jax.tree.map(lambda old, new: (old != new).any().item(), before, dict(state.params))
    assert moved == {
        layer: dict.fromkeys(("bias", "kernel"), layer != "conv1")
        for layer in ("conv1", "conv2", "dense1", "dense2")
    }


def test_augmentation_follows_from_seed_and_step_alone_and_wants_every_image_its_own(batch):
    state = create_state(mnist_cnn.experiment(model=Normed(), rotation=10.0))
    same = batch.replace(images=jnp.broadcast_to(batch.images[:1], batch.images.shape))

    def images(step, seed=1):
        now = state.replace(step=jnp.int32(step), seed=jnp.uint32(seed))
        return np.asarray(augment_images(now, scale(same.images), None))

    assert len({image.tobytes() for image in images(0)}) == 32
    assert (images(3) == images(3)).all()
    assert (images(3) != images(4)).any() and (images(3) != images(3, 2)).any()
    plain = create_state(mnist_cnn.experiment(model=Normed()))
    assert augment_images(plain, batch.images, None) is batch.images
