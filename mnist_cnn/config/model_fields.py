"""The fields of an experiment's own module: --config.model.FIELD and a sweep set them.

They are those of a flax.linen module, or the parameters of the class of a flax.nnx module or of a
function that returns one. This file knows Flax only by the form of its objects.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
from typing import Any

from absl import flags

from mnist_cnn.errors import ConfigError, shorten

PREFIX = "model."
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
_KINDS |= {tuple: "a tuple, such as (32, 64), of the same kind of values"}


def values(model: Any) -> dict[str, Any]:
    """The fields of a module with their values; {} if `model` is a name."""
    return {name: value for name, (value, _) in _fields(model).items()}


def simple_values(model: Any) -> dict[str, Any]:
    """Those of the `values` that JSON can keep: numbers, strings, and tuples of them as lists."""
    return {name: _to_json(value) for name, value in values(model).items() if _is_simple(value)}


def with_field(model: Any, name: str, value: Any) -> Any:
    """`model` with another value of a field; ConfigError if it has no such field or value."""
    present, annotation = _field(model, name)
    value = _to_tuple(value)
    kind = _kind(present, annotation)
    if not (value is None and _is_optional(annotation)) and not _fits(value, present, kind):
        expected = _KINDS.get(kind, "an object like it" if callable(present) else "a number")
        raise ConfigError(
            f"config.model.{name}: got {shorten(value)}, expected {expected}, as the experiment's "
            f"{shorten(present)}"
        )
    if type(value) is type(present) and value == present:
        return model
    if _is_linen(model):
        return model.clone(**{name: value})
    make = _as_partial(model)
    for index, parameter in enumerate(list(_parameters(make.func))[: len(make.args)]):
        if parameter == name:
            args = [*make.args[:index], value, *make.args[index + 1 :]]
            return functools.partial(make.func, *args, **make.keywords)
    return functools.partial(make.func, *make.args, **make.keywords | {name: value})


def with_text(model: Any, name: str, text: str) -> Any:
    """`model` after --config.model.NAME=TEXT, whose type is that of the present value."""
    present, annotation = _field(model, name)
    kind: Any = _kind(present, annotation)
    if kind not in (*_KINDS, type(None)):
        raise ConfigError(
            f"config.model.{name}: {shorten(present)} is no number, string or tuple; set it in the "
            "experiment file"
        )
    parse = {bool: flags.BooleanParser().parse, tuple: ast.literal_eval}.get(kind, kind)
    value: Any = text
    if text in ("None", "none") and (present is None or _is_optional(annotation)):
        value = None
    else:
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(text) if kind is type(None) else parse(text)
    return with_field(model, name, value)


def recorded(model: Any, saved: dict[str, Any]) -> Any:
    """`model` with the `simple_values` of another, but for those that it cannot have."""
    for name, value in saved.items():
        try:
            model = with_field(model, name, value)
        except ConfigError:
            continue
    return model


def _field(model: Any, name: str) -> tuple[Any, str]:
    """The value and the annotation of a field; ConfigError without it."""
    if not (fields := _fields(model)):
        what = repr(model) if isinstance(model, str) else shorten(model)
        raise ConfigError(
            f"config.model.{name}: the model is {what}, which has no fields to set; expected an "
            "experiment file with a module of its own that has some"
        )
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its fields are {', '.join(fields)}"
        raise ConfigError(f"config.model.{name}: the model has no such field; {hint}")
    return fields[name]


def _fields(model: Any) -> dict[str, tuple[Any, str]]:
    """Name -> value and the text of the annotation."""
    if isinstance(model, str):
        return {}
    if _is_linen(model):
        return {
            field.name: (getattr(model, field.name), _text(field.type))
            for field in dataclasses.fields(model)
            if field.init and field.name not in ("parent", "name")
        }
    make = _as_partial(model)
    parameters = _parameters(make.func)
    given = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    given |= dict(zip(parameters, make.args, strict=False)) | make.keywords
    return {
        name: (given[name], _text(parameter.annotation))
        for name, parameter in parameters.items()
        if name in given and name != "rngs"
    }


def _is_linen(model: Any) -> bool:
    """Whether it is an object of a module; that of the bridge of NNX stands for its class."""
    is_object = dataclasses.is_dataclass(model) and not isinstance(model, type)
    return is_object and hasattr(model, "clone") and not hasattr(model, "nnx_class")


def _as_partial(model: Any) -> "functools.partial[Any]":
    if hasattr(model, "nnx_class"):
        return functools.partial(model.nnx_class, *model.args, **model.kwargs)
    return model if isinstance(model, functools.partial) else functools.partial(model)


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    """The named parameters of a function, or of the constructor of a class."""
    # The metaclass of NNX hides the signature of a class.
    called = getattr(function, "__init__") if isinstance(function, type) else function  # noqa: B009
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # not a function, or one without a signature
        return {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: p for name, p in signature.parameters.items() if p.kind not in several}
    if isinstance(function, type):
        named.pop(next(iter(named), ""), None)  # self
    return named


def _text(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _kind(present: Any, annotation: str) -> type:
    """The type of the legal values: that of the present one, or a wider one that is annotated."""
    named = [kind for kind in _KINDS if re.search(rf"\b{kind.__name__}\b", annotation)]
    if present is None and len(named) == 1:
        return named[0]
    return float if type(present) is int and float in named else type(present)


def _is_optional(annotation: str) -> bool:
    return "None" in annotation or "Optional" in annotation


def _fits(value: Any, present: Any, kind: type) -> bool:
    """Whether `value` may replace `present`, both tuples instead of lists."""
    if kind is type(None):
        return _is_simple(value)
    if kind is float:
        return type(value) in (int, float)
    if kind is tuple:
        first = (present or ())[:1]
        return type(value) is tuple and all(
            _fits(one, like, type(like)) for one in value for like in first
        )
    if kind in _KINDS:
        return type(value) is kind
    return callable(present) and callable(value)


def _is_simple(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_simple, value))
    return (
        value is None
        or type(value) in (bool, int, str)
        or (type(value) is float and math.isfinite(value))
    )


def _to_json(value: Any) -> Any:
    return list(map(_to_json, value)) if isinstance(value, tuple) else value


def _to_tuple(value: Any) -> Any:
    """Tuples instead of lists, which a module cannot hash."""
    return tuple(map(_to_tuple, value)) if isinstance(value, list | tuple) else value
