"""The command: flags -> config -> run.

    python -m mnist_cnn.main --config experiments/base.py [--config.KEY=VALUE ...] [--workdir DIR]

Exit status: 0 done; 1 an error, said in one line; 2 bad usage; 143/130 stopped by SIGTERM/SIGINT
after saving.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from mnist_cnn import command as command_lib, config as config_lib
from mnist_cnn.command import command
from mnist_cnn.errors import ConfigError

__all__ = ["command", "main", "parse_flags"]

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
    rest = command_lib.parse_flags(arguments)
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r}: expected flags only; see --helpshort")
    if _CONFIG.value is None:
        raise ConfigError("--config is missing; give an experiment such as experiments/base.py")
    config_lib.validate(_CONFIG.value)
    return rest


def main(arguments: list[str]) -> int:
    del arguments  # all were flags
    command_lib.silence_libraries()
    from mnist_cnn import records
    from mnist_cnn.signals import Stopped, StopRequest

    stop = StopRequest()
    stop.install()
    workdir = _WORKDIR.value or str(records.new_path(_CONFIG.value.name))
    typed = records.command_line()
    try:
        from mnist_cnn import loop

        loop.run(_CONFIG.value, workdir, command=typed, stop=stop)
    except Stopped as stopped:
        given = _WORKDIR.value is not None
        go_on = shlex.join(typed if given else [*typed, f"--workdir={workdir}"])
        print(f"stopped by {stopped}; saved.  To go on: {go_on}", flush=True)
        return stopped.status
    return 0


if __name__ == "__main__":
    command(main, parse_flags)
