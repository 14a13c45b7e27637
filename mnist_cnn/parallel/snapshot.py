"""The form in which the states of replicas are in a checkpoint."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import serialization

from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.state import TrainState, from_dict, to_dict


def to_dicts(state: TrainState, sums: Metrics) -> dict[str, Any]:
    """States and sums; those of an experiment's own metrics are kept beside them."""
    fields = serialization.to_state_dict(sums)
    return {"state": to_dict(state), "sums": {n: x for n, x in fields.items() if n != "others"}}


def from_dicts(
    state: TrainState,
    sums: Metrics,
    replicas: np.ndarray,
    tree: Mapping[str, Any],
    other_sums: Mapping[str, Sequence[float]],
) -> tuple[TrainState, Metrics]:
    """`state` and `sums` with the values of some of the replicas [R] of `to_dicts`.

    A metric that is not in `other_sums` is unknown (NaN) if there are images already.
    """
    own = jax.tree.map(operator.itemgetter(replicas), dict(tree))
    fields = own["sums"] | {"others": sums.others}
    sums = serialization.from_state_dict(sums, fields)
    unknown = np.full(len(replicas), math.nan if sums.examples.any() else 0, np.float32)
    others = {
        name: np.array(other_sums[name], np.float32)[replicas] if name in other_sums else unknown
        for name in sums.others
    }
    return from_dict(state, own["state"]), sums.replace(others=others)


def template(state: TrainState, sums: Metrics, num_replicas: int) -> dict[str, Any]:
    """Arrays of the shapes and dtypes of a checkpoint, uninitialized.

    `state` and `sums` are of one replica, or their shapes; if R > 1, the leading axis is [R].
    """
    axis, tree = (num_replicas,) if num_replicas > 1 else (), to_dicts(state, sums)
    return jax.tree.map(lambda leaf: np.empty(axis + leaf.shape, leaf.dtype), tree)
