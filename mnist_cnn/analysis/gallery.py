"""The report's pictures: what each shows of which runs, and what is said below it.

`figures` draws them; nothing here knows of HTML.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_cnn import statistics
from mnist_cnn.analysis import figures, finished_runs
from mnist_cnn.runner import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[str, tuple[bytes, bytes], str]  # a title, light and dark PNGs, what it shows
_SHOWN = 16  # digits in a picture


def figure(title: str, draw: Callable[[figures.Theme], Figure], caption: str) -> Picture:
    return title, figures.render(draw), caption


def curves(settings: Sequence[finished_runs.Setting]) -> list[Picture]:
    """Loss and error over the steps; a seed's band where there are several."""
    seeds = max(len(setting.accuracies()) for setting in settings)
    caption = (
        "Training: mean over the steps since the point before, as the network was then. Test: at "
        "the end, on images it has not seen."
        + " Thin lines are seeds, thick ones their mean" * (seeds > 1)
        + ", bands its 95 % interval" * (seeds > 2)
        + "." * (seeds > 1)
    )
    pictures = []
    for title, label, value in (
        ("Loss while learning", "loss", lambda entry: np.asarray(entry["loss"], float)),
        ("Mistakes while learning", "images wrong (%)", _error),
    ):
        curves = []
        for number, setting in enumerate(settings):
            for split, name in (("train", "training"), ("validation",) * 2, ("test",) * 2):
                steps, values = _series(setting, split, value)
                if len(steps):
                    full = name if len(settings) == 1 else f"{setting.label}, {name}"
                    curves.append(figures.Curve(full, number, steps, values, split))
        pictures.append(figure(title, functools.partial(figures.curves, curves, label), caption))
    return pictures


def sweep(settings: Sequence[finished_runs.Setting]) -> list[Picture]:
    """Where the settings differ in one number: the error over it, on held-out training images."""
    found = finished_runs.swept(settings)
    if found is None:
        return []
    name, values = found
    series = [_series(setting, "validation", _error)[1] for setting in settings]
    split = "validation" if all(one.size for one in series) else "test"
    if split == "test":
        series = [_series(setting, "test", _error)[1] for setting in settings]
    errors = [one[:, -1] for one in series]
    label = f"{split} images wrong (%)"
    caption = f"The end of each run; {split} images. Points are seeds, the line is their mean"
    caption += ", the band its 95 % interval." if min(map(len, errors)) > 2 else "."
    return [
        figure(
            f"Mistakes over {name}",
            functools.partial(figures.sweep, name, [figures.Swept("", values, errors)], label),
            caption,
        )
    ]


def sweep_picture(sweep: dict[str, Any]) -> Picture | None:
    """The validation error of a run's own sweep over the hyper-parameter with most values."""
    done = [entry for entry in sweep["settings"] if entry["status"] == "finished"]
    values = {key: {entry["setting"][key] for entry in done} for key in done[0]["setting"]}
    name = max(values, key=lambda key: len(values[key]))
    if len(values[name]) < 2:
        return None
    lines: dict[str, list[Any]] = {}
    for entry in done:
        others = {key: value for key, value in entry["setting"].items() if key != name}
        lines.setdefault(results.setting_label(others), []).append(entry)
    drawn = [
        figures.Swept(
            label,
            [entry["setting"][name] for entry in entries],
            [100 * (1 - np.asarray(entry["validation"]["accuracy"])) for entry in entries],
        )
        for label, entries in lines.items()
    ]
    seeds = len(sweep["seeds"])
    return figure(
        f"Mistakes over {name}",
        functools.partial(figures.sweep, name, drawn, "validation images wrong (%)"),
        f"At the end of training, on {sweep['split']}. Points are seeds, the line is their mean"
        + (", the band its 95 % interval (Student's t)." if seeds > 2 else ".")
        + " Settings that diverged are left out." * (len(done) < len(sweep["settings"])),
    )


def _error(entry: dict[str, Any]) -> Any:
    return 100 * (1 - np.asarray(entry["accuracy"], float))


def _series(
    setting: finished_runs.Setting, split: str, value: Callable[[dict[str, Any]], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] that every run of the setting has, and the values [R, T]."""
    found = [
        {e["step"]: np.atleast_1d(value(e)) for e in run.metrics if e.get("split") == split}
        for run in setting.runs
    ]
    steps = sorted(set.intersection(*(set(entries) for entries in found)))
    values = [np.stack([entries[step] for step in steps], axis=1) for entries in found if steps]
    return np.array(steps), np.concatenate(values) if values else np.zeros((0, 0))


def worst(run: finished_runs.Run) -> Picture:
    """The mistakes that cost most: the true label had the least probability."""
    tested = run.tested
    # Over several seeds the mean probability: what all get right, it gets right.
    p = np.exp(statistics.log_probabilities(tested.logits[:, tested.wrong])).mean(0)
    true = tested.labels[tested.wrong]
    answer = p.argmax(-1)
    mistakes = np.flatnonzero(answer != true)
    order = mistakes[np.argsort(p[mistakes, true[mistakes]], kind="stable")][:_SHOWN]
    if not len(order):
        return figure("The worst mistakes", functools.partial(figures.digits, [_NONE]), "None.")
    digits = [
        figures.Digit(
            tested.images[i],
            f"true {true[i]}, said {answer[i]}",
            f"{100 * p[i, answer[i]]:.1f} %",
        )
        for i in order
    ]
    return figure(
        "The worst mistakes",
        functools.partial(figures.digits, digits),
        "Test images whose true digit got the least probability: the true digit, the network's "
        "answer, and the probability that it gave to that.",
    )


def changed(first: finished_runs.Setting, other: finished_runs.Setting) -> Picture:
    """The test images that one gets right and the other wrong."""
    (a, seed_a), (b, seed_b) = finished_runs.pair(first, other)
    mended, lost = (
        _flipped(a, seed_a, b, seed_b, "mended"),
        _flipped(b, seed_b, a, seed_a, "lost"),
    )
    few = max(_SHOWN // 2, _SHOWN - len(lost)), max(_SHOWN // 2, _SHOWN - len(mended))
    digits = [*mended[: few[0]], *lost[: few[1]]]
    caption = (
        f"{len(mended):,} that {first.label} gets wrong and {other.label} right (mended), "
        f"{len(lost):,} the other way round (lost); seeds {seed_a} and {seed_b}. Each with the "
        "wrong answer; of both kinds the first in the test's order."
    )
    title = f"Test images that change sides: {other.label}"
    return figure(title, functools.partial(figures.digits, digits or [_NONE]), caption)


def _flipped(
    wrong: finished_runs.Setting, seed: int, right: finished_runs.Setting, other: int, note: str
) -> list[figures.Digit]:
    """The images that `wrong` gets wrong and `right` right."""
    run = wrong.run(seed)
    tested, answers = run.tested, run.tested.logits[run.seeds.index(seed)].argmax(-1)
    changed = np.flatnonzero(~wrong.right(seed) & right.right(other))
    places = np.searchsorted(tested.wrong, changed)
    return [
        figures.Digit(tested.images[place], f"true {tested.labels[i]}, said {answers[i]}", note)
        for i, place in zip(changed, places, strict=True)
    ]


_NONE = figures.Digit(np.zeros((28, 28), np.uint8), "none", "")
