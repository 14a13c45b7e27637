"""Which training images make step t: a pure function of (seed, step), computed on the device.

An epoch is a permutation of the training rows cut into batches.  The last batch may be partial:
it has the same shape, and rows that are not there weigh nothing in loss and metrics.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, UInt, UInt8

from mnist_cnn.training import rng


class Batch(struct.PyTreeNode):
    """What one step is taken on."""

    images: UInt8[Array, "B 28 28 1"]
    labels: Int[Array, "B"]
    weights: Float[Array, "B"]  # 1 for an image, 0 where a partial batch has none


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Every image once: the last batch may be partial."""
    return -(-num_examples // batch_size)


def epoch_order(
    seed: UInt[Array, ""], epoch: Int[Array, ""], num_examples: int, batch_size: int
) -> Int[Array, "steps_per_epoch B"]:
    """The rows of each batch of an epoch; -1 where the last batch has no row."""
    order = jax.random.permutation(rng.key(seed, "order", epoch), num_examples)
    steps = steps_per_epoch(num_examples, batch_size)
    padding = steps * batch_size - num_examples
    order = jnp.pad(order.astype(jnp.int32), (0, padding), constant_values=-1)
    return order.reshape(steps, batch_size)


def take(
    images: UInt8[Array, "N 28 28 1"], labels: Int[Array, "N"], rows: Int[Array, "B"]
) -> Batch:
    """The batch of the given rows; where there is none (-1), another image that weighs nothing.

    They are different ones, so that the statistics of batch normalisation hardly notice.
    """
    present = rows >= 0
    rows = jnp.where(present, rows, jnp.arange(rows.size) % len(labels))
    return Batch(images[rows], labels[rows], present.astype(jnp.float32))
