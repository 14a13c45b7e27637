"""The plots of a report, each drawn for a light and for a dark page; `mosaics` has those of images.

These two files alone import matplotlib. Text from a run directory is drawn as it is, never
interpreted as TeX.
"""

import io
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_cnn import statistics
from mnist_cnn.analysis.finished_runs import Run, Setting, swept_field
from mnist_cnn.analysis.theme import DARK, LIGHT, Theme
from mnist_cnn.runner.results import setting_label

# The most classes whose names, and whose numbers of images, a confusion matrix has room for.
MAX_NAMED_CLASSES, MAX_COUNTED_CLASSES = 32, 16
_MOST_ROWS = 30  # of settings in one plot
_DASHED: dict[str, Any] = {"lw": 1, "ls": (0, (4, 3))}


class Plot(NamedTuple):
    """A plot as two PNG files, with its title and caption."""

    title: str
    caption: str
    light: bytes
    dark: bytes


Errors = Mapping[float, np.ndarray]  # value of a field -> the errors [R] of the seeds in %
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


def _shade_interval(axes: Axes, x: np.ndarray, samples: Sequence[np.ndarray], colour: str) -> None:
    """Shades the 95 % confidence interval of the mean of each sample."""
    if min(map(len, samples)) > 2:  # of two seeds, it is 12.7 standard errors wide
        mean = np.array([sample.mean() for sample in samples])
        half = np.array([statistics.mean_interval(sample) for sample in samples])
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.22, lw=0)


def _log_y(axes: Axes, low: float, high: float, subs: tuple[int, ...] = (1, 2, 5)) -> None:
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
                _shade_interval(axes, steps, list(values.T), colour)
        positive = np.concatenate([[], *(values[values > 0] for *_, values in curves)])
        low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
        _log_y(axes, low / 1.4, high * 1.4)
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


def error_across_settings(settings: Sequence[Setting]) -> list[Plot]:
    """The final error over the only field in which the settings differ; no plot without one."""
    swept = swept_field(settings)
    if swept is None:
        return []
    for split in ("validation", "test"):
        series = [setting.series(split, "error")[1] for setting in settings]
        if all(values.size for values in series):
            break
    line = dict(zip(swept[1], (values[:, -1] for values in series), strict=True))
    name = settings[0].tested_name if split == "test" else split
    if any(len(setting.folds) > 1 for setting in settings):
        return [error_over_field(swept[0], {"": line}, name, folds=True)]
    return [error_over_field(swept[0], {"": line}, name)]


def error_over_sweep(sweep: dict[str, Any]) -> list[Plot]:
    """The final validation error of a run's own sweep; no plot if fewer than two are to compare.

    The horizontal axis is the field of numbers with the most values; the others give one line each.
    If there are names among the values, and no field has three numbers, each setting is a row.
    """
    shown = [entry for entry in sweep["settings"] if entry["status"] != "diverged"]
    note = " Settings that diverged are left out." if len(shown) < len(sweep["settings"]) else ""
    stopped_note = " Hollow points are settings that were stopped before their end."
    note += stopped_note if any(entry["status"] == "stopped" for entry in shown) else ""
    columns = {key: [entry["setting"][key] for entry in shown] for key in shown[0]["setting"]}
    numbers = {
        key: len(set(values))
        for key, values in columns.items()
        if all(type(value) in (int, float) for value in values)
    }
    name = max(numbers, key=lambda key: numbers[key], default="")
    if len(numbers) < len(columns) and numbers.get(name, 0) < 3:
        return [_error_by_setting(shown, note)] if len(shown) > 1 else []
    if numbers[name] < 2:
        return []
    lines: dict[str, dict[float, np.ndarray]] = {}
    stopped: dict[str, dict[float, np.ndarray]] = {}
    for entry in shown:
        label = setting_label({k: value for k, value in entry["setting"].items() if k != name})
        line = lines.setdefault(label, {})
        line = stopped.setdefault(label, {}) if entry["status"] == "stopped" else line
        line[entry["setting"][name]] = _validation_error(entry)
    return [error_over_field(name, lines, "validation", note, stopped)]


def _validation_error(entry: Mapping[str, Any]) -> np.ndarray:
    """The errors [R] of the seeds of a setting in %."""
    return 100 * (1 - np.atleast_1d(entry["validation"]["accuracy"]))


