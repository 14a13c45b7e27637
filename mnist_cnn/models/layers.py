"""Convolution, max-pooling and dense layers that are fast on every backend, under known names.

On GPU and TPU convolutions are XLA's own.  On a CPU, XLA's convolution gradients inside a loop are
up to 30 times slower than at top level (jax-ml/jax issue 12868), and so is the gradient of a
windowed maximum; there they, and a dense layer's gradients, are said in forms that stay fast.  The
maximum's XLA scatters on a GPU, and sorts for it where it must be deterministic; ours needs
neither.  Which form runs is chosen inside the program (`jax.lax.platform_dependent`), so one
exported for another platform is right.

Nothing here knows of a model, of training or of data; batch normalisation alone asks for the mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from mnist_cnn.models.kernels import fourier, polyphase

DATA_AXIS = "data"  # the mesh axis of the devices that share a batch
Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


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
    pads = _plain(images, kernel, window_strides, padding, options)
    if pads is None:
        options = {"dimension_numbers": _LAYOUT} | options
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)
    return _conv(images, kernel, pads)


def _plain(
    images: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    options: Mapping[str, Any],
) -> Padding | None:
    """The padding in numbers of a convolution that has nothing else special; else None."""
    trivial = {
        "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1,
        "precision": None, "preferred_element_type": None, "batch_group_count": 1,
    }  # fmt: skip
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
    if not plain:
        return None
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (1, 1), padding)
    rows, columns = ((int(low), int(high)) for low, high in padding)
    return rows, columns


def _native(images: Array, kernel: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


def _evaluated(images: Array, kernel: Array, padding: Padding) -> Array:
    """The convolution where it is not trained, so that `compiler_options` are not given.

    XLA leaves to Eigen what has more rows than its images: here so many are computed in vain.
    Where that is more than a third, or the kernel has few values, YNNPACK is faster.
    """
    (top, bottom), _ = padding
    rows = images.shape[1] + top + bottom - kernel.shape[0] + 1
    more = images.shape[1] + 1 - rows
    if not 0 < more <= rows / 3 or kernel.shape[1] * kernel.shape[2] < 32:
        return _native(images, kernel, padding)
    return _native(images, kernel, ((top, bottom + more), padding[1]))[:, :rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(images: Array, kernel: Array, padding: Padding) -> Array:
    native = functools.partial(_native, padding=padding)
    fast = functools.partial(_evaluated, padding=padding)
    return lax.platform_dependent(images, kernel, cpu=fast, default=native)


def _conv_forward(images: Array, kernel: Array, padding: Padding) -> Any:
    return _native(images, kernel, padding), (images, kernel)


def _conv_backward(padding: Padding, saved: tuple[Array, Array], gradient: Array) -> Any:
    native = functools.partial(_native_gradients, padding=padding)
    plain = functools.partial(_plain_gradients, padding=padding)
    return lax.platform_dependent(*saved, gradient, cpu=plain, default=native)


_conv.defvjp(_conv_forward, _conv_backward)


def _native_gradients(
    images: Array, kernel: Array, gradient: Array, padding: Padding
) -> tuple[Array, Array]:
    _, gradients = jax.vjp(functools.partial(_native, padding=padding), images, kernel)
    return gradients(gradient)


def _plain_gradients(
    images: Array, kernel: Array, gradient: Array, padding: Padding
) -> tuple[Array, Array]:
    """Both gradients as plain NHWC convolutions, the form that XLA's CPU kernels are fast at."""
    height, width = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    back = (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)
    images_gradient = _native(gradient, flipped, back)
    # The batch is what a kernel's gradient sums over: it takes the place of the input channels.
    kernel_gradient = _native(images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), padding)
    return images_gradient, kernel_gradient.transpose(1, 2, 0, 3)


