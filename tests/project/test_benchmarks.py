"""The benchmarks compare, count and draw; no test depends on how fast anything is."""

import json
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest
from conftest import read_idx
from PIL import Image

from benchmarks import accelerator, handwriting, machine, missed, plot, render, scaling, training
from benchmarks.peer import PEERS, Peer, PeerProcess
from mnist_cnn.data.spec import MNIST

SMALL = {16: 3}  # batch size -> steps
OURS, FLAX = PEERS[0], Peer("plain Flax loop", ("flax_loop",))  # in this environment


def test_the_operations_of_a_step_are_those_counted_by_hand():
    cost = machine.step_cost(32)
    conv1, conv2 = 28 * 28 * 25 * 32, 14 * 14 * 25 * 32 * 64
    dense = 7 * 7 * 64 * 1024 + 1024 * 10
    assert cost.flops == 2 * 32 * (2 * conv1 + 3 * conv2 + 3 * dense)
    assert cost.adam_bytes == 7 * 4 * 3_274_634
    rates = machine.Rates(1e9, 1e10)
    assert rates.least_seconds(cost) == pytest.approx(cost.flops / 1e9 + cost.adam_bytes / 1e10)


@pytest.mark.slow
def test_peers_are_compared_and_plotted_and_the_scaling_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_LOSS_TOLERANCE", 1.0)  # three steps teach little
    compared = training.compare([OURS, FLAX], rounds=2, steps=SMALL)
    part = compared["batch_sizes"]["16"]
    assert list(part["images_per_second"]) == ["mnist_cnn, float32", "plain Flax loop"]
    for rates in (*part["images_per_second"].values(), part["limit"]):
        assert len(rates) == 2 and min(rates) > 0
    assert all(0 < loss < 2.5 for loss in part["loss"].values())
    assert compared["versions"]["plain Flax loop"]["jax"] == jax.__version__
    assert training.ratios(part, part["images_per_second"]["mnist_cnn, float32"]) == [1, 1]
    assert training.table(compared).row_count == 3

    found = {
        "batch size": scaling.batch_sizes(1, (8, 16)),
        "replicas": scaling.replicas(1, (1, 2), steps=2),
        "input": scaling.input_wait(1, count=2),
        "start-up": {"cold": [2.0], "warm": [1.0]},
        "epochs": {
            "epochs": (1, 2), "seconds": (3.0, 4.0), "peak_megabytes": (1.0, 1.0),
            "seconds_an_epoch": 1.0, "seconds_apart": 2.0,
        },
        "base": {"seconds": 60.0, "peak_megabytes": 700.0},
    }  # fmt: skip
    assert found.keys() == scaling.MEASUREMENTS.keys()
    assert all(len(part) == 1 for part in found["batch size"]["images_per_second"])
    for name, values in found.items():
        assert "\n" not in scaling.describe(name, values)
    environment = {"processor": "a processor", "cpu_count": 2}
    result = {"peers": compared, "growth": found, "environment": environment}
    assert json.loads(json.dumps(result))["peers"] == json.loads(json.dumps(compared))
    plot.draw(result, tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 10


@pytest.mark.slow
def test_the_accelerator_benchmark_writes_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "_LOSS_TOLERANCE", 1.0)
    monkeypatch.setattr(accelerator, "PEERS", (OURS, FLAX))
    monkeypatch.setattr(accelerator, "STEPS", SMALL)
    monkeypatch.setattr(accelerator, "REPLICAS", (1, 2))
    monkeypatch.setattr("sys.argv", ["accelerator", "--rounds=1", f"--output={tmp_path}"])
    accelerator.main()
    record = json.loads((tmp_path / "accelerator.json").read_text())
    assert record["environment"]["devices"][0]["platform"] == jax.default_backend()
    assert record["replicas"]["replicas"] == [1, 2]
    rates = record["peers"]["batch_sizes"]["16"]["images_per_second"]
    assert rates.keys() == {"mnist_cnn, float32", "plain Flax loop"}
    out = capsys.readouterr().out
    assert "cost of a replica" in out and "limit" not in out


def test_a_peer_that_does_not_learn_is_named():
    losses = {"ours": 0.30, "Keras": 0.32, "frozen": 2.30}
    with pytest.raises(RuntimeError, match=r"frozen does not learn .* 2\.300 at batch size 32"):
        training._check_learning(32, losses)
    del losses["frozen"]
    training._check_learning(32, losses)


def test_a_peer_that_does_not_start_says_why():
    with pytest.raises(RuntimeError, match=r"nobody ended unexpectedly: .*No module named"):
        PeerProcess(Peer("nobody", ("nobody",)))


def test_a_rendered_photo_is_a_function_of_the_digit_and_the_seed(hundred_images):
    digit = np.asarray(hundred_images.images[0, ..., 0])
    photos = [render.photo(digit, np.random.default_rng([0, seed])) for seed in range(40)]
    again = render.photo(digit, np.random.default_rng([0, 3]))
    assert np.array_equal(np.asarray(photos[3].image), np.asarray(again.image))
    assert again.factors == photos[3].factors
    assert {photo.image.size for photo in photos} == {(render.SIDE, render.SIDE)}
    assert len({photo.image.tobytes() for photo in photos}) == 40
    choices = (render.FACTORS, render.LINES, render.PENS, render.INKS)
    assert set.union(*(set(photo.factors) for photo in photos)) == {
        name for names in choices for name in names
    }
    for photo in photos:
        assert [len(photo.factors & set(names)) for names in choices[1:]] == [1, 1, 1]
        assert np.asarray(photo.image.convert("L")).std() > 3


