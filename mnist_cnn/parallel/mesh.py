"""The mesh of devices: how many for different replicas, how many for the parts of one batch.

All other code is written for one network on one device. `shard_mapped` lays it over the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mnist_cnn.errors import ConfigError
from mnist_cnn.models.layers import DATA_AXIS as DATA

REPLICA = "replica"  # the mesh axis of different networks; DATA is that of parts of a batch
REPLICATED = PartitionSpec()  # the same array on every device
BY_REPLICA = PartitionSpec(REPLICA)  # the leading axis is that of replicas
BY_BATCH = PartitionSpec(DATA)


def make_mesh(config: Mapping[str, Any], num_replicas: int, devices: Sequence[Any]) -> Mesh:
    """The devices as [replica, data]: `config.mesh`, else as many as can work, replicas first.

    With several processes all devices work. In one process, a device stays idle if a batch cannot
    be divided evenly over it.

    Raises:
      ConfigError: `config.mesh` has more devices or replicas than there are, or the devices
        cannot share the batch evenly.
    """
    count = len(devices)
    if config["mesh"] is None:
        replicas = max(n for n in range(1, count + 1) if count % n == 0 and n <= num_replicas)
        parts = count // replicas
        if jax.process_count() == 1:
            parts = max(n for n in range(1, parts + 1) if config["batch_size"] % n == 0)
        shape = replicas, parts
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
    """Turns a function of one device's arrays into one of the arrays on the mesh."""
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs, where one network at a time is the fastest."""
    return mesh.devices.flat[0].platform == "cpu"


def peak_memory() -> list[tuple[int, int]]:
    """The peak use and the size of each local device's memory in bytes, where it is known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return [
        (one["peak_bytes_in_use"], one["bytes_limit"])
        for one in stats
        if one.keys() >= {"peak_bytes_in_use", "bytes_limit"}
    ]
