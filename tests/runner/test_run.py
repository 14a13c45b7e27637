"""Runs from beginning to end: what they leave, and how they stop, resume and are extended."""

import hashlib
import importlib.util
import json
import os
import pty
import re
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
    finish,
    imported_by,
    metrics_of,
    newest_step,
    read_idx,
    repack,
    result_of,
    run,
    same_end,
    start,
    wait_for,
    with_another_pixel,
)

import mnist_cnn
from mnist_cnn.data.dataset import Dataset
from mnist_cnn.errors import CheckpointError, ConfigError, DataError
from mnist_cnn.runner import loop, run_directory
from mnist_cnn.runner.checkpoint import Checkpoints
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.signals import Stopped, StopRequest


def test_run_directory_contains_config_environment_metrics_and_result(undisturbed, tiny_experiment):
    workdir, _, err = undisturbed
    assert err == ""
    digest = hashlib.sha256(tiny_experiment.read_bytes()).hexdigest()
    kept = f"experiment-{digest[:8]}.py"
    assert {path.name.partition(".tfevents")[0] for path in workdir.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "events.out", "checkpoints",
        "predictions.npz", "result.json", "lock", kept,
    }  # fmt: skip
    assert (workdir / kept).read_bytes() == tiny_experiment.read_bytes()
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
    assert environment["experiment"] == {"file": str(tiny_experiment), "sha256": digest}
    entries = metrics_of(workdir)
    assert [(e["step"], e["split"]) for e in entries] == [
        *((step, "train") for step in (7, 14, 21, 28, 35, 40)), (40, "test"),
    ]  # fmt: skip
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["30", "40"]


@pytest.mark.slow
def test_a_run_under_a_changed_experiment_file_says_so(
    unfinished, tiny_experiment, tmp_path, capsys
):
    (kept,) = unfinished.glob("experiment-*.py")
    changed = tmp_path / "changed.py"
    changed.write_text(tiny_experiment.read_text().replace("nn.relu", "nn.tanh"))
    note = f"note: {changed} differs from the run's experiment file, {unfinished}/{kept.name}"

    def notes(file, finished):
        if not finished:
            (unfinished / "result.json").unlink(missing_ok=True)
        loop.run(config_of(file), unfinished, config_file=str(file), console=Console())
        return [line for line in capsys.readouterr().out.splitlines() if "differs from" in line]

    assert notes(tiny_experiment, finished=False) == []
    assert notes(changed, finished=True)[0].startswith(note)
    assert list(unfinished.glob("experiment-*.py")) == [kept]
    assert notes(changed, finished=False)[0].startswith(note)
    assert notes(changed, finished=False) == []  # it is now that of the run
    assert len(list(unfinished.glob("experiment-*.py"))) == 2
    assert kept.read_bytes() == tiny_experiment.read_bytes()


def test_events_contain_the_metrics(undisturbed):
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


@pytest.mark.slow
def test_run_and_load_from_python_print_no_warnings_of_libraries_and_mute_none_of_the_caller(
    tiny_experiment, tmp_path
):
    program = f"""
import logging, runpy, warnings
import mnist_cnn, numpy as np
config = runpy.run_path({str(tiny_experiment)!r})["get_config"]()
def loss(logits, labels):
    {{more}}
    from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
    return cross_entropy(logits, labels)
with config.ignore_type():
    config.num_steps, config.loss = 10, loss
mnist_cnn.run(config, {str(tmp_path)!r} + {{name!r}})
network = mnist_cnn.load({str(tmp_path)!r} + {{name!r}}, config)
network(np.zeros((2, 28, 28, 1), np.uint8))
{{after}}
"""
    own = 'warnings.warn("from the loss"); logging.warning("by the loss")'
    after = 'import absl.logging; absl.logging.warning("later"); warnings.warn("afterwards")'
    quiet, loud = (
        subprocess.run(
            [sys.executable, "-c", program.format(more=more, name=f"/{name}", after=end)],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )
        for name, more, end in (("quiet", "pass", ""), ("loud", own, after))
    )  # fmt: skip
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert loud.returncode == 0
    for text in ("from the loss", "by the loss", "later", "afterwards"):
        assert text in loud.stderr
    assert "orbax" not in loud.stderr.lower() and "read only" not in loud.stderr


