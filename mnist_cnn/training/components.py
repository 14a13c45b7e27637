"""From a configuration to the model, the loss, the optimizer and their hyperparameters."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from mnist_cnn import config as config_lib
from mnist_cnn.errors import ConfigError
from mnist_cnn.models.cnn import CNN
from mnist_cnn.training.batches import HostOrDeviceArray

Hyperparameters = dict[str, Float[HostOrDeviceArray, ""]]
Loss = Callable[[Array, Array], Array]  # (logits [B, 10], labels [B]) -> losses [B]
Optimizer = Callable[[Hyperparameters], optax.GradientTransformation]
Components = tuple[nn.Module, Loss, Optimizer]


def adam(hyper: Hyperparameters) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2014); AdamW (Loshchilov & Hutter 2017) if there is a weight decay."""
    names = ("learning_rate", "b1", "b2", "eps", "weight_decay")
    optimizer = optax.adamw if "weight_decay" in hyper else optax.adam
    return optimizer(**{name: hyper[name] for name in names if name in hyper})


MODELS: dict[str, Callable[..., nn.Module]] = {"cnn": CNN}  # dtype -> the model
LOSSES: dict[str, Loss] = {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels}
OPTIMIZERS: dict[str, Optimizer] = {"adam": adam}


def build_components(config: Mapping[str, Any]) -> Components:
    """The model, the loss and the optimizer that a configuration names or contains.

    A model that is no flax.linen module raises ConfigError, and so does one that is not hashable,
    as it identifies a compiled program.
    """
    model, loss, optimizer = config["model"], config["loss"], config["optimizer"]
    got = f"config.model: got {config_lib.describe(model)}"
    if not isinstance(model, str | nn.Module):
        raise ConfigError(f"{got}, expected an object of a flax.linen module")
    try:
        hash(model)
    except TypeError:
        message = f"{got}, which cannot be hashed; give it tuples instead of lists"
        raise ConfigError(message) from None
    varies = config["schedule"] != "constant" or "learning_rate" in (config["sweep"] or {})

    def custom_optimizer(hyper: Hyperparameters) -> optax.GradientTransformation:
        # A constant rate stays a Python number: an optimizer may want to compare it.
        return optimizer(hyper["learning_rate"] if varies else config["learning_rate"])

    return (
        MODELS[model](dtype=config["compute_dtype"]) if isinstance(model, str) else model,
        LOSSES[loss] if isinstance(loss, str) else loss,
        OPTIMIZERS[optimizer] if isinstance(optimizer, str) else custom_optimizer,
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
