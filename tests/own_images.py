"""Small datasets as users have them, in every format that `manual_dir` may hold."""

import gzip
import struct

import numpy as np
import pytest

from mnist_cnn.data import dataset as data
from mnist_cnn.errors import DataError


def random_images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def idx_bytes(array):
    array = np.ascontiguousarray(array, np.uint8)
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


def write_idx(folder, train, test, names=("train-", "t10k-"), suffix=""):
    """Writes pairs of images and labels as the four IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in zip(names, (train, test), strict=True):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(np.asarray(array))
            content = gzip.compress(content, 1) if suffix else content
            (folder / f"{name}{kind}-ubyte{suffix}").write_bytes(content)
    return folder


def csv_text(images, labels=None, end="\n"):
    """The text of a CSV file as Kaggle's digit recogniser has it."""
    rows = images.reshape(len(images), -1).astype(int)
    names = [f"pixel{i}" for i in range(rows.shape[1])]
    if labels is not None:
        rows, names = np.column_stack([labels, rows]), ["label", *names]
    lines = [",".join(names), *(",".join(map(str, row)) for row in rows.tolist())]
    return end.join(lines) + end


def refusal(folder, name="mnist"):
    """The text of the `DataError` for a folder, which must be one line."""
    with pytest.raises(DataError) as caught:
        data.open_dataset(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)
