"""CSV files as Kaggle's digit recogniser has them."""

import gzip

import numpy as np
import pytest
from own_images import csv_text, random_images, refusal

from mnist_cnn.data import csv_files, dataset as data
from mnist_cnn.errors import DataError

IMAGES = random_images(60, 9, 9)
LABELS = np.random.default_rng(1).permutation(np.arange(60) % 4)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(csv_text(IMAGES, LABELS))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    return tmp_path


@pytest.mark.parametrize("beside", [None, "test.csv", "test.csv.gz"])
def test_without_test_labels_every_seventh_image_of_each_class_is_held_out(beside, folder):
    if beside:
        pack = gzip.compress if beside.endswith("gz") else bytes
        (folder / beside).write_bytes(pack(csv_text(IMAGES[:3]).encode()))
    dataset = data.open_dataset("mnist", folder)
    held_out = np.zeros(60, bool)
    for label in range(4):
        held_out[np.flatnonzero(label == LABELS)[6::7]] = True
    for split, rows in (("train", ~held_out), ("test", held_out)):
        images, labels = dataset.read(split)
        np.testing.assert_array_equal(images[..., 0], IMAGES[rows])
        np.testing.assert_array_equal(labels, LABELS[rows])
    assert np.bincount(dataset.read("test")[1]).tolist() == [2, 2, 2, 2]
    assert dataset.spec.class_names == tuple("0123") and dataset.spec.image_shape == (9, 9, 1)
    assert dataset.name == folder.name and list(dataset.files) == ["train.csv"]
    (note,) = dataset.notes
    reason = f"{beside} has no labels" if beside else "there is no test.csv"
    assert note.startswith(f"{reason}: the test images are every 7th of each class in train.csv")


def test_test_file_with_labels_is_the_test_split(folder):
    (folder / "test.csv").write_text(csv_text(IMAGES[::-1], LABELS[::-1]))
    dataset = data.open_dataset("mnist", folder)
    np.testing.assert_array_equal(dataset.read("train")[0][..., 0], IMAGES)
    np.testing.assert_array_equal(dataset.read("test")[0][..., 0], IMAGES[::-1])
    assert dataset.read("test")[1].tolist() == LABELS[::-1].tolist() and not dataset.notes


@pytest.mark.parametrize("form", ["gz", "windows", "quoted", "no end", "first label is 1"])
def test_files_are_read_in_every_form_that_is_in_use(form, folder):
    text, first = csv_text(IMAGES, LABELS), 0
    if form == "windows":
        text = "\ufeff" + csv_text(IMAGES, LABELS, end="\r\n")
    elif form == "quoted":
        cells = [line.split(",") for line in text.splitlines()]
        text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in cells)
    elif form == "no end":
        text = text.rstrip("\n")
    elif form == "first label is 1":
        text, first = csv_text(IMAGES, LABELS + 1), 1
    (folder / "train.csv").unlink()
    name, pack = ("train.csv.gz", gzip.compress) if form == "gz" else ("train.csv", bytes)
    (folder / name).write_bytes(pack(text.encode()))
    dataset = data.open_dataset("mnist", folder)
    images, labels = dataset.read("all")
    order = np.lexsort(images.reshape(60, -1).T)
    expected = np.lexsort(IMAGES.reshape(60, -1).T)
    np.testing.assert_array_equal(images[order][..., 0], IMAGES[expected])
    np.testing.assert_array_equal(labels[order], LABELS[expected])
    assert dataset.spec.class_names == tuple(str(first + i) for i in range(4))