def test_output_without_terminal_is_plain_lines(undisturbed):
    out = undisturbed[1]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    for text in (
        "mnist_cnn 0.", "500 training images", "250 test images", "not the official files",
        "parameters", "multiply-adds", "step 40/40", "test accuracy", "run directory",
    ):  # fmt: skip
        assert text in out


def test_terminal_shows_a_progress_bar(tiny_experiment, tmp_path):
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
        except OSError:  # Linux raises it when the other end is closed
            break
    assert process.wait() == 0, shown.decode()
    assert b"\x1b[" in shown and b"40/40" in shown and b"images/s" in shown
    assert len(list((tmp_path / "runs").glob("tiny-*/result.json"))) == 1


@pytest.mark.slow
def test_same_command_gives_the_same_bits_in_any_surroundings(
    undisturbed, tiny_experiment, tmp_path
):
    """Folder, hash seed, language, time zone and an empty compile cache change nothing."""
    folder = tmp_path / "folder with spaces"
    folder.mkdir()
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir=relative", cwd=folder,
        PYTHONHASHSEED="7", LC_ALL="C", LANG="C", TZ="America/St_Johns",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    same_end(folder / "relative", undisturbed[0])


def test_killed_run_ends_with_the_same_bits(undisturbed, tiny_experiment, tmp_path):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path)
    process = start(*command)
    wait_for(lambda: newest_step(tmp_path) or process.poll() is not None)
    process.kill()
    finish(process, -signal.SIGKILL)
    out, _ = run(*command)
    assert "resuming from the checkpoint of step" in out
    same_end(tmp_path, undisturbed[0])


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGXCPU, 152, marks=pytest.mark.slow),
    ],
)
def test_stopped_run_prints_the_command_that_resumes_it_to_the_same_bits(
    number, status, tiny_experiment, tmp_path
):
    workdir = tmp_path / "run"
    process = start(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", workdir,
        "--config.num_steps=1000000", "--config.log_every=1000000",
    )  # fmt: skip
    wait_for(lambda: newest_step(workdir) >= 100 or process.poll() is not None)
    process.send_signal(number)
    out, _ = finish(process, status)
    stopped, command = re.search(r"stopped by (\w+); saved\. To resume: (.*)", out).groups()
    assert stopped == number.name
    assert command == (
        f"python -m mnist_cnn.main --config {tiny_experiment} --workdir {workdir} "
        "--config.num_steps=1000000 --config.log_every=1000000"
    )
    length = newest_step(workdir) + 5
    run(*command.replace("num_steps=1000000", f"num_steps={length}").split()[2:])
    straight = mnist_cnn.run(
        config_of(tiny_experiment, num_steps=length, checkpoint_every=length),
        tmp_path / "straight",
    )
    assert result_of(workdir)["params_sha256"] == straight["params_sha256"]