def _error_by_setting(entries: Sequence[Mapping[str, Any]], note: str) -> Plot:
    """The validation error of each setting: a row with its seeds as points, their mean a line."""
    if len(entries) > _MOST_ROWS:
        note += f" The best {_MOST_ROWS} of {len(entries)} settings."
        best = sorted(entries, key=lambda one: _validation_error(one).mean())[:_MOST_ROWS]
        entries = [entry for entry in entries if any(entry is one for one in best)]
    pooled = np.concatenate([_validation_error(entry) for entry in entries])

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for y, entry in enumerate(entries):
            errors, colour = _validation_error(entry), theme.series[y % len(theme.series)]
            inside = theme.background if entry["status"] == "stopped" else colour
            axes.plot(errors, np.full(len(errors), y), "o", color=colour, ms=6, mfc=inside)
            axes.vlines(errors.mean(), y - 0.16, y + 0.16, color=colour, lw=2)
            label = short(setting_label(entry["setting"]), 58)
            axes.text(0, y - 0.26, label, transform=axes.get_yaxis_transform())
        if pooled.min() > 0 and pooled.max() / pooled.min() >= 8:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
            axes.set_xticks([], minor=True)
        axes.set_yticks([])
        axes.set_ylim(len(entries) - 0.6, -0.7)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("validation error (%)")
        axes.grid(axis="x")
        axes.margins(x=0.1)

    caption = "Error on the validation images after training. Points are seeds, the line is their "
    return draw_plot("Error of each setting", f"{caption}mean.{note}", draw, 1 + 0.5 * len(entries))


def error_over_field(
    name: str,
    lines: Mapping[str, Errors],
    split: str,
    note: str = "",
    stopped: Mapping[str, Errors] = types.MappingProxyType({}),
    folds: bool = False,
) -> Plot:
    """The error over the values of a field: each seed a point, their mean a line for each label.

    Those of `stopped`, by the same labels, are hollow points. With `folds` a point is a fold and a
    seed; there is no band, as folds are not independent.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        for index, (label, line) in enumerate(lines.items()):
            x, errors = np.array(sorted(line), float), [line[value] for value in sorted(line)]
            mean = [seeds.mean() for seeds in errors]
            colour = theme.series[index % len(theme.series)]
            dashes = ("-", "--", ":")[index // len(theme.series) % 3]
            axes.plot(x, mean, dashes, color=colour, lw=1.8, label=label)
            for value, seeds in stopped.get(label, {}).items():
                x_of_seeds = [value] * len(seeds)
                axes.plot(x_of_seeds, seeds, "o", color=colour, ms=5, mfc=theme.background)
            if not line:
                continue
            points = np.repeat(x, [len(seeds) for seeds in errors]), np.concatenate(errors)
            axes.plot(*points, "o", color=colour, ms=5, mec=theme.background)
            if not folds:
                _shade_interval(axes, x, errors, colour)
        every = [*lines.values(), *stopped.values()]
        ticks = np.unique([float(value) for line in every for value in line])
        if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        if pooled.min() > 0 and pooled.max() / pooled.min() >= 8:
            _log_y(axes, pooled.min() / 1.5, pooled.max() * 1.3)  # the points, but not the band
        else:
            axes.set_ylim(0, pooled.max() * 1.1 or 1)
        axes.set(xlabel=name, ylabel=f"{split} error (%)")
        axes.grid(axis="y")
        if len(lines) > 1:
            axes.legend()

    samples = [errors for line in lines.values() for errors in line.values()]
    band = min(map(len, samples)) > 2 and not folds
    pooled = np.concatenate([*samples, *(x for line in stopped.values() for x in line.values())])
    caption = f"Error on the {split} images after training. Points are "
    caption += f"{'folds of a seed' if folds else 'seeds'}, the line is their "
    caption += "mean, the band its 95 % confidence interval (Student's t)." if band else "mean."
    return draw_plot(f"Error over {name}", caption + note, draw)


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
    calibration = statistics.calibration(
        *run.pooled
    )  # its bins; its error is of all seeds together
    width = 100 / statistics.BINS
    filled = calibration.count > 0
    confidence, accuracy = 100 * calibration.confidence[filled], 100 * calibration.accuracy[filled]

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        blue, orange = theme.series[:2]
        upper.plot([0, 100], [0, 100], color=theme.text, label="perfectly calibrated", **_DASHED)
        upper.vlines(confidence, confidence, accuracy, color=orange, lw=2, alpha=0.8)
        upper.plot(confidence, accuracy, "o", color=blue, ms=6, clip_on=False, label="bins")
        upper.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
        upper.grid()
        upper.legend(loc="upper left")
        centres = (np.arange(statistics.BINS) + 0.5) * width
        lower.bar(centres, calibration.count, width * 0.9, color=blue)
        _log_y(lower, 0.8, 3.0 * calibration.count.max(), subs=(1,))
        lower.set(xlabel="confidence (%)", ylabel="images")

    caption = (
        f"{run.images.capitalize()} in {statistics.BINS} bins by confidence, the probability of "
        f"the predicted {run.spec.noun}. On the dashed line, accuracy equals confidence. Expected "
        f"calibration error{mean_of_seeds_note(run)}: {run.calibration_error:.4f}."
    )
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
