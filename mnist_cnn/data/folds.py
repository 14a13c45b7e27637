"""Cross-validation: which images of the training split are trained on, and which are held out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8

from mnist_cnn import config as config_lib
from mnist_cnn.data.dataset import Dataset
from mnist_cnn.errors import ConfigError

Examples = tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, " N"]]  # images, labels


def in_fold(labels: Integer[np.ndarray, "N"], fold: str) -> Bool[np.ndarray, "N"]:
    """Which images belong to a fold such as "3/10": of each class the 3rd, the 13th, the 23rd, ...

    The folds of one number are disjoint, contain every image, and nothing in them is random.
    Raises ConfigError if a class has fewer images than there are folds.
    """
    index, count = config_lib.fold_numbers(fold)
    classes, starts, sizes = np.unique(np.sort(labels), return_index=True, return_counts=True)
    if count > sizes.min():
        raise ConfigError(
            f"config.fold: got {fold!r}, expected at most {sizes.min():,} folds, the number of "
            f"training images of class {classes[sizes.argmin()]}, the smallest one"
        )
    number = np.empty(len(labels), np.int64)  # of each image among those of its class
    number[np.argsort(labels, kind="stable")] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return number % count == index - 1


def read_training(dataset: Dataset, config: Mapping[str, Any]) -> Examples:
    """The images of `train_split` without the held-out fold, if the configuration has one."""
    images, labels = dataset.read(config["train_split"])
    if config["fold"] is None:
        return images, labels
    kept = ~in_fold(labels, config["fold"])
    return images[kept], labels[kept]


def read_tested(dataset: Dataset, config: Mapping[str, Any]) -> Examples:
    """The images of the final evaluation: the held-out fold of `train_split`, or the test split."""
    if config["fold"] is None:
        return dataset.read("test")
    images, labels = dataset.read(config["train_split"])
    held_out = in_fold(labels, config["fold"])
    return images[held_out], labels[held_out]