class Guess:
    """A network that answers 7 to everything, surely."""

    step, members, seed, spec, knows_none = 1, (), 2, MNIST, False
    config = MappingProxyType({"name": "guess"})

    def all_probabilities(self, images, batch_size):
        rows = np.full((len(images), 10), 0.01)
        rows[:, 7] = 0.91
        return rows[None]


def test_the_pictures_of_others_are_counted_by_source(
    tmp_path, monkeypatch, capsys, hundred_images
):
    data = tmp_path / "data"
    for source, labels in {"nondigits": ("none", "none"), "pen": ("7", "8", "81 digits")}.items():
        (data / source).mkdir(parents=True)
        rows = [f"{index}.png\t{label}" for index, label in enumerate(labels)]
        (data / source / "labels.tsv").write_text("\n".join(rows) + "\n")
        for index in range(len(labels)):
            digit = np.asarray(hundred_images.images[index, ..., 0])
            Image.fromarray(digit).resize((84, 84)).save(data / source / f"{index}.png")
    Image.new("L", (84, 84), 255).save(data / "nondigits" / "1.png")  # blank
    monkeypatch.setattr("mnist_cnn.load", lambda workdir: Guess())
    monkeypatch.setattr(handwriting, "DIGITS", 6)
    monkeypatch.setattr(handwriting, "NUMBERS", 4)
    command = ["handwriting", f"--data={data}", f"--output={tmp_path}"]
    monkeypatch.setattr("sys.argv", command)
    handwriting.main()
    record = json.loads((tmp_path / "handwriting.json").read_text())
    assert record["network"] == {"name": "guess", "step": 1, "seed": 2}
    assert record["sources"]["nondigits"] == {
        "pictures": 2, "answered": 1, "correct": 1, "sure": 1, "sure_but_wrong": 1,
    }  # fmt: skip
    pen = {"pictures": 2, "answered": 2, "correct": 1, "sure": 2, "sure_but_wrong": 1}
    assert record["sources"]["pen"] == record["sources"][handwriting.PEOPLE] == pen
    assert record["sources"][handwriting.PHOTOS]["pictures"] == 6
    numbers = record["sources"][handwriting.ROWS]
    assert numbers["pictures"] == numbers["answered"] == 4
    assert record["factors"]["pencil"]["pictures"] < 6
    before = tmp_path / "before.json"
    (tmp_path / "handwriting.json").rename(before)
    monkeypatch.setattr("sys.argv", [*command, f"--before={before}"])
    handwriting.main()
    again = json.loads((tmp_path / "handwriting.json").read_text())
    assert again["sources"] == record["sources"]
    out = capsys.readouterr().out
    assert "correct before" in out and "50.0 %" in out
    with Image.open(tmp_path / "handwriting.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 10


def test_a_folder_without_labels_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_cnn.load", lambda workdir: Guess())
    monkeypatch.setattr("sys.argv", ["handwriting", f"--data={tmp_path}", f"--output={tmp_path}"])
    with pytest.raises(SystemExit, match=r"no folder with labels.tsv; give --data=DIR"):
        handwriting.main()


def test_the_pictures_in_the_repository_have_labels():
    found = handwriting.sources(handwriting.PICTURES)
    assert sum(map(len, found.values())) > 400
    assert all(Path(picture.file).is_file() for part in found.values() for picture in part)


def test_an_image_is_missed_if_most_networks_of_each_run_miss_it(
    trained_base, tmp_path, monkeypatch
):
    wrong = {"a": [[5, 6, 7], [5, 6, 8], [5, 7, 9]], "b": [[5, 7, 947]]}
    labels = read_idx("t10k-labels-idx1-ubyte").astype(int)

    def answers_of(workdir, images):
        answers = np.repeat(labels[None], len(wrong[workdir]), axis=0)
        for row, indices in zip(answers, wrong[workdir], strict=True):
            row[indices] = (row[indices] + 1) % 10
        return {"experiment": workdir, "seeds": list(range(len(answers)))}, answers

    found, answers = missed.answers_of(str(trained_base), None)
    assert (found["experiment"], found["seeds"], answers.shape) == ("base", [1337], (1, 10_000))
    monkeypatch.setattr(missed, "answers_of", answers_of)
    record = missed.measure(["a", "b"])
    assert [(one["index"], one["missed"]) for one in record["missed"]] == [(5, 4), (7, 3)]
    assert record["missed"][0]["answer"] == (labels[5] + 1) % 10
    assert [one["missed"] for one in record["networks"]] == [[3, 3, 3], [3]]
    assert [one["missed"] for one in record["doubtful"] if one["index"] == 947] == [1]
    assert missed.sentence(record).endswith("misses on average 0 (a) and 1 (b).")
    missed.draw(record, tmp_path / "missed.png")
    assert Image.open(tmp_path / "missed.png").format == "PNG"
