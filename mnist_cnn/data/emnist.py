"""EMNIST's IDX files (https://arxiv.org/abs/1702.05373), whose images are transposed."""

import difflib
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mnist_cnn.data import idx_folder
from mnist_cnn.data.source import Parsed, Read, Source, list_folder, shift_note
from mnist_cnn.errors import DataError

_FILE = re.compile(r"(emnist-\w+)-(train|test)-(images|labels)[-.]idx\d-ubyte(\.gz)?")


def splits(folder: Path) -> list[str]:
    """The names of EMNIST's splits of which there is a file in a folder, such as emnist-letters."""
    matches = map(_FILE.fullmatch, list_folder(folder))
    return sorted({match[1] for match in matches if match})


def find(folder: Path, name: str | None = None) -> Source:
    """The source of one of EMNIST's splits; a `DataError` if there are several and no `name`."""
    names = splits(folder)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        example = (difflib.get_close_matches(name or "emnist-letters", names, 1) or names)[0]
        raise DataError(
            f"{str(folder)!r} holds {', '.join(names)}: choose one, for example "
            f"manual_dir={str(folder / example)!r}"
        )
    files = [
        file.replace("train-", f"{name}-train-").replace("t10k-", f"{name}-test-")
        for file in idx_folder.FILES
    ]
    paths = idx_folder.find_files(folder, files)
    mapping = folder / f"{name}-mapping.txt"
    found = [*paths, mapping] if mapping.is_file() else paths

    def parse(read: Read) -> Parsed:
        examples, first = idx_folder.parse_files(paths, read)
        examples = {split: (_upright(images), y) for split, (images, y) in examples.items()}
        labels = range(first, first + int(examples["train"][1].max()) + 1)
        notes = ["EMNIST's images are transposed in their files, and are set right"]
        if mapping in found:
            characters = _read_mapping(read(mapping), mapping)
            if unnamed := [label for label in labels if label not in characters]:
                raise DataError(f"{mapping}: has no line for label {unnamed[0]}: get it again")
            class_names = tuple(characters[label] for label in labels)
        else:
            class_names = tuple(map(str, labels))
            notes.append(f"there is no {mapping.name}, so classes have the names of their labels")
        return Parsed(examples, class_names, (*notes, *shift_note(first, class_names)))

    return Source({path.name: path for path in found}, parse, name or "", form=name or "")


def _upright(images: UInt8[np.ndarray, "N W H C"]) -> UInt8[np.ndarray, "N H W C"]:
    return np.ascontiguousarray(images.swapaxes(1, 2))


def _read_mapping(content: bytes, path: Path) -> dict[int, str]:
    """Labels -> characters. A line is a label and a code, for letters of both cases two of them."""
    characters = {}
    for number, line in enumerate(content.decode("latin-1").splitlines(), start=1):
        try:
            if line.strip():
                label, code, *_ = map(int, line.split())
                characters[label] = chr(code)
        except (ValueError, OverflowError):
            raise DataError(
                f"{path}, line {number}: got {line[:40]!r}, expected a label and a character code"
            ) from None
    return characters
