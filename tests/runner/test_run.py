"""A run as its user has it: real processes on real images, stopped, killed, gone on with."""

import functools
import importlib.util
import json
import os
import pty
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import (
    ROOT,
    config_of,
    imported_by,
    metrics_of,
    read_idx,
    result_of,
    run,
    same_end,
    start,
    wait_for,
)

import mnist_cnn
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.runner import loop, run_directory
from mnist_cnn.runner.checkpoint import Checkpoints
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.signals import Stopped, StopRequest


def experiment_of(path, **changes):
    config = runpy.run_path(str(path))["get_config"]()
    config.unlock()
    with config.ignore_type():
        config.update(changes)
    return config


def test_a_run_leaves_a_directory_that_explains_itself(undisturbed, small_mnist):
    workdir, _, err = undisturbed
    assert err == ""
    assert {path.name.partition(".tfevents")[0] for path in workdir.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "events.out", "checkpoints",
        "predictions.npz", "result.json", "lock",
    }  # fmt: skip
    result = result_of(workdir)
    assert result["status"] == "finished" and result["seeds"] == [1337]
    assert result["steps"] == 40 and result["test"]["examples"] == 250
    assert result["test"]["accuracy"] == [result["test"]["correct"][0] / 250]
    assert result["test_mean"]["accuracy"] == result["test"]["accuracy"][0]
    assert result["test_mean"]["ci95"] is None
    assert set(result["seconds"]) == {"total", "data", "compile", "train", "evaluate"}
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 40
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["command"][:3] == ["python", "-m", "mnist_cnn.main"]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["devices"][0]["platform"] == "cpu"
    assert environment["git"] is None or set(environment["git"]) == {"commit", "dirty"}
    assert len(environment["data"]["sha256"]) == 4
    entries = metrics_of(workdir)
    assert [(e["step"], e["split"]) for e in entries] == [
        *((step, "train") for step in (7, 14, 21, 28, 35, 40)), (40, "test"),
    ]  # fmt: skip
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["30", "40"]


def test_the_events_hold_the_metrics(undisturbed):
    from tensorboardX.proto import event_pb2

    workdir = undisturbed[0]
    content = min(workdir.glob("events.out.tfevents*")).read_bytes()  # the other: .hparams
    scalars = {}
    while content:  # records of length (8), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[length + 16 :]
    for entry in metrics_of(workdir):
        value = scalars[f"{entry['split']}/loss", entry["step"]]
        assert value == pytest.approx(entry["loss"])


def test_without_a_terminal_the_output_is_plain_lines(undisturbed):
    out = undisturbed[1]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    for said in (
        "mnist_cnn 0.", "500 training images", "250 test images", "not the official files",
        "parameters", "multiply-adds", "step 40/40", "test accuracy", "run directory",
    ):  # fmt: skip
        assert said in out


def test_on_a_terminal_a_bar_moves(tiny_experiment, tmp_path):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_cnn.main", "--config", tiny_experiment],
        cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while process.poll() is None or select.select([controller], [], [], 0.2)[0]:
        try:
            if select.select([controller], [], [], 0.2)[0]:
                shown += os.read(controller, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
    assert process.wait() == 0, shown.decode()
    assert b"\x1b[" in shown and b"40/40" in shown and b"images/s" in shown
    assert len(list((tmp_path / "runs").glob("tiny-*/result.json"))) == 1


def test_the_same_command_gives_the_same_bits(undisturbed, tiny_experiment, tmp_path):
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir=relative",
        cwd=tmp_path, PYTHONHASHSEED="7", TZ="Asia/Tokyo",
    )  # fmt: skip
    same_end(tmp_path / "relative", undisturbed[0])


