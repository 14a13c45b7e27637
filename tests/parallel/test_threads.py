"""The number of threads is the run's, not the machine's: the same bits on one core and on two."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import pytest
from conftest import ROOT, config_of, finish, result_of, run, same_end, start

import mnist_cnn
from mnist_cnn.errors import ConfigError
from mnist_cnn.parallel import threads
from mnist_cnn.runner import checks
from mnist_cnn.runner.run_directory import RunDirectory

CORES = sorted(os.sched_getaffinity(0))
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")

# Large enough for products that are split over threads.
WIDE_EXPERIMENT = """
import mnist_cnn
from flax import linen as nn

class Wide(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.relu(nn.Dense(512)(images.reshape(images.shape[0], -1))))

def get_config():
    return mnist_cnn.experiment(
        name="wide", model=Wide(), manual_dir={manual_dir!r}, batch_size=128, num_steps=20,
        log_every=5, checkpoint_every=5, report=False,
    )
"""


@contextlib.contextmanager
def on_cores(count):
    """Within it, processes start on that number of cores, as by `taskset`."""
    os.sched_setaffinity(0, CORES[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


@pytest.fixture(scope="module")
def wide(small_mnist, tmp_path_factory):
    """An experiment file."""
    path = tmp_path_factory.mktemp("experiments") / "wide.py"
    path.write_text(WIDE_EXPERIMENT.format(manual_dir=str(small_mnist)))
    return path


def train(wide, workdir, cores, *more, NPROC=""):
    with on_cores(cores):
        process = start("mnist_cnn.main", "--config", wide, "--workdir", workdir, *more,
                        NPROC=NPROC)  # fmt: skip
    return finish(process)[0]


@pytest.fixture(scope="module")
def undisturbed_wide(wide, tmp_path_factory):
    """The run directory and output of a run on two cores."""
    workdir = tmp_path_factory.mktemp("wide") / "run"
    return workdir, train(wide, workdir, 2)


def environment_of(workdir):
    return json.loads((pathlib.Path(workdir) / "environment.json").read_text())


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_run_killed_on_some_cores_and_resumed_on_others_ends_with_the_same_bits(
    before, after, wide, undisturbed_wide, tmp_path
):
    arguments = ("--config", str(wide), "--workdir", str(tmp_path / "run"))
    with on_cores(before):
        killed = subprocess.run(
            [sys.executable, ROOT / "tests" / "kills.py", "--die", "metrics", "3", *arguments],
            env=os.environ | {"NPROC": ""}, capture_output=True,
        )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert environment_of(tmp_path / "run")["cpu_count"] == before
    out = train(wide, tmp_path / "run", after)
    assert re.search(r"resuming from the checkpoint of step (5|10)\n", out)
    assert "began with other" not in out
    assert f"{after} core{'s' * (after > 1)}, 2 threads" in out
    assert environment_of(tmp_path / "run")["cpu_count"] == after
    same_end(tmp_path / "run", undisturbed_wide[0])


@pytest.mark.slow
@needs_two_cores
def test_number_of_threads_decides_the_bits_and_is_recorded_shown_and_used_again(
    wide, undisturbed_wide, tmp_path
):
    """Without a difference here, the test above would show nothing."""
    digests = {}
    for name, cores, more, variable in (
        ("field", 2, ["--config.num_threads=1"], "2"),
        ("variable", 2, [], "1"),
        ("one core", 1, ["--config.num_threads=1"], ""),
    ):
        workdir = tmp_path / name
        out = train(wide, workdir, cores, *more, NPROC=variable)
        assert ", 1 thread" in out and environment_of(workdir)["num_threads"] == 1
        digests[name] = result_of(workdir)["params_sha256"]
    assert len({digest for (digest,) in digests.values()}) == 1
    assert digests["field"] != result_of(undisturbed_wide[0])["params_sha256"]
    run("mnist_cnn.report", "--workdir", tmp_path / "variable")
    assert "<th>num threads</th><td>1</td>" in (tmp_path / "variable/report.html").read_text()
    # It is the run's number that a longer run uses, and an evaluation.
    train(wide, tmp_path / "variable", 2, "--config.num_steps=25")
    train(wide, tmp_path / "field", 2, "--config.num_threads=1", "--config.num_steps=25")
    same_end(tmp_path / "variable", tmp_path / "field")


@pytest.mark.slow
@needs_two_cores
def test_evaluation_and_export_do_not_depend_on_the_cores(wide, undisturbed_wide, tmp_path):
    tested, exported = result_of(undisturbed_wide[0])["test"], set()
    for cores in (1, 2):
        network = ("--workdir", undisturbed_wide[0], "--config", wide)
        file = tmp_path / f"{cores}.stablehlo"
        with on_cores(cores):
            evaluated, _ = run("mnist_cnn.evaluate", *network, "--json", NPROC="")
            run("mnist_cnn.export", *network, "--format=stablehlo", "--output", file, NPROC="")
        metrics = json.loads(evaluated)
        assert [metrics["loss"]] == tested["loss"] and [metrics["correct"]] == tested["correct"]
        exported.add(file.read_bytes())
    assert len(exported) == 1


def test_default_is_no_number_of_cores_and_nproc_is_the_users_choice(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 64)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setenv("NPROC", "")
    assert threads.default() == 2
    monkeypatch.setenv("NPROC", "7")
    assert threads.default() == 7
    with threads.used_by_xla(3):
        assert os.environ["NPROC"] == os.environ["PJRT_NPROC"] == "3"
    assert os.environ["NPROC"] == "7" and "PJRT_NPROC" not in os.environ
    for text in ("many", "0", "-1", "257"):
        monkeypatch.setenv("NPROC", text)
        with pytest.raises(ConfigError, match=f"NPROC={text}: expected a number of threads from 1"):
            threads.default()


def test_run_directory_says_its_number_of_threads_and_an_old_one_its_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("NPROC", "")
    directory = RunDirectory(tmp_path)
    assert directory.num_threads() is None
    for environment, expected in (
        ({"num_threads": 3, "cpu_count": 16}, 3),
        ({"cpu_count": 16}, 16),
        ({"cpu_count": 512}, 256),  # XLA starts no more
        ({"cpu_count": "many"}, None),
    ):
        directory.write("environment.json", environment)
        assert directory.num_threads() == expected
    monkeypatch.setenv("NPROC", "4")
    directory.write("environment.json", {"cpu_count": 16})
    assert directory.num_threads() == 4
    directory.write("environment.json", {"num_threads": 3})
    assert directory.num_threads() == 3


@pytest.mark.parametrize("old", [{}, {"num_threads": None}, {"num_threads": 3}])
def test_run_does_not_resume_with_another_number_of_threads(old, tmp_path):
    directory = RunDirectory(tmp_path)
    config = mnist_cnn.experiment(num_threads=3)
    fields = {key: value for key, value in config.items() if key != "num_threads"}
    directory.write("config.json", fields | old)
    directory.write("environment.json", {"num_threads": 3} if old else {"cpu_count": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "")
        assert checks.finished_result(directory, config) is None
        with config.unlocked():
            config.num_threads = 4
        with pytest.raises(ConfigError, match="num_threads: was 3, now 4"):
            checks.finished_result(directory, config)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell")
def test_jax_that_has_started_with_another_number_is_said(undisturbed, tiny_experiment, tmp_path):
    program = f"""
