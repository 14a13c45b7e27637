"""What all commands share: flags in, one line and an exit status (0, 1 error, 2 usage) out."""

import contextlib
import gc
import io
import logging as python_logging
import os
import pathlib
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from mnist_cnn import config as config_lib
from mnist_cnn.config import model_fields
from mnist_cnn.errors import ConfigError, UserError, printable, users_line
from mnist_cnn.files import local_path
from mnist_cnn.parallel import threads

_OF_MODEL = re.compile(r"--?config\.(model\.[^=]*)")

flags.disclaim_key_flags()  # --helpshort lists the flags defined here with the command's own


def run_command(main: Callable[..., int], flags_parser: Callable[..., list[str]]) -> NoReturn:
    """Runs a command and ends the process: an error becomes one line and an exit status."""
    if sys.platform == "win32":
        _fail("mnist_cnn runs on Linux and macOS; on Windows use WSL (first `wsl --install`)", 1)
    # JAX reads it when it first uses a GPU: allocate memory as needed, not 75 % of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Python's default, 700 allocations between collections, costs 0.2 s of a run and frees nothing.
    gc.set_threshold(100_000)
    try:
        app.run(main, flags_parser=flags_parser)
    except SystemExit as done:
        jax = sys.modules.get("jax")
        distributed = jax is not None and jax.distributed.is_initialized()
        if not distributed and isinstance(done.code, int | None):
            # Python's own clean-up takes half a second for JAX, but in a job JAX must sign off.
            with contextlib.suppress(OSError):  # stdout is closed: Python has a status for that
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(done.code or 0)
        raise
    except UserError as error:
        _fail(error, 2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        place = error.filename or getattr(flags.FLAGS, "workdir", None) or "the run directory"
        _fail(f"{place}: {error.strerror or error}; fix this and run the same command again", 1)
    except Exception as error:
        where = users_line(error.__traceback__) or "unexpected"
        text = f"{type(error).__name__}: {str(error)[:500]}"
        _fail(f"{text} ({where}; --verbosity=1 shows the traceback)", 1)


class _PathParser(flags.ArgumentParser[str]):
    """Parses the value of the flag `name`, a local path."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def parse(self, argument: str) -> str:
        return str(local_path(argument, f"--{self._name}"))


def define_path(name: str, text: str) -> None:
    """Defines the flag of a local path, whose `~` is expanded."""
    flags.DEFINE(_PathParser(name), name, None, text)


class _SeedParser(flags.ArgumentParser[int | str]):
    """Parses the seed of a network, or "all"."""

    def parse(self, argument: str) -> int | str:
        if argument == "all":
            return argument
        if not re.fullmatch(r"-?\d+", argument):
            raise ValueError("expected a seed, such as 1337, or all, the ensemble of all seeds")
        return int(argument)


def define_config(text: str) -> None:
    """Defines --config, an experiment file; `parse_flags` applies --config.KEY=VALUE to it."""
    # ml_collections looks for overrides in these arguments, by default in sys.argv, and must not
    # find them: it takes neither None nor a name in place of an object.
    config_flags.DEFINE_config_file("config", None, text, sys_argv=[])


def define_network_flags(default: str | None = None) -> None:
    """Defines --workdir, --seed and --config, for the commands that read a trained network."""
    text = "The run directory, or the .safetensors file, of a trained network"
    define_path("workdir", text + f"; by default {default}." if default else text + ".")
    seed = "The seed of the network to use, by default the first; all: the ensemble of all seeds."
    flags.DEFINE(_SeedParser(), "seed", None, seed)
    define_config("The experiment file, if it has its own model.")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses a command line, applies its --config.KEY=VALUE, and returns all but the flags."""
    python_logging.disable(python_logging.WARNING)  # ml_collections warns of what is an error here
    try:
        rest, overrides = split_overrides(arguments)
        with threads.used_by_xla(overrides.get("num_threads")):  # the file may start JAX
            positional = flags.FLAGS(rest)
        _apply_overrides(overrides)
        return positional
    except ConfigError as error:
        line = users_line(error.__traceback__)  # of the experiment file, unless a flag is wrong
        raise ConfigError(f"{error} ({line})" if line else str(error)) from error
    except Exception as error:  # the experiment file can raise anything
        broken: Any = error
        if isinstance(error, flags.Error):
            # ml_collections and then absl wrap its TypeError or ValueError.
            broken = getattr(error.__context__, "__context__", None)
        if broken is None:
            raise ConfigError(str(error)) from error
        line = users_line(broken.__traceback__)
        if isinstance(broken, SyntaxError) or line is None:
            is_syntax = isinstance(broken, SyntaxError)
            place: Any = broken if is_syntax else traceback.extract_tb(broken.__traceback__)[-1]
            line = f"{place.filename}, line {place.lineno}"
        text = f"{type(broken).__name__}: {str(broken)[:300]} ({line})"
        raise ConfigError(f"the experiment file cannot be used: {text}") from error
    finally:
        python_logging.disable(python_logging.NOTSET)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line into the other arguments and the values of --config.KEY=VALUE.

    Also reads its flag files, and expands the path of --config, which comes first in the result.
    The value of --config.model.FIELD is a text until the experiment's module is known.
    """
    texts = flags.FlagValues()
    texts.set_gnu_getopt(True)  # finds overrides after other arguments as well
    parser: flags.ArgumentParser[str] = flags.ArgumentParser()
    flags.DEFINE_multi_string("config", [], "", texts)
    for key, field in config_lib.FIELDS.items():
        flags.DEFINE(parser, f"config.{key}", None, "", texts, boolean=field.kind is bool)
    arguments = [arguments[0], *_read_flag_files(texts, arguments[1:])]
    of_model = {match[1]: None for one in arguments if (match := _OF_MODEL.match(one))}
    for key in of_model:
        flags.DEFINE(parser, f"config.{key}", None, "", texts)
    rest = texts(arguments, known_only=True)
    experiments: Any = texts["config"].value
    if len(experiments) > 1:
        raise ConfigError(f"--config: got {' and '.join(experiments)}, expected one experiment")
    rest[1:1] = [f"--config={local_path(path, '--config')}" for path in experiments]
    for argument in rest:
        if match := re.match(r"--?config\.([^=]*)", argument):
            config_lib.check_key(match[1])
    given: Any = {key: texts[f"config.{key}"].value for key in (*config_lib.FIELDS, *of_model)}
    given = {key: text for key, text in given.items() if text is not None}
    return rest, {
        key: text if key in of_model else config_lib.parse_value(key, text)
        for key, text in given.items()
    }


def _read_flag_files(texts: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """The arguments with the content of each file in place of its --flagfile."""
    warned = io.StringIO()
    try:
        with contextlib.redirect_stderr(warned):
            read = texts.read_flags_from_files(arguments)
    except (flags.Error, ValueError) as error:  # ValueError: the file is no text
        raise ConfigError(f"--flagfile: cannot be read ({error.__context__ or error})") from None
    if warned.getvalue():
        raise ConfigError("--flagfile: a flag file includes itself; remove that line")
    return read


def _apply_overrides(overrides: dict[str, Any]) -> None:
    """Checks what the experiment file returned, and changes it."""
    if "config" not in flags.FLAGS or not flags.FLAGS["config"].present:
        for key in overrides:
            raise ConfigError(f"--config.{key}: expected an experiment to change, --config FILE")
        return
    flag: Any = flags.FLAGS["config"]
    path, config = flag.config_filename, flag.value
    if not os.path.isfile(path):
        raise ConfigError(f"--config {path}: there is no such file; try experiments/base.py")
    try:
        if not hasattr(config, "ignore_type"):
            text = f"get_config() returned {config!r}, expected mnist_cnn.experiment(...)"
            raise ConfigError(f"--config {path}: {text}")
        with config.ignore_type(), config.unlocked():
            for key, value in overrides.items():  # those of the model come last
                if name := key.partition(".")[2]:
                    key, value = "model", model_fields.with_text(config["model"], name, value)
                config[key] = value
    except OSError as error:  # raised by the experiment file; ml_collections keeps it until now
        raise error.__cause__ or error from None


def check_output(path: pathlib.Path, flag: str = "--output") -> None:
    """Raises UserError unless a file can be made at `path`, so that no work is lost for it."""
    if path.is_dir():
        raise UserError(f"{flag} {path}: got a directory, expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} {path}: its directory does not exist; create it first")


def silence_libraries() -> None:
    """Hides what libraries print, because an error is one line; --verbosity=1 shows all of it."""
    if logging.get_verbosity() >= logging.DEBUG:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA reads it when jax is imported
    warnings.simplefilter("ignore")
    logging.set_verbosity(logging.FATAL)
    python_logging.disable(python_logging.ERROR)
    # After a failed write, threads and callbacks of Orbax, tensorstore and tensorboardX print
    # tracebacks.  The failure itself also reaches the main thread, and `run_command` reports it.
    silent: Callable[..., None] = lambda *_: None  # noqa: E731
    sys.excepthook = threading.excepthook = sys.unraisablehook = silent


def _fail(error: Exception | str, status: int) -> NoReturn:
    """Prints an error and ends the process, whatever still writes in the background."""
    if logging.get_verbosity() >= logging.DEBUG and sys.exc_info()[0] is not None:
        traceback.print_exc()
    text = " ".join(str(error).split())
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
    os._exit(status)
