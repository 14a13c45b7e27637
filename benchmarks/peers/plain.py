"""Networks as a user of Flax would write them, with nothing of this package."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Pooled(nn.Module):
    """Two convolutions with max-pooling and two dense layers, as in the tutorial."""

    size: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # type: ignore[no-untyped-def]
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (self.size, self.size), dtype=self.dtype)(x))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(10)(x)


class Mobile(nn.Module):
    """Strides, a depthwise convolution, batch normalization and average pooling."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):  # type: ignore[no-untyped-def]
        def layer(x, features, size, **options):  # type: ignore[no-untyped-def]
            x = nn.Conv(features, (size, size), use_bias=False, dtype=self.dtype, **options)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))

        x = layer(x, 32, 3, strides=2)
        x = layer(x, 32, 3, feature_group_count=32)
        x = layer(x, 64, 1)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = layer(x, 64, 3, strides=2)
        return nn.Dense(10)(x.reshape((x.shape[0], -1)))


class Accurate(nn.Module):
    """The network of experiments/accuracy.py in training."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):  # type: ignore[no-untyped-def]
        def layer(x, features, size, padding="SAME"):  # type: ignore[no-untyped-def]
            x = nn.Conv(features, (size, size), padding=padding, dtype=self.dtype)(x)
            return nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(nn.relu(x))

        x = nn.max_pool(layer(x, 16, 5), (2, 2), (2, 2))
        x = layer(x, 48, 3)
        x = nn.max_pool(layer(x, 48, 3), (2, 2), (2, 2))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = layer(layer(x, 96, 3), 96, 3, "VALID")
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(10)(x.reshape((x.shape[0], -1)))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "tutorial": functools.partial(Pooled, 5, 1024),
    "small": functools.partial(Pooled, 3, 128),
    "mobile": Mobile,
    "accurate": Accurate,
}
