"""What a step costs: a trace of some steps, and the work that XLA counts for one.

    python -m mnist_cnn.main --config experiments/base.py --config.profile=True

Steps 20 to 40 of a process are traced one by one. The bits of the run do not depend on it.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax

from mnist_cnn.parallel.replicas import Replicas

FIRST, LAST = 20, 40  # of the steps that this process takes


class Trace(contextlib.ExitStack):
    """The trace of steps `first` to `last` of a process that resumes after `step`.

    In <workdir>/plugins/profile/<time>/, *.trace.json.gz opens in Perfetto, and the folder in
    TensorBoard's profiler. Without `workdir` nothing is written, but the run is divided into the
    same calls as in the process that writes.
    """

    def __init__(self, workdir: str | os.PathLike[str] | None, step: int, enabled: bool) -> None:
        super().__init__()
        self._workdir = workdir
        self.first: float = step + FIRST if enabled else math.inf
        self.last = self.first + LAST - FIRST

    def bound(self, step: int) -> float:
        """The last step of a call that begins after `step`: a traced step is a call by itself."""
        if step < self.first:
            return self.first
        return step + 1 if step < self.last else math.inf

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Traces the call that begins after `step`, if it is one of those."""
        if self._workdir is None or not self.first <= step < self.last:
            yield
            return
        if step == self.first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the program's operations, not Python's calls
            self.enter_context(jax.profiler.trace(self._workdir, profiler_options=options))
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step + 1 == self.last:
            self.close()


class Work(NamedTuple):
    """What a device does for one step."""

    flops: float  # of the program as written, before compilation
    bytes: float  # read and written as compiled, by each operation, as if there were no cache


def count_work(replicas: Replicas) -> Work | None:
    """The work of a step of all networks; None if the device does not report it.

    XLA counts the body of a loop once, and here the body is a step. Operations are counted before
    compilation, which turns a GPU's convolutions into library calls that XLA does not count.
    """
    calls = len(replicas.plan.groups)
    try:
        flops = calls * replicas.lowered_training().cost_analysis()["flops"]
        return Work(flops, calls * replicas.training.cost_analysis()["bytes accessed"])
    except (KeyError, TypeError, NotImplementedError, RuntimeError):
        return None


def describe(replicas: Replicas, trace: Trace, steps: int, seconds: float, path: str) -> list[str]:
    """Lines for the terminal: what a step costs, the rate over `steps` steps, and the trace."""
    cost = "profile: this device does not report the work of a step"
    if work := count_work(replicas):
        cost = (
            f"profile: a step is {work.flops / 1e9:,.3f} GFLOP and, as compiled, "
            f"{work.bytes / 1e6:,.1f} MB, a device; "
            f"{work.flops * steps / seconds / 1e9:,.1f} GFLOP/s over {steps:,} steps"
        )
    if steps <= FIRST:
        return [cost, f"no trace: it begins after {FIRST} steps, and there were {steps:,}"]
    last = min(trace.last, trace.first + steps - FIRST)
    return [cost, f"trace of steps {trace.first:,} to {last:,}: {path}/plugins/profile"]
