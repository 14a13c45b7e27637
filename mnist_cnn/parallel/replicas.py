"""The networks of a run, one for each seed and setting: trained, scored, saved and restored."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer, UInt8

from mnist_cnn import config as config_lib
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.models.apply import Variables
from mnist_cnn.models.kernels.compiler import compiler_options
from mnist_cnn.parallel import snapshot
from mnist_cnn.parallel.mesh import BY_BATCH, BY_REPLICA, DATA, REPLICA, REPLICATED, on_cpu, shard
from mnist_cnn.parallel.plan import make_plan
from mnist_cnn.parallel.processes import allgather_max, gather
from mnist_cnn.parallel.programs import ORDER, TRAINING_INPUTS, make_program, training_program
from mnist_cnn.training import batches, metrics, schedule, scoring
from mnist_cnn.training.batches import Split
from mnist_cnn.training.components import build_components, build_hyperparameters
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.state import TrainState, initial_state, is_finite

# (split, replicas) -> logits float32 [R, N, K], losses float32 [R, N]
Score = Callable[[Split, Sequence[int]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class _Group:
    """Replicas that are on the devices together."""

    replicas: tuple[int, ...]
    state: TrainState  # [G, ...]
    sums: Metrics  # [G]
    subset: tuple[Any, ...] = ()  # (int32 [G, n],) if each trains on a subset of its own
    order: Any = None  # int32 [G, steps_per_epoch, B], of the current epoch


class Replicas:
    """All networks of a run, at the same step."""

    def __init__(
        self,
        config: Mapping[str, Any],
        mesh: Mesh,
        images: UInt8[np.ndarray, "N H W C"],
        labels: Integer[np.ndarray, "N"],
        init_variables: Variables | None = None,
        spec: DataSpec = MNIST,
    ) -> None:
        """Makes the networks before their first step, and compiles their training on a split.

        All begin with `init_variables`, or, if these are None, with those drawn from their seed.
        """
        self._config, self._mesh, self._device = config, mesh, mesh.devices.flat[0]
        self._replicas = config_lib.replicas(config)
        self.num_examples = batches.num_examples(config, labels)
        self._total_steps = batches.total_steps(config, self.num_examples)
        self.components = build_components(config, self._total_steps, spec)
        few = config["labels_per_class"]
        self._split = shard(Split(images, labels, few is not None), mesh, REPLICATED)
        self._epoch = 0
        # These programs run rarely: optimized code takes up to 3 s more to compile on a CPU and
        # saves 0.2 s.
        options = {"xla_backend_optimization_level": 0} if on_cpu(mesh) else None
        program = functools.partial(make_program, mesh, compiler_options=options)
        initial = functools.partial(initial_state, self.components, init_variables=init_variables)
        self._initial = program(initial, (BY_REPLICA, BY_REPLICA))
        own = functools.partial(schedule.scheduled, own=self.components.schedule)
        self._schedule = jax.jit(jax.vmap(own, (0, None)))
        self._subset: Any = None
        if few is not None:
            sizes = np.unique(labels, return_counts=True)[1].tolist()
            subset = functools.partial(batches.subset, class_sizes=sizes, labels_per_class=few)
            self._subset = program(subset, (BY_REPLICA, REPLICATED))
        inputs = (BY_REPLICA, REPLICATED, BY_REPLICA)[: 3 if few else 2]
        self._epoch_order = program(self._order_of_device, inputs, ORDER)
        smallest = mesh.shape[REPLICA]
        chosen = config["replicas_at_once"]
        self._compile(chosen or (smallest if on_cpu(mesh) else len(self._replicas)))
        while not (chosen or self.plan.group_size <= smallest or self._fits()):
            self._compile(self.plan.group_size // 2)
        # Groups that are not computed leave an accelerator's memory to the one that is.
        self._offloaded = len(self.plan.groups) > 1 and not on_cpu(mesh)
        self._groups = [self._new_group(replicas) for replicas in self.plan.groups]
        self._draw_orders()
        state = self._on_device(self._groups[0].state)
        self._finite = program(is_finite, (BY_REPLICA,)).lower(state).compile()

    def _compile(self, size: int) -> None:
        """Plans groups of about `size` replicas, and compiles the program that advances one.

        The program is made from shapes: no group is in memory before its size is known to fit.
        """
        self.plan = make_plan(len(self._replicas), size, multiple=self._mesh.shape[REPLICA])
        lowered = training_program(self._mesh).lower(*self._argument_shapes(self._mesh))
        self.training = lowered.compile(compiler_options=compiler_options(self._device.platform))

    def _argument_shapes(self, mesh: Mesh | AbstractMesh) -> tuple[Any, ...]:
        """The shapes of `_arguments`, laid out over `mesh`."""
        group = self._initial_arguments(self.plan.groups[0])
        state = jax.eval_shape(self._initial, *group)
        subset: tuple[Any, ...] = ()
        if self._subset is not None:
            subset = (jax.eval_shape(self._subset, state.seed, self._split.labels),)
        order = jax.eval_shape(self._epoch_order, state.seed, np.int32(0), *subset)
        sums = self._zero_sums_of_group()
        arguments = state, sums, self._split, order, np.int32(0), np.int32(0)

        def shapes(tree: Any, spec: PartitionSpec) -> Any:
            sharding = NamedSharding(mesh, spec)
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
            )

        return tuple(map(shapes, arguments, TRAINING_INPUTS))

    def _arguments(self, group: _Group, start: int = 0, stop: int = 0) -> tuple[Any, ...]:
        """What the training program takes, as `programs.TRAINING_INPUTS` lays it out."""
        state = self._on_device(group.state)
        return state, group.sums, self._split, group.order, np.int32(start), np.int32(stop)

    def _initial_arguments(self, replicas: tuple[int, ...]) -> tuple[Any, Any]:
        """The seeds uint32 [G] and hyperparameters [G] of a group."""
        chosen = [self._replicas[replica] for replica in replicas]
        total = self._total_steps
        hyper = [build_hyperparameters(self._config, replica.setting, total) for replica in chosen]
        stacked = {name: np.array([one[name] for one in hyper]) for name in hyper[0]}
        seeds = np.array([replica.seed for replica in chosen], np.uint32)
        return seeds, stacked

    def _new_group(self, replicas: tuple[int, ...]) -> _Group:
        state = self._initial(*shard(self._initial_arguments(replicas), self._mesh, BY_REPLICA))
        subset: tuple[Any, ...] = ()
        if self._subset is not None:
            subset = (self._subset(state.seed, self._split.labels),)
        return _Group(replicas, self._off_device(state), self._zero_sums(), subset)

    def advance(self, epoch: int, start: int, stop: int) -> Metrics:
        """Takes steps `start` to `stop` of an epoch; returns the sums [R] since `clear_sums`."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._draw_orders()
        for group in self._groups:
            state, group.sums = self.training(*self._arguments(group, start, stop))
            group.state = self._off_device(state)
        return self._gather(lambda group: group.sums)

    def clear_sums(self) -> None:
        for group in self._groups:
            group.sums = self._zero_sums()

    def finite(self) -> Bool[np.ndarray, "R"]:
        """Which networks have only finite numbers in parameters and optimizer state."""
        return self._gather(lambda group: self._finite(self._on_device(group.state)))

    def learning_rates(self, step: int) -> Float[np.ndarray, "R"]:
        """The learning rate of the step that follows `step` others."""
        groups = [self._initial_arguments(group)[1] for group in self.plan.groups]
        rates = [np.asarray(self._schedule(hyper, step)["learning_rate"]) for hyper in groups]
        return self.plan.join(rates)

    def variables(self, replicas: Sequence[int]) -> list[Variables]:
        """The variables of some networks, as NumPy arrays."""
        return self._of_replicas(replicas, lambda state: state.variables)

    def snapshot(self) -> dict[str, Any]:
        """States and sums as new NumPy arrays, with a leading axis [R] if R > 1."""
        tree = self._gather(
            lambda group: snapshot.to_dicts(self._on_device(group.state), group.sums)
        )
        return tree if self.plan.total > 1 else jax.tree.map(lambda leaf: leaf.squeeze(0), tree)

    def other_sums(self) -> dict[str, list[float]]:
        """The sums of an experiment's own metrics, [R] each.

        They are not in the snapshot, so that a run may resume with other metrics.
        """
        sums = self._gather(lambda group: group.sums.others)
        return {name: total.tolist() for name, total in sums.items()}

    def template(self) -> dict[str, Any]:
        """Arrays of a snapshot's shapes and dtypes, uninitialized."""
        group = self._groups[0]
        state, sums = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (group.state, group.sums)
        )
        return snapshot.template(state, sums, self.plan.total)

    def restore(self, tree: dict[str, Any], other_sums: Mapping[str, Sequence[float]]) -> None:
        """Sets the networks to a snapshot, whatever the mesh and the groups were then.

        A metric that is not in `other_sums` is unknown (NaN) until `clear_sums`.
        """
        if self.plan.total == 1:
            tree = jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
        for group in self._groups:
            state, sums = snapshot.from_dicts(
                group.state, group.sums, np.array(group.replicas), tree, other_sums
            )
            group.state = self._off_device(shard(state, self._mesh, BY_REPLICA))
            group.sums = shard(sums, self._mesh, BY_REPLICA)
        self._epoch = -1

    def set_variables(self, variables: Variables) -> None:
        """Sets what is evaluated to variables [R, ...]; the rest of the states is kept."""
        for group in self._groups:
            own = jax.tree.map(operator.itemgetter(np.array(group.replicas)), variables)
            own = shard(own, self._mesh, BY_REPLICA)
            changes = {"params": own["params"], "batch_stats": own.get("batch_stats", {})}
            if group.state.ema_variables:
                changes = {"ema_variables": own}
            group.state = self._off_device(self._on_device(group.state).replace(**changes))

    def lay_out(
        self, images: UInt8[np.ndarray, "N H W C"], labels: Integer[np.ndarray, "N"]
    ) -> Split:
        """A split for `compile_scoring`; devices that share a batch get a part of it each."""
        padding = (0, -len(labels) % self._mesh.shape[DATA])
        images = np.pad(images, (padding, (0, 0), (0, 0), (0, 0)))
        labels = np.pad(labels.astype(np.int32), padding)
        return shard(Split(images, labels), self._mesh, BY_BATCH)

    def compile_scoring(self, num_examples: int) -> Score:
        """Compiles the evaluation of a split of `num_examples` images."""
        model, loss = self.components.model, self.components.loss

        def score(variables: Variables, split: Split) -> Any:
            batch_size = self._config["eval_batch_size"]
            return scoring.score(model, loss, variables, split.images, split.labels, batch_size)

        sharding = NamedSharding(self._mesh, BY_BATCH)
        padded = num_examples + -num_examples % self._mesh.shape[DATA]
        shape = (padded, *self.components.spec.image_shape)
        images: Any = jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding)
        labels: Any = jax.ShapeDtypeStruct((padded,), np.int32, sharding=sharding)
        by_both = PartitionSpec(REPLICA, DATA)
        program = make_program(self._mesh, score, (BY_REPLICA, BY_BATCH), by_both)
        state = self._on_device(self._groups[0].state)
        compiled = program.lower(state.variables, Split(images, labels)).compile()

        def run(split: Split, replicas: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            scored = self._of_replicas(replicas, lambda state: compiled(state.variables, split))
            logits, losses = zip(*scored, strict=True)
            return np.stack(logits)[:, :num_examples], np.stack(losses)[:, :num_examples]

        return run

    def lowered_training(self) -> Any:
        """The training program for these devices, lowered without them.

        XLA counts the operations of a program only where a CPU's client has lowered it.
        """
        mesh = self._mesh.abstract_mesh
        arguments = self._argument_shapes(mesh)
        platform = self._device.platform.replace("gpu", "cuda")
        with jax.default_device(jax.devices("cpu")[0]):
            traced = training_program(mesh).trace(*arguments)
            return traced.lower(lowering_platforms=(platform,))

    def _order_of_device(self, seed: Array, epoch: Array, *subset: Array) -> Array:
        """The image numbers of each batch of an epoch, of this device's part."""
        batch_size = self._config["batch_size"]
        order = batches.epoch_order(seed, epoch, self.num_examples, batch_size)
        if subset:
            order = batches.rows_of_subset(order, *subset)
        size = batch_size // self._mesh.shape[DATA]
        if size == batch_size:
            return order
        return lax.dynamic_slice_in_dim(order, lax.axis_index(DATA) * size, size, axis=1)

    def _draw_orders(self) -> None:
        for group in self._groups:
            seeds = self._on_device(group.state.seed)
            group.order = self._epoch_order(seeds, np.int32(self._epoch), *group.subset)

    def _zero_sums(self) -> Metrics:
        return shard(self._zero_sums_of_group(), self._mesh, BY_REPLICA)

    def _zero_sums_of_group(self) -> Metrics:
        zero = Metrics.zero(metrics.names(self.components))
        return jax.tree.map(lambda leaf: np.full(self.plan.group_size, leaf), zero)

    def _fits(self) -> bool:
        """Whether the memory of every device is large enough for the training of a group.

        A process knows the memory of its own devices only. All processes return the same.
        """
        stats = [device.memory_stats() or {} for device in self._mesh.local_devices]
        limits = [one["bytes_limit"] for one in stats if "bytes_limit" in one]
        need = self.training.memory_analysis()
        needed = need.argument_size_in_bytes + need.temp_size_in_bytes if need else 0
        return not allgather_max(needed >= 0.9 * min(limits, default=np.inf))

    def _on_device(self, tree: Any, memory_kind: str | None = None) -> Any:
        """Moves arrays of replicas to that memory of their devices, if the groups take turns."""
        if not self._offloaded:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, BY_REPLICA, memory_kind=memory_kind))

    def _off_device(self, tree: Any) -> Any:
        return self._on_device(tree, "pinned_host")

    def _gather(self, part: Callable[[_Group], Any]) -> Any:
        """What `part` returns for each group, as NumPy arrays [R, ...]."""
        parts = [gather(part(group)) for group in self._groups]
        return jax.tree.map(lambda *leaves: self.plan.join(leaves), *parts)

    def _of_replicas(self, replicas: Sequence[int], part: Callable[[TrainState], Any]) -> list[Any]:
        """What `part` returns for the states of the groups of some replicas, for each of these."""
        places = self.plan.find(replicas).values()
        results = {
            number: gather(part(self._on_device(self._groups[number].state)))
            for number in sorted({group for group, _ in places})
        }
        return [jax.tree.map(operator.itemgetter(place), results[group]) for group, place in places]
