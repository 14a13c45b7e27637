"""The test images of MNIST whose label is in doubt: most people who saw them did not choose it."""

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mnist_cnn.data.spec import MNIST, MNIST_SHA256

FILE = pathlib.Path(__file__).parent / "mnist" / "doubtful_labels.json"  # its README has the source
MEANING = "fewer than three of five people chose the label"


@functools.cache
def votes() -> dict[int, dict[str, Any]]:
    """The index of a test image -> its labels, given and guessed, and the votes for each."""
    return {image["test_index"]: image for image in json.loads(FILE.read_text())["images"]}


def places(
    data: Mapping[str, Any], rows: Iterable[tuple[str, int, int]] = (("test", 0, 10_000),)
) -> Int[np.ndarray, "D"]:
    """Where the images in doubt are among those of `rows`, slices as of `Dataset.rows`.

    `data` is what `Dataset.describe` returns: other images than MNIST's have none, whatever their
    name is.
    """
    shape = data.get("image_shape", list(MNIST.image_shape))
    is_mnist = (data.get("content_sha256") or {}).get("test") == MNIST_SHA256["test"]
    if not is_mnist or list(shape) != list(MNIST.image_shape):
        return np.zeros(0, int)
    indices = [
        np.arange(start, stop) if name == "test" else np.full(stop - start, -1)
        for name, start, stop in rows
    ]
    return np.flatnonzero(np.isin(np.concatenate([*indices, []]), list(votes())))


def summarize(
    correct: Bool[np.ndarray, "N"], doubtful: Int[np.ndarray, "D"]
) -> dict[str, float | int | None]:
    """Metrics of the images in doubt and of the others; None if there are no others."""
    others = np.delete(correct, doubtful)
    return {
        "examples": len(doubtful),
        "missed": int((~correct[doubtful]).sum()),
        "accuracy_without": float(others.mean()) if len(others) else None,
        "examples_without": len(others),
        "correct_without": int(others.sum()),
    }
