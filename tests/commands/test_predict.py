"""`python -m mnist_cnn.predict` on pictures of digits, with a trained network."""

import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import pty
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, config_of, imported_by, read_idx, run, start
from own_images import csv_text
from pictures import mnist_form, number, picture
from PIL import Image

import mnist_cnn
from mnist_cnn.analysis import scores
from mnist_cnn.analysis.answers import BATCH_SIZE, SURE, answer_to, answers, list_files
from mnist_cnn.analysis.submission import write_submission
from mnist_cnn.data.spec import MNIST
from mnist_cnn.digits.lines import Found
from mnist_cnn.digits.pictures import read
from mnist_cnn.errors import CheckpointError, ConfigError, DataError
from mnist_cnn.runner.blocks import blocks
from mnist_cnn.training.scoring import compute_logits


@pytest.fixture(scope="module")
def network(trained_base):
    return mnist_cnn.load(trained_base)


def write_pictures(folder, count):
    """Writes the first test images as realistic pictures; returns their paths, in order."""
    paths = []
    for index, image in enumerate(read_idx("t10k-images-idx3-ubyte")[:count, ..., 0]):
        content, suffix = picture(image, seed=index)
        paths.append(folder / f"{index:04d}{suffix}")
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 300)


@pytest.fixture
def bad(tmp_path, files):
    """A folder with one good picture, and the names of the bad files there."""
    whole = files[0].read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "new\nline\x1b[31m.png").write_text("no picture")
    Image.new("L", (200, 200), 255).save(tmp_path / "blank.png")
    Image.new("1", (10_001, 10_000)).save(tmp_path / "bomb.png")
    Image.open(files[0]).save(tmp_path / "libtiff.tif", compression="tiff_lzw")
    tiff = (tmp_path / "libtiff.tif").read_bytes()
    middle = len(tiff) // 2  # libtiff prints a message about this file
    (tmp_path / "libtiff.tif").write_bytes(tiff[:middle] + bytes(200) + tiff[middle + 200 :])
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "good.JPG").write_bytes(whole)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path, names


def json_of(out):
    return [json.loads(line) for line in out.splitlines()]


def check_recognition(network, files):
    labels = read_idx("t10k-labels-idx1-ubyte")[: len(files)]
    mnist = network(read_idx("t10k-images-idx3-ubyte")[: len(files)]).argmax(-1) == labels
    found = list(answers(network, map(str, files)))
    assert [answer.file for answer in found] == list(map(str, files))
    assert [answer.error for answer in found] == [None] * len(files)
    pictures = np.array([answer.digit for answer in found]) == labels
    print(f"MNIST {mnist.mean():.1%}, pictures {pictures.mean():.1%}")
    assert mnist.mean() > 0.9
    assert pictures.mean() >= mnist.mean() - 0.015


@pytest.mark.slow
def test_pictures_are_recognized_as_well_as_mnists_own_images(network, files):
    check_recognition(network, files)


@pytest.mark.slow
def test_thousand_pictures_are_recognized_as_well_as_mnists_own_images(network, tmp_path):
    check_recognition(network, write_pictures(tmp_path, 1000))


def test_answers_are_in_the_order_of_the_files(network, files):
    names = [str(path) for path in files[:70]]  # more than a batch
    found = [json.loads(answer.as_json()) for answer in answers(network, names)]
    assert [answer["file"] for answer in found] == names
    for answer in found:
        assert list(answer) == [
            "file", "digit", "probability", "runner_up", "step", "text", "sure", "probabilities",
            "digits",
        ]  # fmt: skip
        assert answer["text"] == str(answer["digit"])
        assert answer["probabilities"][answer["digit"]] == answer["probability"]
        assert answer["sure"] == (answer["probability"] >= SURE)
        assert (
            answer["step"] == 200
            and answer["digit"] != answer["runner_up"]
            and 0.1 <= answer["probability"] <= 1
        )


