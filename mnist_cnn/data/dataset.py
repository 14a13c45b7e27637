"""Opens a dataset: source files -> checked uint8 arrays, by way of tensorflow-datasets.

The examples are prepared once in `TFDS_DATA_DIR`, in the order of the files: tfds' own `mnist` is
shuffled.  Different files never share a folder.  If it cannot be written, the examples are used
from memory.  No pickle is read, no TensorFlow imported.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import itertools
import os
import stat
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from mnist_cnn.data import download, idx, idx_folder, manual, tfds_builder
from mnist_cnn.data.source import Examples, Source
from mnist_cnn.data.spec import MNIST, MNIST_SHA256, NAMED, DataSpec
from mnist_cnn.errors import ConfigError, DataError
from mnist_cnn.files import local_path

_REMEDIES = {"the package": "reinstall the package", "tfds download": "delete it"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: named splits of images with their labels."""

    name: str  # one of `download.DATASETS`; of the user's own images that of their folder
    origin: str  # "the package", "tfds download" or the absolute path of `manual_dir`
    official: bool  # the published examples: for mnist by unpacked content, otherwise by the files
    # The names of the source files -> their SHA-256, in their order. A folder of pictures is one
    # entry: the SHA-256 of the names and SHA-256s in it.
    files: dict[str, str]
    contents: dict[str, str]  # the names of the splits -> the SHA-256 of their pixels and labels
    num_examples: dict[str, int]  # the names of the splits -> their sizes
    spec: DataSpec
    notes: tuple[str, ...]  # what the user should know about how the files were read
    directory: Path | None  # the prepared folder; None: there is no home directory for it
    _chosen: str = dataclasses.field(repr=False)  # the name that the user chose
    _source: Source = dataclasses.field(repr=False)
    _sources: dict[Path, str] = dataclasses.field(repr=False)  # the SHA-256 of its files
    # Of all splits, if the folder cannot be written.
    _examples: dict[str, Examples] | None = dataclasses.field(repr=False)

    def describe(self) -> dict[str, Any]:
        """The data's identity, as environment.json contains it."""
        return {
            "origin": self.origin,
            "sha256": self.files,
            "content_sha256": self.contents,
            "image_shape": list(self.spec.image_shape),
            "class_names": list(self.spec.class_names),
        }

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

    def read(self, split: Any) -> tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, " N"]]:
        """Reads images of `spec.image_shape`, 0 to 255, and labels, from 0, of `rows(split)`.

        A damaged folder is prepared again; raises a `DataError` if that fails, and as `rows` does.
        """
        rows = self.rows(split)
        names = {name for name, _, _ in rows}
        whole = self._examples
        if whole is None:
            metadata, whole = _prepare(
                self._chosen, self.origin, self._source, self._sources, self.directory, names
            )
        if whole is None:
            assert self.directory is not None  # `_prepare` has verified it
            shape = self.spec.image_shape
            whole = {n: tfds_builder.read(self.directory, n, metadata, shape) for n in names}
        images = [whole[name][0][start:stop] for name, start, stop in rows]
        labels = [whole[name][1][start:stop] for name, start, stop in rows]
        pixels = images[0] if len(images) == 1 else np.concatenate(images)  # avoids a copy
        return pixels, np.concatenate(labels).astype(np.int32)


