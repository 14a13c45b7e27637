"""A trained network, read from a run directory: a callable on uint8 images.

The directory is enough, wherever it was copied from, and nothing in it is executed.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float32, Float64, UInt8

from mnist_cnn import config as config_lib
from mnist_cnn.errors import CheckpointError
from mnist_cnn.models.apply import Variables
from mnist_cnn.parallel.devices import find_devices
from mnist_cnn.parallel.replicas import checkpoint_template
from mnist_cnn.runner.checkpoint import read_newest
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training.components import LOSSES, MODELS, OPTIMIZERS
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.scoring import compute_logits
from mnist_cnn.training.state import create_state, from_dict


@dataclasses.dataclass(frozen=True)
class Network:
    """A callable on images uint8 [N, 28, 28, 1] with values 0..255; ValueError for others."""

    config: Mapping[str, Any]  # the run's
    variables: Variables  # parameters and batch statistics
    model: nn.Module
    step: int  # the number of training steps
    seed: int

    @property
    def params(self) -> Any:
        """The variables without the statistics of batch normalization."""
        return self.variables["params"]

    def __call__(self, images: Any) -> Float32[np.ndarray, "N 10"]:
        """The logits of uint8 images [N, 28, 28, 1]; a ValueError for anything else."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28, 1):
            raise ValueError(
                f"got images {images.dtype} {list(images.shape)}, expected uint8 [N, 28, 28, 1]"
            )
        batch_size = self.config["eval_batch_size"]
        return np.asarray(compute_logits(self.model, self.variables, images, batch_size))

    def probabilities(
        self, images: UInt8[np.ndarray, "N 28 28 1"], batch_size: int = 64
    ) -> Float64[np.ndarray, "N 10"]:
        """The softmax of the logits; one compiled program serves any number of images."""
        logits = np.zeros((len(images), 10))
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0))
            logits[start : start + batch_size] = self(np.pad(batch, padding))[: len(batch)]
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)


def load(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Network:
    """The network of the newest good checkpoint in `workdir`; of a sweep, of the chosen setting.

    `config` is needed if the experiment brings its own model, loss or optimizer, because a run
    directory contains no code; nothing else of it is used. Of several seeds, the first by default.
    Raises CheckpointError: there is no run, no good checkpoint or no such seed, or `config` is
    needed or belongs to another experiment. UserError: JAX has no device.
    """
    find_devices()
    directory = RunDirectory(workdir)
    config = _complete_config(directory, config)
    replicas = config_lib.replicas(config)
    index = _replica_index(directory, config, seed)
    # Shapes only: nothing is initialized or compiled.
    shapes, sums = jax.eval_shape(lambda: (create_state(config), Metrics.zero()))
    template = checkpoint_template(shapes, sums, len(replicas))
    report = functools.partial(print, f"{directory}:", file=sys.stderr)
    step, tree, _ = read_newest(directory.checkpoints, template, report)
    variables = from_dict(shapes, tree["state"]).variables
    if len(replicas) > 1:
        variables = jax.tree.map(lambda leaf: leaf[index], variables)
    return Network(config, jax.device_put(variables), shapes.model, step, replicas[index].seed)


def _complete_config(
    directory: RunDirectory, config: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The run's configuration, with the objects of `config` for those that it only names."""
    saved, objects = directory.read_config(), {}
    for key, known in (("model", MODELS), ("loss", LOSSES), ("optimizer", OPTIMIZERS)):
        if saved.get(key) in known:
            continue
        if config is None:
            raise CheckpointError(
                f"{directory.path}: its {key} is {saved.get(key)!r}, from an experiment file; "
                "give that experiment as well: --config EXPERIMENT, in Python load(.., config)"
            )
        objects[key] = config[key]
    complete = config_lib.experiment(**saved | objects)
    if changed := config_lib.differences(saved, config_lib.as_dict(complete)):
        raise CheckpointError(f"{directory.path} belongs to another configuration ({changed[0]})")
    return complete


def _replica_index(directory: RunDirectory, config: Mapping[str, Any], seed: int | None) -> int:
    """The index of the replica with `seed`, or the first one, of the chosen setting."""
    sweep = (directory.read("result.json") or {}).get("sweep") if config["sweep"] else {"chosen": 0}
    if not sweep or sweep.get("chosen") is None:
        raise CheckpointError(
            f"{directory.path}: this sweep is not finished, so no setting is chosen yet; "
            "resume the run first"
        )
    seeds = range(config["seed"], config["seed"] + config["num_seeds"])
    if seed is not None and seed not in seeds:
        expected = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        raise CheckpointError(f"{directory.path}: got seed {seed}, expected {expected}")
    first = config_lib.setting_rows(len(seeds), sweep["chosen"]).start
    return first + (0 if seed is None else seeds.index(seed))
