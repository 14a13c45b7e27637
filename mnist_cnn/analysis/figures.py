"""The report's pictures: arrays in, PNG bytes out, each in a light and a dark version.

The only file that imports matplotlib.  Colours are Okabe and Ito's, which colour-blind readers tell
apart; the pictures' background is the page's.  Text from outside is drawn as it is, never as TeX.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from mnist_cnn import statistics

_DPI = 170


@dataclasses.dataclass(frozen=True)
class Theme:
    """What the two versions of a picture differ in."""

    paper: str
    ink: str
    faint: str  # grid lines, and what is there for orientation only
    series: tuple[str, ...]  # one colour a setting
    good: str
    bad: str
    images: str  # colormaps: 0 is the background's
    filters: str
    counts: tuple[str, str]  # few .. many


LIGHT = Theme(
    "#ffffff", "#1a1a1a", "#c9ced6", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a37c00"),
    "#0072b2", "#d55e00", "gray_r", "RdBu_r", ("#eef4fa", "#08519c"),
)  # fmt: skip
DARK = Theme(
    "#16191d", "#e8eaed", "#4a515a", ("#56b4e9", "#ff8c42", "#2fc79a", "#e39cc4", "#e6c229"),
    "#56b4e9", "#ff8c42", "gray", "berlin", ("#1d2732", "#7cc4f4"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quantity over the steps, of each seed of a setting.

    Attributes:
      label: the setting and the split.
      setting: its number, which chooses the colour.
      steps: int [T].
      values: float [R, T].
      split: "train" is drawn as a line, "validation" dashed, "test" as a point.
    """

    label: str
    setting: int
    steps: np.ndarray
    values: np.ndarray
    split: str


@dataclasses.dataclass(frozen=True)
class Swept:
    """One line of a sweep: `values` [V] on the axis, for each the errors [R] of its seeds."""

    label: str
    values: Sequence[float]
    errors: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Digit:
    """An image with its caption: `values` uint8 [28, 28]."""

    values: np.ndarray
    title: str
    note: str


def render(draw: Callable[[Theme], Figure]) -> tuple[bytes, bytes]:
    """The light and the dark version of a picture, as PNG."""
    return _png(draw, LIGHT), _png(draw, DARK)


def _png(draw: Callable[[Theme], Figure], theme: Theme) -> bytes:
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans", "font.size": 10.5, "text.parse_math": False,
        "axes.unicode_minus": True, "axes.edgecolor": theme.ink, "axes.labelcolor": theme.ink,
        "axes.facecolor": theme.paper, "figure.facecolor": theme.paper, "text.color": theme.ink,
        "xtick.color": theme.ink, "ytick.color": theme.ink, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "figure.constrained_layout.use": True,
        "grid.color": theme.faint, "grid.linewidth": 0.6,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = draw(theme)
        content = io.BytesIO()
        FigureCanvasAgg(figure).print_png(content, pil_kwargs={"compress_level": 6})
    return content.getvalue()


def _axes(width: float = 5.4, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI)
    return figure, figure.add_subplot()


def _short(label: str) -> str:
    """A label that leaves room for the picture; the page has it in full."""
    return label if len(label) <= 40 else label[:39] + "\u2026"


