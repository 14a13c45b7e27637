"""A configuration as config.json keeps it, and whether another one resumes its run."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from mnist_cnn.config import (
    DEFAULTS,
    FIELDS,
    FREE_ON_RESUME,
    LENGTH,
    OBJECTS,
    model_fields,
    takes_total_steps,
)
from mnist_cnn.data.spec import NETWORK_FIELDS
from mnist_cnn.errors import one_line

_OF_LENGTH = "(total_steps)"  # ends the name of what depends on the length of the training
_OF_VALIDATION = ("eval_every", "eval_batch_size")  # decide which network is the best one


def describe(value: Any) -> Any:
    """`value` as config.json keeps it: a number or string as it is, an object by its name.

    The name is without the module, which depends on how the experiment is loaded, and the address.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: describe(v) for key, v in value.items()}
    if type(value) in (list, tuple):
        return list(map(describe, value))
    if not hasattr(value, "__qualname__") and not isinstance(value, functools.partial):
        text = one_line(value)
        for name in NETWORK_FIELDS:  # the data decides these, not the experiment file
            if name in getattr(value, "__dataclass_fields__", {}):
                text = text.replace(f" {name} = {one_line(getattr(value, name))}", "", 1)
        return text.replace("( # attributes )", "()")
    return _name(value) + (_OF_LENGTH if takes_total_steps(value) else "")


def _name(function: Any) -> str:
    """The name of a function or a class, with the arguments of a partial."""
    if not isinstance(function, functools.partial):
        return getattr(function, "__qualname__", None) or one_line(function)
    named = [("", argument) for argument in function.args]
    named += [(f"{key}=", argument) for key, argument in sorted(function.keywords.items())]
    texts = [name + (describe(v) if callable(v) else repr(v)) for name, v in named]
    return f"{_name(function.func)}({', '.join(texts)})"


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as config.json keeps it, in the order of `FIELDS`.

    The numbers and strings among the fields of an experiment's own module follow as "model_fields".
    """
    fields = model_fields.simple_values(config["model"])
    return {key: describe(config[key]) for key in FIELDS} | (
        {"model_fields": fields} if fields else {}
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What prevents `new` from resuming a run of `old`, both of `as_dict`: "KEY: was X, now Y"."""
    of_length = new["schedule"] == "cosine" or any(
        str(new[k]).endswith(_OF_LENGTH) for k in OBJECTS
    )
    depends: dict[str, str] = {}
    if of_length:
        depends |= dict.fromkeys(LENGTH, "the schedule or the optimizer depends on the length")
    if new["keep_best"]:
        depends |= dict.fromkeys(_OF_VALIDATION, "keep_best depends on it")
    free = {*FREE_ON_RESUME, *LENGTH} - depends.keys()
    # A field that `old` lacks is newer than the run and counts as its default.
    before = {**DEFAULTS, **old}
    changed = [key for key in FIELDS if not is_same(key, before[key], new[key])]
    return [
        (k == "model" and _changed_fields(old, new))
        or f"{k}: {_contrast(before[k], new[k])}{f', and {depends[k]}' if k in depends else ''}"
        for k in changed
        if k not in free
    ]


def _changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How the fields of a module of the same name differ: "model.hidden: was 64, now 128"."""
    (name, before), (other, now) = (
        (str(one["model"]).partition("(")[0], one.get("model_fields", {})) for one in (old, new)
    )
    return "; ".join(
        f"model.{key}: was {before[key]!r}, now {now[key]!r}"
        for key in before
        if name == other and key in now and before[key] != now[key]
    )


def _contrast(old: Any, new: Any) -> str:
    """Both values, or, of long ones, what follows their common beginning."""
    texts = [repr(old), repr(new)]
    if max(map(len, texts)) > 200:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
        start = max(0, len(list(same)) - 40)
        texts = [f"{'...' * bool(start)}{text[start : start + 100]}..." for text in texts]
    return f"was {texts[0]}, now {texts[1]}"


def is_same(key: str, old: Any, new: Any) -> bool:
    """Whether two values of the field `key`, in the form of `describe`, stand for the same one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return list(old.items()) == list(new.items())  # the order of a sweep orders its replicas
    # Older versions recorded an object with its module.
    return old == new or (bool(FIELDS[key].or_object) and str(old).endswith(f".{new}"))
