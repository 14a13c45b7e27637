"""From a configuration to the model, the loss, the other functions and their hyperparameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from mnist_cnn import config as config_lib
from mnist_cnn.data.spec import MNIST, NETWORK_FIELDS, DataSpec
from mnist_cnn.errors import ConfigError, shorten
from mnist_cnn.models.cnn import CNN
from mnist_cnn.models.compact import Compact, CompactViews
from mnist_cnn.training.batches import HostOrDeviceArray

Hyperparameters = dict[str, Float[HostOrDeviceArray, ""]]
Loss = Callable[[Array, Array], Array]  # (logits [B, K], labels [B]) -> losses [B]
Optimizer = Callable[[Hyperparameters], optax.GradientTransformation]
Schedule = Callable[[Array], Any]  # the number of steps taken -> factor of the learning rate
Metric = Callable[[Array, Array], Array]  # (logits [B, K], labels [B]) -> values [B]
Step = Callable[..., Any]  # (TrainState, Batch, data_axis) -> (TrainState, Metrics)
Augment = Callable[[Key[Array, ""], Array], Array]  # (key, images [B, H, W, C]) -> images


class Components(NamedTuple):
    """The code of a training."""

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule | None = None  # None: `schedule.scheduled` reads the hyperparameters alone
    augment: Augment | None = None
    train_step: Step | None = None  # None: `step.step`
    metrics: tuple[tuple[str, Metric], ...] = ()  # of an experiment, by name
    norms: bool = False  # whether those of gradient, update and parameters are metrics as well
    spec: DataSpec = MNIST  # of the data


def adam(hyper: Hyperparameters) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2014); AdamW (Loshchilov & Hutter 2017) if there is a weight decay."""
    names = ("learning_rate", "b1", "b2", "eps", "weight_decay")
    optimizer = optax.adamw if "weight_decay" in hyper else optax.adam
    return optimizer(**{name: hyper[name] for name in names if name in hyper})