def open_dataset(name: Any, manual_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Finds and checks the source files, and prepares them unless they are already prepared.

    `manual_dir` is a folder of images in one of the formats of `manual.find`, which may have any
    size from 8x8 to 128x128, one or three channels and up to 256 classes.  By default mnist comes
    from the package, and tfds downloads the other datasets.  If the folder cannot be written,
    prints a note and keeps the examples in memory.  Raises a `DataError` if the name is unknown;
    files are missing, damaged or contradict one another; or a download fails.  ConfigError: a
    folder is not a local path.
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
            source = manual.find(Path(origin), NAMED[name].class_names)
        elif name == "mnist":
            folder = Path(__file__).parent / "mnist"
            paths = idx_folder.find_files(folder, idx_folder.FILES)
            origin, source = "the package", idx_folder.source_of(paths, NAMED[name].class_names)
        else:
            paths = _download(name, root, stack)
            origin, source = "tfds download", idx_folder.source_of(paths, NAMED[name].class_names)
        sources = {p: hashlib.sha256(_read_file(p)).hexdigest() for p in source.files.values()}
        identity = " ".join([source.form, *sources.values()] if source.form else sources.values())
        key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        directory = root / f"mnist_cnn_{name}" / key / tfds_builder.VERSION if root else None
        metadata, examples = _prepare(name, origin, source, sources, directory)
    spec = NAMED[name]
    if not metadata["official"]:
        spec = DataSpec(tuple(metadata["image_shape"]), tuple(metadata["class_names"]))
    shown = source.name or (name if spec == NAMED[name] else Path(origin).name)
    return Dataset(
        shown,
        origin,
        metadata["official"],
        _summarize({file: sources[path] for file, path in source.files.items()}),
        metadata["sha256"],
        metadata["num_examples"],
        spec,
        tuple(metadata.get("notes", ())),
        directory,
        name,
        source,
        sources,
        examples,
    )


def is_same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results of `Dataset.describe` are of the same images and labels.

    How the files are compressed and named makes no difference. Older run directories have no
    `content_sha256`: then the files must be the same, whatever their names.
    """
    if "content_sha256" in one and "content_sha256" in other:
        shapes = [data.get("image_shape", list(MNIST.image_shape)) for data in (one, other)]
        return one["content_sha256"] == other["content_sha256"] and shapes[0] == shapes[1]
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


def _summarize(digests: Mapping[str, str]) -> dict[str, str]:
    """The SHA-256 of each file; those of a folder as one, of all its names and SHA-256s."""
    summary = {}
    for top, names in itertools.groupby(digests, lambda name: name.partition("/")[0]):
        lines = [f"{digests[name]}  {name}\n" for name in names]
        text = "".join(lines).encode(errors="surrogateescape")
        summary[top] = digests[top] if top in digests else hashlib.sha256(text).hexdigest()
    return summary


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a device or a pipe might never end
            raise DataError(f"{path} is no regular file")
        if status.st_size > idx.MAX_BYTES:
            raise DataError(f"{path} is larger than {idx.MAX_BYTES:,} bytes, the limit of a file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _prepare(
    name: str,
    origin: str,
    source: Source,
    sources: dict[Path, str],
    directory: Path | None,
    splits: Collection[str] = (),
) -> tuple[tfds_builder.Metadata, dict[str, Examples] | None]:
    """The metadata of the prepared folder, prepared (again) unless it and `splits` are intact.

    If it cannot be written, a note is printed and the examples are returned as well.
    """
    metadata = tfds_builder.load_metadata(directory, splits) if directory else None
    # Earlier versions did not write the form of the user's own images.
    if metadata is not None and (metadata["official"] or "image_shape" in metadata):
        return metadata, None
    registered = [info.checksum for info in download.registered(name).values()]
    if origin in _REMEDIES:
        for (path, digest), official in zip(sources.items(), registered, strict=True):
            if digest != official:
                raise DataError(
                    f"{path} has SHA-256 {digest}, tfds has registered {official}: "
                    f"{_REMEDIES[origin]}"
                )

    def read(path: Path) -> bytes:
        content = _read_file(path)
        if hashlib.sha256(content).hexdigest() != sources[path]:
            raise DataError(f"{path} changed since it was opened: run the same command again")
        return content

    examples, class_names, notes = source.parse(read)
    shape = examples["train"][0].shape[1:]
    digests = {split: tfds_builder.digest(*pair) for split, pair in examples.items()}
    is_mnist = name == "mnist" and digests == MNIST_SHA256 and shape == MNIST.image_shape
    metadata = {
        "num_examples": {split: len(labels) for split, (_, labels) in examples.items()},
        "sha256": digests,
        "official": list(sources.values()) == registered or is_mnist,
        "source_files": _summarize({n: sources[path] for n, path in source.files.items()}),
    }
    if not metadata["official"]:
        metadata |= {"image_shape": list(shape), "class_names": list(class_names)}
        metadata["notes"] = list(notes)
    try:
        if directory is None:
            raise DataError("there is no home directory: set TFDS_DATA_DIR to a writable folder")
        tfds_builder.write(directory, examples, metadata)
    except DataError as error:
        print(f"note: the data is used from memory; {error}", file=sys.stderr)
        return metadata, examples
    return metadata, None
