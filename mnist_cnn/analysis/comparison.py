"""Settings of finished runs compared: over seeds, folds or images; several at once by Holm."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from mnist_cnn import statistics
from mnist_cnn.analysis.run_settings import Setting
from mnist_cnn.errors import CheckpointError


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
