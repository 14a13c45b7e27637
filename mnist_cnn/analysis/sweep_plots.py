"""Plots of the error of several settings: over a field, or in a row for each."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from mnist_cnn.analysis.plots import Plot, draw_plot, log_y, shade_interval, short
from mnist_cnn.analysis.run_settings import Setting, swept_field
from mnist_cnn.analysis.theme import Theme
from mnist_cnn.runner.results import setting_label

_MOST_ROWS = 30  # of settings in one plot
Errors = Mapping[float, np.ndarray]  # value of a field -> the errors [R] of the seeds in %


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
                shade_interval(axes, x, errors, colour)
        every = [*lines.values(), *stopped.values()]
        ticks = np.unique([float(value) for line in every for value in line])
        if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        if pooled.min() > 0 and pooled.max() / pooled.min() >= 8:
            log_y(axes, pooled.min() / 1.5, pooled.max() * 1.3)  # the points, but not the band
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
