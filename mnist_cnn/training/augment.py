"""Random affine changes of training images, drawn and computed on the device.

Pure: what is drawn follows from the key alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

AMOUNTS = ("rotation", "zoom", "shear", "shift")  # each drawn from -amount to +amount, evenly


def draw(
    key: Key[Array, ""], amounts: Mapping[str, Any], count: int
) -> tuple[Float[Array, "N 2 2"], Float[Array, "N 2"]]:
    """What to do to each of `count` images: a matrix and an offset, from output to input pixels.

    Args:
      key: of the step.
      amounts: of those of `AMOUNTS` that are wanted, the largest: degrees of rotation, the part by
        which height and width (each its own) grow or shrink, the columns that a row moves for
        each row from the middle, the pixels of shift down and right (each its own).
      count: how many images.
    """

    def uniform(name: str, *shape: int) -> Array:
        own = jax.random.fold_in(key, AMOUNTS.index(name))
        return amounts.get(name, 0) * jax.random.uniform(own, (count, *shape), minval=-1)

    return matrix(uniform("rotation"), uniform("zoom", 2), uniform("shear")), uniform("shift", 2)


def matrix(
    rotation: Float[Array, "N"], zoom: Float[Array, "N 2"], shear: Float[Array, "N"]
) -> Float[Array, "N 2 2"]:
    """From output to input pixels, of images changed so much, in the units of `draw`."""
    angle = rotation * jnp.pi / 180
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotated = jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)
    sheared = jnp.zeros(rotated.shape).at[:, 1, 0].set(shear)
    return (rotated + sheared) / (1 + zoom)[..., None]


def warp(
    images: Float[Array, "B 28 28 1"], matrix: Float[Array, "B 2 2"], offset: Float[Array, "B 2"]
) -> Float[Array, "B 28 28 1"]:
    """Each output pixel is read at matrix @ (its place from the middle) + offset.

    Bilinear between pixels; 0 beyond the edge.
    """
    height, width = images.shape[1:3]
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    centred = grid - middle  # [28, 28, 2]
    # Said as sums: a product of matrices would be rounded to bfloat16 on a TPU.
    y, x = (
        matrix[:, None, None, row, 0] * centred[..., 0]
        + matrix[:, None, None, row, 1] * centred[..., 1]
        + offset[:, None, None, row]
        + middle[row]
        for row in (0, 1)
    )
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    framed = jnp.pad(images[..., 0], ((0, 0), (1, 1), (1, 1))).reshape(images.shape[0], -1)

    def at(rows: Array, columns: Array) -> Array:
        rows = jnp.clip(rows.astype(jnp.int32) + 1, 0, height + 1)
        columns = jnp.clip(columns.astype(jnp.int32) + 1, 0, width + 1)
        places = (rows * (width + 2) + columns).reshape(images.shape[0], -1)
        return jnp.take_along_axis(framed, places, 1).reshape(y.shape)

    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return (above * (1 - down) + below * down)[..., None]
