"""Devices and processes: the mesh, what lies where on it, and what processes tell one another.

The mesh has the axes `replica` (different networks) and `data` (parts of one batch); everything
else of the package is written for one network on one device, and laid out by `spread`.  Processes
are JAX's own: each runs the same program on the devices of all, and process 0 alone touches the
disk and the terminal.  Nothing here knows what is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mnist_cnn.errors import ConfigError

REPLICA, DATA = "replica", "data"
REPLICATED = PartitionSpec()  # whole, on every device
BY_REPLICA = PartitionSpec(REPLICA)  # the leading axis is of replicas
_LOST_SECONDS = 10  # a process that is silent for so long is lost


def make_mesh(config: Mapping[str, Any], num_replicas: int, devices: Sequence[Any]) -> Mesh:
    """The devices as [replica, data]: `config.mesh`, or as many as can work, replicas first.

    Of several processes all work; of one, a device is idle where a batch has no even part for it.

    Raises:
      ConfigError: there are not so many devices or replicas, or they cannot share the batch.
    """
    count = len(devices)
    if config["mesh"] is None:
        replicas = max(n for n in range(1, count + 1) if count % n == 0 and n <= num_replicas)
        shares = count // replicas
        if jax.process_count() == 1:
            shares = max(n for n in range(1, shares + 1) if config["batch_size"] % n == 0)
        shape = replicas, shares
    else:
        first, _, second = config["mesh"].partition("x")
        shape = int(first), int(second)
        used = shape[0] * shape[1]
        if used > count or (jax.process_count() > 1 and used < count):
            raise ConfigError(
                f"config.mesh: got {config['mesh']} ({used} devices), expected "
                f"{'all' if jax.process_count() > 1 else 'at most'} {count} of them"
            )
        if shape[0] > num_replicas:
            raise ConfigError(
                f"config.mesh: got {config['mesh']}, expected at most {num_replicas} for replicas "
                "(num_seeds times the settings of the sweep)"
            )
    if config["batch_size"] % shape[1]:
        raise ConfigError(
            f"config.batch_size: got {config['batch_size']}, which {shape[1]} devices cannot share "
            f"evenly; expected a multiple of {shape[1]}, or another config.mesh, such as "
            f"{shape[0]}x1"
        )
    return Mesh(np.asarray(devices[: shape[0] * shape[1]]).reshape(shape), (REPLICA, DATA))


def shard_mapped(
    function: Callable[..., Any], mesh: Mesh, inputs: Any, outputs: Any
) -> Callable[..., Any]:
    """`function` of what one device holds, as a function of what the mesh holds."""
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are a CPU's, where one network at a time is the fastest."""
    return mesh.devices.flat[0].platform == "cpu"


def peak_memory() -> list[tuple[int, int]]:
    """Bytes: the most that was in use so far, and all, of each device here that tells."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return [
        (one["peak_bytes_in_use"], one["bytes_limit"])
        for one in stats
        if one.keys() >= {"peak_bytes_in_use", "bytes_limit"}
    ]


def shard(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """NumPy arrays, the same in every process, laid out on the mesh."""
    sharding = NamedSharding(mesh, spec)

    def lay(array: Any) -> Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map(lay, tree)


def gather(tree: Any, mesh: Mesh) -> Any:
    """The whole arrays as NumPy's; every process calls it, and gets them."""
    if jax.process_count() > 1:
        tree = jax.tree_util.tree_map(_gathering(mesh), tree)
    return jax.device_get(tree)


@functools.cache
def _gathering(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, REPLICATED))
