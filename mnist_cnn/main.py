"""Trains and evaluates an experiment.

    python -m mnist_cnn.main --config experiments/base.py [--config.KEY=VALUE ...] [--workdir DIR]

Exit status: 0 done; 1 an error; 2 bad usage; 128 + its number after a signal: 143 and 130 for
SIGTERM and SIGINT. SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU save and stop as well. An error is one
line on stderr.
"""

import shlex
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from mnist_cnn import command_line, config as config_lib, report
from mnist_cnn.errors import ConfigError, UserError

command_line.define_config("A Python file with get_config().")
command_line.define_path("workdir", "The run directory; default runs/NAME-TIME.")
flags.DEFINE_boolean(
    "distributed", False, "Run as one process of a job on a TPU pod or under Slurm."
)
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of the job.")
flags.DEFINE_integer("num_processes", None, "The number of processes of the job.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; ConfigError if a flag, a field or the experiment file is wrong."""
    rest = command_line.parse_flags(arguments)
    args = flags.FLAGS
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r}: expected flags only; see --helpshort")
    if args.config is None:
        raise ConfigError("--config is missing; give an experiment such as experiments/base.py")
    config_lib.validate(args.config)
    if args.config.smoke and (args.workdir or args.distributed or args.coordinator):
        raise ConfigError(
            "config.smoke: the check is for this machine alone and keeps no files; leave out "
            "--workdir, --distributed and --coordinator"
        )
    coordinator, number, process_id = job = args.coordinator, args.num_processes, args.process_id
    if job == (None, None, None):
        return rest
    if None in job:
        raise ConfigError(
            "--coordinator=HOST:PORT, --num_processes and --process_id belong together; on a TPU "
            "pod and under Slurm --distributed is enough"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"--coordinator: got {coordinator!r}, expected HOST:PORT of process 0")
    if not 0 <= process_id < number:
        raise ConfigError(
            f"--process_id: got {process_id}, expected 0 to {number - 1}, a different one in each "
            f"of the {number} processes"
        )
    return rest


def main(_: list[str]) -> int:
    """Runs the experiment and returns the exit status."""
    command_line.silence_libraries()
    args = flags.FLAGS
    config_file = config_flags.get_config_filename(args["config"])
    if args.config.smoke:
        from mnist_cnn.runner import smoke

        return 0 if smoke.check(args.config, config_file=config_file) else 1
    from mnist_cnn.parallel import watchdog
    from mnist_cnn.runner import environment, run_directory, signals

    distributed = args.distributed or args.coordinator is not None
    if distributed:
        watchdog.run_under_watchdog(logging.get_verbosity() >= logging.DEBUG)
        from mnist_cnn.parallel import processes

        processes.init_distributed(args.coordinator, args.num_processes, args.process_id)
    stop = signals.StopRequest()
    stop.install()
    workdir = args.workdir or str(run_directory.new_run_path(args.config.name))
    typed = environment.command_line()
    try:
        with stop.deferred():  # a library's import can swallow an exception
            from mnist_cnn.runner import loop
        loop.run(
            args.config, workdir, command=typed, config_file=config_file,
            stop=stop, write_report=report.write,
        )  # fmt: skip
    except signals.Stopped as stopped:
        resume = shlex.join(typed if args.workdir else [*typed, f"--workdir={workdir}"])
        if not distributed or processes.is_primary():
            print(f"stopped by {stopped}; saved. To resume: {resume}", flush=True)
        return stopped.status
    except RuntimeError as error:
        if distributed and processes.is_peer_failure(error):
            raise UserError(watchdog.PEER_LOST) from error
        raise
    return 0


if __name__ == "__main__":
    command_line.run_command(main, parse_flags)
