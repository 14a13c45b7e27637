"""Kills, damaged files, full disks and hostile content: a run keeps its bits, or says why not."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from conftest import (
    ROOT,
    TINY_EXPERIMENT,
    config_of,
    finish,
    metrics_of,
    newest_step,
    result_of,
    run,
    same_end,
    start,
    wait_for,
)
from hypothesis import given, settings, strategies as st
from kills import end_of, run_until_it_ends

import mnist_cnn
from mnist_cnn import command_line as command_lib, config as config_lib
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.errors import CheckpointError, ConfigError, DataError, UserError, printable
from mnist_cnn.parallel import compile_cache as cache_lib
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.runner import checkpoint
from mnist_cnn.runner.checkpoint import Checkpoints, sha256
from mnist_cnn.runner.preparation import Diverged
from mnist_cnn.runner.run_directory import RunDirectory


@pytest.mark.slow
def test_five_kills_also_during_writes_change_nothing(tmp_path, tiny_experiment, undisturbed):
    environment = {"TFDS_DATA_DIR": str(tmp_path / "tfds")}
    expected = end_of(undisturbed[0])
    rng, places = random.Random(1), []
    for number in itertools.count():  # a run may end before it is killed
        if len(places) >= 5:
            break
        workdir = tmp_path / f"run-{number}"
        places += run_until_it_ends(tiny_experiment, workdir, 5 - len(places), rng, environment)
        assert end_of(workdir) == expected, places


# Damaged checkpoints.


def restored(folder, template=None):
    """The (step, digest) that a run would resume from; None if all checkpoints are refused."""
    reader = Checkpoints(folder, keep=None)
    try:
        step, tree, _ = reader.restore(template, report=lambda line: None)
        return step, sha256(tree)
    except CheckpointError as error:
        assert "\n" not in str(error) and "nothing was deleted" in str(error)
        return None
    finally:
        reader.close()


@pytest.fixture
def checkpoints(undisturbed, tmp_path):
    """A copy of the checkpoints 30 and 40, and the set of what they restore to."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(undisturbed[0] / "checkpoints", folder)
    newest = restored(folder)
    shutil.move(folder / "40", tmp_path / "40")
    older = restored(folder)
    shutil.move(tmp_path / "40", folder / "40")
    assert newest[0] == 40 and older[0] == 30
    return folder, {newest, older}


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(*files):
    for path in files:
        path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", ["truncated", "empty", "deleted", "a pickle"])