def test_each_bad_file_has_its_line_and_the_others_are_answered(trained_base, bad):
    folder, names = bad
    out, err = run("mnist_cnn.predict", "--workdir", trained_base, "--json", folder, status=1)
    found = json_of(out)
    assert err == ""
    assert [pathlib.Path(a["file"]).name for a in found] == sorted([*names, "good.JPG"])
    assert [pathlib.Path(a["file"]).name for a in found if "error" in a] == names
    assert all(list(a) == ["file", "error"] for a in found if "error" in a)
    assert next(a["digit"] for a in found if "digit" in a) == 7

    out, err = run(
        "mnist_cnn.predict", "--workdir", trained_base, folder, "nowhere.png", "/dev/zero", status=1
    )
    assert len(out.splitlines()) == 1 and "good.JPG: 7" in out
    assert len(err.splitlines()) == len(names) + 2
    assert "\x1b" not in err and "new\\nline\\x1b[31m.png" in err
    for name, reason in (
        ("empty.png", "empty"), ("text.png", "expected PNG, JPEG"), ("truncated.jpg", "damaged"),
        ("blank.png", "no digit found"), ("bomb.png", "larger than"),
        ("nowhere.png", "no such file"), ("/dev/zero", "regular file"),
    ):  # fmt: skip
        (line,) = (line for line in err.splitlines() if f"{name}: " in line)
        assert line.startswith("error: ") and reason in line


