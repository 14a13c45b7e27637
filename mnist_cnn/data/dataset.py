"""From the original IDX files to checked uint8 arrays, by way of a tensorflow-datasets builder.

The data takes this way: four IDX files (embedded in the package, given by the user, or downloaded
by tfds) -> their SHA-256 -> checked arrays -> a folder prepared by tfds, once -> named splits and
slices of it.  The prepared folder lies where tfds' users expect it (`TFDS_DATA_DIR`, else
`~/tensorflow_datasets`), under a builder name of its own, because the records of tfds' `mnist`
are in another order: here test image 0 is the test image 0 that everyone means.  The folder's
path holds a digest of the source files, so that other files never meet a stale folder.

Nothing is unpickled and TensorFlow is not needed.  This module must not know the configuration,
JAX or the training.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from mnist_cnn.data import download, idx, prepared
from mnist_cnn.errors import DataError

DATASETS = download.DATASETS

_PACKAGE, _NETWORK = "the package", "tfds download"

# `prepared.digest_of` MNIST's splits: the same however the source files are packed.
_MNIST_DIGESTS = {
    "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
}


def open_dataset(name: str, manual_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Finds and checks the source files, and prepares them if that was not done before.

    Args:
      name: one of `DATASETS`.
      manual_dir: a folder that holds the four IDX files (any number of 28x28 images); without it,
        mnist comes from the package and the others through tfds' download manager.  A file that
        is there in several spellings is taken in the order `train-images-idx3-ubyte.gz`,
        `train-images-idx3-ubyte`, `train-images.idx3-ubyte.gz`, `train-images.idx3-ubyte`.

    Raises:
      DataError: the name is unknown, or files are missing, damaged, or contradict one another, or
        the prepared data cannot be written, or there is no network to download from.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(DATASETS)}"
        raise DataError(f"dataset {name!r} is unknown: {hint}")
    data_dir = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    if "://" in data_dir:
        raise DataError(f"TFDS_DATA_DIR is {data_dir!r}: set it to a local folder")
    root = Path(os.path.expanduser(data_dir))
    if manual_dir is not None:
        origin = os.path.abspath(os.path.expanduser(manual_dir))
        paths = _find(Path(origin))
    elif name == "mnist":
        origin, paths = _PACKAGE, _find(Path(__file__).parent / "mnist")
    else:
        origin, paths = _NETWORK, download.fetch(name, root / "downloads")
    digests = [hashlib.sha256(_read_file(path)).hexdigest() for path in paths]
    key = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]
    directory = root / f"mnist_cnn_{name}" / key / prepared.VERSION
    sources = dict(zip(paths, digests, strict=True))
    metadata = _prepare(name, origin, sources, directory)
    return Dataset(
        name=name,
        origin=origin,
        official=metadata["official"],
        files={path.name: digest for path, digest in sources.items()},
        num_examples=metadata["num_examples"],
        directory=directory,
        _sources=sources,
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: named splits of images with their labels.

    Attributes:
      name: one of `DATASETS`.
      origin: where the source files come from, for people: "the package", "tfds download" or the
        path of `manual_dir`.
      official: whether the content is what everyone means by the name.  For mnist the unpacked
        content is compared, so re-packed files count; for the others the files themselves.
      files: the names of the four source files as found -> their SHA-256.
      num_examples: the splits' names -> how many examples they hold.
      directory: the folder that tfds prepared.
    """

    name: str
    origin: str
    official: bool
    files: dict[str, str]
    num_examples: dict[str, int]
    directory: Path
    _sources: dict[Path, str] = dataclasses.field(repr=False)

    def rows(self, split: str) -> list[tuple[str, int, int]]:
        """What tfds means by `split`, as (name, start, stop) with 0 <= start < stop <= size.

        Args:
          split: for example `train`, `train[:55000]`, `train[-10%:]`, `train[:80%]+test`.

        Raises:
          DataError: `split` is not legal, out of range, or a part of it holds no example.
        """
        import tensorflow_datasets as tfds

        # The prepared splits count records of many examples: tfds is given the examples instead.
        infos = {
            name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
            for name, size in self.num_examples.items()
        }
        rows = []
        try:
            for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(infos):
                size = self.num_examples[part.splitname]
                rows.append((part.splitname, part.from_ or 0, size if part.to is None else part.to))
        except (ValueError, NotImplementedError):
            rows.clear()
        if not rows or any(start >= stop for _, start, stop in rows):
            legal = " and ".join(
                f"{name!r} ({n} examples)" for name, n in self.num_examples.items()
            )
            raise DataError(
                f"split {split!r} names no examples of {self.name}, which has {legal}: "
                "write for example 'train[:90%]'"
            )
        return rows

    def read(self, split: str) -> tuple[UInt8[np.ndarray, "N 28 28 1"], Int32[np.ndarray, " N"]]:
        """Reads examples, in the order of the source files.

        Args:
          split: as for `rows`.

        Returns:
          images, 0 (background) to 255, and labels, 0 to 9.

        Raises:
          DataError: as `rows`; or the prepared data is damaged and cannot be made again.
        """
        rows = self.rows(split)
        metadata = _prepare(self.name, self.origin, self._sources, self.directory)
        whole = {
            name: prepared.read(
                self.directory, name, metadata["num_examples"][name], metadata["sha256"][name]
            )
            for name, _, _ in rows
        }
        images = [whole[name][0][start:stop] for name, start, stop in rows]
        labels = [whole[name][1][start:stop] for name, start, stop in rows]
        if len(rows) == 1:  # one slice need not be copied
            return images[0], labels[0].astype(np.int32)
        return np.concatenate(images), np.concatenate(labels).astype(np.int32)


