"""Networks of the tests: as small as the claims allow."""

from flax import linen as nn

from mnist_cnn.models import layers


class Linear(nn.Module):
    """The smallest network."""

    @nn.compact
    def __call__(self, images):
        return layers.Dense(10)(images.reshape(images.shape[0], -1))


class Normalized(nn.Module):
    """A hidden layer with batch normalization and dropout."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(8)(images.reshape(images.shape[0], -1))
        x = nn.Dropout(self.rate, deterministic=not train)(layers.BatchNorm(train)(x))
        return nn.Dense(10)(x)
