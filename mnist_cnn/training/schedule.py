"""The learning-rate schedule."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from mnist_cnn.training.components import Hyperparameters


def scheduled(hyper: Hyperparameters, step: Int[Array, ""]) -> Hyperparameters:
    """`hyper` with the learning rate of the step that follows `step` others.

    It rises linearly over `warmup_steps` (Goyal et al. 2017), the last of which has the full
    rate, and falls by half a cosine to 0 after `total_steps` (Loshchilov & Hutter 2016).
    """
    if "total_steps" not in hyper:
        return hyper
    warmup, total = jnp.asarray(hyper["warmup_steps"]), jnp.asarray(hyper["total_steps"])
    rise = (step + 1) / jnp.maximum(warmup, 1)
    fall = (1 + jnp.cos(jnp.pi * (step - warmup) / jnp.maximum(total - warmup, 1))) / 2
    factor = jnp.where(step < warmup, rise, fall)
    return hyper | {"learning_rate": hyper["learning_rate"] * factor}
