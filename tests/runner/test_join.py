"""`python -m mnist_cnn.join`: runs of different seeds become one run of all seeds."""

import json
import shutil

import pytest
from conftest import config_of, metrics_of, repack, result_of, run, with_another_pixel

from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.join import join
from mnist_cnn.runner.loop import run as run_config


def train(tiny_experiment, workdir, **changes):
    config = config_of(tiny_experiment)
    with config.unlocked():
        config.update(changes)
    return run_config(config, workdir, console=Console(quiet=True))


@pytest.fixture(scope="module")
def three_seeds(tiny_experiment, tmp_path_factory):
    """The run directory and the result of one run of three seeds."""
    workdir = tmp_path_factory.mktemp("seeds") / "run"
    return workdir, train(tiny_experiment, workdir, num_seeds=3, seed=1336)


@pytest.fixture(scope="module")
def apart(undisturbed, tiny_experiment, tmp_path_factory):
    """The run directories of the same seeds, trained apart."""
    folder = tmp_path_factory.mktemp("apart")
    for seed in (1336, 1338):
        train(tiny_experiment, folder / str(seed), seed=seed, name=f"alone{seed}")
    return {1336: folder / "1336", 1337: undisturbed[0], 1338: folder / "1338"}


@pytest.mark.slow
def test_joined_runs_give_the_result_of_one_run(three_seeds, apart, tiny_experiment, tmp_path):
    joined = tmp_path / "joined"
    out, _ = run("mnist_cnn.join", *reversed(apart.values()), "--workdir", joined)
    overrides = ["--config.name=alone1336", "--config.seed=1336", "--config.num_seeds=3"]
    assert "3 seeds from 1336" in out
    assert out.split()[-4:] == [*overrides, f"--workdir={joined}"]
    assert not (joined / "result.json").exists()
    run("mnist_cnn.main", "--config", tiny_experiment, *overrides, "--workdir", joined)
    tested, (workdir, together) = result_of(joined), three_seeds
    for key in ("seeds", "test", "test_mean", "ensemble", "params_sha256", "steps"):
        assert tested[key] == together[key], key
    alone = [result_of(part)["seconds"]["train"] for part in (apart[1336], apart[1338])]
    assert tested["seconds"]["train"] > sum(alone)
    assert metrics_of(joined) == metrics_of(workdir)
    origins = json.loads((joined / "environment.json").read_text())["joined"]
    assert [one["seeds"] for one in origins] == [[1336], [1337], [1338]]
    for one, part in zip(origins, apart.values(), strict=True):
        assert one["environment"] == json.loads((part / "environment.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["joined"]


@pytest.mark.slow
def test_joined_metrics_are_those_of_the_same_steps(tiny_experiment, tmp_path):
    split = {"train_split": "train[:400]", "validation_split": "train[400:]"}
    for seed, log_every in ((1, 10), (2, 10), (3, 20)):
        train(tiny_experiment, tmp_path / str(seed), seed=seed, log_every=log_every, **split)
    train(tiny_experiment, tmp_path / "two", seed=1, num_seeds=2, log_every=10, **split)
    join([tmp_path / "1", tmp_path / "2"], tmp_path / "joined")
    assert metrics_of(tmp_path / "joined") == [
        line for line in metrics_of(tmp_path / "two") if line["split"] != "test"
    ]
    join([tmp_path / "two", tmp_path / "3"], tmp_path / "three")
    lines = metrics_of(tmp_path / "three")
    assert {line["split"] for line in lines} == {"validation"}
    assert {len(line["accuracy"]) for line in lines} == {3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1339}, "got the seeds 1337, 1339, expected consecutive seeds, each once"),
        ({"seed": 1337}, "got the seeds 1337, 1337, expected consecutive seeds, each once"),
        ({"seed": 1338, "learning_rate": 0.01}, "learning_rate: was 0.001, now 0.01"),
        ({"seed": 1338, "num_steps": 20}, "at 20; resume the shorter run first"),
        ({"seed": 1338, "sweep": {"b1": [0.9, 0.8]}, "validation_split": "train[400:]",
          "train_split": "train[:400]"}, "a sweep; only seeds of one setting"),
    ],
)  # fmt: skip
def test_runs_that_do_not_belong_together_are_refused(
    undisturbed, tiny_experiment, tmp_path, changes, message
):
    train(tiny_experiment, tmp_path / "other", **changes)
    with pytest.raises(CheckpointError) as error:
        join([undisturbed[0], tmp_path / "other"], tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.slow
def test_joined_runs_go_on_with_the_sums_of_the_experiments_metrics(tiny_experiment, tmp_path):
    def certain(logits, labels):
        return (logits.max(-1) > 1).astype(logits.dtype)

    changes = {"seed": 1, "metrics": {"certain": certain}}
    for seed in (1, 2):
        train(tiny_experiment, tmp_path / str(seed), **changes | {"seed": seed})
        shutil.rmtree(tmp_path / str(seed) / "checkpoints" / "40")  # 30 is left, after line 28
    join([tmp_path / "1", tmp_path / "2"], tmp_path / "joined")
    for name in ("joined", "together"):
        train(tiny_experiment, tmp_path / name, **changes, num_seeds=2)
    assert metrics_of(tmp_path / "joined") == metrics_of(tmp_path / "together")


def test_join_needs_good_checkpoints_and_overwrites_nothing(
    undisturbed, three_seeds, tmp_path, capsys
):
    with pytest.raises(CheckpointError, match=r"not a run directory, it contains no config\.json"):
        join([undisturbed[0], tmp_path], tmp_path / "out")
    (tmp_path / "begun").mkdir()
    shutil.copy(undisturbed[0] / "config.json", tmp_path / "begun")
    with pytest.raises(CheckpointError, match="no checkpoint yet; resume the run first"):
        join([undisturbed[0], tmp_path / "begun"], tmp_path / "out")
    with pytest.raises(CheckpointError, match="it exists already; give another directory"):
        join([undisturbed[0], undisturbed[0]], three_seeds[0])
    other = tmp_path / "other"
    shutil.copytree(undisturbed[0], other)
    config = json.loads((other / "config.json").read_text())
    del config["shear"]  # a field that older runs lack
    (other / "config.json").write_text(json.dumps(config | {"seed": 1338}))
    join([undisturbed[0], other], tmp_path / "joined")
    environment = json.loads((undisturbed[0] / "environment.json").read_text())
    (other / "environment.json").write_text(json.dumps(environment | {"num_threads": 3}))
    with pytest.raises(CheckpointError, match="num_threads: was 2, now 3"):
        join([undisturbed[0], other], tmp_path / "out")
    shutil.copy(undisturbed[0] / "environment.json", other)
    shutil.rmtree(other / "checkpoints" / "40" / "tree")
    with pytest.raises(CheckpointError, match=r"at step 40, .*other at 30; resume the shorter"):
        join([undisturbed[0], other], tmp_path / "out")
    assert "other: checkpoint 40 is damaged" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["zipped", "renamed"])
