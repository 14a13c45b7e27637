"""The tutorial's network."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mnist_cnn.models.layers import ConvMaxPool, Dense


class CNN(nn.Module):
    """Two 5x5 convolutions with max-pooling, a hidden layer of 1,024: 3,274,634 parameters.

    The Keras tutorial's network ("Keras: 2.3 implementing a convolutional neural network"), with
    logits for its output: the softmax is part of the loss.

    Attributes:
      dtype: what all layers but the last compute in; parameters and logits are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B 28 28 1"]) -> Float[Array, "B 10"]:
        """Logits of images whose values are scaled to 0..1."""
        # ReLU and bias may follow the max-pool: the largest stays the largest.
        x = nn.relu(ConvMaxPool(32, (5, 5), dtype=self.dtype, name="conv1")(images))
        x = nn.relu(ConvMaxPool(64, (5, 5), dtype=self.dtype, name="conv2")(x))  # [B, 7, 7, 64]
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(Dense(1024, dtype=self.dtype, name="dense1")(x))
        return Dense(10, name="dense2")(x)  # float32, whatever the dtype
