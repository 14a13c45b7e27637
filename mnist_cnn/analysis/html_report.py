"""The HTML report of a run or of a comparison: one file, plots included, for phone and desktop.

The page has no script and loads nothing; its Content-Security-Policy makes the browser enforce
that. Every value from a run directory is escaped.
"""

import base64
import dataclasses
import html
import os
import pathlib
import shlex
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.analysis import finished_runs, mosaics, plots
from mnist_cnn.analysis.finished_runs import Comparison, Run, Setting
from mnist_cnn.analysis.theme import DARK, LIGHT
from mnist_cnn.errors import CheckpointError, printable
from mnist_cnn.files import local_path, write_atomically
from mnist_cnn.runner import results
from mnist_cnn.version import __version__


def write(
    workdirs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    pairs: bool = False,
) -> list[str]:
    """Writes the report of one run directory, or the comparison of several, to `output`.

    Each setting is compared with the first one; with `pairs`, every two of them. Returns the
    sentences at the top of the page. Raises CheckpointError: a directory has no run, its files
    contradict one another, or the runs were tested on different images.
    """
    path = local_path(output, "--output")
    runs = [finished_runs.read(workdir) for workdir in workdirs]
    first, *others = [run for run in runs if run.tested] or runs[:1]
    for run in others:
        if not np.array_equal(run.predictions.labels, first.predictions.labels):
            raise CheckpointError(
                f"{run.path} and {first.path} were tested on different images; compare runs of "
                "the same dataset"
            )
    if len(runs) > 1:
        page, sentences = comparison_page(finished_runs.settings_of(runs), pairs)
    else:
        page, sentences = (run_page if runs[0].tested else unfinished_page)(runs[0])
    write_atomically(path.absolute(), page.encode("utf-8", "backslashreplace"))
    return sentences


@dataclasses.dataclass(frozen=True)
class Pictures:
    """HTML that a notebook displays when it is the value of a cell."""

    html: str = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def pictures(workdir: str | os.PathLike[str]) -> Pictures:
    """The plots of a run for a notebook: `report.pictures("runs/base")` in a cell."""
    run = finished_runs.read(workdir)
    shown = [f"<p>{_escape(run.note)}</p>"] if run.note else []
    shown += map(_figure, _run_plots(run))
    return Pictures("\n".join(f'<div style="max-width: 34rem">{one}</div>' for one in shown))


def run_page(run: Run) -> tuple[str, list[str]]:
    """The page of a finished run, and its sentence."""
    name, accuracy = run.config.get("name"), _percent(run.correct.mean())
    sweep = run.result.get("sweep")
    metrics = statistics.classification_metrics(*run.pooled)
    counts = [f"{correct:,} of {run.correct.shape[1]:,}" for correct in run.correct.sum(1)]
    losses = [f"{float(loss):.4f}" for loss in run.result["test"]["loss"]]
    others = results.other_names(run.result["test"])
    values = [[_number(one) for one in run.result["test"][name]] for name in others]
    per_seed = zip(run.seeds, counts, losses, *values, strict=True)
    means = [
        [f"mean {name}", _number(found["mean"], found["ci95"])]
        for name, found in run.result["test_mean"].get("metrics", {}).items()
        if len(run.seeds) > 1
    ]
    calibration_error = f"expected calibration error{plots.mean_of_seeds_note(run)}"
    overall = [
        ["negative log-likelihood", f"{metrics['negative_log_likelihood']:.4f} nats per image"],
        [calibration_error, f"{run.calibration_error:.4f}"],
        ["time", f"{float(run.result['seconds']['total']):.1f} s"],
    ]
    per_class = [
        [digit, _percent(row["precision"]), _percent(row["recall"]), f"{row['examples']:,}"]
        for digit, row in enumerate(metrics["classes"])
    ]
    heading, summary = f"{name}, {int(run.result['steps']):,} steps", _summary(run)
    page = _page(
        f"{name}: {accuracy}",
        heading,
        accuracy,
        [summary],
        [
            *([_sweep_table(sweep), "<h2>Test of the chosen setting</h2>"] if sweep else []),
            _table([["seed", "correct", "test loss", *others], *per_seed], kind="numbers"),
            _table([*means, *overall], kind="numbers"),
            _grid(_run_plots(run)),
            "<h2>Metrics per digit</h2>",
            _table(per_class, ["digit", "precision", "recall", "images"], "numbers"),
            *_provenance(run),
        ],
    )
    return page, [f"{heading}: {accuracy} {summary}"]


