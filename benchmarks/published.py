"""Prints what others have published about MNIST, computed again from their logs.

    python -m benchmarks.published

published.json has, for each network of others whose logs are public, the test accuracy after the
last epoch of each training, and the mean of their best epochs, which the test set has chosen. The
first table is of these and of our records; the second says how many seeds show a difference.
"""

import json
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results_table import RESULTS, abbreviate, cost
from mnist_cnn.statistics import mean_interval, seeds_needed

SOURCES = json.loads(pathlib.Path(__file__).with_name("published.json").read_text())
OURS = ("accuracy", "ensemble")
COLUMNS = (
    "network", "number", "last epoch", "best epoch", "as one ensemble",
    "multiply-adds per image", "of its training",
)  # fmt: skip
DIFFERENCES = (0.1, 0.05, 0.02, 0.01)  # percentage points


class Row(NamedTuple):
    """Trainings of one network; accuracies in %."""

    name: str
    link: str
    accuracies: list[float]  # of each training, after the last epoch
    best_epochs: float | None  # the mean; chosen on the test set
    together: tuple[int, float] | None  # a number of networks, and their accuracy as one
    multiply_adds_per_image: float | None
    multiply_adds_of_training: float | None

    @property
    def short_name(self) -> str:
        """The authors, and their name of the network."""
        return re.sub(r" \d{4}|, residual network", "", self.name)

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def half_interval(self) -> float:
        return mean_interval(np.array(self.accuracies))


def others() -> list[Row]:
    """The networks of others."""
    rows = []
    for source in SOURCES:
        per_image, together = source.get("multiply_adds_per_image"), source.get("together")
        rows.append(
            Row(
                source["label"],
                f"{source['repository']}/blob/{source['commit']}/{source['files']}",
                source["accuracies"],
                source.get("best_epochs"),
                (together["networks"], together["accuracy"]) if together else None,
                per_image,
                per_image and 3 * per_image * 60_000 * source["epochs"],
            )
        )
    return rows


def ours() -> list[Row]:
    """Our most accurate records."""
    rows = []
    for name in OURS:
        result = json.loads((RESULTS / f"{name}.json").read_text())["result"]
        one = cost(f"experiments/{name}.py", result["steps"])
        rows.append(
            Row(
                f"ours, `{name}.py`",
                f"../experiments/{name}.py",
                [100 * accuracy for accuracy in result["test"]["accuracy"]],
                None,
                (len(result["seeds"]), 100 * result["ensemble"]["accuracy"]),
                one.multiply_adds_per_image,
                one.multiply_adds_of_training,
            )
        )
    return rows


def table() -> str:
    """The networks in Markdown, the most accurate first."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in sorted([*others(), *ours()], key=lambda row: -row.mean):
        costs = (row.multiply_adds_per_image, row.multiply_adds_of_training)
        lines.append(
            (
                f"[{row.name}]({row.link})",
                str(len(row.accuracies)),
                f"{row.mean:.3f} ± {row.half_interval:.3f} %",
                f"{row.best_epochs:.3f} %" if row.best_epochs else "",
                f"{row.together[0]}: {row.together[1]:.2f} %" if row.together else "",
                *("" if number is None else abbreviate(number) for number in costs),
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread() -> float:
    """The largest standard deviation of one network's accuracy over its trainings, in %."""
    return max(float(np.std(row.accuracies, ddof=1)) for row in others())


def seeds_table() -> str:
    """In Markdown, how many seeds of each of two networks show a difference between them."""
    lines: list[tuple[Any, ...]] = [("difference", "seeds of each"), ("---", "---")]
    for difference in DIFFERENCES:
        needed = seeds_needed(difference / (2**0.5 * spread()))
        lines.append((f"{difference:g} points", needed))
    return "\n".join(f"| {first} | {second} |" for first, second in lines)


if __name__ == "__main__":
    print(table(), seeds_table(), sep="\n\n")
