"""Convolutions whose gradients are fast on a CPU.

XLA's CPU gradients of a convolution are up to 30 times slower inside a loop than outside
(jax-ml/jax issue 12868). Other platforms use XLA's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
PaddingLike = str | Sequence[tuple[int, int]]  # "SAME", "VALID" or as Padding

LAYOUT = ("NHWC", "HWIO", "NHWC")

# The options of a plain convolution; all others are None.
_PLAIN: dict[str, Any] = {
    "dimension_numbers": lax.conv_dimension_numbers((1,) * 4, (1,) * 4, LAYOUT),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "feature_group_count": 1,
    "batch_group_count": 1,
}


def conv_general_dilated(
    images: Float[Array, "B H W in"],
    kernel: Float[Array, "kh kw group_in out"],
    window_strides: Sequence[int],
    padding: PaddingLike,
    **options: Any,
) -> Float[Array, "B rows columns out"]:
    """`jax.lax.conv_general_dilated`, as `flax.linen.Conv` takes it.

    It is faster on a CPU if strides and `options` are the defaults.
    """
    options = {"dimension_numbers": _PLAIN["dimension_numbers"]} | options
    special = any(value != _PLAIN.get(option) for option, value in options.items())
    if special or tuple(window_strides) != (1, 1):
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)
    return conv(images, kernel, explicit_padding(images, kernel, padding))


def explicit_padding(images: Array, kernel: Array, padding: PaddingLike) -> Padding:
    """The padding in numbers of a convolution of stride 1."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (1, 1), padding)
    rows, columns = ((int(low), int(high)) for low, high in padding)
    return rows, columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(
    images: Float[Array, "B H W in"], kernel: Float[Array, "kh kw in out"], padding: Padding
) -> Float[Array, "B rows columns out"]:
    """The convolution of stride 1."""
    fast = functools.partial(_cpu_inference, padding=padding)
    default = functools.partial(_lax_conv, padding=padding)
    return lax.platform_dependent(images, kernel, cpu=fast, default=default)


def _lax_conv(images: Array, kernel: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=LAYOUT)


def _cpu_inference(images: Array, kernel: Array, padding: Padding) -> Array:
    """The convolution in a program that is compiled without `compiler_options`.

    There XLA gives a convolution to Eigen instead of YNNPACK only if its result has more rows than
    the images, so this adds rows of zeros and drops their results. YNNPACK is faster if these are
    more than a third, or if the kernel is small.
    """
    (top, bottom), _ = padding
    rows = images.shape[1] + top + bottom - kernel.shape[0] + 1
    more = images.shape[1] + 1 - rows
    if not 0 < more <= rows / 3 or kernel.shape[1] * kernel.shape[2] < 32:
        return _lax_conv(images, kernel, padding)
    return _lax_conv(images, kernel, ((top, bottom + more), padding[1]))[:, :rows]


def _conv_forward(images: Array, kernel: Array, padding: Padding) -> Any:
    return _lax_conv(images, kernel, padding), (images, kernel)


def _conv_backward(padding: Padding, saved: tuple[Array, Array], gradient: Array) -> Any:
    def default(images: Array, kernel: Array, gradient: Array) -> Any:
        return jax.vjp(functools.partial(_lax_conv, padding=padding), images, kernel)[1](gradient)

    fast = functools.partial(_cpu_gradients, padding=padding)
    return lax.platform_dependent(*saved, gradient, cpu=fast, default=default)


conv.defvjp(_conv_forward, _conv_backward)


def _cpu_gradients(images: Array, kernel: Array, gradient: Array, padding: Padding) -> Any:
    """Both gradients as NHWC convolutions, for which XLA has fast CPU kernels."""
    height, width = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    full = (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)
    images_gradient = _lax_conv(gradient, flipped, full)
    # The kernel's gradient is a sum over the batch, which takes the place of the input channels.
    images, gradient = images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    return images_gradient, _lax_conv(images, gradient, padding).transpose(1, 2, 0, 3)