def test_finished_run_says_so_and_changes_nothing(undisturbed, tiny_experiment, capsys):
    workdir = undisturbed[0]
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    result = mnist_cnn.run(config_of(tiny_experiment), workdir)
    assert "finished; nothing is left to do" in capsys.readouterr().out
    assert result == result_of(workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_extended_run_equals_one_long_run(undisturbed, tiny_experiment, tmp_path):
    config = config_of(tiny_experiment, num_steps=55)
    shutil.copytree(undisturbed[0], tmp_path / "extended")
    extended = mnist_cnn.run(config, tmp_path / "extended")
    config.log_every = 20
    straight = mnist_cnn.run(config, tmp_path / "straight")
    assert extended["params_sha256"] == straight["params_sha256"]
    assert extended["test"] == straight["test"] and extended["steps"] == 55
    before = result_of(undisturbed[0])["seconds"]
    assert all(extended["seconds"][name] > before[name] for name in ("compile", "train"))
    assert extended["seconds"]["total"] > sum(extended["seconds"].values()) / 2


@pytest.mark.slow
def test_extended_run_that_was_stopped_resumes(undisturbed, tiny_experiment, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    config, stop = config_of(tiny_experiment, num_steps=55), StopRequest()
    stop.received = signal.SIGTERM
    with pytest.raises(Stopped):
        loop.run(config, tmp_path / "run", stop=stop)
    assert not (tmp_path / "run" / "result.json").exists()
    assert mnist_cnn.run(config, tmp_path / "run")["steps"] == 55


class StopAfterLastStep(Console):
    """Requests a stop after the last step of a run."""

    def __init__(self, stop):
        super().__init__(quiet=True)
        self.stop = stop

    def step_done(self, step, total, *others):
        if step == total:
            self.stop.received = signal.SIGTERM


def test_signal_after_the_last_step_stops_the_run(undisturbed, tiny_experiment, tmp_path):
    config, stop = config_of(tiny_experiment), StopRequest()
    with pytest.raises(Stopped):
        loop.run(config, tmp_path, console=StopAfterLastStep(stop), stop=stop)
    assert not (tmp_path / "result.json").exists()
    mnist_cnn.run(config, tmp_path)
    same_end(tmp_path, undisturbed[0])


def test_signal_during_the_test_waits_for_the_last_checkpoint(
    tiny_experiment, tmp_path, monkeypatch
):
    written, wait, read = [], Checkpoints.wait, Dataset.read

    def read_stopped(self, split):
        if split == "test":
            raise Stopped(signal.SIGTERM)
        return read(self, split)

    monkeypatch.setattr(Checkpoints, "wait", lambda self: written.append(wait(self)))
    monkeypatch.setattr(Dataset, "read", read_stopped)
    with pytest.raises(Stopped):
        loop.run(config_of(tiny_experiment), tmp_path)
    assert written == [None]


def test_profile_of_a_run_without_remaining_steps_changes_nothing(
    unfinished, undisturbed, tiny_experiment
):
    mnist_cnn.run(config_of(tiny_experiment, profile=True), unfinished)
    same_end(unfinished, undisturbed[0])


def test_runs_that_start_in_the_same_second_get_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory.time, "strftime", lambda form: "20260101-120000")
    names = [run_directory.new_run_path("a_sweep").name for _ in range(3)]
    assert names == [f"a_sweep-20260101-120000{end}" for end in ("", "_2", "_3")]


def test_run_that_cannot_begin_leaves_no_directory(tiny_experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="shares images"):
        mnist_cnn.run(config_of(tiny_experiment, validation_split="train[:400]"))
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    "layer", ["nn.Dense(17)", pytest.param("nn.Dense(16, use_bias=False)", marks=pytest.mark.slow)]
)
def test_changed_network_is_not_reported_as_a_damaged_checkpoint(
    layer, unfinished, tiny_experiment, tmp_path
):
    changed = tmp_path / "tiny.py"
    changed.write_text(tiny_experiment.read_text().replace("nn.Dense(16)", layer))
    with pytest.raises(CheckpointError, match="checkpoint 40 is of another network") as error:
        mnist_cnn.run(config_of(changed), unfinished)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_command_line_accepts_none(tiny_experiment, tmp_path):
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.num_steps=None",
        "--config.validation_split=None", "--config.num_epochs=1", "--workdir", tmp_path,
    )  # fmt: skip
    assert result_of(tmp_path)["steps"] == 17
    assert json.loads((tmp_path / "config.json").read_text())["validation_split"] is None


def test_another_configuration_is_refused_with_the_fields_and_both_values(
    undisturbed, tiny_experiment
):
    with pytest.raises(ConfigError) as error:
        mnist_cnn.run(config_of(tiny_experiment, seed=5, batch_size=31), undisturbed[0])
    assert "seed: was 1337, now 5" in str(error.value)
    assert "batch_size: was 30, now 31" in str(error.value)
    with pytest.raises(ConfigError, match="can be prolonged, not shortened"):
        mnist_cnn.run(config_of(tiny_experiment, num_steps=20), undisturbed[0])
    assert result_of(undisturbed[0])["steps"] == 40


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("batch_size", 501, ConfigError, "expected an integer from 1 to 500"),
        ("train_split", "train[:600]", DataError, "train"),
        ("train_split", "trian", DataError, "trian"),
        ("validation_split", "train[400:]", ConfigError, "shares images with train_split"),
        ("manual_dir", "/nowhere", DataError, "/nowhere"),
    ],
)
def test_invalid_data_is_refused_before_anything_is_written(
    field, value, error, text, tiny_experiment, tmp_path
):
    with pytest.raises(error, match=text) as raised:
        mnist_cnn.run(config_of(tiny_experiment, **{field: value}), tmp_path / "new")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("form", ["zipped", "renamed"])
