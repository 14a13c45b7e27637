"""The logits and losses of a whole split, every image once."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from mnist_cnn.models.apply import Variables, forward
from mnist_cnn.training.components import Loss, apply_loss


@functools.partial(jax.jit, static_argnums=(0, 3))
def compute_logits(
    model: nn.Module, variables: Variables, images: UInt8[Array, "N H W C"], batch_size: int
) -> Float[Array, "N K"]:
    """The logits of all images, computed `batch_size` at a time in one program."""
    count = len(images)
    batch_size = max(1, min(batch_size, count))
    padded = jnp.pad(images, ((0, -count % batch_size), (0, 0), (0, 0), (0, 0)))
    batched = padded.reshape(-1, batch_size, *images.shape[1:])
    logits = lax.map(lambda batch: forward(model, variables, batch), batched)
    return logits.reshape(-1, logits.shape[-1])[:count]


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def score(
    model: nn.Module,
    loss: Loss,
    variables: Variables,
    images: UInt8[Array, "N H W C"],
    labels: Int[Array, "N"],
    batch_size: int,
) -> tuple[Float[Array, "N K"], Float[Array, "N"]]:
    """The logits and the loss of every image."""
    logits = compute_logits(model, variables, images, batch_size)
    return logits, apply_loss(loss, logits, labels)
