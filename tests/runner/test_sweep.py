"""A sweep is judged on the validation split, and only its best setting is tested."""

import contextlib
import io
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, config_of, metrics_of, result_of
from flax import linen as nn
from hypothesis import given, strategies as st
from training_runs import train

import mnist_cnn
from mnist_cnn import config as config_lib
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.data.dataset import Dataset
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.runner import loop, run_directory, sweep as sweep_lib
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.preparation import Diverged
from mnist_cnn.runner.signals import Stopped, StopRequest
from mnist_cnn.training.state import create_state

HALVES = {"train_split": "train[:400]", "validation_split": "train[400:]"}


@pytest.fixture(scope="module")
def sweep(tiny_experiment, tmp_path_factory):
    """Three learning rates, of which one diverges, two seeds each."""
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    changes = {"sweep": {"learning_rate": [1e-4, 3e-3, 1e30]}, "num_seeds": 2, "report": True}
    return workdir, train(tiny_experiment, workdir, **HALVES, **changes)


def test_a_sweep_is_judged_on_validation_and_tests_the_chosen_setting(
    sweep, tiny_experiment, tmp_path
):
    workdir, result = sweep
    settings = result["sweep"]["settings"]
    assert [one["setting"] for one in settings] == [
        {"learning_rate": rate} for rate in (1e-4, 3e-3, 1e30)
    ]
    assert [one["status"] for one in settings] == ["finished", "finished", "diverged"]
    means = [one["validation_mean"]["accuracy"] for one in settings[:2]]
    assert result["sweep"]["chosen"] == int(np.argmax(means)) == 1
    assert settings[0]["validation"]["examples"] == 100
    plain = train(tiny_experiment, tmp_path, **HALVES, learning_rate=3e-3, num_seeds=2)
    for key in ("seeds", "test", "test_mean", "params_sha256", "ensemble"):
        assert result[key] == plain[key]
    validation = [e for e in metrics_of(tmp_path) if e["split"] == "validation"][-1]
    assert settings[1]["validation"]["accuracy"] == validation["accuracy"]
    with np.load(workdir / "predictions.npz") as kept:
        assert kept["logits"].shape == (2, 250, 10)


def test_the_files_of_a_sweep_are_valid_json_and_its_report_shows_every_setting(sweep):
    workdir, _ = sweep
    json.loads((workdir / "result.json").read_text(), parse_constant=pytest.fail)
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_constant=pytest.fail)
        assert len(np.atleast_1d(entry["loss"])) == (2 if entry["split"] == "test" else 6)
    page = (workdir / "report.html").read_text()
    assert "Sweep, validated on train[400:]" in page and "Error over learning_rate" in page
    assert "diverged" in page and "chosen" in page


class Lottery(nn.Module):
    """For some seeds it is not finite from the beginning."""

    @nn.compact
    def __call__(self, images):
        def blank(key):
            return jnp.where(jax.random.bernoulli(key), jnp.nan, 0.0)

        return nn.Dense(10)(images.reshape(-1, 784)) + self.param("blank", blank)


@pytest.mark.slow
def test_a_sweep_ends_if_every_setting_has_a_diverged_seed(tiny_experiment, tmp_path):
    rates = {"learning_rate": [1e-3, 1e-2]}
    lost = []
    for seed in range(8):
        state = create_state(mnist_cnn.experiment(model=Lottery(), seed=seed))
        lost.append(bool(jnp.isnan(state.params["blank"])))
    first = next(seed for seed in range(7) if lost[seed] != lost[seed + 1])
    with pytest.raises(Diverged, match="not finite at step"):
        train(
            tiny_experiment, tmp_path, **HALVES, sweep=rates, model=Lottery(), seed=first,
            num_seeds=2, num_steps=8,
        )  # fmt: skip
    assert result_of(tmp_path)["status"] == "diverged"


