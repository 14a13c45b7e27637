"""Folders of pictures: `train/CLASS/*.png` and `test/CLASS/*.png`."""

import io
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mnist_cnn.data.source import (
    MAX_CLASSES,
    MAX_SIDE,
    Examples,
    Parsed,
    Read,
    Source,
    check_size,
    list_folder,
)
from mnist_cnn.digits import pictures
from mnist_cnn.errors import DataError, PictureError

SPLITS = ("train", "test")


def find(folder: Path) -> Source:
    """The source of all pictures: classes in natural order, the pictures of each by name.

    Raises a `DataError` if a class has no training pictures, the classes of train and test differ,
    or something else is there than pictures in the folders of their classes.
    """
    if missing := [split for split in SPLITS if not (folder / split).is_dir()]:
        raise DataError(
            f"{str(folder)!r} lacks the folder {missing[0]!r}: expected train/CLASS/*.png and "
            "test/CLASS/*.png"
        )
    train, test = (_classes(folder / split) for split in SPLITS)
    if train != test:
        name = sorted(set(train) ^ set(test), key=_natural)[0]
        has, lacks = SPLITS if name in train else SPLITS[::-1]
        raise DataError(
            f"{folder / lacks} lacks the class {name!r}, which {has} has: train and test must have "
            "folders of the same names"
        )
    if not 2 <= len(train) <= MAX_CLASSES:
        raise DataError(
            f"{folder / 'train'} holds {len(train)} folders, expected one for each class, "
            f"2 to {MAX_CLASSES}"
        )
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    files: dict[str, Path] = {}
    for split in SPLITS:
        for label, name in enumerate(train):
            found = _pictures(folder / split / name)
            if split == "train" and not found:
                raise DataError(
                    f"{folder / split / name} holds no pictures: add some, or delete it"
                )
            files |= {f"{split}/{name}/{path.name}": path for path in found}
            labels[split] += [label] * len(found)
        if not labels[split]:
            raise DataError(f"{folder / split} holds no pictures in its folders: add some")

    def parse(read: Read) -> Parsed:
        images: list[np.ndarray] = []
        for path in files.values():
            images.append(_pixels(read(path), path))
            sizes = [image.shape[:2] for image in (images[0], images[-1])]
            if sizes[0] != sizes[1]:
                texts = [f"{width} pixels wide and {height} high" for height, width in sizes]
                first = next(iter(files.values()))
                raise DataError(
                    f"{path} is {texts[1]}, {first} is {texts[0]}: scale all to one size"
                )
        channels = max(image.shape[2] for image in images)
        pixels = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
        for row, image in zip(pixels, images, strict=True):
            row[:] = image  # grey among colours: three equal channels
        count = len(labels["train"])
        examples: dict[str, Examples] = {
            "train": (pixels[:count], np.array(labels["train"], np.uint8)),
            "test": (pixels[count:], np.array(labels["test"], np.uint8)),
        }
        return Parsed(examples, tuple(train))

    return Source(files, parse, folder.name, form="\n".join(["pictures", *files]))


def _classes(folder: Path) -> list[str]:
    names = list_folder(folder)
    if loose := [name for name in names if _is_picture(name) and (folder / name).is_file()]:
        raise DataError(f"{folder / loose[0]} is in no class: expected {folder.name}/CLASS/*.png")
    return sorted((name for name in names if (folder / name).is_dir()), key=_natural)


def _pictures(folder: Path) -> list[Path]:
    names = list_folder(folder)
    if inner := [name for name in names if (folder / name).is_dir()]:
        raise DataError(f"{folder / inner[0]} is a folder, expected the pictures of the class")
    return [folder / name for name in names if _is_picture(name)]


def _is_picture(name: str) -> bool:
    """Whether this is a picture's name, also of a format that is not read and so refused."""
    return name.lower().endswith(pictures.SUFFIXES + pictures.UNREAD_SUFFIXES)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts 2 before 10, and letters by their case last."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _pixels(content: bytes, path: Path) -> UInt8[np.ndarray, "H W C"]:
    """A picture as one channel if it is grey, otherwise three; transparent parts are white."""
    try:
        image = pictures.decode(io.BytesIO(content))
        width, height = image.size
        if max(image.size) > MAX_SIDE:  # large JPEGs are decoded at a smaller size
            width, height = Image.open(io.BytesIO(content)).size
        check_size(path, height, width)
        if image.mode in ("I", "F"):
            raise PictureError("has 32 bits a pixel, expected 8 or 16: convert it")
        image = pictures.opaque(image)
        if image.mode != "L":
            image = image.convert("RGB")
    except (PictureError, ValueError) as error:  # ValueError: no conversion from such colours
        raise DataError(f"{path}: {error}") from None
    pixels = np.atleast_3d(np.asarray(image))
    return pixels[..., :1] if (pixels == pixels[..., :1]).all() else pixels
