"""The networks that a run trains: one for each seed and each setting of a sweep.

They advance together, step by step, by the same compiled program, in groups: as many as are on
the devices at once.  A group's arrays have a leading axis [G] of replicas, laid over the mesh.  A
device that holds several of them computes them together (`jax.vmap`); one that holds a single one
computes it as if it were alone, to the same bits.

Nothing here knows of files, of the clock, or of what is due when.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import serialization
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, UInt8

from mnist_cnn import config as config_lib, evaluate
from mnist_cnn.models import layers
from mnist_cnn.parallel.mesh import (
    BY_REPLICA,
    DATA,
    REPLICA,
    REPLICATED,
    gather,
    on_cpu,
    shard,
    shard_mapped,
)
from mnist_cnn.training import batches, recipe, train

_BY_BATCH = PartitionSpec(DATA)
_ORDER = PartitionSpec(REPLICA, None, DATA)  # [G, steps_per_epoch, B]
# Parameters are drawn once, an epoch's order once an epoch, and checked now and then: on a CPU
# optimised code for them takes up to 3 s more to compile and saves 0.2 s.
_UNOPTIMIZED = {"xla_backend_optimization_level": 0}
Split = tuple[Array, Array]  # images and labels, laid out on the mesh
Score = Callable[[Split, Sequence[int]], tuple[np.ndarray, np.ndarray]]


def program(
    mesh: Mesh,
    function: Callable[..., Any],
    inputs: tuple[PartitionSpec, ...],
    outputs: PartitionSpec = BY_REPLICA,
    **options: Any,
) -> Any:
    """`function` of one replica, jitted for a group of them on the mesh.

    Inputs whose first axis is that of replicas lose it on the way in; outputs get it.
    """
    axes = tuple(0 if spec[:1] == (REPLICA,) else None for spec in inputs)

    def block(*arguments: Any) -> Any:
        held = jax.tree_util.tree_leaves(arguments[axes.index(0)])[0].shape[0]
        if held > 1:
            return jax.vmap(function, axes)(*arguments)
        alone = (
            argument if axis is None else _map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        )
        return _map(lambda leaf: leaf[None], function(*alone))

    block.__name__ = getattr(function, "func", function).__name__  # the program's, in traces too
    return jax.jit(shard_mapped(block, mesh, inputs, outputs), **options)


def training_program(mesh: Mesh) -> Any:
    """`train.steps` of a group: (state [G], sums [G], data, order [G], start, stop)."""
    steps = functools.partial(train.steps, data_axis=DATA if mesh.shape[DATA] > 1 else None)
    inputs = (BY_REPLICA, BY_REPLICA, REPLICATED, _ORDER, REPLICATED, REPLICATED)
    return program(mesh, steps, inputs, donate_argnums=0)


@dataclasses.dataclass
class _Group:
    """Replicas that are on the devices together."""

    members: list[int]  # the last group may be filled up with the run's first ones
    state: train.TrainState  # [G, ...]
    sums: train.Metrics  # [G]
    order: Any = None  # int32 [G, steps_per_epoch, B], of the epoch at work


class Replicas:
    """All networks of a run, at the same step."""

    def __init__(
        self,
        config: Mapping[str, Any],
        mesh: Mesh,
        images: UInt8[np.ndarray, "N 28 28 1"],
        labels: Int[np.ndarray, "N"],
        given: recipe.Variables | None = None,
    ) -> None:
        """Makes them as they are before the first step, and compiles their training.

        Args:
          config: a complete configuration.
          mesh: the devices (`parallel.make_mesh`).
          images, labels: the training split.
          given: what all begin with; None: each with what its seed draws.
        """
        self.members = config_lib.replicas(config)
        self._config, self._mesh = config, mesh
        self._num_examples = len(labels)
        self._total_steps = train.total_steps(config, len(labels))
        self._data = train.Data(*shard((images, labels), mesh, REPLICATED))
        self._parts = train.parts(config)
        self._epoch = 0
        self._program = functools.partial(program, mesh)
        options = _UNOPTIMIZED if on_cpu(mesh) else None
        self._initial = self._program(
            functools.partial(train.initial_state, self._parts, given=given),
            (BY_REPLICA, BY_REPLICA),
            compiler_options=options,
        )
        self._order = self._program(
            self._order_of, (BY_REPLICA, REPLICATED), _ORDER, compiler_options=options
        )
        steps = training_program(mesh)

        index = jax.ShapeDtypeStruct((), np.int32)
        least = mesh.shape[REPLICA]
        size = config["replicas_at_once"] or (least if on_cpu(mesh) else len(self.members))
        while True:
            self._groups = self._make_groups(size)
            group = self._groups[0]
            state = self._awake(group.state)
            self._draw_orders()
            self.training = steps.lower(
                state, group.sums, self._data, group.order, index, index
            ).compile(compiler_options=layers.compiler_options(mesh.devices.flat[0].platform))
            if config["replicas_at_once"] or size <= least or self._fits():
                break
            size = self.at_once // 2
        self._finite = self._program(train.is_finite, (BY_REPLICA,)).lower(state).compile(options)

    @property
    def at_once(self) -> int:
        """How many are on the devices together."""
        return len(self._groups[0].members)

    @property
    def calls(self) -> int:
        """How many calls of `training` a step of all of them takes."""
        return len(self._groups)

    def lowered(self) -> Any:
        """`training` as it is written for these devices, lowered without them.

        XLA counts the operations of such a program where a CPU's client has it, and no other's.
        """
        mesh, group, index = self._mesh.abstract_mesh, self._groups[0], np.int32(0)

        def shapes(tree: Any, spec: PartitionSpec) -> Any:
            sharding = NamedSharding(mesh, spec)
            return _map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

        arguments = (
            *(shapes(tree, BY_REPLICA) for tree in (group.state, group.sums)),
            shapes(self._data, REPLICATED),
            shapes(group.order, _ORDER),
            *(shapes(index, REPLICATED) for _ in range(2)),
        )
        platform = self._mesh.devices.flat[0].platform.replace("gpu", "cuda")
        with jax.default_device(jax.devices("cpu")[0]):
            traced = training_program(mesh).trace(*arguments)
            return traced.lower(lowering_platforms=(platform,))

    # Training.

    def advance(self, epoch: int, start: int, stop: int) -> train.Metrics:
        """Takes the steps `start` to `stop` of an epoch: the sums [R] of the metrics so far."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._draw_orders()
        for group in self._groups:
            state, group.sums = self.training(
                self._awake(group.state), group.sums, self._data, group.order,
                np.int32(start), np.int32(stop),
            )  # fmt: skip
            group.state = self._asleep(state)
        return self._gather(lambda group: group.sums)

    def clear_sums(self) -> None:
        for group in self._groups:
            group.sums = self._zero_sums(len(group.members))

    def finite(self) -> Bool[np.ndarray, "R"]:
        """Which have nothing but finite numbers in parameters and optimiser state."""
        return self._gather(lambda group: self._finite(self._awake(group.state)))

    # On the host.

    def variables(self, members: Sequence[int]) -> list[recipe.Variables]:
        """Those of each, as NumPy arrays."""
        found: dict[int, recipe.Variables] = {}
        for group in self._groups:
            if set(members) & set(group.members) - set(found):
                whole = gather(self._awake(group.state.variables), self._mesh)
                for place, member in enumerate(group.members):
                    found[member] = _map(lambda leaf, place=place: leaf[place], whole)
        return [found[member] for member in members]

    def snapshot(self) -> dict[str, Any]:
        """State and sums as NumPy arrays of their own; with a leading axis [R] if R > 1."""
        tree = self._gather(lambda group: _dicts(self._awake(group.state), group.sums))
        if len(self.members) > 1:
            return tree
        return _map(lambda leaf: leaf.reshape(leaf.shape[1:]), tree)

    def template(self) -> dict[str, Any]:
        """Arrays of a snapshot's shapes and dtypes, with nothing in them."""
        several = (len(self.members),) if len(self.members) > 1 else ()
        group = self._groups[0]
        return _map(
            lambda leaf: np.empty(several + leaf.shape[1:], leaf.dtype),
            _dicts(group.state, group.sums),
        )

    def restore(self, tree: dict[str, Any]) -> None:
        """Goes back to a snapshot, whatever mesh and groups it was taken on."""
        if len(self.members) == 1:
            tree = _map(lambda leaf: np.asarray(leaf)[None], tree)
        for group in self._groups:
            own = _map(lambda leaf, members=group.members: leaf[members], tree)
            state = train.from_dict(group.state, own["state"])
            sums = serialization.from_state_dict(group.sums, own["sums"])
            group.state = self._asleep(shard(state, self._mesh, BY_REPLICA))
            group.sums = shard(sums, self._mesh, BY_REPLICA)
        self._epoch = -1

    # Evaluation.

    def lay_out(
        self, images: UInt8[np.ndarray, "N 28 28 1"], labels: Int[np.ndarray, "N"]
    ) -> Split:
        """A split for `scoring`: each part of a batch's devices gets its part of the images."""
        padding = -len(labels) % self._mesh.shape[DATA]
        split = (
            np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0))),
            np.pad(labels.astype(np.int32), (0, padding)),
        )
        return shard(split, self._mesh, _BY_BATCH)

    def scoring(self, examples: int) -> Score:
        """Compiles the evaluation of a split of so many images.

        The program takes the split and the replicas to score: logits float32 [R, N, 10] and
        losses float32 [R, N].
        """
        model, loss, _ = self._parts

        def score(variables: recipe.Variables, images: Array, labels: Array) -> Any:
            batch_size = self._config["eval_batch_size"]
            return evaluate.score(model, loss, variables, images, labels, batch_size)

        sharding = NamedSharding(self._mesh, _BY_BATCH)
        padded = examples + -examples % self._mesh.shape[DATA]
        compiled = (
            self._program(score, (BY_REPLICA, _BY_BATCH, _BY_BATCH), PartitionSpec(REPLICA, DATA))
            .lower(
                self._awake(self._groups[0].state.variables),
                jax.ShapeDtypeStruct((padded, 28, 28, 1), np.uint8, sharding=sharding),
                jax.ShapeDtypeStruct((padded,), np.int32, sharding=sharding),
            )
            .compile()
        )

        def run(split: Split, members: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            scored: dict[int, Any] = {}
            for group in self._groups:
                if scored.keys() >= set(members) or not set(members) & set(group.members):
                    continue
                rows = gather(compiled(self._awake(group.state.variables), *split), self._mesh)
                scored |= dict(zip(group.members, zip(*rows, strict=True), strict=True))
            logits, losses = zip(*(scored[member] for member in members), strict=True)
            return np.stack(logits)[:, :examples], np.stack(losses)[:, :examples]

        return run

    # How it is laid out.

    def _order_of(self, seed: Array, epoch: Array) -> Array:
        """The rows of each batch of an epoch that are this device's."""
        batch_size = self._config["batch_size"]
        order = batches.epoch_order(seed, epoch, self._num_examples, batch_size)
        shards = self._mesh.shape[DATA]
        if shards == 1:
            return order
        part = batch_size // shards
        return lax.dynamic_slice_in_dim(order, lax.axis_index(DATA) * part, part, axis=1)

    def _draw_orders(self) -> None:
        for group in self._groups:
            group.order = self._order(self._awake(group.state.seed), np.int32(self._epoch))

    def _make_groups(self, size: int) -> list[_Group]:
        """The replicas in groups of about `size`, all alike."""
        total = len(self.members)
        count = -(-total // size)
        size = -(-total // count)
        size += -size % self._mesh.shape[REPLICA]
        count = -(-total // size)
        self._parked = count > 1 and not on_cpu(self._mesh)
        groups = []
        for first in range(0, count * size, size):
            members = [place % total for place in range(first, first + size)]
            hyper = [
                train.hyperparameters(self._config, self.members[place].setting, self._total_steps)
                for place in members
            ]
            seeds = np.array([self.members[place].seed for place in members], np.uint32)
            stacked = {key: np.array([one[key] for one in hyper]) for key in hyper[0]}
            state = self._initial(*shard((seeds, stacked), self._mesh, BY_REPLICA))
            groups.append(_Group(members, self._asleep(state), self._zero_sums(size)))
        return groups

    def _zero_sums(self, size: int) -> train.Metrics:
        zero = _map(lambda leaf: np.full(size, leaf), train.Metrics.zero())
        return shard(zero, self._mesh, BY_REPLICA)

    def _fits(self) -> bool:
        """Whether a group's program has room on the device."""
        limit = (self._mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        need = self.training.memory_analysis()
        if limit is None or need is None:
            return True
        return need.argument_size_in_bytes + need.temp_size_in_bytes < 0.9 * limit

    def _awake(self, tree: Any) -> Any:
        """On the devices."""
        return jax.device_put(tree, NamedSharding(self._mesh, BY_REPLICA)) if self._parked else tree

    def _asleep(self, tree: Any) -> Any:
        """In the hosts' memory while other groups are at work, where these would not fit."""
        if not self._parked:
            return tree
        return jax.device_put(
            tree, NamedSharding(self._mesh, BY_REPLICA, memory_kind="pinned_host")
        )

    def _gather(self, part: Callable[[_Group], Any]) -> Any:
        """What each group has, as NumPy arrays [R, ...]."""
        parts = [part(group) for group in self._groups]
        total = len(self.members)
        return _map(
            lambda *leaves: np.concatenate(leaves)[:total],
            *(gather(one, self._mesh) for one in parts),
        )


def _dicts(state: train.TrainState, sums: train.Metrics) -> dict[str, Any]:
    return {
        "state": train.to_dict(state),
        "sums": serialization.to_state_dict(sums),
    }


_map = jax.tree_util.tree_map
