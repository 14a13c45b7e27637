"""The report, as its reader has it: in a real browser, of real runs."""

import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from conftest import imported_by, metrics_of, run

import mnist_cnn
from mnist_cnn import report
from mnist_cnn.analysis import figures, finished_runs, gallery, page as page_lib
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner import predictions
from mnist_cnn.runner.run_directory import RunDirectory

HOSTILE = "<img src=x onerror=document.title='taken'> & \"$x_\\frac$\" \x1b[31m"


@pytest.fixture(scope="module")
def trained(tiny_experiment, tmp_path_factory):
    """Finished runs: seeds 1 and 2 of three learning rates, keyed by (rate, seed)."""
    folder = tmp_path_factory.mktemp("report")
    found = {}
    for rate in (1e-3, 1e-4, 1e-2):
        for seed in (1, 2):
            config = runpy.run_path(str(tiny_experiment))["get_config"]()
            with config.unlocked():
                config.learning_rate, config.seed = rate, seed
                config.checkpoint_every = 1000
                config.train_split, config.validation_split = "train[:400]", "train[400:]"
            mnist_cnn.run(config, folder / f"{rate:g}-{seed}")
            found[rate, seed] = folder / f"{rate:g}-{seed}"
    return found


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_ends_with_its_report_and_without_one_matplotlib_stays_out(tiny_experiment, tmp_path):
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


def test_a_report_that_cannot_be_made_costs_a_run_nothing(tiny_experiment, tmp_path, capsys):
    config = runpy.run_path(str(tiny_experiment))["get_config"]()
    with config.unlocked():
        config.report, config.num_steps = True, 3
    (tmp_path / "report.html").mkdir()
    assert mnist_cnn.run(config, tmp_path)["status"] == "finished"
    assert "note: no report.html" in capsys.readouterr().out


def test_the_report_needs_the_copied_directory_alone(trained, tmp_path):
    copy = tmp_path / "copied elsewhere"
    shutil.copytree(trained[1e-3, 1], copy)
    shutil.rmtree(copy / "checkpoints")
    (copy / "lock").unlink()
    out, err = run(
        "mnist_cnn.report", "--workdir", copy, cwd=tmp_path, TFDS_DATA_DIR=str(tmp_path / "none")
    )
    assert err == "" and out == f"report: {copy}/report.html\n"
    assert not (tmp_path / "none").exists()


def test_a_swept_number_has_its_curve_on_held_out_images(trained, monkeypatch):
    settings = finished_runs.settings_of([finished_runs.read(path) for path in trained.values()])
    assert finished_runs.swept(settings) == ("learning_rate", [1e-3, 1e-4, 1e-2])
    assert finished_runs.swept(settings[:2]) is None
    drawn = []
    original = figures.sweep
    monkeypatch.setattr(figures, "sweep", lambda *a: drawn.append(a) or original(*a))
    page = page_lib.comparison(settings)
    assert "Mistakes over learning_rate" in page and len(drawn) == 2  # light and dark
    _, (line,), label, _ = drawn[0]
    values, errors = line.values, line.errors
    assert label.startswith("validation")
    for rate, found in zip(values, errors, strict=True):
        for seed, error in zip((1, 2), found, strict=True):
            last = [e for e in metrics_of(trained[rate, seed]) if e["split"] == "validation"][-1]
            assert error == pytest.approx(100 * (1 - last["accuracy"]))


