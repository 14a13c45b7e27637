"""Where arrays are: from the host to the mesh and back, and off the devices while not in use."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mnist_cnn.parallel.mesh import BY_REPLICA, REPLICATED


def shard(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Lays NumPy arrays, which must be the same in every process, over the mesh."""
    sharding = NamedSharding(mesh, spec)

    def lay_out(array: Any) -> Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(lay_out, tree)


def gather(tree: Any, mesh: Mesh) -> Any:
    """The whole arrays as NumPy arrays, in every process; every process must call it."""
    if jax.process_count() > 1:
        tree = jax.tree.map(_replicate(mesh), tree)
    return jax.device_get(tree)


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, REPLICATED))


def to_device(tree: Any, mesh: Mesh) -> Any:
    """Moves arrays [G, ...] of replicas to the devices."""
    return jax.device_put(tree, NamedSharding(mesh, BY_REPLICA))


def offload(tree: Any, mesh: Mesh) -> Any:
    """Moves arrays [G, ...] of replicas to the hosts' memory."""
    return jax.device_put(tree, NamedSharding(mesh, BY_REPLICA, memory_kind="pinned_host"))
