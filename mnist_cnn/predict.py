"""The command: pictures of digits, the user's own -> what the network takes them for.

    python -m mnist_cnn.predict --workdir DIR [--json] [--save_inputs DIR] IMAGE ...

An IMAGE is a file, a folder (its pictures, sorted by name), or `-`: names, one a line, from
standard input.  A file without an answer has its line too, and the others are still answered.
Exit status: 0 every file has its answer; 1 one or more have none, or an error, said in one line;
2 bad usage.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import UInt8

from mnist_cnn import command_line
from mnist_cnn.digits import pictures
from mnist_cnn.digits.mnist_form import mnist_form
from mnist_cnn.errors import ConfigError, PictureError, printable

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

BATCH_SIZE = 64  # pictures held at a time, and the one shape that is compiled


class Answer(NamedTuple):
    """What became of a file: `error` says why there is no more, if there is no more."""

    file: str
    error: str | None = None
    seen: UInt8[np.ndarray, "28 28"] | None = None  # what the network saw
    digit: int = -1
    probability: float = 0.0
    runner_up: int = -1
    second: float = 0.0  # the runner-up's probability

    def as_json(self) -> str:
        if self.error is not None:
            return json.dumps({"file": self.file, "error": self.error})
        return json.dumps(
            {
                "file": self.file,
                "digit": self.digit,
                "probability": round(self.probability, 6),
                "runner_up": self.runner_up,
            }
        )

    def as_text(self) -> str:
        return (
            f"{printable(self.file)}: {self.digit}  {self.probability:.2%}  "
            f"(runner-up {self.runner_up}, {self.second:.2%})"
        )


def answers(network: Network, files: Iterable[str]) -> Iterator[Answer]:
    """An answer for each file, in their order; of a long list, two batches are held at a time."""
    files = iter(files)
    with ThreadPoolExecutor(1) as pool:  # the network computes while the next batch is read
        before: tuple[list[Answer], Future] | None = None
        while read := [_read(file) for file in itertools.islice(files, BATCH_SIZE)]:
            seen = [answer.seen for answer in read if answer.seen is not None]
            images = np.stack(seen)[..., None] if seen else np.zeros((0, 28, 28, 1), np.uint8)
            after = read, pool.submit(network.probabilities, images, BATCH_SIZE)
            if before is not None:
                yield from _answered(*before)
            before = after
        if before is not None:
            yield from _answered(*before)


def _read(file: str) -> Answer:
    try:
        return Answer(file, seen=mnist_form(pictures.read(file)))
    except PictureError as error:
        return Answer(file, error=str(error))


def _answered(read: list[Answer], probabilities: Future) -> Iterator[Answer]:
    rows = iter(probabilities.result())
    for answer in read:
        if answer.error is None:
            row = next(rows)
            second, first = np.argsort(row)[-2:].tolist()
            answer = answer._replace(
                digit=first, probability=row[first], runner_up=second, second=row[second]
            )
        yield answer


def expand(arguments: Iterable[str]) -> Iterator[str]:
    """The files that the command line names: `-` reads standard input, folders are opened."""
    for argument in arguments:
        if argument == "-":
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from (file for line in lines if line for file in _files(line))
        else:
            yield from _files(argument)


def _files(name: str) -> Iterator[str]:
    if not os.path.isdir(name):
        yield name
        return
    try:
        inside = sorted(os.listdir(name))
    except PermissionError:
        inside = []
    entries = [entry for entry in inside if entry.lower().endswith(pictures.SUFFIXES)]
    yield from [os.path.join(name, entry) for entry in entries] or [name]  # its line says why


def blocks(image: UInt8[np.ndarray, "28 28"]) -> str:
    """The image in 14 lines of 28 characters, two pixels to a character, for a terminal."""
    pairs = image.reshape(14, 2, 28).mean(axis=1)
    shades = np.array(list(" ░▒▓█"))
    return "\n".join("".join(row) for row in shades[np.rint(pairs / 255 * 4).astype(int)])


def _mute_decoders() -> None:
    """What C libraries (libtiff) write to file 2 goes nowhere; `sys.stderr` stays what it was."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def main(arguments: list[str]) -> int:
    given = flags.FLAGS
    if given.workdir is None:
        raise ConfigError("--workdir is missing; give the directory that a run printed at its end")
    if len(arguments) < 2:
        raise ConfigError("give one picture or more, a folder, or - for names on standard input")
    command_line.silence_libraries()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends this quietly
    _mute_decoders()
    for stream in (sys.stdout, sys.stderr):  # names and shades that it has no letter for
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    import mnist_cnn

    if given.save_inputs is not None:
        pathlib.Path(given.save_inputs).mkdir(parents=True, exist_ok=True)
    show = given.show
    if show is None:
        show = sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower()
    network = mnist_cnn.load(given.workdir, given.config, given.seed)
    failed = False
    for number, answer in enumerate(answers(network, expand(arguments[1:])), start=1):
        failed |= answer.error is not None
        if given.json:
            print(answer.as_json())
        elif answer.error is not None:
            text = f"{answer.file}: {answer.error}"
            print(f"error: {printable(text)}", file=sys.stderr, flush=True)
        else:
            print(answer.as_text())
            if show and answer.seen is not None:
                print(blocks(answer.seen))
        if given.save_inputs is not None and answer.seen is not None:
            stem = pathlib.Path(answer.file).stem[:100]
            pictures.save(answer.seen, pathlib.Path(given.save_inputs, f"{number:05d}-{stem}.png"))
    return int(failed)


if __name__ == "__main__":
    from ml_collections import config_flags

    flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind the pictures
    flags.DEFINE_string("workdir", None, "The run directory of a trained network.")
    flags.DEFINE_integer("seed", None, "Which of a run's networks; the first.")
    flags.DEFINE_boolean("json", False, "Print one JSON object a line.")
    flags.DEFINE_boolean("show", None, "Show what the network saw; the default: on a terminal.")
    flags.DEFINE_string("save_inputs", None, "A folder for what the network saw, as PNG files.")
    config_flags.DEFINE_config_file(
        "config", None, "The experiment file, where it brought a module of its own."
    )
    command_line.command(main, command_line.parse_flags)
