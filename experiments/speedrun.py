"""99 % test accuracy in the fewest seconds on a CPU, from the command to the printed accuracy.

    python -m mnist_cnn.main --config experiments/speedrun.py

Result: 99.07 ± 0.02 % test accuracy, mean of 30 seeds (--config.num_seeds=30).
Cost: one seed takes 4.2 s on 2 cores of an AMD EPYC, or 2.8 s with a full compile cache.

A small network on images of a quarter of the size with four channels, trained for 0.64 of an
epoch. Its first layer is a fixed bank of Gabor filters. This saves half of a step: the gradients
of convolution and pooling where the images are large. Everything was chosen on the last 5,000
training images, with trainings on the first 55,000. For another length change STEPS, which the
optimizer's schedule reads, instead of num_steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import mnist_cnn
from mnist_cnn.models import layers

STEPS = 300


def gabor(key, shape, dtype=jnp.float32):
    """A bank of Gabor filters (Daugman 1985) of 6 x 6 pixels and norm 1: a kernel [3, 3, 4, 16].

    Edges in eight directions, and a bright and a dark line in each of four directions. They are
    not random: `key` is ignored.
    """
    del key
    y, x = np.mgrid[-2.5:3.0, -2.5:3.0]
    envelope = np.exp(-(x**2 + y**2) / 8)
    envelope /= envelope.sum()

    def wave(function, angle):
        return function(1.4 * (x * np.cos(angle) + y * np.sin(angle)))

    edges = [wave(np.sin, angle) for angle in 2 * np.pi * np.arange(8) / 8]
    lines = [wave(np.cos, angle) for angle in np.pi * np.arange(4) / 4]
    lines = [line - (envelope * line).sum() for line in lines]  # no response to uniform brightness
    bank = np.stack([*edges, *lines, *(-line for line in lines)], -1) * envelope[..., None]
    bank /= np.sqrt((bank**2).sum((0, 1)))
    blocks = bank.reshape(3, 2, 3, 2, -1).transpose(0, 2, 1, 3, 4)
    return jnp.asarray(blocks.reshape(shape), dtype)


class Small(nn.Module):
    """0.32 M multiply-adds per image."""

    num_classes: int = 10  # receives that of the data

    @nn.compact
    def __call__(self, images):  # float32 [B, H, W, C], 0..1, of at least 16 x 16
        if images.shape[-1] > 1:
            images = images.mean(-1, keepdims=True)
        h, w = images.shape[1] // 2, images.shape[2] // 2
        x = images[:, : 2 * h, : 2 * w].reshape(-1, h, 2, w, 2)
        x = x.transpose(0, 1, 3, 2, 4).reshape(-1, h, w, 4)
        fixed = {"kernel_init": gabor, "bias_init": nn.initializers.constant(-0.2)}
        x = nn.relu(layers.Conv(16, (3, 3), padding="VALID", name="conv1", **fixed)(x))
        x = jax.lax.stop_gradient(layers.max_pool(x, (2, 2)))
        x = nn.relu(layers.Conv(48, (3, 3), padding="VALID", name="conv2")(x))
        x = nn.relu(layers.Dense(160, name="dense1")(x.reshape(x.shape[0], -1)))
        return layers.Dense(self.num_classes, name="dense2")(x)


def optimizer(learning_rate):
    """Adam (Kingma & Ba 2014) with a one-cycle schedule (Smith 2018)."""
    schedule = optax.cosine_onecycle_schedule(STEPS, learning_rate, pct_start=0.1)
    # Without optax.flatten: XLA's code for one long vector reads, masked, far beyond small arrays,
    # and a step takes three times as long if no memory is mapped there.
    adam = optax.adam(schedule, b1=0.7, b2=0.9)
    return optax.masked(adam, {"conv1": False, "conv2": True, "dense1": True, "dense2": True})


def get_config():
    return mnist_cnn.experiment(
        name="speedrun",
        model=Small(),
        optimizer=optimizer,
        learning_rate=0.01,
        label_smoothing=0.15,
        batch_size=128,
        num_steps=STEPS,
        report=False,
    )
