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
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import statistics
from mnist_cnn.analysis import finished_runs, plots
from mnist_cnn.analysis.finished_runs import DEFAULTS, Run, Setting
from mnist_cnn.analysis.theme import DARK, LIGHT
from mnist_cnn.errors import CheckpointError, printable
from mnist_cnn.files import write_atomically
from mnist_cnn.runner import results
from mnist_cnn.version import __version__

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
* {{ box-sizing: border-box; }}
body {{ background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.1rem; color: var(--soft); font-weight: 500; margin: 0; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .6rem; }}
.result {{ font-size: clamp(2.4rem, 9vw, 3.6rem); font-weight: 650; line-height: 1.15; margin: 0; }}
.summary {{ margin: .2rem 0 1.5rem; color: var(--soft); }}
.plots {{ display: grid; gap: 2.5rem 2rem; margin-top: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
figure h2 {{ margin: 0 0 .4rem; }}
img {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
figcaption {{ color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 34rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); }}
table:not(.numbers) th:first-child {{ width: 8rem; }}
th {{ font-weight: 500; color: var(--soft); }}
.numbers td, .numbers th + th {{ text-align: right; padding: .3rem 0 .3rem .4rem; }}
pre {{ white-space: pre-wrap; border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  font-size: .88rem; margin: 0; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write(workdirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Writes the report of one run directory, or the comparison of several, to `output`.

    Raises CheckpointError: a run has no result, or the runs were tested on different images.
    """
    runs = [finished_runs.read(workdir) for workdir in workdirs]
    for run in runs[1:]:
        if not np.array_equal(run.predictions.labels, runs[0].predictions.labels):
            raise CheckpointError(
                f"{run.path} and {runs[0].path} were tested on different images; compare runs of "
                "the same dataset"
            )
    page = run_page(runs[0]) if len(runs) == 1 else comparison_page(finished_runs.settings_of(runs))
    write_atomically(pathlib.Path(output).absolute(), page.encode("utf-8", "backslashreplace"))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """HTML that a notebook displays when it is the value of a cell."""

    html: str = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def pictures(workdir: str | os.PathLike[str]) -> Pictures:
    """The plots of a run for a notebook: `report.pictures("runs/base")` in a cell."""
    figures = map(_figure, _run_plots(finished_runs.read(workdir)))
    return Pictures("\n".join(f'<div style="max-width: 34rem">{one}</div>' for one in figures))


def run_page(run: Run) -> str:
    """The page of one run."""
    name, accuracy = run.config.get("name"), _percent(run.correct.mean())
    sweep = run.result.get("sweep")
    metrics = statistics.classification_metrics(*run.pooled)
    counts = [f"{correct:,} of {run.correct.shape[1]:,}" for correct in run.correct.sum(1)]
    losses = [f"{float(loss):.4f}" for loss in run.result["test"]["loss"]]
    per_seed = zip(run.seeds, counts, losses, strict=True)
    calibration_error = f"expected calibration error{plots.pooled_seeds_note(run)}"
    overall = [
        ["negative log-likelihood", f"{metrics['negative_log_likelihood']:.4f} nats per image"],
        [calibration_error, f"{metrics['expected_calibration_error']:.4f}"],
        ["time", f"{float(run.result['seconds']['total']):.1f} s"],
    ]
    per_class = [
        [digit, _percent(row["precision"]), _percent(row["recall"]), f"{row['examples']:,}"]
        for digit, row in enumerate(metrics["classes"])
    ]
    return _page(
        f"{name}: {accuracy}",
        f"{name}, {int(run.result['steps']):,} steps",
        accuracy,
        [_summary(run)],
        [
            *([_sweep_table(sweep), "<h2>Test of the chosen setting</h2>"] if sweep else []),
            _table([["seed", "correct", "test loss"], *per_seed], kind="numbers"),
            _table(overall, kind="numbers"),
            _grid(_run_plots(run)),
            "<h2>Metrics per digit</h2>",
            _table(per_class, ["digit", "precision", "recall", "images"], "numbers"),
            *_provenance(run),
        ],
    )


def _run_plots(run: Run) -> list[plots.Plot]:
    sweep, kernels = run.result.get("sweep"), run.predictions.filters
    return [
        *(plots.error_over_sweep(sweep) if sweep else []),
        *plots.learning_curves(finished_runs.settings_of([run])),
        plots.confusion_matrix(run),
        plots.worst_mistakes(run),
        plots.reliability_diagram(run),
        *([plots.filters(kernels)] if len(kernels) else []),
    ]


def _summary(run: Run) -> str:
    """The result in a sentence."""
    seeds, examples = run.correct.shape
    if seeds == 1:
        text = f"test accuracy: {(~run.correct).sum():,} of {examples:,} images are misclassified."
    else:
        half = statistics.mean_interval(run.correct.mean(1))
        text = (
            f"mean test accuracy of {seeds} seeds on {examples:,} images; 95 % confidence interval "
            f"of the mean ± {100 * half:.2f} points (Student's t). Ensemble of all {seeds}: "
            f"{_percent(run.result['ensemble']['accuracy'])}."
        )
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
            loss = f"{mean['loss'] or np.nan:.4f}"
        values = [f"{value:g}" for value in entry["setting"].values()]
        rows.append([*values, accuracy, loss, "chosen" if index == sweep["chosen"] else ""])
    head = [*sweep["settings"][0]["setting"], "validation accuracy", "loss", ""]
    heading = _escape(f"Sweep, validated on {sweep['split']}")
    return f"<h2>{heading}</h2>\n{_table(rows, head, 'numbers')}"


def comparison_page(settings: Sequence[Setting]) -> str:
    """The page that compares each setting with the first."""
    first, others = settings[0], settings[1:]
    differences = [(other.label, finished_runs.compare(first, other)) for other in others]
    rows = []
    for setting in settings:
        accuracies = setting.accuracies()
        values = np.array(list(accuracies.values()))
        accuracy = _percent(values.mean(), statistics.mean_interval(values))
        rows.append([setting.label, ", ".join(map(str, accuracies)), accuracy])
    shown = [plots.differences(first.label, differences), *plots.error_across_settings(settings)]
    shown += plots.learning_curves(settings)
    shown += [plots.changed_predictions(first, other) for other in others]
    return _page(
        " / ".join(setting.label for setting in settings),
        f"{', '.join(other.label for other in others)} compared with {first.label}",
        f"{_points(differences[0][1].mean)} points" if len(others) == 1 else "",
        [
            f"{label} compared with {first.label}: {_points(d.mean)} percentage points of test "
            f"accuracy, 95 % confidence interval {_points(d.low)} to {_points(d.high)}, "
            f"p = {d.p:.2g} ({d.method})."
            for label, d in differences
        ],
        [
            _table(rows, ["setting", "seeds", "test accuracy"], "numbers"),
            _grid(shown),
            *(part for setting in settings for run in setting.runs for part in _provenance(run)),
        ],
    )


def _provenance(run: Run) -> list[str]:
    """The fields that differ from the base experiment, the command, and the environment."""
    fields = [[key, DEFAULTS.get(key), value] for key, value in run.config.items()]
    changed = [row for row in fields if row[1] != row[2]]
    environment = run.environment
    rows: list[list[Any]] = [
        ["run directory", run.path],
        *([key, environment.get(key)] for key in ("python", "platform")),
        ["processor", f"{environment.get('processor')}, {environment.get('cpu_count')} cores"],
    ]
    if isinstance(devices := environment.get("devices"), list):
        kinds = [str(device.get("kind")) for device in devices if isinstance(device, dict)]
        rows.append(["devices", ", ".join(kinds)])
    if isinstance(versions := environment.get("versions"), dict):
        rows.append(["versions", ", ".join(f"{name} {v}" for name, v in versions.items())])
    if isinstance(git := environment.get("git"), dict):
        changes = ", with uncommitted changes" if git.get("dirty") else ""
        rows.append(["git", f"{git.get('commit')}{changes}"])
    if isinstance(data := environment.get("data"), dict):
        rows.append(["data", f"{run.config.get('dataset')} from {data.get('origin')}"])
    digests = ", ".join(map(str, run.result.get("params_sha256", [])))
    rows += [["parameters", f"sha256 {digests}"], ["report", f"mnist_cnn {__version__}"]]
    command = shlex.join(map(str, environment.get("command") or [])) or "(called from Python)"
    return [
        f"<h2>Configuration of {_escape(run.path)}</h2>",
        _table(changed, ["field", "base", "this run"])
        if changed
        else "<p>No field differs from <code>experiments/base.py</code>.</p>",
        f"<h2>Command</h2>\n<pre>{_escape(command)}</pre>",
        "<h2>Environment</h2>",
        _table(rows),
    ]


def _escape(value: Any) -> str:
    """Text without markup and without control characters."""
    return html.escape(printable(str(value)))


def _percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction as "98.60 %" or, with its confidence interval, as "98.60 ± 0.12 %"."""
    if value is None:
        return "-"
    if half_width is None or np.isnan(half_width):
        return f"{100 * value:.2f} %"
    return f"{100 * value:.2f} ± {100 * half_width:.2f} %"


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
    return _PAGE.format(title=_escape(title), light=light, dark=dark, body="\n".join(body))


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
    return f'<table class="{kind}">\n{body}\n</table>'