@pytest.mark.parametrize("chunk", [1, 200, 1000])
def test_pieces_in_which_a_file_is_parsed_do_not_matter(chunk, monkeypatch, tmp_path):
    monkeypatch.setattr(csv_files, "_CHUNK", chunk)
    content = csv_text(IMAGES, LABELS).encode()
    images, labels = csv_files.read(content, tmp_path / "train.csv")
    np.testing.assert_array_equal(images[..., 0], IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    lines = content.split(b"\n")
    lines[41] = lines[41].replace(b",", b",x", 1)
    with pytest.raises(DataError, match=r"train\.csv, line 42: got 'x"):
        csv_files.read(b"\n".join(lines), tmp_path / "train.csv")


BAD_LINES = {  # what the cells of line 3 become -> why they are refused
    "short": (lambda cells: cells[:-1], "line 3: 81 columns, expected 82 as in the header"),
    "long": (lambda cells: [*cells, "0"], "line 3: 83 columns, expected 82 as in the header"),
    "word": (lambda cells: [*cells[:-1], "abc"], "line 3: got 'abc', expected a whole number"),
    "float": (lambda cells: [*cells[:-1], "1.0"], "line 3: got '1.0', expected a whole number"),
    "negative": (lambda cells: [*cells[:-1], "-1"], "line 3: got '-1', expected a whole number"),
    "256": (lambda cells: [*cells[:-1], "256"], "line 3: got '256', expected a whole number from"),
    "1000": (lambda cells: [*cells[:-1], "1000"], "line 3: got '1000', expected a whole number"),
    "empty cell": (lambda cells: [*cells[:-1], ""], "line 3: got '', expected a whole number"),
    "space": (lambda cells: [*cells[:-1], "1 2"], "line 3: got '1 2', expected a whole number"),
    "empty line": (lambda cells: [], "line 3: 1 columns, expected 82 as in the header"),
    "not ASCII": (lambda cells: [*cells[:-1], "\u0663"], "line 3: got '\u0663', expected a whole"),
    # The number of cells is right.
    "moved": (
        lambda cells: [*cells[:-2], f"{cells[-2]}\n0", *cells], "line 3: 81 columns, expected 82",
    ),
    "split": (
        lambda cells: [*cells[:40], f"{cells[40]}\n{cells[41]}", *cells[42:]],
        "line 3: 41 columns, expected 82",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_LINES)
def test_wrong_line_is_refused_by_its_number(kind, folder):
    change, reason = BAD_LINES[kind]
    lines = csv_text(IMAGES, LABELS).splitlines()
    lines[2] = ",".join(change(lines[2].split(",")))
    (folder / "train.csv").write_text("\n".join(lines))
    assert f"{folder / 'train.csv'}, {reason}" in refusal(folder)


WRONG = {
    "no header": ({"train.csv": csv_text(IMAGES, LABELS).partition("\n")[2]}, "line 1: numbers"),
    "no label": ({"train.csv": csv_text(IMAGES)}, "line 1: expected the header label,pixel0"),
    "semicolons": (
        {"train.csv": csv_text(IMAGES, LABELS).replace(",", ";")}, "line 1: 1 columns of pixels",
    ),
    "not square": (
        {"train.csv": csv_text(IMAGES[:, :, 1:], LABELS)}, "72 columns of pixels, expected a",
    ),
    "too small": ({"train.csv": csv_text(IMAGES[:, :7, :7], LABELS)}, "7 pixels wide and 7 high"),
    "no rows": ({"train.csv": csv_text(IMAGES[:1]).splitlines()[0]}, "train.csv holds no images"),
    "empty": ({"train.csv": ""}, "line 1: 1 columns of pixels, expected"),
    "gap": ({"train.csv": csv_text(IMAGES, LABELS * 2)}, "0 to 6, but no image has label 1"),
    "too few": ({"train.csv": csv_text(IMAGES[:8], np.arange(8) % 4)}, "expected 7 images of"),
    "only test.csv": ({"train.csv": None, "test.csv": csv_text(IMAGES)}, "lacks train.csv"),
    "test of another size": (
        {"test.csv": csv_text(IMAGES[:, 1:, 1:], LABELS)}, "test.csv: images are 8x8, but those of",
    ),
    "test of other classes": (
        {"test.csv": csv_text(IMAGES, LABELS + 1)}, "is 4, expected 0 to 3, as in",
    ),
    "damaged gzip": ({"train.csv": gzip.compress(b"label")[:-4]}, "damaged gzip"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_file_is_refused_by_name_and_reason(kind, folder):
    files, reason = WRONG[kind]
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_text(content)
    text = refusal(folder)
    assert reason in text and str(folder) in text
