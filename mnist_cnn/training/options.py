"""What a step does if the configuration enables it: augmentation, dropout, smoothing, averages.

`state.hyper` contains the value of an option that is enabled, and lacks it otherwise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int, Num

from mnist_cnn.errors import ConfigError, shorten
from mnist_cnn.models.apply import Variables, as_logits, make_variables, train_kwargs
from mnist_cnn.models.kernels.rewrite import fast_on_cpu
from mnist_cnn.training import augment, rng
from mnist_cnn.training.components import apply_loss
from mnist_cnn.training.state import TrainState


def augment_images(
    state: TrainState, images: Num[Array, "B H W C"], data_axis: str | None
) -> Float[Array, "B H W C"]:
    """Scaled images, each changed at random by the four amounts and the experiment's `augment`.

    The result does not depend on the mesh.
    """
    _check_scaled(images)
    count = 1 if data_axis is None else lax.axis_size(data_axis)

    def own_part(whole: Array) -> Array:  # of something that there is for each image of the batch
        if data_axis is None:
            return whole
        size = len(images)
        return lax.dynamic_slice_in_dim(whole, lax.axis_index(data_axis) * size, size)

    if amounts := {name: state.hyper[name] for name in augment.AMOUNTS if name in state.hyper}:
        key = rng.key(state.seed, "augment", state.step)
        changes = augment.draw(key, amounts, count * len(images))
        images = augment.warp(images, *map(own_part, changes))
    if state.augment is None:
        return images
    whole = images if data_axis is None else lax.all_gather(images, data_axis, tiled=True)
    changed: Any = state.augment(rng.key(state.seed, "own augment", state.step), whole)
    shape, dtype = getattr(changed, "shape", None), getattr(changed, "dtype", None)
    if (shape, dtype) != (whole.shape, whole.dtype):
        got = shorten(changed) if shape is None else f"{dtype} {list(shape)}"
        raise ConfigError(
            f"config.augment: returned {got} for images {whole.dtype} {list(whole.shape)}, "
            "expected the same"
        )
    return own_part(changed)


def _check_scaled(images: Array) -> None:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(
            f"config.train_step: got images {images.dtype}, expected float32 in 0..1: use "
            "scale(batch.images)"
        )


def training_forward(
    state: TrainState, params: Any, images: Num[Array, "B H W C"], data_axis: str | None
) -> tuple[Float32[Array, "B K"], Any]:
    """The logits during training, and the new batch statistics.

    A module that receives `train`, or an equivalent, may use dropout; its key differs for every
    step, and for every device that shares the batch.
    """
    _check_scaled(images)
    variables = make_variables(params, state.batch_stats)
    kwargs = train_kwargs(state.model, train=True)
    if not kwargs:

        def apply_alone(variables: Variables, images: Array) -> Array:
            logits = state.model.apply(variables, images)
            return as_logits(logits, state.spec.num_classes)

        return fast_on_cpu(apply_alone, variables, images), state.batch_stats
    key = rng.key(state.seed, "dropout", state.step)
    if data_axis is not None:
        key = jax.random.fold_in(key, lax.axis_index(data_axis))

    def apply(variables: Variables, images: Array, key: Array) -> tuple[Array, Any]:
        logits, updated = state.model.apply(
            variables, images, rngs={"dropout": key}, mutable=["batch_stats"], **kwargs
        )
        return as_logits(logits, state.spec.num_classes), updated.get("batch_stats", {})

    return fast_on_cpu(apply, variables, images, key)


def training_loss(
    state: TrainState, logits: Float[Array, "B K"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """The loss of each image, with label smoothing (Szegedy et al. 2016)."""
    losses = apply_loss(state.loss, logits, labels)
    if "label_smoothing" not in state.hyper:
        return losses
    of_class = jax.vmap(lambda label: state.loss(logits, jnp.full_like(labels, label)))
    part: Any = state.hyper["label_smoothing"]
    return (1 - part) * losses + part * of_class(jnp.arange(logits.shape[-1])).mean(0)


def update_ema(state: TrainState, params: Any, batch_stats: Any) -> Variables:
    """The exponential moving average of the variables after another step.

    The decay after t steps is min(ema, (1 + t) / (10 + t)), as in TensorFlow's
    ExponentialMovingAverage with `num_updates`: the initial values fade sooner.
    """
    if "ema" not in state.hyper:
        return {}
    decay = jnp.minimum(state.hyper["ema"], (1 + state.step) / (10 + state.step))
    new = make_variables(params, batch_stats)
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema_variables, new)