def test_the_report_is_whole_in_a_browser(trained, browser, tmp_path):
    """Every picture shown in both themes, no error, no request, no scrolling, all text text."""
    hostile = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(trained[1e-3, 1], hostile)
    edit(hostile / "environment.json", command=["python", HOSTILE, "</pre></style><script>"],
         platform=HOSTILE, versions={HOSTILE: HOSTILE}, devices=[{"kind": HOSTILE}])  # fmt: skip
    edit(hostile / "config.json", name=HOSTILE, optimizer="x" * 300, **{HOSTILE: HOSTILE})
    pages = {"one": [hostile], "several": [hostile, trained[1e-4, 1], trained[1e-4, 2]]}
    for name, workdirs in pages.items():
        path = tmp_path / f"{name}.html"
        report.write(workdirs, path)
        assert HOSTILE not in path.read_text()
        for width, scheme in ((390, "light"), (390, "dark"), (1200, "dark")):
            page = browser.new_page()
            said, asked = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)
            page.goto(path.as_uri())
            assert said == []
            assert all(url.startswith(("file:", "data:")) for url in asked)
            images = page.evaluate(
                "[...document.images].map(i => [i.naturalWidth, i.width, i.currentSrc])"
            )
            assert len(images) == {"one": 6, "several": 4}[name]
            assert all(natural > 500 and 0 < shown <= width for natural, shown, _ in images)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.title() != "taken" and "<img src=x" in page.title()
            assert page.evaluate("document.scripts.length") == 0
            assert "<img src=x onerror" in page.inner_text("pre >> nth=0")
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 25, 29)"}[scheme]
            sources = page.evaluate("[...document.querySelectorAll('source')].map(s => s.srcset)")
            darks = [source == shown[2] for source, shown in zip(sources, images, strict=True)]
            assert all(darks) if scheme == "dark" else not any(darks)
            page.close()


def test_the_result_comes_first_and_says_what_result_json_says(trained):
    workdir = trained[1e-4, 2]
    report.write([workdir], workdir / "report.html")
    page = (workdir / "report.html").read_text()
    test = json.loads((workdir / "result.json").read_text())["test"]
    body = page[page.index("<body>") :]
    assert f'<p class="result">{test["accuracy"][0]:.2%}'.replace("%", " %") in body[:300]
    assert f"{test['correct'][0]:,} of 250" in page and f"{test['loss'][0]:.4f}" in page
    assert "<tr><th>learning_rate</th><td>0.001</td><td>0.0001</td></tr>" in page


def test_several_seeds_are_compared_pairwise_and_one_over_the_images(trained):
    four = [finished_runs.read(path) for path in trained.values()]
    slow, fast = four[2:4], four[:2]
    first, second = finished_runs.settings_of([*fast, *slow])
    assert first.label == "tiny, learning_rate=0.001"
    assert second.label == "tiny, learning_rate=0.0001"
    seeds = finished_runs.compare(first, second)
    a, b = ([run.result["test"]["accuracy"][0] for run in two] for two in (fast, slow))
    assert "2 seeds" in seeds.method and seeds.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert seeds.low < seeds.mean < seeds.high
    images = finished_runs.compare(*finished_runs.settings_of([fast[0], slow[0]]))
    assert "McNemar" in images.method and images.mean == pytest.approx(b[0] - a[0])
    apart = finished_runs.compare(*finished_runs.settings_of([fast[0], slow[1]]))
    assert "McNemar" in apart.method and "alone" not in apart.method
    some = finished_runs.compare(*finished_runs.settings_of([*fast, slow[1]]))
    assert some.method.startswith("seed 2 against seed 2 alone")
    alone = finished_runs.settings_of(fast[:2])  # the same but for the seed: each by itself
    assert [setting.label for setting in alone] == ["tiny, seed 1", "tiny, seed 2"]


def test_the_images_that_change_sides_are_the_ones_shown(trained):
    first, other = finished_runs.settings_of(
        [finished_runs.read(trained[1e-3, 1]), finished_runs.read(trained[1e-4, 1])]
    )
    lost = gallery._flipped(other, 1, first, 1, "lost")
    images = mnist_images(250)
    changed = np.flatnonzero(first.right(1) & ~other.right(1))
    assert len(lost) == len(changed) > 0
    for digit, index in zip(lost, changed, strict=True):
        assert np.array_equal(digit.values, images[index])
        assert f"true {first.runs[0].tested.labels[index]}," in digit.title


def mnist_images(count):
    from conftest import read_idx

    return read_idx("t10k-images-idx3-ubyte")[:count, :, :, 0]


