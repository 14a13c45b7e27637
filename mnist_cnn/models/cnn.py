"""The tutorial's network."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mnist_cnn.models.layers import ConvMaxPool, Dense


class CNN(nn.Module):
    """Two 5 x 5 convolutions with max-pooling and two dense layers.

    For MNIST it has 3,274,634 parameters.

    The network of the Keras tutorial ("Keras: 2.3 implementing a convolutional neural network"),
    but it returns logits: the softmax is part of the loss. Images of any size and channels.
    """

    num_classes: int = 10
    dtype: DTypeLike = jnp.float32  # of all layers but the last; parameters and logits are float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Computes the logits of images whose pixels are scaled to 0..1."""
        # The tutorial applies ReLU before the max-pool, which gives the same values.
        x = nn.relu(ConvMaxPool(32, (5, 5), dtype=self.dtype, name="conv1")(images))
        x = nn.relu(
            ConvMaxPool(64, (5, 5), dtype=self.dtype, name="conv2")(x)
        )  # MNIST: [B, 7, 7, 64]
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(Dense(1024, dtype=self.dtype, name="dense1")(x))
        return Dense(self.num_classes, name="dense2")(x)
