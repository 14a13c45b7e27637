"""The fields of an experiment: their types, legal ranges and defaults, and what fits together.

`experiments/base.py` is the commented list for readers; `FIELDS` is the same list for the
program, and a test holds the two together.  This module knows neither JAX nor the disk.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from mnist_cnn.errors import ConfigError
from mnist_cnn.fields import Field

_STEPS = 2**31 - 1  # a step is an int32 on the device

FIELDS: dict[str, Field] = {
    "name": Field(str, "base", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
    "seed": Field(int, 1337, minimum=0, maximum=2**31 - 1),
    "num_seeds": Field(int, 1, minimum=1, maximum=10**5),
    "sweep": Field(dict, None, optional=True),
    "dataset": Field(str, "mnist", choices=("mnist", "fashion_mnist", "kmnist")),
    "manual_dir": Field(str, None, optional=True),
    "train_split": Field(str, "train"),
    "validation_split": Field(str, None, optional=True),
    "model": Field(str, "cnn", choices=("cnn",), or_object="a flax.linen module"),
    "init_from": Field(str, None, optional=True),
    "loss": Field(
        str,
        "cross_entropy",
        choices=("cross_entropy",),
        or_object="a function (logits [B, 10], labels [B]) -> losses [B]",
    ),
    "optimizer": Field(
        str,
        "adam",
        choices=("adam",),
        or_object="a function learning_rate -> optax.GradientTransformation",
    ),
    "compute_dtype": Field(str, "float32", choices=("float32", "bfloat16")),
    "learning_rate": Field(float, 1e-3, above=0),
    "b1": Field(float, 0.9, minimum=0, below=1),
    "b2": Field(float, 0.999, minimum=0, below=1),
    "eps": Field(float, 1e-8, above=0),
    "weight_decay": Field(float, 0.0, minimum=0),
    "label_smoothing": Field(float, 0.0, minimum=0, below=1),
    "schedule": Field(str, "constant", choices=("constant", "cosine")),
    "warmup_steps": Field(int, 0, minimum=0, maximum=_STEPS),
    "ema": Field(float, 0.0, minimum=0, below=1),
    "rotation": Field(float, 0.0, minimum=0, maximum=180),
    "zoom": Field(float, 0.0, minimum=0, below=1),
    "shear": Field(float, 0.0, minimum=0, maximum=1),
    "shift": Field(float, 0.0, minimum=0, maximum=28),
    "batch_size": Field(int, 32, minimum=1, maximum=2**20),
    "num_epochs": Field(int, 1, minimum=1, maximum=10**6),
    "num_steps": Field(int, None, minimum=1, maximum=_STEPS, optional=True),
    "log_every": Field(int, 100, minimum=1, maximum=_STEPS),
    "eval_every": Field(int, None, minimum=1, maximum=_STEPS, optional=True),
    "eval_batch_size": Field(int, 250, minimum=1, maximum=2**20),
    "checkpoint_every": Field(int, 500, minimum=1, maximum=_STEPS),
    "keep": Field(int, 2, minimum=2, maximum=10**6),
    "report": Field(bool, True),
    "mesh": Field(str, None, pattern="[1-9][0-9]*x[1-9][0-9]*", optional=True),
    "replicas_at_once": Field(int, None, minimum=1, optional=True),
    "profile": Field(bool, False),
    "smoke": Field(bool, False),
}

# What `sweep` may vary: numbers that change neither a shape nor the program.
# From the fifth on they do nothing at 0.
HYPERPARAMETERS = (
    "learning_rate", "b1", "b2", "eps", "weight_decay", "label_smoothing", "ema", "rotation",
    "zoom", "shear", "shift",
)  # fmt: skip

# What may differ when a run goes on in its old directory: what only prints or saves, and the
# length, as long as nothing before the new end depends on it.
FREE_ON_RESUME = (
    "log_every", "eval_every", "eval_batch_size", "checkpoint_every", "keep", "report", "mesh",
    "replicas_at_once", "profile", "smoke",
)  # fmt: skip
LENGTH = ("num_epochs", "num_steps")


def experiment(**changes: Any) -> ml_collections.ConfigDict:
    """A complete configuration: the base experiment with `changes`.

    Raises:
      ConfigError: a changed field is unknown or has an illegal value.
    """
    config = ml_collections.ConfigDict()
    for key, field in FIELDS.items():
        if field.optional:
            config[key] = config_dict.placeholder(object if field.kind is dict else field.kind)
        else:
            config[key] = field.default
    for key, value in changes.items():
        check_value(key, value)
        with config.ignore_type():
            config[key] = value
    return config.lock()


def check_key(key: str) -> Field:
    """The field named `key`; ConfigError with the nearest right name if there is none."""
    if key in FIELDS:
        return FIELDS[key]
    near = difflib.get_close_matches(key, FIELDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "the fields are " + ", ".join(FIELDS)
    raise ConfigError(f"config.{key}: there is no such field; {hint}")


def check_value(key: str, value: Any) -> None:
    """Raises ConfigError unless `value` is legal for the field `key`."""
    field = check_key(key)
    if not field.accepts(value):
        raise ConfigError(f"config.{key}: got {value!r}, expected {field.expected()}")


def validate(config: Mapping[str, Any]) -> None:
    """Checks a whole configuration, as an experiment file made it.

    Raises:
      ConfigError: a field is missing, unknown, of the wrong type or out of range; or a split
        that training reads is the test split.
    """
    for key in config:
        check_value(key, config[key])
    missing = [key for key in FIELDS if key not in config]
    if missing:
        raise ConfigError(
            f"the experiment lacks config.{missing[0]}; "
            "start from mnist_cnn.experiment(...), which has every field"
        )
    for key in ("train_split", "validation_split"):
        if config[key] is not None and "test" in config[key]:
            raise ConfigError(test_is_for_the_end(key, config[key]))
    last = config["seed"] + config["num_seeds"] - 1
    if not FIELDS["seed"].accepts(last):
        raise ConfigError(
            f"config.num_seeds: got {config['num_seeds']:,}, so the last seed would be {last:,}; "
            f"expected seeds up to {FIELDS['seed'].maximum:,}"
        )
    _check_hyperparameters(config)


def test_is_for_the_end(key: str, split: str) -> str:
    """What is said of a split of test images where training would see it."""
    return (
        f"config.{key}: got {split!r}, expected a part of 'train', such as 'train[:55000]': the "
        "test split is read by the final evaluation alone"
    )


def _check_hyperparameters(config: Mapping[str, Any]) -> None:
    """A sweep must be legal, and what is given must reach an optimiser or a loss that takes it."""
    sweep = config["sweep"] or {}
    given = {key for key in HYPERPARAMETERS if config[key] != FIELDS[key].default} | set(sweep)
    for key, values in sweep.items():
        if key not in HYPERPARAMETERS:
            raise ConfigError(
                f"config.sweep: got {key!r}, expected one of {', '.join(HYPERPARAMETERS)}"
            )
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"config.sweep: {key} got {values!r}, expected a list of numbers")
        for value in values:
            if not FIELDS[key].accepts(value):
                raise ConfigError(
                    f"config.sweep: {key} got {value!r}, expected {FIELDS[key].expected()}"
                )
        if len(set(values)) < len(values):
            raise ConfigError(f"config.sweep: {key} got {values!r}, where a value is there twice")
    if config["compute_dtype"] != "float32" and not isinstance(config["model"], str):
        raise ConfigError(
            f"config.compute_dtype: got {config['compute_dtype']!r}, but the experiment brings its "
            "own model, which says itself what it computes in; set the dtype of its layers there"
        )
    if config["schedule"] == "constant" and config["warmup_steps"]:
        raise ConfigError(
            f"config.warmup_steps: got {config['warmup_steps']:,}, but a constant schedule has "
            "none; set schedule='cosine'"
        )
    takers = ("optimizer", HYPERPARAMETERS[1:5]), ("loss", ("label_smoothing",))
    for part, takes in takers:
        useless = [key for key in takes if key in given]
        if useless and not isinstance(config[part], str):
            raise ConfigError(
                f"config.{useless[0]}: the experiment brings its own {part}, which does not take "
                "it; set it there"
            )
    if sweep and config["validation_split"] is None:
        raise ConfigError(
            "config.sweep needs a validation_split to choose by (the test split is read for the "
            "chosen setting alone), such as train_split='train[:55000]', "
            "validation_split='train[55000:]'"
        )


@dataclasses.dataclass(frozen=True)
class Replica:
    """One of the networks that a run trains: its seed, and what its setting of the sweep says."""

    seed: int
    setting: Mapping[str, float]


def settings(config: Mapping[str, Any]) -> list[dict[str, float]]:
    """The grid of the sweep, the last hyper-parameter fastest; [{}] without a sweep."""
    sweep = config["sweep"] or {}
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def replicas(config: Mapping[str, Any]) -> list[Replica]:
    """Every network of a run: for each setting each seed."""
    seeds = range(config["seed"], config["seed"] + config["num_seeds"])
    return [Replica(seed, setting) for setting in settings(config) for seed in seeds]


def setting_rows(num_seeds: int, index: int) -> slice:
    """Which of `replicas` have the setting of that index."""
    return slice(index * num_seeds, (index + 1) * num_seeds)


def describe(value: Any) -> Any:
    """`value` as config.json keeps it: an object that an experiment brought becomes its name.

    Without its module: that is called otherwise where the experiment is imported, run or given by
    --config.  Nor any address in memory.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: list(values) for key, values in value.items()}
    if isinstance(value, functools.partial):
        arguments = [_argument(argument) for argument in value.args]
        arguments += [f"{key}={_argument(value.keywords[key])}" for key in sorted(value.keywords)]
        return f"{describe(value.func)}({', '.join(arguments)})"
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))


def _argument(value: Any) -> str:
    return describe(value) if callable(value) else repr(value)


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as config.json keeps it, in the order of `FIELDS`."""
    return {key: describe(config[key]) for key in FIELDS}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps `new` from going on with a run of `old`: "key: was X, now Y" for each."""
    free = FREE_ON_RESUME + (LENGTH if new["schedule"] == "constant" else ())
    keys = [key for key in FIELDS if key not in free]
    was = {key: old.get(key, FIELDS[key].default) for key in keys}  # a field may be newer
    return [
        f"{key}: was {was[key]!r}, now {new[key]!r}"
        for key in keys
        if not is_same(key, was[key], new[key])
    ]


def is_same(key: str, was: Any, now: Any) -> bool:
    """Whether two descriptions of a field are of the same value."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):  # the order says which row is whose
        return list(was.items()) == list(now.items())
    if FIELDS[key].or_object and str(was).endswith(f".{now}"):  # once the module was kept, too
        return True
    return was == now