def test_run_resumes_with_the_same_images_in_other_files(
    form, unfinished, undisturbed, tiny_experiment, small_mnist, tmp_path
):
    shutil.rmtree(unfinished / "checkpoints" / "40")
    config = config_of(tiny_experiment, manual_dir=str(repack(small_mnist, tmp_path / "a", form)))
    mnist_cnn.run(config, unfinished)
    same_end(unfinished, undisturbed[0])
    config.manual_dir = str(repack(small_mnist, tmp_path / "b", form))
    mnist_cnn.run(config, unfinished)  # finished: nothing is left to do


@pytest.mark.parametrize("finished", [False, True])
def test_run_never_resumes_with_other_images(
    finished, unfinished, undisturbed, tiny_experiment, small_mnist, tmp_path
):
    other = with_another_pixel(small_mnist, tmp_path / "other")
    if finished:
        shutil.copy(undisturbed[0] / "result.json", unfinished)
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*.json")}
    with pytest.raises(
        CheckpointError, match=r"other images or labels than .*; give those,"
    ) as got:
        mnist_cnn.run(config_of(tiny_experiment, manual_dir=str(other)), unfinished)
    assert "\n" not in str(got.value)
    assert {path: path.stat().st_mtime_ns for path in unfinished.rglob("*.json")} == before


def test_older_run_resumes_with_its_files_alone(
    unfinished, undisturbed, tiny_experiment, small_mnist, tmp_path
):
    """Older versions recorded the digests of the files, not those of their content."""
    environment = json.loads((unfinished / "environment.json").read_text())
    del environment["data"]["content_sha256"]
    (unfinished / "environment.json").write_text(json.dumps(environment))
    others = repack(small_mnist, tmp_path / "zipped", "zipped")
    with pytest.raises(CheckpointError, match="other images or labels"):
        mnist_cnn.run(config_of(tiny_experiment, manual_dir=str(others)), unfinished)
    renamed = repack(small_mnist, tmp_path / "renamed", "renamed")
    mnist_cnn.run(config_of(tiny_experiment, manual_dir=str(renamed)), unfinished)
    same_end(unfinished, undisturbed[0])


def test_refused_command_prints_one_line_and_exits_with_status_2(tiny_experiment, tmp_path):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--config.batch_size=501")
    _, err = run(*command, "--workdir", tmp_path / "new", status=2)
    assert err.startswith("error: config.batch_size") and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_validation_is_logged_and_the_test_split_read_once_at_the_end(
    tiny_experiment, tmp_path, monkeypatch
):
    splits, read = [], Dataset.read
    monkeypatch.setattr(Dataset, "read", lambda self, s: splits.append(s) or read(self, s))
    config = config_of(
        tiny_experiment, train_split="train[:400]", validation_split="train[400:]", eval_every=20
    )
    result = mnist_cnn.run(config, tmp_path)
    assert splits == ["train[:400]", "train[400:]", "test"]
    validation = [e for e in metrics_of(tmp_path) if e["split"] == "validation"]
    assert [e["step"] for e in validation] == [20, 40]
    assert all(e["examples"] == 100 for e in validation)
    assert result == result_of(tmp_path)


@pytest.mark.slow
def test_optimizer_state_of_any_dtype_is_restored(tiny_experiment, tmp_path):
    """Moments in bfloat16, a Boolean and counters."""

    def optimizer(learning_rate):
        return optax.apply_if_finite(optax.adam(learning_rate, mu_dtype=jnp.bfloat16), 5)

    config = config_of(tiny_experiment, optimizer=optimizer, num_steps=20)
    straight = mnist_cnn.run(config, tmp_path / "straight")
    config.num_steps = 10
    mnist_cnn.run(config, tmp_path / "resumed")
    config.num_steps = 20
    resumed = mnist_cnn.run(config, tmp_path / "resumed")
    assert resumed["params_sha256"] == straight["params_sha256"]


def test_load_gives_the_trained_network(undisturbed, tiny_experiment, tmp_path):
    copy = tmp_path / "copied elsewhere"
    shutil.copytree(undisturbed[0], copy)
    with pytest.raises(CheckpointError, match="give that experiment as well"):
        mnist_cnn.load(copy)
    network = mnist_cnn.load(copy, config_of(tiny_experiment))
    images = read_idx("t10k-images-idx3-ubyte")[:250]
    labels = read_idx("t10k-labels-idx1-ubyte")[:250]
    correct = (network(images).argmax(-1) == labels).sum()
    assert correct == result_of(copy)["test"]["correct"][0]
    assert network.step == 40
    assert network(images[:0]).shape == (0, 10)
    with pytest.raises(ValueError, match="expected uint8"):
        network(images / 255.0)
    with pytest.raises(CheckpointError, match="not a run directory"):
        mnist_cnn.load(tmp_path / "nowhere")


