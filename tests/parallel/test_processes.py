"""Several processes train what one does, and end together."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, metrics_of, result_of, run, start, wait_for


def job(experiment, workdir, *more, device_count=2, batch_size=32):
    """Starts two processes of that many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            "mnist_cnn.main", "--config", experiment, "--workdir", workdir,
            f"--config.batch_size={batch_size}", f"--coordinator=localhost:{port}",
            "--num_processes=2", f"--process_id={process}", *more,
            JAX_NUM_CPU_DEVICES=str(device_count),
        )
        for process in range(2)
    ]  # fmt: skip


def ends(processes):
    return [(*process.communicate(timeout=300), process.returncode) for process in processes]


def wait_for_step_20(workdir, processes):
    wait_for(
        lambda: (
            (workdir / "checkpoints" / "20").exists()
            or any(process.poll() is not None for process in processes)
        )
    )


@pytest.mark.slow
def test_two_processes_share_each_batch_and_train_what_one_does(
    undisturbed, tiny_experiment, tmp_path
):
    two = job(tiny_experiment, tmp_path, device_count=1, batch_size=30)
    ended = ends(two)
    assert [status for *_, status in ended] == [0, 0], ended
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["mesh"] == {"replica": 1, "data": 2} and environment["processes"] == 2
    for ours, theirs in zip(metrics_of(tmp_path), metrics_of(undisturbed[0]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_only_the_first_writes_and_prints(
    tiny_experiment, tmp_path
):
    two = job(tiny_experiment, tmp_path / "2")
    (out, err, status), (silent_out, silent_err, other) = ends(two)
    assert (status, other) == (0, 0), (err, silent_err)
    assert (err, silent_out, silent_err) == ("", "", "")
    assert "mesh: 1 for replicas x 4 for each batch, 2 processes" in out
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "1",
        "--config.batch_size=32", JAX_NUM_CPU_DEVICES="4",
    )  # fmt: skip
    environment = json.loads((tmp_path / "2" / "environment.json").read_text())
    assert environment["mesh"] == {"replica": 1, "data": 4} and environment["processes"] == 2
    assert len(environment["devices"]) == 4
    ours, theirs = metrics_of(tmp_path / "2"), metrics_of(tmp_path / "1")
    assert [(e["step"], e["split"]) for e in ours] == [(e["step"], e["split"]) for e in theirs]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-3)
    assert len(list((tmp_path / "2").glob("events.out.tfevents*"))) == 2  # metrics, hparams


@pytest.mark.slow
def test_two_processes_train_a_sweep_of_runs_and_only_the_first_writes_and_prints(
    tiny_experiment, tmp_path
):
    rates = "--config.sweep={'learning_rate': [1e-5, 1e-4, 3e-4, 1e-2, 1e30]}"
    halving = (rates, "--config.sweep_method=halving", "--config.num_steps=100")
    halves = ("--config.train_split=train[:400]", "--config.validation_split=train[400:]")
    two = job(tiny_experiment, tmp_path, *halving, *halves, device_count=1, batch_size=40)
    (out, err, status), (silent_out, silent_err, other) = ends(two)
    assert (status, other) == (0, 0), (err, silent_err)
    assert (err, silent_out, silent_err) == ("", "", "") and "2 processes" in out
    sweep = result_of(tmp_path)["sweep"]
    assert sweep["chosen"] == 3 and sweep["steps"] <= sweep["grid_steps"] / 4
    assert sweep["settings"][4]["status"] == "diverged"


