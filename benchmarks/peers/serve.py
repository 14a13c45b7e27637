"""What the peers have in common: MNIST as arrays, and "train so many steps now" answered.

A request is a line {"batch_size": 32, "steps": 100} on standard input; the answer, on standard
output, is {"seconds": 1.9, "loss": 0.31}: the wall time and the mean training loss of those steps.
The first line, before any request, names the versions.  Between two requests a peer sleeps.

It runs in every peer's environment, so it may import NumPy and nothing else.
"""

from __future__ import annotations

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
    """A network in training, with batches of one size; the first call may compile."""

    def train(self, rows: slice) -> float:
        """One pass over these training images, shuffled: the mean loss.

        `rows` holds a whole number of batches.  A program that has an order of its own over all
        images takes as many steps of that.
        """


def serve(make: Callable[[np.ndarray, np.ndarray, int], Trainer], *packages: str) -> None:
    """Answers requests until there are no more.

    Args:
      make: (images uint8 [60000, 28, 28, 1], labels int32 [60000], batch_size) -> trainer.
      packages: what the versions are told of.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    versions = {name: importlib.metadata.version(name) for name in packages}
    answers.write(json.dumps({"versions": versions}) + "\n")
    images, labels = read("train-images-idx3-ubyte", 16), read("train-labels-idx1-ubyte", 8)
    images, labels = images.reshape(-1, 28, 28, 1), labels.astype(np.int32)
    trainers: dict[int, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        batch_size, count = request["batch_size"], request["batch_size"] * request["steps"]
        trainer, place = trainers.get(batch_size) or (make(images, labels, batch_size), 0)
        if place + count > len(labels):
            place = 0
        began = time.perf_counter()
        loss = trainer.train(slice(place, place + count))
        seconds = time.perf_counter() - began
        trainers[batch_size] = trainer, place + count
        answers.write(json.dumps({"seconds": seconds, "loss": float(loss)}) + "\n")


def read(name: str, header: int) -> np.ndarray:
    """The bytes of one of the embedded IDX files, uint8."""
    return np.frombuffer(gzip.decompress((_MNIST / f"{name}.gz").read_bytes()), np.uint8)[header:]
