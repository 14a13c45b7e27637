"""This package: the compiled program of a run, called as a run calls it.

Without an argument it trains the package's own network; the name of a network of `plain.py` selects
that one, as its author wrote it, and `bfloat16` its computations.
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mnist_cnn
from benchmarks.peers.plain import NETWORKS
from benchmarks.peers.serve import serve
from mnist_cnn.parallel.compile_cache import compile_cache
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.training import batches


class Trainer:
    """Trains the base experiment with some fields changed."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, batch_size: int, **changes: Any
    ) -> None:
        config = mnist_cnn.experiment(batch_size=batch_size, **changes)
        mesh = make_mesh(config, config.num_seeds, jax.devices())
        with compile_cache():
            self.replicas = Replicas(config, mesh, images, labels)
        self.log_every: int = config.log_every
        self.steps_per_epoch = batches.steps_per_epoch(len(labels), batch_size)
        self.batch_size = batch_size
        self.step = 0

    def train(self, rows: slice) -> float:
        return self.take_steps((rows.stop - rows.start) // self.batch_size)

    def take_steps(self, steps: int) -> float:
        """Takes the next steps; returns the mean loss over them and over the replicas."""
        self.replicas.clear_sums()
        end = self.step + steps
        while self.step < end:
            epoch, start = divmod(self.step, self.steps_per_epoch)
            stop = min(start + self.log_every, start + end - self.step, self.steps_per_epoch)
            sums = self.replicas.advance(epoch, start, stop)
            self.step += stop - start
        return float((sums.loss / sums.examples).mean())


def changes(arguments: list[str]) -> dict[str, Any]:
    """The fields that the arguments change."""
    dtype = "bfloat16" if "bfloat16" in arguments else "float32"
    for name, network in NETWORKS.items():
        if name in arguments:
            return {"model": network(dtype=jnp.dtype(dtype))}
    return {"compute_dtype": dtype}


if __name__ == "__main__":
    make = functools.partial(Trainer, **changes(sys.argv[1:]))
    serve(make, "jax", "jaxlib", "flax", "optax")
