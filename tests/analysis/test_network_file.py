"""A safetensors file that `export` wrote is a network again; so is the one in the package."""

import json
import pathlib

import jax
import numpy as np
import pytest
from conftest import read_idx, run
from flax import linen as nn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import mnist_cnn
from mnist_cnn.analysis import evaluation, export_formats
from mnist_cnn.analysis.network import Network
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import CheckpointError
from mnist_cnn.models import layers
from mnist_cnn.models.ensemble import Ensemble
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.training.state import create_state

COLOURED = DataSpec((16, 20, 3), ("<b>", "two", "3"))


class Own(nn.Module):
    """A network with batch normalization and a field."""

    width: int = 4
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.BatchNorm(train)(nn.Conv(self.width, (3, 3))(images))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def write(path, spec=MNIST, **fields):
    config = mnist_cnn.experiment(**fields)
    state = create_state(config, spec=spec)
    network = Network(config, state.variables, state.model, 7, config.seed, spec)
    path.write_bytes(export_formats.safetensors(network))
    return network


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "network.safetensors"
    return path, write(path)


def test_a_file_is_the_network_that_was_written(written):
    path, network = written
    images = read_idx("t10k-images-idx3-ubyte")[:20]
    again = mnist_cnn.load(path)
    assert np.array_equal(again(images), network(images))
    assert (again.seed, again.step, again.spec) == (1337, 7, MNIST)
    assert again.config["learning_rate"] == network.config["learning_rate"]


def test_a_file_keeps_form_classes_and_fields_of_an_own_network(tmp_path):
    path = tmp_path / "own.safetensors"
    network = write(path, COLOURED, model=Own(width=6), seed=3)
    images = np.random.default_rng(0).integers(0, 256, (5, *COLOURED.image_shape), np.uint8)
    again = mnist_cnn.load(str(path), mnist_cnn.experiment(model=Own(), seed=3))
    assert again.spec == COLOURED and again.model.width == 6
    assert np.array_equal(again(images), network(images))
    with pytest.raises(CheckpointError, match=r"own.safetensors: its model is 'Own\(.*--config"):
        mnist_cnn.load(path)


def test_a_wrong_file_is_refused_in_one_line(written, tmp_path):
    path, _ = written
    tensors = load_file(path)
    damaged, bare, other = (tmp_path / f"{name}.safetensors" for name in ("bad", "bare", "other"))
    damaged.write_bytes(path.read_bytes()[:-100])
    save_file(tensors, bare)
    metadata = {"config": json.dumps({"batch_size": 8}), "seed": "1", "step": "2"}
    metadata |= {"image_shape": "[28, 28, 1]", "class_names": json.dumps(list("0123456789"))}
    save_file(tensors | {"conv1.bias": np.zeros(3, np.float32)}, other, metadata)
    for wrong, reason in (
        (damaged, "expected a file of `export --format safetensors`"),
        (bare, "expected a file of `export --format safetensors`"),
        (tmp_path / "none.safetensors", "No such file"),
        (other, "conv1.bias has shape"),
    ):
        with pytest.raises(CheckpointError) as error:
            mnist_cnn.load(wrong)
        assert str(error.value).startswith(str(wrong)) and reason in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="got seed 5, expected 1337"):
        mnist_cnn.load(path, seed=5)
    for bad in ({"seed": "[]"}, {"seed": "[1, 2]", "step": "[1, 2, 3]"}, {"seed": "{}"}):
        save_file(tensors, other, metadata | bad)
        with pytest.raises(CheckpointError, match="expected a file of `export --format safeten"):
            mnist_cnn.load(other)
    save_file(tensors, other, metadata | {"seed": "[1, 2]"})  # its tensors are of one network
    with pytest.raises(CheckpointError, match=r"has shape \[.*\], expected \[2, "):
        mnist_cnn.load(other)


