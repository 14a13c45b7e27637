"""A trained network scored on a whole split, as its run scores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mnist_cnn import statistics
from mnist_cnn.analysis import network
from mnist_cnn.data import dataset as data
from mnist_cnn.runner import run_directory
from mnist_cnn.training.components import build_components
from mnist_cnn.training.scoring import score, summarize


def evaluate(
    workdir: str,
    split: str = "test",
    dataset: str | None = None,
    manual_dir: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Scores the network of a run directory on a whole split, as its run did.

    Args:
      workdir: a run directory, of a finished run or one that has a checkpoint.
      split: as tfds writes it: "test", "train[55000:]".
      dataset: another one than the run's.
      manual_dir: a folder of IDX files to take it from; None and no `dataset`: the run's own.
      config: the experiment, where it brought a module, a loss or an optimiser of its own.
      seed: which network of a run that trained several; None: the first.

    Returns:
      `summarize`'s figures, `measures.figures`' and where they come from.

    Raises:
      CheckpointError, DataError: in a line.
    """

    trained = network.load(workdir, config, seed)
    own = dataset is None and manual_dir is None
    source = data.open_dataset(
        dataset or trained.config["dataset"], trained.config["manual_dir"] if own else manual_dir
    )
    environment = run_directory.RunDirectory(workdir).read("environment.json") or {}
    if own and environment.get("data", {}).get("sha256") not in (None, source.files):
        raise data.DataError(
            f"{workdir}: the run had other data files than {source.origin} has now; "
            "give the folder of those that you mean: --manual_dir=FOLDER"
        )
    images, labels = source.read(split)
    loss = build_components(trained.config)[1]
    logits, losses = jax.device_get(
        score(
            trained.model, loss, trained.variables, jnp.asarray(images), jnp.asarray(labels),
            trained.config["eval_batch_size"],
        )
    )  # fmt: skip
    return {
        "workdir": str(workdir),
        "seed": trained.seed,
        "step": trained.step,
        "dataset": source.name,
        "origin": source.origin,
        "split": split,
        **summarize(logits, losses, labels),
        **statistics.classification_metrics(logits, labels),
    }
