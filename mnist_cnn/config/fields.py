"""The fields of an experiment, their legal values, and a configuration made of them."""

import ast
import difflib
import functools
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_dict

from mnist_cnn.errors import ConfigError, shorten


class Field(NamedTuple):
    """One field: its type, its default, its legal values, and what may vary it."""

    kind: type
    default: Any
    min: float | None = None
    exclusive_min: float | None = None  # every legal number is above it
    max: float | None = None
    exclusive_max: float | None = None  # every legal number is below it
    choices: tuple[str, ...] = ()  # the legal strings; empty: any
    pattern: str | None = None  # a regular expression for the whole string
    optional: bool = False  # None is legal
    or_object: str | None = None  # what an experiment file may give instead of a name
    used_by: str | None = None  # the field whose choices read this one; an object does not
    sweepable: bool = False  # a sweep may vary it: a number that changes no shape
    free_on_resume: bool = False  # may change when a run resumes: it changes no parameters
    shared: bool = False  # all settings of a sweep and all variants have the same value

    def expected(self) -> str:
        """The legal values in words, for an error."""
        text = " or ".join(", ".join(self.choices).rsplit(", ", 1))
        if self.or_object:
            text += f"{', or ' * bool(text)}in an experiment file {self.or_object}"
        text = text or _KINDS[self.kind]
        text += f" of the form {self.pattern}" if self.pattern else ""
        has_upper = self.max is not None or self.exclusive_max is not None
        limits = {"above": self.exclusive_min, "from" if has_upper else "of at least": self.min}
        limits |= {"to": self.max, "to below": self.exclusive_max}
        text += "".join(f" {word} {limit:,}" for word, limit in limits.items() if limit is not None)
        return text + (", or None" if self.optional else "")

    def accepts(self, value: Any) -> bool:
        """Whether `value` has the right type and is legal."""
        if value is None:
            return self.optional
        if self.or_object and self.kind is dict:
            return isinstance(value, Mapping) and all(map(callable, value.values())) and bool(value)
        if self.or_object and not isinstance(value, str):
            return callable(value)
        types: Any = {float: (int, float), dict: Mapping}.get(self.kind, self.kind)
        return (
            isinstance(value, types)
            and isinstance(value, bool) == (self.kind is bool)  # Python's True is an int as well
            and (self.kind is not float or math.isfinite(value))
            and (self.kind is not dict or bool(value))
            and (value in self.choices if self.choices else not self.or_object)
            and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
            and (self.min is None or value >= self.min)
            and (self.exclusive_min is None or value > self.exclusive_min)
            and (self.max is None or value <= self.max)
            and (self.exclusive_max is None or value < self.exclusive_max)
        )


_KINDS = {str: "a string", bool: "True or False", int: "an integer", float: "a number"}
_KINDS[dict] = "a dict, such as sweep={'b1': [0.8, 0.9]} or variants={'small': {'batch_size': 8}}"
MAX_INT = 2**31 - 1  # a step and a seed are 32-bit integers on the device
_MODEL = "a flax.linen module or the class of a flax.nnx module"
_LOSS = "a function (logits [B, K], labels [B]) -> losses [B]"
_OPTIMIZER = "a function learning_rate -> optax.GradientTransformation"
_SCHEDULE = "a function step -> factor, or (step, total_steps) -> factor, of the learning rate"
_AUGMENT = "a function (key, images [B, H, W, C]) -> images"
_METRICS = "functions (logits [B, K], labels [B]) -> [B] by name, such as {'top2': top2}"
_STEP = "a function (state, batch, data_axis) -> (state, metrics)"

METRIC_NAME = r"[A-Za-z][A-Za-z0-9_]{0,29}"
VARIANT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}"
RESERVED_METRICS = (  # in use in metrics.jsonl, result.json and what `evaluate` prints
    *("step", "epoch", "split", "examples", "correct", "accuracy", "loss", "ci95", "metrics"),
    *("expected_calibration_error", "images_per_second", "learning_rate"),
    *("gradient_norm", "update_norm", "parameter_norm", "negative_log_likelihood", "classes"),
    *("calibrated", "doubtful", "members", "disagreement", "seed", "setting"),
    *("workdir", "dataset", "origin"),
)

