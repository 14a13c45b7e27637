"""Plots test accuracy over the cost of training: the records and published networks.

    python -m benchmarks.results_plot

It writes docs/images/accuracy.png.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import published
from benchmarks.results_table import RESULTS, ROOT, cost

PATH = ROOT / "docs" / "images" / "accuracy.png"
OURS, THEIRS = "#0072b2", "#6b7480"
# Deotte gives the mean of 100 networks, and of 15 together, without logs of each.
DEOTTE = ("Deotte", 99.641, 3 * 15.2e6 * 60_000 * 30)
# The offset and the alignment of a label; by default it is below its point, to the right.
OFFSETS = {
    "accuracy": ((-8, 4), "right"),
    "5 of accuracy": ((6, 14), "right"),
    "ensemble": ((-19, -13), "right"),
    "10 of ensemble": ((-7, -3), "right"),
    "digits": ((-8, -9), "right"),
    "Deotte": ((8, -8), "left"),
    "An et al., M3": ((8, -3), "left"),
    "An et al., M5": ((8, -15), "left"),
    "Doucet": ((8, -4), "left"),
    "10 of Doucet": ((7, -3), "left"),
}


class Point(NamedTuple):
    """A record in the plot; accuracies in %, work in multiply-adds of training."""

    name: str
    accuracy: float  # the mean of all seeds
    half_interval: float
    work: float  # of one seed
    ensemble_name: str
    ensemble_accuracy: float
    ensemble_work: float  # of all seeds


def points() -> Iterator[Point]:
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())["result"]
        mean, seeds = result["test_mean"], len(result["seeds"])
        work = cost(f"experiments/{path.stem}.py", result["steps"]).multiply_adds_of_training
        yield Point(
            path.stem, 100 * mean["accuracy"], 100 * mean["ci95"], work,
            f"{seeds} of {path.stem}", 100 * result["ensemble"]["accuracy"], seeds * work,
        )  # fmt: skip


def draw(path: pathlib.Path) -> None:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()

    def label(name: str, work: float, accuracy: float, colour: str) -> None:
        offset, side = OFFSETS.get(name, ((4, -13), "left"))
        axes.annotate(name, (work, 100 - accuracy), offset, textcoords="offset points",
                      color=colour, ha=side, fontsize=9)  # fmt: skip

    for point in points():
        axes.errorbar(point.work, 100 - point.accuracy, point.half_interval, fmt="o", color=OURS,
                      capsize=3)  # fmt: skip
        label(point.name, point.work, point.accuracy, OURS)
        axes.plot(point.ensemble_work, 100 - point.ensemble_accuracy, "D", color=OURS,
                  markersize=4)  # fmt: skip
        label(point.ensemble_name, point.ensemble_work, point.ensemble_accuracy, OURS)
    name, accuracy, work = DEOTTE
    axes.plot(work, 100 - accuracy, "s", color=THEIRS)
    label(name, work, accuracy, THEIRS)
    for row in published.others():
        work = row.multiply_adds_of_training
        if work is None:
            continue
        axes.errorbar(work, 100 - row.mean, row.half_interval, fmt="s", color=THEIRS, capsize=3)
        label(row.short_name, work, row.mean, THEIRS)
        if row.best_epochs:
            axes.plot(work, 100 - row.best_epochs, "s", color=THEIRS, mfc="none")
        if row.together:
            count, accuracy = row.together
            axes.plot(count * work, 100 - accuracy, "D", color=THEIRS, markersize=4)
            label(f"{count} of {row.short_name}", count * work, accuracy, THEIRS)
    axes.axhline(100 - 97.33, color=THEIRS, linewidth=1, linestyle=":")
    axes.annotate("the tutorial's picture, one run", (1, 100 - 97.33), (-4, 4), color=THEIRS,
                  ha="right", xycoords=("axes fraction", "data"), fontsize=9,
                  textcoords="offset points")  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlim=(3e10, 2e17), ylim=(3.2, 0.1), ylabel="test accuracy, %",
        xlabel="multiply-adds of training, forward and backward",
    )  # fmt: skip
    shown = (97, 98, 99, 99.5, 99.7, 99.8, 99.9)
    axes.set_yticks([100 - accuracy for accuracy in shown], [f"{accuracy:g}" for accuracy in shown])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "filled: mean of last epochs, with its 95 % interval; diamonds: as one ensemble;\n"
        "hollow: mean of best epochs, which the test set has chosen",
        fontsize=9,
    )
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    draw(PATH)
