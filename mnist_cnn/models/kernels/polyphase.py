"""The phases of an image: its even and odd rows by its even and odd columns.

These are what a 2 x 2 max-pool compares, element by element, so nobody has to put them together.
Nothing here knows of platforms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def by_wide_filters(
    images: Float[Array, "H W B in"], kernel: Float[Array, "5 5 in out"]
) -> Float[Array, "H//2 W//2 B 2 2 out"]:
    """The phases of the "same" convolution, as the channels of one of 3 x 3 on 2 x 2 blocks.

    That is 144 products for 100, the 44 by a kernel's zeros, but as a single matrix product, four
    times as wide: faster where the channels are few.  H and W are even.
    """
    height, width, batch, channels = images.shape
    h, w = height // 2, width // 2
    blocks = images.reshape(h, 2, w, 2, batch, channels).transpose(0, 2, 4, 1, 3, 5)
    blocks = jnp.pad(blocks.reshape(h, w, batch, -1), ((1, 1), (1, 1), (0, 0), (0, 0)))
    patches = [blocks[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    wide = [
        jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
        .reshape(3, 2, 3, 2, channels, -1)
        .transpose(0, 2, 1, 3, 4, 5)
        .reshape(36 * channels, -1)
        for row in (0, 1)
        for column in (0, 1)
    ]
    found = jnp.concatenate(patches, -1).reshape(h * w * batch, -1) @ jnp.concatenate(wide, -1)
    return found.reshape(h, w, batch, 2, 2, -1)


def _all(phases: Array, axes: tuple[int, int]) -> list[Array]:
    """Every phase, in row order."""
    row, column = axes
    return [
        lax.index_in_dim(lax.index_in_dim(phases, j, column, False), i, row, False)
        for i in range(phases.shape[row])
        for j in range(phases.shape[column])
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def largest(phases: Float[Array, "..."], axes: tuple[int, int]) -> Float[Array, "..."]:
    """The largest of the phases along `axes`; of several, the first takes the gradient."""
    return functools.reduce(jnp.maximum, _all(phases, axes))


def _largest_forward(phases: Array, axes: tuple[int, int]) -> Any:
    found = largest(phases, axes)
    return found, (phases, found)


def _largest_backward(
    axes: tuple[int, int], saved: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
    phases, found = saved
    row, column = axes
    parts = to_the_first(_all(phases, axes), found, gradient)
    size = phases.shape[column]
    rows = [jnp.stack(parts[i : i + size], column - 1) for i in range(0, len(parts), size)]
    return (jnp.stack(rows, row),)


largest.defvjp(_largest_forward, _largest_backward)


def to_the_first(values: Sequence[Array], found: Array, gradient: Array) -> list[Array]:
    """The gradient of each of `values`: the first that is `found`, the largest, takes it."""
    taken = jnp.zeros(found.shape, bool)
    parts = []
    for value in values:
        first = (value == found) & ~taken
        taken |= first
        parts.append(jnp.where(first, gradient, 0))
    return parts
