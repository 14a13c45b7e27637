"""What result.json says: each network's test, their mean and its interval, the chosen setting.

Pure: figures and logits in, JSON-ready values out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mnist_cnn import config as config_lib, statistics

Figures = Mapping[str, Any]  # of one network, as `evaluate.summarize` has them


def to_json(value: Any) -> Any:
    """A number, or the list of several, for JSON; None for a number that is not finite."""
    values = [
        None if isinstance(one, float) and not math.isfinite(one) else one
        for one in np.atleast_1d(value).tolist()
    ]
    return values[0] if len(values) == 1 else values


def stack_metrics(figures: Sequence[Figures]) -> dict[str, Any]:
    """The figures of several networks on the same images: a list for each, in their order."""
    return {
        "examples": figures[0]["examples"],
        "accuracy": [one["accuracy"] for one in figures],
        "loss": [to_json(one["loss"]) for one in figures],
        "correct": [one["correct"] for one in figures],
        "expected_calibration_error": [
            to_json(one["expected_calibration_error"]) for one in figures
        ],
    }


def mean_metrics(figures: Sequence[Figures]) -> dict[str, float | None]:
    """Means; `ci95`, half of the mean accuracy's 95 % interval by Student's t."""
    accuracies = np.array([one["accuracy"] for one in figures])
    return {
        "accuracy": float(accuracies.mean()),
        "ci95": to_json(statistics.mean_interval(accuracies)),
        "loss": to_json(float(np.mean([one["loss"] for one in figures]))),
        "expected_calibration_error": to_json(
            float(np.mean([one["expected_calibration_error"] for one in figures]))
        ),
    }


def ensemble_metrics(
    logits: Float[np.ndarray, "R N 10"], labels: Int[np.ndarray, "N"]
) -> dict[str, float | int | None]:
    """The networks as one: its probabilities are the mean of theirs."""
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
    config: Mapping[str, Any], validation: Sequence[Figures], finite: Sequence[bool]
) -> dict[str, Any]:
    """Every setting's validation figures, and which is chosen: the best mean accuracy.

    At the same accuracy the lower loss is better.  A setting of which a network diverged has no
    figures and is not chosen; where all did, `chosen` is None.

    Args:
      config: the configuration.
      validation: of every replica, in the order of `config.replicas`.
      finite: which of them have finite parameters.
    """
    seeds = config["num_seeds"]
    settings: list[dict[str, Any]] = []
    for index, setting in enumerate(config_lib.settings(config)):
        rows = slice(index * seeds, (index + 1) * seeds)
        if not all(finite[rows]):
            settings.append({"setting": setting, "status": "diverged"})
            continue
        figures = validation[rows]
        settings.append(
            {"setting": setting, "status": "finished", "validation": stack_metrics(figures),
             "validation_mean": mean_metrics(figures)}
        )  # fmt: skip
    able = [index for index, entry in enumerate(settings) if entry["status"] == "finished"]
    return {
        "split": config["validation_split"],
        "seeds": list(range(config["seed"], config["seed"] + seeds)),
        "settings": settings,
        "chosen": max(able, key=lambda index: _merit(settings[index]), default=None),
    }


def _merit(entry: Mapping[str, Any]) -> tuple[float, float]:
    figures = entry["validation_mean"]
    return figures["accuracy"], -(math.inf if figures["loss"] is None else figures["loss"])


def setting_label(setting: Mapping[str, float]) -> str:
    """A setting in words: "learning_rate=0.001, b1=0.9"."""
    return ", ".join(f"{key}={value:g}" for key, value in setting.items())
