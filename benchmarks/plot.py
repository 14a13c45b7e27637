"""Plots training.json."""

import pathlib
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import machine

_OURS, _PEER, _LIMIT = "#0072b2", "#b8bfc8", "#d55e00"


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws peers and limit, one panel per batch size, and below them the scaling."""
    compared, measured = result["peers"]["batch_sizes"], result["growth"]
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1.1))
    panels = above.subplots(1, len(compared), sharey=True, squeeze=False)[0]
    for axes, (batch_size, part) in zip(panels, compared.items(), strict=True):
        _peers(axes, batch_size, part)
    over_batch, over_epochs, over_replicas = below.subplots(1, 3)
    found = measured["batch size"]
    _curve(over_batch, found["batch_size"], found["images_per_second"])
    over_batch.set(title="images a second", xlabel="batch size", ylim=(0, None))
    found = measured["epochs"]
    _curve(over_epochs, found["epochs"], [[one] for one in found["seconds"]], linear=True)
    reach = [0, found["epochs"][-1]]
    line = [found["seconds_apart"] + found["seconds_an_epoch"] * one for one in reach]
    over_epochs.plot(reach, line, color=_PEER, zorder=1)
    over_epochs.set(
        title="seconds of a whole command", xlabel="epochs of 6,000 images", xlim=(0, None),
        ylim=(0, None),
    )  # fmt: skip
    found = measured["replicas"]
    milliseconds = [[1000 * one for one in part] for part in found["seconds_a_step"]]
    _curve(over_replicas, found["replicas"], milliseconds)
    over_replicas.set(
        title="milliseconds of a replica's step", xlabel="replicas (seeds)", ylim=(0, None)
    )
    environment = result["environment"]
    figure.suptitle(
        f"{environment['processor']}, {environment['cpu_count']} cores; median and range "
        "of the rounds of one run", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=140)


def _peers(axes: Axes, batch_size: str, part: dict[str, Any]) -> None:
    titles = list(part["images_per_second"])
    for place, (title, rates) in enumerate(part["images_per_second"].items()):
        median, ours = statistics.median(rates), title.startswith("mnist_cnn")
        axes.barh(
            place, median, color=_OURS if ours else _PEER, height=0.7,
            xerr=[[median - min(rates)], [max(rates) - median]], ecolor="#555555",
        )  # fmt: skip
        axes.text(
            median / 2, place, f"{median:,.0f}", va="center", ha="center",
            color="white" if ours else "black",
        )  # fmt: skip
    limit = statistics.median(part["limit"])
    axes.axvline(limit, color=_LIMIT, linestyle="--")
    axes.text(
        limit, len(titles) - 0.3, f"{machine.LIMIT} {limit:,.0f} ", color=_LIMIT, ha="right",
        va="center", fontsize=9,
    )  # fmt: skip
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.1, -0.6)
    axes.set(title=f"images a second, batch {batch_size}")
    _plain(axes)


def _curve(axes: Axes, values: Any, rounds: list[list[float]], linear: bool = False) -> None:
    median = [statistics.median(part) for part in rounds]
    spread = [
        [m - min(part) for m, part in zip(median, rounds, strict=True)],
        [max(part) - m for m, part in zip(median, rounds, strict=True)],
    ]
    axes.errorbar(values, median, yerr=spread, color=_OURS, marker="o", capsize=3, zorder=2)
    if not linear:
        axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
