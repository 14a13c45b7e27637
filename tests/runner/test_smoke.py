"""The smoke check: a tick for each part that works, a cross and why for the first that fails."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, finish, run, start

import mnist_cnn
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.models.kernels import dense, pool
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.runner import checkpoint, gradient_check, smoke


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with compile_cache():
        yield


PARTS = ["device", "data", "compile", "gradient", "train", "save", "restore", "evaluate"]


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


def scaled(inputs, kernel, gradient):
    """The gradients of a dense layer, the kernel's wrong by a thousandth."""
    return gradient @ kernel.T, 1.001 * inputs.T @ gradient


def to_the_last(values, largest, gradient):
    """The last of the values in a window takes the gradient."""
    return [*map(jnp.zeros_like, values[:-1]), gradient]


@pytest.mark.parametrize(
    ("broken", "part", "text"),
    [
        ((smoke, "find_devices", no_devices), "device", "RuntimeError: Unable to initialize"),
        ((smoke, "make_mesh", no_devices), "compile", "RuntimeError: Unable"),
        ((dense, "_cpu_gradients", scaled), "gradient", "dense2.kernel: a compiled training step"),
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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 501}, "config.batch_size: got 501, expected an integer from 1 to 500"),
        ({"labels_per_class": 400}, "config.labels_per_class: got 400"),
        ({"init_from": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"validation_split": "train[400:]"}, "validation_split"),
    ],
)
def test_what_a_run_would_refuse_is_a_cross(changes, text, tiny_experiment, capsys):
    assert smoke.check(config_of(tiny_experiment, **changes)) is False
    *good, cross = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in good] == ["device"]
    assert cross.split()[1] == "data" and text in cross


def test_training_that_is_not_finite_is_a_cross(tiny_experiment, capsys):
    config = config_of(tiny_experiment, loss=lambda logits, _: logits[:, 0] * jnp.nan)
    assert smoke.check(config) is False
    assert "the loss or the parameters are not finite after 3 steps" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "fault", "name"),
    [
        (dense, {"_cpu_gradients": scaled}, "dense2.kernel"),
        (pool, {"route_to_first_max": to_the_last}, "conv2.kernel"),
        (pool, {"route_to_first_max": lambda *a: [x * jnp.nan for x in a[0]]}, "conv2.kernel"),
    ],
    ids=["a thousandth", "another of a window's values", "not a number"],
)
def test_wrong_gradient_is_found_and_named(module, fault, name, monkeypatch):
    monkeypatch.setattr(module, *fault.popitem())
    with pytest.raises(UserError, match=f"^{name}: .* install the versions") as error:
        gradient_check.check_gradient()
    assert "\n" not in str(error.value)


def test_no_rounding_decides_the_gradient_that_is_compared():
    """Else a correct compiler would be accused where float32 and float64 choose differently."""
    params, images, labels = gradient_check.example()
    margins, found = [], gradient_check.compiled_gradient(params, images, labels)
    x = images / 255
    for layer in ("conv1", "conv2"):
        z = gradient_check._conv(x, params[f"{layer}.kernel"]) + params[f"{layer}.bias"]
        values = np.sort(gradient_check._windows(np.maximum(z, 0)))
        differences = values[..., 3] - values[..., 2]
        margins += [abs(z).min(), differences[values[..., 3] > 0].min()]
        x = values[..., 3]
    assert min(margins) > 1e-4
    for name, value in gradient_check.reference_gradient(params, images, labels).items():
        difference = abs(found[name] - value).max() / abs(value).max()
        assert difference < gradient_check.TOLERANCE / 5, name


def test_check_takes_no_workdir_and_is_not_a_run(tiny_experiment, tmp_path):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--config.smoke=True")
    for process in [start(*command, option) for option in ("--workdir=x", "--distributed")]:
        _, err = finish(process, status=2)
        assert "keeps no files; leave out --workdir, --distributed and" in err
    with pytest.raises(ConfigError, match=r"runner\.smoke\.check"):
        mnist_cnn.run(mnist_cnn.experiment(smoke=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
