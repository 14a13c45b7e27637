"""Finds the format of a folder of the user's own images."""

from collections.abc import Sequence
from pathlib import Path

from mnist_cnn.data import csv_files, emnist, folders, idx_folder
from mnist_cnn.data.source import Source, list_folder
from mnist_cnn.errors import DataError

_IDX = {spelling for name in idx_folder.FILES for spelling in idx_folder.spellings(name)}
_CSV = {"train.csv", "train.csv.gz", "test.csv", "test.csv.gz"}
_EXPECTED = (
    "IDX files (train-images-idx3-ubyte.gz and so on), those of a split of EMNIST, "
    "train/CLASS/*.png and test/CLASS/*.png, or train.csv"
)


def find(path: Path, class_names: Sequence[str]) -> Source:
    """The source in a folder, or for a path such as FOLDER/emnist-letters that split of EMNIST.

    `class_names` are for IDX files, which do not name their classes.  Raises a `DataError` if the
    folder has images in no format or in several, or files of the format are missing.
    """
    if not path.is_dir():
        if path.name.startswith("emnist-") and path.parent.is_dir() and emnist.splits(path.parent):
            return emnist.find(path.parent, path.name)
        raise DataError(f"{str(path)!r} is not a folder: name the one that holds the images")
    names = set(list_folder(path))
    found = {
        "IDX files": any((path / name).is_file() for name in _IDX & names),
        "EMNIST's IDX files": bool(emnist.splits(path)),
        "folders of pictures": any((path / split).is_dir() for split in folders.SPLITS),
        "CSV files": any((path / name).is_file() for name in _CSV & names),
    }
    kinds = [kind for kind, is_there in found.items() if is_there]
    if not kinds:
        what = "holds no images in a known form" if names else "is empty"
        raise DataError(f"{str(path)!r} {what}: expected {_EXPECTED}")
    if len(kinds) > 1:
        raise DataError(f"{str(path)!r} holds {' and '.join(kinds)}: leave one of them there")
    if kinds == ["EMNIST's IDX files"]:
        return emnist.find(path)
    if kinds == ["folders of pictures"]:
        return folders.find(path)
    if kinds == ["CSV files"]:
        return csv_files.find(path)
    return idx_folder.source_of(idx_folder.find_files(path, idx_folder.FILES), class_names)
