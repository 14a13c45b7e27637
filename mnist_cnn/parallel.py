"""Devices and processes: the mesh, what lies where on it, and what processes tell one another.

The mesh has the axes `replica` (different networks) and `data` (parts of one batch); everything
else of the package is written for one network on one device, and laid out by `spread`.  Processes
are JAX's own: each runs the same program on the devices of all, and process 0 alone touches the
disk and the terminal.  Nothing here knows what is computed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mnist_cnn.errors import ConfigError, UserError

REPLICA, DATA = "replica", "data"
ALL = PartitionSpec()  # whole, on every device
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


def spread(
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


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """NumPy arrays, the same in every process, laid out on the mesh."""
    sharding = NamedSharding(mesh, spec)

    def lay(array: Any) -> Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map(lay, tree)


def fetch(tree: Any, mesh: Mesh) -> Any:
    """The whole arrays as NumPy's; every process calls it, and gets them."""
    if jax.process_count() > 1:
        tree = jax.tree_util.tree_map(_gathering(mesh), tree)
    return jax.device_get(tree)


@functools.cache
def _gathering(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, ALL))


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def agree(own: Sequence[int]) -> tuple[list[int], list[int]]:
    """Integers that every process brings: those of process 0, and the largest of all."""
    if jax.process_count() == 1:
        return list(own), list(own)
    every = np.asarray(multihost_utils.process_allgather(np.asarray(own, np.int32)))
    return every[0].tolist(), every.max(0).tolist()


def tell(message: Any) -> Any:
    """What process 0 says, a JSON value, to all."""
    if jax.process_count() == 1:
        return message
    text = np.frombuffer(json.dumps(message if first() else None).encode(), np.uint8)
    length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    padded = np.zeros(int(length), np.uint8)
    padded[: len(text)] = text[: int(length)]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def tell_arrays(tree: Any) -> Any:
    """A tree of arrays, of the same shapes in every process, from process 0 to all."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


# Processes.


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of a job; all None: as the TPU pod or Slurm says.

    Raises:
      UserError: the others were not to be found.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_LOST_SECONDS
        )
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"this process could not join its job ({reason}); give every process the same "
            "--coordinator HOST:PORT and --num_processes, and each its own --process_id"
        ) from None


def is_loss(error: RuntimeError) -> bool:
    """Whether it says that another process of the job is not there any more."""
    text = str(error)
    return any(sign in text for sign in ("Gloo", "UNAVAILABLE", "closed by peer", "heartbeat"))
