"""What one field of an experiment may be: how its values are checked, parsed and said in words."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from absl import flags


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: its type, its default, and the values that are legal."""

    kind: type
    default: Any
    minimum: float | None = None  # the least legal value ...
    above: float | None = None  # ... or the value that it must exceed
    maximum: float | None = None
    below: float | None = None  # the value that it must not reach
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    optional: bool = False  # None is legal
    or_object: str | None = None  # what an experiment file may put in place of a name

    def expected(self) -> str:
        """The legal values in words."""
        if self.choices:
            text = " or ".join(
                [", ".join(self.choices[:-1]), self.choices[-1]][-len(self.choices) :]
            )
        elif self.kind is bool:
            text = "True or False"
        elif self.kind is dict:
            text = "lists of values, such as {'learning_rate': [1e-4, 1e-3]}"
        elif self.kind is str:
            text = f"a text of the form {self.pattern}" if self.pattern else "a text"
        else:
            text = "an integer" if self.kind is int else "a number"
            if self.above is not None:
                text += f" above {self.above:,g}"
            if self.minimum is not None:
                text += f" from {self.minimum:,g}"
            if self.maximum is not None:
                text += f" {'up ' if self.minimum is None else ''}to {self.maximum:,.0f}"
            elif self.below is not None:
                text += f" to below {self.below:,g}"
            elif self.minimum is not None:
                text += " upwards"
        if self.or_object:
            text += f", or in an experiment file {self.or_object}"
        return text + (", or None" if self.optional else "")

    def accepts(self, value: Any) -> bool:
        """Whether `value` (of the right Python type) is legal."""
        if value is None:
            return self.optional
        if self.or_object and not isinstance(value, str):
            return callable(value)
        if self.kind is str:
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                return False
            return self.pattern is None or re.fullmatch(self.pattern, value) is not None
        if self.kind is dict:
            return bool(value) and isinstance(value, Mapping)
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, int | float):
            return False
        if self.kind is int and not isinstance(value, int):
            return False
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def parse(self, text: str) -> Any:
        """The value that `text` (from the command line) stands for; ValueError if none."""
        if self.optional and text in ("None", "none"):
            return None
        if self.kind is bool:
            return flags.BooleanParser().parse(text)  # what absl takes for true and false
        if self.kind is dict:
            try:
                return ast.literal_eval(text)  # as ml_collections does
            except (SyntaxError, TypeError, MemoryError, RecursionError):
                raise ValueError(text) from None
        return self.kind(text)
