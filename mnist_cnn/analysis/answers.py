"""The network's answers to pictures."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mnist_cnn.data.spec import DataSpec
from mnist_cnn.digits.fitted import fitted
from mnist_cnn.digits.mnist_form import mnist_form
from mnist_cnn.digits.pictures import SUFFIXES, UNREAD_SUFFIXES, read
from mnist_cnn.errors import ConfigError, PictureError, printable
from mnist_cnn.files import local_path

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

BATCH_SIZE = 64  # the only shape that is compiled


class Answer(NamedTuple):
    """The answer to a file; if there is none, `error` says why in one line."""

    file: str
    error: str | None = None
    seen: UInt8[np.ndarray, "H W *C"] | None = None  # the network's input, [H, W] or [H, W, 3]
    digit: int = -1  # the label of the most probable class
    probability: float = 0.0
    runner_up: int = -1  # that of the second most probable one
    runner_up_probability: float = 0.0
    step: int = 0  # of the network
    names: tuple[str, str] | None = None  # of both classes, unless they are the ten digits

    def as_json(self) -> str:
        names = ["file", "digit", "probability", "runner_up", "step"]
        names = ["file", "error"] if self.error else names
        values = self._asdict() | {"probability": round(self.probability, 6)}
        if self.names and not self.error:
            names[2:2] = ["class"]
            names[5:5] = ["runner_up_class"]
            values |= {"class": self.names[0], "runner_up_class": self.names[1]}
        return json.dumps({name: values[name] for name in names})

    def as_text(self) -> str:
        if self.error:
            return printable(f"{self.file}: {self.error}")
        first, second = self.names or (str(self.digit), str(self.runner_up))
        return (
            f"{printable(self.file)}: {printable(first)}  {self.probability:.2%}  "
            f"(runner-up {printable(second)}, {self.runner_up_probability:.2%})"
        )


def answers(network: "Network", files: Iterable[str]) -> Iterator[Answer]:
    """An answer for each file, in order; at most two batches are in memory."""
    files = iter(files)
    with ThreadPoolExecutor(1) as pool:  # the network computes while the next batch is read
        previous = pool.submit(_recognize, network, [])
        while batch := [_read(file, network.spec) for file in itertools.islice(files, BATCH_SIZE)]:
            current = pool.submit(_recognize, network, batch)
            yield from previous.result()
            previous = current
        yield from previous.result()


def prepared(image: Image.Image, spec: DataSpec) -> UInt8[np.ndarray, "H W *C"]:
    """The picture as a network for such data sees it, [H, W] or [H, W, 3]; else a PictureError."""
    return mnist_form(image) if spec.is_handwriting else fitted(image, spec.image_shape)


def _read(file: str, spec: DataSpec) -> Answer:
    try:
        return Answer(file, seen=prepared(read(file), spec))
    except PictureError as error:
        return Answer(file, error=str(error))


def _recognize(network: "Network", batch: list[Answer]) -> list[Answer]:
    """Adds the classes to the answers without an error."""
    seen = np.array([answer.seen for answer in batch if answer.seen is not None], np.uint8)
    spec = network.spec
    rows = iter(network.probabilities(seen.reshape(-1, *spec.image_shape), BATCH_SIZE))
    for index, (file, error, image, *_) in enumerate(batch):
        if error is None:
            row = next(rows)
            second, first = np.argsort(row)[-2:].tolist()
            found = first, row[first], second, row[second]
            names = None if spec.is_digits else (spec.class_names[first], spec.class_names[second])
            batch[index] = Answer(file, None, image, *found, step=network.step, names=names)
    return batch


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
