"""The metrics of training steps, and of a whole split at evaluation: sums and counts."""

from collections.abc import Collection, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Float32, Int, Integer

from mnist_cnn import statistics
from mnist_cnn.training.batches import HostOrDeviceArray
from mnist_cnn.training.components import Components, Metric, apply_metric

NORMS = ("gradient_norm", "update_norm", "parameter_norm")


class Metrics(struct.PyTreeNode):
    """Sums over the images of training steps, so that a mean is exact whatever the batches were."""

    loss: Float[HostOrDeviceArray, ""]
    correct: Int[HostOrDeviceArray, ""]
    examples: Int[HostOrDeviceArray, ""]
    first_bad_step: Int[HostOrDeviceArray, ""]  # the first whose loss was not finite, or -1
    others: dict[str, Float[HostOrDeviceArray, ""]] = struct.field(default_factory=dict)

    @classmethod
    def zero(cls, others: Collection[str] = ()) -> "Metrics":
        """No images yet; `others` are the names of further metrics."""
        total, count = np.zeros((), np.float32), np.zeros((), np.int32)
        return cls(total, count, count, np.full((), -1, np.int32), dict.fromkeys(others, total))

    def __add__(self, other: "Metrics") -> "Metrics":
        return Metrics(
            self.loss + other.loss,
            self.correct + other.correct,
            self.examples + other.examples,
            jnp.where(self.first_bad_step >= 0, self.first_bad_step, other.first_bad_step),
            {name: total + other.others[name] for name, total in self.others.items()},
        )

    def means(self) -> dict[str, Any]:
        """What a line of metrics.jsonl says of training, for each replica."""
        sums = {"loss": self.loss, "accuracy": self.correct} | self.others
        return {name: total / self.examples for name, total in sums.items()}


def names(components: Components) -> list[str]:
    """The names of the metrics besides loss and accuracy."""
    return [*(name for name, _ in components.metrics), *(NORMS if components.norms else ())]


def summarize(
    logits: Float32[HostOrDeviceArray, "N K"],
    losses: Float32[HostOrDeviceArray, "N"],
    labels: Integer[np.ndarray, "N"],
    others: Iterable[tuple[str, Metric]] = (),
) -> dict[str, Any]:
    """What is said of a network on a whole split: counts, and means of float64 sums."""
    logits, losses, examples = np.asarray(logits), np.asarray(losses), len(labels)
    correct = int((np.argmax(logits, axis=-1) == labels).sum())
    return {
        "examples": examples,
        "correct": correct,
        "accuracy": correct / examples,
        "loss": float(np.sum(losses, dtype=np.float64) / examples),
        "expected_calibration_error": statistics.calibration(logits, labels).error,
        **{name: _mean(name, metric, logits, labels) for name, metric in others},
    }


def _mean(name: str, metric: Metric, logits: np.ndarray, labels: np.ndarray) -> float:
    values = apply_metric(name, metric, jnp.asarray(logits), jnp.asarray(labels))
    return float(np.asarray(values, np.float64).mean())
