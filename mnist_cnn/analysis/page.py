"""The report's page: one HTML file with its pictures inside, for phone and desk, light and dark.

It has no script and asks for nothing from elsewhere, and its Content-Security-Policy makes the
browser hold it to that.  Whatever comes from a run directory passes `markup.text`.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.analysis import figures, finished_runs, gallery, markup
from mnist_cnn.runner import results
from mnist_cnn.version import __version__


def single(setting: finished_runs.Setting) -> str:
    """The page of one run."""
    run = setting.runs[0]
    numbers = statistics.classification_metrics(*_tested(run))
    sweep = run.result.get("sweep")
    return markup.page(
        f"{run.config.get('name')}: {markup.percent(run.right.mean())}",
        [
            f"<h1>{markup.text(run.config.get('name'))}, {int(run.result['steps']):,} steps</h1>",
            f'<p class="result">{markup.percent(run.right.mean())}</p>',
            f'<p class="said">{markup.text(_said(run))}</p>',
            *([_sweep_table(sweep), "<h2>The test of the chosen setting</h2>"] if sweep else []),
            _figures_table(run, numbers),
            markup.grid([markup.figure(*picture) for picture in _pictures(setting, numbers)]),
            _classes(numbers["classes"]),
            *_provenance(run),
        ],
    )


def pictures(setting: finished_runs.Setting) -> str:
    """The pictures of one run alone, one below the other, as HTML for a notebook."""
    shown = _pictures(setting, statistics.classification_metrics(*_tested(setting.runs[0])))
    return "\n".join(
        f'<div style="max-width: 34rem">{markup.figure(*picture)}</div>' for picture in shown
    )


def _tested(run: finished_runs.Run) -> tuple[np.ndarray, np.ndarray]:
    """Logits [R * N, 10] and labels [R * N] of all seeds together."""
    tested = run.tested
    return tested.logits.reshape(-1, 10), np.tile(tested.labels, len(tested.logits))


def _pictures(setting: finished_runs.Setting, numbers: dict[str, Any]) -> list[gallery.Picture]:
    """What a run shows: how it learned, what it mistakes, what it looks for."""
    run = setting.runs[0]
    logits, labels = _tested(run)
    table = statistics.confusion_matrix(labels, logits.argmax(-1))
    several = _together(run)
    sweep = run.result.get("sweep")
    swept = gallery.sweep_picture(sweep) if sweep else None
    pictures = [
        *([swept] if swept else []),
        *gallery.curves([setting]),
        gallery.figure(
            "Which digits are mistaken for which",
            functools.partial(figures.confusion, table),
            f"The test images by true digit and answer{several}; mistakes are coloured, the grey "
            "figures on the diagonal are right.",
        ),
        gallery.worst(run),
        gallery.figure(
            "Can its probabilities be trusted?",
            functools.partial(figures.reliability, statistics.calibration(logits, labels)),
            f"Test images in {statistics.BINS} bins by the probability of the answer: on the "
            "dashed line the network is right as often as it claims. Expected calibration error"
            f"{several and several + ':'} {numbers['expected_calibration_error']:.4f}.",
        ),
    ]
    if len(run.tested.filters):
        count = len(run.tested.filters)
        caption = f"The {'first 64 of the ' * (count > 64)}{count} filters of the first layer"
        draw = functools.partial(figures.filters, run.tested.filters)
        pictures.append(
            gallery.figure("What the first layer looks for", draw, f"{caption}, on one scale.")
        )
    return pictures


def _said(run: finished_runs.Run) -> str:
    """The result in a sentence."""
    seeds, examples = run.right.shape
    chosen = run.result.get("sweep")
    best = ""
    if chosen:
        setting = results.setting_label(chosen["settings"][chosen["chosen"]]["setting"])
        best = f" The setting with the best validation accuracy: {setting}."
    if seeds == 1:
        wrong = int((~run.right).sum())
        return f"of the {examples:,} test images right: {wrong:,} mistakes.{best}"
    half = statistics.mean_interval(run.right.mean(1))
    together = float(run.result["ensemble"]["accuracy"])
    return (
        f"of the {examples:,} test images right, mean of {seeds} seeds; 95 % interval of the mean "
        f"± {100 * half:.2f} points (Student's t). All {seeds} as an ensemble: "
        f"{markup.percent(together)}.{best}"
    )


def comparison(settings: Sequence[finished_runs.Setting]) -> str:
    """The page of several runs: each setting against the first."""
    first, others = settings[0], settings[1:]
    compared = [(other.label, finished_runs.compare(first, other)) for other in others]
    labels = [label for label, _ in compared]
    methods = dict.fromkeys(difference.method for _, difference in compared)
    headline = f"{markup.points(compared[0][1].mean)} points" if len(compared) == 1 else ""
    said = [
        f"{label} against {first.label}: {markup.points(d.mean)} percentage points of test "
        f"accuracy, 95 % interval {markup.points(d.low)} to {markup.points(d.high)}, "
        f"p = {d.p:.2g} ({d.method})."
        for label, d in compared
    ]
    pictures = [
        gallery.figure(
            f"Difference from {first.label}",
            functools.partial(figures.differences, compared),
            "Test accuracy with 95 % intervals: " + "; ".join(methods) + ".",
        ),
        *gallery.sweep(settings),
        *gallery.curves(settings),
        *(gallery.changed(first, other) for other in others),
    ]
    return markup.page(
        " / ".join(setting.label for setting in settings),
        [
            f"<h1>{markup.text(', '.join(labels))} against {markup.text(first.label)}</h1>",
            f'<p class="result">{headline}</p>',
            *(f'<p class="said">{markup.text(line)}</p>' for line in said),
            _settings_table(settings),
            markup.grid([markup.figure(*picture) for picture in pictures]),
            *(part for setting in settings for run in setting.runs for part in _provenance(run)),
        ],
    )


def _together(run: finished_runs.Run) -> str:
    """What to say of a figure of all seeds' answers; their mean may be another."""
    return f", all {len(run.seeds)} seeds together" if len(run.seeds) > 1 else ""


