"""What can be said of a test beyond its accuracy: classes, calibration, comparison.

NumPy alone: no network, no disk, no pictures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15  # of confidence, as Guo et al. 2017 have it (https://arxiv.org/abs/1706.04599)


def log_probabilities(logits: Float[np.ndarray, "*N 10"]) -> Float[np.ndarray, "*N 10"]:
    """Log-softmax in float64, so that the sure ones are not rounded to 0."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def confusion_matrix(labels: Int[np.ndarray, "N"], predicted: Int[np.ndarray, "N"]) -> np.ndarray:
    """int64 [10, 10]: how many images of class `row` were taken for class `column`."""
    return np.bincount(labels.astype(np.int64) * 10 + predicted, minlength=100).reshape(10, 10)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images in bins of equal width by the probability of the predicted class.

    Attributes:
      count: int [BINS], images in each.
      confidence: float [BINS], their mean probability; NaN in an empty bin, as `accuracy`.
      accuracy: float [BINS], the part that is right.
      error: the expected calibration error, 0 to 1: mean |accuracy - confidence| over images; NaN
        where a logit is.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(logits: Float[np.ndarray, "N 10"], labels: Int[np.ndarray, "N"]) -> Calibration:
    """How far the probabilities can be taken at their word."""
    probability = np.exp(log_probabilities(logits).max(-1))
    right = logits.argmax(-1) == labels
    # Bin i is (i / 15, (i + 1) / 15], as in the paper.
    index = np.clip(np.ceil(np.nan_to_num(probability) * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    sure = np.bincount(index, weights=probability, minlength=BINS)
    good = np.bincount(index, weights=right, minlength=BINS)
    with np.errstate(invalid="ignore"):
        error = float(np.abs(good - sure).sum() / len(labels))
        return Calibration(count, sure / count, good / count, error)


def classification_metrics(
    logits: Float[np.ndarray, "N 10"], labels: Int[np.ndarray, "N"]
) -> dict[str, Any]:
    """Negative log-likelihood (nats an image), expected calibration error, and each class.

    A precision without predictions, or a recall without images, is None.
    """
    log_p = log_probabilities(logits)
    table = confusion_matrix(labels, logits.argmax(-1))
    examples, predicted = table.sum(1).tolist(), table.sum(0).tolist()
    return {
        "negative_log_likelihood": float(-log_p[np.arange(len(labels)), labels].mean()),
        "expected_calibration_error": float(calibration(logits, labels).error),
        "classes": [
            {
                "precision": hits / predicted[c] if predicted[c] else None,
                "recall": hits / examples[c] if examples[c] else None,
                "examples": examples[c],
                "predicted": predicted[c],
            }
            for c, hits in enumerate(table.diagonal().tolist())
        ],
    }


@dataclasses.dataclass(frozen=True)
class Difference:
    """An accuracy minus another: -1 to 1, with the half-width or ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    p: float  # two-sided
    method: str


def mean_interval(values: Float[np.ndarray, "R"]) -> float:
    """Half-width of the 95 % interval of a mean by Student's t; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    from scipy import special  # scipy.stats would take a second to import

    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(special.stdtrit(len(values) - 1, 0.975) * error)


def compare_over_seeds(a: Float[np.ndarray, "R"], b: Float[np.ndarray, "R"]) -> Difference:
    """`b` - `a`, paired by seed, R >= 2: Student's t on the differences."""
    from scipy import special

    differences = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    mean, half = float(differences.mean()), mean_interval(differences)
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    if error > 0:
        p = float(2 * special.stdtr(len(differences) - 1, -abs(mean) / error))
    else:
        p = 1.0 if mean == 0 else 0.0
    method = f"paired over {len(differences)} seeds, Student's t"
    return Difference(mean, mean - half, mean + half, p, method)


def compare_over_images(a: Bool[np.ndarray, "N"], b: Bool[np.ndarray, "N"]) -> Difference:
    """Right `b` - right `a` over the same images: exact McNemar test, Bonett-Price interval.

    The interval is the adjusted Wald one of Bonett & Price ("Adjusted Wald Confidence Interval for
    a Difference of Binomial Proportions Based on Paired Data", 2012), which keeps its 95 % where
    few images change sides.
    """
    from scipy import special

    gained, lost, n = int((b & ~a).sum()), int((a & ~b).sum()), len(a)
    p_gained, p_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_gained - p_lost
    half = 1.959963984540054 * math.sqrt((p_gained + p_lost - centre**2) / (n + 2))
    p = min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))
    if gained == lost == 0:
        p = 1.0
    method = f"paired over {n:,} test images, exact McNemar test, Bonett-Price interval"
    return Difference((gained - lost) / n, centre - half, centre + half, p, method)