@pytest.mark.parametrize("state", ["unfinished", "diverged", "nothing", "older"])
def test_a_run_without_a_result_says_so_in_one_line(state, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1e-3, 1], workdir)
    if state == "unfinished":
        (workdir / "result.json").unlink()
    elif state == "diverged":
        edit(workdir / "result.json", status="diverged")
    elif state == "nothing":
        shutil.rmtree(workdir)
    else:
        (workdir / "predictions.npz").unlink()
    said = {"nothing": "no run there", "older": "no predictions.npz"}
    said = said.get(state, f"is {state} (step 40)")
    if state == "diverged":  # once as its user meets it
        out, err = run("mnist_cnn.report", "--workdir", workdir, status=1)
        assert out == "" and said in err and err.count("\n") == 1
    with pytest.raises(CheckpointError) as error:
        report.write([workdir], tmp_path / "report.html")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


class Trap:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


def test_nothing_that_is_loaded_is_unpickled_and_damage_is_one_line(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[1e-3, 1], workdir)
    path, mark = workdir / "predictions.npz", tmp_path / "executed"
    good = path.read_bytes()
    arrays = RunDirectory(workdir).read_arrays("predictions.npz")
    np.savez(path, allow_pickle=True, **arrays | {"labels": np.array([Trap(mark)], object)})
    damaged = [path.read_bytes(), b"", b"PK", good[: len(good) // 2], good[:-1], b"\x80\x04."]
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for wrong in (
        {"labels": arrays["labels"][:-1]}, {"labels": arrays["labels"][::-1]},
        {"images": arrays["images"][:1]}, {"logits": arrays["logits"][0]}, {"more": np.zeros(1)},
    ):  # fmt: skip
        np.savez(path, allow_pickle=False, **arrays | wrong)
        damaged.append(path.read_bytes())
    for content in [*damaged, bytes(flipped)]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            predictions.read(RunDirectory(workdir))
        assert "\n" not in str(error.value)
    assert not mark.exists()
    path.write_bytes(good)
    predictions.read(RunDirectory(workdir))


def test_a_result_of_another_run_is_not_shown(trained, tmp_path):
    shutil.copytree(trained[1e-3, 1], tmp_path / "run")
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    for wrong in ({**test, "correct": [249]}, {**test, "loss": ["<b>"]}, {}, None):
        edit(tmp_path / "run" / "result.json", test=wrong)
        with pytest.raises(CheckpointError, match="do not belong together"):
            finished_runs.read(tmp_path / "run")


@pytest.mark.parametrize("arguments", [(), ("--workdir", "a", "a"), ("--wrokdir=a",)])
def test_wrong_usage_of_report_is_one_line(arguments, tmp_path):
    out, err = run("mnist_cnn.report", *arguments, cwd=tmp_path, status=2)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_runs_on_different_test_images_are_not_compared(trained, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(trained[1e-3, 1], other)
    arrays = RunDirectory(other).read_arrays("predictions.npz")
    images = np.zeros((len(arrays["labels"]), 28, 28, 1), np.uint8)
    turned = predictions.collect(arrays["logits"], (arrays["labels"] + 1) % 10, images, {})
    RunDirectory(other).write_arrays("predictions.npz", turned)
    right = int((turned["logits"][0].argmax(-1) == turned["labels"]).sum())
    test = json.loads((other / "result.json").read_text())["test"]
    edit(other / "result.json", test=test | {"correct": [right]})
    with pytest.raises(CheckpointError, match="tested on different images"):
        report.write([trained[1e-3, 1], other], tmp_path / "report.html")


def test_a_run_without_a_mistake_has_a_report_too(trained, tmp_path):
    perfect = tmp_path / "run"
    shutil.copytree(trained[1e-3, 1], perfect)
    labels = RunDirectory(perfect).read_arrays("predictions.npz")["labels"]
    logits = 9 * np.eye(10, dtype=np.float32)[labels][None]
    arrays = predictions.collect(logits, labels, np.zeros((len(labels), 28, 28, 1), np.uint8), {})
    RunDirectory(perfect).write_arrays("predictions.npz", arrays)
    test = json.loads((perfect / "result.json").read_text())["test"]
    edit(perfect / "result.json", test=test | {"correct": [250], "accuracy": [1.0], "loss": [0.0]})
    with open(perfect / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "epoch": 1.0, "split": "test", "loss": 0.0, "accuracy": 1.0}\n')
    report.write([perfect], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "100.00 %" in page and page.count("<img ") == 5  # no filters that look at pixels
    report.write([trained[1e-3, 1], perfect], tmp_path / "report.html")
