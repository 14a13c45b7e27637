"""A small network with every option whose state is in a checkpoint."""

from flax import linen as nn

import mnist_cnn


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = images[:, ::4, ::4].reshape(images.shape[0], -1)
        x = nn.relu(nn.Dense(8)(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(10)(x)


def get_config():
    return mnist_cnn.experiment(
        name="old",
        model=Tiny(),
        train_split="train[:500]",
        batch_size=30,
        num_steps=40,
        num_seeds=2,
        log_every=10,
        checkpoint_every=10,
        keep=2,
        ema=0.9,
        learning_rate=0.01,
        report=False,
    )
