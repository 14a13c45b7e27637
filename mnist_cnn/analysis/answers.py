"""The network's answers to pictures."""

import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.digits.fitted import fitted
from mnist_cnn.digits.lines import Found, find_digits
from mnist_cnn.digits.pictures import SUFFIXES, UNREAD_SUFFIXES, read
from mnist_cnn.errors import ConfigError, PictureError, printable
from mnist_cnn.files import local_path

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

BATCH_SIZE = 64  # the only shape that is compiled


# The least probabilities of a sure answer and of "no digit", chosen on other people's handwriting:
# the card of the packaged network says how many are sure, and how many of these are wrong.
SURE = 0.8
NO_DIGIT = 0.9
_STRAY = 0.25  # how probable it is that a piece of ink beside others is none of a digit


class Member(NamedTuple):
    """What a member of an ensemble says about a digit."""

    seed: int
    digit: int | None  # None: that it is none
    probability: float

    @classmethod
    def of(cls, seed: int, probabilities: Float64[np.ndarray, "K"]) -> "Member":
        if (none := 1 - float(probabilities.sum())) >= NO_DIGIT:
            return cls(seed, None, none)
        return cls(seed, int(probabilities.argmax()), float(probabilities.max()))


class Digit(NamedTuple):
    """A digit of a picture."""

    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the file's picture
    probabilities: Float64[np.ndarray, "K"]
    members: tuple[Member, ...] = ()  # of an ensemble

    @property
    def digit(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def probability(self) -> float:
        return float(self.probabilities.max())

    @property
    def runner_up(self) -> int:
        return int(np.argsort(self.probabilities)[-2])

    def as_dict(self) -> dict[str, Any]:
        probability = round(self.probability, 6)
        members = [
            one._asdict() | {"probability": round(one.probability, 6)} for one in self.members
        ]
        return {"box": list(self.box), "digit": self.digit, "probability": probability} | (
            {"members": members} if members else {}
        )


class Answer(NamedTuple):
    """The answer to a file; if there is none, `error` says why in one line."""

    file: str
    error: str | None = None
    no_digit: bool = False  # the error is that the picture shows none
    found: tuple[Found, ...] = ()  # in the picture
    digits: tuple[Digit, ...] = ()  # line by line, from left to right
    step: int | tuple[int, ...] = 0  # of the network
    spec: DataSpec = MNIST  # of the network's data

    @property
    def seen(self) -> UInt8[np.ndarray, "H W *C"] | None:
        """The network's inputs, side by side: [H, W] or [H, W, 3]."""
        return np.hstack([one.form for one in self.found]) if self.found else None

    @property
    def text(self) -> str:
        return "".join(self.spec.class_names[one.digit] for one in self.digits)

    @property
    def digit(self) -> int:
        """The most probable one; of several, the first."""
        return self.digits[0].digit

    @property
    def probability(self) -> float:
        """That of the whole text."""
        return math.prod(one.probability for one in self.digits)

    @property
    def sure(self) -> bool:
        return all(one.probability >= SURE for one in self.digits)

    @property
    def differing(self) -> list[bool]:
        """For each member of an ensemble, whether it reads another text; [] of another network."""
        each = zip(*(one.members for one in self.digits), strict=True)
        whole = [one.digit for one in self.digits]
        return [[member.digit for member in members] != whole for members in each]

    @property
    def agreement(self) -> str:
        """How many members of an ensemble read another text, in words; "" of another network."""
        count, differ = len(self.differing), sum(self.differing)
        if not differ:
            return f"all {count} members agree" if count else ""
        return f"{differ} of {count} members differ{'s' * (differ == 1)}"

    def as_json(self) -> str:
        if self.error:
            return json.dumps({"file": self.file, "error": self.error})
        first, *others = self.digits
        names = {} if self.spec.is_digits else dict(enumerate(self.spec.class_names))
        answer: dict[str, Any] = {"file": self.file}
        if not others:
            answer["digit"] = first.digit
            answer |= {"class": names[first.digit]} if names else {}
        answer["probability"] = round(self.probability, 6)
        if not others:
            answer["runner_up"] = first.runner_up
            answer |= {"runner_up_class": names[first.runner_up]} if names else {}
        answer |= {"step": self.step, "text": self.text, "sure": self.sure}
        if self.differing:
            answer["disagreement"] = round(float(np.mean(self.differing)), 6)
        rows = [[round(p, 6) for p in one.probabilities.tolist()] for one in self.digits]
        answer["probabilities"] = rows if others else rows[0]
        answer["digits"] = [one.as_dict() for one in self.digits]
        return json.dumps(answer)

    def as_text(self) -> str:
        return printable(f"{self.file}: {self.error or self.said()}")

    def said(self) -> str:
        """The digits with their probabilities."""
        unsure = "" if self.sure else "unsure  "
        if len(self.digits) == 1:
            (one,) = self.digits
            second = self.spec.class_names[one.runner_up]
            more = f"runner-up {second}, {one.probabilities[one.runner_up]:.2%}"
        else:
            more = ", ".join(f"{one.digit} {one.probability:.1%}" for one in self.digits)
        more += f"; {self.agreement}" if self.agreement else ""
        return f"{self.text}  {self.probability:.2%}  {unsure}({more})"


def answers(network: "Network", files: Iterable[str], single: bool = False) -> Iterator[Answer]:
    """An answer for each file, in order; at most two batches are in memory.

    With `single` it is about the most prominent digit of each picture, whatever else is there.
    """
    files = iter(files)
    with ThreadPoolExecutor(1) as pool:  # the network computes while the next batch is read
        previous = pool.submit(_recognize, network, [])
        while batch := [
            _read(file, network.spec, single) for file in itertools.islice(files, BATCH_SIZE)
        ]:
            current = pool.submit(_recognize, network, batch)
            yield from previous.result()
            previous = current
        yield from previous.result()


def look(image: Image.Image, spec: DataSpec, single: bool = False) -> list[Found]:
    """What a network for such data recognizes in a picture, in the form in which it sees it.

    Handwriting is separated from its paper; of digits there may be several, unless `single`. Other
    pictures are seen whole. Raises a `PictureError` if there is nothing on the paper.
    """
    if spec.is_handwriting:
        return find_digits(image, single or not spec.is_digits)
    scale = image.info.get("scale", 1.0)
    box = (0, 0, round(image.width * scale), round(image.height * scale))
    return [Found(fitted(image, spec.image_shape), box)]


def _read(file: str, spec: DataSpec, single: bool) -> Answer:
    try:
        image = read(file)
    except PictureError as error:
        return Answer(file, error=str(error))
    try:
        return Answer(file, found=tuple(look(image, spec, single)))
    except PictureError as error:
        return Answer(file, error=str(error), no_digit=True)


def _recognize(network: "Network", batch: list[Answer]) -> list[Answer]:
    """Adds the digits to the answers without an error."""
    batch = [answer._replace(found=_offered(network, answer.found)) for answer in batch]
    digits = iter(_digits(network, [one for answer in batch for one in answer.found]))
    return [answer if answer.error else _completed(network, answer, digits) for answer in batch]


def answer_to(name: str, network: "Network", found: Sequence[Found]) -> Answer:
    """The answer to what was found in a picture."""
    found = _offered(network, found)
    return _completed(network, Answer(name, found=found), iter(_digits(network, found)))


def _offered(network: "Network", found: Sequence[Found]) -> tuple[Found, ...]:
    """What the network is asked about: not two pieces as one if it would answer two digits so."""
    each = (one for one in found if network.knows_none or one.pieces[1] - one.pieces[0] == 1)
    return tuple(each)


def _completed(network: "Network", answer: Answer, digits: Iterator[Digit | None]) -> Answer:
    """The answer with the next digits, as many as were found; without what is no digit."""
    answer = answer._replace(step=network.step, spec=network.spec)
    kept = _best_reading([(one, next(digits)) for one in answer.found])
    if not kept:
        error = "no digit found: the marks on the paper do not look like one"
        return answer._replace(error=error, no_digit=True)
    found, read = zip(*kept, strict=True)
    return answer._replace(found=found, digits=read)


def _best_reading(candidates: list[tuple[Found, Digit | None]]) -> list[tuple[Found, Digit]]:
    """The digits, in order, of the most probable of all ways to put the pieces of ink together."""
    best: list[tuple[float, list[tuple[Found, Digit]]]] = [(1.0, [])]  # of the first pieces
    for last in range(1, 1 + max((one.pieces[1] for one, _ in candidates), default=0)):
        ways = []
        for one, digit in candidates:
            if digit is not None and one.pieces[1] == last:
                probability, before = best[one.pieces[0]]
                ways.append((probability * digit.probability, [*before, (one, digit)]))
        if not any(one.pieces == (last - 1, last) for way in ways for one, _ in way[1][-1:]):
            ways.append((best[-1][0] * _STRAY, best[-1][1]))
        best.append(max(ways, key=lambda way: way[0]))
    return best[-1][1]


def _digits(network: "Network", found: Sequence[Found]) -> list[Digit | None]:
    """The network's answers; None for what is no digit, if the network can tell."""
    images = np.array([one.form for one in found], np.uint8)
    images = images.reshape(-1, *network.spec.image_shape)
    rows, *each = network.all_probabilities(images, BATCH_SIZE)
    none = 1 - rows.sum(axis=-1)  # the probability that an image shows none of the classes
    of_members = [
        tuple(
            Member.of(seed, rows[index]) for seed, rows in zip(network.members, each, strict=True)
        )
        for index in range(len(found))
    ]
    return [
        None if no_digit >= NO_DIGIT else Digit(one.box, row, members)
        for one, row, no_digit, members in zip(found, rows, none, of_members, strict=True)
    ]


def list_files(arguments: Iterable[str]) -> Iterator[str]:
    """The files that arguments name: a file, a folder (its pictures, sorted by name), or `-`.

    `-` reads such names from standard input, one a line. Pictures in formats that are not read are
    returned too, and a folder without pictures itself, so that their answers are errors.
    """
    suffixes = SUFFIXES + UNREAD_SUFFIXES
    for argument in arguments:
        names: Iterable[str] = [argument]
        if argument == "-":
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            names = filter(None, lines)
        for name in names:
            with contextlib.suppress(ConfigError, ValueError):  # the answer will be an error
                name = str(local_path(name, "a picture"))
            try:
                entries = sorted(os.listdir(name)) if os.path.isdir(name) else []
            except PermissionError:
                entries = []
            pictures = [entry for entry in entries if entry.lower().endswith(suffixes)]
            yield from [os.path.join(name, entry) for entry in pictures] or [name]
