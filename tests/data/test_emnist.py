"""EMNIST's files: transposed images, labels from 1, letters for class names."""

import numpy as np
import pytest
from conftest import read_idx
from own_images import refusal, write_idx

from mnist_cnn.data import dataset as data

COUNT = 60


def write_split(folder, name, first, mapping=True):
    """MNIST's first images as EMNIST has them, with the labels `first`, `first` + 1, ..."""
    images = read_idx("train-images-idx3-ubyte")[:COUNT, ..., 0].swapaxes(1, 2)
    labels = read_idx("train-labels-idx1-ubyte")[:COUNT] + first
    pair = (images, labels)
    write_idx(folder, pair, pair, (f"emnist-{name}-train-", f"emnist-{name}-test-"), ".gz")
    if mapping:
        lines = [f"{first + i} {ord('A') + i} {ord('a') + i}\n" for i in range(10)]
        (folder / f"emnist-{name}-mapping.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("first", [0, 1])
def test_images_are_set_right_and_classes_have_the_letters_of_the_mapping(first, tmp_path):
    dataset = data.open_dataset("mnist", write_split(tmp_path, "letters", first))
    images, labels = dataset.read("train")
    np.testing.assert_array_equal(images, read_idx("train-images-idx3-ubyte")[:COUNT])
    assert labels.tolist() == read_idx("train-labels-idx1-ubyte")[:COUNT].tolist()
    assert dataset.spec.class_names == tuple("ABCDEFGHIJ") and dataset.name == "emnist-letters"
    assert "transposed" in dataset.notes[0]
    assert ("labels begin at 1, which is the first class, A" in dataset.notes) == (first == 1)
    assert "emnist-letters-mapping.txt" in dataset.files


def test_one_of_several_splits_is_chosen_by_its_name(tmp_path):
    write_split(tmp_path, "letters", 1)
    write_split(tmp_path, "digits", 0, mapping=False)
    text = refusal(tmp_path)
    assert "emnist-digits, emnist-letters" in text and f"{tmp_path}/emnist-letters'" in text
    assert f"manual_dir='{tmp_path}/emnist-letters'" in refusal(tmp_path / "emnist-leters")
    letters = data.open_dataset("mnist", tmp_path / "emnist-letters")
    digits = data.open_dataset("mnist", f"{tmp_path}/emnist-digits")
    assert letters.spec.class_names == tuple("ABCDEFGHIJ") and digits.name == "emnist-digits"
    assert digits.spec.class_names == tuple("0123456789")
    assert any("no emnist-digits-mapping.txt" in note for note in digits.notes)


def test_the_same_bytes_under_mnists_names_are_other_images(tmp_path):
    folder = write_split(tmp_path / "a", "mnist", 0, mapping=False)
    transposed = data.open_dataset("mnist", folder)
    for path in list(folder.iterdir()):
        name = path.name.removeprefix("emnist-mnist-").replace("test-", "t10k-")
        path.rename(folder / name)
    plain = data.open_dataset("mnist", folder)
    assert transposed.directory != plain.directory
    np.testing.assert_array_equal(transposed.read("test")[0], plain.read("test")[0].swapaxes(1, 2))


def test_incomplete_splits_and_wrong_mappings_are_refused(tmp_path):
    folder = write_split(tmp_path, "letters", 1)
    mapping = folder / "emnist-letters-mapping.txt"
    whole = mapping.read_text()
    mapping.write_text(whole.replace("3 67 99\n", ""))
    assert "has no line for label 3" in refusal(folder)
    mapping.write_text(whole.replace("3 67 99", "3 C"))
    assert f"{mapping}, line 3: got '3 C', expected a label and a character" in refusal(folder)
    (folder / "emnist-letters-test-labels-idx1-ubyte.gz").unlink()
    assert "lacks emnist-letters-test-labels-idx1-ubyte.gz" in refusal(folder)
