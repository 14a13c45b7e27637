"""Runs of the folds of a cross-validation, taken together: what is missing, all images pooled."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mnist_cnn.analysis.finished_runs import Run
from mnist_cnn.analysis.run_settings import Setting
from mnist_cnn.data.dataset import is_same_data
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner.predictions import Predictions


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises CheckpointError unless finished runs were tested on the same images, or folds of them.

    Runs of one fold have the same images; runs of different folds have folds of the same data.
    """
    same_fold: dict[str | None, Run] = {}
    for run in runs:
        first = same_fold.setdefault(run.config.get("fold"), run)
        if run.num_folds != runs[0].num_folds:
            names = [f"{one.path} was tested on {one.images}" for one in (run, runs[0])]
            raise CheckpointError(
                f"{', '.join(names)}; compare runs of one test set, or of folds of one number"
            )
        if not np.array_equal(run.predictions.labels, first.predictions.labels) or (
            run.num_folds
            and not is_same_data(*(one.environment.get("data", {}) for one in (run, runs[0])))
        ):
            raise CheckpointError(
                f"{run.path} and {runs[0].path} were tested on different images; compare runs of "
                "the same dataset"
            )


def check_once(setting: Setting) -> None:
    """Raises CheckpointError if two runs of a setting have the same fold and seed."""
    for fold, part in setting.folds.items():
        runs: dict[int, Run] = {}
        for run in part.runs:
            for seed in run.seeds:
                if (other := runs.setdefault(seed, run)) is not run:
                    raise CheckpointError(
                        f"{other.path} and {run.path} are both of fold {fold} and seed {seed}; "
                        "give one of them"
                    )


def missing(setting: Setting) -> list[str]:
    """The folds, such as "3/10", of which no network of the setting is tested; [] without folds."""
    found = {fold for fold, part in setting.folds.items() if any(run.tested for run in part.runs)}
    count = setting.num_folds or 0
    return [fold for i in range(1, count + 1) if (fold := f"{i}/{count}") not in found]


def join(setting: Setting) -> Run:
    """The predictions of all folds as those of one run: every image once for each network.

    Network r is the r-th seed of each fold; a fold may have more than the others, which are left
    out.
    """
    folds = list(setting.folds.values())
    networks = min(len(part.seeds) for part in folds)
    parts = [_of_fold(part, networks) for part in folds]
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    first = setting.runs[0]
    pooled = Predictions(
        logits=np.concatenate([part.logits for part in parts], axis=1),
        labels=np.concatenate([part.labels for part in parts]),
        wrong=np.concatenate(
            [part.wrong + np.int32(start) for part, start in zip(parts, starts, strict=False)]
        ),
        images=np.concatenate([part.images for part in parts]),
        filters=first.predictions.filters[:0],
    )
    # The temperatures of a fold are those of its networks alone.
    result = {key: value for key, value in first.result.items() if key != "calibrated"}
    result["seeds"] = folds[0].seeds[:networks]
    return dataclasses.replace(first, result=result, tested=pooled, joined=True)


def _of_fold(part: Setting, networks: int) -> Predictions:
    """The predictions of the first networks of a fold, which may be of several runs."""
    stored = [run.predictions for run in part.runs]
    logits = np.concatenate([one.logits for one in stored])[:networks]
    labels = stored[0].labels
    wrong = np.flatnonzero((logits.argmax(-1) != labels).any(0)).astype(np.int32)
    images = {
        row: image for one in stored for row, image in zip(one.wrong, one.images, strict=True)
    }
    shown = [images[row] for row in wrong] or stored[0].images[:0]
    return Predictions(logits, labels, wrong, np.asarray(shown), stored[0].filters)
