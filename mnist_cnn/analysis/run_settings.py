"""Runs grouped by what decides their result: those that differ only in seeds are one setting."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.analysis.finished_runs import Run
from mnist_cnn.config.model_fields import PREFIX
from mnist_cnn.errors import printable
from mnist_cnn.runner import results


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seeds."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(seed for run in self.runs for seed in run.seeds))

    @property
    def num_folds(self) -> int | None:
        return self.runs[0].num_folds

    @property
    def folds(self) -> dict[str, "Setting"]:
        """The runs of each fold, such as "3/10", in the order of the folds; {} without folds."""
        found: dict[str, list[Run]] = {}
        for run in self.runs if self.num_folds else ():
            found.setdefault(run.config["fold"], []).append(run)
        return {
            fold: Setting(f"{self.label}, fold {fold}", found[fold])
            for fold in sorted(found, key=config_lib.fold_numbers)
        }

    def mean_accuracy(self) -> tuple[float, float]:
        """The mean accuracy, over the seeds or the folds, and the half-width of its interval."""
        values = list(self.accuracies().values())
        if self.num_folds and len(folds := self.folds) > 1:
            values = [one.mean_accuracy()[0] for one in folds.values()]
            interval = statistics.mean_interval(np.array(values), self.num_folds)
        else:
            interval = statistics.mean_interval(np.array(values))
        return float(np.mean(values)), interval

    @property
    def tested_name(self) -> str:
        """ "test" or "held-out fold 3/10"; of several folds "held-out"."""
        names = {run.tested_name for run in self.runs}
        return names.pop() if len(names) == 1 else "held-out"

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

        `metric` is "loss", "accuracy", or "error" for the percentage of misclassified images.
        """
        key = "accuracy" if metric == "error" else metric
        logged = []
        for run in self.runs:
            replicas = slice(None) if split == "test" else run.replicas
            name = run.tested_name if split == "test" else split
            entries = [e for e in run.metrics if e["split"] == name and key in e]
            if split == "test":  # not those of a time when the run was shorter
                entries = [e for e in entries if run.tested and e["step"] == run.result["steps"]]
            logged.append({e["step"]: np.atleast_1d(e[key])[replicas] for e in entries})
        steps = sorted(set.intersection(*map(set, logged)))
        if not steps:
            return np.zeros(0), np.zeros((0, 0))
        parts = [np.stack([entries[step] for step in steps], axis=1) for entries in logged]
        values = np.concatenate(parts).astype(float)  # a loss that is null becomes NaN
        return np.array(steps), 100 * (1 - values) if metric == "error" else values


def curves_of(run: Run, label: str) -> list[Setting]:
    """What the learning curves of a run show: one setting, of a sweep without a result all."""
    if run.tested or not (run.config["sweep"] or run.config["variants"]):
        return [Setting(label, [run])]
    points = map(results.setting_label, config_lib.settings(run.config))
    return [
        Setting(
            f"{label}, {point}" if label else point,
            [run.settings.get(index) or dataclasses.replace(run, point=index)],
        )
        for index, point in enumerate(points)
        if index in run.settings or run.metrics
    ]


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Groups runs that differ only in their seeds and their fold.

    If all of them differ only in their seeds, each run is a setting.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(run.setting), []).append(run)
    names = [printable(str(group[0].config.get("name"))) for group in groups.values()]
    if len(groups) == 1 < len(runs) and not runs[0].num_folds:
        seeds = [", ".join(map(str, run.seeds)) for run in runs]
        return [Setting(f"{names[0]}, seed {s}", [run]) for s, run in zip(seeds, runs, strict=True)]
    varying = _varying_fields([group[0] for group in groups.values()])
    settings = []
    for name, group in zip(names, groups.values(), strict=True):
        values = [printable(f"{key}={_value_text(group[0].fields.get(key))}") for key in varying]
        label = name if names.count(name) == 1 else ", ".join([name, *values])
        settings.append(Setting(label, group))
    return settings


def _varying_fields(runs: Sequence[Run]) -> list[str]:
    settings = [run.fields for run in runs]
    keys = dict.fromkeys(itertools.chain(*settings))
    varying = [key for key in keys if len({repr(setting.get(key)) for setting in settings}) > 1]
    of_model = [key for key in varying if key.startswith(PREFIX)]
    if len({str(setting["model"]).partition("(")[0] for setting in settings}) > 1:
        return [key for key in varying if key not in of_model]  # the models show them
    return [key for key in varying if key != "model" or not of_model]


def _value_text(value: Any) -> str:
    return str(value) if isinstance(value, float) else results.value_text(value)


def swept_field(settings: Sequence[Setting]) -> tuple[str, list[float]] | None:
    """The only field that differs, and its values; None if < 3 settings or a value is no number."""
    runs = [setting.runs[0] for setting in settings]
    if len(settings) < 3 or len(varying := _varying_fields(runs)) != 1:
        return None
    values: list[Any] = [run.fields.get(varying[0]) for run in runs]
    return (varying[0], values) if all(isinstance(v, int | float) for v in values) else None
