"""Joins finished runs of one experiment with different seeds into one run directory.

    python -m mnist_cnn.join RUN RUN [RUN ...] --workdir DIR

Seeds may be trained apart, one after the other or on several machines. The experiment's own
command, run in DIR with the printed flags, then tests all of them: nothing is left to train.
Exit status: 0 done; 1 an error; 2 bad usage.
"""

import shlex

from absl import flags

from mnist_cnn import command_line
from mnist_cnn.errors import ConfigError, printable


def main(arguments: list[str]) -> int:
    workdir = flags.FLAGS.workdir
    if workdir is None or len(arguments) < 3:
        raise ConfigError("expected RUN RUN [RUN ...] --workdir DIR; see --helpshort")
    command_line.silence_libraries()
    from mnist_cnn.runner.join import join

    config = join(arguments[1:], workdir, lambda line: print(printable(line)))
    overrides = [f"--config.{key}={config[key]}" for key in ("name", "seed", "num_seeds")]
    resume = shlex.join([*overrides, f"--workdir={workdir}"])
    print(
        f"{printable(str(workdir))}: {config['num_seeds']} seeds from {config['seed']}; to test "
        f"them, run the experiment's command with {printable(resume)}"
    )
    return 0


if __name__ == "__main__":  # an import defines no flags
    command_line.define_path("workdir", "The run directory to make.")
    command_line.run_command(main, command_line.parse_flags)