def test_a_sweep_ends_if_every_setting_diverges(tiny_experiment, tmp_path):
    with pytest.raises(Diverged, match="not finite at step"):
        train(tiny_experiment, tmp_path, **HALVES, sweep={"learning_rate": [1e30, 1e31]})
    assert result_of(tmp_path)["status"] == "diverged"


VALUES = {
    "learning_rate": 3e-3, "b1": 0.5, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.1,
    "label_smoothing": 0.2, "ema": 0.5, "rotation": 20.0, "zoom": 0.2, "shear": 0.2, "shift": 2.0,
}  # fmt: skip
SHORT = {**HALVES, "num_steps": 10}


@pytest.fixture(scope="module")
def ten_steps(tiny_experiment, tmp_path_factory):
    """The result and the validation loss of the defaults."""
    workdir = tmp_path_factory.mktemp("ten_steps") / "run"
    return train(tiny_experiment, workdir, **SHORT), validation_loss(workdir)


def validation_loss(workdir):
    return next(line["loss"] for line in metrics_of(workdir) if line["split"] == "validation")


QUICK = ("learning_rate",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in config_lib.HYPERPARAMETERS
    ],
)
def test_every_hyperparameter_reaches_the_step_swept_or_set(
    name, ten_steps, tiny_experiment, tmp_path
):
    value, default = VALUES[name], config_lib.FIELDS[name].default
    swept = train(tiny_experiment, tmp_path / "a", **SHORT, sweep={name: [default, value]})
    plain = train(tiny_experiment, tmp_path / "b", **SHORT, **{name: value})
    base, loss = ten_steps
    found = [one["validation_mean"]["loss"] for one in swept["sweep"]["settings"]]
    np.testing.assert_allclose(found, [loss, validation_loss(tmp_path / "b")], rtol=1e-4)
    assert base["params_sha256"] != plain["params_sha256"]
    assert swept["params_sha256"][0] in (plain["params_sha256"] + base["params_sha256"]) or (
        default == 0  # absent from the program if off: other rounding
    )


def test_an_unfinished_sweep_has_no_chosen_network(sweep, tiny_experiment, tmp_path):
    shutil.copytree(sweep[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="no setting is chosen yet"):
        mnist_cnn.load(tmp_path / "run", config_of(tiny_experiment))
    shutil.copy(sweep[0] / "result.json", tmp_path / "run")  # of 40 steps, but the run has 80 now
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields | {"num_steps": 80}))
    with pytest.raises(CheckpointError, match="no setting is chosen yet"):
        mnist_cnn.load(tmp_path / "run", config_of(tiny_experiment))
    network = mnist_cnn.load(sweep[0], config_of(tiny_experiment))
    assert sha256(network.params) == sweep[1]["params_sha256"][0]


def test_the_ensemble_of_a_sweep_is_that_of_its_chosen_setting(sweep, tiny_experiment, capsys):
    workdir, result = sweep  # one of its settings diverged
    metrics = evaluate(workdir, config=config_of(tiny_experiment), seed="all")
    assert metrics["seed"] == tuple(result["seeds"]) and capsys.readouterr().err == ""
    assert metrics["correct"] == result["ensemble"]["correct"]
    assert metrics["members"]["correct"] == result["test"]["correct"]


# A sweep whose settings are runs of their own.


def fake(scores, diverging=()):
    """A training of settings of these accuracies, and the list of the calls (setting, step)."""
    calls = []

    def train(index, step):
        calls.append((index, step))
        if index in diverging:
            return {"status": "diverged"}
        return {"status": "validated", "validation_mean": {"accuracy": scores[index], "loss": None}}

    return train, calls


@given(st.lists(st.tuples(st.integers(500, 1200), st.floats(0, 1)), min_size=12, max_size=70))
def test_halving_takes_at_most_a_quarter_of_the_grid_whichever_settings_stay(settings):
    lengths, scores = zip(*settings, strict=True)
    train, calls = fake(scores)
    chosen = sweep_lib.search(sweep_lib.halving(lengths), lengths, train)[0]
    reached = dict(calls)  # the last step of each setting
    assert list(reached) == list(range(len(lengths))) and min(reached.values()) >= 1
    assert sum(reached.values()) <= sum(lengths) / 4
    assert reached[chosen] == lengths[chosen] and scores[chosen] == max(scores)


