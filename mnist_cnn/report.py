"""The result of one run, or the comparison of several, as one HTML page with plots.

    python -m mnist_cnn.report --workdir DIR [DIR ...] [--pairs] [--output FILE]

The page of a run that is not finished, or diverged, says so and has its curves. The sentences at
the top of the page are printed as well. The command needs only the run directories, no data and no
network. In a notebook, `report.pictures("runs/base")` displays the plots of a run. Exit status: 0
done; 1 an error, printed in one line; 2 bad usage.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from mnist_cnn import command_line
from mnist_cnn.errors import ConfigError, printable
from mnist_cnn.files import local_path


def write(
    workdirs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    pairs: bool = False,
) -> list[str]:
    """Writes the report of runs to `output`; see `analysis.html_report.write`."""
    from mnist_cnn.analysis import html_report  # imports matplotlib

    return html_report.write(workdirs, output, pairs)


def pictures(workdir: str | os.PathLike[str]) -> Any:
    """The plots of a run's report, which a notebook displays as the value of a cell."""
    from mnist_cnn.analysis import html_report

    return html_report.pictures(workdir)


def main(arguments: list[str]) -> int:
    workdirs = [*filter(None, [flags.FLAGS.workdir]), *arguments[1:]]
    if not workdirs:
        raise ConfigError("expected --workdir DIR [DIR ...]; see --helpshort")
    if len(set(map(os.path.realpath, workdirs))) < len(workdirs):
        raise ConfigError("--workdir: got the same directory twice, expected each run once")
    command_line.silence_libraries()
    folder = local_path(workdirs[0] if len(workdirs) == 1 else ".", "--workdir")
    output = pathlib.Path(flags.FLAGS.output or folder / "report.html")
    if flags.FLAGS.output:
        command_line.check_output(output)
    for sentence in write(workdirs, output, flags.FLAGS.pairs):
        print(printable(sentence))
    print(f"report: {printable(str(output))}")
    return 0


if __name__ == "__main__":  # importing this module defines no flags
    command_line.define_path("workdir", "The run directory, or the first of several.")
    command_line.define_path("output", "The page; default: DIR/report.html, or ./report.html.")
    flags.DEFINE_boolean("pairs", False, "Compare every pair of settings, not each with the first.")
    command_line.run_command(main, command_line.parse_flags)
