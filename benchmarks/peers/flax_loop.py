"""Flax linen as in its MNIST example: a Python loop that calls one jitted step.

https://github.com/google/flax/tree/main/examples/mnist, with Adam, the tutorial's widths, the
gradient and its application in one jitted function, and a donated state.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state

from benchmarks.peers.serve import serve


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):  # type: ignore[no-untyped-def]
        x = nn.relu(nn.Conv(features=32, kernel_size=(5, 5))(x))
        x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=64, kernel_size=(5, 5))(x))
        x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=1024)(x))
        return nn.Dense(features=10)(x)


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, images, labels):  # type: ignore[no-untyped-def]
    def loss_fn(params):  # type: ignore[no-untyped-def]
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


class Trainer:
    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
        self.images, self.labels = images.astype(np.float32) / 255, labels
        self.batch_size, self.rng = batch_size, np.random.default_rng(0)
        cnn = CNN()
        params = cnn.init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"]
        self.state = train_state.TrainState.create(
            apply_fn=cnn.apply, params=params, tx=optax.adam(1e-3)
        )

    def train(self, rows: slice) -> float:
        order = self.rng.permutation(np.arange(rows.start, rows.stop))
        losses = []
        for perm in order.reshape(-1, self.batch_size):
            self.state, loss = train_step(self.state, self.images[perm], self.labels[perm])
            losses.append(loss)
        return float(np.mean(jax.device_get(losses)))


if __name__ == "__main__":
    serve(Trainer, "jax", "jaxlib", "flax", "optax")
