"""How well other people's handwriting is read: their own pictures, and rendered photos.

    python -m benchmarks.handwriting [--workdir=RUN] [--data=DIR] [--before=RECORD]

The network of RUN answers, as `predict` does, the pictures in the folders of DIR, and photos that
`render.py` makes of MNIST's 10,000 test digits, and 500 numbers of 2 to 5 digits.
Each folder of DIR is a source; its `labels.tsv` has a file and its label a line: a digit, a number,
or `none`. The command prints a table, and writes handwriting.json and handwriting.png. With the
record of an earlier measurement it shows both.
"""

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import mnist_cnn
from benchmarks import record, render
from mnist_cnn.analysis.answers import Answer, answers
from mnist_cnn.analysis.network import Network
from mnist_cnn.analysis.theme import LIGHT
from mnist_cnn.data.dataset import open_dataset
from mnist_cnn.runner.environment import describe_environment

PICTURES = pathlib.Path(__file__).with_name("handwriting_pictures")
NONE = "none"  # the label of a picture without a digit
PRINTED = ("sudoku_news", "sudoku_print_loose")  # sources that nobody wrote by hand
PEOPLE, PHOTOS, ROWS = "all handwriting", "rendered photos", "rendered numbers"
DIGITS, NUMBERS = 10_000, 500  # as many are rendered


class Picture(NamedTuple):
    """A file to be answered."""

    file: str
    label: str
    factors: frozenset[str] = frozenset()  # of a rendered photo


class Tally(NamedTuple):
    """What became of some pictures; each is a count."""

    pictures: int = 0
    answered: int = 0  # not by an error
    correct: int = 0  # of pictures without a digit: not answered
    sure: int = 0
    sure_but_wrong: int = 0

    def __add__(self, other: tuple[int, ...]) -> "Tally":  # type: ignore[override]
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


def sources(data: pathlib.Path) -> dict[str, list[Picture]]:
    """The pictures of each folder that has labels."""
    found = {}
    for path in sorted(data.glob("*/labels.tsv")):
        rows = [line.split("\t") for line in path.read_text().splitlines() if line]
        pictures = [Picture(str(path.with_name(row[0])), row[1]) for row in rows]
        found[path.parent.name] = [one for one in pictures if _has_answer(one.label)]
    if not found:
        raise SystemExit(f"{data}: no folder with labels.tsv; give --data=DIR with such folders")
    return found


def _has_answer(label: str) -> bool:
    return label == NONE or label.isdigit()


def photos(folder: str, split: str) -> Iterator[Picture]:
    """Renders the first digits of a part of MNIST into a folder."""
    images, labels = open_dataset("mnist").read(split)
    for index, (image, label) in enumerate(zip(images[:DIGITS], labels, strict=False)):
        photo = render.photo(image[..., 0], np.random.default_rng([0, index]))
        file = os.path.join(folder, f"{index}.bmp")  # JPEG's losses are in it already
        photo.image.save(file)
        yield Picture(file, str(label), photo.factors)


def numbers(folder: str, split: str, count: int) -> Iterator[Picture]:
    """Renders numbers of 2 to 5 digits of a part of MNIST into a folder."""
    images, labels = open_dataset("mnist").read(split)
    for index in range(count):
        rng = np.random.default_rng([1, index])
        chosen = rng.integers(len(images), size=rng.integers(2, 6))
        file = os.path.join(folder, f"number {index}.png")
        render.number(images[chosen, ..., 0], rng).save(file)
        yield Picture(file, "".join(map(str, labels[chosen])))


def tally(picture: Picture, answer: Answer) -> Tally:
    """Whether a picture was answered, correctly and surely."""
    answered = answer.error is None
    if not answered:
        return Tally(1, correct=picture.label == NONE)
    text = answer.text
    correct = text == picture.label
    sure = answered and answer.sure
    return Tally(1, *map(int, (answered, correct, sure, sure and not correct)))


def measure(network: Network, pictures: Iterable[Picture]) -> dict[str, Tally]:
    """The tally of all pictures, "", and of those of each factor."""
    pictures, found = list(pictures), {"": Tally()}
    for picture, answer in zip(pictures, answers(network, [p.file for p in pictures]), strict=True):
        for name in ("", *picture.factors):
            found[name] = found.get(name, Tally()) + tally(picture, answer)
    return found


