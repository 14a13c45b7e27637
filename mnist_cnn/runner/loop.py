"""A run from beginning to end: data, compile, train, evaluate, record.

The shell around the pure `train.py`: it decides which steps the next call takes, and what is
written when.  How it cuts the steps into calls depends on the clock; their result does not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mnist_cnn import config as config_lib, evaluate
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.models import summary
from mnist_cnn.parallel import processes
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.parallel.mesh import make_mesh, peak_memory
from mnist_cnn.parallel.replicas import Replicas, Split
from mnist_cnn.runner import checks, predictions, profile, results, run_directory
from mnist_cnn.runner.checkpoint import Checkpoints, sha256
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.environment import describe_environment
from mnist_cnn.runner.run_logger import Journal
from mnist_cnn.runner.signals import Stopped, StopRequest
from mnist_cnn.training import batches, recipe, train

# About how long one call trains: the progress bar waits for it, and a signal does.
_SLICE_SECONDS = 1.0
# The first step of a call takes a millisecond more.  So where steps are slow, as of many replicas,
# a call has several of them, and lasts a little longer.
_SEVERAL_STEPS, _LONG_SLICE_SECONDS = 4, 2.5


Scored = tuple[list[dict[str, Any]], np.ndarray, np.ndarray, np.ndarray]
Evaluate = Callable[[Sequence[int]], Scored]  # replicas -> figures, logits, labels, images


class Diverged(UserError):
    """The loss, the parameters or the optimiser's averages are not finite any more."""


