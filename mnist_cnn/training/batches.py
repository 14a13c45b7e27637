"""Which training images make up each batch: a pure function of seed and step, on the device.

An epoch is a random permutation of the training images, cut into batches. The last batch may be
partial: it keeps its shape, and its missing images have weight 0 in the loss and the metrics.
"""

from collections.abc import Mapping, Sequence
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
    # Whether the rows are of `rows_of_subset`. Each network of a run has its own subset.
    has_subsets: bool = struct.field(pytree_node=False, default=False)


class Batch(struct.PyTreeNode):
    """The images of one training step."""

    images: UInt8[Array, "B H W C"]
    labels: Int[Array, "B"]
    weights: Float32[Array, "B"]  # 1 for an image, 0 for a missing one of a partial batch


def num_examples(config: Mapping[str, Any], labels: Int[np.ndarray, "N"]) -> int:
    """The number of images that each network trains on, of a training split with these labels."""
    each = config["labels_per_class"]
    return len(labels) if each is None else each * len(np.unique(labels))


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


def subset(
    seed: UInt[Array, ""],
    labels: Int[Array, "N"],
    class_sizes: Sequence[int],
    labels_per_class: int,
) -> Int32[Array, "n"]:
    """The image numbers of the subset of a seed: `labels_per_class` random images of each class.

    `class_sizes` are those of the classes that `labels` has, in the order of their labels. The
    subset is a function of seed and labels alone; a smaller one is a part of a larger one.
    """
    order = jax.random.permutation(rng.key(seed, "subset"), len(labels)).astype(jnp.int32)
    by_class = order[jnp.argsort(labels[order], stable=True)]
    starts = np.cumsum([0, *class_sizes[:-1]])
    return by_class[(starts[:, None] + np.arange(labels_per_class)).ravel()]


def rows_of_subset(
    order: Int[Array, "steps_per_epoch B"], subset: Int[Array, "n"]
) -> Int32[Array, "steps_per_epoch B"]:
    """The image numbers of an `epoch_order` of a subset.

    In place of a missing image, it has -1 - row of another image of the subset.
    """
    others = subset[np.arange(order.shape[1]) % len(subset)]
    return jnp.where(order >= 0, subset[order], -1 - others)


def take(split: Split, rows: Int[Array, "B"]) -> Batch:
    """The batch of the given image numbers.

    A missing image (-1) is replaced by another one of weight 0. The replacements differ from each
    other, so that they hardly change the batch statistics of batch normalization.
    """
    present = rows >= 0
    others = -1 - rows if split.has_subsets else jnp.arange(rows.size) % len(split.labels)
    rows = jnp.where(present, rows, others)
    return Batch(split.images[rows], split.labels[rows], present.astype(jnp.float32))