def test_pictures_that_cannot_be_read_have_a_line_each(network, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.avif", "b.JXL", "c.svg", "notes.txt"):
        (tmp_path / name).write_text("no picture")
    expected = [str(tmp_path / name) for name in ("a.avif", "b.JXL", "c.svg")]
    assert list(list_files([str(tmp_path)])) == list(list_files(["~"])) == expected
    (tmp_path / "empty").mkdir()
    bad = [*expected, str(tmp_path / "empty"), "gs://bucket/x.png", "~nobody-has-this-name/x.png"]
    found = [answer.error for answer in answers(network, list_files(bad))]
    assert [error.partition(",")[0] for error in found] == [
        *["no picture that can be read"] * 3, "this folder contains no picture",
        "no local path", "no local path",
    ]  # fmt: skip


@pytest.mark.slow
def test_names_come_from_standard_input(trained_base, files):
    process = subprocess.run(
        [sys.executable, "-m", "mnist_cnn.predict", "--workdir", trained_base, "-", "--json"],
        input="\n".join(map(str, files[:3])).encode() + b"\nno\xff.png\n", capture_output=True,
    )  # fmt: skip
    found = json_of(process.stdout)
    assert process.returncode == 1 and process.stderr == b""
    assert [os.fsencode(a["file"]) for a in found] == [
        *(bytes(path) for path in files[:3]), b"no\xff.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_network_input_is_shown_and_saved(trained_base, files, tmp_path):
    out, _ = run(
        "mnist_cnn.predict", "--workdir", trained_base, "--show", files[0], files[1],
        "--save_inputs", tmp_path / "seen",
    )  # fmt: skip
    saved = sorted((tmp_path / "seen").iterdir())
    assert [path.name for path in saved] == ["00001-0000.png", "00002-0001.png"]
    seen = np.asarray(Image.open(saved[0]))
    assert (seen == mnist_form(read(files[0]))).all()
    assert blocks(seen) in out and "█" in out
    assert len(out.splitlines()) == 2 * (1 + 14)


@pytest.mark.slow
def test_terminal_shows_the_network_input_by_default(trained_base, files):
    controller, terminal = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "mnist_cnn.predict", "--workdir", trained_base, files[0]],
        stdout=terminal, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert process.returncode == 0 and shown.count("\n") == 15 and "█" in shown


@pytest.mark.slow
def test_one_program_serves_any_number_of_pictures(network, files):
    list(answers(network, [str(files[0])]))
    compiled = compute_logits._cache_size()
    for count in (2, 63, 64, 65, 130):
        assert len(list(answers(network, map(str, files[:count])))) == count
    assert compute_logits._cache_size() == compiled


def test_long_list_of_files_is_read_as_it_is_answered(network, files):
    taken = 0

    def names():
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield str(files[0])

    next(answers(network, names()))
    assert taken <= 2 * BATCH_SIZE


@pytest.mark.slow
def test_mnists_own_images_are_answered_exactly_as_by_the_network(network, tmp_path):
    images = read_idx("t10k-images-idx3-ubyte")[:1000]
    names = [str(tmp_path / f"{index}.png") for index in range(1000)]
    for image, name in zip(images, names, strict=True):
        Image.fromarray(image[..., 0]).save(name)
    found = [answer.digit for answer in answers(network, names)]
    assert found == network(images).argmax(-1).tolist()


@pytest.mark.slow
def test_predict_imports_neither_plots_nor_datasets_nor_pages(trained_base, files):
    names = imported_by("mnist_cnn.predict", "--workdir", trained_base, files[0])
    assert not {"matplotlib", "tensorflow_datasets", "gradio", "tensorflow", "pandas"} & names
    assert {"jax", "PIL"} <= names


@pytest.mark.slow
def test_copied_directory_answers_as_the_original(network, trained_base, files, tmp_path):
    """Configuration and checkpoint are enough, in another place."""
    shutil.copy(trained_base / "config.json", tmp_path)
    shutil.copytree(trained_base / "checkpoints", tmp_path / "checkpoints")
    out, _ = run("mnist_cnn.predict", "--workdir", ".", "--json", files[5], cwd=tmp_path,
                 PYTHONPATH=str(ROOT))  # fmt: skip
    (expected,) = answers(network, [str(files[5])])
    assert out == expected.as_json() + "\n"


@pytest.mark.slow
def test_custom_module_needs_its_config(undisturbed, tiny_experiment, files):
    with pytest.raises(CheckpointError, match="--config EXPERIMENT"):
        mnist_cnn.load(undisturbed[0])
    config = config_of(tiny_experiment)
    (expected,) = answers(mnist_cnn.load(undisturbed[0], config), [str(files[0])])
    out, _ = run(
        "mnist_cnn.predict", "--workdir", undisturbed[0], files[0], "--config", tiny_experiment
    )
    assert out == expected.as_text() + "\n"


def test_bad_usage_is_one_line_and_status_2():
    commands = [[], ["--workdir", "x"], ["--workdir", "x", "--nonsense"]]
    for process in [start("mnist_cnn.predict", *arguments) for arguments in commands]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2 and out == "" and len(err.splitlines()) == 1


def test_pictures_are_neither_unpickled_nor_executed(network, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "trap.png").write_bytes((tmp_path / "trap.npy").read_bytes())
    eps = io.BytesIO()  # Pillow passes EPS to Ghostscript
    Image.new("RGB", (50, 50)).save(eps, "EPS")
    (tmp_path / "page.png").write_bytes(eps.getvalue())
    found = list(answers(network, [str(tmp_path / "trap.png"), str(tmp_path / "page.png")]))
    assert all("expected PNG, JPEG" in answer.error for answer in found)
    assert not (tmp_path / "sprung").exists()


def write_csv(path, count, side=28):
    """The first test images of MNIST as Kaggle's test.csv has them."""
    images = read_idx("t10k-images-idx3-ubyte")[:count, :side, :side]
    path.write_text(csv_text(images))
    return images


@pytest.mark.slow
def test_csv_file_of_images_becomes_a_submission(network, trained_base, tmp_path):
    images = write_csv(tmp_path / "test.csv", 130)
    out, err = run(
        "mnist_cnn.predict", "--workdir", trained_base, "test.csv",
        cwd=tmp_path, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert out == "submission.csv: the classes of the 130 images of test.csv\n" and err == ""
    expected = [f"{i},{d}\n" for i, d in enumerate(network(images).argmax(-1).tolist(), start=1)]
    content = (tmp_path / "submission.csv").read_text()
    assert content == "ImageId,Label\n" + "".join(expected)
    packed = tmp_path / "test.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "test.csv").read_bytes()))
    assert write_submission(network, packed, tmp_path / "packed.csv") == 130
    assert (tmp_path / "packed.csv").read_text() == content


@pytest.mark.slow
def test_submission_is_written_where_the_flag_says_and_reported_as_json(trained_base, tmp_path):
    write_csv(tmp_path / "TEST.CSV", 3)
    out, _ = run(
        "mnist_cnn.predict", "--workdir", trained_base, "--json", tmp_path / "TEST.CSV",
        "--output", tmp_path / "other.csv",
    )  # fmt: skip
    expected = {"file": str(tmp_path / "TEST.CSV"), "images": 3}
    assert json.loads(out) == expected | {"output": str(tmp_path / "other.csv")}
    assert len((tmp_path / "other.csv").read_text().splitlines()) == 4


def test_submission_has_the_names_of_the_classes(network, tmp_path):
    images = write_csv(tmp_path / "test.csv", 20)
    names = (*"abcdefgh", "i,j", "k")
    named = dataclasses.replace(network, spec=network.spec._replace(class_names=names))
    assert write_submission(named, tmp_path / "test.csv", tmp_path / "out.csv") == 20
    rows = list(csv.reader((tmp_path / "out.csv").open()))
    labels = network(images).argmax(-1)
    assert rows == [["ImageId", "Label"], *([str(i + 1), names[d]] for i, d in enumerate(labels))]


def test_csv_file_of_other_images_is_refused_in_one_line(network, trained_base, tmp_path):
    write_csv(tmp_path / "small.csv", 3, side=20)
    text = "small.csv: 400 pixels an image, expected 784: the network was trained on .* 28 x 28 x 1"
    with pytest.raises(DataError, match=text):
        write_submission(network, tmp_path / "small.csv", tmp_path / "out.csv")
    (tmp_path / "list.tsv").write_text("nine.png\t9\n")
    (tmp_path / "bad.csv").write_text(csv_text(np.zeros((2, 28, 28), int)).replace("0\n", "x\n"))
    with pytest.raises(DataError, match=r"bad\.csv, line 2: got 'x', expected a whole number"):
        write_submission(network, tmp_path / "bad.csv", tmp_path / "out.csv")
    refused = {
        (tmp_path / "small.csv", "nine.png"): (2, "got 2 files, expected one if it is a CSV"),
        ("test.csv", "--save_inputs=x"): (2, "expected pictures, not a CSV file"),
        ("test.csv", "--single"): (2, "expected pictures, not a CSV file"),
        ("--labels", tmp_path / "list.tsv", "--show"): (2, "--labels: expected neither"),
        ("nine.png", "--output=x.csv"): (2, "--output: expected a CSV file of images"),
        ("test.csv", f"--output={tmp_path}"): (1, "got a directory, expected the name of a file"),
        ("nowhere.csv",): (1, "nowhere.csv: No such file"),
    }
    processes = [start("mnist_cnn.predict", "--workdir", trained_base, *given) for given in refused]
    for process, (status, reason) in zip(processes, refused.values(), strict=True):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (status, "", 1) and reason in err
    assert not (tmp_path / "out.csv").exists()


class Certain:
    """A network that answers 7 with the given probability, and sees no digit in `none` images."""

    step, members, spec, knows_none = 5, (), MNIST, True

    def __init__(self, probability, none=()):
        self.probability, self.none = probability, none

    def all_probabilities(self, images, batch_size=64):
        rows = np.full((len(images), 10), (1 - self.probability) / 9)
        rows[:, 7] = self.probability
        rows[[index for index in self.none if index < len(images)]] *= 0.01
        return rows[None]


@pytest.fixture
def two_lines(tmp_path):
    """A picture of 70 above 412, in a file of twice its size, and the digits' boxes."""
    images, labels = read_idx("t10k-images-idx3-ubyte"), read_idx("t10k-labels-idx1-ubyte")
    chosen = [images[np.flatnonzero(labels == int(c))[0], ..., 0] for c in "70412"]
    image, boxes = number(chosen, [2, 3])
    image.resize((image.width * 2, image.height * 2)).save(tmp_path / "lines.png")
    return tmp_path / "lines.png", [[2 * side for side in box] for box in boxes]


@pytest.mark.slow
def test_several_digits_are_read_line_by_line_with_their_boxes(trained_base, two_lines):
    path, boxes = two_lines
    out, _ = run("mnist_cnn.predict", "--workdir", trained_base, "--json", path)
    (answer,) = json_of(out)
    assert answer["text"] == "70412" and "digit" not in answer and "runner_up" not in answer
    assert "".join(str(one["digit"]) for one in answer["digits"]) == "70412"
    assert np.abs(np.array([one["box"] for one in answer["digits"]]) - boxes).max() <= 8
    assert np.shape(answer["probabilities"]) == (5, 10)
    out, _ = run("mnist_cnn.predict", "--workdir", trained_base, path, "--show", COLUMNS="80")
    assert f"{path}: 70412  " in out and len(out.splitlines()) == 1 + 3 * 14  # 2 digits a row
    out, _ = run("mnist_cnn.predict", "--workdir", trained_base, "--json", "--single", path)
    assert len(json_of(out)[0]["digits"]) == 1 and "digit" in json_of(out)[0]


def test_unsure_answer_says_so(files):
    (answer,) = answers(Certain(0.6), [str(files[0])])
    assert "  unsure  " in answer.as_text() and json.loads(answer.as_json())["sure"] is False
    (answer,) = answers(Certain(0.95), [str(files[0])])
    assert "unsure" not in answer.as_text() and json.loads(answer.as_json())["sure"] is True


class Spelled(Certain):
    """Knows what each input shows: the given answers, in their order; "-" is no digit."""

    def __init__(self, answers):
        self.answers = answers

    def all_probabilities(self, images, batch_size=64):
        rows = np.full((len(images), 10), 0.001)
        for row, (digit, probability) in zip(rows, self.answers, strict=True):
            if digit != "-":
                row[:] = (1 - probability) / 9
                row[int(digit)] = probability
        return rows[None]


@pytest.mark.parametrize(
    ("left", "both", "right", "text"),
    [
        (("1", 0.7), ("4", 0.9), ("1", 0.9), "4"),
        (("1", 0.99), ("4", 0.9), ("1", 0.99), "11"),
        (("1", 0.99), ("-", 1), ("1", 0.6), "11"),
        (("-", 1), ("4", 0.5), ("1", 0.99), "4"),
        (("-", 1), ("-", 1), ("1", 0.5), "1"),
        (("-", 1), ("-", 1), ("-", 1), None),
    ],
)
def test_pieces_of_ink_are_put_together_in_the_most_probable_way(left, both, right, text):
    form, spans = np.zeros((28, 28), np.uint8), [(0, 1), (0, 2), (1, 2)]
    found = [Found(form, (0, 0, 9, 9), pieces) for pieces in spans]
    network = Spelled([left, both, right])
    answer = answer_to("a file", network, found)
    assert (answer.text or None, answer.no_digit) == (text, text is None)
    assert len(answer.found) == len(text or "   ")
    network = Spelled([left, right])  # it is not asked about both
    network.knows_none = False  # then it does not know that two digits are none
    assert "4" not in answer_to("a file", network, found).text
    assert answer_to("a file", Spelled([]), []).no_digit  # no piece has strokes of one colour


def test_network_that_sees_no_digit_gives_an_error(files, two_lines):
    first, second = answers(Certain(0.95, none=[0]), map(str, files[:2]))
    assert first.error.startswith("no digit found") and second.text == "7"
    assert list(json.loads(first.as_json())) == ["file", "error"]
    (answer,) = answers(Certain(0.95, none=[1, 2]), [str(two_lines[0])])
    assert answer.text == "777" and answer.seen.shape == (28, 3 * 28)  # the others are digits


class Divided(Certain):
    """Two networks that answer 7, and one that answers 1 from the image `first` on, or `none`."""

    members, first = (5, 6, 8), 0

    def all_probabilities(self, images, batch_size=64):
        seven = Certain(self.probability).all_probabilities(images)[0]
        one = Certain(self.probability, self.none).all_probabilities(images)[0]
        one[self.first :] = one[self.first :, [0, 7, 2, 3, 4, 5, 6, 1, 8, 9]]
        each = [seven, seven, one]
        return np.stack([np.mean(each, axis=0), *each])


def test_an_answer_of_an_ensemble_says_how_many_of_its_members_differ(files, two_lines):
    (answer,) = answers(Divided(0.9), [str(files[0])])
    assert answer.as_text().endswith(
        "7  60.37%  unsure  (runner-up 1, 30.74%; 1 of 3 members differs)"
    )
    found = json.loads(answer.as_json())
    assert found["disagreement"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["digits"][0]["members"] == [
        {"seed": 5, "digit": 7, "probability": 0.9},
        {"seed": 6, "digit": 7, "probability": 0.9},
        {"seed": 8, "digit": 1, "probability": 0.9},
    ]
    (answer,) = answers(Divided(0.9, none=[0]), [str(files[0])])
    found = json.loads(answer.as_json())
    assert found["digits"][0]["members"][2] == {"seed": 8, "digit": None, "probability": 0.99}
    assert answer.agreement == "1 of 3 members differs"
    late = Divided(0.9)
    late.first = 3
    (answer,) = answers(late, [str(two_lines[0])])
    assert answer.text == "77777" and answer.as_text().endswith("; 1 of 3 members differs)")
    found = json.loads(answer.as_json())
    assert found["disagreement"] == pytest.approx(1 / 3, abs=1e-6)
    assert [one["members"][2]["digit"] for one in found["digits"]] == [7, 7, 7, 1, 1]
    (answer,) = answers(Certain(0.9), [str(files[0])])
    found = json.loads(answer.as_json())
    assert "disagreement" not in found and "members" not in found["digits"][0]
    assert "members" not in answer.as_text()


def test_an_ensemble_of_one_mind_says_that_all_agree(files):
    agreed = Divided(0.9)
    agreed.all_probabilities = lambda images, _: np.repeat(
        Certain(0.9).all_probabilities(images), 4, axis=0
    )
    (answer,) = answers(agreed, [str(files[0])])
    assert answer.as_text().endswith("(runner-up 9, 1.11%; all 3 members agree)")
    assert json.loads(answer.as_json())["disagreement"] == 0


@pytest.fixture
def labelled(tmp_path, files):
    """Three pictures in folders of their labels, one of them a wrong one, and a blank page."""
    for folder, path in (("7", files[0]), ("2", files[1]), ("9", files[2])):
        (tmp_path / folder).mkdir()
        shutil.copy(path, tmp_path / folder)
    (tmp_path / "none").mkdir()
    Image.new("L", (200, 200), 255).save(tmp_path / "none" / "blank.png")
    return tmp_path


@pytest.mark.slow
def test_labelled_folder_is_scored_with_the_wrong_answers(trained_base, labelled):
    page = labelled / "page.html"
    out, err = run(
        "mnist_cnn.predict", "--workdir", trained_base, "--labels", labelled, "--page", page
    )
    lines = out.splitlines()
    assert lines[0] == "accuracy 75.00% (3 of 4 pictures)" and err == ""
    assert [line for line in lines if "expected 9, got 1" in line and labelled.name in line]
    table = {cells[0]: cells[1:] for cells in map(str.split, lines) if len(cells) == 3}
    assert table == {"2": ["1", "100.0%"], "7": ["1", "100.0%"], "9": ["1", "0.0%"],
                     "none": ["1", "100.0%"]}  # fmt: skip
    html = page.read_text()
    assert "75.00%" in html and html.count("<figure>") == 1 and html.count("<img") == 2


@pytest.mark.slow
def test_list_of_labels_is_read_and_missing_pictures_are_named(trained_base, labelled):
    (name,) = (path.name for path in (labelled / "7").iterdir())
    rows = [f"7/{name}\t7", "none/blank.png\tnone", "gone.png\t3"]
    (labelled / "list.tsv").write_text("\n".join(rows))
    (labelled / "list.csv").write_text("file,label\n" + "\n".join(rows).replace("\t", ","))
    for listed in ("list.tsv", "list.csv"):
        out, err = run(
            "mnist_cnn.predict", "--workdir", trained_base, "--labels", labelled / listed, status=1
        )
        assert out.startswith("accuracy 100.00% (2 of 2 pictures)")
        assert err == f"error: {labelled / 'gone.png'}: no such file\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("a.png 3\n", "line 1: got 'a.png 3'"), ("a.png\t3\nb.png\t\n", "line 2")],
)
def test_wrong_list_of_labels_is_refused(text, said, tmp_path):
    (tmp_path / "list.tsv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        scores.read_labels(tmp_path / "list.tsv")
    with pytest.raises(ConfigError, match="cannot be read"):
        scores.read_labels(tmp_path / "nowhere.tsv")


def test_the_network_of_the_package_reads_the_picture_of_the_readme_as_the_page_shows():
    out, err = run("mnist_cnn.predict", "docs/nine.png", "--show", cwd=ROOT)
    assert err == "" and out.startswith("docs/nine.png: 9  ")
    shown = "\n".join(line.rstrip() for line in out.splitlines())
    assert shown in (ROOT / "docs" / "own-digits.md").read_text()
    assert "python -m mnist_cnn.predict docs/nine.png" in (ROOT / "README.md").read_text()
