"""The README's table of results, from the records in `experiments/results/`.

    python experiments/table.py

A record holds a run's environment.json and result.json as they were written, and of a joined run
how its parts were trained.  What a network costs follows from the experiment's file.
"""

import json
import math
import pathlib
import runpy

from mnist_cnn.models import summary
from mnist_cnn.training import batches
from mnist_cnn.training.components import build_components

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
COLUMNS = (
    "experiment", "seeds", "test accuracy", "NLL", "ECE", "as one ensemble", "parameters",
    "multiply-adds an image", "of its whole training", "time, all seeds",
)  # fmt: skip


def cost(experiment, steps):
    """Of one network: its parameters, multiply-adds of a tested image and of its training.

    A step takes at most three times the forward pass: the gradients of a layer's inputs and kernel
    are as much again each.
    """
    config = runpy.run_path(HERE.parent / experiment)["get_config"]()
    tested, trained = (summary.summarize(build_components(config)[0], way) for way in (False, True))
    forward = sum(layer.multiply_adds for layer in trained)
    epoch = batches.steps_per_epoch(60_000, config["batch_size"])
    images = steps // epoch * 60_000 + steps % epoch * config["batch_size"]
    parameters = sum(layer.parameters for layer in tested)
    return parameters, sum(layer.multiply_adds for layer in tested), 3 * forward * images


def in_words(number):
    """Three digits and a unit: 13.9 M."""
    thousands = int(math.log10(number) // 3)
    return f"{number / 1000**thousands:.3g} {['', 'k', 'M', 'G', 'T', 'P'][thousands]}"


def row(record):
    environment, result = record["environment"], record["result"]
    mean = result["test_mean"]
    experiment = environment["command"][environment["command"].index("--config") + 1]
    seconds = result["seconds"]["total"]
    return (
        f"[`{experiment}`]({experiment})",
        str(len(result["seeds"])),
        f"{100 * mean['accuracy']:.2f} ± {100 * mean['ci95']:.2f} %",
        f"{mean['loss']:.4f}",
        f"{100 * mean['expected_calibration_error']:.2f} %",
        f"{100 * result['ensemble']['accuracy']:.2f} %",
        *map(in_words, cost(experiment, result["steps"])),
        f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min",
    )


def table():
    paths = sorted(RESULTS.glob("*.json"))
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(json.loads(p.read_text())) for p in paths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
