"""The tables, results and speeds in the documents are those of the records."""

import ast
import json
import pathlib
import re
import runpy
import shlex

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT
from PIL import Image
from safetensors import safe_open

from benchmarks import (
    calibration,
    few_labels,
    halving,
    handwriting,
    many_images,
    missed,
    networks,
    packaged_network,
    page as page_benchmark,
    processors,
    published,
    results_plot,
    results_table,
    threads,
    training,
    views,
)
from benchmarks.peer import PRECISIONS
from mnist_cnn.analysis import packaged

RECORDS = {path.stem: json.loads(path.read_text()) for path in results_table.RESULTS.glob("*.json")}


def text_of(page):
    """The text of a page in one line, or of an experiment's docstring."""
    text = (ROOT / page).read_text()
    return " ".join((ast.get_docstring(ast.parse(text)) if page.endswith(".py") else text).split())


def benchmark_record(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_the_readmes_table_is_the_one_of_the_records():
    assert results_table.table() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", RECORDS)
def test_an_experiment_opens_with_the_result_and_the_cost_of_its_record(name):
    result = RECORDS[name]["result"]
    accuracy, half = (100 * result["test_mean"][key] for key in ("accuracy", "ci95"))
    text = text_of(f"experiments/{name}.py")
    assert f"Result: {accuracy:.2f} ± {half:.2f} % test accuracy" in text
    if name == "speedrun":  # its record is of 30 seeds, its cost that of the benchmark
        return
    assert f"Cost: {result['seconds']['total'] / 60:.0f} min on 2 cores" in text
    if "ensemble" in text:
        assert f"{100 * result['ensemble']['accuracy']:.2f} % as one ensemble" in text


def test_the_readmes_run_of_base_is_the_first_of_the_seeds():
    result = RECORDS["seeds"]["result"]
    accuracy, correct = (result["test"][key][0] for key in ("accuracy", "correct"))
    page = text_of("README.md")
    assert f"{result['seeds'][0]} {100 * accuracy:.2f}%" in page
    assert f"{correct:,} of 10,000" in page and result["params_sha256"][0] in page
    assert f"Result: {100 * accuracy:.2f} % test accuracy" in text_of("experiments/base.py")


@pytest.mark.slow
def test_the_plot_shows_the_records(tmp_path):
    shown = {
        point.name: (point.accuracy, point.half_interval, point.ensemble_accuracy)
        for point in results_plot.points()
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
    results_plot.draw(tmp_path / "plot.png")
    assert_same_picture(tmp_path / "plot.png", results_plot.PATH)


def assert_same_picture(drawn, committed):
    with Image.open(drawn) as one, Image.open(committed) as other:
        assert one.size == other.size
        one, other = np.asarray(one), np.asarray(other)
    inked = ((one < 255) | (other < 255)).any(-1)
    assert (one != other).any(-1).sum() < 0.05 * inked.sum()  # fonts may differ


@pytest.mark.slow
def test_the_picture_of_handwriting_and_its_text_are_those_of_the_records(tmp_path):
    now, before = benchmark_record("handwriting"), benchmark_record("handwriting_before")
    handwriting.draw(now, before, tmp_path / "plot.png")
    assert_same_picture(tmp_path / "plot.png", ROOT / "docs" / "images" / "handwriting.png")
    photos, old = (record["sources"][handwriting.PHOTOS] for record in (now, before))
    sure = photos["sure"] / photos["pictures"]
    assert (
        f"answers {photos['correct'] / photos['pictures']:.1%} of the photos correctly and "
        f"{sure:.1%} surely ({photos['sure_but_wrong'] / photos['sure']:.1%} of these wrong)"
    ).replace("%", " %") in text_of("docs/results.md")
    share = 100 * old["correct"] / old["pictures"]
    quote = f"({share:.1f} % of the first {old['pictures']:,} photos)"
    assert quote in text_of("docs/results.md")


def test_what_others_have_reached_is_computed_from_their_logs():
    page = (ROOT / "docs" / "results.md").read_text()
    assert published.table() in page and published.seeds_table() in page
    assert f"deviation of {published.spread():.3f} points" in text_of("docs/results.md")
    doucet, *others = published.others()
    assert len(doucet.accuracies) == 10 and {len(row.accuracies) for row in others} == {30, 32}
    assert doucet.half_interval == pytest.approx(
        scipy.stats.t.ppf(0.975, 9) * scipy.stats.sem(doucet.accuracies)
    )
    for row in published.others():
        assert row.best_epochs is None or row.best_epochs > row.mean
        assert row.link.startswith("https://github.com/")


def test_as_many_seeds_as_the_page_says_show_a_difference():
    """Accuracies 0.05 points apart, of nine seeds of two networks, drawn 4,000 times."""
    rng, spread = np.random.default_rng(0), published.spread()
    one, other = (rng.normal(mean, spread, (4_000, 9)) for mean in (99.70, 99.75))
    found = (scipy.stats.ttest_rel(other, one, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.05)
    assert "| 0.05 points | 9 |" in published.seeds_table()


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_contains_all_its_seeds_and_adds_up(name):
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


def test_the_results_page_quotes_single_networks_and_ensembles():
    page, speed = text_of("docs/results.md"), text_of("docs/speed.md")
    one, many = {}, {}
    for name in ("accuracy", "ensemble", "speedrun"):
        mean = RECORDS[name]["result"]["test_mean"]
        one[name] = f"{100 * mean['accuracy']:.3f} ± {100 * mean['ci95']:.3f} %"
        assert one[name] in (speed if name == "speedrun" else page)
        many[name] = f"{100 * RECORDS[name]['result']['ensemble']['accuracy']:.2f} %"
    result, trained = RECORDS["ensemble"]["result"], RECORDS["ensemble"]["trained"]
    for key in ("seeds", "params_sha256"):
        assert [value for part in trained for value in part[key]] == result[key]
    first, second = (f"{100 * part['ensemble']['accuracy']:.2f} %" for part in trained)
    mistakes = result["test"]["examples"] - result["ensemble"]["correct"]
    assert f"all ten together have {many['ensemble']}: {mistakes} mistakes" in page
    assert (
        f"The first five together have {first}, the second five {second}, and the five of the "
        f"first command {many['accuracy']}"
    ) in page
    work = (
        len(result["seeds"])
        * results_table.cost("experiments/ensemble.py", result["steps"]).multiply_adds_of_training
    )
    hours = result["seconds"]["total"] / 3600
    assert f"{work / 1e12:.0f} T multiply-adds and {hours:.1f} hours" in page


def test_the_results_page_says_what_views_of_the_test_images_change():
    record, page = benchmark_record("views"), text_of("docs/results.md")
    assert shlex.join(record["environment"]["command"]) in page
    for run in record["runs"]:
        result = RECORDS[pathlib.Path(run["experiment"]).stem]["result"]
        assert run["seeds"] == result["seeds"] and run["examples"] == result["test"]["examples"]
        assert run["all views"]["correct"] == result["test"]["correct"]
        assert run["all views"]["ensemble"] == result["ensemble"]["correct"]
        assert views.sentence(run) in page


def test_halving_found_the_setting_of_the_grid_in_a_quarter_of_its_steps_as_the_page_says():
    sweeps = benchmark_record("halving")["sweeps"]
    assert halving.table(sweeps) in (ROOT / "docs/seeds-and-sweeps.md").read_text()
    whole, halved = (sweeps[method] for method in halving.METHODS)
    best, found = (whole["settings"][one["chosen"]]["validation_mean"] for one in (whole, halved))
    assert found["accuracy"] >= best["accuracy"] - best["ci95"]
    taken, steps = halved["steps"], halved["grid_steps"]
    assert taken <= steps / 4
    assert f"It took {taken:,} of the grid's {steps:,} steps" in text_of("docs/seeds-and-sweeps.md")


@pytest.mark.parametrize("name", ["seeds", "tutorial"])
def test_the_guide_quotes_the_records(name):
    mean = RECORDS[name]["result"]["test_mean"]
    accuracy, half = (100 * mean[key] for key in ("accuracy", "ci95"))
    quote = f"{accuracy:.2f} ± {half:.2f} %, loss {mean['loss']:.4f}"
    assert quote in text_of("docs/from-keras.md")


def test_the_speed_page_quotes_how_many_times_faster_than_its_peers_training_is():
    page, record = text_of("docs/speed.md"), benchmark_record("training")
    found = {}
    for part in record["peers"]["batch_sizes"].values():
        rates = part["images_per_second"] | {"limit": part["limit"]}
        median = {title: np.median(training.ratios(part, rates[title])) for title in rates}
        for precision in PRECISIONS:  # in each the fastest of PyTorch's forms
            torch = [t for t in rates if t.startswith("PyTorch") and t.endswith(precision)]
            best = rates[max(torch, key=lambda title: np.median(rates[title]))]
            ours = rates[f"mnist_cnn, {precision}"]
            median[f"PyTorch's best in {precision}"] = np.median(np.divide(ours, best))
        for title, ratio in median.items():
            found.setdefault(title, []).append(f"{ratio:.2f}")
    assert list(record["peers"]["batch_sizes"]) == ["32", "128"]
    torch = [f"PyTorch's best in {precision}" for precision in PRECISIONS]
    for title in (*torch, "Keras on TensorFlow", "Keras on JAX", "the plain Flax loop"):
        quote = f"{' and '.join(found[title.removeprefix('the ')])} times {title}"
        assert quote in page
        assert title not in torch or quote in text_of("README.md")
    assert "{} of it at 32 and {} at 128".format(*found["limit"]) in page


def test_the_gpu_page_quotes_the_rates_and_runs_on_a_gpu():
    page, record = text_of("docs/gpu-and-tpu.md"), benchmark_record("accelerator")
    rates = [part["images_per_second"] for part in record["peers"]["batch_sizes"].values()]
    names = {"mnist_cnn": "this program", "plain Flax loop": "the plain Flax loop",
             "PyTorch, channels_last": "PyTorch, channels_last, TF32"}  # fmt: skip
    for title in rates[0]:
        row = [f"{1000 * round(np.median(part[title]) / 1000):,.0f}" for part in rates]
        assert f"| {names.get(title, title)} | {' | '.join(row)} |" in page
    theirs, ours = (record["pooling_images_per_second"][name] for name in ("XLA's", "ours"))
    ratio = ours["16 together, batch 32"] / ours["alone, batch 32"]
    assert f"at {ratio:.1f} times the rate of one alone" in page
    for count in ("alone", "16 together"):
        quote = [f"{part[f'{count}, batch 32'] / 1000:.0f},000" for part in (ours, theirs)]
        assert " ".join((quote[0], "images a second against", quote[1])) in page or (
            f"{quote[0]} against {quote[1]}" in page
        )
    free, again, warm, *deterministic = record["base"]
    assert len({one["params_sha256"] for one in (free, again, warm)}) == 1
    assert len({one["params_sha256"] for one in deterministic}) == 1
    assert "takes {total:.1f} s, {train:.1f} of them training".format(**warm["seconds"]) in page
    slow, quick = (one["seconds"]["train"] for one in (deterministic[-1], warm))
    assert f"{slow:.1f} s of training instead of {quick:.1f}" in page
    assert f"{100 * warm['accuracy']:.2f} % of the test images" in page


def test_the_speed_page_quotes_the_times_of_the_speedrun():
    page, record = text_of("docs/speed.md"), benchmark_record("speedrun")
    assert len(record["programs"]) == 4 and record["environment"]["versions"]["jax"]
    for rounds in record["programs"].values():
        seconds = [one["seconds"] for one in rounds]
        quote = f"| {np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | "
        parts = [np.median([one["parts"][name] for one in rounds])
                 for name in ("imports", "data", "compile", "train", "evaluate")
                 if "parts" in rounds[0]]  # fmt: skip
        assert quote + " | ".join(f"{part:.2f}" for part in parts) in page
    cold, warm, published, _ = (
        np.median([one["seconds"] for one in rounds]) for rounds in record["programs"].values()
    )
    quote = f"{cold / published:.2f} of the published recipe's time, {warm / published:.2f} where"
    assert quote in page
    cost = f"one seed takes {cold:.1f} s on 2 cores of an AMD EPYC, or {warm:.1f} s"
    assert cost in text_of("experiments/speedrun.py")


def test_the_speed_page_quotes_the_rates_of_plain_networks():
    page, record = text_of("docs/speed.md"), benchmark_record("networks")
    in_float32, in_bfloat16 = [], []
    for network, sizes in networks.STEPS.items():
        parts = record[network]["batch_sizes"]
        assert list(parts) == [str(size) for size in sizes]
        for size, part in parts.items():
            rates = part["images_per_second"]
            median = {title: np.median(rates[title]) for title in rates}
            ratio = {title: np.median(training.ratios(part, rates[title])) for title in rates}
            row = [f"{network}, {size}", *(f"{median[f'mnist_cnn, {p}']:,.0f}" for p in PRECISIONS)]
            for precision, ratios in zip(PRECISIONS, (in_float32, in_bfloat16), strict=True):
                torch = [t for t in rates if t.startswith("PyTorch") and t.endswith(precision)]
                best = max(torch, key=median.get)
                row.append(f"{median[best]:,.0f} ({ratio[best]:.2f})")
                ratios.append(f"{ratio[best]:.2f}")
            flax = "plain Flax loop"
            row.append(f"{median[flax]:,.0f} ({ratio[flax]:.2f})")
            assert f"| {' | '.join(row)} |" in page
    for ratios, precision in ((in_float32, "float32"), (in_bfloat16, "bfloat16")):
        quote = f"{min(ratios)} to {max(ratios)} times PyTorch's best in {precision}"
        assert quote in page and quote in text_of("README.md")


def test_the_page_of_devices_has_the_table_of_threads_and_their_bits_are_those_of_any_cores():
    record = benchmark_record("threads")
    assert threads.table(record) in (ROOT / "docs" / "devices-and-hosts.md").read_text()
    assert all(len(digests) == 1 for digests in record["params_sha256"].values())


def test_the_page_of_bits_names_the_operations_that_differ_between_processors():
    page, record = text_of("docs/run-directory.md"), benchmark_record("processors")
    for name, start in (("default", "These differ:"), ("with the flag", "these still differ:")):
        assert f"{start} {'; '.join(processors.differing(record[name]))}." in page
        blocks = {one["the same in blocks of 196 terms"] for one in record[name].values()}
        assert len(record[name]) == 3 and len(blocks) == 1


def test_the_gpu_page_quotes_the_accuracy_in_bfloat16():
    bfloat16, float32 = benchmark_record("bfloat16"), RECORDS["seeds"]
    assert "--config.compute_dtype=bfloat16" in bfloat16["environment"]["command"]
    means = [record["result"]["test_mean"] for record in (bfloat16, float32)]
    assert abs(means[0]["accuracy"] - means[1]["accuracy"]) < means[1]["ci95"]
    count = len(bfloat16["result"]["seeds"])
    assert bfloat16["result"]["seeds"] == float32["result"]["seeds"]
    ours, theirs = (f"{100 * m['accuracy']:.2f} ± {100 * m['ci95']:.2f} %" for m in means)
    assert f"{count} seeds of the base experiment reach {ours} with it and {theirs} without" in (
        text_of("docs/gpu-and-tpu.md")
    )


def test_the_results_page_quotes_the_run_with_newer_versions():
    page, record = text_of("docs/results.md"), benchmark_record("newest_versions")
    environment, result, seeds = record["environment"], record["result"], RECORDS["seeds"]["result"]
    versions = environment["versions"]
    names = ", ".join(f"{name} {versions[name]}" for name in ("jax", "flax"))
    assert f"Python {environment['python']}, {names} and numpy {versions['numpy']}" in page
    assert f"jax=={versions['jax']}\n" not in (ROOT / "constraints.txt").read_text()
    (accuracy,), (loss,) = result["test"]["accuracy"], result["test"]["loss"]
    assert f"has {100 * accuracy:.2f} % test accuracy and a loss of {loss:.4f}" in page
    assert f"begins with `{result['params_sha256'][0][:8]}`" in page
    low, high = (100 * function(seeds["test"]["accuracy"]) for function in (min, max))
    assert f"`seeds.py` have {low:.2f} to {high:.2f} %" in page
    assert result["experiment"] == "base" and result["steps"] == 1875
    assert shlex.join(environment["command"]) in page and environment["git"]["dirty"] is False


def words_of(line):
    """A line without the borders of its table, which differ on a terminal."""
    return " ".join(re.sub(r"[|+─━ -]+", " ", line).split())


def test_the_documents_show_what_the_commands_printed():
    record = benchmark_record("documentation")
    printed = {words_of(line) for lines in record["outputs"].values() for line in lines}
    blocks = {
        "README.md": "The first command ends like this",
        "docs/reports.md": "gets the run's own numbers to the last digit",
        "docs/speed.md": "traces steps 20 to 40, one by one",
    }
    for page, before in blocks.items():
        shown = (ROOT / page).read_text().split(before)[1].split("```")[1].strip().splitlines()
        for line in filter(None, map(words_of, shown)):
            if " images/s " in line:  # a terminal's progress bar; the record has lines
                continue
            start = line.partition(" ... ")[0]  # the rest depends on the machine
            assert any(one.startswith(start) for one in printed), (page, line)
    (sentence, *_) = record["outputs"][
        "report --workdir runs/base runs/mlp --output runs/comparison.html"
    ]
    assert sentence in " ".join(
        (ROOT / "docs" / "reports.md").read_text().replace("\n>", " ").split()
    )
    (points,) = re.findall(r"base: .([\d.]+) percentage points", sentence)
    assert f"Result: {points} percentage points less" in text_of("experiments/mlp.py")
    run = record["outputs"]["main --config experiments/base.py --workdir runs/base"]
    (seconds,) = re.findall(r"^seconds: total ([\d.]+)", "\n".join(run), re.MULTILINE)
    assert f"Cost: {float(seconds):.0f} s on 2 cores" in text_of("experiments/base.py")


def test_the_page_of_few_labels_has_the_table_of_its_record():
    page = (ROOT / "docs" / "few-labels-and-folds.md").read_text()
    assert few_labels.table(benchmark_record("few_labels")["results"]) in page and "@@" not in page


def test_the_card_of_the_packaged_network_has_its_measured_figures():
    measured = benchmark_record("handwriting")
    card = packaged_network.CARD.read_text()
    assert packaged_network.table(measured) in card
    with safe_open(packaged.FILE, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["model_card"] == card and metadata["params_sha256"] in card
    made = runpy.run_path(str(packaged_network.EXPERIMENT))["MADE"]
    assert f"each step {sum(made.values())} made images" in " ".join(card.split())
    assert measured["network"]["name"] == json.loads(metadata["config"])["name"] == "digits"


def test_the_page_of_devices_says_what_a_million_images_took():
    found = many_images.sentence(benchmark_record("many_images"))
    assert found in text_of("docs/devices-and-hosts.md")


def test_the_export_page_quotes_the_sizes_and_times_of_the_page_for_browsers():
    record, text = benchmark_record("page"), (ROOT / "docs" / "export-and-keras.md").read_text()
    for row in page_benchmark.table(record):
        assert row in text
    assert f"besides {page_benchmark.finding(record):.2f} s to find the digit" in text
    assert record["networks"]["accuracy"]["bytes"] < 3_000_000


def test_the_results_page_says_which_images_networks_miss():
    record = benchmark_record("missed")
    assert missed.sentence(record) in text_of("docs/results.md")
    assert record["environment"]["git"]["dirty"] is False
    command = shlex.join(record["environment"]["command"])
    assert command in text_of("docs/results.md") and missed.PICTURE.exists()
    base, *_, digits = record["networks"]
    in_doubt, others = base["missed_in_doubt"][0], 10_000 - len(record["doubtful"])
    correct = others - base["missed"][0] + in_doubt
    quote = f"accuracy {correct / others!r} ({correct:,} of {others:,}) without the images whose "
    quote += f"label is in doubt, of which it misses {in_doubt} of {len(record['doubtful'])}"
    assert base["experiment"] == "base" and quote in text_of("docs/reports.md")
    assert (digits["experiment"], digits["missed_in_doubt"]) == ("digits", [6])
    assert all(image["missed"] >= image["answered"] > 0 for image in record["missed"])


def test_the_page_of_reports_has_the_table_of_temperatures_which_cost_no_accuracy():
    runs = benchmark_record("calibration")["runs"]
    page = (ROOT / "docs" / "reports.md").read_text()
    assert calibration.table(runs) in page
    for run in runs:
        assert run["environment"]["git"]["dirty"] is False
        assert run["environment"]["command"] in map(
            shlex.split, re.findall("^python.*", page, re.M)
        )
        result = run["result"]
        before = np.mean(result["test"]["expected_calibration_error"])
        after = np.mean(result["calibrated"]["expected_calibration_error"])
        assert result["calibrated"]["split"] == "train[55000:]"
        if result["experiment"] == "speedrun":
            assert before > 0.14 and after < 0.003
            mean = result["test_mean"]
            accuracies = [
                f"{100 * one['accuracy']:.2f} ± {100 * one['ci95']:.2f} %"
                for one in (mean, RECORDS["speedrun"]["result"]["test_mean"])
            ]
            quote = "{} with 55,000 training images and {} with all".format(*accuracies)
            assert quote in " ".join(page.split())
            quote = f"from {100 * before:.2f} to {100 * after:.2f} %"
            assert quote in " ".join(page.split()) and quote in text_of("README.md")
