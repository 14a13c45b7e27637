"""Flax' layers with Keras' initializers: Glorot-uniform kernels and zero biases.

Their values and gradients are those of `flax.linen`, up to rounding. On a CPU they are computed by
the faster operations in `models/kernels`, on other platforms by XLA's own.
"""

import functools
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mnist_cnn.models.kernels.conv import LAYOUT, conv_general_dilated
from mnist_cnn.models.kernels.conv_max_pool import conv_max_pool
from mnist_cnn.models.kernels.dense import dot_general
from mnist_cnn.models.kernels.pool import max_pool as max_pool

DATA_AXIS = "data"  # the mesh axis of the devices that share a batch

_glorot_uniform = nn.initializers.glorot_uniform()

Conv = functools.partial(
    nn.Conv, kernel_init=_glorot_uniform, conv_general_dilated=conv_general_dilated
)
Dense = functools.partial(nn.Dense, kernel_init=_glorot_uniform, dot_general=dot_general)


class ConvMaxPool(nn.Module):
    """A convolution of stride 1, a 2 x 2 max-pool, and the bias, which pooling does not change."""

    features: int  # the number of filters
    kernel_size: tuple[int, int]  # height and width of a filter
    padding: str | Sequence[tuple[int, int]] = "SAME"  # or "VALID", ((top, bottom), (left, right))
    dtype: DTypeLike | None = None  # of the computation; None: that of the images and parameters
    kernel_init: nn.initializers.Initializer = _glorot_uniform

    @nn.compact
    def __call__(self, images: Float[Array, "B H W in"]) -> Float[Array, "B rows columns out"]:
        shape = (*self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        images, kernel, bias = promote_dtype(images, kernel, bias, dtype=self.dtype)
        # Without the reshape the bias' gradient would be rounded otherwise in bfloat16.
        return conv_max_pool(images, kernel, self.padding) + bias.reshape(1, 1, 1, -1)

    def kernel_positions(self, images: Float[Array, "B H W in"]) -> tuple[int, ...]:
        """The positions [B, Ho, Wo] at which the kernel is applied, before the pooling."""
        shape = (*self.kernel_size, images.shape[-1], self.features)
        convolved = lax.conv_general_shape_tuple(images.shape, shape, (1, 1), self.padding, LAYOUT)
        return tuple(map(int, convolved[:-1]))


def BatchNorm(train: bool, **options: Any) -> nn.BatchNorm:
    """Batch normalization (Ioffe & Szegedy 2015) over the whole batch on all devices that share it.

    If not `train`, it uses the running averages. `options` are those of `flax.linen.BatchNorm`.
    """
    return nn.BatchNorm(use_running_average=not train, axis_name=data_axis(), **options)


def data_axis() -> str | None:
    """The mesh axis of the devices that share a batch; None outside of a program over a mesh."""
    try:
        lax.axis_size(DATA_AXIS)
    except NameError:
        return None
    return DATA_AXIS
