"""What is printed about the data: a sample of the user's own images, as characters."""

import io
import sys

import numpy as np
import pytest
from conftest import read_idx
from own_images import random_images, write_idx

from mnist_cnn.data import dataset as data
from mnist_cnn.runner.blocks import ASCII_SHADES, blocks
from mnist_cnn.runner.console import Console

CONFIG = {"train_split": "train", "validation_split": None, "fold": None, "labels_per_class": None}


def printed(folder, name="mnist", encoding="utf-8"):
    """The lines about a dataset, on an output with this encoding."""
    dataset = data.open_dataset(name, folder)
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        images, labels = dataset.read("train")
        Console().data(dataset, CONFIG, images, labels, len(labels))
        out.flush()
    return out.buffer.getvalue().decode(encoding).splitlines()


def test_own_images_are_shown_with_size_and_classes(tmp_path):
    images, labels = read_idx("train-images-idx3-ubyte")[:40, ..., 0], np.arange(40) % 20 + 1
    folder = write_idx(tmp_path / "own", (images, labels), (images[:9], labels[:9]))
    lines = printed(folder)
    assert lines[:4] == [
        f"own: 40 training images (train), 9 test images, from {folder}, format checked",
        "28 x 28 grey images of 20 classes: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..., 20",
        "note: labels begin at 1, which is the first class, 1",
        "the first training image, of class '1':",
    ]
    assert lines[4:] == blocks(images[0]).splitlines()
    assert any("█" in line for line in lines[4:])
    assert printed(folder, encoding="ascii")[4:] == blocks(images[0], ASCII_SHADES).splitlines()


def test_files_of_a_known_form_are_shown_and_the_official_ones_are_not(small_mnist):
    lines = printed(small_mnist, "kmnist")
    assert lines[0].startswith("kmnist: 500 training images (train), 250 test images, from")
    assert lines[0].endswith("not the official files: format checked")
    assert lines[1] == "28 x 28 grey images of 10 classes: o, ki, su, tsu, na, ha, ma, ya, re, wo"
    assert lines[2] == "the first training image, of class 'ha':"
    (line,) = printed(None)
    assert line.endswith("from the package, SHA-256 verified")


def test_class_names_with_control_characters_are_escaped(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for i, name in enumerate(("\x1b[31m", "\udcff")):
            (tmp_path / split / name).mkdir(parents=True)
            image = random_images(1, 12, 8, 3, seed=i)[0]
            Image.fromarray(image).save(tmp_path / split / name / "1.png")
    lines = printed(tmp_path)
    assert lines[1] == r"12 x 8 colour images of 2 classes: \x1b[31m, \udcff"
    assert lines[2] == r"the first training image, of class '\x1b[31m':"


@pytest.mark.parametrize(
    ("shape", "lines", "columns"),
    [((28, 28), 14, 28), ((9, 8, 1), 5, 8), ((64, 64, 3), 32, 64), ((127, 128), 32, 64)],
)
def test_an_image_of_any_size_fits_a_terminal(shape, lines, columns):
    image = np.zeros(shape, np.uint8)
    image[: shape[0] // 2] = 255
    rows = blocks(image).splitlines()
    assert len(rows) == lines and {len(row) for row in rows} == {columns}
    assert rows[0] == "█" * columns and rows[-1] == " " * columns