def test_experiment_may_define_its_own_network_and_optimizer(tmp_path, small_mnist, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(
        ROOT / "experiments" / "mlp.py", manual_dir=str(small_mnist), num_epochs=20, report=False
    )
    result = mnist_cnn.run(config, "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "MLP" in saved["model"] and "sgd(momentum=0.9)" in saved["optimizer"]
    assert result["test_mean"]["accuracy"] > 0.75


@pytest.mark.slow
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


def test_printing_imports_neither_jax_nor_flax():
    code = (
        "import sys, mnist_cnn.runner.console\n"
        "assert not {'jax', 'flax', 'orbax', 'mnist_cnn.training'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_killed_before_its_first_checkpoint_begins_again_with_init_from(
    undisturbed, tiny_experiment, tmp_path
):
    """The directory that Orbax leaves is not a checkpoint to resume from."""
    from mnist_cnn.analysis.export_formats import safetensors

    config = config_of(tiny_experiment, num_steps=3, init_from=str(tmp_path / "w.safetensors"))
    network = mnist_cnn.load(undisturbed[0], config_of(tiny_experiment))
    (tmp_path / "w.safetensors").write_bytes(safetensors(network))
    expected = mnist_cnn.run(config, tmp_path / "expected")
    (tmp_path / "killed" / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    killed = mnist_cnn.run(config, tmp_path / "killed")
    assert killed["params_sha256"] == expected["params_sha256"]


def test_finished_run_writes_a_report_that_a_kill_prevented(tiny_experiment, tmp_path):
    written = []
    config = config_of(tiny_experiment, num_steps=3, report=True)
    result = loop.run(config, tmp_path)  # as if killed before its report
    report = {"write_report": lambda directories, page: written.append((directories, page))}
    assert loop.run(config, tmp_path, **report) == result
    assert written == [([tmp_path], tmp_path / "report.html")]
    (tmp_path / "report.html").touch()
    loop.run(config, tmp_path, **report)
    assert len(written) == 1


def test_speed_is_that_of_training_without_validations_and_checkpoints(tiny_experiment, tmp_path):
    config = config_of(
        tiny_experiment, train_split="train[:400]", validation_split="train[400:]", eval_every=9,
        checkpoint_every=4, log_every=10,
    )  # fmt: skip
    seconds = mnist_cnn.run(config, tmp_path)["seconds"]
    metrics = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in metrics if line["split"] == "train"]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    found = sum(10 * config.batch_size / line["images_per_second"] for line in lines)
    assert found == pytest.approx(seconds["train"], abs=0.002)


@pytest.mark.slow
def test_prolonged_run_keeps_its_tests_and_deletes_what_the_shorter_one_ended_with(
    tiny_experiment, tmp_path
):
    short, long = (config_of(tiny_experiment, num_steps=steps) for steps in (10, 20))
    mnist_cnn.run(short, tmp_path)
    (tmp_path / "report.html").touch()
    stop = StopRequest()
    stop.received = signal.SIGTERM
    with pytest.raises(Stopped):
        loop.run(long, tmp_path, stop=stop)
    for name in ("result.json", "predictions.npz", "report.html"):
        assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob("*.hparams"))

    def tests():
        return [line["step"] for line in metrics_of(tmp_path) if line["split"] == "test"]

    assert tests() == [10]
    mnist_cnn.run(long, tmp_path)
    assert tests() == [10, 20]
    (tmp_path / "result.json").unlink()  # as if killed between the test and the result
    mnist_cnn.run(long, tmp_path)
    assert tests() == [10, 20]


def test_num_epochs_beside_num_steps_is_said_to_be_ignored(tiny_experiment, tmp_path, capsys):
    config = config_of(tiny_experiment, num_steps=2, num_epochs=7)
    mnist_cnn.run(config, tmp_path)
    assert "note: num_steps=2 sets the length; num_epochs=7 is ignored\n" in capsys.readouterr().out
