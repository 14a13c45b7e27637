"""Named random streams: every random number is a pure function of (seed, name, step).

A stream is found by its name, never by how often a generator was called before, so a resumed
run draws what the uninterrupted one would have drawn, and a new stream disturbs no old one.
"""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Int, Key, UInt


def key(seed: int | UInt[Array, ""], name: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The random key of the stream `name` at `step` (a training step or an epoch).

    Args:
      seed: 0 to 2**31 - 1.
      name: the stream: "init", "order", ...
      step: 0 to 2**31 - 1; 0 for streams that are drawn from once.
    """
    stream = jax.random.fold_in(
        jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode())
    )
    return jax.random.fold_in(stream, step)
