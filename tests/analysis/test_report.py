"""The report of real runs, as a user sees it in a real browser."""

import dataclasses
import html
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from conftest import config_of, imported_by, metrics_of, read_idx, run
from training_runs import train

import mnist_cnn
from mnist_cnn import report, statistics
from mnist_cnn.analysis import (
    comparison,
    comparison_page,
    cross_validation,
    cross_validation_page,
    finished_runs,
    html_report,
    mosaics,
    pages,
    plots,
    run_settings,
    sweep_plots,
)
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner import predictions
from mnist_cnn.runner.preparation import Diverged
from mnist_cnn.runner.run_directory import RunDirectory

HOSTILE = "<img src=x onerror=document.title='taken'> & \"$x_\\frac$\" \x1b[31m"


# The words that are on two lines, without digests and the like.
BROKEN_WORDS = """() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), broken = [];
  while (texts.nextNode()) {
    for (const {0: word, index} of texts.currentNode.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, index);
      range.setEnd(texts.currentNode, index + word.length);
      const lines = [...range.getClientRects()].filter(box => box.width).map(box => box.top);
      if (word.length <= 20 && new Set(lines).size > 1) broken.push(word);
    }
  }
  return broken;
}"""


@pytest.fixture(scope="module")
def trained(tiny_experiment, tmp_path_factory):
    """The directories of six finished runs by (learning rate, seed)."""
    folder = tmp_path_factory.mktemp("report")
    directories = {}
    for rate in (1e-3, 1e-4, 1e-2):
        for seed in (1, 2):
            config = runpy.run_path(str(tiny_experiment))["get_config"]()
            with config.unlocked():
                config.learning_rate, config.seed = rate, seed
                config.checkpoint_every = 1000
                config.train_split, config.validation_split = "train[:400]", "train[400:]"
            mnist_cnn.run(config, folder / f"{rate:g}-{seed}")
            directories[rate, seed] = folder / f"{rate:g}-{seed}"
    return directories


@pytest.fixture
def copied_run(trained, tmp_path):
    """A copy of the run with learning rate 1e-3 and seed 1 that a test may change."""
    return shutil.copytree(trained[1e-3, 1], tmp_path / "run")


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """A run copied without its checkpoints, the command's output, and the page it writes."""
    folder = tmp_path_factory.mktemp("reported")
    copy = shutil.copytree(
        trained[1e-4, 2], folder / "copied elsewhere",
        ignore=shutil.ignore_patterns("checkpoints", "lock"),
    )  # fmt: skip
    output = run(
        "mnist_cnn.report", "--workdir", copy, cwd=folder, TFDS_DATA_DIR=str(folder / "none")
    )
    return copy, output, (copy / "report.html").read_text()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def settings_of(*directories):
    return run_settings.settings_of([finished_runs.read(path) for path in directories])


@pytest.mark.slow
def test_run_ends_with_its_report_and_imports_matplotlib_only_for_it(tiny_experiment, tmp_path):
    out, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run",
        "--config.report", "--config.num_steps=3",
    )  # fmt: skip
    assert err == "" and f"report: {tmp_path / 'run'}/report.html" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<img ") == 6 and "--config.num_steps=3" in page
    names = imported_by(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "other",
        "--config.report=False", "--config.num_steps=3",
    )  # fmt: skip
    assert "matplotlib" not in names and "jax" in names
    assert not (tmp_path / "other" / "report.html").exists()


@pytest.mark.slow
def test_failed_report_changes_neither_result_nor_status(
    tiny_experiment, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        html_report, "run_page", lambda run: ("", [])
    )  # the page itself is not the point
    config = runpy.run_path(str(tiny_experiment))["get_config"]()
    with config.unlocked():
        config.report, config.num_steps = True, 3
    (tmp_path / "report.html").mkdir()
    assert mnist_cnn.run(config, tmp_path)["status"] == "finished"
    assert "note: no report.html" in capsys.readouterr().out


