"""Opens a dataset: original IDX files -> checked uint8 arrays, by way of tensorflow-datasets.

The examples are prepared once in `TFDS_DATA_DIR`, in the order of the files: tfds' own `mnist` is
shuffled.  Different files never share a folder.  If it cannot be written, the examples are used
from memory.  No pickle is read, no TensorFlow imported.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from mnist_cnn.data import download, idx, tfds_builder
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import ConfigError, DataError
from mnist_cnn.files import local_path

_REMEDIES = {"the package": "reinstall the package", "tfds download": "delete it"}

# `tfds_builder.digest` of MNIST's splits, independent of how the source files are packed.
_MNIST_DIGESTS = {
    "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: named splits of images with their labels."""

    name: str  # one of `download.DATASETS`
    origin: str  # "the package", "tfds download" or the absolute path of `manual_dir`
    official: bool  # the published examples: for mnist by unpacked content, otherwise by the files
    files: dict[str, str]  # the names of the four source files -> their SHA-256, in their order
    contents: dict[str, str]  # the names of the splits -> the SHA-256 of their pixels and labels
    num_examples: dict[str, int]  # the names of the splits -> their sizes
    spec: DataSpec
    directory: Path | None  # the prepared folder; None: there is no home directory for it
    _sources: dict[Path, str] = dataclasses.field(repr=False)
    # Of all splits, if the folder cannot be written.
    _examples: dict[str, tfds_builder.Examples] | None = dataclasses.field(repr=False)

    def describe(self) -> dict[str, Any]:
        """The data's identity, as environment.json contains it."""
        return {"origin": self.origin, "sha256": self.files, "content_sha256": self.contents}

    def rows(self, split: Any) -> list[tuple[str, int, int]]:
        """The slices that tfds reads for `split`: (name, start, stop), start < stop.

        `split` is for example `train`, `train[:55000]`, `train[-10%:]`, `train[:80%]+test`.
        Raises a `DataError` if it is malformed or out of range, or one of its slices is empty.
        """
        import tensorflow_datasets as tfds

        sizes = self.num_examples
        # The infos of the prepared folder count records, of many examples each.
        infos = {n: tfds.core.SplitInfo(n, [size], num_bytes=0) for n, size in sizes.items()}
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        except (ValueError, NotImplementedError):
            parts = []
        rows = [(p.splitname, *slice(p.from_, p.to).indices(sizes[p.splitname])[:2]) for p in parts]
        if not rows or any(start >= stop for _, start, stop in rows):
            legal = " and ".join(f"{name!r} ({size} examples)" for name, size in sizes.items())
            raise DataError(
                f"split {split!r} selects no examples of {self.name}, which has {legal}: "
                "write for example 'train[:90%]'"
            )
        return rows

    def size(self, split: Any) -> int:
        """The number of examples of a split; a `DataError` as `rows` raises it."""
        return sum(stop - start for _, start, stop in self.rows(split))

    def read(self, split: Any) -> tuple[UInt8[np.ndarray, "N 28 28 1"], Int32[np.ndarray, " N"]]:
        """Reads images, 0 (background) to 255, and labels, 0 to 9, of the slices `rows(split)`.

        A damaged folder is prepared again; raises a `DataError` if that fails, and as `rows` does.
        """
        rows = self.rows(split)
        names = {name for name, _, _ in rows}
        whole = self._examples
        if whole is None:
            metadata, whole = _prepare(self.name, self.origin, self._sources, self.directory, names)
        if whole is None:
            assert self.directory is not None  # `_prepare` has verified it
            whole = {name: tfds_builder.read(self.directory, name, metadata) for name in names}
        images = [whole[name][0][start:stop] for name, start, stop in rows]
        labels = [whole[name][1][start:stop] for name, start, stop in rows]
        pixels = images[0] if len(images) == 1 else np.concatenate(images)  # avoids a copy
        return pixels, np.concatenate(labels).astype(np.int32)


