"""The training step, and a program that takes many of them. Pure: no files, no clock.

A run compiles `steps` in parallel/programs.py. In a notebook or a test:

state = create_state(config)
state, metrics = train_step(state, batch)                         # one step
state, sums = train_steps(state, sums, split, order, start, stop)  # many, one program

Both donate the state that they receive: its arrays are deleted, and the new state may use their
memory. To keep it, as for comparing two steps from one state, call `jax.jit(step)` instead.

An experiment's own `train_step` has the signature of `step` and is made of the same pieces.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from mnist_cnn.errors import ConfigError, shorten
from mnist_cnn.models.apply import scale
from mnist_cnn.training import batches, options, schedule
from mnist_cnn.training.batches import Batch, Split
from mnist_cnn.training.components import apply_metric
from mnist_cnn.training.metrics import NORMS, Metrics
from mnist_cnn.training.state import TrainState

Losses = tuple[Array, Array, Any]  # losses [B], logits [B, K], batch statistics


def step(
    state: TrainState, batch: Batch, data_axis: str | None = None
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on the mean loss of the batch.

    Returns the next state, and the metrics of the batch under the parameters before the step.
    `train_step`, its compiled form, donates `state`: the arrays in it are deleted by the call. If
    several devices share the batch, each has a part of it, and `data_axis` is their mesh axis:
    gradients and metrics are summed over it.
    """
    images = options.augment_images(state, scale(batch.images), data_axis)

    def losses(params: Any) -> Losses:
        logits, batch_stats = options.training_forward(state, params, images, data_axis)
        return options.training_loss(state, logits, batch.labels), logits, batch_stats

    return descend(state, batch, losses, data_axis)


def descend(
    state: TrainState,
    batch: Batch,
    losses: Callable[[Any], Losses],
    data_axis: str | None = None,
) -> tuple[TrainState, Metrics]:
    """The optimizer's step on the mean of `losses`, and what else changes with a step.

    `losses` receives the parameters and returns the loss of each image [B], its logits [B, K] and
    the new batch statistics. The losses of missing images do not count.
    """
    examples = _psum_if(batch.weights.sum(), data_axis)

    def mean_loss(params: Any) -> tuple[Array, Losses]:
        of_images, logits, batch_stats = _checked(losses(params), batch, state.spec.num_classes)
        total = (of_images * batch.weights).sum()
        return total / examples, (total, logits, batch_stats)

    gradients, (loss, logits, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    correct = (logits.argmax(-1) == batch.labels) & (batch.weights > 0)
    gradients, loss, correct = _psum_if((gradients, loss, correct.sum(dtype=jnp.int32)), data_axis)
    optimizer = state.optimizer(schedule.scheduled(state.hyper, state.step, state.schedule))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    first_bad_step = jnp.where(jnp.isfinite(loss), -1, state.step + 1)
    others = {
        name: (apply_metric(name, metric, logits, batch.labels) * batch.weights).sum()
        for name, metric in state.metrics
    }
    others = _psum_if(others, data_axis)
    if state.norms:  # of the step, and so of each of its images
        trees = zip(NORMS, (gradients, updates, state.params), strict=True)
        others |= {name: examples * optax.global_norm(tree) for name, tree in trees}
    metrics = Metrics(loss, correct, examples.astype(jnp.int32), first_bad_step, others)
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        batch_stats=batch_stats,
        ema_variables=options.update_ema(state, params, batch_stats),
    )
    return state, metrics


def _checked(returned: Any, batch: Batch, num_classes: int) -> Losses:
    """What `losses` returned; ConfigError unless it has a number for each image."""
    of_losses, of_logits = batch.labels.shape, (len(batch.labels), num_classes)
    expected = f"losses {list(of_losses)}, logits {list(of_logits)}, batch_stats"
    if not isinstance(returned, tuple) or len(returned) != 3:
        got = f"{len(returned)} values" if isinstance(returned, tuple) else shorten(returned)
        raise ConfigError(f"config.train_step: its losses returned {got}, expected {expected}")
    shapes = [getattr(value, "shape", None) for value in returned[:2]]
    if shapes != [of_losses, of_logits]:
        raise ConfigError(
            f"config.train_step: its losses returned arrays {shapes[0]} and {shapes[1]}, expected "
            f"{expected}: a number for each image, without a mean or a sum over them"
        )
    return returned


def _psum_if(tree: Any, axis: str | None) -> Any:
    """The sum over the devices of a mesh axis, if there is one."""
    return tree if axis is None else lax.psum(tree, axis)


def steps(
    state: TrainState,
    sums: Metrics,
    split: Split,
    order: Int[Array, "steps_per_epoch B"],
    start: Int[Array, ""],
    stop: Int[Array, ""],
    data_axis: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes the steps `start` to `stop` of an epoch and adds their metrics to `sums`.

    `start` and `stop` are arguments of the compiled program, not constants in it, so one program
    takes any number of steps. How a run is cut into calls, by logging, checkpoints or a restart,
    therefore cannot change its bits. `train_steps`, the compiled form, donates `state`.
    """

    take_step = state.train_step or step

    def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, sums = carry
        state, metrics = take_step(state, batches.take(split, order[index]), data_axis)
        return state, sums + metrics

    return lax.fori_loop(start, stop, body, (state, sums))


train_step = jax.jit(step, donate_argnums=0)
train_steps = jax.jit(steps, donate_argnums=0)
