"""Whatever happens to a run, its numbers stay what they would have been, or it says what is so."""

import contextlib
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

import jax
import numpy as np
import pytest
from conftest import (
    ROOT,
    TINY_EXPERIMENT,
    config_of,
    metrics_of,
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
from mnist_cnn.errors import CheckpointError, UserError, printable
from mnist_cnn.runner import run_directory
from mnist_cnn.runner.checkpoint import Checkpoints, sha256


@pytest.mark.slow
def test_eight_kills_at_the_worst_instants_change_nothing(tmp_path, tiny_experiment, undisturbed):
    environment = {"TFDS_DATA_DIR": str(tmp_path / "tfds")}
    expected = end_of(undisturbed[0])
    chance, met = random.Random(1), []
    for number in itertools.count():  # a run may end before anything kills it
        if len(met) >= 8:
            break
        workdir = tmp_path / f"run-{number}"
        met += run_until_it_ends(tiny_experiment, workdir, 8 - len(met), chance, environment)
        assert end_of(workdir) == expected, met


def test_a_second_interrupt_leaves_at_once_and_the_directory_usable(
    undisturbed, tiny_experiment, tmp_path
):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path)
    process = start(*command, "--config.num_steps=1000000", "--config.log_every=1000000",
                    "--config.checkpoint_every=1000")  # fmt: skip
    wait_for(lambda: (tmp_path / "checkpoints" / "1000").exists() or process.poll() is not None)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    newest = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    run(*command, f"--config.num_steps={newest + 3}")
    assert result_of(tmp_path)["status"] == "finished"


# Damaged checkpoints.


