"""What a run shows: lines, the network's table, a progress bar, the result.

On a terminal with rich's help; elsewhere plain lines, at sensible intervals and without control
characters.  It decides nothing and writes no file.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.progress
import rich.table

from mnist_cnn import config as config_lib
from mnist_cnn.data.dataset import Dataset
from mnist_cnn.errors import printable
from mnist_cnn.models.summary import Layer
from mnist_cnn.version import __version__

_PLAIN_INTERVAL = 5.0  # seconds between two progress lines where there is no terminal


class Console:
    """Where a run's output goes; `quiet` for none."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = rich.console.Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._progress: rich.progress.Progress | None = None
        self._printed = 0.0

    def line(self, text: str) -> None:
        """One line; what would steer the terminal is spelled out."""
        self._console.print(rich.markup.escape(printable(text)))

    def versions(self, environment: Mapping[str, Any]) -> None:
        """What computes."""
        versions, devices = environment["versions"], environment["devices"]
        device = f"{len(devices)} x {devices[0]['kind']} ({devices[0]['platform']})"
        if devices[0]["platform"] == "cpu":
            device = f"{environment['processor']}, {environment['cpu_count']} cores"
        self.line(
            f"mnist_cnn {__version__}, Python {environment['python']}, "
            f"jax {versions['jax']}, flax {versions['flax']} on {device}"
        )

    def data(self, dataset: Dataset, config: Mapping[str, Any], num_train: int) -> None:
        """What is learned from, and where it is from."""
        held_out = config["validation_split"]
        self.line(
            f"{dataset.name}: {num_train:,} training images ({config['train_split']}), "
            + (f"validation on {held_out}, " if held_out else "")
            + f"{dataset.num_examples['test']:,} test images, from {dataset.origin}, "
            + ("SHA-256 verified" if dataset.official else "not the official files: form checked")
        )

    def changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Says so if a run goes on elsewhere than where it began."""
        keys = (
            "versions", "devices", "processor", "cpu_count", "mesh", "processes",
            "replicas_at_once",
        )  # fmt: skip
        changed = [key for key in keys if before.get(key, now[key]) != now[key]]
        if changed:
            self.line(
                f"note: the run began with other {', '.join(changed)} (environment.json), so its "
                "end may not be bit for bit that of a run in one place"
            )

    def network(self, name: str, layers: Sequence[Layer]) -> None:
        """The network's table, as readers of Keras' `model.summary()` expect it."""
        table = self._table(f"{name}, one image")
        table.add_column("layer")
        table.add_column("output shape")
        table.add_column("parameters", justify="right")
        table.add_column("multiply-adds", justify="right")
        for layer in layers:
            shape = " x ".join(str(size) for size in layer.output_shape)
            table.add_row(layer.name, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}")
        table.add_section()
        parameters = sum(layer.parameters for layer in layers)
        multiply_adds = sum(layer.multiply_adds for layer in layers)
        table.add_row("total", "", f"{parameters:,}", f"{multiply_adds:,}")
        self._console.print(table)

    def plan(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """What is trained where, if that is more than one network on one device."""
        settings, seeds = len(config_lib.settings(config)), config["num_seeds"]
        mesh, at_once = environment["mesh"], environment["replicas_at_once"]
        if settings * seeds > 1:
            last = config["seed"] + seeds - 1
            what = f"{settings} settings x {seeds} seeds" if config["sweep"] else f"{seeds} seeds"
            self.line(f"{what} ({config['seed']} to {last}), {at_once} at a time")
        if mesh["replica"] * mesh["data"] > 1:
            self.line(
                f"mesh: {mesh['replica']} for replicas x {mesh['data']} for each batch, "
                f"{environment['processes']} process"
                + ("es" if environment["processes"] > 1 else "")
            )

    @contextlib.contextmanager
    def training(self, step: int, total: int) -> Iterator[None]:
        """While it lasts, `step_done` moves a bar (or prints lines)."""
        self._printed = time.monotonic()
        if not self._console.is_terminal:
            yield
            return
        columns = (
            rich.progress.TextColumn("step {task.completed:,}/{task.total:,}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self._console) as self._progress:
            self._progress.add_task("", total=total, completed=step, text="")
            yield
        self._progress = None

    def step_done(
        self, step: int, total: int, metrics: Mapping[str, Any], images_per_second: float
    ) -> None:
        """Shows how far the training is: the mean of each metric over the replicas.

        Those of a sweep that diverged are left out.
        """
        fine = np.isfinite(metrics["loss"])
        fine |= ~fine.any()
        loss, accuracy = (float(np.mean(metrics[key][fine])) for key in ("loss", "accuracy"))
        text = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s"
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, text=text)
        elif time.monotonic() - self._printed >= _PLAIN_INTERVAL or step == total:
            self._printed = time.monotonic()
            self.line(f"step {step:,}/{total:,}  {text}")

    def validation(self, step: int, figures: Sequence[Mapping[str, Any]]) -> None:
        """The figures of the validation split at `step`, their mean over the replicas."""
        fine = [one for one in figures if np.isfinite(one["loss"])] or figures
        loss, accuracy = (np.mean([one[key] for one in fine]) for key in ("loss", "accuracy"))
        count = f"({figures[0]['correct']:,} of {figures[0]['examples']:,})"
        if len(figures) > 1:
            count = f"(mean of {len(fine)}, {figures[0]['examples']:,} images)"
        self.line(f"step {step:,}  validation: loss {loss:.4f}  accuracy {accuracy:.4f} {count}")

    def result(self, result: Mapping[str, Any], path: str) -> None:
        """The final table and where everything is."""
        test, seconds = result["test"], result["seconds"]
        if "sweep" in result:
            self.sweep(result["sweep"])
        table = self._table(f"{result['experiment']}, {result['steps']:,} steps")
        for name in ("seed", "test accuracy", "test loss", "correct"):
            table.add_column(name, justify="right")
        rows = zip(result["seeds"], test["accuracy"], test["loss"], test["correct"], strict=True)
        for seed, accuracy, loss, correct in rows:
            of = f"{correct:,} of {test['examples']:,}"
            table.add_row(str(seed), f"{accuracy:.2%}", _figure(loss), of)
        mean = result["test_mean"]
        if len(result["seeds"]) > 1:
            table.add_section()
            table.add_row("mean", f"{mean['accuracy']:.3%}", _figure(mean["loss"]), "")
            table.add_row("ensemble", f"{result['ensemble']['accuracy']:.2%}",
                          _figure(result["ensemble"]["loss"]),
                          f"{result['ensemble']['correct']:,} of {test['examples']:,}")  # fmt: skip
        self._console.print(table)
        if len(result["seeds"]) > 1:
            self.line(
                f"mean test accuracy {100 * mean['accuracy']:.3f} +- {100 * mean['ci95']:.3f} % "
                f"(95 % confidence interval, Student's t, {len(result['seeds'])} seeds)"
            )
        parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        self.line(f"seconds: {parts}")
        if len(result["seeds"]) == 1:
            self.line(f"parameters: sha256 {result['params_sha256'][0]}")
        self.line(f"run directory: {path}")

    def memory(self, peaks: Sequence[tuple[int, int]]) -> None:
        """The most that each device's memory held, and its size, in bytes; of a CPU nothing."""
        if peaks:
            used, limit = (f"{size / 1e9:,.2f} GB" for size in max(peaks))
            self.line(f"device memory: at most {used} of {limit} a device")

    def checked(self, name: str, good: bool, text: str) -> None:
        """A line for a part that was tried."""
        marks = "\u2713\u2717" if self._console.encoding.startswith("utf") else "+x"
        mark = f"[green]{marks[0]}[/]" if good else f"[red]{marks[1]}[/]"
        self._console.print(f"{mark} {name:<9} {rich.markup.escape(printable(text))}")

    def sweep(self, sweep: Mapping[str, Any]) -> None:
        """Every setting's validation, the chosen one marked."""
        table = self._table(f"validation on {sweep['split']}, {len(sweep['seeds'])} seeds each")
        names = list(sweep["settings"][0]["setting"])
        for name in (*names, "accuracy", "loss", ""):
            table.add_column(name, justify="right")
        for index, entry in enumerate(sweep["settings"]):
            values = [f"{value:g}" for value in entry["setting"].values()]
            if entry["status"] != "finished":
                table.add_row(*values, entry["status"], "", "")
                continue
            mean = entry["validation_mean"]
            accuracy = f"{mean['accuracy']:.2%}"
            if mean["ci95"] is not None:
                accuracy += f" +- {mean['ci95']:.2%}"
            mark = "chosen" if index == sweep["chosen"] else ""
            table.add_row(*values, accuracy, _figure(mean["loss"]), mark)
        self._console.print(table)

    def evaluation(self, figures: Mapping[str, Any]) -> None:
        """`evaluate.evaluate`'s figures, with a row for each class."""
        table = self._table(
            f"{figures['dataset']} {figures['split']}, seed {figures['seed']}, "
            f"step {figures['step']:,}"
        )
        for name in ("class", "precision", "recall", "images", "predicted"):
            table.add_column(name, justify="right")
        for number, row in enumerate(figures["classes"]):
            ratios = [row[key] for key in ("precision", "recall")]
            table.add_row(
                str(number),
                *("-" if ratio is None else f"{ratio:.2%}" for ratio in ratios),
                f"{row['examples']:,}",
                f"{row['predicted']:,}",
            )
        self._console.print(table)
        for text in (
            f"accuracy {figures['accuracy']!r} ({figures['correct']:,} of {figures['examples']:,})",
            f"loss {figures['loss']!r}",
            f"negative log-likelihood {figures['negative_log_likelihood']:.4f}",
            f"expected calibration error {figures['expected_calibration_error']:.4f} (15 bins)",
        ):
            self.line(text)

    def _table(self, title: str) -> rich.table.Table:
        box = rich.box.SIMPLE_HEAD if self._console.is_terminal else rich.box.ASCII2
        return rich.table.Table(
            title=rich.markup.escape(printable(title)), box=box, title_justify="left"
        )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
