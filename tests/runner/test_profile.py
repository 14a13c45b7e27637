"""The profile: a trace for Perfetto and TensorBoard, the work of a step, and the same bits."""

import gzip
import json
import re
import types

import jax
import numpy as np
import pytest
from conftest import config_of, run, same_end

import mnist_cnn
from mnist_cnn import config as config_lib
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.plan import make_plan
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.runner import profile


@pytest.fixture(scope="module")
def profiled(tiny_experiment, tmp_path_factory):
    """The directory and the output of a profiled run of 50 steps."""
    workdir = tmp_path_factory.mktemp("profiled") / "run"
    out, _ = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.num_steps=50",
        "--config.profile=True", "--workdir", workdir,
    )  # fmt: skip
    return workdir, out


@pytest.fixture(scope="module")
def base_replicas():
    config = mnist_cnn.experiment(mesh="1x1")
    images, labels = np.zeros((64, 28, 28, 1), np.uint8), np.zeros(64, np.int32)
    with compile_cache():
        return Replicas(config, make_mesh(config, 1, jax.devices()), images, labels)


def events(workdir):
    """The events of the only trace in a run directory, as Perfetto reads them."""
    (path,) = (workdir / "plugins" / "profile").glob("*/*.trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))  # read by TensorBoard's profiler
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


@pytest.mark.slow
def test_trace_contains_steps_20_to_40_each_by_itself(profiled):
    workdir, out = profiled
    found = [event for event in events(workdir) if event.get("name") == "train"]
    assert sorted(int(event["args"]["step_num"]) for event in found) == [*range(20, 40)]
    assert all(event["dur"] > 0 for event in found)
    assert re.search(r"^trace of steps 20 to 40: .*run/plugins/profile$", out, re.MULTILINE)


@pytest.mark.slow
def test_trace_contains_the_operations_of_the_compiled_steps(profiled):
    names = {event.get("name", "").partition(".")[0] for event in events(profiled[0])}
    assert "while" in names and any("dot" in name for name in names)


def test_profile_changes_no_bit(profiled, tiny_experiment, tmp_path):
    mnist_cnn.run(config_of(tiny_experiment, num_steps=50), tmp_path / "run")
    assert not (tmp_path / "run" / "plugins").exists()
    same_end(profiled[0], tmp_path / "run")


@pytest.mark.slow
def test_resumed_run_may_be_profiled_and_a_short_one_says_why_not(
    tiny_experiment, tmp_path, capsys
):
    workdir = tmp_path / "run"
    mnist_cnn.run(config_of(tiny_experiment, num_steps=10, profile=True), workdir)
    assert "no trace: it begins after 20 steps, and there were 10" in capsys.readouterr().out
    assert not (workdir / "plugins").exists()
    mnist_cnn.run(config_of(tiny_experiment, num_steps=35), workdir)
    assert "profile" not in capsys.readouterr().out
    mnist_cnn.run(config_of(tiny_experiment, num_steps=60, profile=True), workdir)
    assert "trace of steps 55 to 60" in capsys.readouterr().out
    found = [event for event in events(workdir) if event.get("name") == "train"]
    assert len(found) == 5


@pytest.mark.slow
def test_work_of_a_step_is_the_count_made_by_hand(base_replicas, monkeypatch):
    # Multiply-adds of an image.
    conv1 = 14 * 14 * 36 * 4 * 32  # blocks of 2 x 2 pixels to those of results
    to_rows, to_columns = 16 * 14 * 14, 8 * 48 * 28  # a channel to 8 rows of 16 frequencies
    transforms = (to_rows + to_columns) * (32 + 64)
    conv2 = 8 * 48 * 32 * 64
    taps = 8 * 48 * 25 * 32 * 64 // 32  # of the kernel, in every step
    dense = 7 * 7 * 64 * 1024 + 1024 * 10
    forward = conv1 + transforms + taps + conv2 + dense
    backward = conv1 + transforms + taps + 2 * (conv2 + dense)  # no gradient of the pixels
    adam = 14 * 3_274_634  # two averages 7, their corrections 2, root, eps, quotient, rate, sum
    by_hand = 2 * 32 * (forward + backward) + adam
    work = profile.count_work(base_replicas)
    # Not counted by hand: sums of phases, biases, maxima and their masks.
    assert by_hand < work.flops < 1.01 * by_hand
    # Parameters and both averages are read and written, the gradients written and read.
    assert work.bytes > 4 * 8 * 3_274_634
    monkeypatch.setattr(base_replicas, "plan", make_plan(3, size=1, multiple=1))
    assert profile.count_work(base_replicas).flops == 3 * work.flops


@pytest.mark.slow
def test_convolutions_of_a_gpu_are_counted(base_replicas, monkeypatch):
    """Compiled for a GPU they are calls of cuDNN, whose operations XLA does not count."""
    conv1, conv2 = (5 * 28 - 6) ** 2 * 32, (5 * 14 - 6) ** 2 * 32 * 64
    forward = conv1 + conv2 + 7 * 7 * 64 * 1024 + 1024 * 10
    by_hand = 2 * 32 * (3 * forward - conv1) + 14 * 3_274_634
    gpu = types.SimpleNamespace(platform="gpu")
    monkeypatch.setattr(base_replicas, "_device", gpu)
    assert by_hand < profile.count_work(base_replicas).flops < 1.01 * by_hand


@pytest.mark.slow
def test_device_that_does_not_report_its_work_is_no_failure(base_replicas, monkeypatch):
    program = types.SimpleNamespace(cost_analysis=lambda: None)
    monkeypatch.setattr(base_replicas, "training", program)
    assert profile.count_work(base_replicas) is None


def test_reported_speed_is_the_work_over_the_time(profiled):
    workdir, out = profiled
    gflop, speed, steps = re.search(
        r"a step is ([\d.]+) GFLOP .* ([\d,.]+) GFLOP/s over (\d+) steps", out
    ).groups()
    seconds = json.loads((workdir / "result.json").read_text())["seconds"]["train"]
    assert int(steps) == 50
    rounding = 0.0005 * 50 / seconds + 0.06  # of both printed numbers
    assert float(speed) == pytest.approx(float(gflop) * 50 / seconds, abs=rounding)


def test_profile_and_smoke_may_differ_when_a_run_resumes():
    assert {"profile", "smoke"} <= set(config_lib.FREE_ON_RESUME)