def max_pool(
    images: Float[Array, "B H W C"], window: tuple[int, int]
) -> Float[Array, "B H//h W//w C"]:
    """The largest value of each `window`, strides equal to it, a ragged edge dropped.

    Values and gradients are those of `flax.linen.max_pool(images, window, strides=window)`: where
    several values of a window are the largest, the first takes the gradient.
    """
    native = functools.partial(nn.max_pool, window_shape=window, strides=window)
    own = functools.partial(_max_pool, window)
    return lax.platform_dependent(images, cpu=own, cuda=own, rocm=own, default=native)


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
    parts = polyphase.to_the_first(_windows(images, window), largest, gradient)
    grid = jnp.stack(parts, axis=-2).reshape(batch, height // h, width // w, h, w, channels)
    whole = grid.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // h * h, width // w * w, channels
    )
    edge = ((0, 0), (0, height % h), (0, width % w), (0, 0))
    return (jnp.pad(whole, edge),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def conv_max_pool(
    images: Float[Array, "B H W in"],
    kernel: Float[Array, "kh kw in out"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "B Ho//2 Wo//2 out"]:
    """`max_pool(conv_general_dilated(...), (2, 2))`.

    On a CPU a "same" 5 x 5 convolution of float32 images of an even size is had for fewer products,
    one of few channels in its phases, another of at most 32 x 32 by its Fourier transform.  Their
    rounding differs, by under 1e-6 of the largest value.  So where the transform's values of a
    window would be equal, another than the first may take the gradient; zeros are exact where a
    kernel sees nothing else.
    """
    _, rows, columns, channels = images.shape
    pads = _plain(images, kernel, window_strides, padding, options)
    if (
        (kernel.shape[:2], pads) != ((5, 5), ((2, 2), (2, 2)))
        or rows % 2
        or columns % 2
        or images.dtype != jnp.float32
        or (channels >= _MANY and max(rows, columns) > 32)
    ):
        convolved = conv_general_dilated(images, kernel, window_strides, padding, **options)
        return max_pool(convolved, (2, 2))
    return lax.platform_dependent(images, kernel, cpu=_by_products, default=_in_turn)


_MANY = 8  # channels from which the Fourier transform is faster


def _in_turn(images: Array, kernel: Array) -> Array:
    return max_pool(_conv(images, kernel, ((2, 2), (2, 2))), (2, 2))


def _by_products(images: Array, kernel: Array) -> Array:
    # With the batch behind the columns, rows and columns can be had apart without a copy.
    images = images.transpose(1, 2, 0, 3)
    if images.shape[-1] < _MANY:
        pooled = polyphase.largest(polyphase.by_wide_filters(images, kernel), (3, 4))
    else:
        convolved = fourier.convolve(images, kernel)
        height, width, *rest = convolved.shape
        pooled = polyphase.largest(convolved.reshape(height // 2, 2, width // 2, 2, *rest), (1, 3))
    return pooled.transpose(2, 0, 1, 3)


def dot_general(
    inputs: Float[Array, "... in"], kernel: Float[Array, "in out"], dimensions: Any, **options: Any
) -> Float[Array, "... out"]:
    """`jax.lax.dot_general`; of a matrix, and with nothing special, its gradients fast on a CPU.

    `flax.linen.Dense` takes it as its `dot_general`.
    """
    special = any(value is not None for value in options.values())
    if special or inputs.ndim != 2 or dimensions != (((1,), (0,)), ((), ())):
        return lax.dot_general(inputs, kernel, dimensions, **options)
    return _product(inputs, kernel)


@jax.custom_vjp
def _product(inputs: Array, kernel: Array) -> Array:
    return inputs @ kernel


def _product_forward(inputs: Any, kernel: Any) -> Any:
    product = inputs.value @ kernel.value
    return product, (inputs.value, kernel.value if inputs.perturbed else None)


def _product_backward(saved: tuple[Array, Array | None], gradient: Array) -> Any:
    inputs, kernel = saved
    if kernel is None:  # of a first layer: nobody asks for its inputs' gradient
        return None, inputs.T @ gradient
    return lax.platform_dependent(
        inputs, kernel, gradient, cpu=_product_gradients_in_turn, default=_product_gradients
    )


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def _product_gradients(inputs: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient @ kernel.T, inputs.T @ gradient


def _product_gradients_in_turn(
    inputs: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array]:
    """Both gradients, the kernel's when the inputs' is there.

    Nothing else would keep a step from changing the kernel before the inputs' gradient has read
    it, so XLA would copy it in every step.  And the inputs' as a product that has the kernel on
    its left: on its right, transposed, it would have to be packed.
    """
    inputs_gradient = lax.optimization_barrier(kernel @ gradient.T).T
    one = inputs_gradient[0, 0]
    gradient = jnp.where(one == one, gradient, one)  # no change but where it is no number
    return inputs_gradient, inputs.T @ gradient


# Keras' defaults: Glorot-uniform kernels, zero biases.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)
ConvMaxPool = functools.partial(Conv, conv_general_dilated=conv_max_pool)  # and then the bias
Dense = functools.partial(
    nn.Dense, kernel_init=nn.initializers.glorot_uniform(), dot_general=dot_general
)


def BatchNorm(train: bool, **options: Any) -> nn.BatchNorm:
    """Batch normalisation (Ioffe & Szegedy 2015) by the whole batch, whatever devices share it.

    While not trained, by the averages of the batches before.
    """
    return nn.BatchNorm(use_running_average=not train, axis_name=_data_axis(), **options)


def _data_axis() -> str | None:
    """The mesh axis that shares a batch, inside a program that is laid over one."""
    try:
        lax.axis_size(DATA_AXIS)
    except NameError:
        return None
    return DATA_AXIS
