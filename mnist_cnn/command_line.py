"""What every command of the package has in common: flags in, one line and an exit status out.

Exit status: 0 done; 1 an error, said in one line; 2 bad usage.  This module imports nothing heavy
and defines no flag, so that any number of commands can be imported together.
"""

from __future__ import annotations

import contextlib
import gc
import logging as python_logging
import os
import pathlib
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from mnist_cnn import config as config_lib
from mnist_cnn.errors import ConfigError, UserError, printable

# New containers before Python looks for garbage.  By its default of 700 it goes over all that was
# imported and traced again and again, 0.2 s of a run, to find nothing.
_GC_THRESHOLD = 100_000

_OVERRIDE = re.compile(r"--?config\.([^=]*)(?:=(.*))?", flags=re.DOTALL)


def command(main_function, flags_parser) -> None:  # type: ignore[no-untyped-def]
    """Runs a command: errors become one line and an exit status."""
    # Of a GPU's memory what is needed, not three quarters at once; JAX reads it at its first use.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    gc.set_threshold(_GC_THRESHOLD)
    try:
        app.run(main_function, flags_parser=flags_parser)
    except SystemExit as done:
        _leave(done)
    except ConfigError as error:
        _fail(error, 2)
    except UserError as error:
        _fail(error, 1)
    except OSError as error:
        place = error.filename or getattr(flags.FLAGS, "workdir", None) or "the run directory"
        reason = error.strerror or error
        _fail(OSError(f"{place}: {reason}; mend that, and give the same command again"), 1)
    except Exception as error:
        _fail(error, 1, unexpected=True)


run_command = command


def define_network_flags() -> None:
    """Defines --workdir, --seed and --config, for the commands that read a trained network."""
    from ml_collections import config_flags

    flags.DEFINE_string("workdir", None, "The run directory of a trained network.")
    flags.DEFINE_integer("seed", None, "The seed of the network to use; by default the first.")
    config_flags.DEFINE_config_file(
        "config", None, "The experiment file; needed only if it brings its own model."
    )


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses a command line and checks what it says about the experiment.

    Returns:
      The command's name and the arguments that are no flags.

    Raises:
      ConfigError: a flag, a field or the experiment file is wrong.
    """
    check_overrides(arguments)
    experiment = None
    for index, argument in enumerate(arguments):
        name, equals, path = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            experiment = path = path if equals else (*arguments, "")[index + 1]
            if not os.path.isfile(path):
                raise ConfigError(
                    f"--config {path}: there is no such file; give an experiment such as "
                    "experiments/base.py"
                )
    arguments, apart = _split_overrides(arguments)
    typed, sys.argv = sys.argv, arguments  # there ml_collections looks for overrides
    python_logging.disable(python_logging.WARNING)  # what it says of an experiment, we say
    try:
        rest = flags.FLAGS(arguments)
        if experiment is not None:
            _apply(flags.FLAGS.config, apart)
        return rest
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except Exception as error:  # the experiment file is the user's own program
        raise ConfigError(_broken_experiment(error)) from error
    finally:
        sys.argv = typed
        python_logging.disable(python_logging.NOTSET)


def check_overrides(arguments: Sequence[str]) -> None:
    """Checks every --config.KEY=VALUE of a command line before anything parses it.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type or out of range.
    """
    for index, argument in enumerate(arguments):
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            continue
        key, text = match.groups()
        field = config_lib.check_key(key)
        if text is None and field.kind is bool:
            text = "true"  # as absl has it: the value of a boolean flag comes after "="
        if text is None:
            if index + 1 == len(arguments):
                raise ConfigError(f"config.{key}: got no value, expected {field.expected()}")
            text = arguments[index + 1]
        try:
            value = field.parse(text)
        except ValueError:
            raise ConfigError(f"config.{key}: got {text!r}, expected {field.expected()}") from None
        config_lib.check_value(key, value)


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """A checked command line without the overrides that ml_collections does not take, and those.

    It would parse "None" by the field's type, and put no name in the place of an object.
    """
    kept: list[str] = []
    apart: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            kept.append(argument)
            continue
        key, text = match.groups()
        field = config_lib.FIELDS[key]
        given = [argument]
        if text is None and field.kind is not bool:
            given.append(text := next(rest))
        if field.or_object or (field.optional and field.parse(text) is None):
            apart[key] = field.parse(text)
        else:
            apart.pop(key, None)
            kept += given
    return kept, apart


def _apply(config: Any, changes: dict[str, Any]) -> None:
    """Changes the experiment, once it is there."""
    if config is None:
        raise ConfigError(
            "the experiment file cannot be used: get_config() returned None, expected "
            "mnist_cnn.experiment(...)"
        )
    try:
        with config.ignore_type():
            config.update(changes)
    except OSError as error:  # ml_collections keeps an experiment's own until now
        raise error.__cause__ or error from None


def check_output(path: pathlib.Path) -> None:
    """Raises UserError unless `path` can become a file; before the work for it is done."""
    if path.is_dir():
        raise UserError(f"--output {path}: got a folder, expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output {path}: there is no such folder; make it first")


def silence_libraries() -> None:
    """What goes wrong is said by us, in one line; --verbosity=1 lets everybody speak."""
    if logging.get_verbosity() >= logging.DEBUG:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's; read when jax is imported
    warnings.simplefilter("ignore")
    logging.set_verbosity(logging.FATAL)
    python_logging.disable(python_logging.ERROR)
    # Threads and callbacks of Orbax, tensorstore and tensorboardX print tracebacks of their own
    # after a failed write; the failure itself reaches the main thread, and `command` says it.
    for hooks in (sys, threading):
        hooks.excepthook = lambda *_: None  # type: ignore[attr-defined]
    sys.unraisablehook = lambda _: None


def _broken_experiment(error: Exception) -> str:
    """Where in the experiment file, and what."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}, line {frame.lineno}"
    text = " ".join(str(error).split())
    return f"the experiment file cannot be used: {type(error).__name__}: {text} ({place})"


def _leave(done: SystemExit) -> None:
    """Ends the process at once: to take JAX apart in order would take half a second."""
    jax = sys.modules.get("jax")
    together = jax is not None and jax.distributed.is_initialized()  # the others are to be told
    if together or not isinstance(done.code, int | None):
        raise done
    with contextlib.suppress(OSError):  # nobody reads: Python's own end has a status for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(done.code or 0)
    raise done


def _fail(error: BaseException, status: int, unexpected: bool = False) -> None:
    if logging.get_verbosity() >= logging.DEBUG:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if unexpected:
        text = f"{type(error).__name__}: {text} (unexpected; --verbosity=1 shows where)"
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
    os._exit(status)  # what still writes in the background has nothing good to add
