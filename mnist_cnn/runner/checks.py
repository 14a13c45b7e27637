"""What must hold before a run trains, checked as soon as it is known. Nothing here writes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib
from mnist_cnn.data.dataset import Dataset, is_same_data, open_dataset
from mnist_cnn.data.spec import DataSpec
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.runner import recorded_config
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training.batches import num_examples, total_steps


def finished_result(directory: RunDirectory, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result, if the directory contains this run and it is finished, else None.

    Raises ConfigError if the directory contains a run of another configuration, or
    CheckpointError if the run is finished, and `manual_dir` names another folder with other data.
    """
    old = directory.read("config.json")
    if old is None:
        return None
    same = {"manual_dir": config["manual_dir"]}  # the data is compared by its content
    threads = directory.num_threads()
    if config["num_threads"] and threads:  # what the run has, also if its config.json says None
        same |= {"num_threads": threads}
    if differences := recorded_config.differences(old | same, recorded_config.as_dict(config)):
        raise ConfigError(
            f"{directory} belongs to another configuration ({'; '.join(differences)}); "
            "give another --workdir, or that configuration"
        )
    result = directory.read_result() or {}
    same_length = all(old.get(key) == config[key] for key in config_lib.LENGTH)
    if result.get("status") != "finished" or not same_length:
        return None
    if old.get("manual_dir") != config["manual_dir"]:
        check_data(directory, open_dataset(config["dataset"], config["manual_dir"]))
    return result


def check_splits(dataset: Dataset, config: Mapping[str, Any]) -> None:
    """The splits must exist and be disjoint; ConfigError or DataError if they are not."""
    training = dataset.rows(config["train_split"])
    held_out = config["validation_split"]
    for key in ("train_split", "validation_split"):  # "all", for example, includes the test split
        if any(split != "train" for split, _, _ in dataset.rows(config[key] or "train")):
            raise ConfigError(config_lib.test_split_error(key, config[key]))
    for split, start, stop in dataset.rows(held_out) if held_out else ():
        if any(split == s and max(start, a) < min(stop, b) for s, a, b in training):
            raise ConfigError(
                f"config.validation_split: {held_out!r} shares images with train_split "
                f"{config['train_split']!r}; choose parts that do not overlap, such as "
                "'train[55000:]' and 'train[:55000]'"
            )


def check_labels(labels: np.ndarray, config: Mapping[str, Any]) -> None:
    """The training images, with these labels, must hold the subset, a batch and the warm-up.

    Raises ConfigError if they do not.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    few = config["labels_per_class"]
    if few is not None and few > sizes.min():
        raise ConfigError(
            f"config.labels_per_class: got {few:,}, expected an integer from 1 to "
            f"{sizes.min():,}, the number of training images of class "
            f"{classes[sizes.argmin()]}, the smallest one"
        )
    examples = num_examples(config, labels)
    if config["batch_size"] > examples:
        raise ConfigError(
            f"config.batch_size: got {config['batch_size']:,}, expected an integer from 1 to "
            f"{examples:,}, the number of training images"
        )
    if config["warmup_steps"] >= (total := total_steps(config, examples)):
        raise ConfigError(
            f"config.warmup_steps: got {config['warmup_steps']:,}, expected fewer than the "
            f"{total:,} steps of the whole training"
        )


def check_augmentation(config: Mapping[str, Any], spec: DataSpec) -> None:
    """Raises ConfigError if images would be shifted by more than their size."""
    largest = max(spec.image_shape[:2])
    swept = "shift" in (config["sweep"] or {})
    for value in config["sweep"]["shift"] if swept else [config["shift"]]:
        if value > largest:
            height, width, _ = spec.image_shape
            raise ConfigError(
                f"config.{'sweep: ' * swept}shift: got {value:g}, expected a number from 0 to "
                f"{largest}, as the images have {height} x {width} pixels"
            )


def check_resumption(
    directory: RunDirectory, dataset: Dataset, step: int, total: int, pause: int | None = None
) -> dict[str, Any]:
    """A run must resume with the same data, and must not be beyond its end, the step `total`.

    Nor may it be beyond the step `pause`, at which a sweep compares it with others.

    Returns the directory's environment.json, {} if there is none. Raises CheckpointError or
    ConfigError if the run cannot resume from the checkpoint of `step`.
    """
    before = check_data(directory, dataset)
    if step > total:
        raise ConfigError(
            f"{directory} has reached step {step:,}, but the configuration ends at {total:,}; a "
            "run can be prolonged, not shortened"
        )
    if pause is not None and step > pause:
        raise CheckpointError(
            f"{directory} has reached step {step:,}, but its sweep has no record of step "
            f"{pause:,}; restore the sweep's sweep.json, or give another --workdir"
        )
    return before


def check_data(directory: RunDirectory, dataset: Dataset) -> dict[str, Any]:
    """The directory's environment.json, {} without; CheckpointError if the run had other data."""
    before = directory.read("environment.json")
    if before is not None and not is_same_data(before.get("data", {}), dataset.describe()):
        raise CheckpointError(
            f"{directory}: the run began with other images or labels than {dataset.origin} has "
            "now; give those, or another --workdir"
        )
    return before or {}
