"""What a run writes down as it goes: its clock, where it began, its metrics, how it ended.

The loop says when, `records.py` knows the files.  Of a job's processes the first alone writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib
from mnist_cnn.data import dataset as data
from mnist_cnn.parallel import processes
from mnist_cnn.runner import checks, results
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.run_directory import RunDirectory


class Journal:
    """The clock and the records of one run."""

    def __init__(
        self, config: Mapping[str, Any], directory: RunDirectory, console: Console
    ) -> None:
        self._config = config
        self._directory = directory
        self._console = console
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(("total", "data", "compile", "train", "evaluate"), 0.0)

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Counts the wall seconds within as `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - began

    def seconds(self) -> dict[str, float]:
        """Those of the run so far, with what was before a restart: in total, and by name."""
        return self._seconds | {"total": time.monotonic() - self._began}

    def go_on(self, seconds: Mapping[str, float]) -> None:
        """Counts those of the run before this process."""
        for name, value in seconds.items():
            self._seconds[name] += value
        self._began -= seconds["total"]

    def begin(
        self, environment: dict[str, Any], dataset: data.Dataset, step: int, total: int
    ) -> None:
        """Checks that the run can go on from `step` here, and writes down that it does.

        Raises:
          CheckpointError, ConfigError: it cannot.
        """
        directory = self._directory
        environment["data"] = {"origin": dataset.origin, "sha256": dataset.files}
        before = directory.read("environment.json")
        checks.check_resumption(directory, dataset, before, step, total)
        if before and "joined" in before:  # `join` says where its networks come from
            environment["joined"] = before["joined"]
        if step:
            self._console.line(f"going on from the checkpoint of step {step:,}")
            self._console.changes(before or {}, environment)
        if step < total:  # a result of fewer steps is not this run's
            (directory.path / "result.json").unlink(missing_ok=True)
        directory.write("config.json", config_lib.as_dict(self._config))
        directory.write("environment.json", environment)
        directory.open_metrics(step)

    def log(
        self, step: int, epoch: float, split: str, metrics: Mapping[str, Any], **others: float
    ) -> None:
        """Writes a line: the numbers of one replica, lists of several."""
        if not processes.is_primary():
            return
        line = {"step": step, "epoch": round(epoch, 6), "split": split}
        line |= {key: results.to_json(value) for key, value in metrics.items()}
        series = {"": slice(None)}
        if self._config["sweep"] and split != "test":
            seeds, settings = self._config["num_seeds"], config_lib.settings(self._config)
            series = {
                results.setting_label(setting): slice(index * seeds, (index + 1) * seeds)
                for index, setting in enumerate(settings)
            }
        self._directory.log(line | others, series)

    def diverge(self, step: int, seeds: Sequence[int]) -> None:
        """Ends the run without a result."""
        self._directory.write(
            "result.json",
            {
                "status": "diverged",
                "experiment": self._config["name"],
                "seeds": sorted(set(seeds)),
                "steps": step,
                "seconds": self.seconds(),
            },
        )

    def finish(
        self, step: int, figures: Mapping[str, Any], kept: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Ends the run with its result: the figures, in the frame that result.json has.

        Args:
          step: the last.
          figures: what is found out: "seeds", "test", "test_mean", and so on.
          kept: the arrays of predictions.npz.
        """
        seconds = {name: round(value, 3) for name, value in self.seconds().items()}
        result = {
            "status": "finished", "experiment": self._config["name"], **figures,
            "steps": step, "seconds": seconds,
        }  # fmt: skip
        self._directory.write_arrays("predictions.npz", kept)
        fields = config_lib.as_dict(self._config)
        if "sweep" in figures:
            fields |= figures["sweep"]["settings"][figures["sweep"]["chosen"]]["setting"]
        fields["sweep"] = str(fields["sweep"])
        self._directory.log_hyperparameters(
            {key: fields[key] for key in fields if key not in config_lib.FREE_ON_RESUME},
            {f"test/{key}": result["test_mean"][key] for key in ("accuracy", "loss")},
            step,
        )
        self._directory.write("result.json", result)
        return result
