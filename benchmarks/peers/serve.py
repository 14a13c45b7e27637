"""What all peers share: MNIST as arrays, and the answers to requests for training steps.

A request is a line {"batch_size": 32, "steps": 100} on standard input. The answer on standard
output is {"seconds": 1.9, "loss": 0.31}: the wall time and the mean training loss of those steps.
The first output line, before any request, has the versions.

This file runs in every peer's environment, so it imports only NumPy.
"""

import gzip
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

_MNIST = pathlib.Path(__file__).parents[2] / "mnist_cnn" / "data" / "mnist"


class Trainer(Protocol):
    """Trains a network with batches of one size."""

    def train(self, rows: slice) -> float:
        """Trains on these images once, shuffled; returns the mean loss. The first call may compile.

        `rows` is a whole number of batches. A program with its own order of all images takes
        that number of steps of it.
        """


def serve(make: Callable[[np.ndarray, np.ndarray, int], Trainer], *packages: str) -> None:
    """Answers requests until the input ends.

    Args:
      make: (images uint8 [60000, 28, 28, 1], labels int32 [60000], batch_size) -> trainer.
      packages: the packages whose versions are reported.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print elsewhere
    versions = {name: importlib.metadata.version(name) for name in packages}
    answers.write(json.dumps({"versions": versions}) + "\n")
    images, labels = read("train-images-idx3-ubyte", 16), read("train-labels-idx1-ubyte", 8)
    images, labels = images.reshape(-1, 28, 28, 1), labels.astype(np.int32)
    trainers: dict[int, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        batch_size, count = request["batch_size"], request["batch_size"] * request["steps"]
        trainer, first = trainers.get(batch_size) or (make(images, labels, batch_size), 0)
        if first + count > len(labels):
            first = 0
        began = time.perf_counter()
        loss = trainer.train(slice(first, first + count))
        seconds = time.perf_counter() - began
        trainers[batch_size] = trainer, first + count
        answers.write(json.dumps({"seconds": seconds, "loss": float(loss)}) + "\n")


def read(name: str, header: int) -> np.ndarray:
    """The content of one of the package's IDX files after its header, uint8."""
    return np.frombuffer(gzip.decompress((_MNIST / f"{name}.gz").read_bytes()), np.uint8)[header:]
