"""The files of a run directory. No other file knows TensorBoard.

config.json  environment.json  experiment-*.py  metrics.jsonl  events.out.tfevents.*  checkpoints/
predictions.npz  result.json  report.html  lock; with `profile` plugins/; of a sweep whose settings
are runs also sweep.json  settings/
"""

import contextlib
import io
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from mnist_cnn.config import is_tested_name
from mnist_cnn.data import spec
from mnist_cnn.data.spec import DataSpec
from mnist_cnn.errors import CheckpointError
from mnist_cnn.files import local_path, write_atomically
from mnist_cnn.parallel import threads


class RunDirectory:
    """Reads and writes the files of one run; call `lock` before writing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path(path, "--workdir").absolute()
        self.checkpoints = self.path / "checkpoints"
        self._open_files = contextlib.ExitStack()
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._events: Any = None

    def __str__(self) -> str:
        """The path, relative if it is below the current directory."""
        with contextlib.suppress(ValueError, OSError):
            return str(self.path.relative_to(pathlib.Path.cwd()))
        return str(self.path)

    def lock(self) -> None:
        """Creates the directory and reserves it for this process, until it closes or ends.

        Raises CheckpointError if another process uses it, or the path is that of a file.
        """
        import fcntl  # missing on Windows, where a command must still print one line

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise CheckpointError(
                f"--workdir {self}: there is a file in its place; give another directory"
            ) from None
        self._lock = self._open_files.enter_context(open(self.path / "lock", "a"))
        try:  # the kernel releases the lock when the process ends, even by a kill
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"--workdir {self}: another run is using it; wait for its end, or give another "
                "directory"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"--workdir {self}: its file system cannot lock a file ({error.strerror}), so two "
                "runs could use the directory at once; give a directory on a local disk, and copy "
                "it when the run has ended"
            ) from None

    def check_lock(self) -> None:
        """Raises CheckpointError if `path` is no longer the directory that `lock` reserved."""
        if self._lock is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / "lock"))
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise CheckpointError(
                f"--workdir {self}: the directory was renamed, removed or replaced during the run, "
                "so nothing more is written; put it back, or give its new name, and run the same "
                "command again"
            )

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object of a file, None without the file; CheckpointError if it has no object."""
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

    def num_threads(self) -> int | None:
        """The number of threads of the run in this directory, None without its environment.json.

        Older versions did not record it, but the number of cores, which it was unless NPROC is set.
        """
        if (environment := self.read("environment.json")) is None:
            return None
        number = environment.get("num_threads")
        if number is None:
            number = threads.from_environment() or environment.get("cpu_count")
        return min(number, threads.MAX) if isinstance(number, int) and number > 0 else None

    def read_spec(self) -> DataSpec:
        """The form of the run's data; CheckpointError if its record is damaged."""
        data = (self.read("environment.json") or {}).get("data")
        dataset = (self.read("config.json") or {}).get("dataset")
        try:
            return spec.from_record(data if isinstance(data, dict) else {}, dataset)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path / 'environment.json'}: {error}; restore the file, or train again"
            ) from None

    def read_config(self) -> dict[str, Any]:
        """The object of config.json; CheckpointError if the directory is not that of a run."""
        config = self.read("config.json")
        if config is None:
            raise CheckpointError(
                f"{self}: not a run directory, it contains no config.json; give the directory that "
                "a run printed at its end"
            )
        return config

    def setting(self, index: int) -> "RunDirectory":
        """The run directory of one setting of a sweep, unless all have one program."""
        return RunDirectory(self.path / "settings" / f"{index:03d}")

    def has_settings(self) -> bool:
        """Whether this is the directory of a sweep whose settings have run directories."""
        return (self.path / "settings").is_dir()

    def chosen(self) -> "RunDirectory":
        """The directory with the checkpoints and the metrics of the networks of result.json."""
        index = ((self.read("result.json") or {}).get("sweep") or {}).get("chosen")
        return self.setting(index) if self.has_settings() and isinstance(index, int) else self

    def read_result(self) -> dict[str, Any] | None:
        """The object of result.json; None without one, or if it is of another length than the run.

        A run that is prolonged has a new length in config.json and soon later lines of metrics, but
        no result of its own before its end.
        """
        result = self.read("result.json")
        if result is None or result.get("status") != "finished":
            return result
        steps, config, metrics = result.get("steps"), self.read_config(), self.read_metrics()
        if config.get("patience") is not None or "method" in result.get("sweep", {}):
            same = True  # it may have ended before; a sweep of runs cannot be prolonged
        elif config.get("num_steps") is not None:
            same = steps == config["num_steps"]
        else:
            ends = [line.get("epoch") for line in metrics if line["step"] == steps]
            same = all(epoch == config.get("num_epochs") for epoch in ends)
        later = isinstance(steps, int) and any(int(line["step"]) > steps for line in metrics)
        return result if same and not later else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json, and deletes a report that was made before there was one."""
        with contextlib.suppress(OSError):  # not a file
            (self.path / "report.html").unlink()
        self.write("result.json", result)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file atomically."""
        self.check_lock()
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / name, text.encode())

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file, not unpickled; CheckpointError if it is missing or bad."""
        try:
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{self}: no {name} there") from None
        except (OSError, MemoryError):
            raise
        except Exception as error:  # NumPy and zipfile raise many types
            raise CheckpointError(
                f"{self.path / name}: expected arrays, found something else "
                f"({type(error).__name__}); restore the file, or train again"
            ) from None

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes an .npz file atomically."""
        self.check_lock()
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(self.path / name, content.getvalue())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl; [] if there is no such file."""
        path, complete = self.path / "metrics.jsonl", []
        for line in path.read_bytes().splitlines(True) if path.exists() else []:
            with contextlib.suppress(ValueError, TypeError, KeyError, RuntimeError, OverflowError):
                entry = json.loads(line)
                valid = int(entry["step"]) >= 0 and isinstance(entry["split"], str)
                if valid and line.endswith(b"\n"):
                    complete.append(entry)
        return complete

    def open_metrics(self, step: int, total: int) -> None:
        """Opens metrics.jsonl and the events to continue from the checkpoint of `step`.

        Incomplete lines and those written after the checkpoint are deleted. The test after the last
        step, `total`, follows; the tests of a run that was shorter and is prolonged are kept.
        """
        import tensorboardX

        path, complete = self.path / "metrics.jsonl", self.read_metrics()
        ends = (step, min(step, total - 1))
        kept = [x for x in complete if int(x["step"]) <= ends[is_tested_name(x["split"])]]
        if path.exists():
            write_atomically(path, "".join(json.dumps(x) + "\n" for x in kept).encode())
        self._events = tensorboardX.SummaryWriter(str(self.path), purge_step=step + 1)
        self._open_files.callback(self._events.close)
        self._metrics = self._open_files.enter_context(open(path, "a", encoding="utf-8"))

    def log(self, entry: Mapping[str, Any], series: Mapping[str, slice]) -> None:
        """Appends {"step": .., "epoch": .., "split": .., NAME: number or list, ..} to the metrics.

        TensorBoard shows SPLIT/NAME; of a list the mean of each slice that `series` names.
        """
        assert self._metrics is not None, "call open_metrics first"
        self.check_lock()
        self._metrics.write(json.dumps(entry, allow_nan=False) + "\n")
        self._metrics.flush()
        for name, value in entry.items():
            if name in ("step", "epoch", "split"):
                continue
            tag = f"{entry['split'].partition(' ')[0]}/{name}"  # of a held-out fold "held-out"
            points = {tag: [value]}
            if isinstance(value, list):
                points = {f"{tag}/{key}".rstrip("/"): value[rows] for key, rows in series.items()}
            for tag, values in points.items():
                if None not in values:
                    self._events.add_scalar(tag, float(np.mean(values)), entry["step"])
        self._events.flush()

    def log_hparams(self, fields: dict[str, Any], metrics: dict[str, Any], step: int) -> None:
        """Writes what TensorBoard's HPARAMS tab shows: fields, and metrics by their tags.

        Their own events file replaces an older one, because TensorBoard shows only the first it
        reads. tensorboardX's `add_hparams` would show a second run.
        """
        import tensorboardX
        from tensorboardX import summary

        self.check_lock()
        for old in self.path.glob("events.out.tfevents.*.hparams"):
            old.unlink()
        with tensorboardX.SummaryWriter(str(self.path), filename_suffix=".hparams") as events:
            for part in summary.hparams(fields, metrics):
                events.file_writer.add_summary(part, step)

    def close(self) -> None:
        """Closes the files and releases the lock; an empty directory is deleted."""
        self._open_files.close()
        with contextlib.suppress(OSError):
            self.path.rmdir()  # fails unless it is empty


def new_run_path(name: str) -> pathlib.Path:
    """Creates runs/<name>-<time>, with a number appended if it exists."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = pathlib.Path("runs", stem), 1
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
        number += 1
        path = path.with_name(f"{stem}_{number}")
