"""The experiment file: kept with its SHA-256 in the run directory, named by its lines in errors.

config.json identifies an object of an experiment by its name and fields, this file its code.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from mnist_cnn.config import OBJECTS
from mnist_cnn.errors import is_users, place
from mnist_cnn.files import write_atomically
from mnist_cnn.runner.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class ExperimentFile:
    """An experiment file as it was when the run began or resumed."""

    path: str
    content: bytes

    def describe(self) -> dict[str, str]:
        """What environment.json contains of it."""
        return {"file": self.path, "sha256": hashlib.sha256(self.content).hexdigest()}

    def keep(self, directory: RunDirectory) -> None:
        """Copies it to the run directory, where earlier ones stay under their own names."""
        write_atomically(directory.path / kept_name(self.describe()), self.content)


def kept_name(description: Mapping[str, str]) -> str:
    """Its name in the run directory, from what environment.json contains of it."""
    return f"experiment-{description['sha256'][:8]}.py"


def read(config: Mapping[str, Any], file: str | None = None) -> ExperimentFile | None:
    """`file`, or else the file that defines an object of `config`; None if there is none."""
    found = filter(None, (_definition(value) for value in map(config.get, OBJECTS)))
    for path in [file] if file else [path for path, _ in found]:
        try:
            return ExperimentFile(str(path), pathlib.Path(path).read_bytes())
        except OSError:  # a cell of a notebook is in no file
            continue
    return None


def changed_notes(
    directory: RunDirectory, before: Mapping[str, Any], now: ExperimentFile | None
) -> list[str]:
    """A note if `now` differs from the experiment file of a run, by its environment.json."""
    old = before.get("experiment")
    if not old or now is None or old["sha256"] == now.describe()["sha256"]:
        return []
    return [
        f"note: {now.path} differs from the run's experiment file, {directory}/{kept_name(old)}; "
        "if an object of it has changed, the result is that of neither file"
    ]


def where_made(value: Any, key: str, file: str | None) -> str | None:
    """The line that defines an object's class or function, or that passes it as `key` in `file`."""
    if found := _definition(value):
        return place(*found)
    if file is None:
        return None
    passed = [
        node.value.lineno
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.keyword) and node.arg == key
    ]
    return place(file, passed[0]) if len(passed) == 1 else file


def _definition(value: Any) -> tuple[str, int] | None:
    """File and line of an object's class or function, if it is the user's own."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.MethodType | types.FunctionType):
        code = inspect.unwrap(value).__code__
        return (code.co_filename, code.co_firstlineno) if is_users(code.co_filename) else None
    # A module that ml_collections loaded is unknown to `inspect`, so ask the methods of a class.
    kind = value if isinstance(value, type) else type(value)
    for method in vars(kind).values():
        code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
        if code is not None and is_users(code.co_filename):
            lines = [
                node.lineno
                for node in ast.walk(_parse(code.co_filename))
                if isinstance(node, ast.ClassDef) and node.name == kind.__name__
            ]
            return code.co_filename, lines[0] if lines else code.co_firstlineno
    return None


def _parse(file: str) -> ast.AST:
    try:
        return ast.parse(pathlib.Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])
