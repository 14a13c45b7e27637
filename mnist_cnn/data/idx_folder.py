"""A folder of four IDX files, as MNIST consists of."""

from collections.abc import Sequence
from pathlib import Path

from mnist_cnn.data import idx
from mnist_cnn.data.source import (
    Examples,
    Parsed,
    Read,
    Source,
    check_size,
    first_label,
    shift_note,
)
from mnist_cnn.errors import DataError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def spellings(name: str) -> list[str]:
    """The names that a file may have; the first that exists is read."""
    names = [name, name.replace("-idx", ".idx")]
    names += [other.replace("idx3", "idx4") for other in names if "idx3" in other]  # of colours
    return [f"{other}{gz}" for other in names for gz in (".gz", "")]


def find_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Each file in the first spelling that exists; a `DataError` if one is missing."""
    found = []
    for name in names:
        paths = [folder / spelling for spelling in spellings(name)]
        found.append(next(filter(Path.is_file, paths), paths[0]))
    if missing := [path.name for path in found if not path.is_file()]:
        raise DataError(
            f"{str(folder)!r} lacks {', '.join(missing)}: put them there (names without '.gz' or "
            "with '.idx' instead of '-idx' are accepted too)"
        )
    return found


def source_of(paths: Sequence[Path], class_names: Sequence[str]) -> Source:
    """The source of the four files, whose classes have these names if there are enough of them."""

    def parse(read: Read) -> Parsed:
        examples, first = parse_files(paths, read)
        count = int(examples["train"][1].max()) + 1
        names = tuple(str(first + label) for label in range(count))
        if not first and count <= len(class_names):
            names = tuple(class_names[:count])
        return Parsed(examples, names, shift_note(first, names))

    return Source({path.name: path for path in paths}, parse)


def parse_files(paths: Sequence[Path], read: Read) -> tuple[dict[str, Examples], int]:
    """The examples of the four files, with labels from 0, and the first class' label in the files.

    Raises a `DataError` if one of them is wrong, or they contradict one another.
    """
    train, test = _parse_pair(paths[0], paths[1], read), _parse_pair(paths[2], paths[3], read)
    shapes = ["x".join(map(str, images.shape[1:])) for images, _ in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{paths[2]}: images are {shapes[1]}, but those of {paths[0].name} {shapes[0]}: "
            "give files that belong together"
        )
    first = first_label(train[1], test[1], (paths[1], paths[3]))
    return {"train": (train[0], train[1] - first), "test": (test[0], test[1] - first)}, first


def _parse_pair(images_path: Path, labels_path: Path, read: Read) -> Examples:
    images = idx.parse_images(read(images_path), str(images_path))
    check_size(images_path, *images.shape[1:3])
    labels = idx.parse_labels(read(labels_path), str(labels_path))
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images, but {labels_path.name} "
            f"{len(labels)} labels: give files that belong together"
        )
    return images, labels
