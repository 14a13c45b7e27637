"""Affine changes of images, computed on the device."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def matrix(
    rotation: Float[Array, "N"], zoom: Float[Array, "N 2"], shear: Float[Array, "N"]
) -> Float[Array, "N 2 2"]:
    """The matrices from output to input pixels of the given changes, in the units of `draw`."""
    angle = rotation * jnp.pi / 180
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotated = jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)
    sheared = jnp.zeros(rotated.shape).at[:, 1, 0].set(shear)
    return (rotated + sheared) / (1 + zoom)[..., None]


def warp(
    images: Float[Array, "B H W C"], matrix: Float[Array, "B 2 2"], offset: Float[Array, "B 2"]
) -> Float[Array, "B H W C"]:
    """Reads each output pixel at matrix @ (its position relative to the centre) + offset.

    The interpolation is bilinear; pixels beyond the edge are 0.
    """
    height, width = images.shape[1:3]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    relative = grid - centre
    # Written as sums: a TPU would round a matrix product to bfloat16.
    y, x = (
        matrix[:, None, None, row, 0] * relative[..., 0]
        + matrix[:, None, None, row, 1] * relative[..., 1]
        + offset[:, None, None, row]
        + centre[row]
        for row in (0, 1)
    )
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left

    def at(padded: Array, rows: Array, columns: Array) -> Array:
        rows = jnp.clip(rows.astype(jnp.int32) + 1, 0, height + 1)
        columns = jnp.clip(columns.astype(jnp.int32) + 1, 0, width + 1)
        indices = (rows * (width + 2) + columns).reshape(images.shape[0], -1)
        return jnp.take_along_axis(padded, indices, 1).reshape(y.shape)

    channels = []
    for channel in range(images.shape[-1]):
        padded = jnp.pad(images[..., channel], ((0, 0), (1, 1), (1, 1)))
        padded = padded.reshape(images.shape[0], -1)
        above = at(padded, top, left) * (1 - right) + at(padded, top, left + 1) * right
        below = at(padded, top + 1, left) * (1 - right) + at(padded, top + 1, left + 1) * right
        channels.append(above * (1 - down) + below * down)
    return jnp.stack(channels, -1)
