"""The metrics of training steps, and of a whole split at evaluation: sums and counts."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Float32, Int, Integer

from mnist_cnn import statistics
from mnist_cnn.training.batches import HostOrDeviceArray


class Metrics(struct.PyTreeNode):
    """Sums over the images of training steps, so that a mean is exact whatever the batches were."""

    loss: Float[HostOrDeviceArray, ""]
    correct: Int[HostOrDeviceArray, ""]
    examples: Int[HostOrDeviceArray, ""]
    first_bad_step: Int[HostOrDeviceArray, ""]  # the first whose loss was not finite, or -1

    @classmethod
    def zero(cls) -> "Metrics":
        count = np.zeros((), np.int32)
        return cls(np.zeros((), np.float32), count, count, np.full((), -1, np.int32))

    def __add__(self, other: "Metrics") -> "Metrics":
        return Metrics(
            self.loss + other.loss,
            self.correct + other.correct,
            self.examples + other.examples,
            jnp.where(self.first_bad_step >= 0, self.first_bad_step, other.first_bad_step),
        )

    def means(self) -> dict[str, Any]:
        """What a line of metrics.jsonl says of training, for each replica."""
        return {"loss": self.loss / self.examples, "accuracy": self.correct / self.examples}


def summarize(
    logits: Float32[np.ndarray, "N 10"],
    losses: Float32[np.ndarray, "N"],
    labels: Integer[np.ndarray, "N"],
) -> dict[str, Any]:
    """What is said of a network on a whole split: counts, and means of float64 sums."""
    examples = len(labels)
    correct = int((np.argmax(logits, axis=-1) == labels).sum())
    return {
        "examples": examples,
        "correct": correct,
        "accuracy": correct / examples,
        "loss": float(np.sum(losses, dtype=np.float64) / examples),
        "expected_calibration_error": statistics.calibration(logits, labels).error,
    }