def run(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str] | None = None,
    *,
    command: Sequence[str] = (),
    console: Console | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Trains and evaluates `config`; goes on from the last good checkpoint if `workdir` has one.

    Args:
      config: a complete configuration (`mnist_cnn.experiment`).
      workdir: the run directory; None makes runs/<experiment>-<time>.
      command: what the user typed, for the record.
      console: where to show progress.
      stop: the signals to obey, if the caller handles any.

    Returns:
      The result, as result.json holds it.

    Raises:
      ConfigError, DataError: before anything is trained.
      CheckpointError: the same, or a checkpoint cannot be written; those before it are kept.
      Diverged: the loss or the parameters are not finite; the last good checkpoint is kept.
      Stopped: a signal came; everything so far is saved.
    """
    config_lib.validate(config)
    if config["smoke"]:
        raise ConfigError("config.smoke: that is no run; from Python it is mnist_cnn.smoke.check")
    console = console or Console(quiet=not processes.is_primary())
    directory = run_directory.RunDirectory(workdir or run_directory.new_run_path(config["name"]))
    with contextlib.closing(directory):
        result = processes.broadcast(
            checks.finished(directory, config) if processes.is_primary() else None
        )
        if result is not None:
            console.line(f"{directory}: finished; nothing is left to do")
            console.result(result, str(directory))
            return result
        return _Run(config, directory, console, stop or StopRequest(), command).run()


class _Run:
    """The state of a run that is at work."""

    def __init__(
        self,
        config: Mapping[str, Any],
        directory: run_directory.RunDirectory,
        console: Console,
        stop: StopRequest,
        command: Sequence[str],
    ) -> None:
        self.config = config
        self.directory = directory
        self.console = console
        self.stop = stop
        self.command = command
        self.validated: tuple[int, list[dict[str, Any]]] = -1, []  # the step, and each one's
        self.journal = Journal(config, directory, console)

    def run(self) -> dict[str, Any]:
        """Everything, in order."""
        config, console = self.config, self.console
        model = train.parts(config)[0]
        devices = jax.devices()
        mesh = make_mesh(config, len(config_lib.replicas(config)), devices)
        self.environment = describe_environment(devices, self.command)
        console.versions(self.environment)

        with self.journal.clock("data"):
            dataset = data.open_dataset(config["dataset"], config["manual_dir"])
            checks.check_splits(dataset, config)
            images, labels = dataset.read(config["train_split"])
        num_examples = len(labels)
        console.data(dataset, config, num_examples)
        self.steps_per_epoch = batches.steps_per_epoch(num_examples, config["batch_size"])
        self.total = train.total_steps(config, num_examples)
        checks.check_length(config, self.total)

        given = self.given()
        if processes.is_primary():
            self.directory.lock()
        with self.journal.clock("compile"), compile_cache():
            self.replicas = Replicas(config, mesh, images, labels, given)
            held_out = config["validation_split"]
            self.validate = self.evaluator(dataset, held_out) if held_out else None
            self.test = self.evaluator(dataset, "test")
        self.all = range(len(self.replicas.members))
        self.environment["mesh"] = dict(mesh.shape)
        self.environment["processes"] = jax.process_count()
        self.environment["replicas_at_once"] = self.replicas.at_once
        console.network(type(model).__name__, summary.summarize(model))
        console.plan(config, self.environment)
        step = self.restore(dataset)

        trace = profile.Trace(self.directory.path if processes.is_primary() else None, step)
        before = self.journal.seconds()["train"]
        with (
            console.training(step, self.total),
            self.stop.deferred(),
            contextlib.closing(trace),
        ):
            self.train(step, trace if config["profile"] else None)
        if config["profile"] and step < self.total:
            work = profile.work(self.replicas)
            seconds = self.journal.seconds()["train"] - before
            console.profile(work, self.total - step, seconds, trace.first, str(self.directory))
        try:
            result = processes.broadcast(self.finish())
        except Stopped:
            if processes.is_primary():
                self.checkpoints.wait()
            raise
        console.result(result, str(self.directory))
        console.memory(peak_memory())
        if config["report"] and processes.is_primary():
            self.report()
        return result

    # Before the first step.

    def given(self) -> Any:
        """What the networks begin with, where a file says it and no checkpoint does."""
        path = self.config["init_from"]
        if path is None or any(self.directory.checkpoints.glob("[0-9]*")):
            return None
        from mnist_cnn.models import weights

        state = jax.eval_shape(lambda: train.create_state(self.config))
        return weights.read_variables(path, recipe.variables(state.params, state.batch_stats))

    def restore(self, dataset: data.Dataset) -> int:
        """Goes on from the last good checkpoint, if there is one: the step that was reached."""
        tree, extra = self.replicas.template(), None
        if processes.is_primary():
            self.checkpoints = Checkpoints(self.directory.checkpoints, self.config["keep"])
            restored = self.checkpoints.restore(tree, self.console.line)
            step = restored[0] if restored else 0
            self.journal.begin(self.environment, dataset, step, self.total)
            if restored is not None:
                _, tree, extra = restored
        extra = processes.broadcast(extra)
        if extra is None:
            return 0
        self.replicas.restore(processes.broadcast_arrays(tree))
        self.journal.go_on(extra["seconds"])
        return int(extra["step"])

    # The steps.

    def train(self, step: int, trace: profile.Trace | None) -> None:
        """Takes the steps that are left after `step`, with what is due after each."""
        config = self.config
        images_a_step = config["batch_size"] * len(self.all)
        logged, logged_at, at_once = step, time.monotonic(), 1
        while step < self.total:
            began = time.monotonic()
            epoch = step // self.steps_per_epoch
            stop = min(self.next_event(step), step + at_once)
            if trace is not None:
                stop = int(min(stop, trace.bound(step)))
            traced = trace.around(step) if trace is not None else contextlib.nullcontext()
            with traced, self.journal.clock("train"):
                first = epoch * self.steps_per_epoch
                sums = self.replicas.advance(epoch, step - first, stop - first)
            per_second = (stop - step) / (time.monotonic() - began)
            several = min(_SEVERAL_STEPS, int(per_second * _LONG_SLICE_SECONDS))
            (at_once, _), (_, signal) = processes.agree(
                [max(1, several, int(per_second * _SLICE_SECONDS)), self.stop.received or 0]
            )
            step = stop

            bad = sums.first_bad_step[sums.first_bad_step >= 0]
            if bad.size and not config["sweep"]:
                self.diverged(int(bad.min()))
            metrics = {"loss": sums.loss / sums.examples, "accuracy": sums.correct / sums.examples}
            self.console.step_done(step, self.total, metrics, per_second * images_a_step)
            if step % config["log_every"] == 0 or step == self.total:
                self.check_finite(step)
                elapsed = time.monotonic() - logged_at
                images_per_second = (step - logged) * images_a_step / elapsed
                self.log(step, "train", metrics, images_per_second=images_per_second)
                self.replicas.clear_sums()
                logged, logged_at = step, time.monotonic()
            if self.validate is not None and self.due(step, config["eval_every"]):
                self.validated = step, self.validate(self.all)[0]
                self.log(step, "validation", results.stack_metrics(self.validated[1]))
                self.console.validation(*self.validated)
                logged_at = time.monotonic()
            if step % config["checkpoint_every"] == 0 or step == self.total or signal:
                self.save(step)
            if signal:
                self.leave(signal)
        _, (signal,) = processes.agree([self.stop.received or 0])
        if signal:  # it came while the last step was seen to
            self.leave(signal)

    def leave(self, signal: int) -> None:
        if processes.is_primary():
            self.checkpoints.wait()
        raise Stopped(signal)

    def next_event(self, step: int) -> int:
        """The first step after `step` at which something is due, or an epoch ends."""
        config, epoch = self.config, self.steps_per_epoch
        every = [config["log_every"], config["checkpoint_every"], config["eval_every"], epoch]
        return min(self.total, *((step // n + 1) * n for n in every if n is not None))

    def due(self, step: int, every: int | None) -> bool:
        """Whether `step` is an `every`-th one (None: the last of an epoch), or the last."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.total

    def log(self, step: int, split: str, metrics: Mapping[str, Any], **others: float) -> None:
        self.journal.log(step, step / self.steps_per_epoch, split, metrics, **others)

    def save(self, step: int) -> None:
        self.check_finite(step)
        tree = self.replicas.snapshot()
        if processes.is_primary():
            self.checkpoints.save(step, tree, {"step": step, "seconds": self.journal.seconds()})

    def check_finite(self, step: int) -> None:
        """A sweep goes on without a setting of which any diverges, as long as one is left."""
        finite = self.replicas.finite().reshape(-1, self.config["num_seeds"]).all(1)
        if not (finite.any() if self.config["sweep"] else finite.all()):
            self.diverged(step)

    def diverged(self, step: int) -> None:
        """Says so in result.json and ends the run; the last good checkpoint stays."""
        if processes.is_primary():
            self.checkpoints.wait()
            self.journal.diverge(step, [replica.seed for replica in self.replicas.members])
        rates = (self.config["sweep"] or {}).get("learning_rate", [self.config["learning_rate"]])
        rate = min(rates)
        raise Diverged(
            f"{self.directory}: the loss or the parameters were not finite at step {step:,}; the "
            f"checkpoints before it are kept; try a lower learning_rate than {rate:g}"
        )

    # After, and between, the steps.

    def evaluator(self, dataset: data.Dataset, split: str) -> Evaluate:
        """Compiles the evaluation of a split; the split is read when it is first wanted."""
        score = self.replicas.scoring(sum(stop - start for _, start, stop in dataset.rows(split)))

        @functools.cache
        def read() -> tuple[Split, np.ndarray, np.ndarray]:
            with self.journal.clock("data"):
                images, labels = dataset.read(split)
                return self.replicas.lay_out(images, labels), images, labels

        def run(members: Sequence[int]) -> Scored:
            laid_out, images, labels = read()
            with self.journal.clock("evaluate"):
                logits, losses = score(laid_out, members)
                figures = [
                    evaluate.summarize(*pair, labels) for pair in zip(logits, losses, strict=True)
                ]
            return figures, logits, labels, images

        return run

    def finish(self) -> dict[str, Any]:
        """Tests the networks, those of the best setting of a sweep, and writes the result."""
        config = self.config
        members: Sequence[int] = self.all
        swept = {}
        if config["sweep"]:
            step, figures = self.validated
            if step != self.total:  # this process did not come to it
                assert self.validate is not None  # the configuration was checked
                figures = self.validate(self.all)[0]
            swept = {
                "sweep": results.sweep_result(config, figures, self.replicas.finite().tolist())
            }
            first = swept["sweep"]["chosen"] * config["num_seeds"]
            members = range(first, first + config["num_seeds"])
        figures, logits, labels, images = self.test(members)
        networks = self.replicas.variables(members)
        if not processes.is_primary():
            return {}
        tested = results.stack_metrics(figures)
        self.log(self.total, "test", tested)
        self.checkpoints.wait()
        self.checkpoints.close()
        found = {
            "seeds": [self.replicas.members[member].seed for member in members],
            "test": tested,
            "test_mean": results.mean_metrics(figures),
            **({"ensemble": results.ensemble_metrics(logits, labels)} if len(members) > 1 else {}),
            **swept,
            "params_sha256": [sha256(one) for one in networks],
        }
        kept = predictions.collect(logits, labels, images, networks[0]["params"])
        return self.journal.finish(self.total, found, kept)

    def report(self) -> None:
        """The result in pictures.  They cost a finished run neither its result nor its status."""
        try:
            from mnist_cnn import report  # matplotlib is imported for this alone

            report.write([self.directory.path], self.directory.path / "report.html")
            self.console.line(f"report: {self.directory}/report.html")
        except Exception as error:
            self.console.line(
                f"note: no report.html ({type(error).__name__}: {error}); "
                f"python -m mnist_cnn.report --workdir {self.directory} tries again"
            )