def test_a_killed_run_ends_with_the_same_bits(undisturbed, tiny_experiment, tmp_path):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path)
    process = start(*command)
    wait_for(lambda: (tmp_path / "checkpoints" / "10").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = run(*command)
    assert "going on from the checkpoint of step" in out
    same_end(tmp_path, undisturbed[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on_and_ends_with_the_same_bits(
    number, status, undisturbed, tiny_experiment, tmp_path
):
    process = start(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path,
        "--config.num_steps=1000000",
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "checkpoints" / "100").exists() or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, (out, err)
    go_on = re.search(r"To go on: python (.*)", out)[1].split()
    assert "--config.num_steps=1000000" in go_on and str(tmp_path) in go_on
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    go_on[go_on.index("--config.num_steps=1000000")] = f"--config.num_steps={newest + 5}"
    run(*go_on[1:])
    straight = tmp_path / "straight"
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", straight,
        f"--config.num_steps={newest + 5}",
    )  # fmt: skip
    assert result_of(tmp_path)["params_sha256"] == result_of(straight)["params_sha256"]


def test_a_finished_run_says_so_and_changes_nothing(undisturbed, tiny_experiment):
    workdir = undisturbed[0]
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    out, _ = run("mnist_cnn.main", "--config", tiny_experiment, "--workdir", workdir)
    assert "finished; nothing is left to do" in out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_prolonged_run_equals_one_long_run(undisturbed, tiny_experiment, tmp_path):
    longer = ("mnist_cnn.main", "--config", tiny_experiment, "--config.num_steps=55")
    run(*longer, "--workdir", tmp_path / "straight", "--config.log_every=20")
    shutil.copytree(undisturbed[0], tmp_path / "prolonged")
    run(*longer, "--workdir", tmp_path / "prolonged")
    straight, prolonged = result_of(tmp_path / "straight"), result_of(tmp_path / "prolonged")
    assert prolonged["params_sha256"] == straight["params_sha256"]
    assert prolonged["test"] == straight["test"] and prolonged["steps"] == 55
    before = result_of(undisturbed[0])["seconds"]
    assert all(prolonged["seconds"][name] > before[name] for name in ("compile", "train"))
    assert prolonged["seconds"]["total"] > sum(prolonged["seconds"].values()) / 2


class AtTheEnd(Console):
    """Asks a run to stop after its last step."""

    def __init__(self, stop):
        super().__init__(quiet=True)
        self.stop = stop

    def step_done(self, step, total, *others):
        if step == total:
            self.stop.received = signal.SIGTERM


def test_a_prolonged_run_that_was_stopped_goes_on(undisturbed, tiny_experiment, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    config = experiment_of(tiny_experiment, num_steps=55)
    stop = StopRequest()
    stop.received = signal.SIGTERM
    with pytest.raises(Stopped):
        loop.run(config, tmp_path / "run", stop=stop)
    assert not (tmp_path / "run" / "result.json").exists()
    assert mnist_cnn.run(config, tmp_path / "run")["steps"] == 55


def test_a_signal_after_the_last_step_is_obeyed(undisturbed, tiny_experiment, tmp_path):
    config, stop = experiment_of(tiny_experiment), StopRequest()
    with pytest.raises(Stopped):
        loop.run(config, tmp_path, console=AtTheEnd(stop), stop=stop)
    assert not (tmp_path / "result.json").exists()
    mnist_cnn.run(config, tmp_path)
    same_end(tmp_path, undisturbed[0])


def test_a_run_that_has_only_to_be_tested_may_be_profiled(undisturbed, tiny_experiment, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    mnist_cnn.run(experiment_of(tiny_experiment, profile=True), tmp_path / "run")
    same_end(tmp_path / "run", undisturbed[0])


def test_runs_that_start_at_once_get_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory.time, "strftime", lambda form: "20260101-120000")
    names = [run_directory.new_run_path("a_sweep").name for _ in range(3)]
    assert names == [f"a_sweep-20260101-120000{end}" for end in ("", "_2", "_3")]


def test_a_run_that_cannot_begin_leaves_no_directory(tiny_experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = experiment_of(tiny_experiment, validation_split="train[:400]")
    with pytest.raises(ConfigError, match="shares images"):
        mnist_cnn.run(config)
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("width", ["nn.Dense(17)", "nn.Dense(16, use_bias=False)"])
def test_a_changed_network_is_not_taken_for_a_damaged_checkpoint(
    width, undisturbed, tiny_experiment, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    changed = tmp_path / "tiny.py"
    changed.write_text(tiny_experiment.read_text().replace("nn.Dense(16)", width))
    _, err = run("mnist_cnn.main", "--config", changed, "--workdir", tmp_path / "run", status=1)
    assert "checkpoint 40 is of another network" in err and err.count("\n") == 1


def test_none_is_taken_on_the_command_line(tiny_experiment, tmp_path):
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.num_steps=None",
        "--config.validation_split=None", "--config.num_epochs=1", "--workdir", tmp_path,
    )  # fmt: skip
    assert result_of(tmp_path)["steps"] == 17
    assert json.loads((tmp_path / "config.json").read_text())["validation_split"] is None


def test_another_configuration_is_refused_with_the_keys_and_both_values(
    undisturbed, tiny_experiment
):
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", undisturbed[0],
        "--config.seed=5", "--config.batch_size=31", status=2,
    )  # fmt: skip
    assert "seed: was 1337, now 5" in err and "batch_size: was 30, now 31" in err
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", undisturbed[0],
        "--config.num_steps=20", status=2,
    )  # fmt: skip
    assert "can be prolonged, not shortened" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.batch_size=501", "expected an integer from 1 to 500"),
        ("--config.train_split=train[:600]", "train"),
        ("--config.train_split=trian", "trian"),
        ("--config.validation_split=train[400:]", "shares images with train_split"),
        ("--config.manual_dir=/nowhere", "/nowhere"),
    ],
)
def test_data_that_does_not_fit_is_refused_and_nothing_is_written(
    override, said, tiny_experiment, tmp_path
):
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "new", override,
        status=1 if "shares" not in said and "expected" not in said else 2,
    )  # fmt: skip
    assert err.startswith("error: ") and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "new").exists()