# num_classes, dtype -> the model
MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "compact": Compact,
    "compact_views": CompactViews,
}
_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def cross_entropy_or_none(
    logits: Float[Array, "B K"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """The cross-entropy with one more class, "none of them", last: its logit is always 0."""
    return _cross_entropy(jnp.pad(logits, ((0, 0), (0, 1))), labels)


LOSSES: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "cross_entropy_or_none": cross_entropy_or_none,
}
OPTIMIZERS: dict[str, Optimizer] = {"adam": adam}


def build_components(
    config: Mapping[str, Any], total_steps: int = 1, spec: DataSpec = MNIST
) -> Components:
    """The objects that a configuration names or contains, for a training of that length.

    ConfigError if the model is not usable, or (when it is called) the optimizer.
    """
    loss = config["loss"]

    def of_length(function: Any) -> Any:
        takes_it = config_lib.takes_total_steps(function)
        return functools.partial(function, total_steps=total_steps) if takes_it else function

    optimizer, schedule = of_length(config["optimizer"]), of_length(config["schedule"])
    varies = config["schedule"] != "constant" or "learning_rate" in (config["sweep"] or {})

    def custom_optimizer(hyper: Hyperparameters) -> optax.GradientTransformation:
        # A constant rate stays a Python number: an optimizer may want to compare it.
        made = optimizer(hyper["learning_rate"] if varies else config["learning_rate"])
        if not (callable(getattr(made, "init", None)) and callable(getattr(made, "update", None))):
            raise ConfigError(
                f"config.optimizer: returned {shorten(made)}, expected an "
                "optax.GradientTransformation, such as optax.sgd(learning_rate)"
            )
        return made

    return Components(
        model=build_model(config, spec),
        loss=LOSSES[loss] if isinstance(loss, str) else loss,
        optimizer=OPTIMIZERS[optimizer] if isinstance(optimizer, str) else custom_optimizer,
        schedule=None if isinstance(schedule, str) else schedule,
        augment=config["augment"],
        train_step=config["train_step"],
        metrics=tuple((config["metrics"] or {}).items()),
        norms=config["norms"],
        spec=spec,
    )


def build_model(config: Mapping[str, Any], spec: DataSpec = MNIST) -> nn.Module:
    """The model that a configuration names or contains, for such data.

    An object of a flax.linen module, or one made from a function of `rngs` that returns a flax.nnx
    module; its fields or arguments `num_classes` and `image_shape` have the values of the data.
    Anything else raises ConfigError, and so does a module that is not hashable, as it identifies a
    compiled program.
    """
    model = config["model"]
    if isinstance(model, str):
        return MODELS[model](num_classes=spec.num_classes, dtype=config["compute_dtype"])
    if not isinstance(model, nn.Module) or hasattr(model, "nnx_class"):  # of the bridge of NNX
        from mnist_cnn.models.nnx_module import as_linen

        return as_linen(model, spec)
    if (field := _unhashable_field(model)) is not None:
        raise ConfigError(
            f"config.model: the field {field} of {type(model).__name__} is "
            f"{shorten(getattr(model, field))}, which cannot be hashed; give it tuples "
            "instead of lists, dicts and arrays, and make arrays within the module"
        )
    fields = {field.name for field in dataclasses.fields(model) if field.init}
    own = {name: getattr(spec, name) for name in NETWORK_FIELDS if name in fields}
    changed = any(getattr(model, name) != value for name, value in own.items())
    return model.clone(**own) if changed else model


def _unhashable_field(model: nn.Module) -> str | None:
    """The name of the field because of which a module cannot be hashed, if so."""
    try:
        hash(model)
        return None
    except TypeError:
        for field in dataclasses.fields(model):
            try:
                hash(getattr(model, field.name))
            except TypeError:
                return field.name
        raise


def apply_loss(
    loss: Loss, logits: Float[Array, "B K"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """The loss of each image; ConfigError if it returns something else."""
    losses = loss(logits, labels)
    return _for_each_image("loss", losses, logits.shape, labels, "a float", jnp.floating)


def apply_metric(
    name: str, metric: Metric, logits: Float[Array, "B K"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """A metric of each image as float32; ConfigError if it returns something else."""
    values, kinds = metric(logits, labels), (jnp.floating, jnp.integer, jnp.bool_)
    found = _for_each_image(f"metrics: {name}", values, logits.shape, labels, "a number", *kinds)
    return found.astype(jnp.float32)


def _for_each_image(
    key: str, values: Any, logits_shape: Any, labels: Array, expected: str, *kinds: Any
) -> Array:
    """`values`, if they are an array [B] of one of the kinds; ConfigError otherwise."""
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", np.dtype(object))
    if shape == labels.shape and any(jnp.issubdtype(dtype, kind) for kind in kinds):
        return values
    got = shorten(values)
    if shape is not None:
        got = f"{dtype} {list(shape)} for logits {list(logits_shape)}"
    raise ConfigError(
        f"config.{key}: returned {got}, expected {expected} for each image, {list(labels.shape)}, "
        "without a mean or a sum over the images"
    )


def build_hyperparameters(
    config: Mapping[str, Any], setting: Mapping[str, float] | None = None, total_steps: int = 0
) -> Hyperparameters:
    """The numbers that a sweep may vary, as float32 scalars, and the schedule's lengths.

    They are data of the compiled program, not constants: one program serves every setting of the
    sweep, whose values replace the configuration's. Those that have no effect at 0 are left out if
    they are 0 and not swept, so that the program does not contain them.
    """
    values = {key: config[key] for key in config_lib.HYPERPARAMETERS} | dict(setting or {})
    if config["schedule"] == "cosine":
        values |= {"total_steps": total_steps, "warmup_steps": config["warmup_steps"]}
    return {
        key: np.asarray(value, np.float32)
        for key, value in values.items()
        if value or key in (config["sweep"] or {}) or key not in config_lib.OFF_AT_ZERO
    }
