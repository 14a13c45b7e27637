"""The exceptions that users see: the commands print their text as one line and exit."""

import contextlib
import pathlib
import sysconfig
import traceback
import types


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


def printable(text: str) -> str:
    """`text` with control characters escaped, such as \\x1b: file names can contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
