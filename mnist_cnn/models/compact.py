"""A network of 0.7 MB for handwriting: small enough to come with the package."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mnist_cnn.models import layers
from mnist_cnn.models.warp import matrix, warp


class Compact(nn.Module):
    """Five convolutions and a dense layer; for MNIST's images and ten classes 177,386 parameters.

    Few filters where the image is large, batch normalization after the ReLU, and dropout, as in
    Deotte's network ("25 Million Images! [0.99757] MNIST").
    """

    num_classes: int = 10
    dtype: DTypeLike = jnp.float32  # of all layers but the last; parameters and logits are float32

    def __call__(self, images: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B K"]:
        """Computes the logits of images whose pixels are scaled to 0..1."""
        return self.one_view(images, train)

    @nn.compact
    def one_view(self, images: Float[Array, "B H W C"], train: bool) -> Float[Array, "B K"]:

        def conv(x: Array, features: int, size: int, padding: str = "SAME") -> Array:
            x = layers.Conv(features, (size, size), padding=padding, dtype=self.dtype)(x)
            return layers.BatchNorm(train, momentum=0.99, epsilon=1e-3)(nn.relu(x))

        def dropout(x: Array) -> Array:
            return nn.Dropout(0.2, deterministic=not train)(x)

        x = layers.max_pool(conv(images, 16, 5), (2, 2))
        x = conv(x, 48, 3)
        x = dropout(layers.max_pool(conv(x, 48, 3), (2, 2)))
        x = conv(x, 96, 3)
        x = dropout(conv(x, 96, 3, "VALID"))
        return layers.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class CompactViews(Compact):
    """`Compact`, trained in the same way, which looks at each image three times when it answers.

    The answer is the mean of the probabilities of the image, and of it rotated by 6 degrees both
    ways. "None of the classes" is one of them, with a logit of 0 (`cross_entropy_or_none`).
    """

    def __call__(self, images: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B K"]:
        """Computes the logits of images whose pixels are scaled to 0..1."""
        if train:
            return self.one_view(images, train)
        count = len(images)
        one, two = jnp.zeros(count), jnp.zeros((count, 2))
        rotated = [warp(images, matrix(one + degrees, two, one), two) for degrees in (6.0, -6.0)]
        logits = self.one_view(jnp.concatenate([images, *rotated]), train)
        log_p = jax.nn.log_softmax(jnp.pad(logits, ((0, 0), (0, 1))))
        mean = jax.nn.logsumexp(log_p.reshape(3, count, -1), axis=0)
        return mean[:, :-1] - mean[:, -1:]
