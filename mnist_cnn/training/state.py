"""The state of a training: everything that the next step depends on besides the images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn, serialization, struct
from jaxtyping import Array, Bool, Int, UInt

from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.models import apply
from mnist_cnn.models.apply import Variables, make_variables
from mnist_cnn.training import components as components_lib, rng
from mnist_cnn.training.batches import total_steps
from mnist_cnn.training.components import (
    Augment,
    Components,
    Hyperparameters,
    Loss,
    Metric,
    Optimizer,
    Schedule,
    Step,
)


class TrainState(struct.PyTreeNode):
    """An immutable training state; the last fields, those of `Components`, are code."""

    step: Int[Array, ""]  # the number of steps taken
    seed: UInt[Array, ""]
    hyper: Hyperparameters
    params: Any
    opt_state: Any
    batch_stats: Any  # of batch normalization; {} without
    ema_variables: Variables  # the average of params and batch_stats over the steps; {} without
    model: nn.Module = struct.field(pytree_node=False)
    loss: Loss = struct.field(pytree_node=False)
    optimizer: Optimizer = struct.field(pytree_node=False)
    schedule: Schedule | None = struct.field(pytree_node=False)
    augment: Augment | None = struct.field(pytree_node=False)
    train_step: Step | None = struct.field(pytree_node=False)
    metrics: tuple[tuple[str, Metric], ...] = struct.field(pytree_node=False)
    norms: bool = struct.field(pytree_node=False)
    spec: DataSpec = struct.field(pytree_node=False)

    @property
    def variables(self) -> Variables:
        """What is evaluated and exported: the averaged variables if `ema` is on."""
        return self.ema_variables or make_variables(self.params, self.batch_stats)


def initial_state(
    components: Components,
    seed: UInt[Array, ""],
    hyper: Hyperparameters,
    init_variables: Variables | None = None,
) -> TrainState:
    """The state before the first step, from the given variables or else those of the seed."""
    if init_variables is None:
        key = rng.key(seed, "init")
        init_variables = apply.init_variables(components.model, key, components.spec)
    params, batch_stats = init_variables["params"], init_variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=seed,
        hyper=hyper,
        params=params,
        opt_state=components.optimizer(hyper).init(params),
        batch_stats=batch_stats,
        ema_variables=make_variables(params, batch_stats) if "ema" in hyper else {},
        **components._asdict(),
    )


def create_state(
    config: Mapping[str, Any], num_examples: int = 60_000, spec: DataSpec = MNIST
) -> TrainState:
    """The state before the first step of a configuration's first seed, for such data.

    The number of training images matters only for a schedule whose length is given in epochs.
    """
    seed, length = jnp.asarray(config["seed"], jnp.uint32), total_steps(config, num_examples)
    hyper = components_lib.build_hyperparameters(config, total_steps=length)
    components = components_lib.build_components(config, length, spec)
    return jax.jit(initial_state, static_argnums=0)(components, seed, hyper)


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether every parameter, batch statistic and number of the optimizer is finite."""
    leaves = jax.tree_util.tree_leaves((state.params, state.opt_state, state.batch_stats))
    # x - x is 0, or NaN if x is not finite. A test of each number takes twice as long to compile,
    # and XLA's maximum on a CPU ignores NaN.
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.isfinite(sum((leaf - leaf).sum() for leaf in numbers))


# Fields that are absent from a checkpoint if empty, and the names under which they are stored.
_OPTIONAL = {"batch_stats": "batch_stats", "ema_variables": "averaged"}


def to_dict(state: TrainState) -> dict[str, Any]:
    """The state's arrays as nested dictionaries, for a checkpoint."""
    tree = serialization.to_state_dict(state)
    optional = {name: tree.pop(field) for field, name in _OPTIONAL.items()}
    return tree | {name: value for name, value in optional.items() if value}


def from_dict(state: TrainState, tree: Mapping[str, Any]) -> TrainState:
    """`state` with the arrays that `to_dict` returned."""
    rest = {key: value for key, value in tree.items() if key not in _OPTIONAL.values()}
    optional = {field: tree.get(name, {}) for field, name in _OPTIONAL.items()}
    return serialization.from_state_dict(state, rest | optional)