def _figures_table(run: finished_runs.Run, numbers: dict[str, Any]) -> str:
    test, seconds = run.result["test"], run.result["seconds"]
    examples = run.right.shape[1]
    return markup.table(
        [
            ["seed", "right", "test loss"],
            *(
                [seed, f"{int(right):,} of {examples:,}", f"{float(loss):.4f}"]
                for seed, right, loss in zip(run.seeds, run.right.sum(1), test["loss"], strict=True)
            ),
        ],
        kind="numbers",
    ) + markup.table(
        [
            ["negative log-likelihood", f"{numbers['negative_log_likelihood']:.4f} nats an image"],
            [
                f"expected calibration error{_together(run)}",
                f"{numbers['expected_calibration_error']:.4f}",
            ],
            ["time", f"{float(seconds['total']):.1f} s"],
        ],
        kind="numbers",
    )


def _settings_table(settings: Sequence[finished_runs.Setting]) -> str:
    rows = []
    for setting in settings:
        accuracies = np.array(list(setting.accuracies().values()))
        half = statistics.mean_interval(accuracies)
        interval = f" ± {100 * half:.2f}" if len(accuracies) > 1 else ""
        seeds = ", ".join(map(str, setting.accuracies()))
        rows.append([setting.label, seeds, f"{100 * accuracies.mean():.2f}{interval} %"])
    return markup.table(rows, ["setting", "seeds", "test accuracy"], "numbers")


def _classes(classes: Sequence[dict[str, Any]]) -> str:
    def ratio(value: float | None) -> str:
        return "-" if value is None else markup.percent(value)

    rows = [
        [number, ratio(row["precision"]), ratio(row["recall"]), f"{row['examples']:,}"]
        for number, row in enumerate(classes)
    ]
    return "<h2>Digit by digit</h2>\n" + markup.table(
        rows, ["digit", "precision", "recall", "images"], "numbers"
    )


def _provenance(run: finished_runs.Run) -> list[str]:
    """What differs from base, where it ran, and the command."""
    environment = run.environment
    base = {key: field.default for key, field in config_lib.FIELDS.items()}
    differing = [
        [key, base.get(key), value] for key, value in run.config.items() if value != base.get(key)
    ]
    versions = environment.get("versions")
    devices = environment.get("devices")
    git = environment.get("git")
    data = environment.get("data")
    rows: list[list[Any]] = [
        ["run directory", run.path],
        ["python", environment.get("python")],
        ["platform", environment.get("platform")],
        ["processor", f"{environment.get('processor')}, {environment.get('cpu_count')} cores"],
    ]
    if isinstance(devices, list):
        rows.append(
            ["devices", ", ".join(str(d.get("kind")) for d in devices if isinstance(d, dict))]
        )
    if isinstance(versions, dict):
        rows.append(
            ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())]
        )
    if isinstance(git, dict):
        rows.append(["git", f"{git.get('commit')}{', changed' if git.get('dirty') else ''}"])
    if isinstance(data, dict):
        rows.append(["data", f"{run.config.get('dataset')} from {data.get('origin')}"])
    rows.append(
        ["parameters", f"sha256 {', '.join(map(str, run.result.get('params_sha256', [])))}"]
    )
    rows.append(["report", f"mnist_cnn {__version__}"])
    command = shlex.join(map(str, environment.get("command") or [])) or "(called from Python)"
    return [
        f"<h2>Configuration of {markup.text(run.path)}</h2>",
        markup.table(differing, ["field", "base", "here"])
        if differing
        else "<p>Nothing differs from <code>experiments/base.py</code>.</p>",
        "<h2>Command</h2>",
        f"<pre>{markup.text(command)}</pre>",
        "<h2>Environment</h2>",
        markup.table(rows),
    ]


def _sweep_table(sweep: dict[str, Any]) -> str:
    """Every setting, in the grid's order."""
    rows = []
    for index, entry in enumerate(sweep["settings"]):
        values = [f"{value:g}" for value in entry["setting"].values()]
        if entry["status"] != "finished":
            rows.append([*values, "diverged", "", ""])
            continue
        mean = entry["validation_mean"]
        half = "" if mean["ci95"] is None else f" ± {100 * mean['ci95']:.2f}"
        chosen = "chosen" if index == sweep["chosen"] else ""
        accuracy = f"{100 * mean['accuracy']:.2f}{half} %"
        rows.append([*values, accuracy, f"{float(mean['loss'] or np.nan):.4f}", chosen])
    names = list(sweep["settings"][0]["setting"])
    return f"<h2>The sweep, judged on {markup.text(sweep['split'])}</h2>\n" + markup.table(
        rows, [*names, "validation accuracy", "loss", ""], "numbers"
    )
