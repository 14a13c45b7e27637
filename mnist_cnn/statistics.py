"""Statistics of test predictions: per-class metrics, calibration, and comparison of networks."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

LEVEL, POWER = 0.05, 0.8  # of `seeds_needed`, the usual ones
MAX_SEEDS = 100_000
FOLD_METHOD = "Student's t with the corrected variance of Nadeau and Bengio"  # of folds
BINS = 15  # bins of confidence, as in Guo et al. 2017 (https://arxiv.org/abs/1706.04599)


def log_probabilities(logits: Float[np.ndarray, "*N K"]) -> Float[np.ndarray, "*N K"]:
    """Log-softmax in float64, so that probabilities near 1 are not rounded to 1."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def confusion_matrix(
    labels: Integer[np.ndarray, "N"], predicted: Integer[np.ndarray, "N"], num_classes: int = 10
) -> np.ndarray:
    """int64 [K, K]: the number of images of class `row` predicted as class `column`."""
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images in bins of confidence, the probability of the predicted class; 0 to 1."""

    count: np.ndarray  # int [BINS], images
    confidence: np.ndarray  # float [BINS], mean; NaN in an empty bin
    accuracy: np.ndarray  # float [BINS], fraction of correct predictions; NaN in an empty bin
    error: float  # expected calibration error: mean |accuracy - confidence|; NaN if a logit is NaN


def calibration(logits: Float[np.ndarray, "N K"], labels: Integer[np.ndarray, "N"]) -> Calibration:
    """Compares confidence with accuracy in bins of equal width (Guo et al. 2017)."""
    probability = np.exp(log_probabilities(logits).max(-1))
    # Bin i is (i / 15, (i + 1) / 15], as in the paper.
    index = np.clip(np.ceil(np.nan_to_num(probability) * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    confidence = np.bincount(index, weights=probability, minlength=BINS)
    correct = np.bincount(index, weights=logits.argmax(-1) == labels, minlength=BINS)
    with np.errstate(invalid="ignore"):
        error = float(np.abs(correct - confidence).sum() / len(labels))
        return Calibration(count, confidence / count, correct / count, error)


def fit_temperature(logits: Float[np.ndarray, "N K"], labels: Integer[np.ndarray, "N"]) -> float:
    """The T for which softmax(logits / T) has the lowest negative log-likelihood.

    As Guo et al. 2017 fit it on images that are not trained on. The likelihood is convex in 1 / T,
    and its slope there is the mean of the expected logit minus that of the label. 1 if no T from
    0.01 to 100 is the best: if all images are classified correctly, the lower T the better.
    """
    logits = logits.astype(np.float64)
    of_labels = logits[np.arange(len(labels)), labels]

    def slope(log_inverse: float) -> float:
        p = np.exp(log_probabilities(logits * math.exp(log_inverse)))
        return float(((p * logits).sum(-1) - of_labels).mean())

    low, high = -math.log(100), math.log(100)
    if not (slope(low) < 0 < slope(high)):
        return 1.0
    for _ in range(60):  # halves the interval to the precision of float64
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return math.exp(-high)


def classification_metrics(
    logits: Float[np.ndarray, "N K"], labels: Integer[np.ndarray, "N"]
) -> dict[str, Any]:
    """Negative log-likelihood (nats per image), expected calibration error, per-class metrics.

    The precision of a class that is never predicted is None, as is the recall without images.
    """
    log_p = log_probabilities(logits)
    matrix = confusion_matrix(labels, logits.argmax(-1), logits.shape[-1])
    examples, predicted = matrix.sum(1).tolist(), matrix.sum(0).tolist()
    return {
        "negative_log_likelihood": float(-log_p[np.arange(len(labels)), labels].mean()),
        "expected_calibration_error": calibration(logits, labels).error,
        "classes": [
            {
                "precision": correct / predicted[c] if predicted[c] else None,
                "recall": correct / examples[c] if examples[c] else None,
                "examples": examples[c],
                "predicted": predicted[c],
            }
            for c, correct in enumerate(matrix.diagonal().tolist())
        ],
    }


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two accuracies, -1 to 1, with the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    p: float  # two-sided
    method: str  # the test and the interval in words
    # Over seeds: |mean| / standard deviation of their differences, Cohen's d_z. None over images.
    effect_size: float | None = None
    over_folds: bool = False


def mean_interval(values: Float[np.ndarray, "R"], num_folds: int | None = None) -> float:
    """Half-width of the 95 % confidence interval of a mean (Student's t); NaN if R < 2.

    The values are of R seeds or, with `num_folds`, of R of the folds of one cross-validation.
    """
    if len(values) < 2:
        return math.nan
    from scipy import special  # scipy.stats takes a second to import

    return float(special.stdtrit(len(values) - 1, 0.975) * _standard_error(values, num_folds))


def _standard_error(values: Float[np.ndarray, "R"], num_folds: int | None) -> float:
    """The standard error of a mean of R >= 2 values, of seeds or of folds.

    Networks of different folds share most of their training images, so their accuracies are not
    independent. Nadeau & Bengio ("Inference for the Generalization Error", Machine Learning 52,
    2003) therefore add the ratio of tested to training images to 1 / R. It is an approximation:
    no estimate of that variance is unbiased (Bengio & Grandvalet, "No Unbiased Estimator of the
    Variance of K-Fold Cross-Validation", Journal of Machine Learning Research 5, 2004).
    """
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(error * np.sqrt(1 + len(values) / (num_folds - 1)) if num_folds else error)


def is_possible(low: float, high: float, minimum: float = 0.0, maximum: float = 1.0) -> bool:
    """Whether an interval lies in the possible range; that of two seeds often does not, or is NaN.

    Such an interval is not printed: it says only that the seeds are too few.
    """
    return bool(minimum <= low and high <= maximum)


def compare_over_seeds(
    a: Float[np.ndarray, "R"], b: Float[np.ndarray, "R"], num_folds: int | None = None
) -> Difference:
    """Accuracies `b` - `a`, paired by seed (R >= 2): Student's t on the differences.

    With `num_folds` they are paired by fold: R of the folds of one cross-validation.
    """
    from scipy import special

    differences = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    mean, half = float(differences.mean()), mean_interval(differences, num_folds)
    error = _standard_error(differences, num_folds)
    t = float(abs(mean) / error) if error > 0 else math.inf if mean else 0.0
    p = float(2 * special.stdtr(len(differences) - 1, -t))
    if num_folds:
        method = f"paired over {len(differences)} folds, {FOLD_METHOD}"
        return Difference(mean, mean - half, mean + half, p, method, over_folds=True)
    method = f"paired over {len(differences)} seeds, Student's t"
    effect_size = t / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, p, method, effect_size)


def seeds_needed(effect_size: float, comparisons: int = 1) -> int | None:
    """The fewest seeds with which the paired t-test shows an effect in 80 % of experiments.

    The level is 5 %, divided by the number of comparisons (Bonferroni; Holm's correction needs at
    most as many seeds). t of n seeds has the noncentral t distribution with n - 1 degrees of
    freedom and noncentrality effect_size * sqrt(n) (Cohen, "Statistical Power Analysis for the
    Behavioral Sciences", 1988, chapter 2). None if more than MAX_SEEDS are needed.
    """
    from scipy import special

    def power(n: int) -> float:
        t = special.stdtrit(n - 1, 1 - LEVEL / comparisons / 2)
        centre = min(effect_size, 1e9) * math.sqrt(n)
        upper, lower = (float(special.nctdtr(n - 1, centre, x)) for x in (t, -t))
        return 1 - upper + lower

    low, high = 1, 2  # the power of one seed is 0
    while power(high) < POWER:
        low, high = high, 2 * high
        if low > MAX_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high if high <= MAX_SEEDS else None


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, "A Simple Sequentially Rejective Test", 1979).

    If no setting differs, the smallest one is below 0.05 in at most 5 % of experiments.
    """
    order = np.argsort(p)
    products = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(products), 1)
    return corrected.tolist()


def compare_over_images(
    a: Bool[np.ndarray, "N"], b: Bool[np.ndarray, "N"], images: str = "test images"
) -> Difference:
    """Accuracy of `b` - accuracy of `a` (true where correct), paired by image: exact McNemar test.

    The interval is the adjusted Wald interval of Bonett & Price ("Adjusted Wald Confidence Interval
    for a Difference of Binomial Proportions Based on Paired Data", 2012). It keeps its 95 %
    coverage when the two networks differ on few images.
    """
    from scipy import special

    gained, lost, n = int((b & ~a).sum()), int((a & ~b).sum()), len(a)
    p_gained, p_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_gained - p_lost
    half = 1.959963984540054 * math.sqrt((p_gained + p_lost - centre**2) / (n + 2))
    p = min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))
    method = f"paired over {n:,} {images}, exact McNemar test, Bonett-Price interval"
    return Difference((gained - lost) / n, centre - half, centre + half, p, method)