def restored(checkpoints, template=None):
    """What a run would go on from: (step, digest), or None if it says that nothing is good."""
    reader = Checkpoints(checkpoints, keep=None)
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
    """A copy of the checkpoints 30 and 40, and what each restores to."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(undisturbed[0] / "checkpoints", folder)
    newest = restored(folder)
    shutil.move(folder / "40", tmp_path / "40")
    previous = restored(folder)
    shutil.move(tmp_path / "40", folder / "40")
    assert newest[0] == 40 and previous[0] == 30
    return folder, {newest, previous}


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["truncated", "empty", "deleted", "a pickle"])
def test_every_file_of_a_checkpoint_may_be_damaged(damage, checkpoints, tmp_path):
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


@pytest.mark.parametrize("time", ["1e999", str(10**30), '"noon"', "[]"])
def test_a_damaged_time_in_one_checkpoint_hides_no_other(time, checkpoints):
    """Orbax reads the times of all checkpoints, if it may, before any of them is asked for."""
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


def test_a_checkpoint_is_not_written_where_a_later_one_is(checkpoints):
    folder, good = checkpoints
    writer = Checkpoints(folder, keep=2)
    with pytest.raises(CheckpointError, match="there is one of step 20 or later"):
        writer.save(20, {"a": np.zeros(3, np.float32)}, {"step": 20})
    writer.close()
    assert restored(folder) in good


def test_two_hundred_flipped_bytes_never_give_wrong_weights(checkpoints):
    folder, good = checkpoints
    reader = Checkpoints(folder, keep=None)
    _, template, _ = reader.restore(None, report=print)
    reader.close()
    files = files_of(folder / "40")
    chance = random.Random(0)
    fell_back = 0
    for index in range(200):
        path = files[index % len(files)]
        content = bytearray(path.read_bytes())
        position = chance.randrange(len(content))
        content[position] ^= chance.randrange(1, 256)
        original = path.read_bytes()
        path.write_bytes(content)
        got = restored(folder, template)
        assert got in good, (path, position)
        fell_back += got[0] == 30
        path.write_bytes(original)
    assert fell_back > 50


def test_a_damaged_checkpoint_is_reported_and_the_end_is_the_same(
    undisturbed, tiny_experiment, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    largest = max(files_of(tmp_path / "run" / "checkpoints" / "40"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    out, err = run("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run")
    assert (
        err == ""
        and "checkpoint 40 is damaged" in out
        and "going on from the checkpoint of step 30" in out
    )
    same_end(tmp_path / "run", undisturbed[0])


def test_who_reads_a_run_is_told_that_its_newest_checkpoint_is_damaged(
    undisturbed, tiny_experiment, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    for path in files_of(tmp_path / "run" / "checkpoints" / "40"):
        path.write_bytes(path.read_bytes()[:-7])
    arguments = ("--workdir", tmp_path / "run", "--config", tiny_experiment)
    out, err = run("mnist_cnn.evaluate", *arguments)
    assert "step 30" in out
    assert "checkpoint 40 is damaged" in err and err.count("\n") == 1


def test_without_a_good_checkpoint_it_says_how_to_start_over_and_deletes_nothing(
    undisturbed, tiny_experiment, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for path in files_of(tmp_path / "run" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-7])
    before = {p: p.read_bytes() for p in files_of(tmp_path / "run") if "events" not in p.name}
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run", status=1
    )
    assert "every checkpoint is damaged" in err and "start over" in err and err.count("\n") == 1
    assert {p: p.read_bytes() for p in files_of(tmp_path / "run") if p in before} == before


# A disk that does not take what it is given.


@contextlib.contextmanager
def small_disk(folder, size):
    """A tmpfs of `size` bytes at `folder`; skips where this user may not mount one."""
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


@pytest.mark.parametrize("size", [4096, 40_000, 200_000, 400_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    size, undisturbed, tiny_experiment, tmp_path
):
    disk = tmp_path / "disk"
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--workdir", disk / "run")
    with small_disk(disk, size):
        _, err = run(*command, status=1)
        assert "No space left on device" in err and err.count("\n") == 1, err
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        run(*command)
        same_end(disk / "run", undisturbed[0])


def test_a_read_only_disk_is_one_line(tiny_experiment, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, 1_000_000):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        _, err = run(
            "mnist_cnn.main", "--config", tiny_experiment, "--workdir", disk / "run", status=1
        )
        assert "Read-only file system" in err and err.count("\n") == 1, err


def test_a_file_in_the_directorys_place_is_one_line(tiny_experiment, tmp_path):
    (tmp_path / "run").write_text("precious")
    for workdir in (tmp_path / "run", tmp_path / "run" / "below"):
        _, err = run("mnist_cnn.main", "--config", tiny_experiment, "--workdir", workdir, status=1)
        assert "there is a file in its place" in err and err.count("\n") == 1, err
    assert (tmp_path / "run").read_text() == "precious"


@pytest.mark.parametrize("place", ["new", "run", "run/checkpoints"])
def test_without_permission_it_is_one_line(place, undisturbed, tiny_experiment, tmp_path):
    """As a user whom permissions bind: root without the capability to pass over them."""
    base = tmp_path / "base"
    shutil.copytree(undisturbed[0], base / "run")
    (base / "run" / "result.json").unlink()
    shutil.rmtree(base / "run" / "checkpoints" / "40")
    locked = base if place == "new" else base / place
    locked.chmod(0o555)
    workdir = base / ("new" if place == "new" else "run")
    command = [sys.executable, "-m", "mnist_cnn.main", "--config", tiny_experiment]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *command]
    done = subprocess.run([*command, "--workdir", workdir], capture_output=True, text=True)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Permission denied" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    locked.chmod(0o755)
    if place != "new":
        run(*command[command.index("-m") + 1 :], "--workdir", workdir)
        same_end(workdir, undisturbed[0])


def test_a_second_run_on_a_directory_is_refused_while_the_first_lives(tiny_experiment, tmp_path):
    command = ("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path)
    first = start(*command, "--config.num_steps=1000000")
    wait_for(lambda: (tmp_path / "checkpoints" / "10").exists() or first.poll() is not None)
    _, err = run(*command, "--config.num_steps=1000000", status=1)
    assert "another run is at work there" in err and err.count("\n") == 1
    first.kill()
    first.communicate()
    newest = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    run(*command, f"--config.num_steps={newest + 1}")


def test_a_diverging_run_stops_names_the_step_and_keeps_the_last_good_checkpoint(
    small_mnist, tmp_path
):
    experiment = tmp_path / "tiny.py"
    experiment.write_text(
        TINY_EXPERIMENT.format(manual_dir=str(small_mnist)).replace(
            'name="tiny"', 'name="tiny", optimizer=warm_then_hot'
        )
        + "import optax\n"
        "def warm_then_hot(rate):\n"
        "    return optax.sgd(lambda step: jax.numpy.where(step < 23, rate, 1e38))\n"
        "import jax\n"
    )
    _, err = run("mnist_cnn.main", "--config", experiment, "--workdir", tmp_path / "run", status=1)
    result = result_of(tmp_path / "run")
    assert result["status"] == "diverged" and 24 <= result["steps"] <= 28
    assert f"not finite at step {result['steps']};" in err and err.count("\n") == 1
    assert restored(tmp_path / "run" / "checkpoints")[0] == 20


@pytest.mark.slow
def test_a_learning_rate_of_a_million_diverges_in_one_logging_interval(tmp_path, small_mnist):
    run(
        "mnist_cnn.main", "--config", ROOT / "experiments/base.py", "--workdir", tmp_path,
        f"--config.manual_dir={small_mnist}", "--config.learning_rate=1e6",
        "--config.num_steps=60", "--config.log_every=20", status=1,
    )  # fmt: skip
    assert result_of(tmp_path)["status"] == "diverged" and result_of(tmp_path)["steps"] <= 20


# Hostile and random content.


def trap(marker):
    """A pickle that creates the file `marker` when anything unpickles it."""

    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (marker,))

    content = pickle.dumps(Trap())
    pickle.loads(content)
    assert marker.exists()
    marker.unlink()
    return content


@pytest.mark.parametrize("name", ["config.json", "result.json", "environment.json"])
def test_a_pickle_in_the_run_directory_is_not_executed(
    name, undisturbed, tiny_experiment, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / name).write_bytes(trap(tmp_path / "executed"))
    (tmp_path / "run" / "metrics.jsonl").write_bytes(trap(tmp_path / "executed"))
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run", status=1
    )
    assert f"{name}: expected a JSON object" in err and err.count("\n") == 1, err
    assert not (tmp_path / "executed").exists()


def test_a_pickle_in_place_of_metrics_or_data_is_not_executed(
    undisturbed, tiny_experiment, small_mnist, tmp_path
):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(trap(tmp_path / "executed"))
    run("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run")
    shutil.copytree(small_mnist, tmp_path / "data")
    (tmp_path / "data" / "train-images-idx3-ubyte").write_bytes(trap(tmp_path / "executed"))
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "new",
        f"--config.manual_dir={tmp_path / 'data'}", status=1,
    )  # fmt: skip
    assert "train-images-idx3-ubyte" in err and err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


def test_control_characters_from_outside_do_not_reach_the_terminal(tiny_experiment, tmp_path):
    evil = tmp_path / "\x1b[2Jevil\n"
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run",
        f"--config.manual_dir={evil}", status=1,
    )  # fmt: skip
    assert "\x1b" not in err and "evil" in err and err.count("\n") == 1
    assert printable("a\x1bb\x07\n\u202e\U0001f600") == "a\\x1bb\\x07\\n\\u202e\U0001f600"


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))  # 10,000 now and then
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
        assert isinstance(run_directory.RunDirectory(folder).read("result.json"), dict)
    except CheckpointError as error:
        assert "\n" not in str(error)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(WITH_JSON | st.just(b'{"step": 3, "split": "train"}'), max_size=5))
def test_any_bytes_in_place_of_metrics_leave_whole_lines_of_the_past(tmp_path_factory, lines):
    kept = [line for line in b"\n".join(lines).splitlines(True) if run_directory._precedes(line, 3)]
    for line in kept:
        assert json.loads(line)["step"] <= 3 and line.endswith(b"\n")


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from([*config_lib.FIELDS, "sed", ""]) | st.text(max_size=8),
    st.text(max_size=12) | st.integers().map(str) | st.floats().map(str),
)
def test_any_override_is_legal_or_an_error_of_the_users(key, value):
    with contextlib.suppress(UserError):
        command_lib.check_overrides(["main", f"--config.{key}={value}"])


# The compile cache.


def base_steps(workdir, small_mnist, cache):
    run(
        "mnist_cnn.main", "--config", ROOT / "experiments" / "mlp.py", "--workdir", workdir,
        f"--config.manual_dir={small_mnist}", "--config.num_steps=5", "--config.report=False",
        XDG_CACHE_HOME=str(cache),
    )  # fmt: skip
    return result_of(workdir)["params_sha256"]


def test_a_damaged_compile_cache_is_mended_and_changes_no_bit(small_mnist, tmp_path):
    cache = tmp_path / "cache"
    cold = base_steps(tmp_path / "cold", small_mnist, cache)
    entries = {path: path.read_bytes() for path in files_of(cache)}
    assert any("jit_steps" in path.name for path in entries)
    assert base_steps(tmp_path / "warm", small_mnist, cache) == cold
    assert {path: path.read_bytes() for path in files_of(cache)} == entries
    for number, path in enumerate(entries):
        content = entries[path]
        path.write_bytes([content[:-9], b"", content[:50] + b"!" + content[51:]][number % 3])
    assert base_steps(tmp_path / "mended", small_mnist, cache) == cold
    for path in files_of(cache):  # whatever is there now is whole
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.rpartition(".")[2]


def test_a_compile_cache_that_cannot_be_written_is_done_without(small_mnist, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert base_steps(tmp_path / "without", small_mnist, tmp_path / "file") == base_steps(
        tmp_path / "with", small_mnist, tmp_path / "cache"
    )


def test_two_runs_share_a_compile_cache_and_one_killed_in_it_leaves_nothing_bad(
    small_mnist, tmp_path
):
    cache = tmp_path / "cache"
    processes = [
        start(
            "mnist_cnn.main", "--config", ROOT / "experiments" / "mlp.py", "--workdir",
            tmp_path / str(number), f"--config.manual_dir={small_mnist}",
            "--config.num_steps=5", "--config.report=False", XDG_CACHE_HOME=str(cache),
        )
        for number in range(3)
    ]  # fmt: skip
    wait_for(lambda: any(path.is_file() for path in cache.rglob("work-*/*")))
    processes[2].kill()
    for process in processes:
        process.communicate(timeout=120)
    digests = {str(result_of(tmp_path / number)["params_sha256"]) for number in "01"}
    digests.add(str(base_steps(tmp_path / "after", small_mnist, cache)))
    assert [process.returncode for process in processes[:2]] == [0, 0] and len(digests) == 1


# Determinism.


def test_the_surroundings_change_no_bit(undisturbed, tiny_experiment, tmp_path):
    """Also: checkpoint and logging intervals, the evaluation's batch size, the compile cache."""
    (tmp_path / "folder with spaces").mkdir()
    run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir=run",
        "--config.checkpoint_every=3", "--config.log_every=11", "--config.eval_batch_size=33",
        "--config.keep=5", cwd=tmp_path / "folder with spaces", PYTHONHASHSEED="123",
        LC_ALL="C", LANG="C", TZ="America/St_Johns", XDG_CACHE_HOME=str(tmp_path / "cold"),
    )  # fmt: skip
    ours, theirs = result_of(tmp_path / "folder with spaces" / "run"), result_of(undisturbed[0])
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert ours["test"]["correct"] == theirs["test"]["correct"]
    np.testing.assert_allclose(ours["test"]["loss"], theirs["test"]["loss"], rtol=1e-6)


def test_how_often_it_is_evaluated_changes_no_bit(tiny_experiment, tmp_path):
    config = config_of(tiny_experiment)
    config.update(train_split="train[:400]", validation_split="train[400:]")
    digests = []
    for every in (7, 40):
        config.eval_every = every
        result = mnist_cnn.run(config, tmp_path / str(every))
        digests.append(result["params_sha256"])
        splits = [line["split"] for line in metrics_of(tmp_path / str(every))]
        assert splits.count("validation") == -(-40 // every)
    assert digests[0] == digests[1]


def test_the_digest_sees_every_array():
    tree = {"a": np.zeros(3, np.float32), "b": {"c": np.ones((2, 2), np.float32)}}
    assert sha256(tree) == sha256(jax.tree.map(jax.numpy.asarray, tree))
    assert sha256(tree) != sha256({**tree, "a": np.array([0, 0, 1e-45], np.float32)})
