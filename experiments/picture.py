"""Accuracy against what training cost: the records, and published networks, as a picture.

python experiments/picture.py
"""

import json
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from table import HERE, RESULTS, cost

PATH = HERE.parent / "docs" / "images" / "accuracy.png"
OURS, THEIRS = "#0072b2", "#6b7480"
# name, accuracy in %, training multiply-adds, whether chosen on the test set
PUBLISHED = (
    ("Deotte, mean of 100", 99.641, 3 * 15.2e6 * 60_000 * 30, False),
    ("An et al., mean of 30 logs", 99.70, 3 * 155e6 * 60_000 * 150, False),
    ("An et al., 3 voting", 99.87, 3 * 3 * 155e6 * 60_000 * 150, True),
)


def points():
    """Of each record: its experiment, accuracy and half interval in %, multiply-adds of a seed;
    and of all its seeds as one ensemble, what they are called, accuracy and multiply-adds."""
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())["result"]
        mean, seeds = result["test_mean"], len(result["seeds"])
        work = cost(f"experiments/{path.stem}.py", result["steps"])[2]
        together = f"{seeds} of {path.stem}", 100 * result["ensemble"]["accuracy"], seeds * work
        yield path.stem, 100 * mean["accuracy"], 100 * mean["ci95"], work, together


def draw(path: pathlib.Path) -> None:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, accuracy, half, work, together in points():
        axes.errorbar(work, accuracy, half, fmt="o", color=OURS, capsize=3)
        axes.annotate(name, (work, accuracy), (7, -4), textcoords="offset points", color=OURS)
        title, accuracy, work = together
        axes.plot(work, accuracy, "D", color=OURS, markersize=4)
        axes.annotate(title, (work, accuracy), (7, -4), textcoords="offset points", color=OURS)
    for name, accuracy, work, chosen in PUBLISHED:
        face = "none" if chosen else THEIRS
        axes.plot(work, accuracy, "s", color=THEIRS, mfc=face)
        axes.annotate(name, (work, accuracy), (-7, 7), textcoords="offset points", color=THEIRS,
                      ha="right")  # fmt: skip
    axes.axhline(97.33, color=THEIRS, linewidth=1, linestyle=":")
    axes.annotate("the tutorial's picture, one run", (1, 97.33), (-4, 4), color=THEIRS, ha="right",
                  xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    axes.set(
        xscale="log", xlim=(3e10, 3e16), ylim=(97.2, 100), ylabel="test accuracy, %",
        xlabel="multiply-adds of training, forward and backward",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "filled: mean of last epochs, ours with its 95 % interval; diamonds: as one ensemble;\n"
        "hollow: chosen on the test set",
        fontsize=9,
    )
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    draw(PATH)
