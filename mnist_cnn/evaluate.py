"""Scores the network of a run directory on a whole split, with a table for each class.

    python -m mnist_cnn.evaluate --workdir DIR [--split SPLIT] [--seed SEED] [--json]

Exit status: 0 done; 1 an error, said in one line; 2 bad usage.
"""

from __future__ import annotations

import json

from absl import flags


def main(arguments: list[str]) -> int:
    from mnist_cnn import command_line
    from mnist_cnn.errors import ConfigError
    from mnist_cnn.runner.console import Console

    given = flags.FLAGS
    if given.workdir is None or len(arguments) > 1:
        raise ConfigError("expected --workdir DIR and flags only; see --helpshort")
    command_line.silence_libraries()
    from mnist_cnn.analysis.evaluation import evaluate

    figures = evaluate(
        given.workdir, given.split, given.dataset, given.manual_dir, given.config, given.seed
    )
    if given.json:
        print(json.dumps(figures))
    else:
        Console().evaluation(figures)
    return 0


if __name__ == "__main__":  # the flags are the command's alone: importing this module adds none
    from ml_collections import config_flags

    from mnist_cnn import command_line

    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_string("split", "test", "What to score, as tfds writes it: train[55000:].")
    flags.DEFINE_string("dataset", None, "Another dataset than the run's.")
    flags.DEFINE_string("manual_dir", None, "A folder of four IDX files instead.")
    flags.DEFINE_integer("seed", None, "Which of a run's networks; the first.")
    flags.DEFINE_boolean("json", False, "Print one JSON object.")
    config_flags.DEFINE_config_file(
        "config", None, "The experiment file, where it brought a module of its own."
    )
    command_line.command(main, command_line.parse_flags)
