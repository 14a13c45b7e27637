"""Does the installation work on this device?  Every part of a run, tried in seconds.

    python -m mnist_cnn.main --config experiments/base.py --config.smoke=True

It uses the parts that a run uses, in a temporary folder, and leaves nothing behind.  What it
computes is of no use to anybody.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mnist_cnn import config as config_lib
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import UserError
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.runner.checkpoint import Checkpoints, sha256
from mnist_cnn.runner.console import Console
from mnist_cnn.training import batches
from mnist_cnn.training.scoring import summarize

_STEPS = 3
_SCORED = 1000  # training images: the test split is read by a run's final evaluation alone


def check(config: Mapping[str, Any], console: Console | None = None) -> bool:
    """Tries each part and prints a tick for it, or a cross and why: whether all of them work.

    Args:
      config: a complete configuration; its network is trained for a few steps.
      console: where to print.

    Raises:
      ConfigError: the configuration is none.
    """
    config_lib.validate(config)
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="mnist_cnn-") as folder, _data_in(folder, config):
        trial = _Trial(config, pathlib.Path(folder))
        parts: list[Callable[[], str]] = [
            trial.device, trial.data, trial.compile, trial.train, trial.save, trial.restore,
            trial.evaluate,
        ]  # fmt: skip
        for part in parts:
            began = time.monotonic()
            try:
                said = part()
            except Exception as error:
                text = " ".join(str(error).split())
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                console.checked(part.__name__, False, kind + text)
                return False
            console.checked(part.__name__, True, f"{said} ({time.monotonic() - began:.1f} s)")
    return True


@contextlib.contextmanager
def _data_in(folder: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Data are prepared in `folder`; what must be downloaded stays where a run looks for it."""
    old = os.environ.get("TFDS_DATA_DIR")
    if config["dataset"] == "mnist" or config["manual_dir"] is not None:
        os.environ["TFDS_DATA_DIR"] = folder
    try:
        yield
    finally:
        os.environ.pop("TFDS_DATA_DIR", None)
        if old is not None:
            os.environ["TFDS_DATA_DIR"] = old


class _Trial:
    """The parts in their order; each says what it did, or raises."""

    def __init__(self, config: Mapping[str, Any], folder: pathlib.Path) -> None:
        self.config, self.folder = config, folder

    def device(self) -> str:
        devices = jax.devices()
        if float(jax.numpy.ones(8) @ jax.numpy.ones(8)) != 8:
            raise UserError("it computes wrong sums")
        return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"

    def data(self) -> str:
        dataset = data.open_dataset(self.config["dataset"], self.config["manual_dir"])
        self.images, self.labels = dataset.read(self.config["train_split"])
        return f"{len(self.labels):,} training images of {dataset.name}, from {dataset.origin}"

    def compile(self) -> str:
        count = len(config_lib.replicas(self.config))
        mesh = make_mesh(self.config, count, jax.devices())
        self.replicas = Replicas(self.config, mesh, self.images, self.labels)
        return "the training program"

    def train(self) -> str:
        steps = min(_STEPS, batches.steps_per_epoch(len(self.labels), self.config["batch_size"]))
        sums = self.replicas.advance(0, 0, steps)
        if not (np.isfinite(sums.loss).all() and self.replicas.finite().all()):
            raise UserError(f"the loss or the parameters are not finite after {steps} steps")
        return f"{steps} steps, loss {np.mean(sums.loss / sums.examples):.4f}"

    def save(self) -> str:
        self.tree = self.replicas.snapshot()
        checkpoints = Checkpoints(self.folder / "checkpoints", keep=2)
        checkpoints.save(_STEPS, self.tree, {"step": _STEPS})
        checkpoints.wait()
        checkpoints.close()
        return "a checkpoint"

    def restore(self) -> str:
        self.replicas.advance(0, 0, 1)  # away from what was saved
        checkpoints = Checkpoints(self.folder / "checkpoints", keep=None)
        restored = checkpoints.restore(self.tree, report=lambda line: None)
        checkpoints.close()
        assert restored is not None
        self.replicas.restore(restored[1])
        if sha256(self.replicas.snapshot()) != sha256(self.tree):
            raise UserError("what was restored is not what was saved")
        return "the same bits"

    def evaluate(self) -> str:
        images, labels = self.images[:_SCORED], self.labels[:_SCORED]
        score = self.replicas.compile_scoring(len(labels))
        logits, losses = score(self.replicas.lay_out(images, labels), [0])
        figures = summarize(logits[0], losses[0], labels)
        if not np.isfinite(figures["loss"]):
            raise UserError("the loss is not finite")
        return f"{figures['correct']:,} of {figures['examples']:,} training images right"
