"""The processes of a job: how one joins, and how they exchange values.

Every process runs the same program on the devices of all. Process 0 alone uses the disk and the
terminal.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_cnn.errors import UserError

_HEARTBEAT_SECONDS = 10  # a process that is silent for this long counts as lost


def is_primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def broadcast(value: Any) -> Any:
    """The JSON value of process 0, in every process."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value if is_primary() else None).encode(), np.uint8)
    length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    text = np.resize(text, int(length))  # only its length matters in the other processes
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def broadcast_arrays(tree: Any) -> Any:
    """The arrays of process 0, in every process; their shapes must be the same everywhere."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def allgather_max(value: int) -> int:
    """The largest of the int32 values of all processes."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def gather(tree: Any) -> Any:
    """The whole arrays as NumPy arrays, in every process; every process must call it."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def init_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Makes this process one of a job. With None for all, a TPU pod or Slurm gives the values."""
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"this process could not join its job ({reason}); give every process the same "
            "--coordinator HOST:PORT and --num_processes, and each its own --process_id"
        ) from None


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether the error says that another process of the job has ended or is unreachable."""
    text = str(error)
    return any(sign in text for sign in ("Gloo", "UNAVAILABLE", "closed by peer", "heartbeat"))
