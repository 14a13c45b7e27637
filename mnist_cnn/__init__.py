"""A convolutional network on MNIST in functional JAX: reproducible, resumable, offline.

    import mnist_cnn
    result = mnist_cnn.run(mnist_cnn.experiment(num_epochs=1), "runs/mine")
    network = mnist_cnn.load("runs/mine")
    logits = network(images)  # uint8 [N, 28, 28, 1] -> float32 [N, 10]

Importing the package loads no JAX: each function imports what it needs when it is called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mnist_cnn.version import __version__

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from mnist_cnn.analysis.network import Network

__all__ = ["__version__", "experiment", "load", "run"]


def experiment(**changes: Any) -> ConfigDict:
    """The base experiment's configuration with some fields changed (see `config.experiment`)."""
    from mnist_cnn import config

    return config.experiment(**changes)


def run(config: ConfigDict, workdir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Trains and evaluates a network, or resumes the run in `workdir` (see `runner.loop.run`)."""
    from mnist_cnn import report
    from mnist_cnn.runner import loop

    return loop.run(config, workdir, write_report=report.write)


def load(
    workdir: str | os.PathLike[str], config: ConfigDict | None = None, seed: int | None = None
) -> Network:
    """The trained network of a run directory, a callable on uint8 images [N, 28, 28, 1].

    `config` is needed only if the experiment brings its own model; `seed` chooses among the
    networks of a run that trained several, by default the first.
    """
    from mnist_cnn.analysis import network

    return network.load(workdir, config, seed)