def test_the_rungs_of_nine_settings():
    rungs = [(size, int(fraction * 300)) for fraction, size in sweep_lib.halving([300] * 9)]
    assert rungs == [(9, 23), (5, 46), (3, 93), (1, 300)]
    assert 4 * 23 + 2 * 46 + 2 * 93 + 300 <= 9 * 300 / 4


def test_of_equal_settings_the_first_continue_and_one_that_diverges_is_dropped():
    rungs = sweep_lib.halving([300] * 9)
    train, calls = fake([0.5] * 9)
    assert sweep_lib.search(rungs, [300] * 9, train) == [0]
    assert [index for index, step in calls if step == 46] == [0, 1, 2, 3, 4]
    train, calls = fake([0.5] * 9, diverging=[1])
    assert sweep_lib.search(rungs, [300] * 9, train) == [0]
    assert [index for index, step in calls if step == 46] == [0, 2, 3, 4, 5]
    assert sweep_lib.search(rungs, [300] * 9, fake([0] * 9, diverging=range(9))[0]) == []


def test_if_the_best_diverges_later_the_next_best_is_trained():
    rungs = sweep_lib.halving([300] * 9)
    train, calls = fake([0.9, 0.8, *[0.1] * 7])

    def late(index, step):
        outcome = train(index, step)
        return {"status": "diverged"} if index == 0 and step == 300 else outcome

    assert sweep_lib.search(rungs, [300] * 9, late) == [1]
    assert calls[-2:] == [(0, 300), (1, 300)]


@pytest.mark.parametrize("lengths", [[300] * 4, [10] * 9, [10, 10, 10, 1000], [300]])
def test_too_few_or_too_short_settings_for_halving_are_refused_with_the_numbers(lengths):
    text = rf"{sum(lengths) // 4:,} for each seed.*best of {len(lengths)} .*up to {max(lengths):,}"
    with pytest.raises(ConfigError, match=text) as refused:
        sweep_lib.halving(lengths)
    assert "\n" not in str(refused.value) and "sweep_method='grid'" in str(refused.value)


RUNS = {
    **HALVES, "num_seeds": 2, "num_steps": 100,
    "sweep": {"learning_rate": [1e-5, 1e-4, 3e-4, 1e-2, 1e30], "batch_size": [40]},
}  # fmt: skip
HALVED = RUNS | {"sweep_method": "halving"}


@pytest.fixture(scope="module")
def grid_of_runs(tiny_experiment, tmp_path_factory):
    """Five settings, of which one diverges, two seeds each."""
    return swept(tiny_experiment, tmp_path_factory.mktemp("grid") / "run", RUNS)


@pytest.fixture(scope="module")
def halved(tiny_experiment, tmp_path_factory):
    return swept(tiny_experiment, tmp_path_factory.mktemp("halved") / "run", HALVED)


def swept(tiny_experiment, workdir, changes):
    """A run in this process: its directory, result, output, logged lines and reads of the test."""
    logged, reads, read = [], [], Dataset.read

    def count(self, split):
        reads.extend([split] if split == "test" else [])
        return read(self, split)

    def log(line):
        logged.append(line | {"arrays": sum(array.nbytes for array in jax.live_arrays())})

    with (
        mock.patch.object(Dataset, "read", count),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        result = loop.run(
            config_of(tiny_experiment, **changes), workdir, console=Console(), on_log=log
        )
    return types.SimpleNamespace(
        workdir=workdir, result=result, out=out.getvalue(), logged=logged, test_reads=reads
    )


def end_of_sweep(workdir):
    """What two runs of a sweep must agree on, to the last bit."""
    result, record = result_of(workdir), json.loads((workdir / "sweep.json").read_text())
    for outcome in [result, *(o for one in record["settings"] for o in one["at"].values())]:
        del outcome["seconds"]
    lines = [metrics_of(folder) for folder in sorted((workdir / "settings").iterdir())]
    return result, record, lines, (workdir / "predictions.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grid_of_runs", "halved"])
