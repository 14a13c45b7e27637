"""Convolution and max-pooling that are fast on every backend, under the names everyone knows.

On GPU and TPU they are XLA's own.  On a CPU, XLA's convolution gradients inside a loop are up to
30 times slower than at top level (jax-ml/jax issue 12868), and so is the gradient of a windowed
maximum; there they are said in forms that stay fast.  Which one runs is chosen inside the program
(`jax.lax.platform_dependent`), so a program exported for another platform is right there too.

A wide convolution becomes one matrix product: each pixel with its neighbours in the row
([B, H, W, kw * in]) times the kernel ([kw * in, kh * out]) gives what the pixel's row adds to kh
rows of the output, which are shifted and summed.  That copies the input kw times, not kh * kw
times as im2col does, and multiplies nothing by padding above and below.

Nothing here knows of a model, of training or of data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_Padding = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    images: Float[Array, "B H W in"],
    kernel: Float[Array, "kh kw in out"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "B Ho Wo out"]:
    """`jax.lax.conv_general_dilated`; with strides of 1 and nothing else special, fast on a CPU.

    `flax.linen.Conv` takes it as its `conv_general_dilated`.
    """
    trivial = {
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "feature_group_count": 1,
        "precision": None,
        "preferred_element_type": None,
    }
    layout = lax.conv_dimension_numbers(
        images.shape, kernel.shape, options.get("dimension_numbers", _LAYOUT)
    )
    plain = (
        images.ndim == 4
        and layout == lax.conv_dimension_numbers(images.shape, kernel.shape, _LAYOUT)
        and tuple(window_strides) == (1, 1)
        and all(
            value is None
            or (tuple(value) if isinstance(value, Sequence) else value) == trivial[key]
            for key, value in options.items()
            if key != "dimension_numbers"
        )
    )
    if plain:
        size = images.shape[1:3], kernel.shape[:2]
        pads = lax.padtype_to_pads(*size, (1, 1), padding) if isinstance(padding, str) else padding
        (top, bottom), (left, right) = ((int(low), int(high)) for low, high in pads)
        if all(0 <= p < kernel.shape[0] for p in (top, bottom)) and all(
            0 <= p < kernel.shape[1] for p in (left, right)
        ):
            return _conv(images, kernel, ((top, bottom), (left, right)))
    return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)


def _native(images: Array, kernel: Array, padding: _Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(images: Array, kernel: Array, padding: _Padding) -> Array:
    native = functools.partial(_native, padding=padding)
    fast = functools.partial(_product, padding=padding) if _is_wide(kernel) else native
    return lax.platform_dependent(images, kernel, cpu=fast, default=native)


def _conv_forward(images: Array, kernel: Array, padding: _Padding) -> Any:
    return _conv(images, kernel, padding), (images, kernel)


def _conv_backward(padding: _Padding, saved: tuple[Array, Array], gradient: Array) -> Any:
    native = functools.partial(_native_gradients, padding=padding)
    fast = functools.partial(_fast_gradients, padding=padding)
    return lax.platform_dependent(*saved, gradient, cpu=fast, default=native)


_conv.defvjp(_conv_forward, _conv_backward)


def _is_wide(kernel: Array) -> bool:
    """Whether the product's inner axis is long enough to be worth the copies (measured)."""
    return kernel.shape[1] * kernel.shape[2] >= 32


def _native_gradients(
    images: Array, kernel: Array, gradient: Array, padding: _Padding
) -> tuple[Array, Array]:
    _, gradients = jax.vjp(functools.partial(_native, padding=padding), images, kernel)
    return gradients(gradient)


