"""Which training images make up each batch: a pure function of seed and step, on the device.

An epoch is a random permutation of the training images, cut into batches. The last batch may be
partial: it keeps its shape, and its missing images have weight 0 in the loss and the metrics.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float32, Int, Int32, UInt, UInt8

from mnist_cnn.training import rng

HostOrDeviceArray = Array | np.ndarray


class Split(struct.PyTreeNode):
    """A part of a dataset."""

    images: UInt8[HostOrDeviceArray, "N H W C"]
    labels: Int[HostOrDeviceArray, "N"]


class Batch(struct.PyTreeNode):
    """The images of one training step."""

    images: UInt8[Array, "B H W C"]
    labels: Int[Array, "B"]
    weights: Float32[Array, "B"]  # 1 for an image, 0 for a missing one of a partial batch


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of batches that contain every image once."""
    return -(-num_examples // batch_size)


def total_steps(config: Mapping[str, Any], num_examples: int) -> int:
    """The length of a training in steps: `num_steps`, else `num_epochs` whole epochs."""
    if config["num_steps"] is not None:
        return config["num_steps"]
    return config["num_epochs"] * steps_per_epoch(num_examples, config["batch_size"])


def epoch_order(
    seed: UInt[Array, ""], epoch: Int[Array, ""], num_examples: int, batch_size: int
) -> Int32[Array, "steps_per_epoch B"]:
    """The image numbers of each batch of an epoch; -1 where the last batch has no image."""
    order = jax.random.permutation(rng.key(seed, "order", epoch), num_examples).astype(jnp.int32)
    missing = -num_examples % batch_size
    return jnp.pad(order, (0, missing), constant_values=-1).reshape(-1, batch_size)


def take(split: Split, rows: Int[Array, "B"]) -> Batch:
    """The batch of the given image numbers.

    A missing image (-1) is replaced by another one of weight 0. The replacements differ from each
    other, so that they hardly change the batch statistics of batch normalization.
    """
    present = rows >= 0
    rows = jnp.where(present, rows, jnp.arange(rows.size) % len(split.labels))
    return Batch(split.images[rows], split.labels[rows], present.astype(jnp.float32))