def test_the_chosen_setting_has_the_bits_of_its_run_alone(
    method, request, tiny_experiment, tmp_path
):
    result = request.getfixturevalue(method).result
    assert result["sweep"]["chosen"] == 3
    setting = result["sweep"]["settings"][result["sweep"]["chosen"]]
    alone = RUNS | {"sweep": None} | setting["setting"]
    plain = train(tiny_experiment, tmp_path, **alone)
    for key in ("seeds", "test", "test_mean", "ensemble", "params_sha256", "steps", "experiment"):
        assert result[key] == plain[key]
    validation = [line for line in metrics_of(tmp_path) if line["split"] == "validation"][-1]
    assert setting["validation"]["accuracy"] == validation["accuracy"]
    assert setting["status"] == "finished" and setting["steps"] == 100


@pytest.mark.slow
def test_the_ensemble_of_a_sweep_of_runs_is_that_of_its_chosen_setting(halved, tiny_experiment):
    metrics = evaluate(halved.workdir, config=config_of(tiny_experiment, **HALVED), seed="all")
    assert metrics["seed"] == tuple(halved.result["seeds"])
    assert metrics["correct"] == halved.result["ensemble"]["correct"]
    assert metrics["members"]["correct"] == halved.result["test"]["correct"]


@pytest.mark.slow
def test_a_grid_of_runs_trains_every_setting_to_its_end(grid_of_runs):
    sweep, entries = grid_of_runs.result["sweep"], grid_of_runs.result["sweep"]["settings"]
    assert [entry["status"] for entry in entries] == ["finished"] * 4 + ["diverged"]
    assert [entry["setting"] for entry in entries] == config_lib.settings(RUNS | {"variants": None})
    best = max(entry["validation_mean"]["accuracy"] for entry in entries[:4])
    assert entries[sweep["chosen"]]["validation_mean"]["accuracy"] == best
    assert sweep["method"] == "grid" and sweep["grid_steps"] == 5 * 2 * 100
    assert sweep["steps"] == 2 * sum(entry["steps"] for entry in entries) < sweep["grid_steps"]
    for index, entry in enumerate(entries):
        one = result_of(grid_of_runs.workdir / "settings" / f"{index:03}")
        finished = "finished" if index == sweep["chosen"] else "validated"
        assert one["status"] == ("diverged" if entry["status"] == "diverged" else finished)
        assert ("test" in one) == (index == sweep["chosen"])


@pytest.mark.slow
def test_halving_ends_the_worse_settings_early_and_finds_that_of_the_grid(halved, grid_of_runs):
    sweep = halved.result["sweep"]
    assert sweep["method"] == "halving" and sweep["steps"] <= sweep["grid_steps"] / 4
    assert sweep["chosen"] == grid_of_runs.result["sweep"]["chosen"]
    assert {entry["status"] for entry in sweep["settings"]} == {"finished", "stopped", "diverged"}
    for index, entry in enumerate(sweep["settings"]):
        one = result_of(halved.workdir / "settings" / f"{index:03}")
        assert entry["steps"] == one["steps"] <= 100 and one.get("validation_mean") == (
            None if index == sweep["chosen"] else entry.get("validation_mean")
        )
    assert halved.result["params_sha256"] == grid_of_runs.result["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grid_of_runs", "halved"])
def test_the_test_images_are_read_once_for_the_chosen_setting_only(method, request):
    run = request.getfixturevalue(method)
    assert run.test_reads == ["test"]
    tested = [line["setting"] for line in run.logged if line["split"] == "test"]
    assert tested == [run.result["sweep"]["chosen"]]


@pytest.mark.slow
def test_a_setting_leaves_no_arrays_on_the_device(grid_of_runs):
    arrays = {
        line["setting"]: line["arrays"]
        for line in grid_of_runs.logged
        if line["split"] == "validation"
    }
    assert list(arrays) == [0, 1, 2, 3] and 0 < arrays[3] <= arrays[0]