def curves(lines: Sequence[Curve], label: str, theme: Theme) -> Figure:
    """Curves over steps on a logarithmic axis: each seed thin, their mean and its 95 % band."""
    figure, axes = _axes()
    for curve in lines:
        colour = theme.series[curve.setting % len(theme.series)]
        mean = curve.values.mean(0)
        if curve.split == "test":
            # A perfect test has no place on a logarithmic axis.
            points = np.where(curve.values > 0, curve.values, np.nan).T.ravel()
            axes.plot(
                np.repeat(curve.steps, len(curve.values)), points,
                marker="D", ms=5.5, ls="", color=colour, mec=theme.paper, clip_on=False, zorder=4,
                label=_short(curve.label),
            )  # fmt: skip
            continue
        dashes = "--" if curve.split == "validation" else "-"
        marker = "o" if len(curve.steps) < 3 else None
        axes.plot(
            curve.steps,
            mean,
            dashes,
            color=colour,
            lw=1.8,
            marker=marker,
            label=_short(curve.label),
        )
        if len(curve.values) > 1:
            axes.plot(curve.steps, curve.values.T, dashes, color=colour, lw=0.6, alpha=0.6)
        if len(curve.values) > 2:  # of two seeds the interval is 12.7 standard errors wide
            half = np.array([statistics.mean_interval(column) for column in curve.values.T])
            axes.fill_between(curve.steps, mean - half, mean + half, color=colour, alpha=0.22, lw=0)
    shown = [curve.values[curve.values > 0] for curve in lines]
    axes.set_yscale("log")
    low = min((values.min() for values in shown if values.size), default=0.1)
    high = max((values.max() for values in shown if values.size), default=1.0)
    axes.set_ylim(low / 1.4, high * 1.4)
    axes.set_xlim(left=0)
    ticks = [c * 10.0**e for e in range(-6, 4) for c in (1, 2, 5)]
    ticks = [t for t in ticks if low / 1.4 <= t <= high * 1.4]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel="training step", ylabel=label)
    axes.grid(axis="y")
    if len(lines) > 3:
        columns = 1 if max(len(curve.label) for curve in lines) > 28 else 2
        figure.set_figheight(3.6 + 0.18 * len(lines) / columns)
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
    else:
        axes.legend()
    return figure


def sweep(name: str, lines: Sequence[Swept], label: str, theme: Theme) -> Figure:
    """Errors over the swept value: each seed a point, their mean a line with its 95 % band."""
    figure, axes = _axes()
    for number, line in enumerate(lines):
        order = np.argsort(line.values)
        x = np.asarray(line.values, float)[order]
        errors = [line.errors[place] for place in order]
        mean = np.array([seeds.mean() for seeds in errors])
        colour = theme.series[number % len(theme.series)]
        dashes = ("-", "--", ":")[number // len(theme.series) % 3]
        axes.plot(x, mean, dashes, color=colour, lw=1.8, label=line.label)
        for place, seeds in zip(x, errors, strict=True):
            axes.plot(np.full(len(seeds), place), seeds, "o", color=colour, ms=5, mec=theme.paper)
        if min(map(len, errors)) > 2:
            half = np.array([statistics.mean_interval(seeds) for seeds in errors])
            axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.22, lw=0)
    ticks = np.unique(np.concatenate([line.values for line in lines]).astype(float))
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    every = np.concatenate([seeds for line in lines for seeds in line.errors])
    if every.min() > 0 and every.max() / every.min() >= 8:
        axes.set_yscale("log")
        axes.set_ylim(every.min() / 1.5, every.max() * 1.3)  # the points; a band may be cut
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_yticks([], minor=True)
    else:
        axes.set_ylim(0, every.max() * 1.1 or 1)
    axes.set(xlabel=name, ylabel=label)
    axes.grid(axis="y")
    if len(lines) > 1:
        axes.legend()
    return figure


def confusion(table: np.ndarray, theme: Theme) -> Figure:
    """int [10, 10]: mistakes coloured, the right ones on the diagonal as plain figures."""
    figure, axes = _axes(5.4, 5.0)
    mistakes = table.astype(float)
    np.fill_diagonal(mistakes, 0)
    most = max(2.0, mistakes.max())
    colours = LinearSegmentedColormap.from_list("counts", theme.counts)
    axes.imshow(np.ma.masked_less(mistakes, 1), cmap=colours, norm=LogNorm(1, most), aspect="equal")
    for row in range(10):
        for column in range(10):
            count = table[row, column]
            if count:
                dark_cell = row != column and np.log(count) > 0.55 * np.log(most)
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center",
                    fontsize=8 if count < 10_000 else 6.5,
                    color=theme.paper if dark_cell else theme.ink,
                    alpha=0.65 if row == column else 1,
                )  # fmt: skip
    axes.set(xticks=range(10), yticks=range(10), xlabel="network's answer", ylabel="true digit")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color=theme.faint, lw=0.4)
    axes.tick_params(which="minor", length=0)
    return figure


