"""The run directory: config, environment, metrics, TensorBoard events and result, on disk.

    config.json  environment.json  metrics.jsonl  events.out.tfevents.*  checkpoints/
    predictions.npz  result.json

Nothing here trains, prints, or knows what the numbers mean; TensorBoard is written here alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pathlib
import time
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from mnist_cnn.errors import CheckpointError
from mnist_cnn.files import write_atomically


class RunDirectory:
    """One run's files.  Reading needs no lock; `lock()` before anything is written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path).absolute()
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._events: Any = None

    def __str__(self) -> str:
        """The path as a person would write it: relative where that is below this folder."""
        try:
            return str(self.path.relative_to(pathlib.Path.cwd()))
        except (ValueError, OSError):
            return str(self.path)

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def lock(self) -> None:
        """Makes the directory if need be, and claims it for this process while it lives.

        Raises:
          CheckpointError: another living process has claimed it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise CheckpointError(
                f"--workdir {self}: there is a file in its place; give another directory"
            ) from None
        lock = open(self.path / "lock", "a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise CheckpointError(
                f"--workdir {self}: another run is at work there; wait for its end, or give "
                "another directory"
            ) from None
        self._lock = lock  # the kernel lets go of it when the process ends, however it ends

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object of a file; None if the file is not there.

        Raises:
          CheckpointError: it is there and holds no JSON object.
        """
        try:
            content = json.loads((self.path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{self.path / name}: expected a JSON object, found something else; restore the "
                "file, or start over in another --workdir"
            )
        return content

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file whole or not at all."""
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / name, text.encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; none if it is not there."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(True) if path.exists() else []
        entries = map(_entry, lines)
        return [entry for entry in entries if entry is not None]

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file; nothing in it is unpickled.

        Raises:
          CheckpointError: it is not there, or is no such file.
        """
        try:
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{self}: no {name} there") from None
        except (ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile,
                zlib.error, NotImplementedError) as error:  # fmt: skip
            raise CheckpointError(
                f"{self.path / name}: expected arrays, found something else "
                f"({type(error).__name__}); restore the file, or train again"
            ) from None

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes an .npz file whole or not at all."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(self.path / name, content.getvalue())

    def open_metrics(self, step: int) -> None:
        """Opens metrics.jsonl and the events to go on after `step`: what came later is dropped."""
        path = self.path / "metrics.jsonl"
        whole = path.read_bytes() if path.exists() else b""
        kept = b"".join(line for line in whole.splitlines(True) if _precedes(line, step))
        if kept != whole:
            write_atomically(path, kept)
        self._metrics = open(path, "a", encoding="utf-8")
        import tensorboardX

        self._events = tensorboardX.SummaryWriter(str(self.path), purge_step=step + 1)

    def log(self, entry: Mapping[str, Any], series: Mapping[str, slice]) -> None:
        """Appends a line {"step": .., "epoch": .., "split": .., NAME: number or list, ..}.

        TensorBoard gets SPLIT/NAME, and of a list the mean of each slice that `series` names.
        """
        assert self._metrics is not None, "open_metrics comes first"
        self._metrics.write(json.dumps(entry, allow_nan=False) + "\n")
        self._metrics.flush()
        for name, value in entry.items():
            if name in ("step", "epoch", "split"):
                continue
            tag = f"{entry['split']}/{name}"
            points = {tag: [value]}
            if isinstance(value, list):
                points = {f"{tag}/{key}".rstrip("/"): value[rows] for key, rows in series.items()}
            for tag, values in points.items():
                if None not in values:
                    self._events.add_scalar(tag, float(np.mean(values)), entry["step"])
        self._events.flush()

    def log_hyperparameters(
        self, config: Mapping[str, Any], metrics: Mapping[str, float], step: int
    ) -> None:
        """What TensorBoard's HPARAMS tab shows of this run: fields, and metrics by their tags.

        In a file of its own, because TensorBoard keeps the first it meets: where a run was
        prolonged, the former file goes.  `add_hparams` would make a second run of it.
        """
        import tensorboardX
        from tensorboardX import summary

        for old in self.path.glob("events.out.tfevents.*.hparams"):
            old.unlink()
        with tensorboardX.SummaryWriter(str(self.path), filename_suffix=".hparams") as events:
            for part in summary.hparams(dict(config), dict(metrics)):
                events.file_writer.add_summary(part, step)

    def close(self) -> None:
        """Lets go of the directory; one that nothing came of is not left behind."""
        for file in (self._metrics, self._events, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._events = self._lock = None
        with contextlib.suppress(OSError):
            self.path.rmdir()  # only an empty one can be removed so


def new_run_path(name: str) -> pathlib.Path:
    """Makes runs/<name>-<time>, with a number if that is taken, so that no other run takes it."""
    path = pathlib.Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    first, number = path.name, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = path.with_name(f"{first}_{number}")
        else:
            return path


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a metrics line holds; None for a torn one."""
    try:
        entry = json.loads(line)
        whole = line.endswith(b"\n") and int(entry["step"]) >= 0 and isinstance(entry["split"], str)
        return entry if whole else None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _precedes(line: bytes, step: int) -> bool:
    """Whether a metrics line is whole, and was written before the checkpoint of `step` was.

    The test split is evaluated after the last checkpoint, so its line never precedes one.
    """
    entry = _entry(line)
    return entry is not None and entry["split"] != "test" and int(entry["step"]) <= step
