"""The smoke check: tries every part of a run in seconds, on this machine and its devices.

    python -m mnist_cnn.main --config experiments/base.py --config.smoke=True

It works in a temporary folder and leaves nothing behind.
"""

import functools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np

from mnist_cnn import config as config_lib
from mnist_cnn.data.dataset import Dataset, open_dataset
from mnist_cnn.errors import UserError
from mnist_cnn.models.kernels.compiler import compiler_note
from mnist_cnn.parallel.devices import find_devices, own_settings, unused_gpu
from mnist_cnn.parallel.memory import check_memory
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.runner import component_checks
from mnist_cnn.runner.checkpoint import Checkpoints, sha256
from mnist_cnn.runner.checks import check_augmentation
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.gradient_check import check_gradient
from mnist_cnn.runner.preparation import read_init_variables, read_training
from mnist_cnn.training.batches import Split, steps_per_epoch
from mnist_cnn.training.metrics import summarize

_PARTS = ("device", "data", "compile", "gradient", "train", "save", "restore", "evaluate")
_STEPS = 3
_SCORED = 1000  # training images: only the final evaluation of a run reads the test split


@own_settings()
def check(
    config: Mapping[str, Any], console: Console | None = None, config_file: str | None = None
) -> bool:
    """Prints a tick for each part that works, or a cross and the reason for the first that fails.

    The network of the complete `config` is trained for a few steps; if each setting of a sweep is a
    run, that of the first setting, and the objects of all of them are checked. Returns whether all
    parts work; raises ConfigError if the configuration is invalid. `config_file` is the experiment
    file.
    """
    config_lib.validate(config)
    settings = [config]
    if not config_lib.has_one_program(config):
        settings = [config_lib.of_setting(config, one) for one in config_lib.settings(config)]
    config = settings[0]
    console = console or Console()
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mnist_cnn-") as folder, mock.patch.dict(os.environ):
        if config["dataset"] == "mnist" or config["manual_dir"] is not None:  # nothing to download
            os.environ["TFDS_DATA_DIR"] = folder
        opened = functools.cache(lambda: open_dataset(config["dataset"], config["manual_dir"]))
        results = _try_parts(config, opened, pathlib.Path(folder, "checkpoints"))
        for part in _PARTS:
            start = time.monotonic()
            try:
                result = next(results)
            except Exception as error:
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                console.checked(part, False, kind + " ".join(str(error).split()))
                return False
            console.checked(part, True, f"{result} ({time.monotonic() - start:.1f} s)")
            if part == "data":
                check_augmentation(config, opened().spec)
                for one in settings[1:]:
                    read_training(one, opened())
                for one in settings:
                    notes += component_checks.check_components(one, config_file, opened().spec)
            if part == "compile":
                for note in [*dict.fromkeys(notes), *compiler_note(jax.devices()[0].platform)]:
                    console.line(note)
    return True


def _try_parts(
    config: Mapping[str, Any], opened: Callable[[], Dataset], folder: pathlib.Path
) -> Iterator[str]:
    """Tries the parts in the order of `_PARTS`: yields the result of each, or raises."""
    devices, note = find_devices(config["num_threads"]), unused_gpu()
    used = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    yield f"{used}; {note}" if note else used

    dataset = opened()
    images, labels = read_training(config, dataset)
    read_init_variables(config, dataset.spec)
    yield f"{len(labels):,} training images of {dataset.name}, from {dataset.origin}"

    mesh = make_mesh(config, len(config_lib.replicas(config)), devices)
    check_memory(config, mesh, Split(images, labels), dataset.spec)
    replicas = Replicas(config, mesh, images, labels, spec=dataset.spec)
    yield "the training program"

    yield f"of a small network, within {check_gradient():.0e} of a float64 reference"

    steps = min(_STEPS, steps_per_epoch(replicas.num_examples, config["batch_size"]))
    sums = replicas.advance(0, 0, steps)
    if not (np.isfinite(sums.loss).all() and replicas.finite().all()):
        raise UserError(f"the loss or the parameters are not finite after {steps} steps")
    yield f"{steps} steps, loss {np.mean(sums.loss / sums.examples):.4f}"

    saved = replicas.snapshot()
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(steps, saved, {"step": steps})
    checkpoints.wait()
    yield "a checkpoint"

    replicas.advance(0, 0, 1)  # changes the state, so that restoring it changes it back
    restored = checkpoints.restore(saved, report=lambda line: None)
    checkpoints.close()
    assert restored is not None
    replicas.restore(restored[1], {})
    if sha256(replicas.snapshot()) != sha256(saved):
        raise UserError("the restored state is not the saved one")
    yield "the same bits"

    images, labels = images[:_SCORED], labels[:_SCORED]
    score = replicas.compile_scoring(len(labels))
    logits, losses = score(replicas.lay_out(images, labels), [0])
    metrics = summarize(logits[0], losses[0], labels)
    if not np.isfinite(metrics["loss"]):
        raise UserError("the loss is not finite")
    yield f"{metrics['correct']:,} of {metrics['examples']:,} training images right"
