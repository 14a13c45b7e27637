"""The exceptions that users see: the commands print their text as one line and exit."""

import contextlib
import pathlib
import re
import sysconfig
import traceback
import types
from typing import Any


class UserError(Exception):
    """An error that the user can fix; one line: what was given, what was expected, what to do."""


class ConfigError(UserError):
    """A field or a flag is unknown, of the wrong type, or out of range."""


class DataError(UserError):
    """Data files are missing, truncated, altered or inconsistent."""


class PictureError(UserError):
    """A file is not a readable picture, or shows no digit."""


class CheckpointError(UserError):
    """A run directory or a checkpoint cannot be used."""


def import_problem(error: ImportError, remedy: str) -> str:
    """Why an import failed: a package is missing, with the remedy, or cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"needs the package {error.name}: {remedy}"
    return f"a package cannot be imported ({error})"


def printable(text: str) -> str:
    """`text` with control characters escaped, such as \\x1b: file names can contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(value: Any) -> str:
    """The repr of `value` without line breaks and addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(value).split()))


def shorten(value: Any) -> str:
    """`value` in an error: numbers, strings and lists as they are, an object by its type."""
    if value is None or type(value) in (str, bool, int, float, list, tuple, dict):
        text = one_line(value)
        return text if len(text) <= 200 else f"{text[:200]}..."
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
    return f"an object of type {type(value).__name__}{shape}"


def is_users(filename: str) -> bool:
    """Whether code is the user's own: neither this package's, nor a library's, nor generated."""
    path = pathlib.Path(filename).resolve()
    others = (sysconfig.get_path("stdlib"), pathlib.Path(__file__).resolve().parent)
    return not (
        filename.startswith("<")
        or {"site-packages", "dist-packages"}.intersection(path.parts)
        or any(path.is_relative_to(other) for other in others)
    )


def place(filename: str, line: int) -> str:
    """A line of a file for an error, such as "experiments/mine.py, line 12"."""
    path = pathlib.Path(filename)
    with contextlib.suppress(ValueError, OSError):  # it is elsewhere
        path = path.absolute().relative_to(pathlib.Path.cwd())
    return f"{path}, line {line}"


def users_line(trace: types.TracebackType | None) -> str | None:
    """The line of the user's own code at which an error was raised; None if there is none."""
    frames = [frame for frame in traceback.extract_tb(trace) if is_users(frame.filename)]
    return place(frames[-1].filename, frames[-1].lineno or 0) if frames else None
