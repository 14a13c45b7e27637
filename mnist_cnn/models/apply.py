"""How any Flax module is applied to images: scaled pixels in, float32 logits out."""

import functools
import inspect
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from mnist_cnn.models.kernels.rewrite import fast_on_cpu

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ... if the module has any}


def make_variables(params: Any, batch_stats: Any) -> Variables:
    """The collections that a module is applied to; without batch_stats if there are none."""
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def train_kwargs(model: nn.Module, train: bool) -> dict[str, Any]:
    """{"train": train} if the module's `__call__` has that argument, else {}."""
    return {"train": train} if "train" in inspect.signature(model.__call__).parameters else {}


def scale(images: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Scales pixels from 0..255 to 0..1."""
    return images.astype(jnp.float32) / 255


def forward(
    model: nn.Module, variables: Variables, images: UInt8[Array, "B 28 28 1"]
) -> Float[Array, "B 10"]:
    """Logits at evaluation; always float32, so that the loss is, whatever the model computes in."""
    apply = functools.partial(model.apply, **train_kwargs(model, train=False))
    return fast_on_cpu(apply, variables, scale(images)).astype(jnp.float32)