FIELDS: dict[str, Field] = {  # experiments/base.py has the same list, with a comment on each
    "name": Field(str, "base", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", shared=True),
    "seed": Field(int, 1337, min=0, max=MAX_INT, shared=True),
    "num_seeds": Field(int, 1, min=1, max=10**5, shared=True),
    "sweep": Field(dict, None, optional=True, shared=True),
    "variants": Field(dict, None, optional=True, shared=True),
    "sweep_method": Field(str, "grid", choices=("grid", "halving"), shared=True),
    "dataset": Field(str, "mnist", choices=("mnist", "fashion_mnist", "kmnist"), shared=True),
    "manual_dir": Field(str, None, optional=True, shared=True),
    "train_split": Field(str, "train"),
    "validation_split": Field(str, None, optional=True, shared=True),
    "labels_per_class": Field(int, None, min=1, max=MAX_INT, optional=True),
    "fold": Field(str, None, pattern="[1-9][0-9]*/[1-9][0-9]*", optional=True, shared=True),
    "model": Field(str, "cnn", choices=("cnn", "compact", "compact_views"), or_object=_MODEL),
    "init_from": Field(str, None, optional=True),
    "loss": Field(
        str, "cross_entropy", choices=("cross_entropy", "cross_entropy_or_none"), or_object=_LOSS
    ),
    "optimizer": Field(str, "adam", choices=("adam",), or_object=_OPTIMIZER),
    "compute_dtype": Field(str, "float32", choices=("float32", "bfloat16"), used_by="model"),
    "learning_rate": Field(float, 1e-3, exclusive_min=0, sweepable=True),
    "b1": Field(float, 0.9, min=0, exclusive_max=1, sweepable=True, used_by="optimizer"),
    "b2": Field(float, 0.999, min=0, exclusive_max=1, sweepable=True, used_by="optimizer"),
    "eps": Field(float, 1e-8, exclusive_min=0, sweepable=True, used_by="optimizer"),
    "weight_decay": Field(float, 0.0, min=0, sweepable=True, used_by="optimizer"),
    "label_smoothing": Field(float, 0.0, min=0, exclusive_max=1, sweepable=True, used_by="loss"),
    "schedule": Field(str, "constant", choices=("constant", "cosine"), or_object=_SCHEDULE),
    "warmup_steps": Field(int, 0, min=0, max=MAX_INT, used_by="schedule"),
    "ema": Field(float, 0.0, min=0, exclusive_max=1, sweepable=True),
    "rotation": Field(float, 0.0, min=0, max=180, sweepable=True),
    "zoom": Field(float, 0.0, min=0, exclusive_max=1, sweepable=True),
    "shear": Field(float, 0.0, min=0, max=1, sweepable=True),
    "shift": Field(float, 0.0, min=0, max=128, sweepable=True),
    "augment": Field(str, None, optional=True, or_object=_AUGMENT),
    "train_step": Field(str, None, optional=True, or_object=_STEP),
    "metrics": Field(dict, None, optional=True, or_object=_METRICS, free_on_resume=True),
    "norms": Field(bool, False, free_on_resume=True),
    "batch_size": Field(int, 32, min=1, max=2**20),
    "num_epochs": Field(int, 1, min=1, max=10**6),
    "num_steps": Field(int, None, min=1, max=MAX_INT, optional=True),
    "log_every": Field(int, 100, min=1, max=MAX_INT, free_on_resume=True),
    "eval_every": Field(int, None, min=1, max=MAX_INT, optional=True, free_on_resume=True),
    "eval_batch_size": Field(int, 250, min=1, max=2**20, free_on_resume=True),
    "checkpoint_every": Field(int, 500, min=1, max=MAX_INT, free_on_resume=True),
    "keep_best": Field(str, None, optional=True, shared=True),
    "patience": Field(int, None, min=1, max=MAX_INT, optional=True, shared=True),
    "keep": Field(int, 2, min=2, max=10**6, free_on_resume=True),
    "report": Field(bool, True, free_on_resume=True),
    "num_threads": Field(int, None, min=1, max=256, optional=True, shared=True),
    "mesh": Field(str, None, pattern="[1-9][0-9]*x[1-9][0-9]*", optional=True, free_on_resume=True),
    "replicas_at_once": Field(int, None, min=1, optional=True, free_on_resume=True),
    "profile": Field(bool, False, free_on_resume=True),
    "smoke": Field(bool, False, free_on_resume=True),
}

OBJECTS = tuple(key for key, field in FIELDS.items() if field.or_object)
DEFAULTS = {key: field.default for key, field in FIELDS.items()}
HYPERPARAMETERS = tuple(key for key, field in FIELDS.items() if field.sweepable)
VARIABLE = tuple(k for k, field in FIELDS.items() if not (field.shared or field.free_on_resume))
OFF_AT_ZERO = tuple(key for key in HYPERPARAMETERS if FIELDS[key].default == 0)
FREE_ON_RESUME = tuple(key for key, field in FIELDS.items() if field.free_on_resume)
LENGTH = ("num_epochs", "num_steps")  # free on resume, too, unless a schedule depends on them


def experiment(**changes: Any) -> ml_collections.ConfigDict:
    """The base experiment with `changes`, as a complete and locked configuration."""
    config = ml_collections.ConfigDict()
    for key, field in FIELDS.items():
        kind = object if field.kind is dict or field.or_object else field.kind
        config[key] = config_dict.placeholder(kind) if field.optional else field.default
    for key, value in changes.items():
        check_value(key, value)
        with config.ignore_type():
            config[key] = value
    return config.lock()


def check_key(key: str) -> Field:
    """The field named `key`; ConfigError with the closest name if there is none."""
    if key in FIELDS:
        return FIELDS[key]
    close = difflib.get_close_matches(key.partition(".")[0], FIELDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "the fields are " + ", ".join(FIELDS)
    raise ConfigError(f"config.{key}: there is no such field; {hint}")


def check_value(key: str, value: Any) -> None:
    """Raises ConfigError unless `key` is a field and `value` is legal for it."""
    if not check_key(key).accepts(value):
        raise illegal(key, value, FIELDS[key].expected())


def parse_value(key: str, text: str) -> Any:
    """The value of --config.KEY=TEXT; ConfigError if there is no such field or it is illegal."""
    field = check_key(key)
    parse = {bool: flags.BooleanParser().parse, dict: ast.literal_eval}.get(field.kind, field.kind)
    try:
        value = None if field.optional and text in ("None", "none") else parse(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text  # which is illegal, since it has the wrong type
    check_value(key, value)
    return value


def illegal(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"config.{key}: got {shorten(value)}, expected {expected}")


def takes_total_steps(value: Any) -> bool:
    """Whether a schedule or an optimizer depends on the length of the training, as it declares."""
    if isinstance(value, functools.partial) and "total_steps" in value.keywords:
        return False
    try:
        return "total_steps" in inspect.signature(value).parameters
    except (TypeError, ValueError):  # not a function, or one without a signature
        return False