def test_runs_of_the_same_images_in_other_files_are_joined(
    form, undisturbed, tiny_experiment, small_mnist, tmp_path
):
    folder = repack(small_mnist, tmp_path / "data", form)
    train(tiny_experiment, tmp_path / "other", seed=1338, manual_dir=str(folder))
    assert join([undisturbed[0], tmp_path / "other"], tmp_path / "joined")["num_seeds"] == 2


def test_runs_of_other_images_are_not_joined(undisturbed, tiny_experiment, small_mnist, tmp_path):
    folder = with_another_pixel(small_mnist, tmp_path / "data")
    train(tiny_experiment, tmp_path / "other", seed=1338, manual_dir=str(folder))
    with pytest.raises(CheckpointError, match=r"their images or labels differ.*; give runs") as got:
        join([undisturbed[0], tmp_path / "other"], tmp_path / "joined")
    assert "\n" not in str(got.value) and not (tmp_path / "joined").exists()


@pytest.mark.parametrize(
    ("runs", "status", "message"),
    [(["one"], 2, "expected RUN RUN"), (["one", "two"], 1, "one: not a run directory")],
)
def test_join_reports_errors_in_one_line(runs, status, message, tmp_path):
    _, err = run("mnist_cnn.join", *runs, "--workdir", tmp_path / "out", status=status)
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_experiment_files_are_noted_and_all_are_kept(apart, tmp_path):
    lines = []
    join([apart[1336], apart[1337]], tmp_path / "same", lines.append)
    assert lines == [] and len(list((tmp_path / "same").glob("experiment-*.py"))) == 1
    other = shutil.copytree(apart[1337], tmp_path / "other")
    environment = json.loads((other / "environment.json").read_text())
    environment["experiment"]["sha256"] = "0" * 64
    (other / "environment.json").write_text(json.dumps(environment))
    (other / "experiment-00000000.py").write_text("changed = True\n")
    join([apart[1336], other], tmp_path / "joined", lines.append)
    assert len(lines) == 1 and lines[0].startswith("note: the experiment files of the runs differ")
    assert len(list((tmp_path / "joined").glob("experiment-*.py"))) == 2
