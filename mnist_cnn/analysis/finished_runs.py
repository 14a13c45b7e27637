"""Finished runs, read from their directories, and what can be compared between them.

No data, no network, no pictures: the run directory is enough.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.errors import CheckpointError, printable
from mnist_cnn.runner import predictions, run_directory


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, read from its directory."""

    path: str
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    tested: predictions.Predictions

    @property
    def seeds(self) -> list[int]:
        return self.result["seeds"]

    @property
    def setting(self) -> dict[str, Any]:
        """What decides its numbers besides the seeds; of a sweep, with the chosen values."""
        free = ("name", "seed", "num_seeds", "sweep", *config_lib.FREE_ON_RESUME)
        sweep = self.result.get("sweep")
        chosen = sweep["settings"][sweep["chosen"]]["setting"] if sweep else {}
        default = {key: field.default for key, field in config_lib.FIELDS.items()}
        fields = default | self.config | chosen
        return {key: fields[key] for key in config_lib.FIELDS if key not in free}

    @property
    def right(self) -> np.ndarray:
        """bool [R, N]: which seed got which test image right."""
        return self.tested.logits.argmax(-1) == self.tested.labels


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    label: str
    runs: list[Run]

    def accuracies(self) -> dict[int, float]:
        """Seed -> test accuracy."""
        return {
            seed: float(accuracy)
            for run in self.runs
            for seed, accuracy in zip(run.seeds, run.right.mean(1), strict=True)
        }

    def run(self, seed: int) -> Run:
        return next(run for run in self.runs if seed in run.seeds)

    def right(self, seed: int) -> np.ndarray:
        """bool [N], of one seed."""
        run = self.run(seed)
        return run.right[run.seeds.index(seed)]


def read(workdir: str | os.PathLike[str]) -> Run:
    """A finished run.

    Raises:
      CheckpointError: there is none, it is unfinished or diverged, or its files contradict.
    """
    directory = run_directory.RunDirectory(workdir)
    config, result = directory.read("config.json"), directory.read("result.json")
    if config is None:
        raise CheckpointError(f"{directory}: no run there (config.json is missing)")
    metrics = directory.read_metrics()
    status = "unfinished" if result is None else result.get("status")
    if status != "finished":
        done = max((entry["step"] for entry in metrics), default=0)
        raise CheckpointError(
            f"{directory}: the run is {status} (step {done:,}), so there is no result to show; "
            "let it go on to its end first"
        )
    assert result is not None
    tested = predictions.read(directory)
    run = Run(str(directory), config, directory.read("environment.json") or {}, result, metrics,
              tested)  # fmt: skip
    try:
        if "sweep" in result:
            run = dataclasses.replace(run, metrics=_of_chosen(result["sweep"], metrics))
        same = result["test"]["correct"] == run.right.sum(1).tolist()
        whole = len(run.seeds) == len(tested.logits) == len(result["test"]["loss"])
        float(result["steps"]), float(result["seconds"]["total"])
        whole &= all(isinstance(x, int | float) for x in [*run.seeds, *result["test"]["loss"]])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        same = whole = False
    if not (same and whole):
        raise CheckpointError(
            f"{directory}: result.json and predictions.npz do not belong together; restore them, "
            "or train again"
        )
    return run


def _of_chosen(sweep: dict[str, Any], metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of a sweep's chosen setting; its other settings are in `sweep` itself."""
    sweep["settings"][sweep["chosen"]]["validation_mean"]["accuracy"]
    first = sweep["chosen"] * len(sweep["seeds"])
    rows = slice(first, first + len(sweep["seeds"]))
    return [
        entry
        if entry["split"] == "test"
        else {
            key: value[rows] if isinstance(value, list) else value for key, value in entry.items()
        }
        for entry in metrics
    ]


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Runs of the same configuration but for the seed together; all of one: each by itself."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(run.setting), []).append(run)
    together = list(groups.values())
    names = [printable(str(group[0].config.get("name"))) for group in together]
    if len(together) == 1:
        if len(runs) == 1:
            return [Setting(names[0], together[0])]
        return [
            Setting(f"{names[0]}, seed {', '.join(map(str, run.seeds))}", [run]) for run in runs
        ]
    settings = [group[0].setting for group in together]
    varying = [key for key in settings[0] if len({repr(one[key]) for one in settings}) > 1]
    labels = []
    for setting, name in zip(settings, names, strict=True):
        values = [printable(f"{key}={setting[key]}") for key in varying]
        labels.append(name if names.count(name) == 1 else ", ".join([name, *values]))
    return [Setting(label, group) for label, group in zip(labels, together, strict=True)]


def swept(settings: Sequence[Setting]) -> tuple[str, list[float]] | None:
    """The one number in which three settings or more differ, and its value in each; else None."""
    fields = [setting.runs[0].setting for setting in settings]
    keys = [key for key in fields[0] if len({repr(one[key]) for one in fields}) > 1]
    if len(keys) != 1 or len(settings) < 3:
        return None
    values = [one[keys[0]] for one in fields]
    numbers = [value for value in values if isinstance(value, int | float)]
    return (keys[0], numbers) if len(numbers) == len(values) else None


def compare(first: Setting, other: Setting) -> statistics.Difference:
    """`other`'s accuracy minus `first`'s: over the seeds they share, or over the test images."""
    a, b = first.accuracies(), other.accuracies()
    shared = [seed for seed in a if seed in b]
    if len(shared) > 1:
        return statistics.compare_over_seeds(
            np.array([a[seed] for seed in shared]), np.array([b[seed] for seed in shared])
        )
    chosen = pair(first, other)
    difference = statistics.compare_over_images(*map(right_of, chosen))
    if len(a) == len(b) == 1:
        return difference
    of = " against ".join(f"seed {seed:,}" for _, seed in reversed(chosen))
    return dataclasses.replace(difference, method=f"{of} alone, {difference.method}")


def pair(first: Setting, other: Setting) -> tuple[tuple[Setting, int], tuple[Setting, int]]:
    """A seed of each: the first that they share, else each one's first."""
    a, b = list(first.accuracies()), list(other.accuracies())
    shared = [seed for seed in a if seed in b]
    return (first, (shared or a)[0]), (other, (shared or b)[0])


def right_of(chosen: tuple[Setting, int]) -> np.ndarray:
    return chosen[0].right(chosen[1])
