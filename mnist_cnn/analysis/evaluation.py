"""A trained network, scored on a whole split."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float32, Integer

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.analysis.loading import load
from mnist_cnn.analysis.packaged import PACKAGED
from mnist_cnn.data import dataset as data, doubtful, folds
from mnist_cnn.data.spec import DataSpec
from mnist_cnn.errors import DataError
from mnist_cnn.parallel.devices import own_settings
from mnist_cnn.runner import results
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training.components import LOSSES, apply_loss
from mnist_cnn.training.metrics import summarize
from mnist_cnn.training.scoring import score


@own_settings()
def evaluate(
    workdir: str | os.PathLike[str],
    split: str | None = None,
    dataset: str | None = None,
    manual_dir: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | Literal["all"] | None = None,
) -> dict[str, Any]:
    """Scores the network of a run directory on every image of a split, as its run does.

    `split` is in the notation of tfds: "test", "train[55000:]"; None: what the run tested, its
    held-out fold or "test", which other data has no fold for. `dataset` is the name of one and
    `manual_dir` a folder of images; both None: the run's data, a DataError if they have changed.
    The others are those of `loading.load`. Returns the metrics of `metrics.summarize` and
    `statistics.classification_metrics` with the names of the classes, and the origin of network and
    data. The loss is None if it is the experiment's own and `config` is not given.
    Of an ensemble also the metrics of its "members", and their "disagreement": on how many "images"
    not all answer the same, and on which share of the images two of them differ, on average over
    all "pairs". "calibrated" has the network's temperature, the split on which it was fitted, and
    the metrics with it; None without one. If some are test images of MNIST whose label is in doubt,
    "doubtful" has what `doubtful.summarize` returns.
    """
    trained = load(workdir, config, seed)
    own_data = dataset is None and manual_dir is None
    folder = trained.config["manual_dir"] if own_data else manual_dir
    source = data.open_dataset(dataset or trained.config["dataset"], folder)
    is_run = os.path.isdir(workdir) and workdir != PACKAGED
    environment = RunDirectory(workdir).chosen().read("environment.json") if is_run else None
    before = (environment or {}).get("data")
    same_data = data.is_same_data(before, source.describe()) if before else own_data
    if own_data and not same_data:
        raise DataError(
            f"{workdir}: the run had other images or labels than {source.origin} has now; "
            "give the folder of those to score: --manual_dir=FOLDER"
        )
    _check_form(trained.spec, source)
    if split is None and same_data:
        split = config_lib.tested_name(trained.config)
        images, labels = folds.read_tested(source, trained.config)
        rows = [] if trained.config["fold"] else source.rows(split)
    else:
        split = split or "test"
        images, labels = source.read(split)
        rows = source.rows(split)
    loss: Any = trained.config["loss"]
    known = not isinstance(loss, str) or loss in LOSSES
    if isinstance(loss, str):  # of an unknown one, only the logits are used
        loss = LOSSES[loss if known else "cross_entropy"]
    batch_size = trained.config["eval_batch_size"]
    of_members: dict[str, Any] = {}
    if trained.members:  # each is computed once, for its own metrics and for the mean
        logits, *each = trained.all_logits(images)
        losses = np.asarray(jax.jit(apply_loss, static_argnums=0)(loss, logits, labels))
        of_members = _of_members(trained.members, np.stack(each), labels)
    else:
        scored = score(trained.model, loss, trained.variables, images, labels, batch_size)
        logits, losses = jax.device_get(scored)
    # Without `config`, metrics of the experiment are known by name only.
    others = [pair for pair in (trained.config["metrics"] or {}).items() if callable(pair[1])]
    unknown = {} if known else {"loss": None}
    measured = statistics.classification_metrics(logits, labels)
    fitted: dict[str, Any] | None = None
    in_doubt = {}
    if trained.temperatures:
        temperature = trained.temperatures[0]
        fitted = {
            "split": trained.config["validation_split"],
            "temperature": temperature,
            **results.calibration_metrics(logits / np.float64(temperature), labels),
        }
    if len(places := doubtful.places(source.describe(), rows)):
        in_doubt = {"doubtful": doubtful.summarize(logits.argmax(-1) == labels, places)}
    return {
        "workdir": str(workdir),
        "seed": trained.seed,
        "step": trained.step,
        "dataset": source.name,
        "origin": source.origin,
        "split": split,
        **summarize(logits, losses, labels, others) | unknown,
        **of_members,
        "metrics": [name for name, _ in others],  # of the experiment
        **measured,
        "calibrated": fitted,
        **in_doubt,
        "classes": [
            {"class": name} | row
            for name, row in zip(trained.spec.class_names, measured["classes"], strict=True)
        ],
    }


def _of_members(
    seeds: Sequence[int], logits: Float32[np.ndarray, "R N K"], labels: Integer[np.ndarray, "N"]
) -> dict[str, Any]:
    """Metrics of each member of an ensemble, and how often their answers differ."""
    found = logits.argmax(-1)
    correct = (found == labels).sum(-1)
    measured = [results.calibration_metrics(one, labels) for one in logits]
    pairs = [(a != b).mean() for a, b in itertools.combinations(found, 2)]
    return {
        "members": {
            "seed": list(seeds),
            "correct": correct.tolist(),
            "accuracy": (correct / len(labels)).tolist(),
            **{name: [one[name] for one in measured] for name in measured[0]},
        },
        "disagreement": {
            "images": int((found != found[0]).any(0).sum()),
            "pairs": float(np.mean(pairs)),
        },
    }


def _check_form(spec: DataSpec, source: data.Dataset) -> None:
    """Raises DataError unless a network for `spec` can score the data: images and classes.

    A folder of files with numbers for labels may lack the last classes, and a network for digits
    may be tried on any ten classes.
    """
    shapes = [" x ".join(map(str, one.image_shape)) for one in (source.spec, spec)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"the images of {source.origin} are {shapes[0]}, the network's {shapes[1]}; give data "
            "of that form"
        )
    names, expected = source.spec.class_names, spec.class_names
    numbers = tuple(map(str, range(max(len(names), len(expected)))))
    same = names == expected[: len(names)] or numbers[: len(names)] == names
    if len(names) > len(expected) or not (same or numbers[: len(expected)] == expected):
        raise DataError(
            f"the classes of {source.origin} are {_listed(names)}, the network's "
            f"{_listed(expected)}; give data of the same classes in the same order"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