def test_damage_to_any_file_of_a_checkpoint_never_gives_wrong_weights(
    damage, checkpoints, tmp_path
):
    folder, good = checkpoints
    marker = tmp_path / "executed"
    for path in files_of(folder / "40"):
        content = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes({
                "truncated": content[: len(content) // 2], "empty": b"", "a pickle": trap(marker),
            }[damage])  # fmt: skip
        assert restored(folder) in good, path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert not marker.exists()


@pytest.mark.parametrize("flips", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_flipped_bytes_never_give_wrong_weights(flips, checkpoints):
    folder, good = checkpoints
    reader = Checkpoints(folder, keep=None)
    _, template, _ = reader.restore(None, report=print)
    reader.close()
    files = files_of(folder / "40")
    rng = random.Random(0)
    fell_back = 0
    for index in range(flips):
        path = files[index % len(files)]
        original = path.read_bytes()
        content = bytearray(original)
        position = rng.randrange(len(content))
        content[position] ^= rng.randrange(1, 256)
        path.write_bytes(content)
        result = restored(folder, template)
        assert result in good, (path, position)
        fell_back += result[0] == 30
        path.write_bytes(original)
    assert fell_back > flips / 4


SYSTEM_ERRORS = {
    "EIO": OSError(errno.EIO, os.strerror(errno.EIO)),
    "EMFILE of tensorstore": ValueError(
        "NOT_FOUND: Error opening: [OS error 24: Too many open files]"
    ),
    "EACCES": PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    "memory": MemoryError(),
}


@pytest.mark.parametrize("name", SYSTEM_ERRORS)
def test_failing_read_is_no_damage_and_changes_nothing(name, checkpoints, monkeypatch):
    """Orbax chains the system's error to its own."""
    folder, good = checkpoints
    before = {path: path.read_bytes() for path in files_of(folder)}

    def fails(self, step):
        if step == 40:
            raise ValueError("failed to restore") from SYSTEM_ERRORS[name]
        return read(self, step)

    read = Checkpoints._read
    monkeypatch.setattr(Checkpoints, "_read", fails)
    for keep in (2, None):
        with contextlib.closing(Checkpoints(folder, keep)) as reader:
            lines = []
            with pytest.raises(CheckpointError, match=r"40 cannot be read.*nothing was changed"):
                reader.restore(None, lines.append)
            assert lines == []
    assert {path: path.read_bytes() for path in files_of(folder)} == before
    monkeypatch.undo()
    assert restored(folder) in good


def test_too_many_open_files_is_no_damage(checkpoints):
    """The errors as Orbax and tensorstore raise them, at whichever of their files."""
    folder, _ = checkpoints
    program = f"""
import os, pathlib, resource
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner.checkpoint import Checkpoints
reader = Checkpoints(pathlib.Path({str(folder)!r}), 2)
reader.restore(None, print)
used = max(map(int, os.listdir("/proc/self/fd")))
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in (0, 1, 2, 3, 5, 8):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, most))
    try:
        assert reader.restore(None, print)[0] == 40
    except CheckpointError as error:
        print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines, done.stderr
    for line in lines:
        assert line.startswith("refused:"), line
        assert "cannot be read (Too many open files)" in line
    assert sorted(path.name for path in folder.iterdir()) == ["30", "40"]


def test_damaged_checkpoints_are_renamed_and_do_not_disturb_the_others(checkpoints):
    folder, _ = checkpoints
    for name in ("40.damaged", "40.damaged-2"):
        truncate(*files_of(folder / "40"))
        content = {p.relative_to(folder / "40"): p.read_bytes() for p in files_of(folder / "40")}
        with contextlib.closing(Checkpoints(folder, keep=2)) as writer:
            assert writer.restore(None, report=lambda line: None)[0] == 30
            kept = folder / name
            assert {p.relative_to(kept): p.read_bytes() for p in files_of(kept)} == content
            writer.save(40, {"a": np.zeros(3, np.float32)}, {"step": 40})
    with contextlib.closing(Checkpoints(folder, keep=1)) as writer:
        assert writer.restore(None, report=print)[0] == 40
        writer.save(50, {"a": np.zeros(3, np.float32)}, {"step": 50})
    assert {path.name for path in folder.iterdir()} == {"40.damaged", "40.damaged-2", "50"}


@pytest.mark.slow
def test_folder_of_checkpoints_that_cannot_be_read_is_not_an_empty_one(
    unfinished, tiny_experiment, monkeypatch
):
    folder = unfinished / "checkpoints"
    folder.rename(unfinished / "moved")
    folder.write_text("a file")
    config = config_of(tiny_experiment)
    for call in (
        lambda: mnist_cnn.run(config, unfinished),
        lambda: evaluate(unfinished, config=config),
    ):
        with pytest.raises(
            CheckpointError, match=r"checkpoints: cannot be (read|written)"
        ) as error:
            call()
        assert "\n" not in str(error.value) and "no checkpoint" not in str(error.value)
    folder.unlink()
    (unfinished / "moved").rename(folder)

    listdir = os.listdir

    def denied(path):
        if pathlib.Path(path) != folder:
            return listdir(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(checkpoint.os, "listdir", denied)
    for call in (
        lambda: mnist_cnn.run(config, unfinished),
        lambda: evaluate(unfinished, config=config),
    ):
        with pytest.raises(CheckpointError, match=r"checkpoints: cannot be read \(Permission den"):
            call()
    monkeypatch.undo()
    assert mnist_cnn.run(config, unfinished)["steps"] == 40


@pytest.mark.parametrize("time", ["1e999", str(10**30), '"noon"', "[]"])
def test_damaged_time_in_one_checkpoint_hides_no_other(time, checkpoints):
    """Unless told otherwise, Orbax reads the times of all checkpoints before any of them."""
    folder, good = checkpoints
    for step in (40, 30):
        path = folder / str(step) / "_CHECKPOINT_METADATA"
        content = path.read_text()
        path.write_text(re.sub(r'("commit_timestamp_nsecs": )\d+', rf"\g<1>{time}", content))
        assert path.read_text() != content
        assert restored(folder) in good
        if step == 40:
            path.write_text(content)
    writer = Checkpoints(folder, keep=2)
    assert writer.restore(None, report=print)[0] == 40
    writer.save(50, {"a": np.zeros(3, np.float32)}, {"step": 50})
    writer.close()
    assert sorted(path.name for path in folder.iterdir()) == ["40", "50"]


def test_checkpoint_is_not_written_behind_a_later_one(checkpoints):
    folder, good = checkpoints
    writer = Checkpoints(folder, keep=2)
    with pytest.raises(CheckpointError, match="a checkpoint of step 20 or later exists"):
        writer.save(20, {"a": np.zeros(3, np.float32)}, {"step": 20})
    writer.close()
    assert restored(folder) in good


def test_damaged_checkpoint_is_reported_and_the_run_ends_with_the_same_bits(
    undisturbed, unfinished, tiny_experiment, capsys
):
    largest = max(files_of(unfinished / "checkpoints" / "40"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    mnist_cnn.run(config_of(tiny_experiment), unfinished)
    out = capsys.readouterr().out
    assert "checkpoint 40 is damaged" in out
    assert "resuming from the checkpoint of step 30" in out
    same_end(unfinished, undisturbed[0])


def test_commands_that_read_a_run_report_a_damaged_checkpoint(unfinished, tiny_experiment, capsys):
    truncate(*files_of(unfinished / "checkpoints" / "40"))
    assert evaluate(unfinished, config=config_of(tiny_experiment))["step"] == 30
    err = capsys.readouterr().err
    assert "checkpoint 40 is damaged" in err and err.count("\n") == 1


def test_run_without_a_good_checkpoint_says_how_to_start_over_and_deletes_nothing(
    unfinished, tiny_experiment
):
    truncate(*files_of(unfinished / "checkpoints"))
    before = {path: path.read_bytes() for path in files_of(unfinished)}
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged.*start over") as error:
        mnist_cnn.run(config_of(tiny_experiment), unfinished)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in files_of(unfinished)} == before


# Disks and folders that cannot be written.


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a tmpfs of `size` bytes at `folder`; skips the test without the permission."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must be able to mount a tmpfs")
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [(40_000, 400_000), pytest.param((4096, 200_000), marks=pytest.mark.slow)]
)
def test_full_disk_is_one_line_and_the_run_resumes_when_there_is_space(
    sizes, undisturbed, tiny_experiment, tmp_path
):
    """The disks are full at different points of a run."""
    disks = {tmp_path / str(size): size for size in sizes}
    with contextlib.ExitStack() as stack:
        for disk, size in disks.items():
            stack.enter_context(small_disk(disk, size))
        processes = [
            start("mnist_cnn.main", "--config", tiny_experiment, "--workdir", disk / "run")
            for disk in disks
        ]
        for process in processes:
            _, err = finish(process, status=1)
            assert "No space left on device" in err and err.count("\n") == 1, err
        for disk in disks:
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            mnist_cnn.run(config_of(tiny_experiment), disk / "run")
            same_end(disk / "run", undisturbed[0])


def test_read_only_disk_is_one_line(tiny_experiment, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, 1_000_000):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        _, err = run(
            "mnist_cnn.main", "--config", tiny_experiment, "--workdir", disk / "run", status=1
        )
        assert "Read-only file system" in err and err.count("\n") == 1, err


def test_file_in_place_of_the_run_directory_is_refused(tiny_experiment, tmp_path):
    (tmp_path / "run").write_text("precious")
    for workdir in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(CheckpointError, match="there is a file in its place") as error:
            mnist_cnn.run(config_of(tiny_experiment), workdir)
        assert "\n" not in str(error.value)
    assert (tmp_path / "run").read_text() == "precious"


@pytest.mark.slow
def test_missing_permission_is_one_line_and_the_run_resumes_with_it(
    undisturbed, tiny_experiment, tmp_path
):
    """Root runs without the capability to ignore permissions."""
    command = [sys.executable, "-m", "mnist_cnn.main", "--config", tiny_experiment]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *command]
    locked = {"new": ".", "old": "run", "unsaved": "run/checkpoints"}
    for name, place in locked.items():
        shutil.copytree(undisturbed[0], tmp_path / name / "run")
        (tmp_path / name / "run" / "result.json").unlink()
        shutil.rmtree(tmp_path / name / "run" / "checkpoints" / "40")
        (tmp_path / name / place).chmod(0o555)
    workdirs = {name: tmp_path / name / ("fresh" if name == "new" else "run") for name in locked}
    processes = [
        subprocess.Popen(
            [*command, "--workdir", workdir],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for workdir in workdirs.values()
    ]  # fmt: skip
    for process in processes:
        _, err = finish(process, status=1)
        assert "Permission denied" in err and err.count("\n") == 1, err
    for name, place in locked.items():
        (tmp_path / name / place).chmod(0o755)
        mnist_cnn.run(config_of(tiny_experiment), workdirs[name])
        same_end(workdirs[name], undisturbed[0])


def test_second_run_on_a_directory_is_refused_while_the_first_is_alive(tiny_experiment, tmp_path):
    config = config_of(tiny_experiment, num_steps=1000000)
    first = start(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path,
        "--config.num_steps=1000000", "--config.log_every=1000000",
    )  # fmt: skip
    wait_for(lambda: newest_step(tmp_path) or first.poll() is not None)
    with pytest.raises(CheckpointError, match="another run is using it"):
        mnist_cnn.run(config, tmp_path)
    first.kill()
    finish(first, -signal.SIGKILL)
    config.num_steps = newest_step(tmp_path) + 1
    assert mnist_cnn.run(config, tmp_path)["steps"] == config.num_steps


SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize(
    "change", ["renamed", pytest.param("removed", **SLOW), pytest.param("replaced", **SLOW)]
)
def test_directory_that_changes_during_the_run_ends_it_in_one_line(
    change, tiny_experiment, tmp_path
):
    workdir = tmp_path / "run"
    process = start(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", workdir,
        "--config.num_steps=1000000", "--config.log_every=100",
        "--config.checkpoint_every=1000000",
    )  # fmt: skip
    wait_for(lambda: (workdir / "metrics.jsonl").exists() or process.poll() is not None)
    workdir.rename(tmp_path / "moved")
    if change == "replaced":
        workdir.mkdir()
    if change == "removed":
        shutil.rmtree(tmp_path / "moved")
    _, err = finish(process, status=1)
    assert err.count("\n") == 1 and "was renamed, removed or replaced during the run" in err, err
    assert not workdir.exists() or not list(workdir.iterdir())


def test_every_write_notices_that_the_directory_is_another(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.lock()
    directory.open_metrics(step=0, total=9)
    directory.write("config.json", {})
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    for write in (
        lambda: directory.write("result.json", {}),
        lambda: directory.write_arrays("predictions.npz", {}),
        lambda: directory.log({"step": 1, "split": "train"}, {}),
        lambda: directory.log_hparams({}, {}, 1),
    ):
        with pytest.raises(CheckpointError, match="renamed, removed or replaced"):
            write()
    directory.close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_file_system_without_locks_is_named_and_a_way_on(tmp_path):
    """As NFS without its lock service answers, and FUSE."""
    for number in (errno.ENOLCK, errno.ENOSYS):
        failure = OSError(number, os.strerror(number))
        with (
            mock.patch("fcntl.flock", side_effect=failure),
            pytest.raises(CheckpointError, match=r"cannot lock a file .*; give a directory on a"),
        ):
            RunDirectory(tmp_path / "run").lock()


@pytest.mark.slow
def test_run_needs_no_home_directory_and_makes_nothing_beside_its_own(
    undisturbed, tiny_experiment, tmp_path
):
    """A user id without an account, as containers give; it may read the files of root."""
    if os.geteuid() != 0:
        pytest.skip("another user id needs root")
    command = ["setpriv", "--reuid=54321", "--clear-groups", "--inh-caps=+dac_override"]
    command += ["--ambient-caps=+dac_override", sys.executable, "-m", "mnist_cnn.main"]
    hidden = ("HOME", "TFDS_DATA_DIR", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    process = subprocess.run(
        [*command, "--config", tiny_experiment, "--workdir=run"], cwd=tmp_path / "here",
        env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("note: the data is used from memory; there is no home")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["run"]
    (cache,) = (tmp_path / "tmp").iterdir()
    assert cache.name == "mnist_cnn-54321" and cache.stat().st_mode & 0o777 == 0o700
    assert_entries_are_valid(cache)
    same_end(tmp_path / "here" / "run", undisturbed[0])


@pytest.mark.parametrize("planted", ["open to others", "a link"])
def test_cache_in_the_temporary_folder_is_used_only_if_nobody_else_can_write_it(
    planted, tmp_path, monkeypatch
):
    def no_home(path, name):
        raise ConfigError(name)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache_lib, "local_path", no_home)
    monkeypatch.setattr(cache_lib.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"mnist_cnn-{os.getuid()}"
    assert cache_lib._cache_home() == cache_lib._cache_home() == folder
    if planted == "a link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.chmod(0o777)
    with pytest.raises(PermissionError):
        cache_lib._cache_home()


# Divergence.


def test_diverging_run_names_the_step_and_keeps_the_last_good_checkpoint(small_mnist, tmp_path):
    experiment = tmp_path / "tiny.py"
    experiment.write_text(
        TINY_EXPERIMENT.format(manual_dir=str(small_mnist)).replace(
            'name="tiny"', 'name="tiny", optimizer=diverging'
        )
        + "import jax, optax\n"
        "def diverging(rate):\n"
        "    return optax.sgd(lambda step: jax.numpy.where(step < 23, rate, 1e38))\n"
    )
    with pytest.raises(Diverged) as error:
        mnist_cnn.run(config_of(experiment), tmp_path / "run")
    result = result_of(tmp_path / "run")
    assert result["status"] == "diverged" and 24 <= result["steps"] <= 28
    assert f"not finite at step {result['steps']};" in str(error.value)
    assert "\n" not in str(error.value)
    assert restored(tmp_path / "run" / "checkpoints")[0] == 20


@pytest.mark.slow
def test_learning_rate_of_a_million_diverges_within_a_logging_interval(tmp_path, small_mnist):
    run(
        "mnist_cnn.main", "--config", ROOT / "experiments/base.py", "--workdir", tmp_path,
        f"--config.manual_dir={small_mnist}", "--config.learning_rate=1e6",
        "--config.num_steps=60", "--config.log_every=20", status=1,
    )  # fmt: skip
    assert result_of(tmp_path)["status"] == "diverged" and result_of(tmp_path)["steps"] <= 20


# Hostile and random content.


def trap(marker):
    """A pickle that creates the file `marker` when it is unpickled."""

    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (marker,))

    content = pickle.dumps(Trap())
    pickle.loads(content)
    assert marker.exists()
    marker.unlink()
    return content


@pytest.mark.parametrize("name", ["config.json", "result.json", "environment.json"])
def test_pickle_in_place_of_a_json_file_is_not_executed(
    name, unfinished, tiny_experiment, tmp_path
):
    (unfinished / name).write_bytes(trap(tmp_path / "executed"))
    (unfinished / "metrics.jsonl").write_bytes(trap(tmp_path / "executed"))
    with pytest.raises(CheckpointError, match=f"{name}: expected a JSON object") as error:
        mnist_cnn.run(config_of(tiny_experiment), unfinished)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_pickle_in_place_of_metrics_or_data_is_not_executed(
    unfinished, tiny_experiment, small_mnist, tmp_path
):
    (unfinished / "metrics.jsonl").write_bytes(trap(tmp_path / "executed"))
    mnist_cnn.run(config_of(tiny_experiment), unfinished)
    data = tmp_path / "data"
    shutil.copytree(small_mnist, data)
    (data / "train-images-idx3-ubyte").write_bytes(trap(tmp_path / "executed"))
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as error:
        mnist_cnn.run(config_of(tiny_experiment, manual_dir=str(data)), tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_incomplete_and_later_lines_of_metrics_are_written_again(
    undisturbed, unfinished, tiny_experiment
):
    shutil.rmtree(unfinished / "checkpoints" / "40")  # the lines after step 30 came later
    with open(unfinished / "metrics.jsonl", "a") as file:
        file.write('{"step": 28, "split": "train"')
    mnist_cnn.run(config_of(tiny_experiment), unfinished)
    same_end(unfinished, undisturbed[0])


def test_control_characters_do_not_reach_the_terminal(tiny_experiment, tmp_path):
    evil = tmp_path / "\x1b[2Jevil\n"
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run",
        f"--config.manual_dir={evil}", status=1,
    )  # fmt: skip
    assert "\x1b" not in err and "evil" in err and err.count("\n") == 1
    assert printable("a\x1bb\x07\n\u202e\U0001f600") == "a\\x1bb\\x07\\n\\u202e\U0001f600"


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))  # 10,000 for a thorough search
WITH_JSON = st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=EXAMPLES, deadline=None)
@given(WITH_JSON)
def test_any_bytes_in_place_of_a_json_file_are_an_object_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_bytes(content)
    try:
        assert isinstance(RunDirectory(folder).read("result.json"), dict)
    except CheckpointError as error:
        assert "\n" not in str(error)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(WITH_JSON | st.just(b'{"step": 3, "split": "train"}'), max_size=5))
def test_any_bytes_in_place_of_metrics_leave_complete_lines_of_the_past(tmp_path_factory, lines):
    directory = RunDirectory(tmp_path_factory.getbasetemp() / "fuzz")
    directory.path.mkdir(exist_ok=True)
    (directory.path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    complete = [entry for entry in directory.read_metrics() if int(entry["step"]) <= 3]
    with contextlib.closing(directory), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", mock.Mock())
        directory.open_metrics(step=3, total=3)
    kept = (directory.path / "metrics.jsonl").read_bytes().splitlines(True)
    assert all(line.endswith(b"\n") for line in kept)
    # The test of step 3, the last one, will be written again.
    expected = [e for e in complete if e["split"] != "test" or int(e["step"]) < 3]
    assert [json.loads(line) for line in kept] == expected


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from([*config_lib.FIELDS, "sed", ""]) | st.text(max_size=8),
    st.text(max_size=12) | st.integers().map(str) | st.floats().map(str),
)
def test_any_override_is_valid_or_a_user_error(key, value):
    with contextlib.suppress(UserError):
        command_lib.split_overrides(["main", f"--config.{key}={value}"])


# The compile cache.


def start_with_cache(experiment, workdir, cache):
    return start(
        "mnist_cnn.main", "--config", experiment, "--workdir", workdir, XDG_CACHE_HOME=str(cache)
    )


def assert_entries_are_valid(cache):
    entries = [path for path in files_of(cache) if not path.parent.name.startswith("work-")]
    assert any("jit_steps" in path.name for path in entries)
    for path in entries:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.rpartition(".")[2]


@pytest.mark.slow
def test_valid_damaged_and_missing_compile_caches_give_the_same_bits(
    undisturbed, tiny_experiment, tmp_path, monkeypatch
):
    """A valid cache is not changed, a damaged one is repaired; a file in its place is ignored."""
    caches = {name: tmp_path / name for name in ("valid", "damaged")}
    for cache in caches.values():
        shutil.copytree(undisturbed[0].parent / "cache", cache)
    valid = {path: path.read_bytes() for path in files_of(caches["valid"])}
    for number, path in enumerate(files_of(caches["damaged"])):
        content = path.read_bytes()
        damaged = content[:-9], b"", content[:50] + b"!" + content[51:]
        path.write_bytes(damaged[number % 3])
    processes = {
        name: start_with_cache(tiny_experiment, tmp_path / f"run-{name}", cache)
        for name, cache in caches.items()
    }
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    mnist_cnn.run(config_of(tiny_experiment), tmp_path / "run-missing")
    for process in processes.values():
        finish(process)
    for name in (*caches, "missing"):
        same_end(tmp_path / f"run-{name}", undisturbed[0])
    assert {path: path.read_bytes() for path in files_of(caches["valid"])} == valid
    assert_entries_are_valid(caches["damaged"])


@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_compile_cache_leaves_the_settings_of_the_caller(seconds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [name for name in jax.config.values if "cache" in name]
    seconds_before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    try:
        before = {name: jax.config.values[name] for name in names}
        with contextlib.suppress(KeyError), compile_cache():
            assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0.0
            assert jax.config.values["jax_compilation_cache_dir"] is not None
            raise KeyError
        assert {name: jax.config.values[name] for name in names} == before
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds_before)


@pytest.mark.slow
def test_runs_share_a_compile_cache_and_a_kill_leaves_it_valid(
    undisturbed, tiny_experiment, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    runs = {
        tmp_path / str(n): start_with_cache(tiny_experiment, tmp_path / str(n), cache)
        for n in range(3)
    }
    wait_for(lambda: any(path.is_file() for path in cache.rglob("work-*/*")))
    *others, (_, killed) = runs.items()
    killed.kill()
    killed.communicate()
    for workdir, process in others:
        finish(process)
        same_end(workdir, undisturbed[0])
    assert_entries_are_valid(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    mnist_cnn.run(config_of(tiny_experiment), tmp_path / "after")
    same_end(tmp_path / "after", undisturbed[0])


# Determinism.


@pytest.mark.slow
def test_logging_saving_and_evaluating_at_other_steps_changes_no_bit(
    undisturbed, tiny_experiment, tmp_path
):
    config = config_of(
        tiny_experiment, checkpoint_every=3, log_every=11, eval_batch_size=33, keep=5
    )
    ours, theirs = mnist_cnn.run(config, tmp_path), result_of(undisturbed[0])
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert ours["test"]["correct"] == theirs["test"]["correct"]
    np.testing.assert_allclose(ours["test"]["loss"], theirs["test"]["loss"], rtol=1e-6)


@pytest.mark.slow
def test_number_of_validations_changes_no_bit(tiny_experiment, tmp_path):
    config = config_of(tiny_experiment, train_split="train[:400]", validation_split="train[400:]")
    digests = []
    for every in (7, 40):
        config.eval_every = every
        result = mnist_cnn.run(config, tmp_path / str(every))
        digests.append(result["params_sha256"])
        splits = [line["split"] for line in metrics_of(tmp_path / str(every))]
        assert splits.count("validation") == -(-40 // every)
    assert digests[0] == digests[1]


def test_digest_depends_on_every_array():
    tree = {"a": np.zeros(3, np.float32), "b": {"c": np.ones((2, 2), np.float32)}}
    assert sha256(tree) == sha256(jax.tree.map(jax.numpy.asarray, tree))
    assert sha256(tree) != sha256({**tree, "a": np.array([0, 0, 1e-45], np.float32)})
