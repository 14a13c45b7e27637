"""What a run prints of its result."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mnist_cnn import config as config_lib, statistics
from mnist_cnn.runner import results
from mnist_cnn.runner.console import Console, Row, cell

WITH_TEMPERATURE = (
    "with the temperature {temperature:.4f}, fitted on {split}: negative log-likelihood "
    "{negative_log_likelihood:.4f}, expected calibration error {expected_calibration_error:.4f}"
)


def show(console: Console, result: Mapping[str, Any], path: str) -> None:
    """Prints the content of result.json and the path of the run directory."""
    test, mean, seeds = result["test"], result["test_mean"], result["seeds"]
    if "sweep" in result:
        _show_sweep(console, result["sweep"])

    def row(name: object, accuracy: float, loss: float | None, correct: int, *others: Any) -> Row:
        of_all = f"{correct:,} of {test['examples']:,}"
        return str(name), f"{accuracy:.2%}", loss, of_all, *others

    names, others = ("accuracy", "loss", "correct"), results.other_names(test)
    columns = [test[name] for name in (*names, *others)]
    rows = [row(*values) for values in zip(seeds, *columns, strict=True)]
    if len(seeds) > 1:
        means = [mean["metrics"][name]["mean"] for name in others]
        rows += [
            (),
            ("mean", f"{mean['accuracy']:.3%}", mean["loss"], "", *means),
            row("ensemble", *(result["ensemble"][name] for name in names), *("" for _ in others)),
        ]
    title = f"{result['experiment']}, {result['steps']:,} steps"
    tested = config_lib.tested_name(result)
    if best := result.get("best"):
        steps = ", ".join(f"{step:,}" for step in best["step"])
        title += f"; tested: best validation {best['metric']}, step {steps}"
    heads = ("seed", f"{tested} accuracy", f"{tested} loss", "correct")
    console.table(title, (*heads, *(f"{tested} {name}" for name in others)), rows)
    if len(seeds) > 1:
        note = f"(95 % confidence interval, Student's t, {len(seeds)} seeds)"
        if not (interval := _interval(mean, 3)):
            note = f"({len(seeds)} seeds are too few for a 95 % confidence interval)"
        console.line(f"mean {tested} accuracy {100 * mean['accuracy']:.3f}{interval} % {note}")
        for name, found in mean.get("metrics", {}).items():
            half = "" if found["ci95"] is None else f" +- {found['ci95']:.4f}"
            console.line(f"mean {tested} {name} {cell(found['mean'])}{half}")
    if found := result.get("calibrated"):
        kinds = ("temperature", "negative_log_likelihood", "expected_calibration_error")
        values = [np.array(found[name], float).mean() for name in kinds]  # None becomes NaN
        of_seeds = "mean of the seeds: " if len(seeds) > 1 else ""
        text = WITH_TEMPERATURE.format(
            split=found["split"], **dict(zip(kinds, values, strict=True))
        )
        console.line(of_seeds + text)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
    console.line(f"seconds: {seconds}")
    if len(seeds) == 1:
        console.line(f"parameters: sha256 {result['params_sha256'][0]}")
    console.line(f"run directory: {path}")


def _show_sweep(console: Console, sweep: Mapping[str, Any]) -> None:
    """Prints the validation metrics of every setting, and which one was chosen."""
    rows, of_runs = [], "grid_steps" in sweep  # each setting is a run and has its own length
    for index, entry in enumerate(sweep["settings"]):
        steps: Row = (entry["steps"],) if of_runs else ()
        result: Row = (entry["status"], "", "")
        if mean := entry.get("validation_mean"):
            chosen = "chosen" if index == sweep["chosen"] else ""
            interval = _interval(mean, 2)
            accuracy = f"{mean['accuracy']:.2%}" + (f"{interval}%" if interval else "")
            result = (accuracy, mean["loss"], chosen)
        values = map(results.value_text, entry["setting"].values())
        rows.append((*values, *steps, *result))
    seeds = len(sweep["seeds"])
    title = f"validation on {sweep['split']}, {seeds} seed{'s' * (seeds > 1)} each"
    names = (*sweep["settings"][0]["setting"], *("steps",) * of_runs, "accuracy", "loss", "")
    console.table(title, names, rows)
    if of_runs:
        taken, grid = sweep["steps"], sweep["grid_steps"]
        console.line(f"{taken:,} steps of all networks, {taken / grid:.1%} of the grid's {grid:,}")


def _interval(mean: Mapping[str, Any], digits: int) -> str:
    """The 95 % confidence interval of a mean accuracy: " +- 0.12", "" if the seeds are too few."""
    accuracy, half = mean["accuracy"], mean["ci95"]
    if half is None or not statistics.is_possible(accuracy - half, accuracy + half):
        return ""
    return f" +- {100 * half:.{digits}f}"
