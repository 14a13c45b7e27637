"""The HTML report of a run or of a comparison: one file, plots included, for phone and desktop."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn import statistics
from mnist_cnn.analysis import (
    cross_validation,
    finished_runs,
    mosaics,
    pages,
    plots,
    run_settings,
    sweep_plots,
)
from mnist_cnn.analysis.comparison_page import comparison_page
from mnist_cnn.analysis.cross_validation_page import cross_validation_page
from mnist_cnn.analysis.finished_runs import Run
from mnist_cnn.files import local_path, write_atomically
from mnist_cnn.runner import results

_CONFUSIONS = 20  # the rows of the table of the most frequent ones


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
    cross_validation.check_comparable([run for run in runs if run.tested])
    settings = run_settings.settings_of(runs)
    for setting in settings:
        cross_validation.check_once(setting)
    if len(settings) == 1 < len(runs):
        page, sentences = cross_validation_page(settings[0])
    elif len(runs) > 1:
        page, sentences = comparison_page(settings, pairs)
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
    shown = [f"<p>{pages.escape(run.note)}</p>"] if run.note else []
    shown += map(pages.figure, _run_plots(run))
    return Pictures("\n".join(f'<div style="max-width: 34rem">{one}</div>' for one in shown))


def run_page(run: Run) -> tuple[str, list[str]]:
    """The page of a finished run, and its sentence."""
    name, accuracy = run.config.get("name"), pages.percent(run.correct.mean())
    sweep = run.result.get("sweep")
    metrics = statistics.classification_metrics(*run.pooled)
    counts = [f"{correct:,} of {run.correct.shape[1]:,}" for correct in run.correct.sum(1)]
    losses = [f"{float(loss):.4f}" for loss in run.result["test"]["loss"]]
    others = results.other_names(run.result["test"])
    values = [[pages.number(one) for one in run.result["test"][name]] for name in others]
    per_seed = zip(run.seeds, counts, losses, *values, strict=True)
    means = [
        [f"mean {name}", pages.number(found["mean"], found["ci95"])]
        for name, found in run.result["test_mean"].get("metrics", {}).items()
        if len(run.seeds) > 1
    ]
    calibration_error = f"expected calibration error{plots.mean_of_seeds_note(run)}"
    overall = [
        *pages.training_images(run),
        ["negative log-likelihood", f"{metrics['negative_log_likelihood']:.4f} nats per image"],
        [calibration_error, f"{run.calibration_error:.4f}"],
        *_temperature(run),
        ["time", f"{float(run.result['seconds']['total']):.1f} s"],
    ]
    per_class = [
        [
            name,
            pages.percent(row["precision"]),
            pages.percent(row["recall"]),
            f"{row['examples']:,}",
        ]
        for name, row in zip(run.spec.class_names, metrics["classes"], strict=True)
    ]
    head = [run.spec.noun, "precision", "recall", "images"]
    heading, summary = f"{name}, {int(run.result['steps']):,} steps", _summary(run)
    page = pages.page(
        f"{name}: {accuracy}",
        heading,
        accuracy,
        [summary],
        [
            *(
                [
                    _sweep_table(sweep),
                    f"<h2>{run.tested_name.capitalize()} of the chosen setting</h2>",
                ]
                if sweep
                else []
            ),
            pages.table(
                [["seed", "correct", f"{run.tested_name} loss", *others], *per_seed], kind="numbers"
            ),
            pages.table([*means, *overall], kind="numbers"),
            pages.grid(_run_plots(run)),
            *_confusions(run),
            f"<h2>Metrics per {run.spec.noun}</h2>",
            _folded(pages.table(per_class, head, "numbers"), len(per_class)),
            *pages.provenance(run),
        ],
    )
    return page, [f"{heading}: {accuracy} {summary}"]


def _temperature(run: Run) -> list[list[str]]:
    """Rows for a table: the temperature, and the metrics with it."""
    found = run.result.get("calibrated")
    if found is None:
        fits = (
            run.config.get("validation_split") or run.config.get("loss") == "cross_entropy_or_none"
        )
        return [] if fits else [["temperature", "none: fitting it needs a validation_split"]]
    note = plots.mean_of_seeds_note(run)
    temperature, likelihood, error = (
        pages.number(results.to_json(np.array(found[name], float).mean()))
        for name in ("temperature", "negative_log_likelihood", "expected_calibration_error")
    )
    return [
        [f"temperature{note}", f"{temperature}, fitted on {found['split']}"],
        ["negative log-likelihood with it", f"{likelihood} nats per image"],
        [f"expected calibration error with it{note}", error],
    ]


def _folded(table: str, classes: int) -> str:
    """The table, of many classes behind a line that opens it."""
    if classes <= plots.MAX_NAMED_CLASSES:
        return table
    return f"<details>\n<summary>All {classes} classes</summary>\n{table}\n</details>"


def _confusions(run: Run) -> list[str]:
    """The most frequent mistakes in words, if the confusion matrix has no numbers."""
    names = run.spec.class_names
    if len(names) <= plots.MAX_COUNTED_CLASSES:
        return []
    logits, labels = run.pooled
    matrix = statistics.confusion_matrix(labels, logits.argmax(-1), len(names))
    images = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:_CONFUSIONS]
    rows = [
        [names[row], names[column], f"{matrix[row, column]:,}", f"{images[row]:,}"]
        for row, column in zip(*np.unravel_index(order, matrix.shape), strict=True)
        if matrix[row, column]
    ]
    head = ["class", "predicted as", "images", "of"]
    return ["<h2>Most frequent confusions</h2>", pages.table(rows, head, "numbers")] if rows else []


def unfinished_page(run: Run) -> tuple[str, list[str]]:
    """The page of a run without a result, and its sentence."""
    rows = []
    for setting in run_settings.curves_of(run, ""):
        for split, name in (("train", "training"), ("validation", "validation")):
            steps, losses = setting.series(split, "loss")
            accuracies = setting.series(split, "accuracy")[1]
            if len(steps):
                label = ", ".join(filter(None, [setting.label, name, f"step {steps[-1]:,}"]))
                loss, accuracy = losses[:, -1].mean(), accuracies[:, -1].mean()
                shown = pages.number(loss if np.isfinite(loss) else None)
                rows.append([label, shown, pages.percent(accuracy)])
    status, head = pages.status(run), ["last logged", "loss", "accuracy"]
    head[0] += plots.mean_of_seeds_note(run)
    page = pages.page(
        f"{run.config['name']}: {status}",
        str(run.config["name"]),
        status,
        [run.note],
        [
            pages.table(rows, head, "numbers") if rows else "",
            pages.grid(_run_plots(run)),
            *pages.provenance(run),
        ],
    )
    return page, [run.note]


def _run_plots(run: Run) -> list[plots.Plot]:
    if not run.tested:
        return pages.curves(run_settings.curves_of(run, ""))
    sweep, kernels = run.result.get("sweep"), run.predictions.filters
    return [
        *(sweep_plots.error_over_sweep(sweep) if sweep else []),
        *plots.learning_curves(run_settings.settings_of([run])),
        plots.confusion_matrix(run),
        mosaics.worst_mistakes(run),
        plots.reliability_diagram(run),
        *([mosaics.filters(kernels)] if len(kernels) else []),
    ]


def _summary(run: Run) -> str:
    """The result in a sentence."""
    seeds, examples = run.correct.shape
    if seeds == 1:
        text = (
            f"{run.tested_name} accuracy: {(~run.correct).sum():,} of {examples:,} images are "
            "misclassified."
        )
    else:
        accuracies = run.correct.mean(1)
        mean, half = accuracies.mean(), statistics.mean_interval(accuracies)
        interval = f"of the mean ± {100 * half:.2f} points (Student's t)"
        if not statistics.is_possible(mean - half, mean + half):
            interval = f"unknown: {seeds} seeds are too few"
        text = (
            f"mean {run.tested_name} accuracy of {seeds} seeds on {examples:,} images; 95 % "
            f"confidence interval {interval}. Ensemble of all {seeds}: "
            f"{pages.percent(run.result['ensemble']['accuracy'])}."
        )
    if len(run.doubtful):
        missed, without = (~run.correct[:, run.doubtful]).sum(1).mean(), run.accuracies_undoubted
        text += (
            f" Without the {len(run.doubtful)} images whose label is in doubt: "
            f"{pages.percent(without.mean())}; of these, {missed:.3g} are misclassified"
            f"{' on average' if seeds > 1 else ''}."
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
    rows, of_runs = [], "method" in sweep  # each setting is a run, with steps of its own
    names = [*sweep["settings"][0]["setting"]]
    for index, entry in enumerate(sweep["settings"]):
        accuracy, loss = "diverged", ""
        if mean := entry.get("validation_mean"):
            accuracy = pages.percent(mean["accuracy"], mean["ci95"])
            loss = "-" if mean["loss"] is None else f"{mean['loss']:.4f}"
        chosen = "chosen" if index == sweep["chosen"] else ""
        if of_runs:  # few columns: a phone shows them all
            label = results.setting_label(entry["setting"])
            stopped = " stopped" if entry["status"] == "stopped" else ""
            label += f" ({chosen})" if chosen else ""
            rows.append([label, f"{entry['steps']:,}{stopped}", accuracy, loss])
        else:
            values = map(results.value_text, entry["setting"].values())
            rows.append([*values, accuracy, loss, chosen])
    heading = pages.escape(f"Sweep, validated on {sweep['split']}")
    head = ["setting", "steps"] if of_runs else names
    head += ["validation accuracy", "loss", *([] if of_runs else [""])]
    shown = f"<h2>{heading}</h2>\n{pages.table(rows, head, 'numbers')}"
    return shown + (f"\n<p>{pages.escape(_cost(sweep))}</p>" if of_runs else "")


def _cost(sweep: dict[str, Any]) -> str:
    """The steps of all networks of a sweep in a sentence."""
    taken, whole = sweep["steps"], sweep["grid_steps"]
    text = f"All networks together took {taken:,} steps"
    if sweep["method"] == "grid":
        return f"{text}."
    return (
        f"{text}, {100 * taken / whole:.0f} % of the {whole:,} of the whole grid: the worse "
        "settings were stopped early, and their accuracy is that of the step where they stopped."
    )
