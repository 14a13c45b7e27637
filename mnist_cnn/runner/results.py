"""The contents of result.json: test metrics, their mean, the ensemble, the result of a sweep."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mnist_cnn import config as config_lib, statistics

Metrics = Mapping[str, Any]  # of one network, as returned by `evaluate.summarize`


def to_json(value: Any) -> Any:
    """A number or a list of numbers for JSON: a NaN or an infinity becomes None.

    An array of one element becomes a number.
    """
    values = [
        None if isinstance(item, float) and not math.isfinite(item) else item
        for item in np.atleast_1d(value).tolist()
    ]
    return values[0] if len(values) == 1 else values


def stack_metrics(metrics: Sequence[Metrics]) -> dict[str, Any]:
    """The metrics of several networks on the same images, each a list with one item per network."""
    names = ("accuracy", "loss", "correct", "expected_calibration_error")
    return {"examples": metrics[0]["examples"]} | {
        name: [to_json(network[name]) for network in metrics] for name in names
    }


def mean_metrics(metrics: Sequence[Metrics]) -> dict[str, float | None]:
    """Means over the networks.

    `ci95` is the half-width of the 95 % confidence interval of the mean accuracy (Student's t);
    None for one network.
    """
    accuracy, loss, calibration_error = (
        np.array([network[name] for network in metrics])
        for name in ("accuracy", "loss", "expected_calibration_error")
    )
    return {
        "accuracy": float(accuracy.mean()),
        "ci95": to_json(statistics.mean_interval(accuracy)),
        "loss": to_json(loss.mean()),
        "expected_calibration_error": to_json(calibration_error.mean()),
    }


def ensemble_metrics(
    logits: Float[np.ndarray, "R N 10"], labels: Int[np.ndarray, "N"]
) -> dict[str, float | int | None]:
    """Metrics of the ensemble, whose probabilities are the mean of the R networks' ones."""
    p = np.exp(statistics.log_probabilities(logits)).mean(0)
    correct = int((p.argmax(-1) == labels).sum())
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    return {
        "correct": correct,
        "accuracy": correct / len(labels),
        "loss": to_json(-log_p[np.arange(len(labels)), labels].mean()),
        "expected_calibration_error": to_json(statistics.calibration(log_p, labels).error),
    }


def sweep_result(
    config: Mapping[str, Any], validation: Sequence[Metrics], finite: Sequence[bool]
) -> dict[str, Any]:
    """The validation metrics of every setting, and the index of the chosen one.

    The setting with the best mean accuracy is chosen; of equals, the one with the lowest mean loss.
    A setting with a diverged network has no metrics and is not chosen. If every setting has one,
    `chosen` is None.

    Args:
      config: the configuration.
      validation: the metrics of every replica, in the order of `config.replicas`.
      finite: whether the parameters of each replica are finite.
    """
    seeds = config["num_seeds"]
    settings: list[dict[str, Any]] = []
    for index, setting in enumerate(config_lib.settings(config)):
        replicas = config_lib.setting_rows(seeds, index)
        if all(finite[replicas]):
            entry = {
                "status": "finished",
                "validation": stack_metrics(validation[replicas]),
                "validation_mean": mean_metrics(validation[replicas]),
            }
        else:
            entry = {"status": "diverged"}
        settings.append({"setting": setting, **entry})

    def score(index: int) -> tuple[float, float]:
        mean = settings[index]["validation_mean"]
        return mean["accuracy"], -(math.inf if mean["loss"] is None else mean["loss"])

    finished = [index for index, entry in enumerate(settings) if entry["status"] == "finished"]
    return {
        "split": config["validation_split"],
        "seeds": list(range(config["seed"], config["seed"] + seeds)),
        "settings": settings,
        "chosen": max(finished, key=score, default=None),
    }


def setting_label(setting: Mapping[str, float]) -> str:
    """A setting of a sweep as text: "learning_rate=0.001, b1=0.9"."""
    return ", ".join(f"{key}={value:g}" for key, value in setting.items())