def unfinished_page(run: Run) -> tuple[str, list[str]]:
    """The page of a run without a result, and its sentence."""
    rows = []
    for setting in finished_runs.curves_of(run, ""):
        for split, name in (("train", "training"), ("validation", "validation")):
            steps, losses = setting.series(split, "loss")
            accuracies = setting.series(split, "accuracy")[1]
            if len(steps):
                label = ", ".join(filter(None, [setting.label, name, f"step {steps[-1]:,}"]))
                loss, accuracy = losses[:, -1].mean(), accuracies[:, -1].mean()
                shown = _number(loss if np.isfinite(loss) else None)
                rows.append([label, shown, _percent(accuracy)])
    status, head = _status(run), ["last logged", "loss", "accuracy"]
    head[0] += plots.mean_of_seeds_note(run)
    page = _page(
        f"{run.config['name']}: {status}",
        str(run.config["name"]),
        status,
        [run.note],
        [
            _table(rows, head, "numbers") if rows else "",
            _grid(_run_plots(run)),
            *_provenance(run),
        ],
    )
    return page, [run.note]


def _status(run: Run) -> str:
    return "diverged" if run.result.get("status") == "diverged" else "not finished"


def _curves(settings: Sequence[Setting]) -> list[plots.Plot]:
    """The learning curves of the settings that have any."""
    logged = [one for one in settings if all(run.metrics for run in one.runs)]
    return plots.learning_curves(logged) if logged else []


def _number(value: float | None, half: float | None = None) -> str:
    """A value of a metric, "-" if it is not finite, and the half-width of its interval."""
    text = "-" if value is None else f"{value:.4f}"
    return text if half is None else f"{text} ± {half:.4f}"


def _run_plots(run: Run) -> list[plots.Plot]:
    if not run.tested:
        return _curves(finished_runs.curves_of(run, ""))
    sweep, kernels = run.result.get("sweep"), run.predictions.filters
    return [
        *(plots.error_over_sweep(sweep) if sweep else []),
        *plots.learning_curves(finished_runs.settings_of([run])),
        plots.confusion_matrix(run),
        mosaics.worst_mistakes(run),
        plots.reliability_diagram(run),
        *([mosaics.filters(kernels)] if len(kernels) else []),
    ]


def _summary(run: Run) -> str:
    """The result in a sentence."""
    seeds, examples = run.correct.shape
    if seeds == 1:
        text = f"test accuracy: {(~run.correct).sum():,} of {examples:,} images are misclassified."
    else:
        accuracies = run.correct.mean(1)
        mean, half = accuracies.mean(), statistics.mean_interval(accuracies)
        interval = f"of the mean ± {100 * half:.2f} points (Student's t)"
        if not statistics.is_possible(mean - half, mean + half):
            interval = f"unknown: {seeds} seeds are too few"
        text = (
            f"mean test accuracy of {seeds} seeds on {examples:,} images; 95 % confidence interval "
            f"{interval}. Ensemble of all {seeds}: "
            f"{_percent(run.result['ensemble']['accuracy'])}."
        )
    if best := run.result.get("best"):
        steps = ", ".join(f"{step:,}" for step in best["step"])
        text += f" Tested is the network of the best validation {best['metric']}: step {steps}."
    if sweep := run.result.get("sweep"):
        setting = results.setting_label(sweep["settings"][sweep["chosen"]]["setting"])
        text += f" Setting with the best validation accuracy: {setting}."
    return text


