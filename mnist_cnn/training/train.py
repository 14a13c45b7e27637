"""The training step and the compiled program that takes many of them.  Pure: no file, no clock.

state = create_state(config)
state, metrics = train_step(state, batch)                        # one step
state, sums = train_steps(state, sums, data, order, start, stop)  # many, one program
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn, serialization, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, UInt, UInt8

from mnist_cnn import config as config_lib
from mnist_cnn.errors import ConfigError
from mnist_cnn.models.cnn import CNN
from mnist_cnn.training import batches, recipe, rng
from mnist_cnn.training.recipe import Anywhere, Hyperparameters, Variables

Loss = Callable[[Array, Array], Array]  # (logits [B, 10], labels [B]) -> losses [B]
Optimizer = Callable[[Hyperparameters], optax.GradientTransformation]


def adam(hyper: Hyperparameters) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2014), with weight decay AdamW (Loshchilov & Hutter 2017)."""
    if "weight_decay" in hyper:
        return optax.adamw(
            hyper["learning_rate"], hyper["b1"], hyper["b2"], hyper["eps"],
            weight_decay=hyper["weight_decay"],
        )  # fmt: skip
    return optax.adam(hyper["learning_rate"], hyper["b1"], hyper["b2"], hyper["eps"])


MODELS: dict[str, Callable[..., nn.Module]] = {"cnn": CNN}  # dtype -> the network
LOSSES: dict[str, Loss] = {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels}
OPTIMIZERS: dict[str, Optimizer] = {"adam": adam}


class Metrics(struct.PyTreeNode):
    """Sums and counts over the images seen, so that a mean is exact whatever the batches."""

    loss: Float[Anywhere, ""]
    correct: Int[Anywhere, ""]
    examples: Int[Anywhere, ""]
    first_bad_step: Int[Anywhere, ""]  # the first whose loss was not finite; -1: none

    @classmethod
    def zero(cls) -> Metrics:
        count = np.zeros((), np.int32)
        return cls(np.zeros((), np.float32), count, count, np.full((), -1, np.int32))

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(
            self.loss + other.loss,
            self.correct + other.correct,
            self.examples + other.examples,
            jnp.where(self.first_bad_step >= 0, self.first_bad_step, other.first_bad_step),
        )


class TrainState(struct.PyTreeNode):
    """Everything that the next step depends on besides the data; immutable."""

    step: Int[Array, ""]  # steps taken so far
    seed: UInt[Array, ""]
    hyper: Hyperparameters  # data, not code: one program serves every setting of a sweep
    params: Any
    opt_state: Any
    batch_stats: Any  # of batch normalisation; {} without
    averaged: Any  # the average of `params` and `batch_stats` over the steps; {} without `ema`
    model: nn.Module = struct.field(pytree_node=False)
    loss: Loss = struct.field(pytree_node=False)
    optimizer: Optimizer = struct.field(pytree_node=False)

    @property
    def variables(self) -> Variables:
        """The network as it is evaluated, kept and exported: averaged, where it is."""
        return self.averaged or recipe.variables(self.params, self.batch_stats)


_NEWER = ("batch_stats", "averaged")  # checkpoints of before have none, and need none


def to_dict(state: TrainState) -> dict[str, Any]:
    """The state as nested dictionaries, for a checkpoint."""
    tree = serialization.to_state_dict(state)
    return {key: value for key, value in tree.items() if key not in _NEWER or value}


def from_dict(state: TrainState, tree: Mapping[str, Any]) -> TrainState:
    """`state` with the arrays of what `to_dict` made."""
    return serialization.from_state_dict(state, {key: {} for key in _NEWER} | dict(tree))


def create_state(config: Mapping[str, Any], num_examples: int = 60_000) -> TrainState:
    """The state before the first step: a pure function of the configuration.

    `num_examples`, the training images, is asked for where a schedule depends on the length of
    the training and that is given in epochs.
    """
    seed = jnp.asarray(config["seed"], jnp.uint32)
    hyper = hyperparameters(config, None, total_steps(config, num_examples))
    return jax.jit(initial_state, static_argnums=0)(parts(config), seed, hyper)


def total_steps(config: Mapping[str, Any], num_examples: int) -> int:
    """The length of the training."""
    epoch = batches.steps_per_epoch(num_examples, config["batch_size"])
    return config["num_steps"] or config["num_epochs"] * epoch


def hyperparameters(
    config: Mapping[str, Any], setting: Mapping[str, float] | None = None, total_steps: int = 0
) -> Hyperparameters:
    """The numbers that a sweep can vary, those of `setting` in their place, and a schedule's.

    One that does nothing at 0 is left out where nothing else is asked for.
    """
    sweep = config["sweep"] or {}
    idle = set(config_lib.HYPERPARAMETERS[4:])
    values = {key: config[key] for key in config_lib.HYPERPARAMETERS} | dict(setting or {})
    if config["schedule"] == "cosine":
        values |= {"total_steps": total_steps, "warmup_steps": config["warmup_steps"]}
    return {
        key: np.asarray(value, np.float32)
        for key, value in values.items()
        if value or key in sweep or key not in idle
    }


Parts = tuple[nn.Module, Loss, Optimizer]


