"""A convolutional network on MNIST in functional JAX: reproducible, resumable, offline.

    import mnist_cnn
    result = mnist_cnn.run(mnist_cnn.experiment(num_epochs=1), "runs/mine")
    network = mnist_cnn.load("runs/mine")
    logits = network(images)  # uint8 [N, 28, 28, 1] -> float32 [N, 10], of other data its form

The pieces of a training, for an experiment's own step or a loop of one's own, are
mnist_cnn.create_state, train_step, descend and the others of `_PIECES`.

Importing the package loads no JAX: each function imports what it needs when it is called.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from mnist_cnn.version import __version__

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from mnist_cnn.analysis.network import Network

# Public names of modules that import JAX: in the package they are loaded at their first use.
_PIECES = {
    "random_key": "training.rng:key",
    "Split": "training.batches:Split",  # images and labels of a whole split
    "epoch_order": "training.batches:epoch_order",
    "take": "training.batches:take",  # a batch of a split
    "scale": "models.apply:scale",
    "create_state": "training.state:create_state",
    "train_step": "training.step:train_step",
    "train_steps": "training.step:train_steps",
    "augment_images": "training.options:augment_images",
    "training_forward": "training.options:training_forward",
    "training_loss": "training.options:training_loss",
    "descend": "training.step:descend",
    "Metrics": "training.metrics:Metrics",
    "score": "training.scoring:score",
    "summarize": "training.metrics:summarize",
}

__all__ = ["__version__", "experiment", "load", "run", *_PIECES]


def __getattr__(name: str) -> Any:
    if name not in _PIECES:
        raise AttributeError(f"module 'mnist_cnn' has no attribute {name!r}")
    module, _, attribute = _PIECES[name].partition(":")
    return getattr(importlib.import_module(f"mnist_cnn.{module}"), attribute)


def experiment(**changes: Any) -> ConfigDict:
    """The base experiment's configuration with some fields changed (see `config.experiment`)."""
    from mnist_cnn import config

    return config.experiment(**changes)


def run(
    config: ConfigDict,
    workdir: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
    on_log: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Trains and evaluates a network, or resumes the run in `workdir` (see `runner.loop.run`).

    It prints nothing if `quiet`. `on_log` is called with each line of metrics.jsonl, as an object.
    Ctrl-C, also in a notebook, saves and raises a KeyboardInterrupt that says how to resume, unless
    the caller handles SIGINT. A second one, some seconds later, does not wait for that.
    """
    with _quiet_libraries():
        from mnist_cnn import report
        from mnist_cnn.runner import console, loop, signals

        stop = signals.StopRequest()
        try:
            with stop.keyboard_interrupts():
                return loop.run(
                    config, workdir, console=console.Console(quiet=True) if quiet else None,
                    stop=stop, write_report=report.write, on_log=on_log,
                )  # fmt: skip
        except signals.Stopped as stopped:
            resume = f"mnist_cnn.run(config, {stopped.run_directory!r})"
        raise KeyboardInterrupt(f"stopped by SIGINT; saved. To resume: {resume}")


def load(
    workdir: str | os.PathLike[str],
    config: ConfigDict | None = None,
    seed: int | Literal["all"] | None = None,
    step: int | None = None,
) -> Network:
    """The trained network of a run directory, a callable on uint8 images [N, H, W, C].

    `workdir` may also be a file of `export --format safetensors`, or "digits", the network that
    comes with the package.
    `config` is needed only if the experiment has its own model; `seed` chooses among the
    networks of a run that trained several, by default the first, and "all" is their ensemble: the
    mean of their probabilities. `step` is that of a checkpoint; by default the network is the one
    that was tested.
    """
    with _quiet_libraries():
        from mnist_cnn.analysis import loading

        return loading.load(workdir, config, seed, step)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Within it, libraries print no warnings; those of the caller's own code appear."""
    import logging
    import warnings

    from absl import logging as absl_logging

    if absl_logging.get_verbosity() >= absl_logging.DEBUG:  # a command with --verbosity=1
        yield
        return
    names = "array_record etils flax jax matplotlib numpy optax orbax scipy tensorboardX"
    libraries = [*names.split(), "absl", "tensorflow_datasets"]
    loggers = [absl_logging.get_absl_logger(), logging.getLogger("jax")]
    levels = {logger: logger.level for logger in loggers}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=rf"({'|'.join(libraries)})(\.|$)")
        for logger, level in levels.items():
            logger.setLevel(max(level, logging.ERROR))
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
