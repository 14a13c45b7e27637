"""The run directory: config, environment, metrics, TensorBoard events and result, on disk.

    config.json  environment.json  metrics.jsonl  events.out.tfevents.*  checkpoints/
    predictions.npz  result.json

Nothing here trains, prints, or knows what the numbers mean; TensorBoard is written here alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from mnist_cnn.errors import CheckpointError

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy",
)  # fmt: skip


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


def new_path(name: str) -> pathlib.Path:
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


def _cpu_count() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces `path`; a reader, and a crash, meet the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def environment(devices: Sequence[Any], command: Sequence[str]) -> dict[str, Any]:
    """What a number depends on besides the configuration."""
    return {
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": _cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [{"platform": d.platform, "kind": d.device_kind} for d in devices],
        "git": _git(pathlib.Path(__file__).parent),
    }


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


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: pathlib.Path) -> dict[str, Any] | None:
    """The commit of the code, and whether the tree was dirty; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        if git("ls-files", "__init__.py") != "__init__.py":
            return None  # a copy that merely lies inside somebody's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> list[str]:
    """The command of this process as its user typed it, as far as Python knows."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        return ["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]]
    return list(sys.argv)
