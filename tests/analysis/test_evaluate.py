"""`python -m mnist_cnn.evaluate`: the run's own numbers again, and what else it says."""

import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import read_idx, result_of, run

import mnist_cnn
from mnist_cnn import evaluate, statistics
from mnist_cnn.errors import CheckpointError, DataError
from mnist_cnn.runner import results
from mnist_cnn.runner.console import Console


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_mnist):
    """A copied directory of a run of the base network, and its experiment's data."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = mnist_cnn.experiment(
        manual_dir=str(small_mnist), num_steps=6, report=False, eval_batch_size=100
    )
    mnist_cnn.run(config, folder / "run")
    shutil.move(folder / "run", folder / "copied elsewhere")
    return folder / "copied elsewhere"


@pytest.fixture(scope="module")
def figures(trained):
    out, err = run("mnist_cnn.evaluate", "--workdir", trained, "--json")
    assert err == ""
    return json.loads(out)


def test_evaluate_gives_the_runs_own_numbers_to_the_last_digit(trained, figures):
    test = result_of(trained)["test"]
    assert figures["examples"] == test["examples"] == 250
    assert [figures["accuracy"]] == test["accuracy"]
    assert [figures["loss"]] == test["loss"]
    assert [figures["correct"]] == test["correct"]


def test_the_table_says_what_the_json_says(figures, capsys):
    Console().evaluation(figures)
    out = capsys.readouterr().out
    assert f"accuracy {figures['accuracy']!r}" in out and f"loss {figures['loss']!r}" in out
    assert "\nexpected calibration error" in out and "\\n" not in out
    row = figures["classes"][1]
    cells = next(line for line in out.splitlines() if line.startswith("|     1 |")).split("|")
    assert cells[3].strip() == f"{row['recall']:.2%}" and cells[4].strip() == str(row["examples"])


def test_another_split_or_dataset_is_scored_whole(trained, figures, tmp_path):
    other = evaluate.evaluate(trained, "train[450:]")
    assert other["examples"] == 50 and other["split"] == "train[450:]"
    assert other["loss"] != figures["loss"]
    images, labels = read_idx("t10k-images-idx3-ubyte")[:90], read_idx("t10k-labels-idx1-ubyte")
    for part in ("train", "t10k"):
        header = np.array([2051, 90, 28, 28], ">i4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([2049, 90], ">i4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[:90].tobytes())
    other = evaluate.evaluate(trained, dataset="fashion_mnist", manual_dir=str(tmp_path))
    assert other["examples"] == 90 and other["dataset"] == "fashion_mnist"


def test_an_experiments_own_module_is_asked_for_and_then_taken(tiny_experiment, tmp_path):
    config = runpy.run_path(str(tiny_experiment), run_name="tiny")["get_config"]()
    with config.unlocked():
        config.seed, config.num_steps = 5, 5
    result = mnist_cnn.run(config, tmp_path)
    with pytest.raises(CheckpointError, match="--config EXPERIMENT"):
        evaluate.evaluate(tmp_path)
    experiment = runpy.run_path(str(tiny_experiment), run_name="tiny")["get_config"]()
    figures = evaluate.evaluate(tmp_path, config=experiment)
    assert [figures["loss"]] == result["test"]["loss"]


def test_changed_data_is_not_taken_for_the_runs_own(trained, small_mnist, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(small_mnist, changed)
    path = changed / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(content)
    moved = tmp_path / "run"
    shutil.copytree(trained, moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"manual_dir": str(changed)}))
    with pytest.raises(DataError, match=r"other data files .* --manual_dir"):
        evaluate.evaluate(moved)
    assert evaluate.evaluate(moved, manual_dir=str(changed))["examples"] == 250


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "--workdir"),
        (("--workdir", "nowhere\x1b[31m"), 1, r"nowhere\x1b[31m"),
        (("--workdir", "x", "stray"), 2, "flags only"),
    ],
)
def test_what_evaluate_cannot_do_is_said_in_one_line(arguments, status, said, tmp_path):
    out, err = run("mnist_cnn.evaluate", *arguments, cwd=tmp_path, status=status)
    assert out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1, err
    assert "\x1b" not in err and list(tmp_path.iterdir()) == []


def test_the_commands_can_be_imported_together_and_without_matplotlib():
    code = (
        "import sys; from mnist_cnn import main, evaluate, network, loop\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from mnist_cnn import report\n"
        "from absl import flags; assert not {'split', 'json', 'output'} & set(flags.FLAGS)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_per_class_figures_are_those_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])
    logits = np.where(np.arange(10) == predicted[:, None], 5.0, 0.0).astype(np.float32)
    classes = statistics.classification_metrics(logits, labels)["classes"]
    assert classes[0] == {"precision": 2 / 4, "recall": 2 / 3, "examples": 3, "predicted": 4}
    assert classes[1] == {"precision": 1 / 2, "recall": 1 / 2, "examples": 2, "predicted": 2}
    assert classes[2] == {"precision": None, "recall": 0.0, "examples": 1, "predicted": 0}
    assert classes[9] == {"precision": None, "recall": None, "examples": 0, "predicted": 0}


def test_calibration_and_likelihood_are_those_of_their_definitions():
    # 80 % sure eight times of which six are right, 30 % sure twice of which none is.
    def row(p, answer):
        rest = (1 - p) / 9
        return np.log(np.where(np.arange(10) == answer, p, rest))

    logits = np.stack([row(0.8, 3)] * 8 + [row(0.3, 5)] * 2)
    labels = np.array([3] * 6 + [4] * 4)
    figures = statistics.classification_metrics(logits, labels)
    expected = (8 * abs(0.8 - 6 / 8) + 2 * abs(0.3 - 0)) / 10
    assert figures["expected_calibration_error"] == pytest.approx(expected)
    likelihood = -(6 * np.log(0.8) + 2 * np.log(0.2 / 9) + 2 * np.log(0.7 / 9)) / 10
    assert figures["negative_log_likelihood"] == pytest.approx(likelihood)
    assert statistics.calibration(logits, labels).count.sum() == 10


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


def test_an_ensemble_that_is_sure_of_what_is_wrong_still_has_a_result():
    logits = np.zeros((2, 1, 10), np.float32)
    logits[:, :, 3] = 2000  # its probability of anything else is 0 in float64
    found = results.ensemble_metrics(logits, np.array([4]))
    assert found["loss"] is None and found["correct"] == 0
    json.dumps(found, allow_nan=False)


def test_images_are_compared_by_mcnemars_exact_test():
    from scipy import stats

    a = np.array([True] * 90 + [False] * 10)
    b = np.array([True] * 85 + [False] * 5 + [True] * 8 + [False] * 2)  # 8 mended, 5 lost
    ours = statistics.compare_over_images(a, b)
    assert ours.mean == pytest.approx(0.03)
    assert ours.p == pytest.approx(stats.binomtest(5, 13).pvalue)
    assert ours.low < 0 < ours.high and "McNemar" in ours.method
    same = statistics.compare_over_images(a, a)
    assert same.p == 1 and same.mean == 0 and same.low < 0 < same.high
