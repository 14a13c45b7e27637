"""`python -m mnist_cnn.evaluate`: the metrics of the run again, and more of them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import (
    MNIST,
    config_of,
    read_idx,
    repack,
    result_of,
    run,
    start,
    with_another_pixel,
)  # fmt: skip

import mnist_cnn
from mnist_cnn import statistics
from mnist_cnn.analysis import evaluation_text
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.config import fields, validate
from mnist_cnn.data import doubtful
from mnist_cnn.data.dataset import open_dataset
from mnist_cnn.errors import CheckpointError, ConfigError, DataError
from mnist_cnn.runner import results
from mnist_cnn.runner.console import Console


@pytest.fixture(scope="module")
def metrics(trained_base):
    """The metrics of the base network on the test split."""
    out, err = run("mnist_cnn.evaluate", "--workdir", trained_base, "--json")
    assert err == ""
    return json.loads(out)


def own_metrics(workdir):
    """The metrics in result.json, as `evaluate` returns them."""
    test = result_of(workdir)["test"]
    return {"examples": test["examples"]} | {
        key: test[key][0] for key in ("accuracy", "loss", "correct")
    }


def test_evaluate_gives_the_metrics_of_the_run_to_the_last_digit(trained_base, metrics):
    assert metrics["examples"] == 10_000
    assert own_metrics(trained_base).items() <= metrics.items()


def test_an_experiment_may_not_name_a_metric_as_these(metrics):
    reserved = {*fields.RESERVED_METRICS, "confusion_matrix"}
    assert metrics.keys() <= reserved, metrics.keys() - reserved
    for name in ("seed", "negative_log_likelihood"):
        config = {**mnist_cnn.experiment(metrics={name: lambda logits, labels: labels})}
        with pytest.raises(ConfigError, match="a new name of the form"):
            validate(config)


def test_table_shows_the_metrics_of_the_json(metrics, capsys):
    evaluation_text.show(Console(), metrics)
    out = capsys.readouterr().out
    assert f"accuracy {metrics['accuracy']!r}" in out and f"loss {metrics['loss']!r}" in out
    assert "\nexpected calibration error" in out and "\\n" not in out
    row = metrics["classes"][1]
    cells = next(line for line in out.splitlines() if line.startswith("|     1 |")).split("|")
    assert cells[3].strip() == f"{row['recall']:.2%}" and cells[4].strip() == f"{row['examples']:,}"


@pytest.mark.slow
def test_other_splits_and_datasets_are_scored_completely(undisturbed, tiny_experiment, tmp_path):
    config = config_of(tiny_experiment)
    other = evaluate(undisturbed[0], "train[450:]", config=config)
    assert other["examples"] == 50 and other["split"] == "train[450:]"
    assert other["loss"] != own_metrics(undisturbed[0])["loss"]
    images, labels = read_idx("t10k-images-idx3-ubyte")[:90], read_idx("t10k-labels-idx1-ubyte")
    for part in ("train", "t10k"):
        header = np.array([2051, 90, 28, 28], ">i4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([2049, 90], ">i4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[:90].tobytes())
    other = evaluate(
        undisturbed[0], dataset="fashion_mnist", manual_dir=str(tmp_path), config=config
    )
    assert other["examples"] == 90 and other["dataset"] == "fashion_mnist"


@pytest.mark.slow
def test_custom_module_is_required_and_then_used(undisturbed, tiny_experiment):
    with pytest.raises(CheckpointError, match="--config EXPERIMENT"):
        evaluate(undisturbed[0])
    metrics = evaluate(undisturbed[0], config=config_of(tiny_experiment))
    assert own_metrics(undisturbed[0]).items() <= metrics.items()


def moved_to(run_directory, folder, workdir):
    """A copy of a run directory whose data is in another folder."""
    shutil.copytree(run_directory, workdir)
    saved = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(saved | {"manual_dir": str(folder)}))
    return workdir


@pytest.mark.slow
def test_changed_data_is_refused(undisturbed, tiny_experiment, small_mnist, tmp_path):
    changed = with_another_pixel(small_mnist, tmp_path / "changed")
    moved = moved_to(undisturbed[0], changed, tmp_path / "run")
    config = config_of(tiny_experiment)
    with pytest.raises(DataError, match=r"other images or labels .* --manual_dir") as error:
        evaluate(moved, config=config)
    assert "\n" not in str(error.value)
    assert evaluate(moved, manual_dir=str(changed), config=config)["examples"] == 250


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zipped", "renamed"])
def test_same_images_in_other_files_are_the_runs_data(
    form, undisturbed, tiny_experiment, small_mnist, tmp_path
):
    folder = repack(small_mnist, tmp_path / "data", form)
    moved = moved_to(undisturbed[0], folder, tmp_path / "run")
    metrics = evaluate(moved, config=config_of(tiny_experiment))
    assert own_metrics(undisturbed[0]).items() <= metrics.items()


def test_errors_of_evaluate_are_one_line(tmp_path):
    cases = [
        ((), 2, "--workdir"),
        (("--workdir", "nowhere\x1b[31m"), 1, r"nowhere\x1b[31m"),
        (("--workdir", "x", "stray"), 2, "flags only"),
    ]
    processes = [start("mnist_cnn.evaluate", *case[0], cwd=tmp_path) for case in cases]
    for process, (_, status, message) in zip(processes, cases, strict=True):
        out, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        assert message in err and "\x1b" not in err
    assert list(tmp_path.iterdir()) == []


def test_commands_can_be_imported_together_and_import_nothing_heavy():
    code = (
        "import sys, mnist_cnn\n"
        "assert not {'numpy', 'absl', 'ml_collections'} & set(sys.modules)\n"
        "from mnist_cnn import demo, evaluate, export, join, main, predict, report\n"
        "assert not {'jax', 'matplotlib', 'gradio', 'orbax', 'onnx'} & set(sys.modules)\n"
        "from absl import flags; assert not {'split', 'json', 'output'} & set(flags.FLAGS)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_precision_and_recall_are_those_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])
    logits = np.where(np.arange(10) == predicted[:, None], 5.0, 0.0).astype(np.float32)
    classes = statistics.classification_metrics(logits, labels)["classes"]
    assert classes[0] == {"precision": 2 / 4, "recall": 2 / 3, "examples": 3, "predicted": 4}
    assert classes[1] == {"precision": 1 / 2, "recall": 1 / 2, "examples": 2, "predicted": 2}
    assert classes[2] == {"precision": None, "recall": 0.0, "examples": 1, "predicted": 0}
    assert classes[9] == {"precision": None, "recall": None, "examples": 0, "predicted": 0}


def test_calibration_and_likelihood_follow_their_definitions():
    # Confidence 80 % eight times, six of them correct; 30 % twice, none of them correct.
    def row(p, answer):
        rest = (1 - p) / 9
        return np.log(np.where(np.arange(10) == answer, p, rest))

    logits = np.stack([row(0.8, 3)] * 8 + [row(0.3, 5)] * 2)
    labels = np.array([3] * 6 + [4] * 4)
    metrics = statistics.classification_metrics(logits, labels)
    expected = (8 * abs(0.8 - 6 / 8) + 2 * abs(0.3 - 0)) / 10
    assert metrics["expected_calibration_error"] == pytest.approx(expected)
    likelihood = -(6 * np.log(0.8) + 2 * np.log(0.2 / 9) + 2 * np.log(0.7 / 9)) / 10
    assert metrics["negative_log_likelihood"] == pytest.approx(likelihood)
    assert statistics.calibration(logits, labels).count.sum() == 10


def test_the_temperature_is_the_one_with_the_lowest_likelihood():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 10)).astype(np.float32)
    p = np.exp(statistics.log_probabilities(logits))
    labels = (p.cumsum(1) < rng.uniform(size=(4000, 1))).sum(1).clip(0, 9)  # drawn from them

    def likelihood(logits, temperature):
        metrics = statistics.classification_metrics(logits / temperature, labels)
        return metrics["negative_log_likelihood"]

    for scale in (0.4, 1, 2.5):
        found = statistics.fit_temperature(logits * scale, labels)
        assert found == pytest.approx(scale, rel=0.05)
        scaled = (logits * scale).astype(np.float64)
        best = likelihood(scaled, found)
        assert best < min(likelihood(scaled, found * 1.001), likelihood(scaled, found / 1.001))


def test_no_temperature_is_fitted_if_the_best_is_0_or_infinite():
    logits = np.eye(10, dtype=np.float32)[[3, 4, 5]]
    assert statistics.fit_temperature(logits, np.array([3, 4, 5])) == 1  # all correct
    assert statistics.fit_temperature(logits, np.array([4, 5, 6])) == 1  # all wrong
    assert statistics.fit_temperature(logits * np.nan, np.array([3, 4, 5])) == 1
    mixed = statistics.fit_temperature(logits, np.array([3, 4, 6]))
    assert np.exp(1 / mixed) / (np.exp(1 / mixed) + 9) == pytest.approx(2 / 3)  # by hand


def test_the_doubtful_images_are_those_of_mnists_test_set_whatever_the_files(metrics, tmp_path):
    images = doubtful.votes()
    labels = read_idx("t10k-labels-idx1-ubyte")
    assert len(images) == 15
    for index, image in images.items():
        assert image["given_label"] == labels[index] and image["votes"]["given"] < 3
    found = metrics["doubtful"]
    assert (found["examples"], found["examples_without"]) == (15, 9985)
    assert found["correct_without"] - found["missed"] == metrics["correct"] - 15
    assert found["accuracy_without"] == found["correct_without"] / 9985
    folder = shutil.copytree(MNIST, tmp_path / "data", ignore=shutil.ignore_patterns("*.[mj]*"))
    source = open_dataset("mnist", folder)
    data, rows = source.describe(), source.rows("train[940:950]+test[940:950]+test[9729:]")
    assert doubtful.places(data).tolist() == sorted(images)
    assert doubtful.places(data, rows).tolist() == [10 + 7, 10 + 10]
    assert not len(doubtful.places(data, [])) and not len(doubtful.places({}))
    other = data | {"content_sha256": data["content_sha256"] | {"test": "another"}}
    assert not len(doubtful.places(other))


def test_the_accuracy_without_doubtful_images_is_printed(metrics, capsys):
    found = metrics["doubtful"]
    assert 4 <= found["missed"] <= 15
    evaluation_text.show(Console(), metrics)
    line = next(line for line in capsys.readouterr().out.splitlines() if "in doubt" in line)
    assert line == (
        f"accuracy {found['accuracy_without']!r} ({found['correct_without']:,} of 9,985) without "
        f"the images whose label is in doubt, of which it misses {found['missed']} of 15"
    )
    alone = doubtful.summarize(np.array([False]), np.array([0]))
    evaluation_text.show(Console(), metrics | {"doubtful": alone})
    assert "\nthe label of all images is in doubt\n" in capsys.readouterr().out


def test_probabilities_of_large_logits_are_finite():
    log_p = statistics.log_probabilities(np.array([[1000.0, 0, 0, 0, 0, 0, 0, 0, 0, -1000.0]]))
    assert log_p[0, 0] == 0 and log_p[0, 9] == -2000


def test_seeds_are_compared_by_students_t():
    from scipy import stats

    a, b = np.array([0.981, 0.985, 0.983]), np.array([0.984, 0.987, 0.988])
    ours = statistics.compare_over_seeds(a, b)
    theirs = stats.ttest_rel(b, a)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert "3 seeds" in ours.method


def power_of_paired_t(effect, seeds, level):
    from scipy import stats

    limit, distribution = (
        stats.t.isf(level / 2, seeds - 1),
        stats.nct(seeds - 1, effect * seeds**0.5),
    )
    return distribution.sf(limit) + distribution.cdf(-limit)


def test_the_number_of_seeds_is_the_smallest_with_the_power():
    # Of a two-sided test at 5 % with 80 % power: the values that G*Power 3.1 gives.
    assert [statistics.seeds_needed(effect) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]
    for effect, comparisons in ((0.03, 1), (0.4, 3), (1.0, 1), (1.5, 10), (2.0, 1)):
        needed, level = statistics.seeds_needed(effect, comparisons), 0.05 / comparisons
        assert power_of_paired_t(effect, needed, level) >= 0.8
        assert power_of_paired_t(effect, needed - 1, level) < 0.8
    assert statistics.seeds_needed(0.0) is None  # more than 100,000
    assert statistics.seeds_needed(float("inf")) == 2


def test_the_effect_size_is_the_mean_over_the_standard_deviation():
    a, b = np.array([0.981, 0.985, 0.983]), np.array([0.984, 0.987, 0.988])
    found = statistics.compare_over_seeds(a, b).effect_size
    assert found == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    assert statistics.compare_over_seeds(a, a).effect_size == 0
    assert statistics.compare_over_images(a > 0.982, b > 0.982).effect_size is None


def holm_by_its_steps(p):
    """Rejects the smallest p at level / m, the next at level / (m - 1), until one is not rejected.

    The corrected p is the lowest level at which this rejects.
    """
    levels = [(len(p) - i) * value for i, value in enumerate(sorted(p))]
    return [min(1.0, max(levels[: sorted(p).index(value) + 1])) for value in p]


def test_p_values_are_corrected_by_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.2]) == [0.2] and statistics.holm([]) == []
    p = np.random.default_rng(0).uniform(0, 0.3, (20, 7)).round(3)
    for row in p.tolist():
        assert statistics.holm(row) == pytest.approx(holm_by_its_steps(row))


def test_ensemble_with_an_infinite_loss_has_a_result():
    logits = np.zeros((2, 1, 10), np.float32)
    logits[:, :, 3] = 2000  # the probability of any other class is 0 in float64
    found = results.ensemble_metrics(logits, np.array([4]))
    assert found["loss"] is None and found["correct"] == 0
    json.dumps(found, allow_nan=False)


def test_images_are_compared_by_mcnemars_exact_test():
    from scipy import stats

    a = np.array([True] * 90 + [False] * 10)
    b = np.array([True] * 85 + [False] * 5 + [True] * 8 + [False] * 2)  # 8 gained, 5 lost
    ours = statistics.compare_over_images(a, b)
    assert ours.mean == pytest.approx(0.03)
    assert ours.p == pytest.approx(stats.binomtest(5, 13).pvalue)
    assert ours.low < 0 < ours.high and "McNemar" in ours.method
    same = statistics.compare_over_images(a, a)
    assert same.p == 1 and same.mean == 0 and same.low < 0 < same.high
