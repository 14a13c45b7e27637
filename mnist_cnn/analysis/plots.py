"""The plots of a report, each drawn for a light and for a dark page.

`sweep_plots` has those of several settings, `mosaics` those of images. These three alone import
matplotlib. Text from a run directory is drawn as it is, never
interpreted as TeX.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_cnn import statistics
from mnist_cnn.analysis.finished_runs import Run
from mnist_cnn.analysis.run_settings import Setting
from mnist_cnn.analysis.theme import DARK, LIGHT, Theme

# The most classes whose names, and whose numbers of images, a confusion matrix has room for.
MAX_NAMED_CLASSES, MAX_COUNTED_CLASSES = 32, 16
_DASHED: dict[str, Any] = {"lw": 1, "ls": (0, (4, 3))}


class Plot(NamedTuple):
    """A plot as two PNG files, with its title and caption."""

    title: str
    caption: str
    light: bytes
    dark: bytes


Draw = Callable[[Figure, Theme], None]


def draw_plot(title: str, caption: str, draw: Draw, height: float = 3.6) -> Plot:
    """Calls `draw` on an empty figure for each theme; `height` is in inches."""
    pngs = []
    for theme in (LIGHT, DARK):
        style: dict[Any, Any] = {
            "font.family": "DejaVu Sans", "font.size": 10.5, "text.parse_math": False,
            "axes.unicode_minus": True, "axes.edgecolor": theme.text, "axes.labelcolor": theme.text,
            "axes.facecolor": theme.background, "figure.facecolor": theme.background,
            "text.color": theme.text, "xtick.color": theme.text, "ytick.color": theme.text,
            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
            "figure.constrained_layout.use": True, "grid.color": theme.grid, "grid.linewidth": 0.6,
        }  # fmt: skip
        content = io.BytesIO()
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(5.4, height), dpi=170)
            draw(figure, theme)
            figure.savefig(content, format="png", pil_kwargs={"compress_level": 6})
        pngs.append(content.getvalue())
    return Plot(title, caption, *pngs)


def short(label: str, most: int = 40) -> str:
    """At most that number of characters, so that the label leaves room for the plot."""
    return label if len(label) <= most else label[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def shade_interval(axes: Axes, x: np.ndarray, samples: Sequence[np.ndarray], colour: str) -> None:
    """Shades the 95 % confidence interval of the mean of each sample."""
    if min(map(len, samples)) > 2:  # of two seeds, it is 12.7 standard errors wide
        mean = np.array([sample.mean() for sample in samples])
        half = np.array([statistics.mean_interval(sample) for sample in samples])
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.22, lw=0)


def log_y(axes: Axes, low: float, high: float, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """A logarithmic axis with ticks at `subs` times the powers of ten, as plain numbers."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_yticks([], minor=True)


def learning_curves(settings: Sequence[Setting]) -> list[Plot]:
    """The loss and the error over the training steps."""
    networks = max(sum(len(run.seeds) for run in setting.runs) for setting in settings)
    folds = any(len(setting.folds) > 1 for setting in settings)
    tested = settings[0].tested_name.capitalize()
    caption = "Training: mean over the steps since the previous point, measured while the network "
    caption += "trains."
    if any(run.tested for setting in settings for run in setting.runs):
        caption += f" {tested}: measured once, after the last step."
    if networks > 1:
        thin = "networks, one for each fold and seed" if folds else "seeds"
        caption += f" Thin lines are {thin}, thick lines their mean"
        caption += ", bands its 95 % confidence interval." if networks > 2 and not folds else "."
    return [_learning_curve(settings, metric, caption) for metric in ("loss", "error")]


def _learning_curve(settings: Sequence[Setting], metric: str, caption: str) -> Plot:
    """Each seed a thin line on a logarithmic axis, their mean a thick one; the test as points."""
    curves = []
    for index, setting in enumerate(settings):
        names = {"train": "training", "validation": "validation", "test": setting.tested_name}
        for split, name in names.items():
            steps, values = setting.series(split, metric)
            if len(steps):
                label = name if len(settings) == 1 else f"{setting.label}, {name}"
                curves.append((label, index, split, steps, values))

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for label, index, split, steps, values in curves:
            colour, label = theme.series[index % len(theme.series)], short(label)
            if split == "test":
                points = np.where(values > 0, values, np.nan)  # a logarithmic axis has no 0
                axes.plot(
                    np.repeat(steps, len(values)), points.T.ravel(), marker="D", ms=5.5, ls="",
                    color=colour, mec=theme.background, clip_on=False, zorder=4, label=label,
                )  # fmt: skip
                continue
            dashes = "--" if split == "validation" else "-"
            marker = "o" if len(steps) < 3 else None
            mean = values.mean(0)
            axes.plot(steps, mean, dashes, color=colour, lw=1.8, marker=marker, label=label)
            if len(values) > 1:
                axes.plot(steps, values.T, dashes, color=colour, lw=0.6, alpha=0.6)
            if len(settings[index].folds) < 2:  # folds are not independent
                shade_interval(axes, steps, list(values.T), colour)
        positive = np.concatenate([[], *(values[values > 0] for *_, values in curves)])
        low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
        log_y(axes, low / 1.4, high * 1.4)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
        axes.set(xlabel="training step", ylabel="loss" if metric == "loss" else "error (%)")
        axes.grid(axis="y")
        if len(curves) > 3:
            columns = 1 if max(len(curve[0]) for curve in curves) > 28 else 2
            figure.set_figheight(3.6 + 0.18 * len(curves) / columns)
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
        else:
            axes.legend()

    return draw_plot(f"{metric.capitalize()} during training", caption, draw)


