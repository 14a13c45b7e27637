"""Finished runs, read from their directories and compared; needs no data and no network."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.errors import CheckpointError, printable
from mnist_cnn.runner import predictions as predictions_lib, run_directory


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of R seeds, tested on N images."""

    path: str
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    predictions: predictions_lib.Predictions

    @property
    def seeds(self) -> list[int]:
        return self.result["seeds"]

    @property
    def setting(self) -> dict[str, Any]:
        """The fields that decide the result, without the seeds; of a sweep, the chosen values."""
        excluded = ("name", "seed", "num_seeds", "sweep", *config_lib.FREE_ON_RESUME)
        sweep = self.result.get("sweep")
        chosen = sweep["settings"][sweep["chosen"]]["setting"] if sweep else {}
        fields = config_lib.DEFAULTS | self.config | chosen
        return {key: fields[key] for key in config_lib.DEFAULTS if key not in excluded}

    @property
    def replicas(self) -> slice:
        """The range of the chosen setting in the lists of metrics.jsonl; the test has no others."""
        chosen = self.result["sweep"]["chosen"] if "sweep" in self.result else 0
        return config_lib.setting_rows(len(self.seeds), chosen)

    @property
    def correct(self) -> np.ndarray:
        """bool [R, N]: which seed classifies which test image correctly."""
        return self.predictions.logits.argmax(-1) == self.predictions.labels

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits [R * N, 10] and labels [R * N] of all seeds."""
        logits, labels = self.predictions.logits, self.predictions.labels
        return logits.reshape(-1, 10), np.tile(labels, len(logits))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1: the mean of the seeds' own, as in result.json."""
        logits, labels = self.predictions.logits, self.predictions.labels
        return float(np.mean([statistics.calibration(one, labels).error for one in logits]))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seeds."""

    label: str
    runs: list[Run]

    def run(self, seed: int) -> Run:
        return next(run for run in self.runs if seed in run.seeds)

    def correct(self, seed: int) -> np.ndarray:
        """bool [N]: which test images the seed classifies correctly."""
        run = self.run(seed)
        return run.correct[run.seeds.index(seed)]

    def accuracies(self) -> dict[int, float]:
        """Seed -> test accuracy."""
        pairs = [zip(run.seeds, run.correct.mean(1).tolist(), strict=True) for run in self.runs]
        return dict(itertools.chain(*pairs))

    def series(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The logged steps [T] that all runs share, and the values [R, T] of all seeds.

        `metric` is "loss", or "error" for the percentage of misclassified images.
        """
        key = "accuracy" if metric == "error" else metric
        logged = []
        for run in self.runs:
            replicas = slice(None) if split == "test" else run.replicas
            entries = [entry for entry in run.metrics if entry["split"] == split]
            logged.append({e["step"]: np.atleast_1d(e[key])[replicas] for e in entries})
        steps = sorted(set.intersection(*map(set, logged)))
        if not steps:
            return np.zeros(0), np.zeros((0, 0))
        parts = [np.stack([entries[step] for step in steps], axis=1) for entries in logged]
        values = np.concatenate(parts).astype(float)  # a loss that is null becomes NaN
        return np.array(steps), 100 * (1 - values) if metric == "error" else values


def read(workdir: str | os.PathLike[str]) -> Run:
    """A CheckpointError if there is no finished run or its files contradict one another."""
    directory = run_directory.RunDirectory(workdir)
    config = directory.read_config()
    result = directory.read("result.json") or {"status": "unfinished"}
    metrics = directory.read_metrics()
    if result.get("status") != "finished":
        step = result.get("steps", max((entry["step"] for entry in metrics), default=0))
        advice = "resume it first"
        if result.get("status") == "diverged":
            advice = "train again in another directory with a lower learning_rate"
        raise CheckpointError(
            f"{directory}: the run is {result.get('status')} (step {step:,}), expected a finished "
            f"run; {advice}"
        )
    predictions = predictions_lib.read(directory)
    environment = directory.read("environment.json") or {}
    run = Run(str(directory), config, environment, result, metrics, predictions)
    try:
        if "sweep" in result:
            result["sweep"]["settings"][result["sweep"]["chosen"]]["validation_mean"]["accuracy"]
        losses = result["test"]["loss"]
        consistent = (
            result["test"]["correct"] == run.correct.sum(1).tolist()
            and len(run.seeds) == len(predictions.logits) == len(losses)
            and all(isinstance(value, int | float) for value in [*run.seeds, *losses])
        )
        float(result["steps"]), float(result["seconds"]["total"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        consistent = False
    if not consistent:
        raise CheckpointError(
            f"{directory}: result.json and predictions.npz do not belong together; restore them "
            "or train again"
        )
    return run


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Groups runs that differ only in their seeds; if all of them do, each run is a setting."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(run.setting), []).append(run)
    names = [printable(str(group[0].config.get("name"))) for group in groups.values()]
    if len(groups) == 1 < len(runs):
        seeds = [", ".join(map(str, run.seeds)) for run in runs]
        return [Setting(f"{names[0]}, seed {s}", [run]) for s, run in zip(seeds, runs, strict=True)]
    varying = _varying_fields([group[0] for group in groups.values()])
    settings = []
    for name, group in zip(names, groups.values(), strict=True):
        values = [printable(f"{key}={group[0].setting[key]}") for key in varying]
        label = name if names.count(name) == 1 else ", ".join([name, *values])
        settings.append(Setting(label, group))
    return settings


def _varying_fields(runs: Sequence[Run]) -> list[str]:
    settings = [run.setting for run in runs]
    return [key for key in settings[0] if len({repr(setting[key]) for setting in settings}) > 1]


def swept_field(settings: Sequence[Setting]) -> tuple[str, list[float]] | None:
    """The only field that differs, and its values; None if < 3 settings or a value is no number."""
    runs = [setting.runs[0] for setting in settings]
    varying = _varying_fields(runs)
    if len(varying) != 1 or len(settings) < 3:
        return None
    values = [run.setting[varying[0]] for run in runs]
    return (varying[0], values) if all(isinstance(v, int | float) for v in values) else None


def compare(first: Setting, other: Setting) -> statistics.Difference:
    """Accuracy of `other` minus `first`: over the seeds of both; if fewer than two, over images."""
    a, b = first.accuracies(), other.accuracies()
    shared = [seed for seed in a if seed in b]
    if len(shared) > 1:
        return statistics.compare_over_seeds(*np.array([[a[s], b[s]] for s in shared]).T)
    seed, other_seed = paired_seeds(first, other)
    difference = statistics.compare_over_images(first.correct(seed), other.correct(other_seed))
    if len(a) == len(b) == 1:
        return difference
    method = f"only seed {other_seed:,} against seed {seed:,}, {difference.method}"
    return dataclasses.replace(difference, method=method)


def paired_seeds(first: Setting, other: Setting) -> tuple[int, int]:
    """One seed of each setting: the first shared one, else the first of each."""
    a, b = list(first.accuracies()), list(other.accuracies())
    shared = [seed for seed in a if seed in b]
    return (shared or a)[0], (shared or b)[0]
