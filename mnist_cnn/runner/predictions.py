"""The test predictions of a finished run, stored so that a report needs no data and no network."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Integer, UInt8

from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The arrays of predictions.npz, of R seeds; a ValueError if they do not fit together.

    Two runs differ only on images that one of them misclassifies: these suffice to compare them.
    """

    logits: np.ndarray  # float32 [R, N, K]
    labels: np.ndarray  # uint8 [N]
    wrong: np.ndarray  # int32 [M]: the indices that some seed misclassifies, ascending
    images: np.ndarray  # uint8 [M, H, W] or, of colours, [M, H, W, 3]: those images
    # float32 [F, H, W] or [F, H, W, 3]: of the first layer, first seed; F = 0 if it has none
    filters: np.ndarray

    def __post_init__(self) -> None:
        fit = (
            self.logits.ndim == 3
            and self.labels.shape == self.logits.shape[1:2]
            and self.logits.size > 0
            and len(self.images) == len(self.wrong)
            and all(
                array.ndim == 3 or array.shape[3:] == (3,) for array in (self.images, self.filters)
            )
        )
        types = [array.dtype.str[1:] for array in dataclasses.astuple(self)]
        if not fit or types != ["f4", "u1", "i4", "u1", "f4"]:
            raise ValueError("the arrays have unexpected shapes or types")
        mistakes = np.flatnonzero((self.logits.argmax(-1) != self.labels).any(0))
        if self.labels.max() >= self.logits.shape[-1] or not np.array_equal(mistakes, self.wrong):
            raise ValueError("the arrays contradict one another")


def collect(
    logits: Float32[np.ndarray, "R N K"],
    labels: Integer[np.ndarray, "N"],
    images: UInt8[np.ndarray, "N H W C"],
    params: Any,
) -> dict[str, np.ndarray]:
    """The arrays of predictions.npz; `params` are those of the first seed."""
    channels = images.shape[-1]
    wrong = np.flatnonzero((logits.argmax(-1) != labels).any(0)).astype(np.int32)
    return {
        "logits": np.asarray(logits, np.float32),
        "labels": labels.astype(np.uint8),
        "wrong": wrong,
        "images": images[wrong].squeeze(-1) if channels == 1 else images[wrong],
        "filters": first_filters(params, images.shape[1:]),
    }


def read(directory: RunDirectory) -> Predictions:
    """Reads them; a CheckpointError if the file is missing, damaged, or not written by a run."""
    arrays = directory.read_arrays("predictions.npz")
    try:
        return Predictions(**arrays)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory.path / 'predictions.npz'}: expected the arrays that a run writes "
            f"({error}); train again"
        ) from None


def first_filters(params: Any, image_shape: tuple[int, ...]) -> Float32[np.ndarray, "F H W *C"]:
    """The first kernel applied to the pixels of such images, recognised by its shape."""
    import jax  # only a training run calls this function

    for kernel in map(np.asarray, jax.tree_util.tree_leaves(params)):
        if kernel.ndim == 4 and kernel.shape[2] == image_shape[2]:  # convolution: [H, W, C, F]
            found = kernel.transpose(3, 0, 1, 2)
        elif kernel.ndim == 2 and kernel.shape[0] == math.prod(
            image_shape
        ):  # dense: [H * W * C, F]
            found = kernel.T.reshape(-1, *image_shape)
        else:
            continue
        return (found if image_shape[2] == 3 else found.squeeze(-1)).astype(np.float32)
    return np.zeros((0, 1, 1), np.float32)
