"""The best validation's network is tested, and training ends when validation gets no better."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import ROOT, config_of, metrics_of, run, same_end, start

import mnist_cnn
from mnist_cnn.analysis import evaluation_text
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.console import Console

# A high learning rate on few images: validation soon gets worse.
EXPERIMENT = """
import mnist_cnn
from networks import Linear

def get_config():
    return mnist_cnn.experiment(
        name="best", model=Linear(), manual_dir={data!r}, train_split="train[:300]",
        validation_split="train[300:]", batch_size=30, num_epochs=40, learning_rate=0.03,
        num_seeds=2, seed=1338, keep_best="loss", patience=4, checkpoint_every=15, keep=100,
        report=False,
    )
"""


@pytest.fixture(scope="module")
def experiment(small_mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "best.py"
    path.write_text(EXPERIMENT.format(data=str(small_mnist)))
    return path


@pytest.fixture(scope="module")
def stopped_early(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("best") / "run"
    result = mnist_cnn.run(config_of(experiment), workdir, quiet=True)
    return workdir, result


def validations(workdir):
    """step -> validation losses [R]."""
    lines = [line for line in metrics_of(workdir) if line["split"] == "validation"]
    return {line["step"]: np.atleast_1d(line["loss"]) for line in lines}


def test_the_networks_of_the_best_validation_are_tested_and_loaded(experiment, stopped_early):
    workdir, result = stopped_early
    losses = validations(workdir)
    steps = [min(losses, key=lambda step: losses[step][index]) for index in (0, 1)]
    assert result["best"]["step"] == steps and max(steps) < result["steps"]
    config = config_of(experiment)
    for index, seed in enumerate(result["seeds"]):
        network = mnist_cnn.load(workdir, config, seed)
        assert network.step == steps[index]
        assert sha256(network.variables) == result["params_sha256"][index]
        found = evaluate(workdir, config=config, seed=seed)
        assert found["accuracy"] == result["test"]["accuracy"][index]
        assert found["step"] == steps[index]
        validated = evaluate(workdir, "train[300:]", config=config, seed=seed)
        assert validated["loss"] == pytest.approx(losses[steps[index]][index], rel=1e-6)


def test_training_ends_when_no_network_got_better_for_that_long(stopped_early):
    workdir, result = stopped_early
    losses, waited = validations(workdir), []
    for index in (0, 1):
        of_one = [losses[step][index] for step in sorted(losses)]
        waited.append(len(of_one) - 1 - int(np.argmin(of_one)))
    assert min(waited) == 4 and result["steps"] == max(losses) < 400
    lines = [line["split"] for line in metrics_of(workdir) if line["step"] == result["steps"]]
    assert lines == ["train", "validation", "test"]
    assert (workdir / "checkpoints" / str(result["steps"])).exists()


def test_a_run_that_ended_early_is_finished_and_resumes_to_its_end(
    experiment, stopped_early, tmp_path, capsys
):
    workdir, result = stopped_early
    shutil.copytree(workdir, tmp_path / "run")
    assert mnist_cnn.run(config_of(experiment), tmp_path / "run", quiet=True) == result
    for name in ("result.json", "predictions.npz"):  # killed before them
        (tmp_path / "run" / name).unlink()
    mnist_cnn.run(config_of(experiment), tmp_path / "run")
    steps = ", ".join(map(str, result["best"]["step"]))
    said = f"ended at step {result['steps']}: in 4 validations no better loss than at step {steps}"
    assert said in capsys.readouterr().out
    same_end(tmp_path / "run", workdir)
    for step in sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()):
        if step > 30:  # killed after the checkpoint of step 30
            shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    (tmp_path / "run" / "result.json").unlink()
    mnist_cnn.run(config_of(experiment), tmp_path / "run", quiet=True)
    same_end(tmp_path / "run", workdir)


def test_the_network_of_any_kept_checkpoint_can_be_loaded(experiment, stopped_early, tmp_path):
    config = config_of(experiment)
    network = mnist_cnn.load(stopped_early[0], config, step=30)
    plain = config_of(experiment, keep_best=None, patience=None, num_steps=30, num_epochs=1)
    short = mnist_cnn.run(plain, tmp_path, quiet=True)
    assert network.step == 30 and sha256(network.variables) == short["params_sha256"][0]
    best = stopped_early[1]["best"]["step"][0]  # the step that every command names
    network = mnist_cnn.load(stopped_early[0], config, step=best)
    assert sha256(network.variables) == stopped_early[1]["params_sha256"][0]
    assert "params" not in repr(network) and f"step={best}" in repr(network)
    with pytest.raises(CheckpointError, match="no checkpoint of step 31; there are those of 15,"):
        mnist_cnn.load(stopped_early[0], config, step=31)


def test_an_ensemble_has_the_best_of_each_seed_or_all_of_one_checkpoint(
    experiment, stopped_early, hundred_images, capsys
):
    workdir, result = stopped_early
    config, images = config_of(experiment), np.asarray(hundred_images.images)
    ensemble = mnist_cnn.load(workdir, config, seed="all")
    assert ensemble.step == tuple(result["best"]["step"]) and len(set(ensemble.step)) == 2
    for seed, logits in zip(result["seeds"], ensemble.all_logits(images)[1:], strict=True):
        np.testing.assert_array_equal(logits, mnist_cnn.load(workdir, config, seed)(images))
    early = mnist_cnn.load(workdir, config, seed="all", step=30)
    assert early.step == 30
    for seed, logits in zip(result["seeds"], early.all_logits(images)[1:], strict=True):
        np.testing.assert_array_equal(logits, mnist_cnn.load(workdir, config, seed, 30)(images))
    with pytest.raises(CheckpointError, match="no checkpoint of step 31; there are those of 15,"):
        mnist_cnn.load(workdir, config, seed="all", step=31)
    best = ensemble.step[0]  # of one seed: no checkpoint has that of the other
    with pytest.raises(CheckpointError, match=f"no checkpoint of step {best}; there are"):
        mnist_cnn.load(workdir, config, seed="all", step=best)
    metrics = evaluate(workdir, config=config, seed="all")
    assert metrics["correct"] == result["ensemble"]["correct"]
    evaluation_text.show(Console(), metrics)
    steps = "steps {}, {}".format(*result["best"]["step"])
    assert capsys.readouterr().out.startswith(
        f"mnist test, ensemble of seeds 1338 to 1339, {steps}\n"
    )


@pytest.mark.slow
def test_without_patience_training_goes_on_and_an_average_is_kept_too(experiment, tmp_path):
    config = config_of(
        experiment, patience=None, num_epochs=1, num_steps=60, num_seeds=1, ema=0.9,
        keep_best="accuracy",
    )  # fmt: skip
    result = mnist_cnn.run(config, tmp_path, quiet=True)
    assert result["steps"] == 60
    by_step = {
        line["step"]: line["accuracy"] for line in metrics_of(tmp_path)
        if line["split"] == "validation"
    }  # fmt: skip
    assert result["best"]["step"] == [max(by_step, key=by_step.get)]  # the first of equals
    validated = evaluate(tmp_path, "train[300:]", config=config)
    assert validated["accuracy"] == max(by_step.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation_split": None}, "config.keep_best: expected a validation_split"),
        ({"keep_best": "los"}, "config.keep_best: got 'los', expected accuracy, loss or None"),
        ({"keep_best": None}, "config.patience: expected keep_best as well"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, said, experiment, tmp_path):
    with pytest.raises(ConfigError) as error:
        mnist_cnn.run(config_of(experiment, **changes), tmp_path / "run")
    assert said in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["eval_every", "eval_batch_size"])
def test_a_run_resumes_with_the_validations_of_which_it_keeps_the_best(
    field, experiment, stopped_early
):
    changed = config_of(experiment, **{field: 20})
    with pytest.raises(ConfigError, match=f"{field}: was .*, now 20, and keep_best depends on it"):
        mnist_cnn.run(changed, stopped_early[0], quiet=True)
    assert mnist_cnn.load(stopped_early[0], changed).step == stopped_early[1]["best"]["step"][0]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_choice_and_bits(experiment, stopped_early, tmp_path):
    command = ("mnist_cnn.main", "--config", experiment, "--workdir", tmp_path / "run")
    tests = str(ROOT / "tests")
    for step in (15, 45):
        process = start(*command, PYTHONPATH=tests)
        folder = tmp_path / "run" / "checkpoints" / str(step)
        while not folder.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    run(*command, PYTHONPATH=tests)
    same_end(tmp_path / "run", stopped_early[0])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"] == stopped_early[1]["best"]
