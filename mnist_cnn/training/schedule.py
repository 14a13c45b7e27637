"""The learning-rate schedule."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from mnist_cnn.errors import ConfigError, shorten
from mnist_cnn.training.components import Hyperparameters, Schedule


def scheduled(
    hyper: Hyperparameters, step: Int[Array, ""], own: Schedule | None = None
) -> Hyperparameters:
    """`hyper` with the learning rate of the step that follows `step` others.

    An experiment's own schedule gives a factor of it. That of "cosine" rises linearly over
    `warmup_steps` (Goyal et al. 2017), the last of which has the full rate, and falls by half a
    cosine to 0 after `total_steps` (Loshchilov & Hutter 2016).
    """
    if own is not None:
        factor = own(step)
        if jnp.shape(factor) != ():
            raise ConfigError(
                f"config.schedule: returned {shorten(factor)} for a step, expected a number"
            )
        return hyper | {"learning_rate": jnp.asarray(hyper["learning_rate"] * factor, jnp.float32)}
    if "total_steps" not in hyper:
        return hyper
    warmup, total = jnp.asarray(hyper["warmup_steps"]), jnp.asarray(hyper["total_steps"])
    rise = (step + 1) / jnp.maximum(warmup, 1)
    fall = (1 + jnp.cos(jnp.pi * (step - warmup) / jnp.maximum(total - warmup, 1))) / 2
    factor = jnp.where(step < warmup, rise, fall)
    return hyper | {"learning_rate": hyper["learning_rate"] * factor}