import os, runpy
os.environ["NPROC"] = "3"
import jax
jax.devices()
del os.environ["NPROC"]
import mnist_cnn
from mnist_cnn.errors import UserError
config = runpy.run_path({str(tiny_experiment)!r})["get_config"]()
mnist_cnn.load({str(undisturbed[0])!r}, config)
config.num_steps = 1
print(mnist_cnn.run(config, {str(tmp_path / "three")!r})["steps"])
config.num_threads = 2
try:
    mnist_cnn.run(config, {str(tmp_path / "two")!r})
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
        env={key: x for key, x in os.environ.items() if key != "NPROC"}, check=True,
    )  # fmt: skip
    said = "JAX has started in this process with 3 threads, not 2"
    assert f"{undisturbed[0]}: {said}, which the run has; the last bits" in done.stderr
    assert f"note: {said}, the default; this run has 3 as well" in done.stdout
    assert environment_of(tmp_path / "three")["num_threads"] == 3
    *_, steps, refused = done.stdout.splitlines()
    assert steps == "1" and refused.startswith(f"{said}, which this run has; start it in a new")
    assert not (tmp_path / "two").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell")
def test_network_is_loaded_with_the_threads_of_its_run(undisturbed, tiny_experiment, tmp_path):
    run_directory = shutil.copytree(undisturbed[0], tmp_path / "run")
    environment = environment_of(run_directory) | {"num_threads": 5}
    (run_directory / "environment.json").write_text(json.dumps(environment))
    program = f"""
import runpy
import mnist_cnn
from mnist_cnn.parallel import threads
mnist_cnn.load({str(run_directory)!r}, runpy.run_path({str(tiny_experiment)!r})["get_config"]())
print(threads.conflict(5, 1), threads.conflict(4, 1), sep=", ")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = "None, JAX has started in this process with 5 threads, not 4\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_threads_of_more_devices_are_no_conflict():
    assert threads.conflict(2, len(jax.devices())) is None
    running = threads.conflict(255, 1)
    assert running is None if sys.platform != "linux" else "not 255" in running
    assert threads.conflict(1, 2) is None


@pytest.mark.slow
def test_note_says_how_idle_cores_are_used(tiny_experiment, tmp_path, capsys, monkeypatch):
    from mnist_cnn.runner import environment

    monkeypatch.setattr(environment, "available_cores", lambda: 64)
    monkeypatch.setenv("NPROC", "")
    mnist_cnn.run(config_of(tiny_experiment, num_steps=1), tmp_path / "run")
    assert "2 threads, as on every machine, leave 62 cores idle; --config.num_threads=64" in (
        capsys.readouterr().out
    )
    mnist_cnn.run(config_of(tiny_experiment, num_steps=2), tmp_path / "run")
    assert "cores idle" not in capsys.readouterr().out
