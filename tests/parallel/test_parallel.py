"""Many devices and processes: the same training, each with its share, and only gradients cross.

The devices are a CPU's, as many as JAX is asked to simulate; the processes are real ones.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT, metrics_of, result_of, run, start, wait_for

import mnist_cnn
from mnist_cnn.errors import ConfigError
from mnist_cnn.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow

# Runs beside this process, because a process has the devices that it began with.
BUILD = """
import json, re, sys
import jax, numpy as np, optax
import mnist_cnn
from mnist_cnn.data import dataset as data
from mnist_cnn.parallel.mesh import make_mesh, gather
from mnist_cnn.parallel.mesh import replicas

images, labels = data.open_dataset("mnist", sys.argv[1]).read("train")

def build(mesh, batch_size, **changes):
    config = mnist_cnn.experiment(mesh=mesh, batch_size=batch_size, **changes)
    grid = make_mesh(config, config["num_seeds"], jax.devices())
    return replicas.Replicas(config, grid, images, labels)
"""
MEASURE = """

def keep_gradient(rate):  # an optimiser whose state is the gradient
    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: 0 * p, params),
        lambda gradients, state, params=None: (
            jax.tree.map(lambda g: -rate * g, gradients), gradients
        ),
    )

def gradients(mesh, batch_size):
    network = build(mesh, batch_size, optimizer=keep_gradient)
    network.advance(0, 0, 1)
    return jax.tree.leaves(network.snapshot()["state"]["opt_state"])

def losses(mesh, batch_size, **changes):
    network = build(mesh, batch_size, **changes)
    found = []
    for step in range(5):
        found.append(network.advance(0, step, step + 1).loss.tolist())
        network.clear_sums()
    return found

def collectives(mesh, **changes):
    network = build(mesh, 8, **changes)
    pattern = (
        r"= ([^\\n]*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
        r"(?:-start)?\\("
    )
    found = re.findall(pattern, network.training.as_text())
    sizes = [
        4 * int(np.prod([int(n) for n in shape.split(",") if n]))
        for result, _ in found for shape in re.findall(r"\\[([0-9,]*)\\]", result)
    ]
    return sorted({name for _, name in found}), sum(sizes)

answer = {
    "devices": len(jax.devices()),
    "gradients": {
        size: max(
            float(np.abs(a - b).max() / np.abs(a).max())
            for a, b in zip(gradients("1x1", size), gradients("1x8", size))
        )
        for size in (8, 40)
    },
    "losses": [losses("1x1", 32), losses("1x8", 32)],
    "replicas": [losses("1x1", 8, num_seeds=4), losses("4x2", 8, num_seeds=4)],
    "operations": [
        build(mesh, 40).training.cost_analysis()["flops"] for mesh in ("1x1", "1x8")
    ],
    "groups": [
        [group.members for group in build("8x1", 8, num_seeds=n, replicas_at_once=at_once)._groups]
        for n, at_once in ((8, 1), (10, 3))
    ],
    "by data": collectives("1x8"),
    "by replica": collectives("4x1", num_seeds=4),
    "default": [
        list(make_mesh(mnist_cnn.experiment(), n, jax.devices()).devices.shape)
        for n in (1, 2, 3, 8, 30)
    ],
    "idle": [
        list(
            make_mesh(mnist_cnn.experiment(batch_size=batch), n, jax.devices()[:count])
            .devices.shape
        )
        for batch, n, count in ((32, 1, 3), (32, 1, 7), (125, 5, 8), (125, 1, 8))
    ],
}
print(json.dumps(answer))
"""


MEMORY = """
answer = []
for mesh, count, at_once in json.loads(sys.argv[2]):
    network = build(mesh, 32, num_seeds=count, replicas_at_once=at_once)
    state = jax.tree.leaves(network._groups[0].state)
    held = sum(leaf.nbytes for leaf in state) / network._mesh.shape["replica"]
    answer.append([held, network.training.memory_analysis().temp_size_in_bytes])
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def measured(small_mnist):
    return on_eight_devices(MEASURE, str(small_mnist))