def test_report_needs_only_the_copied_directory(reported):
    copy, (out, err), _ = reported
    sentence, place = out.splitlines()
    correct = json.loads((copy / "result.json").read_text())["test"]["correct"][0]
    assert sentence == (
        f"tiny, 40 steps: {correct / 250:.2%} test accuracy: {250 - correct} of 250 images are "
        "misclassified."
    ).replace("% ", " % ")
    assert err == "" and place == f"report: {copy}/report.html"
    assert not (copy.parent / "none").exists()


def test_result_comes_first_and_agrees_with_result_json(reported):
    copy, _, page = reported
    test = json.loads((copy / "result.json").read_text())["test"]
    body = page[page.index("<body>") :]
    assert f'<p class="result">{test["accuracy"][0]:.2%}'.replace("%", " %") in body[:300]
    assert f"{test['correct'][0]:,} of 250" in page and f"{test['loss'][0]:.4f}" in page
    assert "<tr><th>learning_rate</th><td>0.001</td><td>0.0001</td></tr>" in page


def test_varied_field_is_plotted_against_validation_error(trained, monkeypatch):
    settings = settings_of(*trained.values())
    assert run_settings.swept_field(settings) == ("learning_rate", [1e-3, 1e-4, 1e-2])
    assert run_settings.swept_field(settings[:2]) is None
    calls, original = [], sweep_plots.error_over_field
    monkeypatch.setattr(sweep_plots, "error_over_field", lambda *a: calls.append(a) or original(*a))
    monkeypatch.setattr(plots, "learning_curves", lambda settings: [])  # the others take time
    monkeypatch.setattr(mosaics, "changed_predictions", lambda *_: plots.Plot("", "", b"", b""))
    assert "<h2>Error over learning_rate</h2>" in comparison_page.comparison_page(settings)[0]
    ((name, lines, split),) = calls
    assert (name, list(lines), split) == ("learning_rate", [""], "validation")
    assert list(lines[""]) == [1e-3, 1e-4, 1e-2]
    for rate, errors in lines[""].items():
        for seed, error in zip((1, 2), errors, strict=True):
            last = [e for e in metrics_of(trained[rate, seed]) if e["split"] == "validation"][-1]
            assert error == pytest.approx(100 * (1 - last["accuracy"]))


@pytest.mark.slow
def test_report_is_complete_and_safe_in_a_browser(trained, browser, tmp_path):
    """All plots in both themes, no error, request, horizontal scrolling or injected markup."""
    hostile = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(trained[1e-3, 1], hostile)
    edit(hostile / "environment.json", command=["python", HOSTILE, "</pre></style><script>"],
         platform=HOSTILE, versions={HOSTILE: HOSTILE}, devices=[{"kind": HOSTILE}])  # fmt: skip
    edit(hostile / "config.json", name=HOSTILE, optimizer="x" * 300, **{HOSTILE: HOSTILE})
    unfinished = shutil.copytree(hostile, hostile.with_name(f"{hostile.name} unfinished"))
    unfinish(unfinished, 28)
    pages = {"one": [hostile], "several": [hostile, trained[1e-4, 1], trained[1e-4, 2]]}
    pages["unfinished"] = [unfinished]
    for name, workdirs in pages.items():
        path = tmp_path / f"{name}.html"
        report.write(workdirs, path)
        assert HOSTILE not in path.read_text()
        for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark")):
            page = browser.new_page()
            messages, urls = [], []
            page.on("console", lambda message, messages=messages: messages.append(message.text))
            page.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
            page.on("request", lambda request, urls=urls: urls.append(request.url))
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)
            page.goto(path.as_uri())
            assert messages == []
            assert all(url.startswith(("file:", "data:")) for url in urls)
            images = page.evaluate(
                "[...document.images].map(i => [i.naturalWidth, i.width, i.currentSrc])"
            )
            assert len(images) == {"one": 6, "several": 4, "unfinished": 2}[name]
            assert all(natural > 500 and 0 < shown <= width for natural, shown, _ in images)
            assert page.title() != "taken" and "<img src=x" in page.title()
            assert page.evaluate("document.scripts.length") == 0
            assert "<img src=x onerror" in page.inner_text("pre >> nth=0")
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 25, 29)"}[scheme]
            sources = page.evaluate("[...document.querySelectorAll('source')].map(s => s.srcset)")
            darks = [source == shown[2] for source, shown in zip(sources, images, strict=True)]
            assert all(darks) if scheme == "dark" else not any(darks)
            for narrower in (width, 768, 320):
                page.set_viewport_size({"width": narrower, "height": 844})
                assert page.evaluate("document.documentElement.scrollWidth") <= narrower
                assert page.evaluate(BROKEN_WORDS) == []
            page.close()


