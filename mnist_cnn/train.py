"""The training step and the compiled program that takes many of them.  Pure: no file, no clock.

state = create_state(config)
state, metrics = train_step(state, batch)                        # one step
state, sums = train_steps(state, sums, data, order, start, stop)  # many, one program
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn, serialization, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, UInt, UInt8

from mnist_cnn import augment, batches, config as config_lib, streams
from mnist_cnn.model import CNN

Loss = Callable[[Array, Array], Array]  # (logits [B, 10], labels [B]) -> losses [B]
Anywhere = Array | np.ndarray  # on a device, or on the host and not yet anywhere else
Variables = dict[str, Any]  # what a module is applied to: params, and batch_stats where it has them
Hyperparameters = dict[str, Float[Anywhere, ""]]
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
        return self.averaged or _variables(self.params, self.batch_stats)


_NEWER = ("batch_stats", "averaged")  # checkpoints of before have none, and need none


def to_dict(state: TrainState) -> dict[str, Any]:
    """The state as nested dictionaries, for a checkpoint."""
    tree = serialization.to_state_dict(state)
    return {key: value for key, value in tree.items() if key not in _NEWER or value}


def from_dict(state: TrainState, tree: Mapping[str, Any]) -> TrainState:
    """`state` with the arrays of what `to_dict` made."""
    return serialization.from_state_dict(state, {key: {} for key in _NEWER} | dict(tree))


def _variables(params: Any, batch_stats: Any) -> Variables:
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


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
    parts: Parts, seed: UInt[Array, ""], hyper: Hyperparameters, params: Any = None
) -> TrainState:
    """The state before the first step of one seed and setting; `params` None: drawn by the seed."""
    model, loss, optimizer = parts
    image = jnp.zeros((1, 28, 28, 1), jnp.float32)
    drawn = model.init(streams.key(seed, "init"), image)
    params = drawn["params"] if params is None else params
    stats = drawn.get("batch_stats", {})
    averaged = _variables(params, stats) if "ema" in hyper else {}
    opt_state = optimizer(hyper).init(params)
    return TrainState(
        jnp.zeros((), jnp.int32), seed, hyper, params, opt_state, stats, averaged,
        model, loss, optimizer,
    )  # fmt: skip


def parts(config: Mapping[str, Any]) -> Parts:
    """The model, the loss and the optimiser that a configuration names or brings."""
    model, loss, optimizer = config["model"], config["loss"], config["optimizer"]
    swept = "learning_rate" in (config["sweep"] or {})

    def brought(hyper: Hyperparameters) -> optax.GradientTransformation:
        # Only a swept rate is an array there: an optimiser may want to look at the number.
        return optimizer(hyper["learning_rate"] if swept else config["learning_rate"])

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
    logits: Any = model.apply(variables, scale(images))
    return logits.astype(jnp.float32)


def training_forward(
    state: TrainState, params: Any, images: Float[Array, "B 28 28 1"], data_axis: str | None
) -> tuple[Float32[Array, "B 10"], Any]:
    """The logits of scaled images under `params` while they are trained, and the batch_stats then.

    A module whose `__call__` has an argument `train` is told, as is usual in Flax, and may drop
    units out: by a key of its own for every step, and for every device that shares the batch.
    """
    variables = _variables(params, state.batch_stats)
    if "train" not in inspect.signature(state.model.__call__).parameters:
        logits: Any = state.model.apply(variables, images)
        return logits.astype(jnp.float32), state.batch_stats
    key = streams.key(state.seed, "dropout", state.step)
    if data_axis is not None:
        key = jax.random.fold_in(key, lax.axis_index(data_axis))
    logits, changed = state.model.apply(
        variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    return logits.astype(jnp.float32), changed.get("batch_stats", {})


def augmented(
    state: TrainState, images: Float[Array, "B 28 28 1"], data_axis: str | None
) -> Float[Array, "B 28 28 1"]:
    """The images changed at random, as far as the state asks for it; of any mesh the same."""
    amounts = {key: state.hyper[key] for key in augment.AMOUNTS if key in state.hyper}
    if not amounts:
        return images
    key, own = streams.key(state.seed, "augment", state.step), len(images)
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


def averaged(state: TrainState, params: Any, batch_stats: Any) -> Variables:
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
        _variables(params, batch_stats),
    )


def training_loss(
    state: TrainState, logits: Float[Array, "B 10"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """The loss, with label smoothing (Szegedy et al. 2016) where the state asks for it."""
    losses = state.loss(logits, labels)
    if "label_smoothing" not in state.hyper:
        return losses
    every = jax.vmap(lambda c: state.loss(logits, jnp.full_like(labels, c)))
    part: Any = state.hyper["label_smoothing"]
    return (1 - part) * losses + part * every(jnp.arange(logits.shape[-1])).mean(0)


def step(
    state: TrainState, batch: batches.Batch, data_axis: str | None = None
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on the mean loss of the batch.

    Where several devices share a batch (`data_axis` is their mesh axis), each computes its part,
    and the sums of gradients and metrics cross in one go.

    Returns the next state, and the step's metrics under the parameters that it started from.
    """
    examples = _across(batch.weights.sum(), data_axis)
    images = augmented(state, scale(batch.images), data_axis)

    def mean_loss(params: Any) -> tuple[Array, tuple[Array, Array, Any]]:
        logits, batch_stats = training_forward(state, params, images, data_axis)
        losses = training_loss(state, logits, batch.labels) * batch.weights
        return losses.sum() / examples, (losses.sum(), logits, batch_stats)

    gradient = jax.value_and_grad(mean_loss, has_aux=True)
    (_, (loss, logits, batch_stats)), gradients = gradient(state.params)
    correct = (logits.argmax(-1) == batch.labels) & (batch.weights > 0)
    gradients, loss, correct = _across((gradients, loss, correct.sum(dtype=jnp.int32)), data_axis)
    optimizer = state.optimizer(scheduled(state.hyper, state.step))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    now = state.step + 1
    bad = jnp.where(jnp.isfinite(loss), -1, now)
    metrics = Metrics(loss, correct, examples.astype(jnp.int32), bad)
    state = state.replace(
        step=now, params=params, opt_state=opt_state, batch_stats=batch_stats,
        averaged=averaged(state, params, batch_stats),
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
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


train_steps = jax.jit(steps, donate_argnums=0)
epoch_order = jax.jit(batches.epoch_order, static_argnums=(2, 3))