def test_validation_is_watched_and_the_test_split_is_read_once(
    tiny_experiment, tmp_path, monkeypatch
):
    import runpy

    from mnist_cnn.data import dataset as data

    read = []
    original = data.Dataset.read
    monkeypatch.setattr(
        data.Dataset, "read", lambda self, split: read.append(split) or original(self, split)
    )
    config = runpy.run_path(str(tiny_experiment))["get_config"]()
    with config.unlocked():
        config.train_split, config.validation_split = "train[:400]", "train[400:]"
        config.eval_every = 20
    result = mnist_cnn.run(config, tmp_path)
    assert read == ["train[:400]", "train[400:]", "test"]
    validation = [e for e in metrics_of(tmp_path) if e["split"] == "validation"]
    assert [e["step"] for e in validation] == [20, 40]
    assert all(e["examples"] == 100 for e in validation)
    assert result == result_of(tmp_path)


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(optax.adam, mu_dtype=jnp.bfloat16),
        lambda learning_rate: optax.apply_if_finite(optax.adam(learning_rate), 5),
    ],
)
def test_an_optimiser_may_keep_any_dtype(optimizer, tiny_experiment, tmp_path):
    config = config_of(tiny_experiment)
    with config.ignore_type():
        config.optimizer = optimizer
    straight = mnist_cnn.run(config, tmp_path / "straight")
    config.num_steps = 20
    mnist_cnn.run(config, tmp_path / "again")
    config.num_steps = 40
    assert mnist_cnn.run(config, tmp_path / "again")["params_sha256"] == straight["params_sha256"]


def test_what_is_said_to_be_saved_is_saved_when_a_signal_comes_at_the_end(
    tiny_experiment, tmp_path, monkeypatch
):
    written = []
    wait = Checkpoints.wait

    def stopped(self):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "wait", lambda self: written.append(wait(self)))
    monkeypatch.setattr(loop._Run, "finish", stopped)
    with pytest.raises(Stopped):
        mnist_cnn.run(config_of(tiny_experiment), tmp_path)
    assert written == [None]


def test_load_gives_the_trained_network(undisturbed, tiny_experiment, tmp_path):
    import runpy

    moved = tmp_path / "copied elsewhere"
    shutil.copytree(undisturbed[0], moved)
    with pytest.raises(CheckpointError, match="give that experiment's config"):
        mnist_cnn.load(moved)
    config = runpy.run_path(str(tiny_experiment), run_name="tiny")["get_config"]()
    network = mnist_cnn.load(moved, config)
    images = read_idx("t10k-images-idx3-ubyte")[:250]
    labels = read_idx("t10k-labels-idx1-ubyte")[:250]
    correct = (network(images).argmax(-1) == labels).sum()
    assert correct == result_of(moved)["test"]["correct"][0]
    assert network.step == 40
    assert network(images[:0]).shape == (0, 10)
    with pytest.raises(ValueError, match="expected uint8"):
        network(images / 255.0)
    with pytest.raises(CheckpointError, match="no run directory"):
        mnist_cnn.load(tmp_path / "nowhere")


def test_an_experiment_brings_its_own_network_and_optimiser(tmp_path, small_mnist):
    run(
        "mnist_cnn.main", "--config", ROOT / "experiments" / "mlp.py", "--workdir", tmp_path,
        f"--config.manual_dir={small_mnist}", "--config.num_epochs=20", cwd=tmp_path,
    )  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert "MLP" in config["model"] and "sgd(momentum=0.9)" in config["optimizer"]
    assert result_of(tmp_path)["test_mean"]["accuracy"] > 0.75


def test_tensorflow_is_neither_imported_nor_installed(tiny_experiment, tmp_path):
    names = imported_by("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path)
    assert "tensorflow" not in names and "tensorflow_datasets" in names
    assert importlib.util.find_spec("tensorflow") is None


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, mnist_cnn; mnist_cnn.experiment()\n"
        "assert not {'jax', 'flax', 'numpy', 'tensorflow_datasets', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
