"""The report: the result of one run, or the comparison of several, as one HTML page."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mnist_cnn.analysis import finished_runs as runs_lib, page
from mnist_cnn.errors import CheckpointError
from mnist_cnn.files import write_atomically


def write(workdirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Reads the runs and writes the page.

    Raises:
      CheckpointError: a run has no result to show, or they were tested on different images.
    """
    runs = [runs_lib.read(workdir) for workdir in workdirs]
    for run in runs[1:]:
        if not np.array_equal(run.tested.labels, runs[0].tested.labels):
            raise CheckpointError(
                f"{run.path} and {runs[0].path} were tested on different images; compare runs of "
                "the same dataset"
            )
    settings = runs_lib.settings_of(runs)
    text = page.single(settings[0]) if len(runs) == 1 else page.comparison(settings)
    path = pathlib.Path(output).absolute()
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """HTML that a notebook shows where it is the value of a cell."""

    html: str = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def pictures(workdir: str | os.PathLike[str]) -> Pictures:
    """The report's pictures of a run, for a notebook: `report.pictures("runs/base")` in a cell.

    Raises:
      CheckpointError: the run has no result to show.
    """
    (setting,) = runs_lib.settings_of([runs_lib.read(workdir)])
    return Pictures(page.pictures(setting))
