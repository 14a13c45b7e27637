"""What the readers of all formats return, and the checks of labels that they share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mnist_cnn.errors import DataError

MIN_SIDE, MAX_SIDE = 8, 128  # of an image, in pixels
MAX_CLASSES = 256  # a label is one byte

Examples = tuple[UInt8[np.ndarray, "N H W C"], UInt8[np.ndarray, " N"]]  # images, labels
Read = Callable[[Path], bytes]  # the content of one of a source's files


class Parsed(NamedTuple):
    """The arrays of a dataset's files."""

    examples: dict[str, Examples]  # of "train" and "test"; labels count from 0
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what the user should know about how they were read


class Source(NamedTuple):
    """The files of a dataset, and how arrays are made of them."""

    files: Mapping[str, Path]  # "train.csv", "train/cat/1.png": the order is part of the data
    parse: Callable[[Read], Parsed]  # raises a `DataError`
    name: str = ""  # of the dataset; "": the one that the user chose
    # Tells apart sources of the same bytes that are read in different ways.
    form: str = ""


def list_folder(folder: Path) -> list[str]:
    """The names in a folder without hidden ones, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from error


def check_size(name: object, height: int, width: int) -> None:
    """Raises a `DataError` with the file's name unless images may have this size."""
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise DataError(
            f"{name}: {width} pixels wide and {height} high, expected {MIN_SIDE}x{MIN_SIDE} to "
            f"{MAX_SIDE}x{MAX_SIDE}: scale the images to such a size"
        )


def first_label(
    train: UInt8[np.ndarray, " N"], test: UInt8[np.ndarray, " M"], names: Sequence[object]
) -> int:
    """The label of the first class, 0 or 1; `names` are the files of both arrays.

    Raises a `DataError` unless each label from it to the largest has a training image, there are
    two at least, and no test image has another one.
    """
    counts = np.bincount(train)
    first, last = int(np.flatnonzero(counts)[0]), len(counts) - 1
    if first > 1:
        raise DataError(f"{names[0]}: labels begin at {first}, expected 0 or 1")
    if first == last:
        raise DataError(f"{names[0]}: all labels are {first}, expected two classes at least")
    if not counts[first:].all():
        missing = first + int(np.argmin(counts[first:]))
        raise DataError(
            f"{names[0]}: labels are {first} to {last}, but no image has label {missing}: "
            "add images of that class, or number the classes without gaps"
        )
    if (wrong := (test < first) | (test > last)).any():
        where = int(np.argmax(wrong))
        raise DataError(
            f"{names[1]}: the label of image {where + 1} is {test[where]}, expected {first} to "
            f"{last}, as in {names[0]}"
        )
    return first


def shift_note(first: int, class_names: Sequence[str]) -> tuple[str, ...]:
    """The note for labels that do not begin at 0."""
    return (f"labels begin at 1, which is the first class, {class_names[0]}",) if first else ()
