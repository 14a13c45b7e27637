"""Exact metrics over a whole split: every image once, as sums and counts.

As a command, the same again from a run directory, with a table for each class:

    python -m mnist_cnn.evaluate --workdir DIR [--split SPLIT] [--seed SEED] [--json]

Exit status: 0 done; 1 an error, said in one line; 2 bad usage.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8

from mnist_cnn import statistics
from mnist_cnn.training.train import Loss, Variables, forward, parts


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits_of(
    model: nn.Module, variables: Variables, images: UInt8[Array, "N 28 28 1"], batch_size: int
) -> Float[Array, "N 10"]:
    """Logits of every image, `batch_size` at a time in one program."""
    num_images = images.shape[0]
    batch_size = max(1, min(batch_size, num_images))
    num_batches = -(-num_images // batch_size)
    padding = num_batches * batch_size - num_images
    padded = jnp.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
    batched = padded.reshape(num_batches, batch_size, *images.shape[1:])
    logits = lax.map(lambda batch: forward(model, variables, batch), batched)
    return logits.reshape(num_batches * batch_size, logits.shape[-1])[:num_images]


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def score(
    model: nn.Module,
    loss: Loss,
    variables: Variables,
    images: UInt8[Array, "N 28 28 1"],
    labels: Int[Array, "N"],
    batch_size: int,
) -> tuple[Float[Array, "N 10"], Float[Array, "N"]]:
    """The logits and the loss of every image of a split."""
    logits = logits_of(model, variables, images, batch_size)
    return logits, loss(logits, labels)


def summarize(
    logits: Float32[np.ndarray, "N 10"],
    losses: Float32[np.ndarray, "N"],
    labels: Int32[np.ndarray, "N"],
) -> dict[str, Any]:
    """Counts, and means over all images (summed in float64, so in no batch's order)."""
    examples = len(labels)
    correct = int((np.argmax(logits, axis=-1) == labels).sum())
    return {
        "examples": examples,
        "correct": correct,
        "accuracy": correct / examples,
        "loss": float(np.sum(losses, dtype=np.float64) / examples),
        "expected_calibration_error": statistics.calibration(logits, labels).error,
    }


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
    from mnist_cnn.analysis import network
    from mnist_cnn.data import dataset as data
    from mnist_cnn.runner import run_directory

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
    loss = parts(trained.config)[1]
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


def main(arguments: list[str]) -> int:
    from mnist_cnn import command_line
    from mnist_cnn.errors import ConfigError
    from mnist_cnn.runner.console import Console

    given = flags.FLAGS
    if given.workdir is None or len(arguments) > 1:
        raise ConfigError("expected --workdir DIR and flags only; see --helpshort")
    command_line.silence_libraries()
    figures = evaluate(
        given.workdir, given.split, given.dataset, given.manual_dir, given.config, given.seed
    )
    if given.json:
        print(json.dumps(figures))
    else:
        Console().evaluation(figures)
    return 0


if __name__ == "__main__":  # the flags are the command's alone: importing this module adds none
    from ml_collections import config_flags

    from mnist_cnn import command_line

    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_string("split", "test", "What to score, as tfds writes it: train[55000:].")
    flags.DEFINE_string("dataset", None, "Another dataset than the run's.")
    flags.DEFINE_string("manual_dir", None, "A folder of four IDX files instead.")
    flags.DEFINE_integer("seed", None, "Which of a run's networks; the first.")
    flags.DEFINE_boolean("json", False, "Print one JSON object.")
    config_flags.DEFINE_config_file(
        "config", None, "The experiment file, where it brought a module of its own."
    )
    command_line.command(main, command_line.parse_flags)
