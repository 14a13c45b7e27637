"""The report of one run, or the comparison of several, as one HTML page with plots.

    python -m mnist_cnn.report --workdir DIR [DIR ...] [--output FILE]

Only the run directories are needed, not the data. Exit status: 0 done; 1 an error; 2 bad usage.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags


def write(workdirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Writes the report of finished runs to `output`; see `analysis.html_report.write`."""
    from mnist_cnn.analysis import html_report  # imports matplotlib

    html_report.write(workdirs, output)


def pictures(workdir: str | os.PathLike[str]) -> Any:
    """The plots of a run's report, which a notebook shows as the value of a cell."""
    from mnist_cnn.analysis import html_report

    return html_report.pictures(workdir)


def main(arguments: list[str]) -> int:
    from mnist_cnn import command_line
    from mnist_cnn.errors import ConfigError, printable

    workdirs = [*filter(None, [flags.FLAGS.workdir]), *arguments[1:]]
    if not workdirs:
        raise ConfigError("expected --workdir DIR [DIR ...]; see --helpshort")
    if len(set(map(os.path.realpath, workdirs))) < len(workdirs):
        raise ConfigError("--workdir: a directory is given twice; give each run once")
    command_line.silence_libraries()
    alone = pathlib.Path(workdirs[0]) if len(workdirs) == 1 else pathlib.Path()
    output = pathlib.Path(flags.FLAGS.output or alone / "report.html")
    if flags.FLAGS.output:
        command_line.check_output(output)
    write(workdirs, output)
    print(f"report: {printable(str(output))}")
    return 0


if __name__ == "__main__":  # the flags are the command's alone: importing this module adds none
    from mnist_cnn import command_line

    flags.DEFINE_string("workdir", None, "The run directory; more of them may follow.")
    flags.DEFINE_string("output", None, "The page; DIR/report.html, of several ./report.html.")
    command_line.command(main, command_line.parse_flags)
