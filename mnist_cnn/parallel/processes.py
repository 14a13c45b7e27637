"""Processes of a job: how one joins, and what they tell each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_cnn.errors import UserError

_LOST_SECONDS = 10  # a process that is silent for this long is lost


def is_primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def agree(own: Sequence[int]) -> tuple[list[int], list[int]]:
    """Integers that every process brings: those of process 0, and the largest of all."""
    if jax.process_count() == 1:
        return list(own), list(own)
    every = np.asarray(multihost_utils.process_allgather(np.asarray(own, np.int32)))
    return every[0].tolist(), every.max(0).tolist()


def broadcast(message: Any) -> Any:
    """What process 0 says, a JSON value, to all."""
    if jax.process_count() == 1:
        return message
    text = np.frombuffer(json.dumps(message if is_primary() else None).encode(), np.uint8)
    length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    padded = np.zeros(int(length), np.uint8)
    padded[: len(text)] = text[: int(length)]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def broadcast_arrays(tree: Any) -> Any:
    """A tree of arrays, of the same shapes in every process, from process 0 to all."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def init_distributed(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
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


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether it says that another process of the job is not there any more."""
    text = str(error)
    return any(sign in text for sign in ("Gloo", "UNAVAILABLE", "closed by peer", "heartbeat"))