def measure_all(network: Network, of_sources: dict[str, list[Picture]]) -> dict[str, Any]:
    """What the record has: the tally of each source, and of the photos by factor."""
    result = {name: measure(network, pictures)[""] for name, pictures in of_sources.items()}
    by_hand = [
        of_source
        for name, of_source in result.items()
        if name not in (*PRINTED, "several", "nondigits")
    ]
    result[PEOPLE] = sum(by_hand, Tally())
    with tempfile.TemporaryDirectory() as folder:
        factors = measure(network, photos(folder, "test"))
        result[ROWS] = measure(network, numbers(folder, "test", NUMBERS))[""]
    result[PHOTOS] = factors.pop("")
    order = (*render.FACTORS, *render.LINES, *render.PENS, *render.INKS)
    return {
        "sources": {name: found._asdict() for name, found in result.items()},
        "factors": {name: factors[name]._asdict() for name in order if name in factors},
    }


def table(result: dict[str, Any], before: dict[str, Any] | None) -> rich.table.Table:
    """A row for each source and factor; of an earlier record the share of correct answers."""
    columns = ("", "pictures", "correct", "unanswered", "sure", "wrong of these")
    shown = rich.table.Table(*columns, *(["correct before"] if before else []))
    for part in ("sources", "factors"):
        for name, values in result[part].items():
            found = Tally(**values)
            cells = [
                name, f"{found.pictures:,}", _percent(found.correct, found.pictures),
                str(found.pictures - found.answered), _percent(found.sure, found.pictures),
                f"{found.sure_but_wrong} ({_percent(found.sure_but_wrong, found.sure)})",
            ]  # fmt: skip
            if before:
                old = before[part].get(name)
                cells.append(_percent(old["correct"], old["pictures"]) if old else "-")
            shown.add_row(*cells)
        shown.add_section()
    return shown


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def draw(result: dict[str, Any], before: dict[str, Any] | None, path: pathlib.Path) -> None:
    """Plots the share of correct answers for each source and factor, before and now."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, part, title in zip(
        panels, ("sources", "factors"), ("pictures by others", "rendered photos by factor"),
        strict=True,
    ):  # fmt: skip
        names = list(result[part])
        for place, name in enumerate(names):
            now = result[part][name]
            share = 100 * now["correct"] / now["pictures"]
            old = before and before[part].get(name)
            if old:
                was = 100 * old["correct"] / old["pictures"]
                axes.plot([was, share], [place, place], color=LIGHT.grid, linewidth=2, zorder=1)
                axes.plot(
                    was, place, "o", color=LIGHT.series[1], mfc="none", zorder=2, clip_on=False
                )
            axes.plot(share, place, "o", color=LIGHT.series[0], zorder=3, clip_on=False)
            axes.annotate(f"{share:.1f}", (1.03, place), xycoords=("axes fraction", "data"),
                          va="center", fontsize=8, annotation_clip=False)  # fmt: skip
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
        axes.set(
            xlabel="correct, %", title=title, ylim=(len(names) - 0.5, -0.5), xlim=(None, 100.5)
        )
        axes.grid(axis="y", color=LIGHT.line, linewidth=0.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.title.set_fontsize(10)
    if before:
        figure.suptitle("filled: now; hollow: before", fontsize=9)
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--workdir", default="digits", help="the run directory of the network")
    parser.add_argument("--data", type=pathlib.Path, default=PICTURES, help="folders of pictures")
    parser.add_argument("--before", type=pathlib.Path, help="an earlier handwriting.json")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs", "benchmarks"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    before = json.loads(arguments.before.read_text()) if arguments.before else None
    pictures = sources(arguments.data)
    network = mnist_cnn.load(arguments.workdir)
    environment = describe_environment(jax.devices(), ["python", "-m", "benchmarks.handwriting"])
    trained = {"name": network.config["name"], "step": network.step, "seed": network.seed}
    found = measure_all(network, pictures)
    result = {"environment": environment, "network": trained, **found}
    rich.console.Console(width=110, soft_wrap=True).print(table(result, before))
    draw(result, before, arguments.output / "handwriting.png")
    print(record.write("handwriting", arguments, result))


if __name__ == "__main__":
    main()
