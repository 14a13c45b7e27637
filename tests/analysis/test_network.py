"""A loaded network: needs no optimizer and loss, and compiles few programs whatever it is given."""

import contextlib
import shutil

import jax
import numpy as np
import optax
import pytest
from conftest import TINY_EXPERIMENT, config_of, read_idx, result_of, run
from flax import linen as nn
from networks import Linear

import mnist_cnn
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.analysis.export_formats import FORMATS
from mnist_cnn.analysis.network import Network
from mnist_cnn.errors import CheckpointError
from mnist_cnn.models import layers
from mnist_cnn.training.components import LOSSES
from mnist_cnn.training.scoring import compute_logits
from mnist_cnn.training.state import create_state


@contextlib.contextmanager
def compilations():
    """A list that gets an entry for each program that XLA compiles within the block."""
    names = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def network_of(**fields):
    config = mnist_cnn.experiment(**fields)
    state = create_state(config)
    return Network(config, state.variables, state.model, 0, config.seed)


class Small(nn.Module):
    """Convolution and dense layer, whose sums XLA splits in another way for other batches."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(layers.ConvMaxPool(8, (5, 5))(images))
        return layers.Dense(10)(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_each_number_of_images_is_not_compiled_again():
    network = network_of(model=Linear(), eval_batch_size=8)
    images = read_idx("t10k-images-idx3-ubyte")[:200]
    compute_logits.clear_cache()
    with compilations() as compiled:
        logits = [network(images[:count]) for count in range(200)]
    assert [len(one) for one in logits] == list(range(200))
    for one in logits:
        np.testing.assert_allclose(one, logits[-1][: len(one)], atol=1e-5)
    sizes = 4 + 4  # 1, 2, 4, 8 images; then 2, 4, 8, 16 batches
    assert 4 <= len(compiled) <= sizes
    with compilations() as compiled:
        network(images)
    assert compiled == []


@pytest.mark.slow
def test_a_network_that_knows_none_answers_with_its_probability():
    images = read_idx("t10k-images-idx3-ubyte")[:70]
    network = network_of(model=Linear(), loss="cross_entropy_or_none")
    found, none = network.probabilities(images), network.no_digit(images)
    powers = np.exp(network(images).astype(float))
    whole = 1 + powers.sum(1, keepdims=True)  # the logit of "none" is 0
    np.testing.assert_allclose(found, powers / whole, rtol=1e-5)
    np.testing.assert_allclose(none, 1 / whole[:, 0], rtol=1e-5)
    logits = jax.numpy.asarray(network(images))
    loss = LOSSES["cross_entropy_or_none"](logits, jax.numpy.full(70, 10))
    np.testing.assert_allclose(loss, -np.log(none), rtol=1e-4)
    other = network_of(model=Linear())
    np.testing.assert_allclose(other.probabilities(images).sum(1), 1)
    np.testing.assert_allclose(other.no_digit(images), 0, atol=1e-12)


@pytest.mark.slow
def test_logits_of_whole_batches_are_those_of_one_program_to_the_last_bit():
    network = network_of(model=Small(), eval_batch_size=20)
    images = read_idx("t10k-images-idx3-ubyte")[:140]
    for count in (16, 20, 60):
        expected = compute_logits(network.model, network.variables, images[:count], 20)
        np.testing.assert_array_equal(network(images[:count]), expected)


def own_loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels) * 2


@pytest.fixture(scope="module")
def own_optimizer(small_mnist, tmp_path_factory):
    """A run of the built-in network with a loss and an optimizer of its own, and its config."""
    config = mnist_cnn.experiment(
        loss=own_loss, optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
        manual_dir=str(small_mnist), num_steps=2, report=False,
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("own") / "run"
    mnist_cnn.run(config, workdir)
    return workdir, config


@pytest.mark.slow
def test_a_built_in_network_needs_no_experiment_for_its_loss_and_optimizer(own_optimizer, tmp_path):
    workdir, config = own_optimizer
    network, same = mnist_cnn.load(workdir), mnist_cnn.load(workdir, config)
    jax.tree.map(np.testing.assert_array_equal, network.variables, same.variables)
    assert network.config["optimizer"] == "own_optimizer.<locals>.<lambda>"
    assert FORMATS["safetensors"](network) == FORMATS["safetensors"](same)
    with_loss, without = evaluate(workdir, config=config), evaluate(workdir)
    assert with_loss.pop("loss") == result_of(workdir)["test"]["loss"][0]
    assert without.pop("loss") is None and without == with_loss
    for command in (["evaluate"], ["export", "--format=safetensors", f"--output={tmp_path / 'x'}"]):
        out, err = run(f"mnist_cnn.{command[0]}", "--workdir", workdir, *command[1:])
        assert err == ""
        assert command[0] == "export" or "loss: the experiment's own, for which give" in out


def test_network_of_another_shape_is_refused(undisturbed, tiny_experiment):
    other = TINY_EXPERIMENT.replace("nn.Dense(16)", "nn.Dense(17)")
    path = tiny_experiment.with_name("wider.py")
    path.write_text(other.format(manual_dir=str(config_of(tiny_experiment)["manual_dir"])))
    with pytest.raises(CheckpointError, match=r"checkpoint 40 is of another network"):
        mnist_cnn.load(undisturbed[0], config_of(path))


def test_a_changed_experiment_file_is_noted_when_its_network_is_loaded(
    undisturbed, tiny_experiment, tmp_path, capsys
):
    mnist_cnn.load(undisturbed[0], config_of(tiny_experiment))
    assert capsys.readouterr().err == ""
    changed = tmp_path / tiny_experiment.name
    shutil.copy(tiny_experiment, changed)
    changed.write_text(changed.read_text().replace("nn.relu", "nn.tanh"))
    mnist_cnn.load(undisturbed[0], config_of(changed))
    err = capsys.readouterr().err
    assert f"note: {changed} differs from the run's experiment file" in err
    assert err.count("\n") == 1
