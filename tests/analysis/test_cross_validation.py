"""The runs of the folds of a cross-validation are one result: every training image scored once."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats
from training_runs import train

from mnist_cnn import report, statistics
from mnist_cnn.analysis import cross_validation, finished_runs, pages, run_settings
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import CheckpointError

FOLDS = ("1/3", "2/3", "3/3")


@pytest.fixture(scope="module")
def runs(tiny_experiment, tmp_path_factory):
    """Run directories by (learning rate, fold); those of 1e-3 are of two seeds."""
    folder, found = tmp_path_factory.mktemp("folds"), {}
    for rate, seeds in ((1e-3, 2), (1e-2, 1)):
        for fold in FOLDS:
            workdir = folder / f"{rate:g}-{fold[0]}"
            train(
                tiny_experiment, workdir, fold=fold, learning_rate=rate, num_seeds=seeds,
                num_steps=20, checkpoint_every=100,
            )  # fmt: skip
            found[rate, fold] = workdir
    return found


def accuracies(runs, rate, seeds):
    """The accuracies [fold, seed] that result.json has."""
    results = [json.loads((runs[rate, fold] / "result.json").read_text()) for fold in FOLDS]
    return np.array([result["test"]["accuracy"][:seeds] for result in results])


def corrected_half(values, count):
    """The formula of Nadeau & Bengio (2003) for folds: n_test / n_train = 1 / (count - 1)."""
    variance = np.var(values, ddof=1) * (1 / len(values) + 1 / (count - 1))
    return stats.t.ppf(0.975, len(values) - 1) * math.sqrt(variance)


@pytest.mark.slow
def test_folds_are_one_result_with_the_mean_over_folds_and_its_interval(runs, tmp_path):
    workdirs = [runs[1e-3, fold] for fold in reversed(FOLDS)]
    sentences = report.write(workdirs, tmp_path / "report.html")
    of_folds = accuracies(runs, 1e-3, 2).mean(1)
    half = corrected_half(of_folds, 3)
    assert statistics.mean_interval(of_folds, 3) == pytest.approx(half)
    shown = f"{100 * of_folds.mean():.2f} ± {100 * half:.2f} %"
    assert sentences[0] == (
        f"tiny, 3 folds: {shown} mean accuracy of 3 held-out folds, 500 training images, each "
        "scored once by 2 networks that did not train on it; 95 % confidence interval of the mean "
        f"± {100 * half:.2f} points (Student's t with the corrected variance of Nadeau and Bengio)."
    )
    assert "share most of their training images" in sentences[1] and len(sentences) == 2
    page = (tmp_path / "report.html").read_text()
    assert f'<p class="result">{shown}</p>' in page
    for fold, accuracy in zip(FOLDS, of_folds, strict=True):
        row = page[page.index(f"<tr><th>{fold}</th><td>1337, 1338</td>") :].partition("</tr>")[0]
        assert f"<td>{100 * accuracy:.2f} %</td>" in row
    assert page.index("<th>1/3</th>") < page.index("<th>3/3</th>")
    assert "Held-out images by true and predicted digit, all 2 seeds together" in page
    assert "<th>training images of a network</th><td>330 to 336</td>" in page
    assert "test images" not in page and "test accuracy" not in page


@pytest.mark.slow
def test_every_training_image_is_scored_once_by_each_network(runs, small_mnist):
    (setting,) = run_settings.settings_of([finished_runs.read(runs[1e-3, f]) for f in FOLDS])
    joined = cross_validation.join(setting)
    labels = data.open_dataset("mnist", small_mnist).read("train")[1]
    np.testing.assert_array_equal(np.bincount(joined.predictions.labels), np.bincount(labels))
    assert joined.predictions.logits.shape == (2, 500, 10)
    matrix = statistics.confusion_matrix(joined.pooled[1], joined.pooled[0].argmax(-1))
    assert matrix.sum() == 1000
    assert matrix.trace() == sum(
        sum(finished_runs.read(runs[1e-3, fold]).result["test"]["correct"]) for fold in FOLDS
    )


@pytest.mark.slow
def test_missing_and_unfinished_folds_are_named(runs, tmp_path):
    shutil.copytree(runs[1e-2, "3/3"], tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    workdirs = [runs[1e-2, "2/3"], runs[1e-2, "1/3"], tmp_path / "unfinished"]
    sentences = report.write(workdirs, tmp_path / "report.html")
    assert "Of tiny, fold 3/3 is missing: its images are not scored, and do not count." in sentences
    assert any("is not finished: its last logged step is 20" in one for one in sentences)
    assert any("It has no held-out fold 3/3 result" in one for one in sentences)
    half = corrected_half(accuracies(runs, 1e-2, 1)[:2, 0], 3)
    shown = f"± {100 * half:.2f} points" if half < 0.2 else "unknown: 2 folds are too few"
    assert shown in sentences[0]
    shutil.copytree(runs[1e-2, "2/3"], tmp_path / "other")
    (tmp_path / "other" / "result.json").unlink()
    (sentence, *notes) = report.write([tmp_path / "unfinished", tmp_path / "other"], tmp_path / "x")
    assert sentence == "No fold of tiny is finished." and len(notes) == 2


@pytest.mark.slow
def test_two_settings_are_compared_over_the_folds_and_seeds_of_both(runs, tmp_path):
    sentences = report.write(list(runs.values()), tmp_path / "report.html")
    first, other = (accuracies(runs, rate, 1)[:, 0] for rate in (1e-3, 1e-2))  # of seed 1337
    differences = other - first
    half = corrected_half(differences, 3)
    t = abs(differences.mean()) / (half / stats.t.ppf(0.975, 2))
    assert (
        f"{pages.points(differences.mean())} percentage points of held-out accuracy, 95 % "
        f"confidence interval {pages.points(differences.mean() - half)} to "
        f"{pages.points(differences.mean() + half)}, p = {2 * stats.t.sf(t, 2):.2g} (paired over 3 "
        "folds, Student's t with the corrected variance of Nadeau and Bengio)."
    ) in sentences[0]
    assert not any("A test over images" in one for one in sentences)
    page = (tmp_path / "report.html").read_text()
    assert "difference" not in page or "test images" not in page
    assert "<h2>tiny, learning_rate=0.01 by fold</h2>" in page


@pytest.mark.slow
def test_a_single_shared_fold_is_compared_over_its_images(runs, tmp_path):
    workdirs = [runs[1e-3, "1/3"], runs[1e-3, "2/3"], runs[1e-2, "2/3"], runs[1e-2, "3/3"]]
    sentences = report.write(workdirs, tmp_path / "report.html")
    assert "images of held-out fold 2/3, exact McNemar test" in sentences[0]
    assert "Of tiny, learning_rate=0.001, fold 3/3 is missing" in " ".join(sentences)
    with pytest.raises(CheckpointError, match="have no fold with the same seed"):
        report.write([runs[1e-3, "1/3"], runs[1e-2, "3/3"]], tmp_path / "none.html")


@pytest.mark.slow
def test_what_is_no_cross_validation_is_refused(runs, undisturbed, tiny_experiment, tmp_path):
    shutil.copytree(runs[1e-3, "1/3"], tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"are both of fold 1/3 and seed 1337; give one of"):
        report.write([runs[1e-3, "1/3"], tmp_path / "again"], tmp_path / "x.html")
    with pytest.raises(
        CheckpointError, match=r"was tested on test images, .* held-out fold 1/3; c"
    ):
        report.write([runs[1e-3, "1/3"], undisturbed[0]], tmp_path / "x.html")
    for name in ("config.json", "result.json"):
        content = json.loads((tmp_path / "again" / name).read_text())
        (tmp_path / "again" / name).write_text(json.dumps(content | {"fold": "1/4"}))
    with pytest.raises(CheckpointError, match="or of folds of one number"):
        report.write([runs[1e-3, "1/3"], tmp_path / "again"], tmp_path / "x.html")
    environment = json.loads((tmp_path / "again" / "environment.json").read_text())
    environment["data"]["content_sha256"]["train"] = "0" * 64
    (tmp_path / "again" / "environment.json").write_text(json.dumps(environment))
    for name in ("config.json", "result.json"):
        content = json.loads((tmp_path / "again" / name).read_text())
        (tmp_path / "again" / name).write_text(json.dumps(content | {"fold": "2/3"}))
    with pytest.raises(CheckpointError, match="were tested on different images"):
        report.write([runs[1e-3, "1/3"], tmp_path / "again"], tmp_path / "x.html")
    (tmp_path / "again" / "result.json").write_text(json.dumps(content | {"fold": "3/3"}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        report.write([tmp_path / "again"], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.slow
def test_the_report_of_one_fold_names_it(runs, tmp_path):
    (sentence,) = report.write([runs[1e-2, "2/3"]], tmp_path / "report.html")
    assert "held-out fold 2/3 accuracy: " in sentence
    page = (tmp_path / "report.html").read_text()
    assert "Misclassified images of held-out fold 2/3 whose true digit" in page
    assert "<td>held-out fold 2/3 loss</td>" in page and "test" not in page.partition("<h2>Conf")[0]
