"""A trained network, or an ensemble of several: a callable on uint8 images."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Float32, Float64, UInt8

from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.models.apply import Variables
from mnist_cnn.models.ensemble import Ensemble
from mnist_cnn.parallel.devices import own_settings
from mnist_cnn.training.scoring import compute_logits


@dataclasses.dataclass(frozen=True)
class Network:
    """A callable on images uint8 [N, H, W, C] with values 0..255; ValueError for others.

    An ensemble of R networks has a model `Ensemble`, their variables stacked, [R, ...], and their
    seeds; its probabilities are the mean of theirs, unless they have temperatures. Then its own
    divides the logarithms of that mean.
    """

    config: Mapping[str, Any] = dataclasses.field(repr=False)  # the run's
    variables: Variables = dataclasses.field(repr=False)  # parameters and batch statistics
    model: nn.Module
    step: int | tuple[int, ...]  # the number of training steps; of members, if theirs differ
    seed: int | tuple[int, ...]  # of an ensemble those of its members
    spec: DataSpec = MNIST  # the form of its images, and its classes
    # By which `all_probabilities` divides `all_logits`, in their order: fitted by a run with a
    # `validation_split`. (): none, as if they were 1.
    temperatures: tuple[float, ...] = ()
    test_accuracy: float | None = None  # if its run has been tested

    @property
    def params(self) -> Any:
        """The variables without the statistics of batch normalization."""
        return self.variables["params"]

    @property
    def knows_none(self) -> bool:
        """Whether it was trained to tell images that show none of its classes."""
        return self.config["loss"] == "cross_entropy_or_none"

    @property
    def members(self) -> tuple[int, ...]:
        """The seeds of the members of an ensemble; () of another network."""
        return self.seed if isinstance(self.seed, tuple) else ()

    def __call__(self, images: Any) -> Float32[np.ndarray, "N K"]:
        """The logits of uint8 images [N, H, W, C]; a ValueError for anything else.

        Those of an ensemble are the logarithms of its probabilities (minus that of "none", if its
        members know it).
        """
        return self.all_logits(images)[0]

    @own_settings()
    def all_logits(self, images: Any) -> Float32[np.ndarray, "M N K"]:
        """The network's logits, and then those of each member if it is an ensemble.

        So M is 1, or 1 + R of an ensemble.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.spec.image_shape:
            raise ValueError(
                f"got images {images.dtype} {list(images.shape)}, expected uint8 "
                f"[N, {', '.join(map(str, self.spec.image_shape))}]"
            )
        model = self.model
        if isinstance(model, Ensemble):
            model = model.clone(with_members=True)
        batch_size, classes = self.config["eval_batch_size"], self.spec.num_classes
        logits = np.zeros((1 + len(self.members), len(images), classes), np.float32)
        for start, size in _pieces(len(images), batch_size):
            piece = images[start : start + size]
            padded = np.pad(piece, ((0, size - len(piece)), (0, 0), (0, 0), (0, 0)))
            computed = np.asarray(compute_logits(model, self.variables, padded, batch_size))
            each = computed[: len(piece)].reshape(len(piece), -1, classes)
            logits[:, start : start + size] = each.swapaxes(0, 1)
        return logits

    def probabilities(
        self, images: UInt8[np.ndarray, "N H W C"], batch_size: int = 64
    ) -> Float64[np.ndarray, "N K"]:
        """The softmax of the logits, divided by the temperature if the run has fitted one.

        One compiled program serves any number of images.

        A network that knows none may find that an image shows none of its classes. The rest of its
        probabilities, whose sum is below 1 then, is that of "none".
        """
        return self.all_probabilities(images, batch_size)[0]

    def all_probabilities(
        self, images: UInt8[np.ndarray, "N H W C"], batch_size: int = 64
    ) -> Float64[np.ndarray, "M N K"]:
        """The network's `probabilities`, and then those of each member, as in `all_logits`."""
        none, count = self.knows_none, self.spec.num_classes
        # The logit of "none" is 0.
        logits = np.zeros((1 + len(self.members), len(images), count + none))
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0))
            found = self.all_logits(np.pad(batch, padding))[:, : len(batch)]
            logits[:, start : start + batch_size, :count] = found
        if self.temperatures:
            logits /= np.array(self.temperatures)[:, None, None]
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials[..., :count] / exponentials.sum(axis=-1, keepdims=True)

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