def open_dataset(name: Any, manual_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Finds and checks the source files, and prepares them unless they are already prepared.

    `manual_dir` is a folder with the four IDX files, of any number of 28x28 images: the first that
    exists of `train-images-idx3-ubyte.gz`, `train-images-idx3-ubyte`, `train-images.idx3-ubyte.gz`,
    `train-images.idx3-ubyte`; the others likewise.  By default mnist comes from the package, and
    tfds downloads the other datasets.  If the folder cannot be written, prints a note and keeps the
    examples in memory.  Raises a `DataError` if the name is unknown; files are missing, damaged or
    contradict one another; or a download fails.  ConfigError: a folder is not a local path.
    """
    if name not in download.DATASETS:
        near = difflib.get_close_matches(str(name), download.DATASETS, n=1)
        names = ", ".join(download.DATASETS)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {names}"
        raise DataError(f"dataset {name!r} is unknown: {hint}")
    root = _data_root()
    with contextlib.ExitStack() as stack:
        if manual_dir is not None:
            origin = os.path.abspath(local_path(manual_dir, "manual_dir"))
            paths = _find(Path(origin))
        elif name == "mnist":
            origin, paths = "the package", _find(Path(__file__).parent / "mnist")
        else:
            origin, paths = "tfds download", _download(name, root, stack)
        sources = {path: hashlib.sha256(_read_file(path)).hexdigest() for path in paths}
        key = hashlib.sha256(" ".join(sources.values()).encode()).hexdigest()[:32]
        directory = root / f"mnist_cnn_{name}" / key / tfds_builder.VERSION if root else None
        metadata, examples = _prepare(name, origin, sources, directory)
    files = {path.name: digest for path, digest in sources.items()}
    return Dataset(
        name,
        origin,
        metadata["official"],
        files,
        metadata["sha256"],
        metadata["num_examples"],
        MNIST,
        directory,
        sources,
        examples,
    )


def is_same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results of `Dataset.describe` are of the same images and labels.

    How the files are compressed and named makes no difference. Older run directories have no
    `content_sha256`: then the files must be the same, whatever their names.
    """
    if "content_sha256" in one and "content_sha256" in other:
        return one["content_sha256"] == other["content_sha256"]
    files, others = (list((data.get("sha256") or {}).values()) for data in (one, other))
    return files == others


def _data_root() -> Path | None:
    """TFDS_DATA_DIR, by default ~/tensorflow_datasets; None if there is no home directory."""
    if data_dir := os.environ.get("TFDS_DATA_DIR"):
        return local_path(data_dir, "TFDS_DATA_DIR")
    with contextlib.suppress(ConfigError):
        return local_path("~/tensorflow_datasets", "TFDS_DATA_DIR")
    return None


def _download(name: str, root: Path | None, stack: contextlib.ExitStack) -> list[Path]:
    """The files of tfds' cache, or if that cannot be written, in a folder that `stack` deletes."""
    if root is not None:
        with contextlib.suppress(OSError):
            return download.fetch(name, root / "downloads")
    temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist_cnn-"))
    return download.fetch(name, Path(temporary))


def _find(folder: Path) -> list[Path]:
    """The files, in the order of `download.FILES`, each in the first spelling that exists."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder: name the one that holds the IDX files")
    found = []
    for name in download.FILES:
        names = (name, name.replace("-idx", ".idx"))
        spellings = [folder / f"{n}{gz}" for n in names for gz in (".gz", "")]
        found.append(next(filter(Path.is_file, spellings), spellings[0]))
    if missing := [path.name for path in found if not path.is_file()]:
        raise DataError(
            f"{str(folder)!r} lacks {', '.join(missing)}: put them there (names without '.gz' or "
            "with '.idx' instead of '-idx' are accepted too)"
        )
    return found


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > idx.MAX_BYTES:
            raise DataError(f"{path} is larger than {idx.MAX_BYTES} bytes: expected an IDX file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _prepare(
    name: str,
    origin: str,
    sources: dict[Path, str],
    directory: Path | None,
    splits: Collection[str] = (),
) -> tuple[tfds_builder.Metadata, dict[str, tfds_builder.Examples] | None]:
    """The metadata of the prepared folder, prepared (again) unless it and `splits` are intact.

    If it cannot be written, a note is printed and the examples are returned as well.
    """
    metadata = tfds_builder.load_metadata(directory, splits) if directory else None
    if metadata is not None:
        return metadata, None
    registered = [info.checksum for info in download.registered(name).values()]
    contents = []
    for (path, digest), official in zip(sources.items(), registered, strict=True):
        if origin in _REMEDIES and digest != official:
            raise DataError(
                f"{path} has SHA-256 {digest}, tfds has registered {official}: {_REMEDIES[origin]}"
            )
        contents.append(_read_file(path))
        if hashlib.sha256(contents[-1]).hexdigest() != digest:
            raise DataError(f"{path} changed since it was opened: run the same command again")
    paths = list(sources)
    examples = {}
    for split, i in (("train", 0), ("test", 2)):
        images = idx.parse_images(contents[i], str(paths[i]))
        labels = idx.parse_labels(contents[i + 1], str(paths[i + 1]))
        if len(images) != len(labels):
            raise DataError(
                f"{paths[i]} holds {len(images)} images, but {paths[i + 1].name} "
                f"{len(labels)} labels: give files that belong together"
            )
        examples[split] = images, labels
    digests = {split: tfds_builder.digest(*pair) for split, pair in examples.items()}
    is_registered = list(sources.values()) == registered
    metadata = {
        "num_examples": {split: len(labels) for split, (_, labels) in examples.items()},
        "sha256": digests,
        "official": is_registered or (name == "mnist" and digests == _MNIST_DIGESTS),
        "source_files": {path.name: digest for path, digest in sources.items()},
    }
    try:
        if directory is None:
            raise DataError("there is no home directory: set TFDS_DATA_DIR to a writable folder")
        tfds_builder.write(directory, examples, metadata)
    except DataError as error:
        print(f"note: the data is used from memory; {error}", file=sys.stderr)
        return metadata, examples
    return metadata, None
