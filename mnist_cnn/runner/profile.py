"""What a step costs: its time line, and the work that XLA counts for it.

    python -m mnist_cnn.main --config experiments/base.py --config.profile=True

Twenty steps are traced one by one, after twenty others that are not; no bit of the run depends
on it.  This module knows neither what a step computes nor what is printed.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax

from mnist_cnn.parallel.replicas import Replicas

FIRST, LAST = 20, 40  # steps taken by this process


class Trace:
    """The trace of some steps of a run, written into its directory.

    As <workdir>/plugins/profile/<time>/: *.trace.json.gz opens in Perfetto, the folder in
    TensorBoard's profiler.
    """

    def __init__(self, workdir: str | os.PathLike[str] | None, step: int) -> None:
        """Before `step`; `workdir` None cuts the run as the process does that writes."""
        self._workdir = workdir
        self.first, self.last = step + FIRST, step + LAST
        self._open = False

    def bound(self, step: int) -> float:
        """Where a call that begins after `step` ends at the latest: alone within the trace."""
        if step < self.first:
            return self.first
        return step + 1 if step < self.last else math.inf

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Around the call that begins after `step`: traced, if it is one of those."""
        if self._workdir is None or not self.first <= step < self.last:
            yield
            return
        if not self._open:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the program's operations, not Python's calls
            jax.profiler.start_trace(self._workdir, profiler_options=options)
            self._open = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step + 1 == self.last:
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False


class Work(NamedTuple):
    """What a device does for one step."""

    flops: float  # as the program is written, before a compiler changes how it is computed
    bytes: float  # read and written as compiled, by each operation as if there were no cache


def work(replicas: Replicas) -> Work | None:
    """The work of a step of all networks; None: it is not told.

    XLA counts the body of a loop once where it does not know how often it runs, and here the body
    is a step.  Compiled, a GPU's convolutions are calls of a library, for which it counts nothing.
    """
    try:
        flops = replicas.lowered().cost_analysis()["flops"]
        accessed = replicas.training.cost_analysis()["bytes accessed"]
        return Work(replicas.calls * flops, replicas.calls * accessed)
    except (KeyError, TypeError, NotImplementedError, RuntimeError):
        return None
