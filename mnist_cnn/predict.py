"""Recognizes what pictures show: digits, or the classes of the run's own data.

    python -m mnist_cnn.predict [--workdir DIR] [--json] [--save_inputs DIR] IMAGE ...
    python -m mnist_cnn.predict [--workdir DIR] --labels FILE|FOLDER [--page FILE.html]
    python -m mnist_cnn.predict [--workdir DIR] [--json] [--output FILE] test.csv

Without --workdir it is the network that comes with the package. With --seed=all it is the ensemble
of all seeds of a run, and an answer says how many of its members differ.

An IMAGE is a file, a folder (its pictures, sorted by name), or `-` for names on standard input,
one a line. Several digits of a picture are read line by line, unless `--single` is given.
A file that cannot be answered gets a line with the reason; the others are answered.
With labels, in a FILE with the lines FILE<TAB>LABEL or a FOLDER with LABEL/IMAGE files, it prints
how many answers are correct, which are not, and the confusion table; "none" is no digit.
A CSV file of images, a row of pixels each, is answered in FILE, by default `submission.csv` in the
current directory, with the columns ImageId and Label.
Exit status: 0 every file has an answer; 1 some have none, or an error; 2 bad usage.
"""

import io
import json
import os
import pathlib
import shutil
import signal
import sys
from typing import TYPE_CHECKING

from absl import flags

import mnist_cnn
from mnist_cnn import command_line
from mnist_cnn.analysis import scores, submission
from mnist_cnn.analysis.answers import answers, list_files
from mnist_cnn.analysis.packaged import PACKAGED
from mnist_cnn.digits.pictures import save
from mnist_cnn.errors import ConfigError, printable
from mnist_cnn.files import local_path
from mnist_cnn.runner.blocks import blocks

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network


def main(arguments: list[str]) -> int:
    args = flags.FLAGS
    if args.page is not None:
        command_line.check_output(pathlib.Path(args.page), "--page")
    labels = None if args.labels is None else scores.read_labels(args.labels)
    if labels is None and args.page is not None:
        raise ConfigError("--page: expected --labels too, with what the pictures show")
    if labels is not None and (len(arguments) > 1 or args.json):
        raise ConfigError("--labels: expected neither pictures nor --json beside it")
    if labels is not None and (args.save_inputs is not None or args.show):
        raise ConfigError("--labels: expected neither --save_inputs nor --show; --page shows both")
    if labels is None and len(arguments) < 2:
        raise ConfigError("give pictures, a folder, or - for names on standard input")
    if any(argument.lower().endswith(submission.SUFFIXES) for argument in arguments[1:]):
        return _submit(arguments[1:])
    if args.output is not None:
        raise ConfigError("--output: expected a CSV file of images; other answers are printed")
    command_line.silence_libraries()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends the command silently
    # Discards what C libraries such as libtiff write to file 2; `sys.stderr` still works.
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    if args.save_inputs is not None:
        pathlib.Path(args.save_inputs).mkdir(parents=True, exist_ok=True)
    is_terminal = sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower()
    show = is_terminal if args.show is None else args.show
    network = mnist_cnn.load(args.workdir or PACKAGED, args.config, args.seed)
    if labels is not None:
        return _score(network, labels)
    failed = False
    for number, answer in enumerate(
        answers(network, list_files(arguments[1:]), args.single), start=1
    ):
        failed |= answer.error is not None
        if args.json:
            print(answer.as_json())
        elif answer.error is not None:
            print(f"error: {answer.as_text()}", file=sys.stderr, flush=True)
        else:
            print(answer.as_text())
            if show and answer.seen is not None:
                one = network.spec.image_shape[1]
                width = one * max(1, shutil.get_terminal_size().columns // one)
                for left in range(0, answer.seen.shape[1], width):
                    print(blocks(answer.seen[:, left : left + width]))
        if args.save_inputs is not None and answer.seen is not None:
            stem = pathlib.Path(answer.file).stem[:100]
            save(answer.seen, pathlib.Path(args.save_inputs, f"{number:05d}-{stem}.png"))
    return int(failed)


def _submit(arguments: list[str]) -> int:
    """Answers the images of one CSV file in another."""
    args = flags.FLAGS
    if len(arguments) > 1:
        raise ConfigError(f"got {len(arguments)} files, expected one if it is a CSV file")
    if args.save_inputs is not None or args.show or args.single:
        raise ConfigError("--save_inputs, --show, --single: expected pictures, not a CSV file")
    path = local_path(arguments[0], "a CSV file")
    output = pathlib.Path(args.output or "submission.csv")
    command_line.check_output(output)
    command_line.silence_libraries()
    network = mnist_cnn.load(args.workdir or PACKAGED, args.config, args.seed)
    count = submission.write_submission(network, path, output)
    if args.json:
        print(json.dumps({"file": arguments[0], "images": count, "output": str(output)}))
    else:
        print(printable(f"{output}: the classes of the {count:,} images of {arguments[0]}"))
    return 0


def _score(network: "Network", labels: dict[str, str]) -> int:
    """Prints how well labelled pictures are read; the exit status."""
    args = flags.FLAGS
    found = list(answers(network, labels, args.single))
    unread = [answer for answer in found if answer.error and not answer.no_digit]
    for answer in unread:
        print(f"error: {answer.as_text()}", file=sys.stderr, flush=True)
    result = scores.score(found, labels)
    print(scores.as_text(result))
    if args.page is not None:
        scores.write_page(result, f"Pictures of {args.labels}", args.page)
        print(f"page: {printable(args.page)}")
    return int(bool(unread))


if __name__ == "__main__":  # an import defines no flags
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow the pictures
    command_line.define_network_flags(PACKAGED)
    flags.DEFINE_boolean("json", False, "Print one JSON object a line.")
    flags.DEFINE_boolean("single", False, "Read one digit of each picture, the most prominent one.")
    flags.DEFINE_boolean("show", None, "Show the network's input; by default on a terminal only.")
    command_line.define_path("output", "The CSV file to write, by default submission.csv here.")
    command_line.define_path("labels", "Score the pictures of this list FILE<TAB>LABEL, or folder.")
    command_line.define_path("page", "With --labels: also write the scores to this HTML file.")
    command_line.define_path("save_inputs", "A folder for the network's inputs, as PNG files.")
    command_line.run_command(main, command_line.parse_flags)