def test_shared_seeds_are_paired_and_single_seeds_compared_over_images(trained):
    runs = {key: finished_runs.read(path) for key, path in trained.items()}
    fast, slow = ([runs[rate, seed] for seed in (1, 2)] for rate in (1e-3, 1e-4))

    def compare(*selected):
        return comparison.compare(*run_settings.settings_of(selected))

    labels = [setting.label for setting in run_settings.settings_of([*fast, *slow])]
    assert labels == ["tiny, learning_rate=0.001", "tiny, learning_rate=0.0001"]
    seeds = compare(*fast, *slow)
    a, b = ([run.result["test"]["accuracy"][0] for run in pair] for pair in (fast, slow))
    assert "2 seeds" in seeds.method and seeds.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert seeds.low < seeds.mean < seeds.high
    images = compare(fast[0], slow[0])
    assert "McNemar" in images.method and images.mean == pytest.approx(b[0] - a[0])
    unpaired = compare(fast[0], slow[1])
    assert "McNemar" in unpaired.method and "only" not in unpaired.method
    one_shared = compare(*fast, slow[1])
    assert one_shared.method.startswith("only seed 2 against seed 2, ")
    by_seed = run_settings.settings_of(fast)  # they differ in the seed alone: a setting each
    assert [setting.label for setting in by_seed] == ["tiny, seed 1", "tiny, seed 2"]


def test_changed_predictions_show_the_images_that_changed(trained):
    first, other = settings_of(trained[1e-3, 1], trained[1e-4, 1])
    lost = mosaics.corrected_images(other, 1, first, 1, "lost")
    images = read_idx("t10k-images-idx3-ubyte")[:250, :, :, 0]
    changed = np.flatnonzero(first.correct(1) & ~other.correct(1))
    assert len(lost) == len(changed) > 0
    for (image, title, note, _), index in zip(lost, changed, strict=True):
        assert np.array_equal(image, images[index]) and note == "lost"
        assert title.startswith(f"{first.runs[0].predictions.labels[index]} predicted as ")


@pytest.mark.parametrize("state", ["nothing", "older", "damaged"])
def test_directory_without_a_run_is_refused_in_one_line(state, copied_run, tmp_path):
    if state == "nothing":
        shutil.rmtree(copied_run)
        message = "not a run directory"
    elif state == "older":
        (copied_run / "predictions.npz").unlink()
        message = "no predictions.npz"
    else:
        (copied_run / "result.json").unlink()
        edit(copied_run / "config.json", num_seeds="two")
        message = "do not belong together"
    if state == "older":  # one state is enough for the command itself
        out, err = run("mnist_cnn.report", "--workdir", copied_run, status=1)
        assert out == "" and message in err and err.count("\n") == 1
    with pytest.raises(CheckpointError) as error:
        report.write([copied_run], tmp_path / "report.html")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


