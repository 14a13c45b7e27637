"""The folder that tfds prepares: written once, verified whenever it is read.

Its path is `<TFDS_DATA_DIR>/<builder>/<digest of the source files>/<version>`.  Beside what tfds
writes it holds `SHA256SUMS`, which `sha256sum -c` reads, over all its files: damage of any kind is
found before tfds meets it.  `metadata.json` (tfds' word) holds a digest of each split's arrays:
what comes out is what went in.  This module must not know where the examples come from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from mnist_cnn.errors import DataError

VERSION = "1.0.0"  # of the layout
_SUMS = "SHA256SUMS"
_EXAMPLES_PER_RECORD = 500  # all are read in 0.08 s; in 2 s with one image a record

Examples = tuple[UInt8[np.ndarray, "N 28 28 1"], UInt8[np.ndarray, " N"]]  # images, labels


def metadata_if_whole(directory: Path) -> dict[str, Any] | None:
    """The folder's metadata if all its files are as they were written, else None."""
    try:
        sums = dict(line.split("  ")[::-1] for line in (directory / _SUMS).read_text().splitlines())
        there = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
        if there != {_SUMS, *sums} or any(_sha256(directory / n) != sums[n] for n in sums):
            return None
        return json.loads((directory / "metadata.json").read_text())
    except (OSError, ValueError):
        return None


def write(directory: Path, examples: dict[str, Examples], metadata: dict[str, Any]) -> None:
    """Makes the folder whole; safe in many processes at once, and after one was killed in it.

    Raises:
      DataError: the folder cannot be written.
    """
    try:
        directory.parents[1].mkdir(parents=True, exist_ok=True)
        with open(directory.parents[1] / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when this process dies
            if metadata_if_whole(directory):  # another process was faster
                return
            if directory.parent.exists():  # damaged, or begun by a process that died
                shutil.rmtree(directory.parent)
            _builder(directory, examples, metadata).download_and_prepare()
            sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in directory.iterdir())
            (directory / _SUMS).write_text(sums)  # last: without it the folder is not whole
    except Exception as error:  # OSError from Python, other kinds from array_record
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{directory} cannot be written ({reason}): set TFDS_DATA_DIR to a folder that can"
        ) from error


def read(directory: Path, split: str, size: int, digest: str) -> Examples:
    """Reads a whole split: `size` examples, whose `digest` must come out.

    Raises:
      DataError: nothing or something else came out, though the files were whole a moment ago.
    """
    images = np.empty((size, 28, 28, 1), np.uint8)
    labels = np.empty(size, np.uint8)
    start = 0
    try:
        # One record at a time: twice as fast as all at once, which maps 100 MB of fresh memory.
        for record in _builder(directory).as_data_source(split):
            stop = start + len(record["labels"])
            images[start:stop] = record["images"]
            labels[start:stop] = record["labels"]
            start = stop
        if start != size or digest_of(images, labels) != digest:
            raise ValueError("other examples than were written")
    except Exception as error:  # array_record raises all kinds
        reason = str(error).partition("\n")[0]
        raise DataError(f"{directory} cannot be read ({reason}): start again") from error
    return images, labels


def digest_of(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the pixels, then of the labels, a byte each."""
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _builder(
    directory: Path,
    examples: dict[str, Examples] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Any:
    """The tfds builder of a prepared folder, or of one to be prepared from `examples`."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = directory.parents[1].name
        VERSION = tfds.core.Version(directory.name)
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=directory.parent.name)]

        def _info(self) -> tfds.core.DatasetInfo:
            def tensor(*shape: int | None) -> tfds.features.Tensor:
                return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")

            info = tfds.core.DatasetInfo(
                builder=self,
                description="Many examples a record, in the order of the source files.",
                features=tfds.features.FeaturesDict(
                    {"images": tensor(None, 28, 28, 1), "labels": tensor(None)}
                ),
                disable_shuffling=True,  # keeps the order
                metadata=tfds.core.MetadataDict(metadata or {}),
            )
            info.initialize_from_bucket = lambda: None  # leaves an empty folder in /tmp each time
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            return {name: self._generate_examples(*pair) for name, pair in (examples or {}).items()}

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            for start in range(0, len(labels), _EXAMPLES_PER_RECORD):
                chunk = slice(start, start + _EXAMPLES_PER_RECORD)
                yield start, {"images": images[chunk], "labels": labels[chunk]}

        def _log_download_bytes(self) -> None:
            pass  # tfds prints

        def _log_download_done(self) -> None:
            pass  # tfds prints

    return Builder(data_dir=directory.parents[2], file_format="array_record")
