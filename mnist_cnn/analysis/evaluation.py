"""A trained network, scored on a whole split."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from mnist_cnn import statistics
from mnist_cnn.analysis import network
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import DataError
from mnist_cnn.parallel.devices import own_settings
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training.components import LOSSES
from mnist_cnn.training.metrics import summarize
from mnist_cnn.training.scoring import score


@own_settings()
def evaluate(
    workdir: str | os.PathLike[str],
    split: str = "test",
    dataset: str | None = None,
    manual_dir: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Scores the network of a run directory on every image of a split, as its run does.

    `split` is in the notation of tfds: "test", "train[55000:]". `dataset` is the name of one and
    `manual_dir` a folder of IDX files; both None: the run's data, a DataError if they have changed.
    The others are those of `network.load`. Returns the metrics of `metrics.summarize` and
    `statistics.classification_metrics`, and the origin of network and data. The loss is None if it
    is the experiment's own and `config` is not given.
    """
    trained = network.load(workdir, config, seed)
    own_data = dataset is None and manual_dir is None
    folder = trained.config["manual_dir"] if own_data else manual_dir
    source = data.open_dataset(dataset or trained.config["dataset"], folder)
    environment = RunDirectory(workdir).chosen().read("environment.json") or {}
    before = environment.get("data")
    if own_data and before and not data.is_same_data(before, source.describe()):
        raise DataError(
            f"{workdir}: the run had other images or labels than {source.origin} has now; "
            "give the folder of those to score: --manual_dir=FOLDER"
        )
    images, labels = source.read(split)
    loss: Any = trained.config["loss"]
    known = not isinstance(loss, str) or loss in LOSSES
    if isinstance(loss, str):  # of an unknown one, only the logits are used
        loss = LOSSES[loss if known else "cross_entropy"]
    batch_size = trained.config["eval_batch_size"]
    scored = score(trained.model, loss, trained.variables, images, labels, batch_size)
    logits, losses = jax.device_get(scored)
    # Without `config`, metrics of the experiment are known by name only.
    others = [pair for pair in (trained.config["metrics"] or {}).items() if callable(pair[1])]
    unknown = {} if known else {"loss": None}
    return {
        "workdir": str(workdir),
        "seed": trained.seed,
        "step": trained.step,
        "dataset": source.name,
        "origin": source.origin,
        "split": split,
        **summarize(logits, losses, labels, others) | unknown,
        "metrics": [name for name, _ in others],  # of the experiment
        **statistics.classification_metrics(logits, labels),
    }