def _sweep_table(sweep: dict[str, Any]) -> str:
    """Every setting of a run's own sweep, in the order of the grid."""
    rows = []
    for index, entry in enumerate(sweep["settings"]):
        accuracy, loss = "diverged", ""
        if mean := entry.get("validation_mean"):
            accuracy = _percent(mean["accuracy"], mean["ci95"])
            loss = "-" if mean["loss"] is None else f"{mean['loss']:.4f}"
        values = [f"{value:g}" for value in entry["setting"].values()]
        rows.append([*values, accuracy, loss, "chosen" if index == sweep["chosen"] else ""])
    head = [*sweep["settings"][0]["setting"], "validation accuracy", "loss", ""]
    heading = _escape(f"Sweep, validated on {sweep['split']}")
    return f"<h2>{heading}</h2>\n{_table(rows, head, 'numbers')}"


def comparison_page(settings: Sequence[Setting], pairs: bool = False) -> tuple[str, list[str]]:
    """The page that compares settings by their finished runs, and its sentences."""
    runs = [(setting, run) for setting in settings for run in setting.runs]
    others = [(setting, run) for setting, run in runs if not run.tested]
    tested = [
        dataclasses.replace(setting, runs=finished)
        for setting in settings
        if (finished := [run for run in setting.runs if run.tested])
    ]
    compared = finished_runs.compare_all(tested, pairs)
    rows = []
    for setting in tested:
        accuracies = setting.accuracies()
        values = np.array(list(accuracies.values()))
        accuracy = _percent(values.mean(), statistics.mean_interval(values))
        rows.append([setting.label, ", ".join(map(str, accuracies)), accuracy])
    for setting, run in others:
        rows.append([setting.label, ", ".join(map(str, run.seeds)), _status(run)])
    heading, sentences = "Not compared", [_sentence(one, len(compared)) for one in compared]
    shown = []
    if not compared:
        sentences = ["Fewer than two settings have a test result, so nothing is compared."]
    elif pairs:
        heading = f"{', '.join(setting.label for setting in tested)} compared in pairs"
        differences = [
            (f"{x.first.label} \N{RIGHTWARDS ARROW} {x.other.label}", x.difference)
            for x in compared
        ]
        shown = [plots.differences("Differences of the second from the first", differences)]
    else:
        heading = f"{', '.join(x.other.label for x in compared)} compared with {tested[0].label}"
        differences = [(x.other.label, x.difference) for x in compared]
        shown = [plots.differences(f"Difference from {tested[0].label}", differences)]
    sentences += [*_notes(compared), *(run.note for _, run in others)]
    shown += plots.error_across_settings(tested)
    unfinished = [
        curves
        for setting, run in others
        for curves in finished_runs.curves_of(run, f"{setting.label} ({_status(run)})")
    ]
    shown += _curves([*tested, *unfinished])
    shown += [mosaics.changed_predictions(one.first, one.other) for one in compared]
    page = _page(
        " / ".join(setting.label for setting in settings),
        heading,
        f"{_points(compared[0].difference.mean)} points" if len(compared) == 1 else "",
        sentences,
        [
            _table(rows, ["setting", "seeds", "test accuracy"], "numbers"),
            _grid(shown),
            *(part for _, run in runs for part in _provenance(run)),
        ],
    )
    return page, sentences


def _sentence(found: Comparison, comparisons: int) -> str:
    """A comparison, one of a number, in words."""
    difference = found.difference
    interval = f"{_points(difference.low)} to {_points(difference.high)}"
    if not statistics.is_possible(difference.low, difference.high, minimum=-1):
        interval = "unknown (too few seeds)"
    p, level = f"p = {difference.p:.2g}", f"{statistics.LEVEL:.0%}".replace("%", " %")
    if comparisons > 1:
        p, level = f"{p}, corrected {found.corrected_p:.2g}", f"{level} / {comparisons}"
    text = (
        f"{found.other.label} compared with {found.first.label}: {_points(difference.mean)} "
        f"percentage points of test accuracy, 95 % confidence interval {interval}, {p} "
        f"({difference.method})."
    )
    if difference.effect_size is None:
        return text
    needed = found.seeds_needed
    number = f"more than {statistics.MAX_SEEDS:,}" if needed is None else f"about {needed:,}"
    return (
        f"{text} A difference of this size and spread needs {number} seeds "
        f"({100 * statistics.POWER:.0f} % power, paired t-test at {level})."
    )


