"""Named random streams: every random number is a pure function of (seed, stream, step).

A stream is identified by its name, not by how often it was used before. A resumed run therefore
draws the numbers of an uninterrupted one, and adding a stream changes no other.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key, UInt


def key(seed: int | UInt[Array, ""], stream: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The random key of a stream, such as "init", "order", "augment" or "dropout", at a step.

    An experiment's own step may use further names. The seed is 0 to 2**31 - 1. `step` is that of
    the training; for "order", which is drawn once an epoch, it is the epoch, and for "init" 0.
    """
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(stream.encode())), step)
