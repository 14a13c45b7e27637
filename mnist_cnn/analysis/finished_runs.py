"""Runs, read from their directories; finished ones compared. Needs no data and no network."""

import dataclasses
import os
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.config.model_fields import PREFIX
from mnist_cnn.data import doubtful
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner import predictions as predictions_lib, run_directory

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
    def accuracies_undoubted(self) -> np.ndarray:
        """float [R]: the accuracies without the images of `doubtful`."""
        return np.delete(self.correct, self.doubtful, axis=1).mean(1)

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits [R * N, K] and labels [R * N] of all seeds."""
        logits, labels = self.predictions.logits, self.predictions.labels
        return logits.reshape(-1, logits.shape[-1]), np.tile(labels, len(logits))

    @property
    def negative_log_likelihood(self) -> float:
        """The mean of all seeds, in nats per image."""
        return statistics.classification_metrics(*self.pooled)["negative_log_likelihood"]

    @property
    def calibrated(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`pooled` with the logits divided by the temperatures of result.json, if it has any."""
        if "calibrated" not in self.result:
            return None
        temperatures = np.array(self.result["calibrated"]["temperature"])[:, None, None]
        logits = self.predictions.logits / temperatures
        return logits.reshape(-1, logits.shape[-1]), self.pooled[1]

    @property
    def doubtful(self) -> np.ndarray:
        """The indices of the tested images whose label is in doubt; empty unless MNIST's."""
        data = self.environment.get("data")
        if self.num_folds or not isinstance(data, dict):
            return np.zeros(0, int)
        return doubtful.places(data)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1: the mean of the seeds' own, as in result.json."""
        logits, labels = self.predictions.logits, self.predictions.labels
        return float(np.mean([statistics.calibration(one, labels).error for one in logits]))


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
            and (run.calibrated is None or min(result["calibrated"]["temperature"]) > 0)
            and (not len(run.doubtful) or len(predictions.labels) == 10_000)
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
