"""Runs, read from their directories; finished ones compared. Needs no data and no network."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import CheckpointError, printable
from mnist_cnn.model_fields import PREFIX
from mnist_cnn.runner import predictions as predictions_lib, results, run_directory

_NOT_OF_A_SETTING = ("name", "seed", "num_seeds", "sweep", "variants", "sweep_method")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of R seeds, tested on N images if it is finished; of the others: seeds, series, note.

    Of a sweep without a result, `point` is the index of the setting that it stands for. If each
    setting of a sweep is a run, `config` and `result` are those of the sweep, `metrics` and `own`
    those of its chosen setting, and without a result `settings` has the runs that there are.
    """

    path: str
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    tested: predictions_lib.Predictions | None  # None unless the run is finished
    note: str = ""  # of a run that is not: the sentence that says so
    point: int = 0
    spec: DataSpec = MNIST  # the form of the data
    joined: bool = False  # whether the predictions are those of several folds together
    own: dict[str, Any] = dataclasses.field(default_factory=dict)  # what `config` lacks
    settings: dict[int, "Run"] = dataclasses.field(default_factory=dict)  # by index

    @property
    def predictions(self) -> predictions_lib.Predictions:
        assert self.tested is not None, "the run is not finished"
        return self.tested

    @property
    def seeds(self) -> list[int]:
        if self.tested is not None:
            return self.result["seeds"]
        return list(range(self.config["seed"], self.config["seed"] + self.config["num_seeds"]))

    @property
    def setting(self) -> dict[str, Any]:
        """The fields that decide the result, without the seeds; of a sweep, the chosen values.

        The folds of a cross-validation have one setting, with the whole sweep if there is one.
        """
        excluded = (*_NOT_OF_A_SETTING, *config_lib.FREE_ON_RESUME)
        if self.num_folds:
            fields = config_lib.DEFAULTS | self.config | {"fold": f"*/{self.num_folds}"}
            kept = ("sweep", "variants", "sweep_method")
            return {key: fields[key] for key in fields if key in kept or key not in excluded}
        sweep = self.result.get("sweep")
        chosen = sweep["settings"][sweep["chosen"]]["setting"] if sweep else {}
        fields = config_lib.DEFAULTS | self.config | (self.own or chosen)
        return {key: fields[key] for key in config_lib.DEFAULTS if key not in excluded}

    @property
    def num_folds(self) -> int | None:
        """The number of folds of the cross-validation that the run belongs to, if it does."""
        fold = self.config.get("fold")
        return config_lib.fold_numbers(fold)[1] if fold else None

    @property
    def tested_name(self) -> str:
        """ "test" or "held-out fold 3/10"; of several folds together "held-out"."""
        return "held-out" if self.joined else config_lib.tested_name(self.config)

    @property
    def images(self) -> str:
        """The tested images in words."""
        fold = self.num_folds and not self.joined
        return f"images of {self.tested_name}" if fold else f"{self.tested_name} images"

    @property
    def fields(self) -> dict[str, Any]:
        """`setting`, and the fields of the experiment's own module as "model.FIELD"."""
        of_model = (self.own or self.config).get("model_fields", {})
        return self.setting | {f"{PREFIX}{name}": value for name, value in of_model.items()}

    @property
    def replicas(self) -> slice:
        """The range of the chosen setting in the lists of metrics.jsonl; the test has no others."""
        chosen = self.result["sweep"]["chosen"] if "sweep" in self.result else self.point
        if self.own:
            chosen = 0
        return config_lib.setting_rows(len(self.seeds), chosen)

    @property
    def correct(self) -> np.ndarray:
        """bool [R, N]: which seed classifies which tested image correctly."""
        return self.predictions.logits.argmax(-1) == self.predictions.labels

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits [R * N, K] and labels [R * N] of all seeds."""
        logits, labels = self.predictions.logits, self.predictions.labels
        return logits.reshape(-1, logits.shape[-1]), np.tile(labels, len(logits))

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


def read(workdir: str | os.PathLike[str]) -> Run:
    """A CheckpointError if there is no run or its files contradict one another."""
    directory = run_directory.RunDirectory(workdir)
    config = directory.read_config()
    result = directory.read_result() or {}
    chosen = directory.chosen()
    metrics = chosen.read_metrics()
    environment = directory.read("environment.json") or {}
    if result.get("status") != "finished":
        return _unfinished(directory, config, environment, result, metrics)
    predictions = predictions_lib.read(directory)
    spec = directory.read_spec()
    own = {} if chosen is directory else chosen.read_config()
    run = Run(str(directory), config, environment, result, metrics, predictions, spec=spec, own=own)
    try:
        if "sweep" in result:
            result["sweep"]["settings"][result["sweep"]["chosen"]]["validation_mean"]["accuracy"]
        losses = result["test"]["loss"]
        consistent = (
            result["test"]["correct"] == run.correct.sum(1).tolist()
            and predictions.logits.shape[-1] == spec.num_classes
            and len(run.seeds) == len(predictions.logits) == len(losses)
            and all(isinstance(value, int | float) for value in [*run.seeds, *losses])
            and result.get("fold") == config.get("fold")
        )
        float(result["steps"]), float(result["seconds"]["total"]), run.num_folds
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        consistent = False
    if not consistent:
        raise CheckpointError(
            f"{directory}: result.json and predictions.npz do not belong together; restore them "
            "or train again"
        )
    return run


def _unfinished(
    directory: run_directory.RunDirectory,
    config: dict[str, Any],
    environment: dict[str, Any],
    result: dict[str, Any],
    metrics: list[dict[str, Any]],
) -> Run:
    """A run that has no result, diverged or is in progress, with the sentence that says so."""
    config, settings = config_lib.DEFAULTS | config, {}
    try:
        count = len(config_lib.replicas(config)) // config["num_seeds"]
        step = max((int(line["step"]) for line in metrics), default=0)
        logged = f"its last logged step is {step:,}" if step else "no step is logged yet"
        end = f"step {config['num_steps']:,}" if config["num_steps"] else (
            f"the end of epoch {config['num_epochs']:,}"
        )  # fmt: skip
        tested = config_lib.tested_name(config)
        if config["fold"]:
            config_lib.fold_numbers(config["fold"])
        if result.get("status") == "diverged":
            note = (
                f"{directory} diverged: its loss or its parameters were not finite at step "
                f"{result['steps']:,}. It has no {tested} result; train again in another directory "
                "with a lower learning_rate."
            )
        elif result.get("status") == "validated":
            note = (
                f"{directory} is one setting of a sweep, validated at step {result['steps']:,}. It "
                "has no test result: only the chosen setting is tested."
            )
        elif directory.has_settings():
            settings = {
                index: read(one.path)
                for index, one in enumerate(map(directory.setting, range(count)))
                if (one.path / "config.json").exists()
            }
            ended = sum("status" in one.result for one in settings.values())
            note = (
                f"{directory} is not finished: {ended} of its {count} settings are validated so "
                "far. It has no test result; run its command again to finish it."
            )
        else:
            note = (
                f"{directory} is not finished: {logged}, and it ends at {end}. It has no {tested} "
                "result; run its command again to finish it."
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{directory}: config.json, result.json and metrics.jsonl do not belong together; "
            "restore them or train again"
        ) from None
    return Run(str(directory), config, environment, result, metrics, None, note, settings=settings)


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


def compare(first: Setting, other: Setting) -> statistics.Difference:
    """Accuracy of `other` minus `first`: over the seeds of both; if fewer than two, over images.

    Of two cross-validations, over the folds that both have, each with the seeds of both.
    """
    if first.num_folds:
        return _compare_folds(first, other)
    return _compare_on_same_images(first, other)


def _compare_on_same_images(first: Setting, other: Setting) -> statistics.Difference:
    a, b = first.accuracies(), other.accuracies()
    shared = [seed for seed in a if seed in b]
    if len(shared) > 1:
        return statistics.compare_over_seeds(*np.array([[a[s], b[s]] for s in shared]).T)
    seed, other_seed = paired_seeds(first, other)
    difference = statistics.compare_over_images(
        first.correct(seed), other.correct(other_seed), first.runs[0].images
    )
    if len(a) == len(b) == 1:
        return difference
    method = f"only seed {other_seed:,} against seed {seed:,}, {difference.method}"
    return dataclasses.replace(difference, method=method)


def _compare_folds(first: Setting, other: Setting) -> statistics.Difference:
    """`compare` of two cross-validations; over seeds or images if they share a single fold."""
    pairs = shared_folds(first, other)
    if len(pairs) == 1:
        return _compare_on_same_images(*pairs[0])
    accuracies = []
    for pair in pairs:
        a, b = (setting.accuracies() for setting in pair)
        accuracies.append([np.mean([one[seed] for seed in a if seed in b]) for one in (a, b)])
    of_first, of_other = np.array(accuracies).T
    return statistics.compare_over_seeds(of_first, of_other, first.num_folds)


def shared_folds(first: Setting, other: Setting) -> list[tuple[Setting, Setting]]:
    """The two settings on each fold of which both have a network of the same seed.

    Raises CheckpointError if there is none.
    """
    a, b = first.folds, other.folds
    shared = [fold for fold in a if fold in b and {*a[fold].seeds} & {*b[fold].seeds}]
    if not shared:
        raise CheckpointError(
            f"{first.label} and {other.label} have no fold with the same seed; compare runs of the "
            "same folds and seeds"
        )
    return [(a[fold], b[fold]) for fold in shared]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A setting compared with another; its p is one of several."""

    first: Setting
    other: Setting
    difference: statistics.Difference  # of `other` from `first`
    corrected_p: float  # for the number of comparisons (Holm)
    seeds_needed: int | None  # to show this difference; None over images, or if too many


def compare_all(settings: Sequence[Setting], pairs: bool = False) -> list[Comparison]:
    """Each setting compared with the first; with `pairs`, each with all of those before it."""
    compared = [
        pair for pair in itertools.combinations(settings, 2) if pairs or pair[0] is settings[0]
    ]
    differences = [compare(*pair) for pair in compared]
    corrected = statistics.holm([difference.p for difference in differences])
    found = []
    for pair, difference, p in zip(compared, differences, corrected, strict=True):
        effect = difference.effect_size
        needed = None if effect is None else statistics.seeds_needed(effect, len(compared))
        found.append(Comparison(*pair, difference, p, needed))
    return found


def paired_seeds(first: Setting, other: Setting) -> tuple[int, int]:
    """One seed of each setting: the first shared one, else the first of each."""
    a, b = list(first.accuracies()), list(other.accuracies())
    shared = [seed for seed in a if seed in b]
    return (shared or a)[0], (shared or b)[0]
