"""What a recipe adds to a plain training step, each part where it is asked for.

Random changes of the images, modules that behave otherwise while they are trained, label smoothing,
a schedule, averaged weights.  What is asked for, the state's hyper-parameters say.  Pure.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from mnist_cnn.training import augment, rng

if TYPE_CHECKING:
    from mnist_cnn.training import train

Anywhere = Array | np.ndarray  # on a device, or on the host and not yet anywhere else
Variables = dict[str, Any]  # what a module is applied to: params, and batch_stats where it has them
Hyperparameters = dict[str, Float[Anywhere, ""]]


def variables(params: Any, batch_stats: Any) -> Variables:
    """What a module is applied to."""
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def told(model: nn.Module, train: bool) -> dict[str, Any]:
    """The argument `train` of a module whose `__call__` has one, as is usual in Flax."""
    return {"train": train} if "train" in inspect.signature(model.__call__).parameters else {}


def training_forward(
    state: train.TrainState, params: Any, images: Float[Array, "B 28 28 1"], data_axis: str | None
) -> tuple[Float32[Array, "B 10"], Any]:
    """The logits of scaled images under `params` while they are trained, and the batch_stats then.

    A module that is told may drop units out: by a key of its own for every step, and for every
    device that shares the batch.
    """
    given, said = variables(params, state.batch_stats), told(state.model, train=True)
    if not said:
        logits: Any = state.model.apply(given, images)
        return logits.astype(jnp.float32), state.batch_stats
    key = rng.key(state.seed, "dropout", state.step)
    if data_axis is not None:
        key = jax.random.fold_in(key, lax.axis_index(data_axis))
    logits, changed = state.model.apply(
        given, images, rngs={"dropout": key}, mutable=["batch_stats"], **said
    )
    return logits.astype(jnp.float32), changed.get("batch_stats", {})


def augmented(
    state: train.TrainState, images: Float[Array, "B 28 28 1"], data_axis: str | None
) -> Float[Array, "B 28 28 1"]:
    """The images changed at random, as far as the state asks for it; of any mesh the same."""
    amounts = {key: state.hyper[key] for key in augment.AMOUNTS if key in state.hyper}
    if not amounts:
        return images
    key, own = rng.key(state.seed, "augment", state.step), len(images)
    if data_axis is None:
        return augment.warp(images, *augment.draw(key, amounts, own))
    every = augment.draw(key, amounts, own * lax.axis_size(data_axis))
    first = lax.axis_index(data_axis) * own
    return augment.warp(images, *(lax.dynamic_slice_in_dim(one, first, own) for one in every))


def scheduled(hyper: Hyperparameters, step: Int[Array, ""]) -> Hyperparameters:
    """`hyper` with the learning rate of the step after `step` others.

    It rises evenly over `warmup_steps` (Goyal et al. 2017), the last of which has the whole, and
    falls by half a cosine to 0 after `total_steps` (Loshchilov & Hutter 2016).
    """
    if "total_steps" not in hyper:
        return hyper
    warmup, total = jnp.asarray(hyper["warmup_steps"]), jnp.asarray(hyper["total_steps"])
    rise = (step + 1) / jnp.maximum(warmup, 1)
    fall = (1 + jnp.cos(jnp.pi * (step - warmup) / jnp.maximum(total - warmup, 1))) / 2
    factor = jnp.where(step < warmup, rise, fall)
    return hyper | {"learning_rate": hyper["learning_rate"] * factor}


def averaged(state: train.TrainState, params: Any, batch_stats: Any) -> Variables:
    """The average after another step; the first steps count less, or the start would stay in it.

    The decay after t steps is min(ema, (1 + t) / (10 + t)), as in TensorFlow's
    ExponentialMovingAverage with `num_updates`.
    """
    if "ema" not in state.hyper:
        return {}
    decay = jnp.minimum(state.hyper["ema"], (1 + state.step) / (10 + state.step))
    return jax.tree_util.tree_map(
        lambda old, new: decay * old + (1 - decay) * new,
        state.averaged,
        variables(params, batch_stats),
    )


def training_loss(
    state: train.TrainState, logits: Float[Array, "B 10"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """The loss, with label smoothing (Szegedy et al. 2016) where the state asks for it."""
    losses = state.loss(logits, labels)
    if "label_smoothing" not in state.hyper:
        return losses
    every = jax.vmap(lambda c: state.loss(logits, jnp.full_like(labels, c)))
    part: Any = state.hyper["label_smoothing"]
    return (1 - part) * losses + part * every(jnp.arange(logits.shape[-1])).mean(0)