class Trap:
    """Creates the file `mark` when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


def test_nothing_is_unpickled_and_damaged_files_are_refused_in_one_line(copied_run, tmp_path):
    path, mark = copied_run / "predictions.npz", tmp_path / "executed"
    intact = path.read_bytes()
    arrays = RunDirectory(copied_run).read_arrays("predictions.npz")
    np.savez(path, allow_pickle=True, **arrays | {"labels": np.array([Trap(mark)], object)})
    half = len(intact) // 2
    damaged = [path.read_bytes(), b"", b"PK", intact[:half], intact[:-1], b"\x80\x04."]
    flipped = bytearray(intact)
    flipped[half] ^= 1
    for wrong in (
        {"labels": arrays["labels"][:-1]}, {"labels": arrays["labels"][::-1]},
        {"images": arrays["images"][:1]}, {"logits": arrays["logits"][0]}, {"more": np.zeros(1)},
    ):  # fmt: skip
        np.savez(path, allow_pickle=False, **arrays | wrong)
        damaged.append(path.read_bytes())
    for content in [*damaged, bytes(flipped)]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            predictions.read(RunDirectory(copied_run))
        assert "\n" not in str(error.value)
    assert not mark.exists()
    path.write_bytes(intact)
    predictions.read(RunDirectory(copied_run))


def test_result_of_another_run_is_refused(copied_run):
    test = json.loads((copied_run / "result.json").read_text())["test"]
    for wrong in ({**test, "correct": [249]}, {**test, "loss": ["<b>"]}, {}, None):
        edit(copied_run / "result.json", test=wrong)
        with pytest.raises(CheckpointError, match="do not belong together"):
            finished_runs.read(copied_run)


@pytest.mark.parametrize("arguments", [(), ("--workdir", "a", "a"), ("--wrokdir=a",)])
def test_wrong_usage_is_one_line(arguments, tmp_path):
    out, err = run("mnist_cnn.report", *arguments, cwd=tmp_path, status=2)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_runs_on_different_test_images_are_not_compared(trained, copied_run, tmp_path):
    arrays = RunDirectory(copied_run).read_arrays("predictions.npz")
    images = np.zeros((len(arrays["labels"]), 28, 28, 1), np.uint8)
    relabelled = predictions.collect(arrays["logits"], (arrays["labels"] + 1) % 10, images, {})
    RunDirectory(copied_run).write_arrays("predictions.npz", relabelled)
    correct = int((relabelled["logits"][0].argmax(-1) == relabelled["labels"]).sum())
    test = json.loads((copied_run / "result.json").read_text())["test"]
    edit(copied_run / "result.json", test=test | {"correct": [correct]})
    with pytest.raises(CheckpointError, match="tested on different images"):
        report.write([trained[1e-3, 1], copied_run], tmp_path / "report.html")


@pytest.mark.slow
def test_run_without_mistakes_has_a_report(trained, copied_run, tmp_path):
    labels = RunDirectory(copied_run).read_arrays("predictions.npz")["labels"]
    logits = 9 * np.eye(10, dtype=np.float32)[labels][None]
    arrays = predictions.collect(logits, labels, np.zeros((len(labels), 28, 28, 1), np.uint8), {})
    RunDirectory(copied_run).write_arrays("predictions.npz", arrays)
    test = json.loads((copied_run / "result.json").read_text())["test"]
    edit(
        copied_run / "result.json", test=test | {"correct": [250], "accuracy": [1.0], "loss": [0.0]}
    )
    with open(copied_run / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "epoch": 1.0, "split": "test", "loss": 0.0, "accuracy": 1.0}\n')
    report.write([copied_run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "100.00 %" in page and page.count("<img ") == 5  # no first-layer filters
    report.write([trained[1e-3, 1], copied_run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<img ") == 4


def test_comparison_prints_its_sentence_and_where_its_page_is(trained, tmp_path):
    page = tmp_path / "page.html"
    directories = [trained[rate, 1] for rate in (1e-3, 1e-2)]
    out, err = run("mnist_cnn.report", "--workdir", *directories, "--output", page)
    sentence, note, place = out.splitlines()
    assert sentence.startswith("tiny, learning_rate=0.01 compared with tiny, learning_rate=0.001: ")
    assert "corrected" not in sentence  # there is one comparison
    assert note.startswith("A test over images tells whether two trained networks differ, not ")
    for line in (sentence, note):
        assert line in html.unescape(page.read_text())
    assert (place, err) == (f"report: {page}", "")


def test_a_loss_of_zero_is_a_number():
    mean = {"accuracy": 1.0, "ci95": None, "loss": 0.0}
    settings = [{"setting": {"b1": 0.9}, "status": "finished", "validation_mean": mean}]
    sweep = {"split": "train[400:]", "settings": settings, "chosen": 0}
    assert "<td>0.0000</td>" in html_report._sweep_table(sweep)


def test_an_interval_beyond_the_possible_range_is_not_printed(trained):
    """Two seeds with 0 and 100 %: 50 +- 635 %."""
    first, other = settings_of(trained[1e-3, 1], trained[1e-2, 1])
    assert pages.percent(0.5, statistics.mean_interval(np.array([0.0, 1.0]))) == "50.00 %"
    assert pages.percent(0.985, 0.01) == "98.50 ± 1.00 %"
    difference = statistics.compare_over_seeds(np.array([0.0, 0.5]), np.array([0.0, 0.9]))
    sentence = comparison_page._sentence(comparison.Comparison(first, other, difference, 0.1, 9), 1)
    assert "95 % confidence interval unknown (too few seeds), p = " in sentence


def without_plots(monkeypatch):
    """Only the sentences and tables of a page, which take no time."""
    empty = plots.Plot("", "", b"", b"")
    monkeypatch.setattr(plots, "draw_plot", lambda *_, height=0: empty)
    monkeypatch.setattr(mosaics, "draw_plot", lambda *_: empty)


@pytest.mark.slow
def test_images_whose_label_is_in_doubt_are_shown_apart(trained_base, trained, tmp_path):
    run = finished_runs.read(trained_base)
    assert len(run.doubtful) == 15
    missed = np.flatnonzero(~run.correct[0])
    without = np.delete(run.correct[0], run.doubtful)
    (sentence,) = html_report.write([trained_base], tmp_path / "report.html")
    assert sentence.endswith(
        f" Without the 15 images whose label is in doubt: {100 * without.mean():.2f} %; of these, "
        f"{len(set(missed) & set(run.doubtful))} are misclassified."
    )
    perfect, other = (run_settings.Setting("x", [one]) for one in (run, run))
    object.__setattr__(perfect, "correct", lambda seed: np.ones(10_000, bool))
    shown = mosaics.corrected_images(other, 1337, perfect, 1337, "gained")
    marked = {int(index) for index, one in zip(missed, shown, strict=True) if one.doubtful}
    assert marked == set(missed) & set(run.doubtful) and marked
    assert all(("? predicted as" in one.above) == one.doubtful for one in shown)
    meaning = "fewer than three of five people chose the label"
    assert meaning in mosaics.image_grid("x", "y", shown).caption
    assert meaning not in mosaics.image_grid("x", "y", [shown[0]._replace(doubtful=False)]).caption
    (setting,) = settings_of(trained_base)
    assert comparison_page._other_means(setting)[2] == f"{100 * without.mean():.2f} %"
    other = finished_runs.read(trained[1e-3, 1])  # of 250 images of MNIST: another test set
    assert not len(other.doubtful) and "in doubt" not in html_report._summary(other)


def test_nll_and_ece_are_beside_each_accuracy_of_a_comparison(trained):
    (setting,) = settings_of(trained[1e-3, 1])
    run = setting.runs[0]
    metrics = statistics.classification_metrics(run.predictions.logits[0], run.predictions.labels)
    names = ("negative_log_likelihood", "expected_calibration_error")
    assert comparison_page._other_means(setting) == [f"{metrics[name]:.4f}" for name in names]
    page, _ = comparison_page.comparison_page(settings_of(trained[1e-3, 1], trained[1e-4, 1]))
    assert "<th>test accuracy</th><th>NLL</th><th>ECE</th></tr>" in page


@pytest.mark.slow
def test_the_report_has_the_temperature_or_what_it_needs(trained_base, tiny_experiment, tmp_path):
    without = finished_runs.read(trained_base)
    assert html_report._temperature(without) == [
        ["temperature", "none: fitting it needs a validation_split"]
    ]
    split = {"train_split": "train[:400]", "validation_split": "train[400:]", "num_seeds": 2}
    result = train(tiny_experiment, tmp_path, **split, report=False)
    run = finished_runs.read(tmp_path)
    page, _ = html_report.run_page(run)
    names = ("temperature", "negative_log_likelihood", "expected_calibration_error")
    found = {name: np.mean(result["calibrated"][name]) for name in names}
    assert f"<td>{found['temperature']:.4f}, fitted on train[400:]</td>" in page
    assert f"<td>{found['negative_log_likelihood']:.4f} nats per image</td>" in page
    assert f"<td>{found['expected_calibration_error']:.4f}</td>" in page
    assert f"With the temperature: {found['expected_calibration_error']:.4f}" in page
    logits, labels = run.calibrated
    halves = zip(np.split(logits, 2), np.split(labels, 2), strict=True)
    each = [statistics.calibration(*half).error for half in halves]
    assert np.mean(each) == pytest.approx(found["expected_calibration_error"])
    fold = dataclasses.replace(run, config=run.config | {"fold": "1/3"})
    joined = cross_validation.join(run_settings.Setting("x", [fold]))
    assert run.calibrated is not None and joined.calibrated is None  # not those of one fold
    page, _ = cross_validation_page.cross_validation_page(run_settings.Setting("x", [fold]))
    fitted = statistics.fit_temperature(*joined.pooled)
    assert f"<th>temperature fitted on these images</th><td>{fitted:.4f}</td>" in page
    edit(tmp_path / "result.json", calibrated={"temperature": [1.0, "x"]})
    with pytest.raises(CheckpointError, match="do not belong together"):
        finished_runs.read(tmp_path)


def test_several_settings_are_corrected_for_their_number(trained, tmp_path, monkeypatch):
    """Holm's correction, of the comparisons with the first setting or of all pairs."""
    without_plots(monkeypatch)
    directories = list(trained.values())
    settings = settings_of(*directories)
    for pairs, wanted in ((False, [(0, 1), (0, 2)]), (True, [(0, 1), (0, 2), (1, 2)])):
        compared = comparison.compare_all(settings, pairs)
        assert [(settings.index(x.first), settings.index(x.other)) for x in compared] == wanted
        p = [comparison.compare(settings[a], settings[b]).p for a, b in wanted]
        assert [x.corrected_p for x in compared] == statistics.holm(p) != p
        sentences = report.write(directories, tmp_path / "page.html", pairs=pairs)
        page = html.unescape((tmp_path / "page.html").read_text())
        assert len(sentences) == len(wanted) + 1 and all(line in page for line in sentences)
        for sentence, one in zip(sentences, compared, strict=False):
            names = f"{one.other.label} compared with {one.first.label}: "
            assert sentence.startswith(names)
            assert f"p = {one.difference.p:.2g}, corrected {one.corrected_p:.2g} (" in sentence
            needed = statistics.seeds_needed(one.difference.effect_size, len(wanted))
            text = f"needs about {needed} seeds (80 % power, paired t-test at 5 % / {len(wanted)})."
            assert one.seeds_needed == needed and sentence.endswith(text)
        assert f"corrected p is that of {len(wanted)} comparisons (Holm)" in sentences[-1]
    found = statistics.Difference(0.01, 0.0, 0.02, 0.03, "over seeds", effect_size=0.5)
    monkeypatch.setattr(comparison, "compare", lambda *_: found)
    needed = [one.seeds_needed for one in comparison.compare_all(settings, pairs=True)]
    assert needed == [statistics.seeds_needed(0.5, 3)] * 3 and needed[0] > 34


