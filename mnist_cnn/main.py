"""The command: flags -> config -> run.

    python -m mnist_cnn.main --config experiments/base.py [--config.KEY=VALUE ...] [--workdir DIR]

Exit status: 0 done; 1 an error, said in one line; 2 bad usage; 143/130 stopped by SIGTERM/SIGINT
after saving.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from mnist_cnn import command_line as command_lib, config as config_lib, report
from mnist_cnn.command_line import command
from mnist_cnn.errors import ConfigError, UserError

__all__ = ["command", "main", "parse_flags"]

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a Python file with get_config()."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory; None makes runs/<experiment>-<time>."
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "One process of a job on a TPU pod or under Slurm, which say of how many."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "One process of a job: HOST:PORT of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


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
    if _CONFIG.value.smoke and (_WORKDIR.value or _DISTRIBUTED.value or _COORDINATOR.value):
        raise ConfigError(
            "config.smoke: a check of this machine alone, which leaves nothing behind; give it "
            "neither --workdir nor a job"
        )
    _check_job(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    return rest


def _check_job(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """A job is said whole, or left to --distributed."""
    if (coordinator, num_processes, process_id) == (None, None, None):
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            "--coordinator=HOST:PORT, --num_processes and --process_id belong together; on a TPU "
            "pod and under Slurm --distributed is enough"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"--coordinator: got {coordinator!r}, expected HOST:PORT of process 0")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id: got {process_id}, expected 0 to {num_processes - 1}, one for each of "
            f"the {num_processes} processes"
        )


def main(arguments: list[str]) -> int:
    del arguments  # all were flags
    command_lib.silence_libraries()
    if _CONFIG.value.smoke:
        from mnist_cnn.runner import smoke

        return 0 if smoke.check(_CONFIG.value) else 1
    from mnist_cnn.parallel import watchdog
    from mnist_cnn.runner import run_directory, signals
    from mnist_cnn.runner.environment import command_line

    distributed = _DISTRIBUTED.value or _COORDINATOR.value is not None
    if distributed:
        watchdog.run_under_watchdog(logging.get_verbosity() >= logging.DEBUG)
        from mnist_cnn.parallel import processes

        processes.init_distributed(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    stop = signals.StopRequest()
    stop.install()
    workdir = _WORKDIR.value or str(run_directory.new_run_path(_CONFIG.value.name))
    typed = command_line()
    try:
        from mnist_cnn.runner import loop

        loop.run(_CONFIG.value, workdir, command=typed, stop=stop, write_report=report.write)
    except signals.Stopped as stopped:
        given = _WORKDIR.value is not None
        go_on = shlex.join(typed if given else [*typed, f"--workdir={workdir}"])
        if not distributed or processes.is_primary():
            print(f"stopped by {stopped}; saved. To resume: {go_on}", flush=True)
        return stopped.status
    except RuntimeError as error:
        if distributed and processes.is_peer_failure(error):
            raise UserError(watchdog.PEER_LOST) from error
        raise
    return 0


if __name__ == "__main__":
    command(main, parse_flags)
