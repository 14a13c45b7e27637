"""A run from beginning to end: data, compile, train, evaluate, record.

The shell around the pure `train.py`: it decides which steps the next call takes, and what is
written when.  How it cuts the steps into calls depends on the clock; their result does not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from mnist_cnn import (
    batches,
    config as config_lib,
    data,
    evaluate,
    predictions,
    records,
    summary,
    train,
)
from mnist_cnn.checkpoint import Checkpoints, Tree, sha256
from mnist_cnn.compile_cache import compile_cache
from mnist_cnn.console import Console
from mnist_cnn.errors import CheckpointError, ConfigError, UserError
from mnist_cnn.signals import Stopped, StopRequest

SLICE_SECONDS = 1.0  # about how long one call trains: a signal and the progress bar wait for it
Evaluate = Callable[[Any], dict[str, Any]]  # parameters -> metrics of a split


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
      ConfigError, DataError, CheckpointError: before anything is trained.
      Diverged: the loss or the parameters are not finite; the last good checkpoint is kept.
      Stopped: a signal came; everything so far is saved.
    """
    config_lib.validate(config)
    console = console or Console()
    directory = records.RunDirectory(workdir or records.new_path(config["name"]))
    with contextlib.closing(directory):
        old = directory.read("config.json")
        if old is not None:
            _check_same(directory, old, config)
            result = directory.read("result.json") or {}
            same_length = all(old.get(key) == config[key] for key in config_lib.LENGTH)
            if result.get("status") == "finished" and same_length:
                console.line(f"{directory}: finished; nothing is left to do")
                console.result(result, str(directory))
                return result
        return _Run(config, directory, console, stop or StopRequest(), command).run()


