"""Prints a run: on a terminal with colors and a progress bar, elsewhere as plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box, console, progress, table, text as rich_text

from mnist_cnn import config as config_lib
from mnist_cnn.errors import printable
from mnist_cnn.runner import results
from mnist_cnn.runner.blocks import ASCII_SHADES, SHADES, blocks
from mnist_cnn.version import __version__

if TYPE_CHECKING:  # their modules import JAX and Flax
    from mnist_cnn.data.dataset import Dataset
    from mnist_cnn.models.summary import Layer

_PLAIN_INTERVAL = 5.0  # seconds between two progress lines without a terminal

Row = tuple[str | float | None, ...]  # the cells of a table


class Console:
    """The standard output of a command; `quiet` prints nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = console.Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self._progress: progress.Progress | None = None
        self._printed = 0.0
        self._printed_once: set[str] = set()

    def line(self, text: str) -> None:
        """Prints one line; control characters are escaped."""
        self._console.print(printable(text))

    def once(self, text: str) -> None:
        """Prints one line, unless it did before: the runs of a sweep begin with the same lines."""
        if text not in self._printed_once:
            self._printed_once.add(text)
            self.line(text)

    def versions(self, environment: Mapping[str, Any]) -> None:
        versions, devices = environment["versions"], environment["devices"]
        device = f"{len(devices)} x {devices[0]['kind']} ({devices[0]['platform']})"
        if devices[0]["platform"] == "cpu":
            cores, threads = environment["cpu_count"], environment["num_threads"]
            device = f"{environment['processor']}, {cores} core{'s' * (cores > 1)}, "
            device += f"{threads} thread{'s' * (threads > 1)}"
        self.once(
            f"mnist_cnn {__version__}, Python {environment['python']}, "
            f"jax {versions['jax']}, flax {versions['flax']} on {device}"
        )

    def data(
        self,
        dataset: Dataset,
        config: Mapping[str, Any],
        images: np.ndarray,
        labels: np.ndarray,
        num_used: int,
    ) -> None:
        """Prints the training images, of which each seed uses `num_used`, and what is held out.

        Of the user's own images it prints the form and the first one as well.
        """
        num_train = len(labels)
        held_out, fold, few = (
            config[key] for key in ("validation_split", "fold", "labels_per_class")
        )
        tested = f"{dataset.num_examples['test']:,} test images, "
        if fold:
            size = dataset.size(config["train_split"]) - num_train
            tested = f"{size:,} in held-out fold {fold}, the test images stay unread, "
        checked = "SHA-256 verified" if dataset.official else "format checked"
        if not dataset.official and dataset.name in config_lib.FIELDS["dataset"].choices:
            checked = f"not the official files: {checked}"
        text = (
            f"{dataset.name}: {num_train:,} training images ({config['train_split']}"
            + (f" without fold {fold}" if fold else "")
            + (f"; each seed trains on {num_used:,}, {few:,} of each class" if few else "")
            + "), "
            + (f"validation on {held_out}, " if held_out else "")
            + f"{tested}from {dataset.origin}, {checked}"
        )
        if text in self._printed_once:
            return
        self.once(text)
        if dataset.official:
            return
        (height, width, channels), names = dataset.spec
        shown = names if len(names) <= 12 else (*names[:10], "...", names[-1])
        colour = "grey" if channels == 1 else "colour"
        self.line(f"{height} x {width} {colour} images of {len(names)} classes: {', '.join(shown)}")
        for note in dataset.notes:
            self.line(f"note: {note}")
        is_utf = self._console.encoding.startswith("utf")
        self.line(f"the first training image, of class {names[labels[0]]!r}:")
        picture = blocks(images[0], SHADES if is_utf else ASCII_SHADES)
        self._console.print(picture, no_wrap=True, crop=False)

    def changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Warns if a run resumes in another environment than it began in."""
        keys = "versions devices processor num_threads mesh processes replicas_at_once".split()
        keys.append("jax_default_matmul_precision")
        changed = [key for key in keys if before.get(key, now[key]) != now[key]]
        if before and "num_threads" not in before:
            self.once(
                "note: the run began with a version that did not record its number of threads; it "
                f"resumes with {now['num_threads']}, the number of cores it had or that of NPROC"
            )
        variables = now["environment_variables"]
        old = before.get("environment_variables", variables)
        changed += sorted(key for key in old | variables if old.get(key) != variables.get(key))
        if changed:
            self.once(
                f"note: the run began with other {', '.join(changed)} (environment.json); the "
                "last bits of its result may differ from those of an uninterrupted run"
            )

    def network(self, name: str, layers: Sequence[Layer]) -> None:
        """Prints the layers as a table like that of Keras' `model.summary()`, once."""
        rows: list[Row] = [
            (layer.name, " x ".join(map(str, layer.output_shape)), *layer[2:]) for layer in layers
        ]
        totals = sum(x.parameters for x in layers), sum(x.multiply_adds for x in layers)
        columns = ("layer", "output shape", "parameters", "multiply-adds")
        if str(rows) not in self._printed_once:
            self._printed_once.add(str(rows))
            self.table(f"{name}, one image", columns, [*rows, (), ("total", "", *totals)], left=2)

    def plan(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Prints replicas and mesh, if there is more than one, and what the length ignores."""
        if config["num_steps"] is not None and config["num_epochs"] != 1:
            self.once(
                f"note: num_steps={config['num_steps']:,} sets the length; "
                f"num_epochs={config['num_epochs']:,} is ignored"
            )
        settings, seeds = len(config_lib.settings(config)), config["num_seeds"]
        mesh, processes = environment["mesh"], environment["processes"]
        if settings * seeds > 1:
            what = f"{settings} settings x {seeds} seeds" if config["sweep"] else f"{seeds} seeds"
            self.once(
                f"{what} ({config['seed']} to {config['seed'] + seeds - 1}), "
                f"{environment['replicas_at_once']} at a time"
            )
        if mesh["replica"] * mesh["data"] > 1:
            self.once(
                f"mesh: {mesh['replica']} for replicas x {mesh['data']} for each batch, "
                f"{processes} process{'es' if processes > 1 else ''}"
            )

    @contextlib.contextmanager
    def training(self, step: int, total: int) -> Iterator[None]:
        """Within it, `step_done` moves a progress bar or prints lines."""
        self._printed = time.monotonic()
        if not self._console.is_terminal:
            yield
            return
        count, text = "step {task.completed:,}/{task.total:,}", "{task.fields[text]}"
        columns = count, progress.BarColumn(), text, progress.TimeRemainingColumn()
        with progress.Progress(*columns, console=self._console) as self._progress:
            self._progress.add_task("", total=total, completed=step, text="")
            yield
        self._progress = None

    def step_done(self, step: int, total: int, metrics: Mapping[str, Any], rate: float) -> None:
        """Shows step, images per second, and the mean "loss" and "accuracy" of the replicas."""
        loss, accuracy, _ = _mean_of_finite(metrics)
        text = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {rate:,.0f} images/s"
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, text=text)
        elif time.monotonic() - self._printed >= _PLAIN_INTERVAL or step == total:
            self._printed = time.monotonic()
            self.line(f"step {step:,}/{total:,}  {text}")

    def validation(self, step: int, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Prints the mean of the replicas' metrics on the validation split."""
        loss, accuracy, finite = _mean_of_finite(
            {name: np.array([one[name] for one in metrics]) for name in ("loss", "accuracy")}
        )
        count = f"({metrics[0]['correct']:,} of {metrics[0]['examples']:,})"
        if len(metrics) > 1:
            count = f"(mean of {finite}, {metrics[0]['examples']:,} images)"
        text = f"step {step:,}  validation: loss {loss:.4f}  accuracy {accuracy:.4f} {count}"
        for name in results.other_names(metrics[0]):
            text += f"  {name} {np.mean([one[name] for one in metrics]):.4f}"
        self.line(text)

    def ended_early(self, step: int, metric: str, best: Sequence[int], patience: int) -> None:
        """Says why the training ended before its length."""
        steps = ", ".join(f"{one:,}" for one in best)
        self.line(
            f"ended at step {step:,}: in {patience} validations no better {metric} than at step "
            f"{steps}"
        )

    def memory(self, peaks: Sequence[tuple[int, int]]) -> None:
        """Prints the largest (peak use, size) of the devices, in bytes; nothing if unknown."""
        if peaks:
            used, limit = (f"{size / 1e9:,.2f} GB" for size in max(peaks))
            self.line(f"device memory: at most {used} of {limit} a device")

    def checked(self, name: str, passed: bool, text: str) -> None:
        """Prints a line of the smoke check."""
        marks = "\u2717\u2713" if self._console.encoding.startswith("utf") else "x+"
        mark = rich_text.Text(marks[passed], "green" if passed else "red")
        self._console.print(mark, f"{name:<9} {printable(text)}")

    def table(self, title: str, names: Sequence[str], rows: Sequence[Row], left: int = 0) -> None:
        """Prints a table; an empty row is a line, and the first `left` columns are left-aligned."""
        style = box.SIMPLE_HEAD if self._console.is_terminal else box.ASCII2
        shown = table.Table(title=printable(title), box=style, title_justify="left")
        for index, name in enumerate(names):
            shown.add_column(name, justify="left" if index < left else "right")
        for row in rows:
            shown.add_row(*map(cell, row)) if row else shown.add_section()
        self._console.print(shown)


def _mean_of_finite(metrics: Mapping[str, np.ndarray]) -> tuple[float, float, int]:
    """Mean loss and accuracy of the replicas with a finite loss (of all if none), their number."""
    finite = np.isfinite(metrics["loss"])
    finite |= ~finite.any()
    loss, accuracy = (float(np.mean(metrics[name][finite])) for name in ("loss", "accuracy"))
    return loss, accuracy, int(finite.sum())


def cell(value: str | float | None) -> str:
    """The text of a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
