"""The tables and the speeds that the documents quote are those of the records."""

import json
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT
from PIL import Image

from benchmarks import training

sys.path.insert(0, str(ROOT / "experiments"))
import picture
import table

RECORDS = {path.stem: json.loads(path.read_text()) for path in table.RESULTS.glob("*.json")}


def test_the_readmes_table_is_the_one_of_the_records():
    assert table.table() in (ROOT / "README.md").read_text()


def test_the_picture_shows_the_records(tmp_path):
    shown = {
        name: (accuracy, half, together)
        for name, accuracy, half, _, (_, together, _) in picture.points()
    }
    assert shown == {
        name: tuple(
            100 * number
            for number in (
                result["test_mean"]["accuracy"],
                result["test_mean"]["ci95"],
                result["ensemble"]["accuracy"],
            )
        )
        for name, result in ((name, record["result"]) for name, record in RECORDS.items())
    }
    picture.draw(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as drawn, Image.open(picture.PATH) as committed:
        assert drawn.size == committed.size
        drawn, committed = np.asarray(drawn), np.asarray(committed)
    inked = ((drawn < 255) | (committed < 255)).any(-1)
    assert (drawn != committed).any(-1).sum() < 0.05 * inked.sum()  # fonts may differ


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_of_all_its_seeds_and_adds_up(name):
    environment, result = RECORDS[name]["environment"], RECORDS[name]["result"]
    accuracies = result["test"]["accuracy"]
    first, count = result["seeds"][0], len(result["seeds"])
    assert result["seeds"] == list(range(first, first + count))
    assert count == len(set(result["params_sha256"])) == len(accuracies) >= 5
    assert result["test"]["examples"] == 10_000
    mean = result["test_mean"]
    assert mean["accuracy"] == pytest.approx(np.mean(accuracies))
    half = scipy.stats.t.ppf(0.975, count - 1) * scipy.stats.sem(accuracies)
    assert mean["ci95"] == pytest.approx(half)
    assert environment["git"]["dirty"] is False
    assert f"experiments/{name}.py" in environment["command"]


def test_the_readme_quotes_one_network_and_all_together():
    readme = " ".join((ROOT / "README.md").read_text().split())
    one, many = {}, {}
    for name in ("accuracy", "ensemble", "speedrun"):
        mean = RECORDS[name]["result"]["test_mean"]
        one[name] = f"{100 * mean['accuracy']:.3f} ± {100 * mean['ci95']:.3f} %"
        assert one[name] in readme
        many[name] = f"{100 * RECORDS[name]['result']['ensemble']['accuracy']:.2f} %"
    result, trained = RECORDS["ensemble"]["result"], RECORDS["ensemble"]["trained"]
    for key in ("seeds", "params_sha256"):
        assert [value for part in trained for value in part[key]] == result[key]
    first, second = (f"{100 * part['ensemble']['accuracy']:.2f} %" for part in trained)
    mistakes = result["test"]["examples"] - result["ensemble"]["correct"]
    assert f"all ten together have {many['ensemble']}: {mistakes} mistakes" in readme
    assert (
        f"The first five together have {first}, the second five {second}, and the five of the "
        f"first command {many['accuracy']}"
    ) in readme
    work = len(result["seeds"]) * table.cost("experiments/ensemble.py", result["steps"])[2]
    hours = result["seconds"]["total"] / 3600
    assert f"{work / 1e12:.0f} T multiply-adds and {hours:.1f} hours" in readme


@pytest.mark.parametrize("name", ["seeds", "tutorial"])
def test_the_guide_quotes_the_records(name):
    mean = RECORDS[name]["result"]["test_mean"]
    accuracy, half = (100 * mean[key] for key in ("accuracy", "ci95"))
    said = f"{accuracy:.2f} ± {half:.2f} %, loss {mean['loss']:.4f}"
    assert said in (ROOT / "docs" / "from-keras.md").read_text().replace("\n", " ")


def test_the_readme_quotes_how_many_times_faster_than_its_peers_training_is():
    readme = " ".join((ROOT / "README.md").read_text().split())
    record = json.loads((ROOT / "benchmarks" / "results" / "training.json").read_text())
    found = {}
    for part in record["peers"]["batch_sizes"].values():
        rates = part["images_per_second"] | {"limit": part["limit"]}
        median = {
            title: np.median(training.ratios(part, rates[title])) for title in rates
        }  # of PyTorch's two layouts the faster one
        median["PyTorch"] = min(median[title] for title in median if "PyTorch" in title)
        for title, ratio in median.items():
            found.setdefault(title, []).append(f"{ratio:.2f}")
    assert list(record["peers"]["batch_sizes"]) == ["32", "128"]
    for title in ("PyTorch", "Keras on TensorFlow", "Keras on JAX", "the plain Flax loop"):
        said = f"{' and '.join(found[title.removeprefix('the ')])} times {title}"
        assert said in readme
    assert "{} of it at 32 and {} at 128".format(*found["limit"]) in readme


def test_the_readme_quotes_the_rates_and_runs_on_a_gpu():
    readme = " ".join((ROOT / "README.md").read_text().split())
    record = json.loads((ROOT / "benchmarks" / "results" / "accelerator.json").read_text())
    rates = [part["images_per_second"] for part in record["peers"]["batch_sizes"].values()]
    names = {"mnist_cnn": "this program", "plain Flax loop": "the plain Flax loop",
             "PyTorch, channels_last": "PyTorch, channels_last, TF32"}  # fmt: skip
    for title in rates[0]:
        row = [f"{1000 * round(np.median(part[title]) / 1000):,.0f}" for part in rates]
        assert f"| {names.get(title, title)} | {' | '.join(row)} |" in readme
    theirs, ours = (record["pooling_images_per_second"][name] for name in ("XLA's", "ours"))
    ratio = theirs["16 together, batch 32"] / theirs["alone, batch 32"]
    assert f"at {ratio:.1f} times the rate of one alone" in readme
    for count in ("alone", "16 together"):
        said = [f"{part[f'{count}, batch 32'] / 1000:.0f},000" for part in (ours, theirs)]
        assert " ".join((said[0], "images a second against", said[1])) in readme or (
            f"{said[0]} against {said[1]}" in readme
        )
    free, again, warm, *deterministic = record["base"]
    assert len({one["params_sha256"] for one in (free, again, warm)}) == 1
    assert len({one["params_sha256"] for one in deterministic}) == 1
    assert "takes {total:.1f} s, {train:.1f} of them training".format(**warm["seconds"]) in readme
    slow, quick = (one["seconds"]["train"] for one in (deterministic[-1], warm))
    assert f"{slow:.1f} s of training instead of {quick:.1f}" in readme
    assert f"{100 * warm['accuracy']:.2f} % of the test images" in readme


def test_the_readme_quotes_the_times_of_the_speedrun():
    readme = (ROOT / "README.md").read_text()
    record = json.loads((ROOT / "benchmarks" / "results" / "speedrun.json").read_text())
    assert len(record["programs"]) == 4 and record["environment"]["versions"]["jax"]
    for rounds in record["programs"].values():
        seconds = [one["seconds"] for one in rounds]
        said = f"| {np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | "
        parts = [np.median([one["parts"][name] for one in rounds])
                 for name in ("imports", "data", "compile", "train", "evaluate")
                 if "parts" in rounds[0]]  # fmt: skip
        assert said + " | ".join(f"{part:.2f}" for part in parts) in readme
    cold, warm, published, _ = (
        np.median([one["seconds"] for one in rounds]) for rounds in record["programs"].values()
    )
    said = f"{cold / published:.2f} of the published recipe's time, {warm / published:.2f} where"
    assert said in readme