def _fast_gradients(
    images: Array, kernel: Array, gradient: Array, padding: _Padding
) -> tuple[Array, Array]:
    """Both gradients, as products where they are wide, else as plain NHWC convolutions."""
    height, width = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    back = (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)
    images_gradient = (_product if _is_wide(flipped) else _native)(gradient, flipped, back)
    if _is_wide(kernel):
        return images_gradient, _kernel_product(images, gradient, kernel.shape, padding)
    # The batch is what a kernel's gradient sums over: it takes the place of the input channels.
    kernel_gradient = _native(images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
    return images_gradient, kernel_gradient.transpose(1, 2, 0, 3)


def _neighbours(images: Array, width: int, padding: tuple[int, int]) -> Array:
    """Each position with the `width` pixels of its window in the row: [B, H, Wo, width * C]."""
    size = images.shape[2] + sum(padding) - width + 1
    padded = jnp.pad(images, ((0, 0), (0, 0), padding, (0, 0)))
    return jnp.concatenate([padded[:, :, j : j + size] for j in range(width)], axis=-1)


def _product(images: Array, kernel: Array, padding: _Padding) -> Array:
    """The convolution as one matrix product and `height` shifted sums."""
    height, width, channels, features = kernel.shape
    rows = _neighbours(images, width, padding[1])
    matrix = kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * features)
    parts = (rows.reshape(-1, width * channels) @ matrix).reshape(*rows.shape[:3], height, features)
    parts = jnp.pad(parts, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    size = images.shape[1] + sum(padding[0]) - height + 1
    return sum((parts[:, i : i + size, :, i] for i in range(1, height)), parts[:, :size, :, 0])


def _kernel_product(
    images: Array, gradient: Array, shape: tuple[int, ...], padding: _Padding
) -> Array:
    """The kernel's gradient as one matrix product, summed over every pixel of the batch."""
    height, width, channels, features = shape
    rows = _neighbours(images, width, padding[1])
    (top, bottom), last = padding[0], height - 1
    padded = jnp.pad(gradient, ((0, 0), (last - top, last - bottom), (0, 0), (0, 0)))
    columns = jnp.concatenate(
        [padded[:, last - i : last - i + images.shape[1]] for i in range(height)], axis=-1
    )
    product = rows.reshape(-1, width * channels).T @ columns.reshape(-1, height * features)
    return product.reshape(width, channels, height, features).transpose(2, 0, 1, 3)


def max_pool(
    images: Float[Array, "B H W C"], window: tuple[int, int]
) -> Float[Array, "B H//h W//w C"]:
    """The largest value of each `window`, strides equal to it, a ragged edge dropped.

    Values and gradients are those of `flax.linen.max_pool(images, window, strides=window)`: where
    several values of a window are the largest, the first takes the gradient.
    """
    native = functools.partial(nn.max_pool, window_shape=window, strides=window)
    fast = functools.partial(_max_pool, window)
    return lax.platform_dependent(images, cpu=fast, default=native)


def _windows(images: Array, window: tuple[int, int]) -> list[Array]:
    """The values of every window, in row order: h * w arrays of [B, H//h, W//w, C]."""
    h, w = window
    batch, height, width, channels = images.shape
    images = images[:, : height // h * h, : width // w * w]
    split = images.reshape(batch, height // h, h, width // w, w, channels)
    return [split[:, :, i, :, j] for i in range(h) for j in range(w)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(window: tuple[int, int], images: Array) -> Array:
    return functools.reduce(jnp.maximum, _windows(images, window))


def _max_pool_forward(window: tuple[int, int], images: Array) -> Any:
    largest = _max_pool(window, images)
    return largest, (images, largest)


def _max_pool_backward(
    window: tuple[int, int], saved: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
    images, largest = saved
    h, w = window
    batch, height, width, channels = images.shape
    taken = jnp.zeros(largest.shape, bool)
    parts = []
    for value in _windows(images, window):
        first = (value == largest) & ~taken
        taken |= first
        parts.append(jnp.where(first, gradient, 0))
    grid = jnp.stack(parts, axis=-2).reshape(batch, height // h, width // w, h, w, channels)
    whole = grid.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // h * h, width // w * w, channels
    )
    edge = ((0, 0), (0, height % h), (0, width % w), (0, 0))
    return (jnp.pad(whole, edge),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


# Keras' defaults: Glorot-uniform kernels, zero biases.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
