"""The settings of a sweep, and the networks that a run trains: a replica for each seed of each."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from mnist_cnn.config import model_fields
from mnist_cnn.config.fields import FIELDS, HYPERPARAMETERS, experiment


def has_one_program(config: Mapping[str, Any]) -> bool:
    """Whether all networks of a run are replicas of one program; else each setting is a run."""
    sweep, method = config["sweep"] or {}, config["sweep_method"]
    return not config["variants"] and method == "grid" and not sweep.keys() - HYPERPARAMETERS


class Replica(NamedTuple):
    """One of the networks that a run trains: its seed and its setting of the sweep."""

    seed: int
    setting: Mapping[str, float]


def settings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The grid of the sweep, the last field varying fastest; [{}] without a sweep.

    The key "variant" has the name of one of the `variants`, if there are any.
    """
    axes = {"variant": list(config["variants"])} if config["variants"] else {}
    axes |= config["sweep"] or {}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def changes_of(config: Mapping[str, Any], setting: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that one of `settings` changes, those of its variant included.

    Both may be in the form of config.json.
    """
    changes = dict(setting)
    variant = config["variants"][changes.pop("variant")] if "variant" in changes else {}
    return dict(variant) | changes


def of_setting(config: Mapping[str, Any], setting: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration of a run of one of `settings` alone, with all seeds and no sweep.

    ConfigError if the model does not have a field that the setting changes.
    """
    changes = changes_of(config, setting)
    alone = {"sweep": None, "variants": None, "sweep_method": "grid"}
    fields = {key: changes.get(key, config[key]) for key in FIELDS} | alone
    for key, value in changes.items():
        if key not in FIELDS:
            name = key.removeprefix(model_fields.PREFIX)
            fields["model"] = model_fields.with_field(fields["model"], name, value)
    return experiment(**fields)


def replicas(config: Mapping[str, Any]) -> list[Replica]:
    """Every network that a run trains: all seeds of the first setting, then of the next."""
    seeds = range(config["seed"], config["seed"] + config["num_seeds"])
    return [Replica(seed, setting) for setting in settings(config) for seed in seeds]


def setting_rows(num_seeds: int, index: int) -> slice:
    """Which of `replicas` have the setting of that index."""
    return slice(index * num_seeds, (index + 1) * num_seeds)