def initial_state(
    parts: Parts, seed: UInt[Array, ""], hyper: Hyperparameters, given: Variables | None = None
) -> TrainState:
    """The state before the first step of one seed and setting; `given` None: drawn by the seed."""
    model, loss, optimizer = parts
    image = jnp.zeros((1, 28, 28, 1), jnp.float32)
    drawn = model.init(rng.key(seed, "init"), image, **recipe.told(model, train=False))
    start = given or drawn
    params, stats = start["params"], start.get("batch_stats", {})
    averaged = recipe.variables(params, stats) if "ema" in hyper else {}
    opt_state = optimizer(hyper).init(params)
    return TrainState(
        jnp.zeros((), jnp.int32), seed, hyper, params, opt_state, stats, averaged,
        model, loss, optimizer,
    )  # fmt: skip


def parts(config: Mapping[str, Any]) -> Parts:
    """The model, the loss and the optimiser that a configuration names or brings.

    Raises:
      ConfigError: the model is no flax.linen module, or cannot be the key of a compiled program.
    """
    model, loss, optimizer = config["model"], config["loss"], config["optimizer"]
    if not isinstance(model, str | nn.Module):
        raise ConfigError(
            f"config.model: got {config_lib.describe(model)}, expected an object of a flax.linen "
            "module"
        )
    try:
        hash(model)
    except TypeError:
        raise ConfigError(
            f"config.model: got {config_lib.describe(model)}, which cannot be hashed; give it "
            "tuples instead of lists"
        ) from None
    varied = config["schedule"] != "constant" or "learning_rate" in (config["sweep"] or {})

    def brought(hyper: Hyperparameters) -> optax.GradientTransformation:
        # Only a rate that varies is an array there: an optimiser may want to look at the number.
        return optimizer(hyper["learning_rate"] if varied else config["learning_rate"])

    return (
        MODELS[model](dtype=config["compute_dtype"]) if isinstance(model, str) else model,
        LOSSES[loss] if isinstance(loss, str) else loss,
        OPTIMIZERS[optimizer] if isinstance(optimizer, str) else brought,
    )


def scale(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0..255 to 0..1."""
    return images.astype(jnp.float32) / 255


def forward(
    model: nn.Module, variables: Variables, images: UInt8[Array, "B 28 28 1"]
) -> Float32[Array, "B 10"]:
    """The logits of pixels; float32 whatever the model computes in, so that the loss is."""
    logits: Any = model.apply(variables, scale(images), **recipe.told(model, train=False))
    return logits.astype(jnp.float32)


def step(
    state: TrainState, batch: batches.Batch, data_axis: str | None = None
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on the mean loss of the batch.

    Where several devices share a batch (`data_axis` is their mesh axis), each computes its part,
    and the sums of gradients and metrics cross in one go.

    Returns the next state, and the step's metrics under the parameters that it started from.
    """
    examples = _across(batch.weights.sum(), data_axis)
    images = recipe.augmented(state, scale(batch.images), data_axis)

    def mean_loss(params: Any) -> tuple[Array, tuple[Array, Array, Any]]:
        logits, batch_stats = recipe.training_forward(state, params, images, data_axis)
        losses = recipe.training_loss(state, logits, batch.labels) * batch.weights
        return losses.sum() / examples, (losses.sum(), logits, batch_stats)

    gradient = jax.value_and_grad(mean_loss, has_aux=True)
    (_, (loss, logits, batch_stats)), gradients = gradient(state.params)
    correct = (logits.argmax(-1) == batch.labels) & (batch.weights > 0)
    gradients, loss, correct = _across((gradients, loss, correct.sum(dtype=jnp.int32)), data_axis)
    optimizer = state.optimizer(recipe.scheduled(state.hyper, state.step))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    now = state.step + 1
    bad = jnp.where(jnp.isfinite(loss), -1, now)
    metrics = Metrics(loss, correct, examples.astype(jnp.int32), bad)
    state = state.replace(
        step=now, params=params, opt_state=opt_state, batch_stats=batch_stats,
        averaged=recipe.averaged(state, params, batch_stats),
    )  # fmt: skip
    return state, metrics


def _across(tree: Any, axis: str | None) -> Any:
    """The sum over the devices of a mesh axis."""
    return tree if axis is None else lax.psum(tree, axis)


train_step = jax.jit(step, donate_argnums=0)


class Data(struct.PyTreeNode):
    """A split, on the device."""

    images: UInt8[Array, "N 28 28 1"]
    labels: Int[Array, "N"]


def steps(
    state: TrainState,
    sums: Metrics,
    data: Data,
    order: Int[Array, "steps_per_epoch B"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
    data_axis: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes the steps `start` to `stop` of an epoch, adding their metrics to `sums`.

    One program serves every number of steps, so how a run is cut into calls (by logging,
    checkpoints, restarts) cannot change its bits.
    """

    def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, sums = carry
        batch = batches.take(data.images, data.labels, order[index])
        state, metrics = step(state, batch, data_axis)
        return state, sums + metrics

    return lax.fori_loop(start, stop, body, (state, sums))


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether every parameter, statistic and number that the optimiser keeps is finite."""
    leaves = jax.tree_util.tree_leaves((state.params, state.opt_state, state.batch_stats))
    # Infinity less itself is not a number, nor is any sum with one.  (To ask each number takes
    # twice as long to compile, and XLA's maximum on a CPU passes over what is none.)
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.isfinite(sum((leaf - leaf).sum() for leaf in numbers))


train_steps = jax.jit(steps, donate_argnums=0)
epoch_order = jax.jit(batches.epoch_order, static_argnums=(2, 3))