@pytest.mark.slow
def test_two_jobs_of_two_processes_have_the_same_bits(tiny_experiment, tmp_path):
    for name in ("one", "two"):
        assert [status for *_, status in ends(job(tiny_experiment, tmp_path / name))] == [0, 0]
    one, two = (result_of(tmp_path / name)["params_sha256"] for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_with_one_line_and_the_job_resumes(
    victim, tiny_experiment, tmp_path
):
    processes = job(tiny_experiment, tmp_path, "--config.num_steps=1000000")
    wait_for_step_20(tmp_path, processes)
    processes[victim].kill()
    killed = time.monotonic()
    left = processes[1 - victim]
    _, err = left.communicate(timeout=60)  # JAX's default limit is 100 s, ours 10
    assert left.returncode == 1 and time.monotonic() - killed < 60
    assert "another process of this job ended or was lost" in err and err.count("\n") == 1
    newest = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    steps = f"--config.num_steps={newest + 10}"
    (out, _, status), _ = ends(job(tiny_experiment, tmp_path, steps))
    assert status == 0 and "resuming from the checkpoint" in out
    assert result_of(tmp_path)["steps"] == newest + 10


@pytest.mark.slow
def test_a_signal_to_one_process_stops_and_saves_the_job(tiny_experiment, tmp_path):
    processes = job(tiny_experiment, tmp_path, "--config.num_steps=1000000")
    wait_for_step_20(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    (out, err, status), (_, _, other) = ends(processes)
    assert (status, other) == (143, 143), err
    assert re.search(r"stopped by SIGTERM; saved\. To resume: python -m mnist_cnn.main", out)


@pytest.mark.slow
def test_processes_agree_on_the_group_that_fits_the_smallest_of_their_devices(
    tiny_experiment, tmp_path
):
    """A pod of accelerators with more replicas than rows; only process 1 has too little memory."""
    experiment = tmp_path / "tiny.py"
    experiment.write_text(
        tiny_experiment.read_text()
        + """
import jax
from mnist_cnn.parallel import replicas

replicas.on_cpu = lambda mesh: False
own = jax.Device.memory_stats

def memory_stats(self):
    own(self)  # JAX refuses it for a device of another process
    return {"bytes_limit": 400_000 if self.process_index == 1 else 10**12}

jax.Device.memory_stats = memory_stats
"""
    )
    two = job(experiment, tmp_path / "run", "--config.num_seeds=4", device_count=1)
    (out, err, status), (_, other_err, other) = ends(two)
    assert (status, other) == (0, 0), (err, other_err)
    assert "4 seeds (1337 to 1340), 2 at a time" in out
    assert "mesh: 2 for replicas x 1 for each batch, 2 processes" in out


@pytest.mark.slow
def test_a_run_resumes_on_any_number_of_devices_and_processes(tiny_experiment, tmp_path):
    """One device, four, two processes, one again: every step once, with the losses of one."""
    command = (
        "mnist_cnn.main", "--config", tiny_experiment, "--config.batch_size=32",
        "--config.num_seeds=2", "--config.log_every=5",
    )  # fmt: skip
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    run(*command, "--workdir", straight)
    run(*command, "--workdir", moved, "--config.num_steps=10")
    out, _ = run(*command, "--workdir", moved, "--config.num_steps=20", JAX_NUM_CPU_DEVICES="4")
    assert "resuming from the checkpoint of step 10" in out
    assert "note: the run began with other devices, mesh" in out
    both = ends(job(tiny_experiment, moved, *command[4:], "--config.num_steps=30"))
    assert [status for *_, status in both] == [0, 0], both
    out, _ = run(*command, "--workdir", moved)
    assert "resuming from the checkpoint of step 30" in out
    ours, theirs = (
        [e for e in metrics_of(folder) if e["split"] == "train"] for folder in (moved, straight)
    )
    assert [e["step"] for e in ours] == [e["step"] for e in theirs] == [*range(5, 41, 5)]
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our["loss"], their["loss"], rtol=1e-3)
    assert result_of(moved)["params_sha256"] != result_of(straight)["params_sha256"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--coordinator=localhost:1234"], "belong together"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "expected HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "got 2, expected 0 to 1"),
    ],
)
def test_an_incomplete_job_is_refused_in_one_line(given, text, tiny_experiment):
    _, err = run("mnist_cnn.main", "--config", tiny_experiment, *given, status=2)
    assert text in err and err.count("\n") == 1


def test_the_sudden_end_of_a_watched_process_is_explained_in_one_line():
    """As JAX ends a process from C++ whose peer is lost."""
    program = (
        "import os\nfrom mnist_cnn.parallel import watchdog\n"
        "watchdog.run_under_watchdog(False)\nos.abort()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "another process of this job ended or was lost" in done.stderr


@pytest.mark.slow
def test_processes_with_different_numbers_of_threads_are_refused(tiny_experiment, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        start(
            "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run",
            f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={process}",
            NPROC=str(2 + process),
        )
        for process in range(2)
    ]  # fmt: skip
    for _, err, status in ends(processes):
        assert status == 1 and "the processes of this job have 2 to 3 threads; give each" in err
    assert not (tmp_path / "run" / "config.json").exists()
