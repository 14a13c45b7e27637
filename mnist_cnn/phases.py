"""A 5 x 5 convolution as four smaller images: its even and odd rows by its even and odd columns.

These are what a 2 x 2 max-pool compares, element by element, so nobody has to put them together.
And they can be had for fewer products than the convolution takes.  What says which convolution
computes the parts is given; nothing here knows of platforms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
Conv = Callable[[Array, Array, Padding], Array]  # images, kernel, padding -> images
Phases = list[Float[Array, "B H//2 W//2 out"]]  # even rows: even, odd columns; odd rows: the same


def by_short_filters(
    images: Float[Array, "B H W in"], kernel: Float[Array, "5 5 in out"], conv: Conv
) -> Phases:
    """The phases of the "same" convolution, for 64 products where it takes 100.

    Along one axis, with x0, x1 the even and odd values, k0 the kernel's three even taps and k1 its
    two odd ones, the even and odd results are

        x0 * k0 + x1 * k1 = x1 * (k0 + k1) + (x0 - x1) * k0
        x1 * k0 + x0'* k1 = x1 * (k0 + k1) + (x0'- x1) * k1      x0' is x0 one place on

    and 3 + 3 + 2 products replace 10, along each axis (Mou & Duhamel 1991, "Short-length FIR
    filters and their use in fast nonrecursive filtering").  H and W are even.
    """
    paddings = (1, 1), (1, 1), (0, 0)
    products = [
        [
            conv(part, taps, (rows, columns))
            for part, taps, columns in zip(
                _parts(images_row, 2), _taps(kernel_row, 1), paddings, strict=True
            )
        ]
        for images_row, kernel_row, rows in zip(
            _parts(images, 1), _taps(kernel, 0), paddings, strict=True
        )
    ]
    common, even, odd = ([row[0] + row[1], row[0] + row[2]] for row in products)
    results = [a + b for other in (even, odd) for a, b in zip(common, other, strict=True)]
    seen = _sees_anything(images)
    return [
        jnp.where(seen[:, row::2, column::2], y, y - lax.stop_gradient(y))
        for y, (row, column) in zip(results, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    ]


def by_wide_filters(
    images: Float[Array, "B H W in"], kernel: Float[Array, "5 5 in out"], conv: Conv
) -> Phases:
    """The phases of the "same" convolution, as the channels of one of 3 x 3 on 2 x 2 blocks.

    That is 144 products for 100, the 44 by a kernel's zeros, but four times the channels: faster
    where there are few.  H and W are even.
    """
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, -1)
    wide = [
        jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
        .reshape(3, 2, 3, 2, channels, -1)
        .transpose(0, 2, 1, 3, 4, 5)
        .reshape(3, 3, 4 * channels, -1)
        for row in (0, 1)
        for column in (0, 1)
    ]
    return jnp.split(conv(blocks, jnp.concatenate(wide, -1), ((1, 1), (1, 1))), 4, -1)


@jax.custom_vjp
def largest(phases: Phases) -> Float[Array, "B H//2 W//2 out"]:
    """Their 2 x 2 max-pool; of several that are the largest, the first takes the gradient."""
    return functools.reduce(jnp.maximum, phases)


def _largest_forward(phases: Phases) -> Any:
    found = largest(phases)
    return found, (phases, found)


def _largest_backward(saved: tuple[Phases, Array], gradient: Array) -> tuple[Phases]:
    return (to_the_first(*saved, gradient),)


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


def _sees_anything(images: Array) -> Array:
    """Whether a result has anything but zeros under its kernel: bool [B, H, W, 1].

    If not, it is 0, and not what is left of products that cancel: with a bias of 0, as at the
    beginning, a ReLU behind it would let the gradient through by chance.
    """
    there = lax.stop_gradient(images != 0).any(-1, keepdims=True).astype(jnp.float32)
    return lax.reduce_window(there, 0.0, lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "SAME") > 0


def _halves(x: Array, axis: int) -> tuple[Array, Array]:
    """The even and the odd places."""
    even, odd = (lax.slice_in_dim(x, first, None, 2, axis) for first in (0, 1))
    return even, odd


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = before, after
    return jnp.pad(x, widths)


def _parts(images: Array, axis: int) -> list[Array]:
    """x1, x0 - x1, x0' - x1."""
    even, odd = _halves(images, axis)
    return [odd, even - odd, _pad(even, axis, 0, 1) - _pad(odd, axis, 1, 0)]


def _taps(kernel: Array, axis: int) -> list[Array]:
    """k0 + k1, k0, k1."""
    even, odd = _halves(kernel, axis)
    return [even + _pad(odd, axis, 0, 1), even, odd]