@pytest.mark.slow
def test_settings_of_one_shape_share_a_compiled_program(tiny_experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entries = []
    for number in (1, 3):
        changes = SHORT | {"num_steps": 4, "sweep": {"num_epochs": list(range(1, number + 1))}}
        train(tiny_experiment, tmp_path / f"run-{number}", **changes)
        entries.append(sorted(path.name for path in tmp_path.glob("mnist_cnn/compiled/*/*")))
    assert entries[0] == entries[1] != []


@pytest.mark.slow
def test_the_output_has_a_line_for_each_training_and_one_table(halved):
    out = halved.out
    assert out.count("Tiny, one image") == out.count("SHA-256") + 1 == 1
    assert "setting 4 of 5: learning_rate=0.01, batch_size=40, to step 100 of 100" in out
    assert "setting 5 of 5: learning_rate=1e+30, batch_size=40: diverged at step" in out
    sweep = halved.result["sweep"]
    assert f"{sweep['steps'] / 1000:.1%} of the grid's 1,000" in out
    rows = [line.split("|") for line in out.splitlines() if line.startswith("|   ")]
    shown = {tuple(cell.strip() for cell in row[1:4]) for row in rows}
    for entry in sweep["settings"]:
        values = (f"{value:g}" for value in entry["setting"].values())
        assert (*values, str(entry["steps"])) in shown
    assert out.count("chosen") == 1


@pytest.mark.slow
def test_a_finished_sweep_of_runs_says_so_and_does_nothing(halved, tiny_experiment, tmp_path):
    shutil.copytree(halved.workdir, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = swept(tiny_experiment, tmp_path / "run", HALVED)
    assert again.result == halved.result and "finished; nothing is left to do" in again.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"sweep": HALVED["sweep"] | {"batch_size": [30]}},
        {"sweep_method": "grid"},
        {"num_steps": 120},
        {"num_seeds": 3},
    ],
)
def test_another_or_a_longer_sweep_is_refused(changes, halved, tiny_experiment, tmp_path):
    shutil.copytree(halved.workdir, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"belongs to another|cannot be prolonged"):
        train(tiny_experiment, tmp_path / "run", **HALVED | changes)


def test_a_setting_that_cannot_be_trained_is_named_before_any_is(tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match=r"^setting batch_size=401: config\.batch_size: got 401"):
        train(tiny_experiment, tmp_path / "run", **HALVES, sweep={"batch_size": [30, 401]})
    assert not (tmp_path / "run" / "settings").exists()


@pytest.mark.slow
def test_a_sweep_of_runs_ends_if_every_setting_diverges(tiny_experiment, tmp_path):
    changes = SHORT | {"learning_rate": 1e30, "sweep": {"batch_size": [20, 40]}}
    for _ in range(2):
        with pytest.raises(Diverged, match="every setting"):
            train(tiny_experiment, tmp_path, **changes)
        assert result_of(tmp_path)["status"] == "diverged"