def mean_of_seeds_note(run: Run) -> str:
    return f", mean of {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""


def confusion_matrix(run: Run) -> Plot:
    """The number of test images by true and predicted class; of many classes only the colours."""
    logits, labels = run.pooled
    names, noun = run.spec.class_names, run.spec.noun
    count_classes = len(names)
    matrix = statistics.confusion_matrix(labels, logits.argmax(-1), count_classes)
    mistakes = matrix.astype(float)
    np.fill_diagonal(mistakes, 0)
    most = max(2.0, mistakes.max())

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        scale = colors.LinearSegmentedColormap.from_list("counts", theme.counts)
        axes.imshow(np.ma.masked_less(mistakes, 1), scale, colors.LogNorm(1, most), aspect="equal")
        counted = np.ndenumerate(matrix) if count_classes <= MAX_COUNTED_CLASSES else ()
        for (row, column), count in counted:
            if count:
                dark_cell = row != column and np.log(count) > 0.55 * np.log(most)
                axes.text(
                    column, row, f"{count:,}", ha="center", va="center",
                    fontsize=min(8 if count < 10_000 else 6.5, 90 / count_classes),
                    color=theme.background if dark_cell else theme.text,
                    alpha=0.65 if row == column else 1,
                )  # fmt: skip
        axes.set(xlabel=f"predicted {noun}", ylabel=f"true {noun}")
        if count_classes > MAX_NAMED_CLASSES:
            axes.spines[:].set_color(theme.grid)
            return
        shown = [short(name, 14) for name in names]
        size = min(10.5, 240 / count_classes)
        turned = 90 if max(map(len, shown)) > 2 else 0
        axes.set_xticks(range(count_classes), shown, fontsize=size, rotation=turned)
        axes.set_yticks(range(count_classes), shown, fontsize=size)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(-0.5, count_classes), minor=True)
        axes.set_yticks(np.arange(-0.5, count_classes), minor=True)
        axes.grid(which="minor", color=theme.grid, lw=0.4)

    seeds = f", all {len(run.seeds)} seeds together" if len(run.seeds) > 1 else ""
    caption = f"{run.images.capitalize()} by true and predicted {noun}{seeds}. Mistakes are "
    caption += "coloured; "
    if count_classes <= MAX_COUNTED_CLASSES:
        caption += "the grey counts on the diagonal are correct."
    else:
        caption += "the darker, the more. The most frequent ones are in a table below."
    return draw_plot("Confusion matrix", caption, draw, height=5.0)


def reliability_diagram(run: Run) -> Plot:
    """Accuracy over confidence, and below it the number of images in each bin."""
    # Their bins; the errors are of all seeds together.
    calibration = statistics.calibration(*run.pooled)
    calibrated = run.calibrated and statistics.calibration(*run.calibrated)
    width = 100 / statistics.BINS
    filled = calibration.count > 0
    confidence, accuracy = 100 * calibration.confidence[filled], 100 * calibration.accuracy[filled]

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        blue, orange = theme.series[:2]
        upper.plot([0, 100], [0, 100], color=theme.text, label="perfectly calibrated", **_DASHED)
        upper.vlines(confidence, confidence, accuracy, color=orange, lw=2, alpha=0.8)
        upper.plot(confidence, accuracy, "o", color=blue, ms=6, clip_on=False, label="bins")
        if calibrated:
            upper.plot(
                100 * calibrated.confidence, 100 * calibrated.accuracy, "o", color=theme.series[2],
                mfc="none", mew=1.5, ms=6, clip_on=False, label="with the temperature",
            )  # fmt: skip
        upper.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
        upper.grid()
        upper.legend(loc="best")
        centres = (np.arange(statistics.BINS) + 0.5) * width
        lower.bar(centres, calibration.count, width * 0.9, color=blue)
        log_y(lower, 0.8, 3.0 * calibration.count.max(), subs=(1,))
        lower.set(xlabel="confidence (%)", ylabel="images")

    caption = (
        f"{run.images.capitalize()} in {statistics.BINS} bins by confidence, the probability of "
        f"the predicted {run.spec.noun}. On the dashed line, accuracy equals confidence. Expected "
        f"calibration error{mean_of_seeds_note(run)}: {run.calibration_error:.4f}."
    )
    if calibrated:
        error = np.array(run.result["calibrated"]["expected_calibration_error"], float).mean()
        caption += f" With the temperature: {error:.4f}."
    return draw_plot("Calibration", caption, draw, height=5.0)


def differences(
    title: str, rows: Sequence[tuple[str, statistics.Difference]], tested: str = "test"
) -> Plot:
    """Labelled differences of accuracies on the images that `tested` names."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=theme.text, **_DASHED)
        for y, (label, difference) in enumerate(rows):
            colour = theme.series[(y + 1) % len(theme.series)]
            ends = [100 * max(difference.low, -1.0), 100 * min(difference.high, 1.0)]
            axes.plot(ends, [y, y], color=colour, lw=2.5, solid_capstyle="butt")
            axes.plot(100 * difference.mean, y, "o", color=colour, ms=7)
            axes.text(0, y - 0.2, short(label, 58), transform=axes.get_yaxis_transform())
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.6, -0.7)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"difference in {tested} accuracy (percentage points)")
        axes.grid(axis="x")
        axes.margins(x=0.15)

    methods = "; ".join(dict.fromkeys(difference.method for _, difference in rows))
    caption = f"{tested.capitalize()} accuracy with 95 % confidence intervals: {methods}."
    return draw_plot(title, caption, draw, 1.35 + 0.5 * len(rows))
