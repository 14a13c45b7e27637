"""How many labelled pictures are answered correctly: a summary, a confusion table, a page."""

import base64
import csv
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from mnist_cnn.analysis.answers import SURE, Answer
from mnist_cnn.digits.pictures import SUFFIXES, UNREAD_SUFFIXES, read
from mnist_cnn.errors import ConfigError, PictureError, printable

NONE = "none"  # the label of a picture without a digit
SEVERAL = "several"  # numbers, in the confusion table


class Scores(NamedTuple):
    """The answers to labelled pictures that could be read."""

    answers: Sequence[Answer]
    labels: Sequence[str]

    @property
    def wrong(self) -> list[tuple[Answer, str]]:
        pairs = zip(self.answers, self.labels, strict=True)
        return [(answer, label) for answer, label in pairs if answer_of(answer) != label]

    def lines(self) -> list[str]:
        """Accuracy, and coverage and errors of the sure answers; each a sentence."""
        count = len(self.answers)
        if not count:
            return ["no picture could be read"]
        right = count - len(self.wrong)
        sure = sum(answer.error is None and answer.sure for answer in self.answers)
        mistakes = sum(answer.error is None and answer.sure for answer, _ in self.wrong)
        lines = [f"accuracy {right / count:.2%} ({right:,} of {count:,} pictures)"]
        if sure:
            lines.append(
                f"sure (at least {SURE:.0%}): {sure / count:.2%} of them; "
                f"{mistakes / sure:.2%} of these are wrong ({mistakes:,})"
            )
        return lines

    def confusion(self) -> list[list[str]]:
        """A row for each label, with the number of each answer; the first row are the answers."""
        pairs = [
            (_kind(label), _kind(answer_of(answer)))
            for answer, label in zip(self.answers, self.labels, strict=True)
        ]
        kinds = sorted({kind for pair in pairs for kind in pair}, key=lambda k: (len(k) > 1, k))
        rows = [["label", *kinds, "correct"]]
        for label in kinds:
            counts = [pairs.count((label, kind)) for kind in kinds]
            if total := sum(counts):
                right = sum(
                    answer_of(a) == one
                    for a, one in zip(self.answers, self.labels, strict=True)
                    if _kind(one) == label
                )
                rows.append([label, *(str(n or "") for n in counts), f"{right / total:.1%}"])
        return rows


def answer_of(answer: Answer) -> str:
    """The answer in the form of a label."""
    return NONE if answer.error else answer.text


def _kind(label: str) -> str:
    return SEVERAL if label.isdigit() and len(label) > 1 else label


def read_labels(path: str | os.PathLike[str]) -> dict[str, str]:
    """The label of each picture, by its path; in a file, paths are relative to the file's folder.

    A file has a line `FILE<TAB>LABEL`, or FILE,LABEL, for each picture; a folder has pictures in
    folders that have the names of their labels, or such a file labels.tsv.
    Raises ConfigError if there is no picture, or a wrong line.
    """
    path = pathlib.Path(path)
    if (path / "labels.tsv").is_file():
        path = path / "labels.tsv"
    if path.is_dir():
        suffixes = SUFFIXES + UNREAD_SUFFIXES
        labels = {
            str(picture): folder.name
            for folder in sorted(path.iterdir())
            if folder.is_dir()
            for picture in sorted(folder.iterdir())
            if picture.name.lower().endswith(suffixes)
        }
        if not labels:
            raise ConfigError(f"--labels {path}: no picture in it, expected LABEL/PICTURE files")
        return labels
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"--labels {path}: cannot be read ({reason})") from None
    labels = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.split("\t") if "\t" in line else next(csv.reader([line]))
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise ConfigError(
                f"--labels {path}, line {number}: got {line[:80]!r}, expected FILE<TAB>LABEL or "
                "FILE,LABEL"
            )
        if number == 1 and [cell.strip().lower() for cell in cells][1] in ("label", "digit"):
            continue  # the names of the columns
        labels[str(path.parent / cells[0].strip())] = cells[1].strip()
    if not labels:
        raise ConfigError(f"--labels {path}: it is empty, expected FILE<TAB>LABEL for each picture")
    return labels


def score(answers: Iterable[Answer], labels: Mapping[str, str]) -> Scores:
    """The scores of answers to files with labels, without the files that could not be read."""
    readable = [answer for answer in answers if answer.error is None or answer.no_digit]
    return Scores(readable, [labels[answer.file] for answer in readable])


def as_text(scores: Scores) -> str:
    """What the terminal shows."""
    rows = scores.confusion()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    wrong = []
    for answer, label in scores.wrong:
        got = "no digit" if answer.error else answer.said()
        wrong.append(f"{answer.file}: expected {label}, got {got}")
    lines = [*scores.lines(), "", *table, *([""] if wrong else []), *wrong]
    return "\n".join(map(printable, lines))


def write_page(scores: Scores, title: str, path: str | os.PathLike[str]) -> None:
    """Writes a page, one file: the scores, the confusion table, and the wrong pictures."""
    from mnist_cnn.analysis import pages  # imports matplotlib

    first, *others = scores.lines()
    number, _, rest = first.removeprefix("accuracy ").partition(" ")
    parts = ["<h2>Confusion</h2>", "<p>A row for each label, a column for each answer.</p>"]
    header, *rows = scores.confusion()
    parts.append(pages.table(rows, header, kind="numbers"))
    parts.append(f"<h2>Wrong answers ({len(scores.wrong)})</h2>")
    parts.append('<div class="pictures">')
    for answer, label in scores.wrong:
        images = "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{alt}">'
            for png, alt in _pictures(answer)
        )
        name = pages.escape(os.path.join(*pathlib.Path(answer.file).parts[-2:]))
        said = "no digit" if answer.error else f"{answer.text} ({answer.probability:.1%})"
        unsure = "" if answer.error or answer.sure else ", unsure"
        parts.append(
            f"<figure>{images}<figcaption><strong>{pages.escape(label)}</strong> read as "
            f"{pages.escape(said)}{unsure}<br>{name}</figcaption></figure>"
        )
    parts.append("</div>")
    pathlib.Path(path).write_text(
        pages.page(title, title, number, [f"correct {rest}", *others], parts), encoding="utf-8"
    )


def _pictures(answer: Answer) -> list[tuple[bytes, str]]:
    """The picture, and what the network saw of it, as PNG files with their descriptions."""
    shown = []
    try:
        image = read(answer.file).convert("RGB")
        image.thumbnail((112, 112))
        shown.append((image, "the picture"))
    except PictureError:  # it was removed meanwhile
        pass
    if answer.seen is not None:
        seen = Image.fromarray(answer.seen)
        size = (seen.width * 4, seen.height * 4)
        shown.append((seen.resize(size, Image.Resampling.NEAREST), "the network's input"))
    return [(_png(image), alt) for image, alt in shown]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
