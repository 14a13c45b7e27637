"""Convolutions whose gradients are fast on a CPU.

XLA's CPU gradients of a convolution are up to 30 times slower inside a loop than outside
(jax-ml/jax issue 12868). Other platforms use XLA's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnist_cnn.models.kernels import fourier, polyphase

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
PaddingLike = str | Sequence[tuple[int, int]]  # "SAME", "VALID" or as Padding

LAYOUT = ("NHWC", "HWIO", "NHWC")
# By the kernel's size: the number of input channels from which the Fourier transform is faster, the
# largest height and width for it, and the number of channels below which polyphase components are.
FOURIER_CHANNELS = {3: 32, 5: 8}
_FOURIER_SIZE = {3: 16, 5: 32}
_POLYPHASE_CHANNELS = {3: 4, 5: 8}
_FEW_INPUTS = 32  # values that a filter sees, up to which patches and one product are faster


class Window(NamedTuple):
    """How a kernel moves over images: the options of `lax.conv_general_dilated`."""

    strides: tuple[int, int]
    padding: Padding
    lhs_dilation: tuple[int, int] = (1, 1)  # of the images: above 1 in a transposed convolution
    rhs_dilation: tuple[int, int] = (1, 1)  # of the kernel


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


def conv(
    images: Float[Array, "B H W in"], kernel: Float[Array, "kh kw in out"], padding: Padding
) -> Float[Array, "B rows columns out"]:
    """The convolution of stride 1."""
    return _conv(images, kernel, Window((1, 1), padding))


def cpu_conv(
    images: Float[Array, "B H W in"], kernel: Float[Array, "kh kw group_in out"], window: Window
) -> Float[Array, "B rows columns out"]:
    """Any convolution in the form that is fastest on a CPU; groups follow from the shapes."""
    groups, depth = images.shape[-1] // kernel.shape[2], kernel.shape[2]
    plain = groups == 1 and window == Window((1, 1), window.padding)
    if plain and takes_fewer_products(images, kernel, window.padding):
        return _with_fewer_products(images, kernel)
    if groups > 1 and depth > 1:
        parts = zip(jnp.split(images, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([cpu_conv(*part, window) for part in parts], -1)
    if window.lhs_dilation == (1, 1):
        if groups > 1:
            return _depthwise(images, kernel, window)
        if kernel[..., 0].size <= _FEW_INPUTS or kernel.shape[:2] == (1, 1):
            patches = jnp.concatenate(shifted(images, kernel.shape[:2], window, 0), -1)
            return patches @ kernel.reshape(-1, kernel.shape[-1])
    return _conv(images, kernel, window)


def takes_fewer_products(images: Array, kernel: Array, padding: Padding) -> bool:
    """Whether a convolution of stride 1 is one for which `polyphase` or `fourier` is faster."""
    _, height, width, channels = images.shape
    size, pad = len(kernel), len(kernel) // 2
    return (
        size in FOURIER_CHANNELS
        and (kernel.shape[1], padding) == (size, ((pad, pad), (pad, pad)))
        and (height % 2, width % 2) == (0, 0)
        and images.dtype in (jnp.float32, jnp.bfloat16)
        and (
            channels < _POLYPHASE_CHANNELS[size]
            or (channels >= FOURIER_CHANNELS[size] and max(height, width) <= _FOURIER_SIZE[size])
        )
    )


def _with_fewer_products(images: Array, kernel: Array) -> Array:
    moved = images.transpose(1, 2, 0, 3)  # as both forms take them
    if images.shape[-1] >= FOURIER_CHANNELS[len(kernel)]:
        return fourier.convolve(moved, kernel).transpose(2, 0, 1, 3)
    blocks = polyphase.space_to_depth_conv(moved, kernel)
    return blocks.transpose(2, 0, 3, 1, 4, 5).reshape(*images.shape[:3], -1)


def _depthwise(images: Array, kernel: Array, window: Window) -> Array:
    """Each filter sees one channel: the shifted images times the kernel's values, added up."""
    repeated = jnp.repeat(images, kernel.shape[-1] // images.shape[-1], -1)
    values = kernel.reshape(-1, kernel.shape[-1])
    images_at = shifted(repeated, kernel.shape[:2], window, 0)
    products = [x * value for x, value in zip(images_at, values, strict=True)]
    return sum(products[1:], start=products[0])


def shifted(
    images: Float[Array, "B H W C"], size: tuple[int, ...], window: Window, fill: float
) -> list[Float[Array, "B rows columns C"]]:
    """For each position in a kernel of this size, in row order, the pixels that it meets."""
    (sh, sw), padding, _, (dh, dw) = window
    zero = jnp.asarray(fill, images.dtype)
    x = lax.pad(images, zero, ((0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)))
    height, width = (
        (length - (count - 1) * dilation - 1) // stride + 1
        for length, count, dilation, stride in zip(
            x.shape[1:3], size, (dh, dw), (sh, sw), strict=True
        )
    )
    # Strides as an axis, since the gradient of a slice with strides is slower.
    more = -x.shape[1] % sh, -x.shape[2] % sw
    x = lax.pad(x, zero, ((0, 0, 0), (0, more[0], 0), (0, more[1], 0), (0, 0, 0)))
    x = x.reshape(x.shape[0], x.shape[1] // sh, sh, x.shape[2] // sw, sw, -1)
    return [
        x[:, i // sh : i // sh + height, i % sh, j // sw : j // sw + width, j % sw]
        for i in range(0, size[0] * dh, dh)
        for j in range(0, size[1] * dw, dw)
    ]


def in_float32(form: Callable[..., Any]) -> Callable[..., Any]:
    """A form for a CPU that computes bfloat16 operands in float32 and rounds once, at its end.

    A CPU moves and rounds bfloat16 more slowly than it computes in float32.
    """

    def wide(*operands: Array) -> Any:
        dtype = operands[0].dtype
        if dtype != jnp.bfloat16:
            return form(*operands)
        results = form(*(x.astype(jnp.float32) for x in operands))
        return jax.tree.map(lambda x: x.astype(dtype), results)

    return wide


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(images: Array, kernel: Array, window: Window) -> Array:
    fast = in_float32(functools.partial(_cpu_inference, window=window))
    default = functools.partial(_lax_conv, window=window)
    return lax.platform_dependent(images, kernel, cpu=fast, default=default)


def _lax_conv(images: Array, kernel: Array, window: Window) -> Array:
    return lax.conv_general_dilated(images, kernel, *window, dimension_numbers=LAYOUT)


def _cpu_inference(images: Array, kernel: Array, window: Window) -> Array:
    """The convolution in a program that is compiled without `compiler_options`.

    There XLA gives a convolution to Eigen instead of YNNPACK only if its result has more rows than
    the images, so this adds rows of zeros and drops their results. YNNPACK is faster if these are
    more than a third, or if the kernel is small.
    """
    (top, bottom), columns = window.padding
    rows = images.shape[1] + top + bottom - kernel.shape[0] + 1
    more = images.shape[1] + 1 - rows
    if (
        window != Window((1, 1), window.padding)
        or not 0 < more <= rows / 3
        or kernel.shape[1] * kernel.shape[2] < 32
    ):
        return _lax_conv(images, kernel, window)
    window = window._replace(padding=((top, bottom + more), columns))
    return _lax_conv(images, kernel, window)[:, :rows]


def _conv_forward(images: Array, kernel: Array, window: Window) -> Any:
    default = functools.partial(_lax_conv, window=window)
    if images.dtype != jnp.bfloat16:
        return default(images, kernel), (images, kernel)
    fast = in_float32(default)
    result = lax.platform_dependent(images, kernel, cpu=fast, default=default)
    return result, (images, kernel)


def _conv_backward(window: Window, saved: tuple[Array, Array], gradient: Array) -> Any:
    def default(images: Array, kernel: Array, gradient: Array) -> Any:
        return jax.vjp(functools.partial(_lax_conv, window=window), images, kernel)[1](gradient)

    fast = in_float32(functools.partial(_cpu_gradients, window=window))
    return lax.platform_dependent(*saved, gradient, cpu=fast, default=default)


_conv.defvjp(_conv_forward, _conv_backward)


def _cpu_gradients(images: Array, kernel: Array, gradient: Array, window: Window) -> Any:
    """Both gradients as NHWC convolutions, for which XLA has fast CPU kernels."""
    strides, padding, lhs_dilation, rhs_dilation = window
    sizes, kernel_sizes, results = (
        [(length - 1) * dilation + 1 for length, dilation in zip(lengths, dilations, strict=True)]
        for lengths, dilations in (
            (images.shape[1:3], lhs_dilation),
            (kernel.shape[:2], rhs_dilation),
            (gradient.shape[1:3], strides),
        )
    )  # with the gaps of their dilation
    of_images, of_kernel = [], []
    for (low, _), size, kernel_size, result in zip(
        padding, sizes, kernel_sizes, results, strict=True
    ):
        before = kernel_size - 1 - low
        of_images.append((before, size + kernel_size - 1 - result - before))
        of_kernel.append((low, result - size + before))
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    full = Window(lhs_dilation, (of_images[0], of_images[1]), strides, rhs_dilation)
    images_gradient = _lax_conv(gradient, flipped, full)
    # The kernel's gradient is a sum over the batch, which takes the place of the input channels.
    images, gradient = images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    moved = Window(rhs_dilation, (of_kernel[0], of_kernel[1]), lhs_dilation, strides)
    return images_gradient, _lax_conv(images, gradient, moved).transpose(1, 2, 0, 3)
