"""A sweep is judged on the validation split, and only its best setting is tested."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, metrics_of, result_of
from flax import linen as nn
from training_runs import train

import mnist_cnn
from mnist_cnn import config as config_lib
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.preparation import Diverged
from mnist_cnn.training.state import create_state

HALVES = {"train_split": "train[:400]", "validation_split": "train[400:]"}


@pytest.fixture(scope="module")
def sweep(tiny_experiment, tmp_path_factory):
    """Three learning rates, of which one diverges, two seeds each."""
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    changes = {"sweep": {"learning_rate": [1e-4, 3e-3, 1e30]}, "num_seeds": 2, "report": True}
    return workdir, train(tiny_experiment, workdir, **HALVES, **changes)


def test_a_sweep_is_judged_on_validation_and_tests_the_chosen_setting(
    sweep, tiny_experiment, tmp_path
):
    workdir, result = sweep
    settings = result["sweep"]["settings"]
    assert [one["setting"] for one in settings] == [
        {"learning_rate": rate} for rate in (1e-4, 3e-3, 1e30)
    ]
    assert [one["status"] for one in settings] == ["finished", "finished", "diverged"]
    means = [one["validation_mean"]["accuracy"] for one in settings[:2]]
    assert result["sweep"]["chosen"] == int(np.argmax(means)) == 1
    assert settings[0]["validation"]["examples"] == 100
    plain = train(tiny_experiment, tmp_path, **HALVES, learning_rate=3e-3, num_seeds=2)
    for key in ("seeds", "test", "test_mean", "params_sha256", "ensemble"):
        assert result[key] == plain[key]
    validation = [e for e in metrics_of(tmp_path) if e["split"] == "validation"][-1]
    assert settings[1]["validation"]["accuracy"] == validation["accuracy"]
    with np.load(workdir / "predictions.npz") as kept:
        assert kept["logits"].shape == (2, 250, 10)


def test_the_files_of_a_sweep_are_valid_json_and_its_report_shows_every_setting(sweep):
    workdir, _ = sweep
    json.loads((workdir / "result.json").read_text(), parse_constant=pytest.fail)
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_constant=pytest.fail)
        assert len(np.atleast_1d(entry["loss"])) == (2 if entry["split"] == "test" else 6)
    page = (workdir / "report.html").read_text()
    assert "Sweep, validated on train[400:]" in page and "Error over learning_rate" in page
    assert "diverged" in page and "chosen" in page


class Lottery(nn.Module):
    """For some seeds it is not finite from the beginning."""

    @nn.compact
    def __call__(self, images):
        def blank(key):
            return jnp.where(jax.random.bernoulli(key), jnp.nan, 0.0)

        return nn.Dense(10)(images.reshape(-1, 784)) + self.param("blank", blank)


@pytest.mark.slow
def test_a_sweep_ends_if_every_setting_has_a_diverged_seed(tiny_experiment, tmp_path):
    rates = {"learning_rate": [1e-3, 1e-2]}
    lost = []
    for seed in range(8):
        state = create_state(mnist_cnn.experiment(model=Lottery(), seed=seed))
        lost.append(bool(jnp.isnan(state.params["blank"])))
    first = next(seed for seed in range(7) if lost[seed] != lost[seed + 1])
    with pytest.raises(Diverged, match="not finite at step"):
        train(
            tiny_experiment, tmp_path, **HALVES, sweep=rates, model=Lottery(), seed=first,
            num_seeds=2, num_steps=8,
        )  # fmt: skip
    assert result_of(tmp_path)["status"] == "diverged"


def test_a_sweep_ends_if_every_setting_diverges(tiny_experiment, tmp_path):
    with pytest.raises(Diverged, match="not finite at step"):
        train(tiny_experiment, tmp_path, **HALVES, sweep={"learning_rate": [1e30, 1e31]})
    assert result_of(tmp_path)["status"] == "diverged"


VALUES = {
    "learning_rate": 3e-3, "b1": 0.5, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.1,
    "label_smoothing": 0.2, "ema": 0.5, "rotation": 20.0, "zoom": 0.2, "shear": 0.2, "shift": 2.0,
}  # fmt: skip
SHORT = {**HALVES, "num_steps": 10}


@pytest.fixture(scope="module")
def ten_steps(tiny_experiment, tmp_path_factory):
    """The result and the validation loss of the defaults."""
    workdir = tmp_path_factory.mktemp("ten_steps") / "run"
    return train(tiny_experiment, workdir, **SHORT), validation_loss(workdir)


def validation_loss(workdir):
    return next(line["loss"] for line in metrics_of(workdir) if line["split"] == "validation")


QUICK = ("learning_rate",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in config_lib.HYPERPARAMETERS
    ],
)
def test_every_hyperparameter_reaches_the_step_swept_or_set(
    name, ten_steps, tiny_experiment, tmp_path
):
    value, default = VALUES[name], config_lib.FIELDS[name].default
    swept = train(tiny_experiment, tmp_path / "a", **SHORT, sweep={name: [default, value]})
    plain = train(tiny_experiment, tmp_path / "b", **SHORT, **{name: value})
    base, loss = ten_steps
    found = [one["validation_mean"]["loss"] for one in swept["sweep"]["settings"]]
    np.testing.assert_allclose(found, [loss, validation_loss(tmp_path / "b")], rtol=1e-4)
    assert base["params_sha256"] != plain["params_sha256"]
    assert swept["params_sha256"][0] in (plain["params_sha256"] + base["params_sha256"]) or (
        default == 0  # absent from the program if off: other rounding
    )


def test_an_unfinished_sweep_has_no_chosen_network(sweep, tiny_experiment, tmp_path):
    shutil.copytree(sweep[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="no setting is chosen yet"):
        mnist_cnn.load(tmp_path / "run", config_of(tiny_experiment))
    shutil.copy(sweep[0] / "result.json", tmp_path / "run")  # of 40 steps, but the run has 80 now
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields | {"num_steps": 80}))
    with pytest.raises(CheckpointError, match="no setting is chosen yet"):
        mnist_cnn.load(tmp_path / "run", config_of(tiny_experiment))
    network = mnist_cnn.load(sweep[0], config_of(tiny_experiment))
    assert sha256(network.params) == sweep[1]["params_sha256"][0]
