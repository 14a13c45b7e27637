"""The temperature that a run fits on its validation split, and the probabilities with it."""

import shutil

import numpy as np
import pytest
from conftest import config_of, read_idx, result_of, same_end
from networks import Linear

import mnist_cnn
from mnist_cnn import statistics
from mnist_cnn.analysis import evaluation_text, export_formats
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.runner import result_text
from mnist_cnn.runner.console import Console

NAMES = ("negative_log_likelihood", "expected_calibration_error")


def config_with(small_mnist, **changes):
    fields = {"train_split": "train[:300]", "validation_split": "train[300:]", "num_seeds": 2}
    fields |= {"model": Linear(), "batch_size": 30, "num_steps": 40, "learning_rate": 0.03}
    fields |= {"manual_dir": str(small_mnist), "label_smoothing": 0.3, "checkpoint_every": 20}
    return mnist_cnn.experiment(name="calibrated", report=False, **fields | changes)


@pytest.fixture(scope="module")
def trained(small_mnist, tmp_path_factory):
    """The configuration and the directory of a run of two seeds, and its result."""
    config, workdir = config_with(small_mnist), tmp_path_factory.mktemp("calibrated") / "run"
    return config, workdir, mnist_cnn.run(config, workdir, quiet=True)


def of_idx(part, count):
    images, labels = (read_idx(f"{part}-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
    return images[:count], labels[:count]


def softmax(logits):
    return np.exp(statistics.log_probabilities(logits))


def test_the_temperature_is_fitted_on_the_validation_split_and_the_test_scored_with_it(trained):
    config, workdir, result = trained
    images, labels = of_idx("train", 500)
    tested, test_labels = of_idx("t10k", 250)
    found = result["calibrated"]
    assert found["split"] == "train[300:]"
    for index, seed in enumerate(result["seeds"]):
        network = mnist_cnn.load(workdir, config, seed)
        fitted = statistics.fit_temperature(network(images[300:]), labels[300:])
        assert found["temperature"][index] == pytest.approx(fitted, rel=1e-6)
        assert network.temperatures == (found["temperature"][index],) and fitted < 0.9
        logits = network(tested).astype(np.float64) / found["temperature"][index]
        metrics = statistics.classification_metrics(logits, test_labels)
        assert [found[name][index] for name in NAMES] == pytest.approx([metrics[n] for n in NAMES])
        plain = statistics.classification_metrics(network(tested), test_labels)
        assert metrics[NAMES[0]] < plain[NAMES[0]]
        assert metrics["classes"] == plain["classes"]  # no answer changes
        np.testing.assert_allclose(network.probabilities(tested), softmax(logits), rtol=1e-9)


def test_evaluate_says_what_the_temperature_changes_and_what_a_run_without_one_needs(
    trained, undisturbed, tiny_experiment, capsys
):
    config, workdir, result = trained
    metrics = evaluate(workdir, config=config, seed=1338)
    found = {name: result["calibrated"][name][1] for name in ("temperature", *NAMES)}
    assert metrics["calibrated"] == pytest.approx(found | {"split": "train[300:]"})
    assert metrics["expected_calibration_error"] == result["test"]["expected_calibration_error"][1]
    evaluation_text.show(Console(), metrics)
    result_text.show(Console(), result, "x")
    text = f"with the temperature {found['temperature']:.4f}, fitted on train[300:]: negative log-"
    out = capsys.readouterr().out
    assert text in out and "mean of the seeds: with the temperature" in out
    other = evaluate(undisturbed[0], config=config_of(tiny_experiment))
    assert other["calibrated"] is None and "calibrated" not in result_of(undisturbed[0])
    evaluation_text.show(Console(), other)
    assert "no temperature is fitted; docs/reports.md#calibration" in capsys.readouterr().out


def test_an_ensemble_has_a_temperature_of_its_own(trained):
    config, workdir, result = trained
    images, labels = of_idx("train", 500)
    tested = of_idx("t10k", 250)[0]
    network, found = mnist_cnn.load(workdir, config, seed="all"), result["calibrated"]
    fitted = statistics.fit_temperature(network(images[300:]), labels[300:])
    assert found["ensemble"]["temperature"] == pytest.approx(fitted, rel=1e-5)
    assert network.temperatures == (found["ensemble"]["temperature"], *found["temperature"])
    expected = softmax(network.all_logits(tested) / np.reshape(network.temperatures, (3, 1, 1)))
    np.testing.assert_allclose(network.all_probabilities(tested), expected, rtol=1e-5)
    evaluated = evaluate(workdir, config=config, seed="all")["calibrated"]
    assert evaluated.pop("split") == "train[300:]"
    assert evaluated == pytest.approx(found["ensemble"], rel=1e-4)


@pytest.mark.parametrize("seed", [None, 1338, "all"])
def test_a_file_keeps_the_temperatures(seed, trained, tmp_path):
    config, workdir, _ = trained
    network = mnist_cnn.load(workdir, config, seed)
    path = tmp_path / "network.safetensors"
    path.write_bytes(export_formats.safetensors(network))
    again = mnist_cnn.load(path, config)
    assert again.temperatures == network.temperatures
    assert export_formats.safetensors(again) == path.read_bytes()
    if seed == "all":
        member = mnist_cnn.load(path, config, seed=1338)
        assert member.temperatures == mnist_cnn.load(workdir, config, 1338).temperatures


def test_a_network_of_another_step_has_no_temperature(trained):
    config, workdir, _ = trained
    assert mnist_cnn.load(workdir, config, step=40).temperatures
    assert mnist_cnn.load(workdir, config, step=20).temperatures == ()
    assert mnist_cnn.load(workdir, config, seed="all", step=20).temperatures == ()


def test_a_run_that_is_killed_before_its_end_fits_the_same_temperature(trained, tmp_path):
    config, workdir, result = trained
    copy = shutil.copytree(workdir, tmp_path / "run")
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "40")
    again = mnist_cnn.run(config, copy, quiet=True)
    assert again["calibrated"] == result["calibrated"]
    same_end(copy, workdir)


def test_a_sweep_has_the_temperature_of_its_chosen_setting(small_mnist, tmp_path):
    config = config_with(small_mnist, num_seeds=1, sweep={"learning_rate": [1e-6, 0.03]})
    result = mnist_cnn.run(config, tmp_path, quiet=True)
    assert result["sweep"]["chosen"] == 1
    network = mnist_cnn.load(tmp_path, config)
    images, labels = of_idx("train", 500)
    fitted = statistics.fit_temperature(network(images[300:]), labels[300:])
    assert network.temperatures == tuple(result["calibrated"]["temperature"])
    assert network.temperatures[0] == pytest.approx(fitted, rel=1e-6)


def test_no_temperature_is_fitted_to_a_network_that_knows_none(small_mnist, tmp_path):
    config = config_with(
        small_mnist, num_seeds=1, loss="cross_entropy_or_none", label_smoothing=0.0, num_steps=5
    )
    assert "calibrated" not in mnist_cnn.run(config, tmp_path, quiet=True)
    assert mnist_cnn.load(tmp_path, config).temperatures == ()
