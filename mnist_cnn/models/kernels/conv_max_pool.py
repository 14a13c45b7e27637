"""A convolution together with the 2 x 2 max-pool that follows it."""

from jax import lax
from jaxtyping import Array, Float

from mnist_cnn.models.kernels import fourier, polyphase
from mnist_cnn.models.kernels.conv import (
    FOURIER_CHANNELS,
    PaddingLike,
    conv,
    explicit_padding,
    in_float32,
    takes_fewer_products,
)
from mnist_cnn.models.kernels.pool import max_pool, window_max


def conv_max_pool(
    images: Float[Array, "B H W in"], kernel: Float[Array, "kh kw in out"], padding: PaddingLike
) -> Float[Array, "B rows columns out"]:
    """`max_pool(conv(images, kernel, padding), (2, 2))`.

    On a CPU, "same" 5 x 5 convolutions of images of even size take fewer multiplications: with few
    channels as one wide matrix product, else by Fourier transforms, both in float32, whose result
    is rounded to the images' dtype. Their rounding errors
    differ, by less than 1e-6 of the largest value. The transform can therefore break ties: of
    values that should be equal, another than the first may take the gradient. The result is
    exactly 0 where the kernel sees only zeros.
    """
    padding = explicit_padding(images, kernel, padding)

    def reference(images: Array, kernel: Array) -> Array:
        return max_pool(conv(images, kernel, padding), (2, 2))

    if len(kernel) != 5 or not takes_fewer_products(images, kernel, padding):
        return reference(images, kernel)
    return lax.platform_dependent(images, kernel, cpu=in_float32(_fast), default=reference)


def _fast(images: Array, kernel: Array) -> Array:
    # With the batch behind rows and columns, these can be split and merged without a copy.
    images = images.transpose(1, 2, 0, 3)
    if images.shape[-1] < FOURIER_CHANNELS[5]:
        pooled = window_max(polyphase.space_to_depth_conv(images, kernel), (3, 4))
    else:
        convolved = fourier.convolve(images, kernel)
        height, width, *rest = convolved.shape
        pooled = window_max(convolved.reshape(height // 2, 2, width // 2, 2, *rest), (1, 3))
    return pooled.transpose(2, 0, 1, 3)