@pytest.mark.slow
def test_the_command_compares_pairs(trained, tmp_path):
    directories = [trained[rate, 1] for rate in (1e-3, 1e-4, 1e-2)]
    page = tmp_path / "page.html"
    out, _ = run("mnist_cnn.report", "--workdir", *directories, "--pairs", "--output", page)
    a, b, c = (f"tiny, learning_rate={rate}" for rate in ("0.001", "0.0001", "0.01"))
    lines = out.splitlines()
    for line, (first, other) in zip(lines, ((a, b), (a, c), (b, c)), strict=False):
        assert line.startswith(f"{other} compared with {first}: ")
    assert len(lines) == 6 and page.read_text().count("<h2>Changed predictions") == 3


def unfinish(directory, step):
    """As a kill would leave the run after that step."""
    for name in ("result.json", "predictions.npz"):
        (directory / name).unlink()
    lines = (directory / "metrics.jsonl").read_text().splitlines(True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (directory / "metrics.jsonl").write_text("".join(kept))


def test_the_report_of_an_unfinished_run_shows_what_there_is(copied_run):
    unfinish(copied_run, 28)
    out, err = run("mnist_cnn.report", "--workdir", copied_run)
    sentence, place = out.splitlines()
    assert sentence == (
        f"{copied_run} is not finished: its last logged step is 28, and it ends at step 40. It has "
        "no test result; run its command again to finish it."
    )
    assert err == "" and place == f"report: {copied_run}/report.html"
    page = html.unescape((copied_run / "report.html").read_text())
    assert '<p class="result">not finished</p>' in page and sentence in page
    assert page.count("<img ") == 2 and "Test: " not in page and "parameters" not in page
    last = [line for line in metrics_of(copied_run) if line["step"] == 28]
    for line, name in zip(last, ("training", "validation"), strict=True):
        accuracy = f"{100 * line['accuracy']:.2f} %"
        row = f"<th>{name}, step 28</th><td>{line['loss']:.4f}</td><td>{accuracy}</td>"
        assert row in page
    (copied_run / "metrics.jsonl").unlink()
    (line,) = report.write([copied_run], copied_run / "report.html")
    assert "not finished: no step is logged yet" in line
    assert "<img " not in (copied_run / "report.html").read_text()
    assert line in report.pictures(copied_run).html


def test_the_report_of_a_diverged_run_shows_what_there_is(tiny_experiment, tmp_path):
    config = config_of(tiny_experiment, learning_rate=1e30, log_every=1)
    with pytest.raises(Diverged):
        mnist_cnn.run(config, tmp_path)
    (sentence,) = report.write([tmp_path], tmp_path / "page.html")
    step = json.loads((tmp_path / "result.json").read_text())["steps"]
    assert f"diverged: its loss or its parameters were not finite at step {step}. It" in sentence
    page = html.unescape((tmp_path / "page.html").read_text())
    assert '<p class="result">diverged</p>' in page and sentence in page
    assert page.count("<img ") == 2 * (len(metrics_of(tmp_path)) > 0)


@pytest.mark.slow
def test_the_report_of_an_unfinished_sweep_shows_all_its_settings(tiny_experiment, tmp_path):
    config = config_of(
        tiny_experiment, sweep={"learning_rate": [1e-3, 1e30]}, num_seeds=2, num_steps=14,
        train_split="train[:400]", validation_split="train[400:]",
    )  # fmt: skip
    mnist_cnn.run(config, tmp_path)
    (tmp_path / "result.json").unlink()
    report.write([tmp_path], tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text())
    last = [line for line in metrics_of(tmp_path) if line["split"] == "validation"][-1]
    loss, accuracy = np.mean(last["loss"][:2]), 100 * np.mean(last["accuracy"][:2])
    assert "last logged, mean of 2 seeds" in page
    assert (
        f"<th>learning_rate=0.001, validation, step 14</th><td>{loss:.4f}</td>"
        f"<td>{accuracy:.2f} %</td>" in page
    )
    assert "<th>learning_rate=1e+30, validation, step 14</th><td>-</td>" in page


def test_a_comparison_leaves_out_what_has_no_result_and_says_so(trained, tmp_path, monkeypatch):
    copies = {key: shutil.copytree(path, tmp_path / path.name) for key, path in trained.items()}
    unfinish(copies[1e-4, 2], 14)
    edit(copies[1e-2, 1] / "result.json", status="diverged", steps=31)
    shutil.rmtree(copies[1e-2, 2])
    curves = []
    without_plots(monkeypatch)
    monkeypatch.setattr(plots, "learning_curves", lambda settings: curves.extend(settings) or [])
    directories = [path for path in copies.values() if path.exists()]
    comparison, note, *others = report.write(directories, tmp_path / "page.html")
    a, b, c = (f"tiny, learning_rate={rate}" for rate in ("0.001", "0.0001", "0.01"))
    assert comparison.startswith(f"{b} compared with {a}: ") and "only seed 1 against" in comparison
    assert note.startswith("A test over images")
    assert [line.split(":")[0] for line in others] == [
        f"{copies[1e-4, 2]} is not finished", f"{copies[1e-2, 1]} diverged",
    ]  # fmt: skip
    labels = [setting.label for setting in curves]
    assert labels == [a, b, f"{b} (not finished)", f"{c} (diverged)"]
    assert [setting.series("train", "loss")[0][-1] for setting in curves] == [40, 40, 14, 40]
    page = (tmp_path / "page.html").read_text()
    assert f"<th>{c}</th><td>1</td><td>diverged</td>" in page

    unfinished = [copies[1e-4, 2], copies[1e-2, 1], copies[1e-3, 1]]
    sentences = report.write(unfinished, tmp_path / "page.html")
    assert len(sentences) == 3 and "Fewer than two settings have a test result" in sentences[0]
    assert len(report.write(unfinished[:2], tmp_path / "page.html")) == 3


@pytest.mark.parametrize(
    "length",
    ["num_steps", *(pytest.param(x, marks=pytest.mark.slow) for x in ("num_epochs", "metrics"))],
)
def test_a_result_of_another_length_is_never_shown(length, tiny_experiment, tmp_path, monkeypatch):
    """As an older version left a run that it prolonged, and that was killed before its end."""
    without_plots(monkeypatch)
    config = config_of(tiny_experiment, num_steps=None, num_epochs=1)
    assert mnist_cnn.run(config, tmp_path)["steps"] == 17
    (read,) = report.write([tmp_path], tmp_path / "page.html")
    assert read.startswith("tiny, 17 steps: ")
    if length == "metrics":
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 21, "epoch": 1.24, "split": "train", "loss": 1, "accuracy": 1}\n')
    else:
        edit(tmp_path / "config.json", **{length: {"num_steps": 20, "num_epochs": 2}[length]})
    (read,) = report.write([tmp_path], tmp_path / "page.html")
    assert "is not finished" in read and "%" not in read
    (setting,) = settings_of(tmp_path)
    assert setting.series("test", "loss")[1].size == 0
    with config.ignore_type():
        config.update(num_steps=20 if length == "num_steps" else None, num_epochs=2)
    result = mnist_cnn.run(config, tmp_path)  # resumes; the old result does not count as finished
    assert result["steps"] == (20 if length == "num_steps" else 34)
    (setting,) = settings_of(tmp_path)
    assert setting.series("test", "loss")[0].tolist() == [result["steps"]]


def test_the_report_of_an_unfinished_run_does_not_outlive_it(unfinished, tiny_experiment):
    report.write([unfinished], unfinished / "report.html")
    mnist_cnn.run(config_of(tiny_experiment), unfinished)
    assert not (unfinished / "report.html").exists()
