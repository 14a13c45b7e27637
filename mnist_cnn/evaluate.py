"""Scores the network of a run directory on a whole split, with a table of the classes.

    python -m mnist_cnn.evaluate --workdir DIR [--split SPLIT] [--seed SEED|all] [--json]

--seed=all scores the ensemble of all seeds, says how often its members disagree, and scores each.
Exit status: 0 done; 1 an error; 2 bad usage.
"""

import json

from absl import flags

from mnist_cnn import command_line
from mnist_cnn.errors import ConfigError


def main(arguments: list[str]) -> int:
    args = flags.FLAGS
    if args.workdir is None or len(arguments) > 1:
        raise ConfigError("expected --workdir DIR and flags only; see --helpshort")
    command_line.silence_libraries()
    from mnist_cnn.analysis import evaluation_text
    from mnist_cnn.analysis.evaluation import evaluate
    from mnist_cnn.runner.console import Console

    metrics = evaluate(
        args.workdir, args.split, args.dataset, args.manual_dir, args.config, args.seed
    )
    if args.json:
        print(json.dumps(metrics))
    else:
        evaluation_text.show(Console(), metrics)
    return 0


if __name__ == "__main__":  # an import defines no flags
    command_line.define_network_flags()
    flags.DEFINE_string(
        "split",
        None,
        "The images to score, in tfds' notation: train[55000:]; default: what the run tested.",
    )
    flags.DEFINE_string("dataset", None, "A dataset other than the run's.")
    command_line.define_path("manual_dir", "A folder of images to score instead.")
    flags.DEFINE_boolean("json", False, "Print one JSON object.")
    command_line.run_command(main, command_line.parse_flags)
