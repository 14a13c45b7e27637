"""The command: flags -> config -> run.

    python -m mnist_cnn.main --config experiments/base.py [--config.KEY=VALUE ...] [--workdir DIR]

Exit status: 0 done; 1 an error, said in one line; 2 bad usage; 143/130 stopped by SIGTERM/SIGINT
after saving.
"""

from __future__ import annotations

import logging as python_logging
import os
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from mnist_cnn import config as config_lib
from mnist_cnn.errors import ConfigError, UserError, printable

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a Python file with get_config()."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory; None makes runs/<experiment>-<time>."
)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses and checks the command line.

    Raises:
      ConfigError: a flag, a field or the experiment file is wrong.
    """
    config_lib.check_overrides(arguments)
    for index, argument in enumerate(arguments):
        name, equals, path = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            path = path if equals else (*arguments, "")[index + 1]
            if not os.path.isfile(path):
                raise ConfigError(
                    f"--config {path}: there is no such file; give an experiment such as "
                    "experiments/base.py"
                )
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except Exception as error:  # the experiment file is the user's own program
        raise ConfigError(_broken_experiment(error)) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r}: expected flags only; see --helpshort")
    if _CONFIG.value is None:
        raise ConfigError("--config is missing; give an experiment such as experiments/base.py")
    config_lib.validate(_CONFIG.value)
    return rest


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


def main(arguments: list[str]) -> int:
    del arguments  # all were flags
    quiet = logging.get_verbosity() < logging.DEBUG
    if quiet:
        _silence_libraries()
    from mnist_cnn import records
    from mnist_cnn.signals import Stopped, StopRequest

    stop = StopRequest()
    stop.install()
    workdir = _WORKDIR.value or str(records.new_path(_CONFIG.value.name))
    command = records.command_line()
    try:
        from mnist_cnn import loop

        loop.run(_CONFIG.value, workdir, command=command, stop=stop)
    except Stopped as stopped:
        given = _WORKDIR.value is not None
        go_on = shlex.join(command if given else [*command, f"--workdir={workdir}"])
        print(f"stopped by {stopped}; saved.  To go on: {go_on}", flush=True)
        return stopped.status
    return 0


def _silence_libraries() -> None:
    """What goes wrong is said by us, in one line; --verbosity=1 lets everybody speak."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's; read when jax is imported
    warnings.simplefilter("ignore")
    logging.set_verbosity(logging.FATAL)
    python_logging.disable(python_logging.ERROR)
    # Threads and callbacks of Orbax, tensorstore and tensorboardX print tracebacks of their own
    # after a failed write; the failure itself reaches the main thread, and `command` says it.
    for hooks in (sys, threading):
        hooks.excepthook = lambda *_: None  # type: ignore[attr-defined]
    sys.unraisablehook = lambda _: None


def command(main_function, flags_parser) -> None:  # type: ignore[no-untyped-def]
    """Runs a command: errors become one line and an exit status."""
    try:
        app.run(main_function, flags_parser=flags_parser)
    except ConfigError as error:
        _fail(error, 2)
    except UserError as error:
        _fail(error, 1)
    except OSError as error:
        place = error.filename or _WORKDIR.value or "the run directory"
        reason = error.strerror or error
        _fail(OSError(f"{place}: {reason}; mend that, and give the same command again"), 1)
    except Exception as error:
        _fail(error, 1, unexpected=True)


def _fail(error: BaseException, status: int, unexpected: bool = False) -> None:
    if logging.get_verbosity() >= logging.DEBUG:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if unexpected:
        text = f"{type(error).__name__}: {text} (unexpected; --verbosity=1 shows where)"
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
    os._exit(status)  # what still writes in the background has nothing good to add


if __name__ == "__main__":
    command(main, parse_flags)
