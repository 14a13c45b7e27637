"""Prints the README's table of results from the records in experiments/results/.

    python -m benchmarks.results_table

A record contains a run's environment.json and result.json; the record of a joined run also
contains how its parts were trained. The cost of a network follows from its experiment file.
"""

import json
import math
import pathlib
import runpy
from typing import Any, NamedTuple

from mnist_cnn.models import summary
from mnist_cnn.training import batches
from mnist_cnn.training.components import build_components

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
COLUMNS = (
    "experiment", "seeds", "test accuracy", "NLL", "ECE", "as one ensemble", "parameters",
    "multiply-adds per image", "of its whole training", "time, all seeds",
)  # fmt: skip


class Cost(NamedTuple):
    """The cost of one network."""

    parameters: int
    multiply_adds_per_image: int  # of a test image
    multiply_adds_of_training: int


def cost(experiment: str, steps: int) -> Cost:
    """The cost of one network of an experiment file after `steps` steps.

    A training step counts as three forward passes: the gradients of a layer's inputs and kernel
    take as many multiply-adds each as its forward pass. Steps of digits.py are on MADE images, too.
    """
    contents = runpy.run_path(str(ROOT / experiment))
    config = contents["get_config"]()
    model = build_components(config)[0]
    tested, trained = (summary.summarize(model, train=train) for train in (False, True))
    epoch = batches.steps_per_epoch(60_000, config["batch_size"])
    images = steps // epoch * 60_000 + steps % epoch * config["batch_size"]
    images += steps * sum(contents.get("MADE", {}).values())
    return Cost(
        sum(layer.parameters for layer in tested),
        sum(layer.multiply_adds for layer in tested),
        3 * images * sum(layer.multiply_adds for layer in trained),
    )


def abbreviate(number: float) -> str:
    """Three digits and a unit: 13.9 M."""
    thousands = int(math.log10(number) // 3)
    return f"{number / 1000**thousands:.3g} {['', 'k', 'M', 'G', 'T', 'P'][thousands]}"


def row(record: dict[str, Any]) -> tuple[str, ...]:
    """The table's cells for a record."""
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
        *map(abbreviate, cost(experiment, result["steps"])),
        f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min",
    )


def table() -> str:
    """The table in Markdown."""
    paths = sorted(RESULTS.glob("*.json"))
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(json.loads(p.read_text())) for p in paths)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
