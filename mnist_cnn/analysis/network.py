"""A trained network: a callable on uint8 images."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Float32, Float64, UInt8

from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.models.apply import Variables
from mnist_cnn.parallel.devices import own_settings
from mnist_cnn.training.scoring import compute_logits


@dataclasses.dataclass(frozen=True)
class Network:
    """A callable on images uint8 [N, H, W, C] with values 0..255; ValueError for others."""

    config: Mapping[str, Any] = dataclasses.field(repr=False)  # the run's
    variables: Variables = dataclasses.field(repr=False)  # parameters and batch statistics
    model: nn.Module
    step: int  # the number of training steps
    seed: int
    spec: DataSpec = MNIST  # the form of its images, and its classes

    @property
    def params(self) -> Any:
        """The variables without the statistics of batch normalization."""
        return self.variables["params"]

    @property
    def knows_none(self) -> bool:
        """Whether it was trained to tell images that show none of its classes."""
        return self.config["loss"] == "cross_entropy_or_none"

    @own_settings()
    def __call__(self, images: Any) -> Float32[np.ndarray, "N K"]:
        """The logits of uint8 images [N, H, W, C]; a ValueError for anything else."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.spec.image_shape:
            raise ValueError(
                f"got images {images.dtype} {list(images.shape)}, expected uint8 "
                f"[N, {', '.join(map(str, self.spec.image_shape))}]"
            )
        batch_size = self.config["eval_batch_size"]
        logits = np.zeros((len(images), self.spec.num_classes), np.float32)
        for start, size in _pieces(len(images), batch_size):
            piece = images[start : start + size]
            padded = np.pad(piece, ((0, size - len(piece)), (0, 0), (0, 0), (0, 0)))
            computed = compute_logits(self.model, self.variables, padded, batch_size)
            logits[start : start + size] = np.asarray(computed)[: len(piece)]
        return logits

    def probabilities(
        self, images: UInt8[np.ndarray, "N H W C"], batch_size: int = 64
    ) -> Float64[np.ndarray, "N K"]:
        """The softmax of the logits; one compiled program serves any number of images.

        A network that knows none may find that an image shows none of its classes. The rest of its
        probabilities, whose sum is below 1 then, is that of "none".
        """
        none, count = self.knows_none, self.spec.num_classes
        logits = np.zeros((len(images), count + none))  # the logit of "none" is 0
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0))
            logits[start : start + batch_size, :count] = self(np.pad(batch, padding))[: len(batch)]
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials[:, :count] / exponentials.sum(axis=-1, keepdims=True)

    def no_digit(self, images: UInt8[np.ndarray, "N H W C"]) -> Float64[np.ndarray, "N"]:
        """The probability that an image shows none of the classes; 0 if the network cannot tell."""
        return (1 - self.probabilities(images).sum(axis=-1)).clip(0)


def _pieces(count: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Starts and sizes of pieces that contain `count` images, the last perhaps more than there are.

    Each size is compiled, so there are few: 1, 2, 4, ... images, and then 1, 2, 4, ... batches. A
    single batch beside others is completed to two, because XLA may round otherwise without a loop.
    """
    if count <= batch_size:
        if count:
            yield 0, min(batch_size, 1 << (count - 1).bit_length())
        return
    start, batches = 0, -(-count // batch_size)
    batches += batches % 2
    while batches:
        size = 1 << (batches.bit_length() - 1)  # the largest power of two
        yield start, size * batch_size
        start, batches = start + size * batch_size, batches - size
