"""Stores examples in a folder that tensorflow-datasets prepares, and reads them back verified.

The folder is `<TFDS_DATA_DIR>/<builder>/<digest of the source files>/<version>`.  tfds reads no
file that differs from `SHA256SUMS` (for `sha256sum -c`); `metadata.json` has the arrays' digests.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mnist_cnn.data.source import Examples
from mnist_cnn.errors import DataError

VERSION = "1.0.0"  # of the folder's layout
_SUMS = "SHA256SUMS"
_EXAMPLES_PER_RECORD = 500  # MNIST is read in 0.08 s; in 2 s with one example per record

Metadata = dict[str, Any]  # the content of `metadata.json`


def load_metadata(directory: Path, splits: Collection[str] = ("train", "test")) -> Metadata | None:
    """The metadata of a prepared folder; None unless its files are those that were written.

    Of the records, only those of `splits` are hashed.
    """
    try:
        sums = dict(line.split("  ")[::-1] for line in (directory / _SUMS).read_text().splitlines())
        names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
        intact = names == {_SUMS, *sums} and all(
            _sha256(directory / name) == sha256
            for name, sha256 in sums.items()  # records are in <builder>-<split>.array_record-<i>
            if name.endswith(".json") or any(f"-{split}." in name for split in splits)
        )
        return json.loads((directory / "metadata.json").read_text()) if intact else None
    except (OSError, ValueError):
        return None


def write(directory: Path, examples: dict[str, Examples], metadata: Metadata) -> None:
    """Prepares the folder unless it is intact and has this metadata, or raises a `DataError`.

    Several processes may do so at once, and be killed at any time.  `metadata` is kept with the
    examples; its `num_examples` and `sha256` give the size and the `digest` of each split.
    """
    import fcntl  # missing on Windows, where a command must still print one line

    try:
        directory.parents[1].mkdir(parents=True, exist_ok=True)
        with open(directory.parents[1] / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if this process dies
            if load_metadata(directory) == metadata:  # another process was faster
                return
            if directory.parent.exists():  # damaged, or left by a process that was killed
                shutil.rmtree(directory.parent)
            shape = examples["train"][0].shape[1:]
            _builder(directory, examples, metadata, shape).download_and_prepare()
            sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in directory.iterdir())
            (directory / _SUMS).write_text(sums)  # last: it marks the folder as complete
    except Exception as error:  # OSError from Python, other kinds from array_record
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{directory} cannot be written ({reason}): set TFDS_DATA_DIR to a writable folder"
        ) from error


def read(directory: Path, split: str, metadata: Metadata, shape: tuple[int, int, int]) -> Examples:
    """Reads a whole split of a folder that `load_metadata` has verified; `shape`: of an image.

    Raises a `DataError` if it cannot be read, or its arrays differ from those that were written.
    """
    size = metadata["num_examples"][split]
    images = np.empty((size, *shape), np.uint8)
    labels = np.empty(size, np.uint8)
    try:
        records = _builder(directory, {}, {}, shape).as_data_source(split)
        # One record at a time: twice as fast as all at once, which maps 100 MB of fresh memory.
        for start, record in zip(range(0, size, _EXAMPLES_PER_RECORD), records, strict=True):
            chunk = slice(start, start + _EXAMPLES_PER_RECORD)
            images[chunk], labels[chunk] = record["images"], record["labels"]
        if digest(images, labels) != metadata["sha256"][split]:
            raise ValueError("other examples than were written")
    except Exception as error:  # array_record raises many kinds
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{directory} cannot be read ({reason}): delete it and run the same command again"
        ) from error
    return images, labels


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """The SHA-256 of the pixels followed by the labels, one byte each."""
    sha256 = hashlib.sha256(images.data)
    sha256.update(labels.data)
    return sha256.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _builder(
    directory: Path,
    examples: dict[str, Examples],
    metadata: Metadata,
    shape: tuple[int, ...],
) -> Any:
    """The tfds builder that prepares the folder from `examples`, or reads it."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    tensor = functools.partial(tfds.features.Tensor, dtype=np.uint8, encoding="bytes")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = directory.parents[1].name
        VERSION = tfds.core.Version(directory.name)
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=directory.parent.name)]

        def _info(self) -> tfds.core.DatasetInfo:
            info = tfds.core.DatasetInfo(
                builder=self,
                description="Many examples a record, in the order of the source files.",
                features=tfds.features.FeaturesDict(
                    {"images": tensor(shape=(None, *shape)), "labels": tensor(shape=(None,))}
                ),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(metadata),
            )
            info.initialize_from_bucket = lambda: None  # it leaves an empty folder in /tmp
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {name: self._generate_examples(*pair) for name, pair in examples.items()}

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
            for start in range(0, len(labels), _EXAMPLES_PER_RECORD):
                chunk = slice(start, start + _EXAMPLES_PER_RECORD)
                yield start, {"images": images[chunk], "labels": labels[chunk]}

        _log_download_bytes = _log_download_done = lambda self: None  # they print

    return Builder(data_dir=directory.parents[2], file_format="array_record")
