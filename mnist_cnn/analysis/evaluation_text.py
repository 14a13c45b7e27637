"""What `evaluate` prints of an evaluation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mnist_cnn.errors import printable
from mnist_cnn.runner import results
from mnist_cnn.runner.console import Console, Row
from mnist_cnn.runner.result_text import WITH_TEMPERATURE

_MAX_CLASSES, _WORST_CLASSES = 100, 20  # of the table: the most, else the worst
_DOUBTFUL = (
    "accuracy {accuracy_without!r} ({correct_without:,} of {examples_without:,}) without the "
    "images whose label is in doubt, of which it misses {missed} of {examples}"
)
_ALL_DOUBTFUL = "the label of all images is in doubt"


def show(console: Console, metrics: Mapping[str, Any]) -> None:
    """Prints the metrics of `analysis.evaluation.evaluate`, with a row for each class.

    Of many classes, those with the lowest recall.
    """
    shown, rows = metrics["classes"], []
    if len(shown) > _MAX_CLASSES:
        tested = [row for row in shown if row["recall"] is not None]
        shown = sorted(tested, key=lambda row: row["recall"])[:_WORST_CLASSES]
    for row in shown:
        ratios = (row["precision"], row["recall"])
        percentages = (None if ratio is None else f"{ratio:.2%}" for ratio in ratios)
        name = printable(row["class"])
        rows.append((name, *percentages, row["examples"], row["predicted"]))
    network = results.network_label(metrics["seed"], metrics["step"])
    title = f"{metrics['dataset']} {metrics['split']}, {network}"
    console.table(title, ("class", "precision", "recall", "images", "predicted"), rows)
    if len(metrics["classes"]) > _MAX_CLASSES:
        console.line(
            f"the {len(shown)} classes with the lowest recall, of {len(metrics['classes'])}; "
            "--json has all"
        )
    for text in (
        "accuracy {accuracy!r} ({correct:,} of {examples:,})",
        "loss {loss!r}"
        if metrics["loss"] is not None
        else "loss: the experiment's own, for which give --config EXPERIMENT",
        "negative log-likelihood {negative_log_likelihood:.4f}",
        "expected calibration error {expected_calibration_error:.4f} (15 bins)",
        *(f"{name} {{{name}!r}}" for name in metrics["metrics"]),
    ):
        console.line(text.format_map(metrics))
    if found := metrics["calibrated"]:
        console.line(WITH_TEMPERATURE.format_map(found))
    else:
        console.line("no temperature is fitted; docs/reports.md#calibration says how")
    if found := metrics.get("doubtful"):
        console.line((_DOUBTFUL if found["examples_without"] else _ALL_DOUBTFUL).format_map(found))
    if members := metrics.get("members"):
        _show_members(console, members, metrics)


def _show_members(
    console: Console, members: Mapping[str, Any], ensemble: Mapping[str, Any]
) -> None:
    """Prints the metrics of the members of an ensemble, and its own."""

    def row(name: object, one: Mapping[str, Any]) -> Row:
        likelihood, error = one["negative_log_likelihood"], one["expected_calibration_error"]
        return str(name), f"{one['accuracy']:.2%}", likelihood, error, one["correct"]

    mean = {name: float(np.mean(values)) for name, values in members.items()} | {"correct": ""}
    rows = [
        row(seed, {name: values[index] for name, values in members.items()})
        for index, seed in enumerate(members["seed"])
    ]
    rows += [(), row("mean", mean), row("ensemble", ensemble)]
    heads = ("seed", "accuracy", "negative log-likelihood", "calibration error", "correct")
    console.table("members", heads, rows)
    disagreement = ensemble["disagreement"]
    console.line(
        f"the members disagree on {disagreement['images']:,} of {ensemble['examples']:,} "
        f"images; two of them on {disagreement['pairs']:.2%} on average"
    )
