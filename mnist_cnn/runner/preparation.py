"""A run that is ready for its next step: checked, compiled, and restored from its checkpoint."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from mnist_cnn import config as config_lib
from mnist_cnn.data import folds
from mnist_cnn.data.dataset import Dataset, open_dataset
from mnist_cnn.data.folds import Examples
from mnist_cnn.data.spec import DataSpec
from mnist_cnn.errors import UserError
from mnist_cnn.models import summary, weights
from mnist_cnn.models.apply import Variables, make_variables
from mnist_cnn.models.kernels.compiler import compiler_note
from mnist_cnn.parallel import processes
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.parallel.devices import find_devices, unused_gpu
from mnist_cnn.parallel.memory import check_data, check_memory
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.runner import best as best_lib, checks, component_checks, experiment_file
from mnist_cnn.runner.best import Best
from mnist_cnn.runner.checkpoint import Checkpoints, has_checkpoint
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.environment import describe_environment
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.runner.run_logger import OnLog, RunLogger
from mnist_cnn.runner.signals import StopRequest
from mnist_cnn.training import batches, components, state as state_lib
from mnist_cnn.training.metrics import summarize

ReplicaMetrics = list[dict[str, Any]]  # one dict for each replica
# the metrics, logits float32 [R, N, K], labels [N], images uint8 [N, H, W, C]
Evaluation = tuple[ReplicaMetrics, np.ndarray, np.ndarray, np.ndarray]
Evaluate = Callable[[Sequence[int]], Evaluation]  # of some replicas


class Diverged(UserError):
    """The loss, the parameters or the optimizer state are no longer finite."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its next step."""

    config: Mapping[str, Any]
    directory: RunDirectory
    console: Console
    stop: StopRequest
    logger: RunLogger
    checkpoints: Checkpoints | None  # of process 0; the others have none
    replicas: Replicas
    steps_per_epoch: int
    total_steps: int
    first_step: int  # the steps already taken when this process began
    best: Best | None  # after `first_step`; None unless the config asks for the best
    validate: Evaluate | None
    test: Evaluate | None  # None if `pause` is not
    pause: int | None = None  # the step at which it is validated and saved, instead of a test

    @property
    def end(self) -> int:
        """The last step to take."""
        return self.total_steps if self.pause is None else min(self.pause, self.total_steps)

    def next_event(self, step: int) -> int:
        """The first step after `step` at which something is due, or an epoch ends."""
        names = ("log_every", "checkpoint_every", "eval_every")
        periods = [self.steps_per_epoch, *(self.config[name] for name in names)]
        return min(self.end, *((step // n + 1) * n for n in periods if n is not None))

    def is_due(self, step: int, every: int | None) -> bool:
        """Whether `step` is a multiple of `every` (None: the last of an epoch), or the last."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.total_steps

    def log(self, step: int, split: str, metrics: Mapping[str, Any], **others: float) -> None:
        self.logger.log(step, step / self.steps_per_epoch, split, metrics, **others)

    def save(self, step: int, best: Best | None) -> None:
        self.check_finite(step)
        tree = self.replicas.snapshot()  # the states, and the sums since the last logged line
        tree |= {"best": best.to_tree()} if best else {}
        others = self.replicas.other_sums()
        if self.checkpoints is not None:
            self.directory.check_lock()
            extra = {"step": step, "seconds": self.logger.seconds()}
            self.checkpoints.save(step, tree, extra | ({"metrics": others} if others else {}))

    def check_finite(self, step: int) -> None:
        """Ends a run that diverged; a sweep continues while one of its settings is finite."""
        finite = self.replicas.finite().reshape(-1, self.config["num_seeds"]).all(1)
        if not (finite.any() if self.config["sweep"] else finite.all()):
            self.diverge(step)

    def diverge(self, step: int) -> NoReturn:
        """Records the end without a result; the last good checkpoint stays."""
        if self.checkpoints is not None:
            self.checkpoints.wait()
            self.logger.diverge(step)
        rates = (self.config["sweep"] or {}).get("learning_rate", [self.config["learning_rate"]])
        raise Diverged(
            f"{self.directory}: the loss or the parameters were not finite at step {step:,}; the "
            f"checkpoints before it are kept; try a lower learning_rate than {min(rates):g}"
        )


def prepare(
    config: Mapping[str, Any],
    directory: RunDirectory,
    console: Console,
    stop: StopRequest,
    command: Sequence[str],
    num_threads: int,
    config_file: str | None = None,
    on_log: OnLog | None = None,
    pause: int | None = None,
) -> Run:
    """Checks, reads, compiles and restores everything that the first step needs.

    With `pause`, a step, the run trains up to there as it would without, and reads no test images.
    """
    logger = RunLogger(config, directory, on_log)
    with logger.clock("data"):
        dataset = open_dataset(config["dataset"], config["manual_dir"])
    spec = dataset.spec
    if processes.is_primary():  # before anything is compiled for the form of other data
        checks.check_data(directory, dataset)
    checks.check_augmentation(config, spec)
    notes = component_checks.check_components(config, config_file, spec)
    model = components.build_model(config, spec)
    source = experiment_file.read(config, config_file)
    devices = find_devices(num_threads)
    mesh = make_mesh(config, len(config_lib.replicas(config)), devices)
    environment = describe_environment(devices, command) | {"num_threads": num_threads}
    console.versions(environment)
    if note := unused_gpu():
        console.once(f"note: {note}")
    unset = config["num_threads"] is None and directory.num_threads() is None
    idle = environment["cpu_count"] - num_threads
    if devices[0].platform == "cpu" and unset and idle > 0:
        console.once(
            f"note: {num_threads} threads, as on every machine, leave {idle} cores idle; "
            f"--config.num_threads={environment['cpu_count']} uses all, and ends with other bits"
        )

    with logger.clock("data"):
        images, labels = read_training(config, dataset)
    num_examples = batches.num_examples(config, labels)
    total = batches.total_steps(config, num_examples)
    console.data(dataset, config, images, labels, num_examples)

    check_memory(config, mesh, batches.Split(images, labels), spec)
    # A checkpoint to resume from makes them irrelevant.
    begins = config["init_from"] and not has_checkpoint(directory.checkpoints)
    init_variables = read_init_variables(config, spec) if begins else None
    if processes.is_primary():
        directory.lock()
    with logger.clock("compile"), compile_cache():
        replicas = Replicas(config, mesh, images, labels, init_variables, spec)
        held_out = config["validation_split"]
        validate, test = None, None
        if held_out:
            read = functools.partial(dataset.read, held_out)
            validate = _evaluator(replicas, logger, dataset.size(held_out), read)
        if pause is None:
            read = functools.partial(folds.read_tested, dataset, config)
            size = dataset.size("test")
            if config["fold"]:
                size = dataset.size(config["train_split"]) - len(labels)
            test = _evaluator(replicas, logger, size, read)
    environment |= {
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "replicas_at_once": replicas.plan.group_size,
        "data": dataset.describe(),
    }
    for note in [*notes, *compiler_note(devices[0].platform)]:
        console.once(note)
    console.network(type(model).__name__, summary.summarize(model, spec))
    if devices[0].platform == "cpu":
        for operation in summary.unoptimized(model, spec):
            console.once(
                f"note: {operation} has no fast form, and its gradient can take 30 times as long "
                "as another convolution's; docs/change-anything.md names the fast ones"
            )
    console.plan(config, environment)

    # Process 0 reads the checkpoint and tells the others.
    best = best_lib.begin(replicas) if config["keep_best"] else None
    template = replicas.template() | ({"best": best.to_tree()} if best else {})
    step, tree, extra, checkpoints = 0, template, None, None
    if processes.is_primary():
        checkpoints = Checkpoints(directory.checkpoints, config["keep"])
        step, tree, extra = checkpoints.restore(template, console.line) or (0, template, None)
        old_environment = checks.check_resumption(directory, dataset, step, total, pause)
        if step:
            console.line(f"resuming from the checkpoint of step {step:,}")
            console.changes(old_environment, environment)
            for note in experiment_file.changed_notes(directory, old_environment, source):
                console.line(note)
        if source is not None:
            environment["experiment"] = source.describe()
            source.keep(directory)
        # Deletes the lines of metrics after `step`: they will be written again.
        is_over = "best" in tree and best_lib.from_tree(tree["best"]).is_over(config["patience"])
        logger.begin(environment, old_environment, step, step if is_over else total)
    if extra := processes.broadcast(extra):  # None: there is no checkpoint
        tree = processes.broadcast_arrays(tree)
        best = best_lib.from_tree(tree.pop("best")) if best else None
        replicas.restore(tree, extra.get("metrics", {}))
        logger.add_seconds(extra["seconds"])
    return Run(
        config=config,
        directory=directory,
        console=console,
        stop=stop,
        logger=logger,
        checkpoints=checkpoints,
        replicas=replicas,
        steps_per_epoch=batches.steps_per_epoch(num_examples, config["batch_size"]),
        total_steps=total,
        first_step=int(extra["step"]) if extra else 0,
        best=best,
        validate=validate,
        test=test,
        pause=pause,
    )


def check(config: Mapping[str, Any], devices: Sequence[Any], config_file: str | None = None) -> int:
    """Raises what `prepare` would because of `config`; returns the length in steps."""
    config_lib.validate(config)
    dataset = open_dataset(config["dataset"], config["manual_dir"])
    checks.check_augmentation(config, dataset.spec)
    component_checks.check_components(config, config_file, dataset.spec)
    mesh = make_mesh(config, len(config_lib.replicas(config)), devices)
    images, labels = read_training(config, dataset)
    check_memory(config, mesh, batches.Split(images, labels), dataset.spec)
    read_init_variables(config, dataset.spec)
    return batches.total_steps(config, batches.num_examples(config, labels))


def read_training(config: Mapping[str, Any], dataset: Dataset) -> Examples:
    """The images that are trained on, after the checks that need none of them."""
    checks.check_splits(dataset, config)
    check_data(
        dataset.size(config["train_split"]), dataset.spec.image_shape, jax.local_devices()[0]
    )
    images, labels = folds.read_training(dataset, config)
    checks.check_labels(labels, config)
    return images, labels


def read_init_variables(config: Mapping[str, Any], spec: DataSpec) -> Variables | None:
    """The variables of the file `init_from`, if there is one."""
    if config["init_from"] is None:
        return None
    state = jax.eval_shape(lambda: state_lib.create_state(config, spec=spec))
    template = make_variables(state.params, state.batch_stats)
    return weights.read_variables(config["init_from"], template, spec.image_shape)


def _evaluator(
    replicas: Replicas, logger: RunLogger, num_examples: int, read_examples: Callable[[], Examples]
) -> Evaluate:
    """Compiles the evaluation of images, which are read at the first evaluation."""
    score = replicas.compile_scoring(num_examples)

    @functools.cache
    def read() -> tuple[batches.Split, np.ndarray, np.ndarray]:
        with logger.clock("data"):
            images, labels = read_examples()
            return replicas.lay_out(images, labels), images, labels

    def evaluate(chosen: Sequence[int]) -> Evaluation:
        laid_out, images, labels = read()
        with logger.clock("evaluate"):
            logits, losses = score(laid_out, chosen)
            networks = zip(logits, losses, strict=True)
            metrics = [summarize(*one, labels, replicas.components.metrics) for one in networks]
        return metrics, logits, labels, images

    return evaluate