@pytest.fixture(scope="module")
def written_ensemble(tmp_path_factory):
    """A file of three networks of seeds 3, 4 and 9, and that ensemble."""
    config = mnist_cnn.experiment(model=Own(), loss="cross_entropy_or_none", num_seeds=7)
    states = []
    for config.seed in (3, 4, 9):
        states.append(create_state(config, spec=COLOURED))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[one.variables for one in states])
    model = Ensemble(states[0].model, or_none=True)
    network = Network(config, stacked, model, (7, 8, 7), (3, 4, 9), COLOURED)
    path = tmp_path_factory.mktemp("file") / "network.safetensors"
    path.write_bytes(export_formats.safetensors(network))
    return path, network, config


def test_a_file_of_an_ensemble_is_that_ensemble_or_one_of_its_members(written_ensemble):
    path, network, config = written_ensemble
    images = np.random.default_rng(0).integers(0, 256, (5, *COLOURED.image_shape), np.uint8)
    for seed in (None, "all"):
        again = mnist_cnn.load(path, config, seed)
        assert (again.seed, again.step, again.spec) == ((3, 4, 9), (7, 8, 7), COLOURED)
        np.testing.assert_array_equal(again.all_logits(images), network.all_logits(images))
        np.testing.assert_array_equal(again.no_digit(images), network.no_digit(images))
    assert export_formats.safetensors(again) == path.read_bytes()
    member = mnist_cnn.load(path, config, seed=4, step=8)
    assert (member.seed, member.step, member.members) == (4, 8, ())
    np.testing.assert_array_equal(member(images), network.all_logits(images)[2])
    with safe_open(path, framework="numpy") as file:
        facts = file.metadata()
        assert file.get_slice("Conv_0.kernel").get_shape() == [3, 3, 3, 3, 4]
    assert (facts["seed"], facts["step"]) == ("[3, 4, 9]", "[7, 8, 7]")
    assert json.loads(facts["params_sha256"])[1] == sha256(member.variables)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"seed": 5}, 'got seed 5, expected 3, 4, 9, or "all"'),
        ({"step": 7}, "got step 7, expected 7 and 8"),
        ({"seed": 4, "step": 7}, "got step 7, expected 8"),
    ],
)
def test_what_the_file_of_an_ensemble_does_not_have_is_refused(written_ensemble, given, reason):
    path, _, config = written_ensemble
    with pytest.raises(CheckpointError) as error:
        mnist_cnn.load(path, config, **given)
    assert str(error.value) == f"{path}: {reason}"


def test_all_of_a_file_of_one_network_is_that_network(written):
    path, network = written
    again = mnist_cnn.load(path, seed="all")
    assert (again.seed, again.members) == (1337, ())
    assert sha256(again.variables) == sha256(network.variables)


@pytest.mark.slow
def test_commands_take_a_file(written, tmp_path):
    path, network = written
    found = evaluation.evaluate(path, split="train[:50]")
    images = read_idx("train-images-idx3-ubyte")[:50]
    labels = read_idx("train-labels-idx1-ubyte")[:50]
    assert found["correct"] == (network(images).argmax(-1) == labels).sum()
    copy = tmp_path / "copy.safetensors"
    run("mnist_cnn.export", "--workdir", path, "--format", "safetensors", "--output", copy)
    assert copy.read_bytes() == path.read_bytes()


def test_the_network_of_the_package_is_small_and_works_anywhere(tmp_path, monkeypatch):
    """Also beside a folder of that name."""
    from mnist_cnn.analysis.packaged import FILE

    monkeypatch.chdir(tmp_path)
    pathlib.Path("digits").mkdir()
    assert FILE.stat().st_size <= 10**6
    network = mnist_cnn.load("digits")
    images = read_idx("t10k-images-idx3-ubyte")[:500]
    labels = read_idx("t10k-labels-idx1-ubyte")[:500]
    assert (network(images).argmax(-1) == labels).mean() > 0.98
    noise = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1), np.uint8)
    assert (network.no_digit(noise) > 0.5).mean() > 0.5
