"""Flax linen as in its MNIST example: a Python loop that calls one jitted step.

https://github.com/google/flax/tree/main/examples/mnist, with Adam, the tutorial's widths, the
gradient and its application in one jitted function, and a donated state. The argument is the name
of a network of `plain.py`.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from benchmarks.peers.plain import NETWORKS
from benchmarks.peers.serve import serve


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_step(state, batch_stats, images, labels):  # type: ignore[no-untyped-def]
    rngs = {"dropout": jax.random.fold_in(jax.random.key(1), state.step)}
    train = {"train": True} if batch_stats else {}

    def loss_fn(params):  # type: ignore[no-untyped-def]
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = state.apply_fn(
            variables, images, rngs=rngs, mutable=["batch_stats"], **train
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updated.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), batch_stats, loss


class Trainer:
    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
        self.images, self.labels = images.astype(np.float32) / 255, labels
        self.batch_size, self.rng = batch_size, np.random.default_rng(0)
        network = NETWORKS[sys.argv[1] if len(sys.argv) > 1 else "tutorial"]()
        variables = network.init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
        self.batch_stats = variables.get("batch_stats", {})
        self.state = train_state.TrainState.create(
            apply_fn=network.apply, params=variables["params"], tx=optax.adam(1e-3)
        )

    def train(self, rows: slice) -> float:
        order = self.rng.permutation(np.arange(rows.start, rows.stop))
        losses = []
        for perm in order.reshape(-1, self.batch_size):
            self.state, self.batch_stats, loss = train_step(
                self.state, self.batch_stats, self.images[perm], self.labels[perm]
            )
            losses.append(loss)
        return float(np.mean(jax.device_get(losses)))


if __name__ == "__main__":
    serve(Trainer, "jax", "jaxlib", "flax", "optax")
