"""Max-pooling whose gradient is fast on a CPU and a GPU.

XLA's gradient of a windowed maximum is slow in a loop on a CPU. On a GPU it scatters, and sorts
for that if it must be deterministic. This one does neither.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    images: Float[Array, "B H W C"], window: tuple[int, int]
) -> Float[Array, "B rows columns C"]:
    """The maximum of each window of h x w pixels; rows and columns that fill no window are dropped.

    Values and gradients are those of `flax.linen.max_pool(images, window, strides=window)`: if
    several values of a window are the largest, the first takes the gradient.
    """
    native = functools.partial(nn.max_pool, window_shape=window, strides=window)
    fast = functools.partial(_max_pool, window)
    return lax.platform_dependent(images, cpu=fast, cuda=fast, rocm=fast, default=native)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(window: tuple[int, int], images: Array) -> Array:
    return functools.reduce(jnp.maximum, _pixels(images, window))


def _pixels(images: Array, window: tuple[int, int]) -> list[Array]:
    """Each pixel of the windows, in row order: h * w arrays [B, H//h, W//w, C]."""
    h, w = window
    batch, height, width, channels = images.shape
    images = images[:, : height // h * h, : width // w * w]
    split = images.reshape(batch, height // h, h, width // w, w, channels)
    return [split[:, :, i, :, j] for i in range(h) for j in range(w)]


def _max_pool_forward(window: tuple[int, int], images: Array) -> Any:
    largest = _max_pool(window, images)
    return largest, (images, largest)


def _max_pool_backward(
    window: tuple[int, int], saved: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
    images, largest = saved
    h, w = window
    batch, height, width, channels = images.shape
    pixels = route_to_first_max(_pixels(images, window), largest, gradient)
    split = jnp.stack(pixels, axis=-2).reshape(batch, height // h, width // w, h, w, channels)
    whole = split.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // h * h, width // w * w, channels
    )
    return (jnp.pad(whole, ((0, 0), (0, height % h), (0, width % w), (0, 0))),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def window_max(windows: Float[Array, "..."], axes: tuple[int, int]) -> Float[Array, "..."]:
    """The maximum over the rows and columns of windows; the first of equal values has the gradient.

    Args:
      windows: an array that has the rows and the columns of a window as two of its axes.
      axes: these axes in ascending order; the result lacks them.
    """
    return functools.reduce(jnp.maximum, _values(windows, axes))


def _values(windows: Array, axes: tuple[int, int]) -> list[Array]:
    """Each value of the windows, in row order."""
    row, column = axes
    return [
        lax.index_in_dim(lax.index_in_dim(windows, j, column, False), i, row, False)
        for i in range(windows.shape[row])
        for j in range(windows.shape[column])
    ]


def _window_max_forward(windows: Array, axes: tuple[int, int]) -> Any:
    largest = window_max(windows, axes)
    return largest, (windows, largest)


def _window_max_backward(
    axes: tuple[int, int], saved: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
    windows, largest = saved
    row, column = axes
    gradients = route_to_first_max(_values(windows, axes), largest, gradient)
    size = windows.shape[column]
    rows = [jnp.stack(gradients[i : i + size], column - 1) for i in range(0, len(gradients), size)]
    return (jnp.stack(rows, row),)


window_max.defvjp(_window_max_forward, _window_max_backward)


@jax.custom_vjp
def first_max(values: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    """The largest of several arrays; the first of equal values has the gradient."""
    return functools.reduce(jnp.maximum, values)


def _first_max_forward(values: Sequence[Array]) -> Any:
    largest = first_max(values)
    return largest, (values, largest)


def _first_max_backward(saved: Any, gradient: Array) -> Any:
    values, largest = saved
    return (route_to_first_max(values, largest, gradient),)


first_max.defvjp(_first_max_forward, _first_max_backward)


def route_to_first_max(values: Sequence[Array], largest: Array, gradient: Array) -> list[Array]:
    """The gradient of each of `values`: the first that equals `largest` takes all of it."""
    taken = jnp.zeros(largest.shape, bool)
    gradients = []
    for value in values:
        first = (value == largest) & ~taken
        taken |= first
        gradients.append(jnp.where(first, gradient, 0))
    return gradients
