"""What the pages of reports are made of: the file, its tables, pictures and numbers.

A page has no script and loads nothing; its Content-Security-Policy makes the browser enforce that.
Every value from a run directory is escaped.
"""

import base64
import html
import pathlib
import shlex
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.analysis import plots
from mnist_cnn.analysis.finished_runs import Run
from mnist_cnn.analysis.run_settings import Setting
from mnist_cnn.analysis.theme import DARK, LIGHT
from mnist_cnn.errors import printable
from mnist_cnn.version import __version__


def page(title: str, heading: str, result: str, summary: list[str], parts: list[str]) -> str:
    body = [
        f"<h1>{escape(heading)}</h1>",
        f'<p class="result">{escape(result)}</p>',
        *(f'<p class="summary">{escape(line)}</p>' for line in summary),
        *parts,
    ]
    light, dark = (
        f"--paper: {theme.background}; --ink: {theme.text}; --soft: {theme.caption}; "
        f"--line: {theme.line};"
        for theme in (LIGHT, DARK)
    )
    page = string.Template(pathlib.Path(__file__).with_name("report.html").read_text())
    return page.substitute(title=escape(title), light=light, dark=dark, body="\n".join(body))


def grid(shown: Sequence[plots.Plot]) -> str:
    return '<div class="plots">\n' + "\n".join(map(figure, shown)) + "\n</div>"


def figure(plot: plots.Plot) -> str:
    light, dark = (base64.b64encode(png).decode() for png in (plot.light, plot.dark))
    title = escape(plot.title)
    return (
        f"<figure>\n<h2>{title}</h2>\n<picture>\n<source "
        f'srcset="data:image/png;base64,{dark}" media="(prefers-color-scheme: dark)">\n'
        f'<img src="data:image/png;base64,{light}" alt="{title}">\n</picture>\n'
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
    )


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = (), kind: str = "") -> str:
    """A table whose first column, and first row if there is a `head`, are header cells."""
    lines = [[f"<th>{escape(cell)}</th>" for cell in head]] if head else []
    for first, *rest in rows:
        lines.append([f"<th>{escape(first)}</th>", *(f"<td>{escape(c)}</td>" for c in rest)])
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f'<div class="table"><table class="{kind}">\n{body}\n</table></div>'


def provenance(run: Run) -> list[str]:
    """The fields that differ from the base experiment, the command, and the environment."""
    fields = [
        [key, config_lib.DEFAULTS.get(key), value]
        for key, value in run.config.items()
        if key != "model_fields"  # the model shows them
    ]
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
        f"<h2>Configuration of {escape(run.path)}</h2>",
        table(changed, ["field", "base", "this run"])
        if changed
        else "<p>No field differs from <code>experiments/base.py</code>.</p>",
        f"<h2>Command</h2>\n<pre>{escape(command)}</pre>",
        "<h2>Environment</h2>",
        table(rows),
    ]


def training_images(*runs: Run) -> list[list[str]]:
    """A row for a table, if each network trained on some of the training images only."""
    few = runs[0].config.get("labels_per_class")
    numbers = {run.result.get("training_images", 0) for run in runs}
    shown = " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)}))
    shown += f", {few:,} of each class" if few else ""
    return [["training images of a network", shown]] if few or runs[0].num_folds else []


def curves(settings: Sequence[Setting]) -> list[plots.Plot]:
    """The learning curves of the settings that have any."""
    logged = [one for one in settings if all(run.metrics for run in one.runs)]
    return plots.learning_curves(logged) if logged else []


def status(run: Run) -> str:
    names = {"diverged": "diverged", "validated": "not tested"}
    return names.get(run.result.get("status", ""), "not finished")


def number(value: float | None, half: float | None = None) -> str:
    """A value of a metric, "-" if it is not finite, and the half-width of its interval."""
    text = "-" if value is None else f"{value:.4f}"
    return text if half is None else f"{text} ± {half:.4f}"


def percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction as "98.60 %" or, with its confidence interval, as "98.60 ± 0.12 %"."""
    if value is None:
        return "-"
    half = np.nan if half_width is None else half_width
    if not statistics.is_possible(value - half, value + half):
        return f"{100 * value:.2f} %"
    return f"{100 * value:.2f} ± {100 * half:.2f} %"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def _in_words(value: Any) -> str:
    """A value of a JSON file: nested ones as "NAME VALUE, NAME VALUE"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items())
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def escape(value: Any) -> str:
    """Text without markup and without control characters."""
    return html.escape(printable(str(value)))
