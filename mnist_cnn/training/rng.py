"""Named random streams: every random number is a pure function of (seed, stream, step).

A stream is identified by its name, not by how often it was used before. A resumed run therefore
draws the numbers of an uninterrupted one, and adding a stream changes no other.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key, UInt


def key(seed: int | UInt[Array, ""], stream: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The random key of a stream at a step.

    Args:
      seed: 0 to 2**31 - 1.
      stream: "init", "order", "augment" or "dropout".
      step: the training step, or the epoch for "order"; 0 for "init", which is used once.
    """
    named = jax.random.fold_in(
        jax.random.key(seed, impl="threefry2x32"), zlib.crc32(stream.encode())
    )
    return jax.random.fold_in(named, step)
