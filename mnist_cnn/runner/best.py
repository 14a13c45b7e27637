"""The networks at their best validation, and whether more training is expected to help."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from mnist_cnn.models.apply import Variables
from mnist_cnn.parallel.replicas import Replicas


@dataclasses.dataclass(frozen=True)
class Best:
    """Of R networks, the variables after the step whose validation was the best so far."""

    score: Float32[np.ndarray, " R"]  # the larger the better; -inf before the first validation
    step: Int32[np.ndarray, " R"]
    waited: Int32[np.ndarray, " R"]  # validations since then
    variables: Variables  # [R, ...]

    def is_over(self, patience: int | None) -> bool:
        """Whether no network had a better validation during the last `patience` ones."""
        return patience is not None and bool((self.waited >= patience).all())

    def to_tree(self) -> dict[str, Any]:
        """For a checkpoint, as `Replicas.snapshot`: without the axis [R] if R is 1."""
        tree = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return tree if len(self.score) > 1 else jax.tree.map(lambda leaf: leaf[0], tree)


def begin(replicas: Replicas) -> Best:
    """No validation yet."""
    count = replicas.plan.total
    return Best(
        score=np.full(count, -np.inf, np.float32),
        step=np.zeros(count, np.int32),
        waited=np.zeros(count, np.int32),
        variables=_stack(replicas.variables(range(count))),
    )


def from_tree(tree: Mapping[str, Any]) -> Best:
    """What `to_tree` returned."""
    tree = jax.tree.map(np.asarray, dict(tree))
    return Best(**tree if tree["score"].ndim else jax.tree.map(lambda leaf: leaf[None], tree))


def after_validation(
    best: Best, step: int, name: str, metrics: Sequence[Mapping[str, Any]], replicas: Replicas
) -> Best:
    """`best` after a validation at `step`, of which `name` decides: "loss", or the larger."""
    sign = -1 if name == "loss" else 1
    score = np.array([sign * one[name] for one in metrics], np.float32)
    better = score > best.score  # not so if it is NaN
    variables = best.variables
    if better.any():

        def choose(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.where(better.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        now = _stack(replicas.variables(range(len(better))))
        variables = jax.tree.map(choose, variables, now)
    return Best(
        score=np.where(better, score, best.score),
        step=np.where(better, np.int32(step), best.step),
        waited=np.where(better, np.int32(0), best.waited + np.int32(1)),
        variables=variables,
    )


def _stack(variables: Sequence[Variables]) -> Variables:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *variables)