def on_eight_devices(program, *arguments):
    """What a program that begins with BUILD prints."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD + program, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=devices(8),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def devices(count):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}


def test_eight_devices_give_the_gradients_of_one(measured):
    assert measured["devices"] == 8
    for size, error in measured["gradients"].items():
        assert 0 < error < 1e-5, f"batch size {size}"


def test_eight_devices_give_the_losses_of_one_over_five_steps(measured):
    one, eight = measured["losses"]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert one[0] != one[1]


def test_replicas_and_data_on_one_mesh_give_the_losses_of_one_device(measured):
    one, eight = map(np.array, measured["replicas"])
    assert one.shape == (5, 4) and len(np.unique(one[0])) == 4
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_only_gradients_cross_and_between_replicas_nothing(measured):
    parameters, numbers = 3_274_634, 3  # loss, correct, examples
    assert measured["by data"] == [["all-reduce"], 4 * (parameters + numbers)]
    assert measured["by replica"] == [[], 0]


@pytest.mark.slow
def test_the_docs_say_what_a_device_needs(small_mnist):
    row = r"^\| (\dx\d) \| (\d)( together)? \| [^|]+ \| ([\d.]+) MB \| ([\d.]+) MB \|$"
    rows = re.findall(row, (ROOT / "docs" / "devices-and-hosts.md").read_text(), flags=re.MULTILINE)
    assert len(rows) == 5
    cases = [
        (mesh, int(count), int(count) if together else None) for mesh, count, together, *_ in rows
    ]
    found = on_eight_devices(MEMORY, str(small_mnist), json.dumps(cases))
    said = [[1e6 * float(number) for number in row[-2:]] for row in rows]
    np.testing.assert_allclose(found, said, rtol=0.02)


def test_each_device_does_its_share_of_the_batch(measured):
    one, eight = measured["operations"]  # the optimiser's are every device's
    assert 0.125 < eight / one < 0.2


def test_no_group_of_replicas_is_there_twice(measured):
    eight, ten = measured["groups"]
    assert eight == [[*range(8)]]
    assert ten == [[*range(8)], [8, 9, *range(6)]]


def test_by_default_all_devices_work_replicas_first(measured):
    assert measured["default"] == [[1, 8], [2, 4], [2, 4], [8, 1], [8, 1]]


def test_a_device_is_idle_where_a_batch_has_no_even_part_for_it(measured):
    assert measured["idle"] == [[1, 2], [1, 4], [4, 1], [1, 5]]


@pytest.mark.parametrize(
    ("changes", "count", "said"),
    [
        (
            {"batch_size": 30, "mesh": "1x4"},
            4,
            "got 30, which 4 devices cannot share evenly; expected a multiple",
        ),
        ({"mesh": "2x4"}, 4, "got 2x4 (8 devices), expected at most 4 of them"),
        ({"mesh": "4x1"}, 4, "got 4x1, expected at most 1 for replicas"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_in_a_line(changes, count, said):
    config = mnist_cnn.experiment(**changes)
    with pytest.raises(ConfigError) as error:
        make_mesh(config, 1, [types.SimpleNamespace()] * count)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--coordinator=localhost:1234"], "belong together"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "expected HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "got 2, expected 0 to 1"),
    ],
)
def test_a_job_that_cannot_be_is_refused_in_a_line(given, said, tiny_experiment):
    _, err = run("mnist_cnn.main", "--config", tiny_experiment, *given, status=2)
    assert said in err and err.count("\n") == 1


# Processes.


def job(experiment, workdir, *more, device_count=2):
    """Starts two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            "mnist_cnn.main", "--config", experiment, "--workdir", workdir,
            "--config.batch_size=32", f"--coordinator=localhost:{port}", "--num_processes=2",
            f"--process_id={process}", *more, JAX_NUM_CPU_DEVICES=str(device_count),
        )
        for process in range(2)
    ]  # fmt: skip


def ends(processes):
    return [(*process.communicate(timeout=300), process.returncode) for process in processes]


def test_two_processes_train_what_one_does_and_only_the_first_writes_and_prints(
    tiny_experiment, tmp_path
):
    (out, err, status), (silent_out, silent_err, other) = ends(job(tiny_experiment, tmp_path / "2"))
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
    ends(job(tiny_experiment, tmp_path / "again"))
    assert (
        result_of(tmp_path / "again")["params_sha256"] == result_of(tmp_path / "2")["params_sha256"]
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_stops_the_other_in_a_line_and_the_job_goes_on(
    victim, tiny_experiment, tmp_path
):
    processes = job(tiny_experiment, tmp_path, "--config.num_steps=1000000")
    wait_for(
        lambda: (
            (tmp_path / "checkpoints" / "20").exists()
            or any(process.poll() is not None for process in processes)
        )
    )
    processes[victim].kill()
    killed = time.monotonic()
    left = processes[1 - victim]
    _, err = left.communicate(timeout=60)  # JAX's own limit is 100 s, ours 10
    assert left.returncode == 1 and time.monotonic() - killed < 60
    assert "another process of this job ended or was lost" in err and err.count("\n") == 1
    newest = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    steps = f"--config.num_steps={newest + 10}"
    (out, _, status), _ = ends(job(tiny_experiment, tmp_path, steps))
    assert status == 0 and "going on from the checkpoint" in out
    assert result_of(tmp_path)["steps"] == newest + 10


def test_a_signal_to_one_process_stops_and_saves_the_job(tiny_experiment, tmp_path):
    processes = job(tiny_experiment, tmp_path, "--config.num_steps=1000000")
    wait_for(
        lambda: (
            (tmp_path / "checkpoints" / "20").exists()
            or any(process.poll() is not None for process in processes)
        )
    )
    processes[1].send_signal(signal.SIGTERM)
    (out, err, status), (_, _, other) = ends(processes)
    assert (status, other) == (143, 143), err
    assert re.search(r"stopped by SIGTERM; saved.  To go on: python -m mnist_cnn.main", out)


def test_a_checkpoint_goes_on_on_any_number_of_devices_and_processes(tiny_experiment, tmp_path):
    """One device, four, two processes, one again: every step once, the losses those of one."""
    command = (
        "mnist_cnn.main", "--config", tiny_experiment, "--config.batch_size=32",
        "--config.num_seeds=2", "--config.log_every=5",
    )  # fmt: skip
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    run(*command, "--workdir", straight)
    run(*command, "--workdir", moved, "--config.num_steps=10")
    out, _ = run(*command, "--workdir", moved, "--config.num_steps=20", JAX_NUM_CPU_DEVICES="4")
    assert "going on from the checkpoint of step 10" in out
    assert "note: the run began with other devices, mesh" in out
    both = ends(job(tiny_experiment, moved, *command[4:], "--config.num_steps=30"))
    assert [status for *_, status in both] == [0, 0], both
    out, _ = run(*command, "--workdir", moved)
    assert "going on from the checkpoint of step 30" in out
    ours, theirs = (
        [e for e in metrics_of(folder) if e["split"] == "train"] for folder in (moved, straight)
    )
    assert [e["step"] for e in ours] == [e["step"] for e in theirs] == [*range(5, 41, 5)]
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our["loss"], their["loss"], rtol=1e-3)
    assert result_of(moved)["params_sha256"] != result_of(straight)["params_sha256"]