def _check_same(
    directory: records.RunDirectory, old: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    differences = config_lib.differences(old, config_lib.as_dict(config))
    if differences:
        raise ConfigError(
            f"{directory} belongs to another configuration ({'; '.join(differences)}); "
            "give another --workdir, or that configuration"
        )


class _Run:
    """The state of a run that is at work."""

    def __init__(
        self,
        config: Mapping[str, Any],
        directory: records.RunDirectory,
        console: Console,
        stop: StopRequest,
        command: Sequence[str],
    ) -> None:
        self.config = config
        self.directory = directory
        self.console = console
        self.stop = stop
        self.command = command
        self.began = time.monotonic()
        self.seconds = dict.fromkeys(("total", "data", "compile", "train", "evaluate"), 0.0)

    def run(self) -> dict[str, Any]:
        """Everything, in order."""
        config, console = self.config, self.console
        self.environment = records.environment(jax.devices(), self.command)
        console.versions(self.environment)

        with self.clock("data"):
            dataset = data.open_dataset(config["dataset"], config["manual_dir"])
            _check_splits(dataset, config)
            images, labels = dataset.read(config["train_split"])
            self.data = train.Data(jnp.asarray(images), jnp.asarray(labels))
        console.data(dataset, config, len(labels))
        self.num_examples = len(labels)
        self.steps_per_epoch = batches.steps_per_epoch(len(labels), config["batch_size"])
        self.total = config["num_steps"] or config["num_epochs"] * self.steps_per_epoch

        self.directory.lock()
        with self.clock("compile"), compile_cache():
            self.state, self.sums = train.create_state(config), train.Metrics.zero()
            index = jax.ShapeDtypeStruct((), np.int32)
            self.train_steps = train.train_steps.lower(
                self.state, self.sums, self.data, self.order(0), index, index
            ).compile()
            held_out = config["validation_split"]
            validate = self.evaluator(dataset, held_out) if held_out else None
            test = self.evaluator(dataset, "test")
        console.network(type(self.state.model).__name__, summary.summarize(self.state.model))
        self.restore(dataset)

        with self.console.training(int(self.state.step), self.total), self.stop.deferred():
            self.train(validate)
        result = self.finish(test(self.state.params))
        console.result(result, str(self.directory))
        if config["report"]:
            self.report()
        return result

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Counts the wall seconds within as `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began

    # Before the first step.

    def restore(self, dataset: data.Dataset) -> None:
        """Goes on from the last good checkpoint, if there is one, and records this start."""
        directory, config = self.directory, self.config
        self.environment["data"] = {"origin": dataset.origin, "sha256": dataset.files}
        before = directory.read("environment.json")
        if before is not None and before.get("data", {}).get("sha256") != dataset.files:
            raise CheckpointError(
                f"{directory}: the run began with other data files than {dataset.origin} "
                "has now; give those, or another --workdir"
            )
        self.checkpoints = Checkpoints(directory.checkpoints, config["keep"])
        restored = self.checkpoints.restore(self.snapshot(), self.console.line)
        step = 0
        if restored is not None:
            step, tree, extra = restored
            if step > self.total:
                raise ConfigError(
                    f"{directory} has come to step {step:,}, and the configuration ends at "
                    f"{self.total:,}; a run can be prolonged, not shortened"
                )
            self.state = jax.device_put(serialization.from_state_dict(self.state, tree["state"]))
            self.sums = jax.device_put(serialization.from_state_dict(self.sums, tree["sums"]))
            self.seconds.update(extra["seconds"])
            self.began -= extra["seconds"]["total"]
            self.console.line(f"going on from the checkpoint of step {step:,}")
            self.console.changes(before or {}, self.environment)
        directory.write("config.json", config_lib.as_dict(config))
        directory.write("environment.json", self.environment)
        directory.open_metrics(step)

    def snapshot(self) -> Tree:
        """The state and the sums as NumPy arrays of their own, on the host."""
        tree = {
            "state": serialization.to_state_dict(self.state),
            "sums": serialization.to_state_dict(self.sums),
        }
        return jax.tree_util.tree_map(np.array, jax.device_get(tree))

    def order(self, epoch: int) -> jax.Array:
        return train.epoch_order(
            self.state.seed, np.int32(epoch), self.num_examples, self.config["batch_size"]
        )

    # The steps.

    def train(self, validate: Evaluate | None) -> None:
        """Takes the steps that are left, with what is due after each."""
        config = self.config
        step = int(self.state.step)
        epoch, order = -1, None
        per_second, logged, logged_at = 0.0, step, time.monotonic()
        while step < self.total:
            began = time.monotonic()
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            stop = self.next_event(step)
            stop = min(stop, step + max(1, int(per_second * SLICE_SECONDS)))
            first = epoch * self.steps_per_epoch
            with self.clock("train"):
                self.state, self.sums = self.train_steps(
                    self.state, self.sums, self.data, order,
                    np.int32(step - first), np.int32(stop - first),
                )  # fmt: skip
                sums = jax.device_get(self.sums)
            per_second = (stop - step) / (time.monotonic() - began)
            step = stop

            if sums.first_bad_step >= 0:
                self.diverged(int(sums.first_bad_step))
            metrics = {
                "loss": float(sums.loss / sums.examples),
                "accuracy": float(sums.correct / sums.examples),
                "images_per_second": per_second * config["batch_size"],
            }
            self.console.step_done(step, self.total, metrics)
            if step % config["log_every"] == 0 or step == self.total:
                self.check_finite(step)
                elapsed = time.monotonic() - logged_at
                metrics["images_per_second"] = (step - logged) * config["batch_size"] / elapsed
                self.log(step, "train", metrics)
                self.sums = train.Metrics.zero()
                logged, logged_at = step, time.monotonic()
            if validate is not None and self.due(step, config["eval_every"]):
                metrics = validate(self.state.params)
                self.log(step, "validation", metrics)
                self.console.validation(step, metrics)
                logged_at = time.monotonic()
            if step % config["checkpoint_every"] == 0 or step == self.total or self.stop.received:
                self.save(step)
            if self.stop.received:
                self.checkpoints.wait()
                raise Stopped(self.stop.received)

    def next_event(self, step: int) -> int:
        """The first step after `step` at which something is due, or an epoch ends."""
        config, epoch = self.config, self.steps_per_epoch
        every = [config["log_every"], config["checkpoint_every"], config["eval_every"], epoch]
        return min(self.total, *((step // n + 1) * n for n in every if n is not None))

    def due(self, step: int, every: int | None) -> bool:
        """Whether `step` is an `every`-th one (None: the last of an epoch), or the last."""
        return step % (every or self.steps_per_epoch) == 0 or step == self.total

    def log(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        epoch = step / self.steps_per_epoch
        self.directory.log({"step": step, "epoch": round(epoch, 6), "split": split, **metrics})

    def save(self, step: int) -> None:
        self.check_finite(step)
        self.seconds["total"] = time.monotonic() - self.began
        self.checkpoints.save(step, self.snapshot(), {"seconds": self.seconds})

    def check_finite(self, step: int) -> None:
        if not train.is_finite(self.state):
            self.diverged(step)

    def diverged(self, step: int) -> None:
        """Says so in result.json and ends the run; the last good checkpoint stays."""
        self.checkpoints.wait()
        self.seconds["total"] = time.monotonic() - self.began
        self.directory.write(
            "result.json",
            {
                "status": "diverged",
                "experiment": self.config["name"],
                "seeds": [self.config["seed"]],
                "steps": step,
                "seconds": self.seconds,
            },
        )
        raise Diverged(
            f"{self.directory}: the loss or the parameters were not finite at step {step:,}; the "
            "checkpoints before it are kept; try a lower learning_rate than "
            f"{self.config['learning_rate']:g}"
        )

    # After, and between, the steps.

    def evaluator(self, dataset: data.Dataset, split: str) -> Evaluate:
        """Compiles the evaluation of a split; the split is read when it is first wanted."""
        examples = sum(stop - start for _, start, stop in dataset.rows(split))
        score = evaluate.score.lower(
            self.state.model,
            self.state.loss,
            self.state.params,
            jax.ShapeDtypeStruct((examples, 28, 28, 1), np.uint8),
            jax.ShapeDtypeStruct((examples,), np.int32),
            self.config["eval_batch_size"],
        ).compile()

        @functools.cache
        def read() -> tuple[jax.Array, jax.Array]:
            with self.clock("data"):
                images, labels = dataset.read(split)
                return jnp.asarray(images), jnp.asarray(labels)

        def metrics(params: Any) -> dict[str, Any]:
            images, labels = read()
            with self.clock("evaluate"):
                logits, losses = jax.device_get(score(params, images, labels))
                self.scored = logits, np.asarray(labels), np.asarray(images)
                return evaluate.summarize(logits, losses, np.asarray(labels))

        return metrics

    def finish(self, test: dict[str, Any]) -> dict[str, Any]:
        """Waits for the last checkpoint and writes the result."""
        self.log(self.total, "test", test)
        self.checkpoints.wait()
        self.checkpoints.close()
        self.seconds["total"] = time.monotonic() - self.began
        result = {
            "status": "finished",
            "experiment": self.config["name"],
            "seeds": [self.config["seed"]],
            "test": {
                "examples": test["examples"],
                **{key: [test[key]] for key in ("accuracy", "loss", "correct")},
            },
            "test_mean": {"accuracy": test["accuracy"], "ci95": None, "loss": test["loss"]},
            "params_sha256": [sha256(jax.device_get(self.state.params))],
            "steps": self.total,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
        params = jax.device_get(self.state.params)
        self.directory.write_arrays("predictions.npz", predictions.collect(*self.scored, params))
        fields = config_lib.as_dict(self.config)
        self.directory.log_hyperparameters(
            {key: fields[key] for key in fields if key not in config_lib.FREE_ON_RESUME},
            {f"test/{key}": test[key] for key in ("accuracy", "loss")},
            self.total,
        )
        self.directory.write("result.json", result)
        return result

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


def _check_splits(dataset: data.Dataset, config: Mapping[str, Any]) -> None:
    """The splits must exist and not overlap, and training must have a batch."""
    training = dataset.rows(config["train_split"])
    held_out = config["validation_split"]
    for split, start, stop in dataset.rows(held_out) if held_out else ():
        if any(split == s and max(start, a) < min(stop, b) for s, a, b in training):
            raise ConfigError(
                f"config.validation_split: {held_out!r} shares images with train_split "
                f"{config['train_split']!r}; choose parts that do not overlap, such as "
                "'train[55000:]' and 'train[:55000]'"
            )
    examples = sum(stop - start for _, start, stop in training)
    if config["batch_size"] > examples:
        raise ConfigError(
            f"config.batch_size: got {config['batch_size']:,}, expected an integer from 1 to "
            f"{examples:,}, the number of training images"
        )