def _find(folder: Path) -> list[Path]:
    """The files, in the order of `download.FILES`, each under its first spelling that is there."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder: name the one that holds the IDX files")
    found, missing = [], []
    for name in download.FILES:
        spellings = [n + gz for n in (name, name.replace("-idx", ".idx")) for gz in (".gz", "")]
        here = [folder / spelling for spelling in spellings if (folder / spelling).is_file()]
        found += here[:1]
        missing += [] if here else spellings[:1]
    if missing:
        raise DataError(
            f"{str(folder)!r} lacks {', '.join(missing)}: put them there (also accepted: without "
            "'.gz', and '.idx' for '-idx')"
        )
    return found


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > idx.MAX_BYTES:
            raise DataError(f"{path} is larger than {idx.MAX_BYTES} bytes: expected an IDX file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _prepare(name: str, origin: str, sources: dict[Path, str], directory: Path) -> dict[str, Any]:
    """The prepared folder's metadata; if it is not there or not whole, it is made (again)."""
    metadata = prepared.metadata_if_whole(directory)
    if metadata is None:
        examples, metadata = _parse(name, origin, sources)
        prepared.write(directory, examples, metadata)
    return metadata


def _parse(
    name: str, origin: str, sources: dict[Path, str]
) -> tuple[dict[str, prepared.Examples], dict[str, Any]]:
    """Checks the source files: their examples by split, and what is to be kept about them."""
    registered = [info.checksum for info in download.registered(name).values()]
    data = []
    for (path, digest), official in zip(sources.items(), registered, strict=True):
        if origin in (_PACKAGE, _NETWORK) and digest != official:
            remedy = "install the package again" if origin == _PACKAGE else "delete it"
            raise DataError(
                f"{path} has SHA-256 {digest}, tfds has registered {official}: {remedy}"
            )
        data.append(_read_file(path))
        if hashlib.sha256(data[-1]).hexdigest() != digest:
            raise DataError(f"{path} changed since it was opened: start again")
    examples = {}
    paths = list(sources)
    for split, i in (("train", 0), ("test", 2)):
        images = idx.parse_images(data[i], str(paths[i]))
        labels = idx.parse_labels(data[i + 1], str(paths[i + 1]))
        if len(images) != len(labels):
            raise DataError(
                f"{paths[i]} holds {len(images)} images, but {paths[i + 1].name} "
                f"{len(labels)} labels: give files that belong together"
            )
        examples[split] = images, labels
    digests = {split: prepared.digest_of(*pair) for split, pair in examples.items()}
    is_registered = list(sources.values()) == registered
    metadata = {
        "num_examples": {split: len(labels) for split, (_, labels) in examples.items()},
        "sha256": digests,
        "official": is_registered or (name == "mnist" and digests == _MNIST_DIGESTS),
        "source_files": {path.name: digest for path, digest in sources.items()},
    }
    return examples, metadata
