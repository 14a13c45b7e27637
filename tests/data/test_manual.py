"""The files in a folder decide which format it has."""

import numpy as np
from own_images import csv_text, random_images, refusal, write_idx

from mnist_cnn.data import dataset as data


def test_folder_with_no_images_or_with_several_kinds_is_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    expected = "expected IDX files (train-images-idx3-ubyte.gz and so on), those of a split of"
    assert f"'{folder}' is empty: {expected}" in refusal(folder)
    (folder / "notes.txt").write_text("")
    (folder / "cat").mkdir()
    assert f"'{folder}' holds no images in a known form: {expected}" in refusal(folder)
    images, labels = random_images(30, 8, 8), np.arange(30) % 2
    (folder / "train.csv").write_text(csv_text(images, labels))
    assert data.open_dataset("mnist", folder).spec.num_classes == 2
    write_idx(folder, (images, labels), (images, labels))
    assert "holds IDX files and CSV files: leave one of them there" in refusal(folder)
    (folder / "test").mkdir()
    assert "IDX files and folders of pictures and CSV files: leave one" in refusal(folder)


def test_missing_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file", "emnist-letters"):
        text = refusal(tmp_path / name)
        assert f"'{tmp_path / name}' is not a folder: name the one that holds the images" in text