@pytest.mark.slow
@pytest.mark.parametrize("content", ["[]", "{", '{"settings": [{}]}', '{"settings": []}'])
def test_a_damaged_record_of_a_sweep_is_refused(content, halved, tiny_experiment, tmp_path):
    shutil.copytree(halved.workdir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "sweep.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"sweep\.json: expected"):
        train(tiny_experiment, tmp_path / "run", **HALVED)


@pytest.mark.slow
def test_a_sweep_without_its_record_does_not_compare_networks_that_are_ahead(
    halved, tiny_experiment, tmp_path
):
    shutil.copytree(halved.workdir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "sweep.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no record of step .*restore the sweep's sweep"):
        train(tiny_experiment, tmp_path / "run", **HALVED)


class StopAt(Console):
    """Sends the run a signal at the validation of that number."""

    def __init__(self, stop, number):
        super().__init__(quiet=True)
        self.stop, self.number = stop, number

    def validation(self, step, metrics):
        self.number -= 1
        if not self.number:
            self.stop.received = signal.SIGTERM


@pytest.mark.slow
def test_a_signal_stops_a_sweep_of_runs_which_resumes_to_the_same_bits(
    halved, tiny_experiment, tmp_path
):
    config = config_of(tiny_experiment, **HALVED)
    for number in (2, 4):  # in the second setting, and, after the first rung, in the next
        stop = StopRequest()
        with pytest.raises(Stopped) as stopped:
            loop.run(config, tmp_path, console=StopAt(stop, number), stop=stop)
        assert stopped.value.run_directory == str(tmp_path) and stopped.value.status == 143
    resumed = swept(tiny_experiment, tmp_path, HALVED)
    assert "validated at step" in resumed.out and "resuming from the checkpoint" in resumed.out
    assert end_of_sweep(tmp_path) == end_of_sweep(halved.workdir)


def killed(tiny_experiment, workdir, place, count):
    """Starts the sweep, which kills itself during its `count`-th write at `place`."""
    flags = [f"--config.{key}={value}" for key, value in HALVED.items()]
    command = ["--config", str(tiny_experiment), "--workdir", str(workdir), *flags]
    program = [sys.executable, str(ROOT / "tests" / "kills.py"), "--die", place, str(count)]
    return subprocess.run([*program, *command], capture_output=True, check=False).returncode


@pytest.mark.slow
def test_a_sweep_of_runs_killed_at_many_places_resumes_to_the_same_choice_and_bits(
    halved, tiny_experiment, tmp_path
):
    rng, kills = random.Random(3), 0
    while not (tmp_path / "result.json").exists():
        place, count = rng.choice(["json", "metrics", "rename"]), rng.randint(3, 12)
        status = killed(tiny_experiment, tmp_path, place, count)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
    assert kills >= 5
    assert end_of_sweep(tmp_path) == end_of_sweep(halved.workdir)


@pytest.mark.slow
def test_every_write_at_the_end_of_a_sweep_may_be_the_last(halved, tiny_experiment, tmp_path):
    write, died = run_directory.write_atomically, 0

    class Killed(BaseException):
        pass

    for count in itertools.count(1):
        workdir = tmp_path / str(count)
        shutil.copytree(halved.workdir, workdir)
        chosen = workdir / "settings" / f"{halved.result['sweep']['chosen']:03}"
        for folder in (workdir, chosen):
            (folder / "result.json").unlink()
            (folder / "predictions.npz").unlink()
        left = [count]

        def dying(path, content, left=left):
            left[0] -= 1
            if not left[0]:
                raise Killed
            write(path, content)

        with (
            mock.patch.object(run_directory, "write_atomically", dying),
            mock.patch.object(sweep_lib, "write_atomically", dying),
            contextlib.suppress(Killed),
        ):
            train(tiny_experiment, workdir, **HALVED)
        if left[0] > 0:
            break
        died += 1
        train(tiny_experiment, workdir, **HALVED)
        assert end_of_sweep(workdir) == end_of_sweep(halved.workdir)
    assert died >= 6


@pytest.mark.slow
def test_the_pauses_of_halving_do_not_change_which_step_is_kept(tiny_experiment, tmp_path):
    changes = HALVED | {"keep_best": "loss", "patience": 1, "eval_every": 9}
    result = train(tiny_experiment, tmp_path / "sweep", **changes)
    setting = result["sweep"]["settings"][result["sweep"]["chosen"]]
    alone = changes | {"sweep": None, "sweep_method": "grid"} | setting["setting"]
    plain = train(tiny_experiment, tmp_path / "alone", **alone)
    assert result["best"] == plain["best"] and result["params_sha256"] == plain["params_sha256"]
    at_best = [
        line["loss"]
        for line in metrics_of(tmp_path / "alone")
        if line["split"] == "validation" and line["step"] == plain["best"]["step"][0]
    ]
    assert setting["validation"]["loss"][0] == pytest.approx(at_best[0][0], rel=1e-6)
