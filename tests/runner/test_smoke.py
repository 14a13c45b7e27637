"""The smoke check: a tick for each part that works, a cross and why for the first that fails."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, finish, run, start

import mnist_cnn
from mnist_cnn.errors import ConfigError
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.runner import checkpoint, smoke


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with compile_cache():
        yield


PARTS = ["device", "data", "compile", "train", "save", "restore", "evaluate"]


def test_check_prints_a_tick_for_each_part_and_leaves_nothing_behind(tiny_experiment, tmp_path):
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    out, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.smoke=True",
        cwd=scratch, HOME=str(home), XDG_CACHE_HOME=str(home), TMPDIR=str(scratch),
        TFDS_DATA_DIR=str(home), PYTHONPATH=str(pathlib.Path(mnist_cnn.__file__).parents[1]),
    )  # fmt: skip
    assert [line.split()[:2] for line in out.splitlines()] == [["✓", part] for part in PARTS]
    assert err == ""
    assert [*home.iterdir(), *scratch.iterdir()] == []


def test_failing_part_is_a_cross_with_its_reason_and_exit_status_1(tiny_experiment, tmp_path):
    out, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.smoke=True",
        f"--config.manual_dir={tmp_path / 'nowhere'}", status=1, PYTHONIOENCODING="ascii",
    )  # fmt: skip
    device, cross = out.splitlines()  # the other parts are not tried
    assert device.startswith("+ device ")
    assert cross.startswith("x data ") and "is not a folder: name the one" in cross
    assert err == ""


def no_devices(*_):
    raise RuntimeError("Unable to initialize backend 'tpu':\nno such device")


class Inexact(checkpoint.Checkpoints):
    """Restores other values than were saved."""

    def restore(self, template, report):
        step, tree, extra = super().restore(template, report)
        tree["sums"]["loss"] = np.nextafter(tree["sums"]["loss"], np.float32(0))
        return step, tree, extra


def full_disk(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("broken", "part", "text"),
    [
        ((smoke, "find_devices", no_devices), "device", "RuntimeError: Unable to initialize"),
        ((smoke, "make_mesh", no_devices), "compile", "RuntimeError: Unable"),
        ((checkpoint.Checkpoints, "save", full_disk), "save", "No space left on device"),
        ((smoke, "Checkpoints", Inexact), "restore", "the restored state is not the saved one"),
        ((smoke, "summarize", lambda *_: {"loss": float("nan")}), "evaluate", "not finite"),
    ],
)
def test_failure_of_each_part_is_found(broken, part, text, tiny_experiment, monkeypatch, capsys):
    monkeypatch.setattr(*broken)
    assert smoke.check(config_of(tiny_experiment)) is False
    *good, cross = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in good] == PARTS[: PARTS.index(part)]
    assert cross.split()[1] == part and text in cross


def test_training_that_is_not_finite_is_a_cross(tiny_experiment, capsys):
    config = config_of(tiny_experiment, loss=lambda logits, _: logits[:, 0] * jnp.nan)
    assert smoke.check(config) is False
    assert "the loss or the parameters are not finite after 3 steps" in capsys.readouterr().out


def test_check_takes_no_workdir_and_is_not_a_run(tiny_experiment, tmp_path):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--config.smoke=True")
    for process in [start(*command, option) for option in ("--workdir=x", "--distributed")]:
        _, err = finish(process, status=2)
        assert "leaves nothing behind; give it neither --workdir nor a job" in err
    with pytest.raises(ConfigError, match=r"runner\.smoke\.check"):
        mnist_cnn.run(mnist_cnn.experiment(smoke=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
