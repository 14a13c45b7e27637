"""Compiled programs for a group of replicas, made from functions of one replica.

The arrays of a group have a leading axis [G], laid over the mesh. A device that holds several
replicas computes them together (`jax.vmap`). A device that holds one computes it without that
axis, to the same bits as if it were alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mnist_cnn.parallel.mesh import BY_REPLICA, DATA, REPLICA, REPLICATED, shard_mapped
from mnist_cnn.training.step import steps

ORDER = PartitionSpec(REPLICA, None, DATA)  # of int32 [G, steps_per_epoch, B]
# State [G], sums [G], split, order [G], start and stop.
TRAINING_INPUTS = (BY_REPLICA, BY_REPLICA, REPLICATED, ORDER, REPLICATED, REPLICATED)


def make_program(
    mesh: Mesh | AbstractMesh,
    function: Callable[..., Any],
    inputs: tuple[PartitionSpec, ...],
    outputs: PartitionSpec = BY_REPLICA,
    **options: Any,
) -> Any:
    """Jits a function of the arrays of one replica for a group of replicas on the mesh.

    `inputs` and `outputs` say how arguments and results are laid out. Arguments whose first axis
    is REPLICA lose it on the way in; all results get it. `options` are those of `jax.jit`.
    """
    axes = tuple(0 if spec[:1] == (REPLICA,) else None for spec in inputs)

    def of_device(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments[axes.index(0)])[0]) > 1:
            return jax.vmap(function, axes)(*arguments)
        alone = (
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        )
        return jax.tree.map(lambda leaf: leaf[None], function(*alone))

    of_device.__name__ = getattr(function, "func", function).__name__  # shown in traces
    return jax.jit(shard_mapped(of_device, mesh, inputs, outputs), **options)


def training_program(mesh: Mesh | AbstractMesh) -> Any:
    """`training.step.steps` of a group, with the arguments of `TRAINING_INPUTS`."""
    of_replica = functools.partial(steps, data_axis=DATA if mesh.shape[DATA] > 1 else None)
    return make_program(mesh, of_replica, TRAINING_INPUTS, donate_argnums=0)
