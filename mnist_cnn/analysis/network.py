"""A trained network, read from its run directory: a callable on uint8 images.

It needs the directory alone, which may have been copied from elsewhere; nothing in it is
executed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import serialization
from jaxtyping import Float32, Float64, UInt8

from mnist_cnn import config as config_lib
from mnist_cnn.errors import CheckpointError
from mnist_cnn.models.apply import Variables
from mnist_cnn.runner import run_directory
from mnist_cnn.runner.checkpoint import Checkpoints
from mnist_cnn.training.components import LOSSES, MODELS, OPTIMIZERS, build_components
from mnist_cnn.training.scoring import compute_logits
from mnist_cnn.training.state import Metrics, create_state, from_dict, to_dict


@dataclasses.dataclass(frozen=True)
class Network:
    """Variables, the module that they belong to, and the configuration that they come from."""

    config: Mapping[str, Any]
    variables: Variables
    model: Any
    step: int
    seed: int

    @property
    def params(self) -> Any:
        """The parameters: the variables but for the statistics of batch normalisation."""
        return self.variables["params"]

    def __call__(self, images: UInt8[np.ndarray, "N 28 28 1"]) -> Float32[np.ndarray, "N 10"]:
        """Logits of images with values 0..255.

        Raises:
          ValueError: the images are not uint8 [N, 28, 28, 1].
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28, 1):
            raise ValueError(
                f"got images {images.dtype} {list(images.shape)}, expected uint8 [N, 28, 28, 1]"
            )
        batch_size = self.config["eval_batch_size"]
        logits = compute_logits(self.model, self.variables, images, batch_size)
        return np.asarray(logits)

    def probabilities(
        self, images: UInt8[np.ndarray, "N 28 28 1"], batch_size: int = 64
    ) -> Float64[np.ndarray, "N 10"]:
        """The softmax of the logits; one compiled program serves every number of images.

        Raises:
          ValueError: the images are not uint8 [N, 28, 28, 1].
        """
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

    Args:
      workdir: a run directory.
      config: the experiment's configuration; needed where it brought a module, a loss or an
        optimiser of its own, and asked for these alone.
      seed: which network, where the run trained several; None: the first.

    Raises:
      CheckpointError: there is no run, no good checkpoint, or `config` is needed or another one.
    """
    directory = run_directory.RunDirectory(workdir)
    saved = directory.read("config.json")
    if saved is None:
        raise CheckpointError(
            f"{directory.path}: no config.json there, so it is no run directory; give the one "
            "that a run printed at its end"
        )
    objects = {}
    for key, known in (
        ("model", MODELS), ("loss", LOSSES), ("optimizer", OPTIMIZERS),
    ):  # fmt: skip
        if saved.get(key) in known:
            continue
        if config is None:
            raise CheckpointError(
                f"{directory.path}: its {key} is {saved.get(key)!r}, from an experiment file; "
                "give that experiment's config as well: --config EXPERIMENT, in Python load(.., "
                "config)"
            )
        given = config_lib.describe(config[key])
        if not config_lib.is_same(key, saved.get(key), given):
            raise CheckpointError(
                f"{directory.path} belongs to another configuration ({key}: was "
                f"{saved.get(key)!r}, now {given!r})"
            )
        objects[key] = config[key]
    config = config_lib.experiment(**saved | objects)
    members = config_lib.replicas(config)
    member = _member(directory, members, seed)
    # Shapes alone: nothing is initialised or compiled for what is about to be read.
    shapes = jax.eval_shape(lambda: (create_state(config), Metrics.zero()))
    state, sums = to_dict(shapes[0]), serialization.to_state_dict(shapes[1])
    several = (len(members),) if len(members) > 1 else ()
    template = jax.tree_util.tree_map(
        lambda leaf: np.empty(several + leaf.shape, leaf.dtype), {"state": state, "sums": sums}
    )
    checkpoints = Checkpoints(directory.checkpoints, keep=None)
    restored = checkpoints.restore(
        template, lambda line: print(f"{directory}: {line}", file=sys.stderr)
    )
    checkpoints.close()
    if restored is None:
        raise CheckpointError(f"{directory.path}: no checkpoint there yet; let the run go on first")
    step, tree, _ = restored
    variables = from_dict(shapes[0], tree["state"]).variables
    if several:
        variables = jax.tree_util.tree_map(lambda leaf: leaf[member], variables)
    model = build_components(config)[0]
    return Network(config, jax.device_put(variables), model, step, members[member].seed)


def _member(
    directory: run_directory.RunDirectory, members: Sequence[config_lib.Replica], seed: int | None
) -> int:
    """Which of a run's networks is meant: of the chosen setting, the one of `seed` or the first."""
    first = 0
    if members[0].setting:
        sweep = (directory.read("result.json") or {}).get("sweep") or {}
        if sweep.get("chosen") is None:
            raise CheckpointError(
                f"{directory.path}: a sweep that is not finished, so no setting is chosen yet; let "
                "the run go on to its end first"
            )
        first = sweep["chosen"] * len(sweep["seeds"])
    chosen = [
        place for place in range(first, len(members))
        if members[place].setting == members[first].setting
    ]  # fmt: skip
    seeds = [members[place].seed for place in chosen]
    if seed is None:
        return first
    if seed not in seeds:
        known = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        raise CheckpointError(f"{directory.path}: got seed {seed}, expected one of its: {known}")
    return chosen[seeds.index(seed)]