def _notes(compared: Sequence[Comparison]) -> list[str]:
    """What the comparisons do not say."""
    notes = []
    if len(compared) > 1:
        notes.append(
            f"The corrected p is that of {len(compared)} comparisons (Holm); each interval is that "
            "of its comparison alone."
        )
    if any(one.difference.effect_size is None for one in compared):
        notes.append(
            "A test over images tells whether two trained networks differ, not whether their "
            "settings do: another seed trains another network. To compare the settings, and to "
            "know how many seeds show the difference, train the same seeds of both, at least two "
            "(num_seeds)."
        )
    return notes


def _provenance(run: Run) -> list[str]:
    """The fields that differ from the base experiment, the command, and the environment."""
    fields = [[key, config_lib.DEFAULTS.get(key), value] for key, value in run.config.items()]
    changed = [row for row in fields if row[1] != row[2]]
    environment = dict(run.environment)
    command = shlex.join(map(str, environment.pop("command", None) or [])) or "(called from Python)"
    environment.pop("joined", None)  # the same again, for each run that was joined
    digests = run.result.get("params_sha256", [])
    rows = [
        ["run directory", run.path],
        *(
            [key.replace("_", " "), _in_words(value) or "none"]
            for key, value in environment.items()
        ),
        *([["parameters", f"sha256 {_in_words(digests)}"]] if digests else []),
        ["report", f"mnist_cnn {__version__}"],
    ]
    return [
        f"<h2>Configuration of {_escape(run.path)}</h2>",
        _table(changed, ["field", "base", "this run"])
        if changed
        else "<p>No field differs from <code>experiments/base.py</code>.</p>",
        f"<h2>Command</h2>\n<pre>{_escape(command)}</pre>",
        "<h2>Environment</h2>",
        _table(rows),
    ]


def _in_words(value: Any) -> str:
    """A value of a JSON file: nested ones as "NAME VALUE, NAME VALUE"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items())
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def _escape(value: Any) -> str:
    """Text without markup and without control characters."""
    return html.escape(printable(str(value)))


def _percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction as "98.60 %" or, with its confidence interval, as "98.60 ± 0.12 %"."""
    if value is None:
        return "-"
    half = np.nan if half_width is None else half_width
    if not statistics.is_possible(value - half, value + half):
        return f"{100 * value:.2f} %"
    return f"{100 * value:.2f} ± {100 * half:.2f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def _page(title: str, heading: str, result: str, summary: list[str], parts: list[str]) -> str:
    body = [
        f"<h1>{_escape(heading)}</h1>",
        f'<p class="result">{_escape(result)}</p>',
        *(f'<p class="summary">{_escape(line)}</p>' for line in summary),
        *parts,
    ]
    light, dark = (
        f"--paper: {theme.background}; --ink: {theme.text}; --soft: {theme.caption}; "
        f"--line: {theme.line};"
        for theme in (LIGHT, DARK)
    )
    page = string.Template(pathlib.Path(__file__).with_name("report.html").read_text())
    return page.substitute(title=_escape(title), light=light, dark=dark, body="\n".join(body))


def _grid(shown: Sequence[plots.Plot]) -> str:
    return '<div class="plots">\n' + "\n".join(map(_figure, shown)) + "\n</div>"


def _figure(plot: plots.Plot) -> str:
    light, dark = (base64.b64encode(png).decode() for png in (plot.light, plot.dark))
    title = _escape(plot.title)
    return (
        f"<figure>\n<h2>{title}</h2>\n<picture>\n<source "
        f'srcset="data:image/png;base64,{dark}" media="(prefers-color-scheme: dark)">\n'
        f'<img src="data:image/png;base64,{light}" alt="{title}">\n</picture>\n'
        f"<figcaption>{_escape(plot.caption)}</figcaption>\n</figure>"
    )


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str] = (), kind: str = "") -> str:
    """A table whose first column, and first row if there is a `head`, are header cells."""
    lines = [[f"<th>{_escape(cell)}</th>" for cell in head]] if head else []
    for first, *rest in rows:
        lines.append([f"<th>{_escape(first)}</th>", *(f"<td>{_escape(c)}</td>" for c in rest)])
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f'<div class="table"><table class="{kind}">\n{body}\n</table></div>'
