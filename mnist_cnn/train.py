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
import optax
from flax import linen as nn, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt, UInt8

from mnist_cnn import batches, streams
from mnist_cnn.model import CNN

Loss = Callable[[Array, Array], Array]  # (logits [B, 10], labels [B]) -> losses [B]

MODELS = {"cnn": CNN}
LOSSES: dict[str, Loss] = {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels}
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {"adam": optax.adam}


class Metrics(struct.PyTreeNode):
    """Sums and counts over the images seen, so that a mean is exact whatever the batches."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    examples: Int[Array, ""]
    first_bad_step: Int[Array, ""]  # the first whose loss was not finite; -1: none

    @classmethod
    def zero(cls) -> Metrics:
        count = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros((), jnp.float32), count, count, jnp.full((), -1, jnp.int32))

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
    params: Any
    opt_state: Any
    model: nn.Module = struct.field(pytree_node=False)
    loss: Loss = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)


def create_state(config: Mapping[str, Any]) -> TrainState:
    """The state before the first step: a pure function of the configuration."""
    model, loss, optimizer = parts(config)
    seed = jnp.asarray(config["seed"], jnp.uint32)

    def initial(seed: Array) -> tuple[Any, Any]:
        image = jnp.zeros((1, 28, 28, 1), jnp.float32)
        params = model.init(streams.key(seed, "init"), image)["params"]
        return params, optimizer.init(params)

    params, opt_state = jax.jit(initial)(seed)
    return TrainState(jnp.zeros((), jnp.int32), seed, params, opt_state, model, loss, optimizer)


def parts(config: Mapping[str, Any]) -> tuple[nn.Module, Loss, optax.GradientTransformation]:
    """The model, the loss and the optimiser that a configuration names or brings."""
    model, loss, optimizer = config["model"], config["loss"], config["optimizer"]
    make_optimizer = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    return (
        MODELS[model]() if isinstance(model, str) else model,
        LOSSES[loss] if isinstance(loss, str) else loss,
        make_optimizer(config["learning_rate"]),
    )


def scale(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0..255 to 0..1."""
    return images.astype(jnp.float32) / 255


def _train_step(state: TrainState, batch: batches.Batch) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on the mean loss of the batch.

    Returns the next state, and the step's metrics under the parameters that it started from.
    """

    def mean_loss(params: Any) -> tuple[Array, tuple[Array, Array]]:
        logits: Any = state.model.apply({"params": params}, scale(batch.images))
        losses = state.loss(logits, batch.labels) * batch.weights
        return losses.sum() / batch.weights.sum(), (losses.sum(), logits)

    gradient = jax.value_and_grad(mean_loss, has_aux=True)
    (_, (loss, logits)), gradients = gradient(state.params)
    updates, opt_state = state.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    correct = (logits.argmax(-1) == batch.labels) & (batch.weights > 0)
    metrics = Metrics(
        loss,
        correct.sum(dtype=jnp.int32),
        batch.weights.sum().astype(jnp.int32),
        jnp.where(jnp.isfinite(loss), -1, step),
    )
    return state.replace(step=step, params=params, opt_state=opt_state), metrics


train_step = jax.jit(_train_step, donate_argnums=0)


class Data(struct.PyTreeNode):
    """A split, on the device."""

    images: UInt8[Array, "N 28 28 1"]
    labels: Int[Array, "N"]


def _train_steps(
    state: TrainState,
    sums: Metrics,
    data: Data,
    order: Int[Array, "steps_per_epoch B"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
) -> tuple[TrainState, Metrics]:
    """Takes the steps `start` to `stop` of an epoch, adding their metrics to `sums`.

    One program serves every number of steps, so how a run is cut into calls (by logging,
    checkpoints, restarts) cannot change its bits.
    """

    def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, sums = carry
        state, metrics = _train_step(state, batches.take(data.images, data.labels, order[index]))
        return state, sums + metrics

    return lax.fori_loop(start, stop, body, (state, sums))


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether every parameter and everything that the optimiser keeps is a finite number."""
    leaves = jax.tree_util.tree_leaves((state.params, state.opt_state))
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


train_steps = jax.jit(_train_steps, donate_argnums=0)
epoch_order = jax.jit(batches.epoch_order, static_argnums=(2, 3))
