"""CSV files as Kaggle's digit recogniser has them: a label and the pixels of an image in a row."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from mnist_cnn.data import idx
from mnist_cnn.data.source import Parsed, Read, Source, check_size, first_label, shift_note
from mnist_cnn.errors import DataError

HELD_OUT = 7  # without test labels, every seventh image of each class: MNIST's own share
_CHUNK = 2**24  # bytes that are parsed at once


def find(folder: Path) -> Source:
    """The source of train.csv, and of test.csv if that has labels, gzipped or not."""
    train, test = (_find(folder, split) for split in ("train", "test"))
    if train is None:
        raise DataError(f"{str(folder)!r} lacks train.csv: put it beside test.csv")
    files = [train]
    if test is not None and _is_labelled(test):
        files.append(test)
    reason = f"{test.name} has no labels" if test else "there is no test.csv"

    def parse(read: Read) -> Parsed:
        notes = []
        images, labels = _labelled(read(train), train)
        if len(files) == 2:
            assert test is not None
            held_out, held_out_labels = _labelled(read(test), test)
            if images.shape[1:] != held_out.shape[1:]:
                sizes = [f"{array.shape[1]}x{array.shape[2]}" for array in (held_out, images)]
                raise DataError(f"{test}: images are {sizes[0]}, but those of train {sizes[1]}")
            first = first_label(labels, held_out_labels, files)
        else:
            first = first_label(labels, labels, (train, train))
            out = _held_out(labels)
            if not out.any():
                raise DataError(f"{train}: expected {HELD_OUT} images of a class, to test on one")
            held_out, held_out_labels = images[out], labels[out]
            images, labels = images[~out], labels[~out]
            notes.append(
                f"{reason}: the test images are every {HELD_OUT}th of each class in {train.name}, "
                "and training does not see them"
            )
        names = tuple(str(first + label) for label in range(int(labels.max()) + 1 - first))
        examples = {"train": (images, labels - first), "test": (held_out, held_out_labels - first)}
        return Parsed(examples, names, (*notes, *shift_note(first, names)))

    return Source({path.name: path for path in files}, parse, folder.name, form=f"csv, {reason}")


def read(
    content: bytes, path: Path
) -> tuple[UInt8[np.ndarray, "N S S 1"], UInt8[np.ndarray, " N"] | None]:
    """The images of a CSV file and their labels, None if its first column is no `label`.

    Raises a `DataError` with the number of the line that is wrong.
    """
    if content[:2] == b"\x1f\x8b":
        content = _unpack(content, path)
    head, _, body = content.translate(None, b'"\r').partition(b"\n")
    is_labelled, columns = _parse_header(head, path)
    side = math.isqrt(columns - is_labelled)
    if not body.strip():
        raise DataError(f"{path} holds no images, only a header")
    rows = []
    body, start, line = body.rstrip(b"\n") + b"\n", 0, 2
    while start < len(body):
        end = body.find(b"\n", start + _CHUNK) + 1 or len(body)
        chunk = body[start:end]
        values = _parse(np.frombuffer(chunk, np.uint8), columns)
        if values is None:
            raise DataError(f"{path}, line {_first_problem(chunk, columns, line)}")
        rows.append(values)
        start, line = end, line + len(values)
    values = np.concatenate(rows)
    pixels = np.ascontiguousarray(values[:, is_labelled:]).reshape(-1, side, side, 1)
    return pixels, values[:, 0].copy() if is_labelled else None


def _find(folder: Path, split: str) -> Path | None:
    return next(filter(Path.is_file, (folder / f"{split}.csv", folder / f"{split}.csv.gz")), None)


def _is_labelled(path: Path) -> bool:
    """Whether the first column is `label`; only the first line is read."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _parse_header(file.readline(2**20).translate(None, b'"\r\n'), path)[0]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _labelled(
    content: bytes, path: Path
) -> tuple[UInt8[np.ndarray, "N S S 1"], UInt8[np.ndarray, " N"]]:
    images, labels = read(content, path)
    if labels is None:
        raise DataError(f"{path}, line 1: expected the header label,pixel0,pixel1,...")
    return images, labels


def _unpack(content: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(idx.MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error}): get the file again") from error
    if len(unpacked) > idx.MAX_BYTES:
        raise DataError(f"{path}: unpacks to more than {idx.MAX_BYTES:,} bytes")
    return unpacked


def _parse_header(head: bytes, path: Path) -> tuple[bool, int]:
    """Whether the first column is `label`, and the number of columns."""
    names = head.decode("utf-8-sig", "replace").split(",")
    is_labelled = names[0].strip().lower() == "label"
    pixels = len(names) - is_labelled
    side = math.isqrt(pixels)
    text = f"{path}, line 1: "
    if names[0].isdecimal():
        raise DataError(f"{text}numbers, expected a header such as label,pixel0,pixel1,...")
    if side * side != pixels or pixels < 2:
        raise DataError(
            f"{text}{pixels} columns of pixels, expected a square number such as 784, after a "
            "column 'label' if there are labels"
        )
    check_size(path, side, side)
    return is_labelled, len(names)


def _parse(text: UInt8[np.ndarray, " n"], columns: int) -> UInt8[np.ndarray, "rows columns"] | None:
    """The values of whole lines; None if they are not rows of numbers from 0 to 255."""
    is_end = text == ord("\n")
    ends = np.flatnonzero(is_end | (text == ord(",")))
    line_ends = is_end[ends]
    if len(ends) % columns or not line_ends[columns - 1 :: columns].all():
        return None
    lengths = np.diff(ends, prepend=-1) - 1
    digits = text - np.uint8(ord("0"))
    if (
        np.count_nonzero(line_ends) * columns != len(ends)
        or lengths.min() < 1
        or lengths.max() > 3
        or np.count_nonzero(digits <= 9) != lengths.sum()
    ):
        return None
    values = digits[ends - 1].astype(np.uint16)
    values += 10 * digits[ends - 2] * (lengths >= 2)  # at most 90: no overflow
    values += 100 * digits[ends - 3].astype(np.uint16) * (lengths == 3)
    return values.astype(np.uint8).reshape(-1, columns) if values.max() <= 255 else None


def _first_problem(chunk: bytes, columns: int, line: int) -> str:
    """The number of the first line that is wrong, and why; `line` is that of the first one."""
    for number, row in enumerate(chunk.splitlines(), start=line):
        cells = row.split(b",")
        if len(cells) != columns:
            return f"{number}: {len(cells)} columns, expected {columns} as in the header"
        for cell in cells:
            if not (cell.isdigit() and len(cell) <= 3 and int(cell) <= 255):
                text = cell[:40].decode("utf-8", "replace")
                return f"{number}: got {text!r}, expected a whole number from 0 to 255"
    raise AssertionError("all lines are right")


def _held_out(labels: UInt8[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """True for every `HELD_OUT`th image of each class."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)  # among the images of the class
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank % HELD_OUT == HELD_OUT - 1