def reliability(calibration: statistics.Calibration, theme: Theme) -> Figure:
    """Accuracy against confidence above, how many images each point stands for below."""
    figure = Figure(figsize=(5.4, 5.0), dpi=_DPI)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = 100 / statistics.BINS
    centres = (np.arange(statistics.BINS) + 0.5) * width
    filled = calibration.count > 0
    sure, right = 100 * calibration.confidence[filled], 100 * calibration.accuracy[filled]
    upper.plot([0, 100], [0, 100], color=theme.ink, lw=1, ls=(0, (4, 3)), label="as sure as right")
    upper.vlines(sure, sure, right, color=theme.bad, lw=2, alpha=0.8)
    upper.plot(sure, right, "o", color=theme.good, ms=6, clip_on=False, label="images of a bin")
    upper.set(ylabel="right (%)", xlim=(0, 100), ylim=(0, 100))
    upper.grid()
    upper.legend(loc="upper left")
    lower.bar(centres, calibration.count, width * 0.9, color=theme.good)
    lower.set_yscale("log")
    lower.set_ylim(0.8, 3 * calibration.count.max())
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.set_yticks([], minor=True)
    lower.set(xlabel="probability of the answer (%)", ylabel="images")
    return figure


def digits(shown: Sequence[Digit], theme: Theme) -> Figure:
    """Images four in a row, with their captions."""
    # One pair of axes for all of them: sixteen would take a second to lay out.
    wide, high = 32, 40
    rows = -(-len(shown) // 4)
    figure = Figure(figsize=(5.4, 5.4 * rows * high / (4 * wide)), dpi=_DPI)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 4 * wide), ylim=(rows * high, 0))
    axes.axis("off")
    for place, digit in enumerate(shown):
        left, top = 2 + place % 4 * wide, 6 + place // 4 * high
        box = (left, left + 28, top + 28, top)
        axes.imshow(
            digit.values, cmap=theme.images, vmin=0, vmax=255, interpolation="nearest", extent=box,
            aspect="auto", zorder=1,
        )  # fmt: skip
        axes.add_patch(Rectangle((left, top), 28, 28, fill=False, ec=theme.faint, lw=0.8, zorder=2))
        axes.text(left + 14, top - 1, digit.title, ha="center", va="bottom", fontsize=9.5)
        axes.text(left + 14, top + 28.8, digit.note, ha="center", va="top", fontsize=9)
    axes.set(xlim=(0, 4 * wide), ylim=(rows * high, 0))
    return figure


def filters(kernels: np.ndarray, theme: Theme) -> Figure:
    """float [F, H, W]: eight in a row, up to 64, on one scale that is symmetric about 0."""
    shown = kernels[:64]
    count, height, width = shown.shape
    rows, gap = -(-count // 8), max(1, width // 8)
    mosaic = np.full((rows * (height + gap) - gap, 8 * (width + gap) - gap), np.nan)
    figure = Figure(figsize=(5.4, 5.4 * len(mosaic) / mosaic.shape[1] + 0.7), dpi=_DPI)
    axes = figure.add_subplot()
    for place, kernel in enumerate(shown):
        row, column = place // 8 * (height + gap), place % 8 * (width + gap)
        mosaic[row : row + height, column : column + width] = kernel
        corner = column - 0.5, row - 0.5
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=theme.faint, lw=1))
    largest = float(np.abs(shown).max()) or 1.0
    picture = axes.imshow(mosaic, cmap=theme.filters, vmin=-largest, vmax=largest)
    axes.axis("off")
    bar = figure.colorbar(picture, ax=axes, location="bottom", fraction=0.05, aspect=45, pad=0.03)
    bar.set_label("weight")
    bar.outline.set_visible(False)
    return figure


def differences(rows: Sequence[tuple[str, statistics.Difference]], theme: Theme) -> Figure:
    """Accuracy against the first setting's, with 95 % intervals."""
    figure, axes = _axes(5.4, 1.35 + 0.5 * len(rows))
    axes.axvline(0, color=theme.ink, lw=1, ls=(0, (4, 3)))
    for place, (_, difference) in enumerate(rows):
        colour = theme.series[(place + 1) % len(theme.series)]
        low, high = 100 * difference.low, 100 * difference.high
        axes.plot([low, high], [place, place], color=colour, lw=2.5, solid_capstyle="butt")
        axes.plot(100 * difference.mean, place, "o", color=colour, ms=7)
    for place, (label, _) in enumerate(rows):
        axes.text(0, place - 0.2, _short(label), transform=axes.get_yaxis_transform())
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.6, -0.7)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference in test accuracy (percentage points)")
    axes.grid(axis="x")
    axes.margins(x=0.15)
    return figure
