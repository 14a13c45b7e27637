"""The mesh of devices: how many for different replicas, how many for the parts of one batch.

All other code is written for one network on one device. `shard_mapped` lays it over the mesh.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mnist_cnn.errors import ConfigError
from mnist_cnn.models.layers import DATA_AXIS as DATA

REPLICA = "replica"  # the mesh axis of different networks; DATA is that of parts of a batch
REPLICATED = PartitionSpec()  # the same array on every device
BY_REPLICA = PartitionSpec(REPLICA)  # the leading axis is that of replicas
BY_BATCH = PartitionSpec(DATA)


def make_mesh(config: Mapping[str, Any], num_replicas: int, devices: Sequence[Any]) -> Mesh:
    """The devices as [replica, data]: `config.mesh`, else as many as can work, replicas first.

    With several processes all devices work. In one process, a device stays idle if a batch cannot
    be divided evenly over it. A `config.mesh` that does not fit raises ConfigError.
    """
    count, several = len(devices), jax.process_count() > 1
    mesh, batch_size = config["mesh"], config["batch_size"]
    if mesh is None:
        replicas = max(n for n in range(1, count + 1) if count % n == 0 and n <= num_replicas)
        parts = count // replicas
        if not several:
            parts = max(n for n in range(1, parts + 1) if batch_size % n == 0)
    else:
        replicas, parts = map(int, mesh.split("x"))
        used = replicas * parts
        if used > count or (several and used < count):
            expected = f"{'all' if several else 'at most'} {count} of them"
            raise ConfigError(f"config.mesh: got {mesh} ({used} devices), expected {expected}")
        if replicas > num_replicas:
            raise ConfigError(
                f"config.mesh: got {mesh}, expected at most {num_replicas} for replicas "
                "(num_seeds times the settings of the sweep)"
            )
    if batch_size % parts:
        raise ConfigError(
            f"config.batch_size: got {batch_size}, which {parts} devices cannot share evenly; "
            f"expected a multiple of {parts}, or another config.mesh, such as {replicas}x1"
        )
    return Mesh(np.reshape(devices[: replicas * parts], (replicas, parts)), (REPLICA, DATA))


def shard_mapped(
    function: Callable[..., Any], mesh: Mesh | AbstractMesh, inputs: Any, outputs: Any
) -> Callable[..., Any]:
    """Turns a function of one device's arrays into one of the arrays on the mesh."""
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def shard(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Lays NumPy arrays, which must be the same in every process, over the mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), tree
    )


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs, where one network at a time is the fastest."""
    return mesh.devices.flat[0].platform == "cpu"


def peak_memory() -> list[tuple[int, int]]:
    """The peak use and the size of each local device's memory in bytes, where it is known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak, size = "peak_bytes_in_use", "bytes_limit"
    return [(one[peak], one[size]) for one in stats if peak in one and size in one]
