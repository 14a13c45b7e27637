"""What fits together: a whole configuration is checked, that of each setting of a sweep as well."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_cnn.config.fields import (
    FIELDS,
    MAX_INT,
    METRIC_NAME,
    RESERVED_METRICS,
    VARIABLE,
    VARIANT_NAME,
    check_value,
    illegal,
)
from mnist_cnn.config.model_fields import PREFIX
from mnist_cnn.config.settings import has_one_program, of_setting, settings
from mnist_cnn.config.tested import fold_numbers
from mnist_cnn.errors import ConfigError, shorten
from mnist_cnn.files import local_path


def validate(config: Mapping[str, Any]) -> None:
    """Raises ConfigError unless a configuration is complete, legal and consistent."""
    for key in config:
        check_value(key, config[key])
    for key in [key for key in FIELDS if key not in config]:
        raise ConfigError(
            f"the experiment lacks config.{key}; build it with mnist_cnn.experiment(...)"
        )
    for key in ("manual_dir", "init_from"):
        if config[key] is not None:
            local_path(config[key], f"config.{key}")
    for key in ("train_split", "validation_split"):
        if config[key] is not None and "test" in config[key]:
            raise ConfigError(test_split_error(key, config[key]))
    if config["fold"] is not None:
        index, count = fold_numbers(config["fold"])
        if count < 2 or index > count:
            expected = "I/N with N of at least 2 and I from 1 to N, such as '3/10'"
            raise illegal("fold", config["fold"], expected)
    last_seed = config["seed"] + config["num_seeds"] - 1
    if not FIELDS["seed"].accepts(last_seed):
        expected = f"seeds up to {MAX_INT:,}; the last would be {last_seed:,}"
        raise illegal("num_seeds", config["num_seeds"], expected)
    _check_sweep(config)
    for name in config["metrics"] or {}:
        if not re.fullmatch(METRIC_NAME, name) or name in RESERVED_METRICS:
            raise illegal("metrics", name, f"a new name of the form {METRIC_NAME}")
    kept = ("accuracy", "loss", *(config["metrics"] or {}))
    if config["keep_best"] not in (None, *kept):
        raise illegal("keep_best", config["keep_best"], f"{', '.join(kept)} or None")
    if config["keep_best"] and config["validation_split"] is None:
        raise ConfigError(
            "config.keep_best: expected a validation_split as well, to choose the step by, such as "
            "train_split='train[:55000]', validation_split='train[55000:]'"
        )
    if config["patience"] and not config["keep_best"]:
        raise ConfigError("config.patience: expected keep_best as well, such as 'accuracy'")
    if config["schedule"] == "constant" and config["warmup_steps"]:
        expected = "0 for a constant schedule; for a warm-up set schedule='cosine'"
        raise illegal("warmup_steps", config["warmup_steps"], expected)
    sweep = (config["sweep"] or {}) if has_one_program(config) else {}
    for key, field in FIELDS.items():
        value, user = sweep.get(key, config[key]), field.used_by  # a swept value is a list
        if user and value != field.default and not isinstance(config[user], str):
            raise ConfigError(
                f"config.{key}: got {value!r}, but the experiment has its own {user}, which does "
                "not read this field; set it in the experiment file"
            )
    if not has_one_program(config):
        for setting in settings(config):
            try:
                validate(of_setting(config, setting))
            except ConfigError as error:
                given = ", ".join(f"{key}={shorten(value)}" for key, value in setting.items())
                raise ConfigError(f"the setting {given}: {error}") from error


def _check_sweep(config: Mapping[str, Any]) -> None:
    """Checks the fields and values of `sweep` and `variants`, each for itself."""
    sweep, variants = config["sweep"] or {}, config["variants"] or {}
    for key, values in sweep.items():
        _check_variable("sweep", key)
        field = FIELDS.get(key)
        legal = isinstance(values, list | tuple) and (not field or all(map(field.accepts, values)))
        if not legal or not values or _has_duplicates(values):
            legal_value = f", each {field.expected()}" if field else ""
            raise illegal(f"sweep: {key}", values, f"a list of different values{legal_value}")
    for name, changes in variants.items():
        if not isinstance(name, str) or not re.fullmatch(VARIANT_NAME, name):
            raise illegal("variants", name, f"a name of the form {VARIANT_NAME}")
        if not isinstance(changes, Mapping):
            raise illegal(f"variants: {name}", changes, "fields, such as {'batch_size': 64}")
        for key, value in changes.items():
            _check_variable(f"variants: {name}", key)
            if key in FIELDS and not FIELDS[key].accepts(value):
                raise illegal(f"variants: {name}: {key}", value, FIELDS[key].expected())
            if key in sweep:
                raise ConfigError(
                    f"config.variants: {name}: {key} is in the sweep as well; leave it out of one"
                )
    which = "sweep" if sweep else "variants"
    if config["sweep_method"] != "grid" and not config[which]:
        expected = "a sweep or variants as well, or grid"
        raise illegal("sweep_method", config["sweep_method"], expected)
    if config[which] and config["validation_split"] is None:
        raise ConfigError(
            f"config.{which}: expected a validation_split as well, to choose the best setting by, "
            "such as train_split='train[:55000]', validation_split='train[55000:]'"
        )


def _check_variable(where: str, key: Any) -> None:
    """Raises ConfigError unless `key` is a field that a sweep or a variant may change."""
    if key in VARIABLE or (isinstance(key, str) and key.startswith(PREFIX)):
        return
    close = difflib.get_close_matches(str(key), [*VARIABLE, "model."], n=1)
    if close and key not in FIELDS:
        raise illegal(where, key, f"a field; did you mean {close[0]!r}?")
    own = "model.FIELD of a module of the experiment's own"
    raise illegal(where, key, f"one of {', '.join(VARIABLE)}, or {own}")


def _has_duplicates(values: Sequence[Any]) -> bool:
    """Whether two values are equal, or functions of one name, which a record cannot tell apart."""
    named = [getattr(value, "__qualname__", value) for value in values]
    return any(one == other for one, other in itertools.combinations(named, 2))


def test_split_error(key: str, split: str) -> str:
    """The text of the error for a training or validation split with test images in it."""
    return (
        f"config.{key}: got {split!r}, expected a part of 'train', such as 'train[:55000]'; only "
        "the final evaluation reads the test split"
    )
