"""A run from beginning to end: data, compile, train, evaluate, record.

The shell around the pure `training` package: how many steps the next call takes, what is written
when. How the steps are cut into calls depends on the clock; their result does not.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnist_cnn import config as config_lib
from mnist_cnn.errors import ConfigError, UserError
from mnist_cnn.parallel import processes, threads
from mnist_cnn.parallel.devices import find_devices, other_threads, own_settings
from mnist_cnn.parallel.mesh import peak_memory
from mnist_cnn.runner import (
    checks,
    experiment_file,
    outcome,
    profile,
    result_text,
    results,
    sweep,
)
from mnist_cnn.runner.best import Best, after_validation
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.environment import describe_environment
from mnist_cnn.runner.preparation import Diverged, ReplicaMetrics, Run, prepare
from mnist_cnn.runner.run_directory import RunDirectory, new_run_path
from mnist_cnn.runner.run_logger import OnLog
from mnist_cnn.runner.signals import Stopped, StopRequest

# The progress bar and signals wait for a call to end, so it takes about this long.
_CALL_SECONDS = 1.0
# A call costs a millisecond of its own. Where a step is slow (many replicas), a call therefore
# takes up to this many steps all the same, if they take no longer than this.
_SEVERAL_STEPS, _LONG_CALL_SECONDS = 4, 2.5

WriteReport = Callable[[Sequence[pathlib.Path], pathlib.Path], object]  # (run directories, page)


@own_settings()
def run(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str] | None = None,
    *,
    command: Sequence[str] = (),
    config_file: str | None = None,
    console: Console | None = None,
    stop: StopRequest | None = None,
    write_report: WriteReport | None = None,
    on_log: OnLog | None = None,
) -> dict[str, Any]:
    """Trains and evaluates `config`; resumes from the last good checkpoint in `workdir`, if any.

    Returns the content of result.json.

    Args:
      config: a complete configuration (`mnist_cnn.experiment`).
      workdir: the run directory; None makes runs/<experiment>-<time>.
      command: what the user typed, for the record.
      config_file: the experiment file; None: that of its own objects, if any.
      stop: the signals to obey, if the caller handles any.
      write_report: writes report.html at the end, if the config asks for it.
      on_log: called with each line of metrics.jsonl, as an object, when it is written; if each
        setting of a sweep is a run, with "setting", its index.

    Raises:
      ConfigError, DataError: before anything is trained.
      UserError: JAX has no device, or the memory is too small, or JAX has started in this process
        with another number of threads; before anything is trained.
      CheckpointError: before training, or when a checkpoint cannot be written; older ones stay.
      Diverged: the loss or the parameters are not finite; the last good checkpoint is kept.
      Stopped: a signal was received; everything so far is saved.
    """
    config_lib.validate(config)
    if config["smoke"]:
        raise ConfigError("config.smoke: not a run; from Python, call runner.smoke.check instead")
    stop = stop or StopRequest()
    directory = RunDirectory(workdir or new_run_path(config["name"]))
    with contextlib.closing(directory), stop.stops(str(directory)):
        fixed = directory.num_threads() or config["num_threads"]
        num_threads = fixed or threads.default()
        devices = find_devices(num_threads)  # starts JAX, as the next line would
        console = console or Console(quiet=not processes.is_primary())
        if fixed is None and (other := other_threads(num_threads)):
            console.line(
                f"note: {other}, the default; this run has {threads.running()} as well, and "
                f"other bits than in a new process, or with NPROC={num_threads}"
            )
            num_threads = threads.running()
        _check_threads(num_threads)
        result = checks.finished_result(directory, config) if processes.is_primary() else None
        if result := processes.broadcast(result):
            console.line(f"{directory}: finished; nothing is left to do")
            environment = directory.read("environment.json") or {}
            source = experiment_file.read(config, config_file)
            for note in experiment_file.changed_notes(directory, environment, source):
                console.line(note)
            result_text.show(console, result, str(directory))
            if write_report and not (directory.path / "report.html").exists():  # killed before it
                _report(config, directory, console, write_report)
            return result

        def carry_out(
            config: Mapping[str, Any], directory: RunDirectory, pause: int | None, on_log: Any
        ) -> dict[str, Any]:
            if pause is not None:  # a sweep ends between its settings
                stop.check()
            arguments = (console, stop, command, num_threads, config_file, on_log, pause)
            return _carry_out(prepare(config, directory, *arguments))

        if config_lib.has_one_program(config):
            result = carry_out(config, directory, None, on_log)
        else:
            environment = describe_environment(devices, command) | {"num_threads": num_threads}
            source = experiment_file.read(config, config_file)
            result = sweep.run(config, directory, console, environment, source, carry_out, on_log)
        result_text.show(console, result, str(directory))
        console.memory(peak_memory())
        if write_report:
            _report(config, directory, console, write_report)
        return result


def _check_threads(num_threads: int) -> None:
    """Raises UserError unless JAX has that number of threads here, in each process of a job."""
    if other := other_threads(num_threads):
        raise UserError(
            f"{other}, which this run has; start it in a new process (in a notebook restart the "
            f"kernel, and call mnist_cnn.run before JAX), or start Python with NPROC={num_threads}"
        )
    smallest = -processes.allgather_max(-num_threads)
    if smallest != (largest := processes.allgather_max(num_threads)):
        raise UserError(
            f"the processes of this job have {smallest} to {largest} threads; give each of them "
            "the same --config.num_threads or NPROC"
        )


def _carry_out(this: Run) -> dict[str, Any]:
    """Trains and tests, or validates at the step where the run pauses; returns result.json."""
    end = outcome.finish if this.pause is None else outcome.pause
    try:
        with this.stop.stops(str(this.directory)):
            return processes.broadcast(end(this, *_train(this)))
    except (Stopped, Diverged):
        if this.checkpoints is not None:
            this.checkpoints.wait()
            this.checkpoints.close()
        raise


def _train(this: Run) -> tuple[int, Best | None, ReplicaMetrics]:
    """Takes the remaining steps.

    Returns the last step, the best networks if asked for, and the validation after it, if any.
    """
    profiled, seconds = this.config["profile"], this.logger.seconds()["train"]
    folder = this.directory.path if processes.is_primary() else None
    with (
        profile.Trace(folder, this.first_step, enabled=profiled) as trace,
        this.console.training(this.first_step, this.end),
        this.stop.deferred(),
    ):
        end, best, validated = _take_steps(this, trace)
    steps = end - this.first_step
    if profiled and steps:
        seconds = this.logger.seconds()["train"] - seconds
        for line in profile.describe(this.replicas, trace, steps, seconds, str(this.directory)):
            this.console.line(line)
    return end, best, validated


def _take_steps(this: Run, trace: profile.Trace) -> tuple[int, Best | None, ReplicaMetrics]:
    """The training loop: some steps in one call, then what is due after them."""
    config, step, best = this.config, this.first_step, this.best
    ended = best is not None and best.is_over(config["patience"])
    replicas = range(this.replicas.plan.total)
    images_per_step = config["batch_size"] * len(replicas)
    validated: ReplicaMetrics = []
    logged, logged_seconds, call_size = step, this.logger.seconds()["train"], 1
    while step < this.end and not ended:
        start, began = step, time.monotonic()
        step = int(min(this.next_event(start), start + call_size, trace.bound(start)))
        count = step - start
        epoch, offset = divmod(start, this.steps_per_epoch)
        with trace.around(start), this.logger.clock("train"):
            sums = this.replicas.advance(epoch, offset, offset + count)  # since the last log
        steps_per_second = count / (time.monotonic() - began)
        call_size = processes.broadcast(_call_size(steps_per_second))
        signal = processes.allgather_max(this.stop.received or 0)

        bad_steps = sums.first_bad_step[sums.first_bad_step >= 0]
        if bad_steps.size and not config["sweep"]:
            this.diverge(int(bad_steps.min()))
        metrics = sums.means()
        rate = steps_per_second * images_per_step
        this.console.step_done(step, this.end, metrics, rate)
        due, pauses = this.is_due(step, config["eval_every"]), step == this.pause
        validates = due or pauses
        if this.validate is not None and validates:
            validated = this.validate(replicas)[0]
            if best is not None and due:
                best = after_validation(best, step, config["keep_best"], validated, this.replicas)
                ended = best.is_over(config["patience"])
        if this.is_due(step, config["log_every"]) or ended:
            this.check_finite(step)
            seconds = this.logger.seconds()["train"]  # without validation and checkpoints
            rate = (step - logged) * images_per_step / (seconds - logged_seconds)
            if config["schedule"] != "constant":
                metrics["learning_rate"] = this.replicas.learning_rates(step - 1)
            this.log(step, "train", metrics, images_per_second=rate)
            this.replicas.clear_sums()
            logged, logged_seconds = step, seconds
        if this.validate is not None and validates:
            this.log(step, "validation", results.stack_metrics(validated))
            this.console.validation(step, validated)
        if this.is_due(step, config["checkpoint_every"]) or ended or pauses or signal:
            this.save(step, best)
        if signal:
            raise Stopped(signal)
    if signal := processes.allgather_max(this.stop.received or 0):  # after the last check
        raise Stopped(signal)
    if best is not None and ended:
        this.console.ended_early(step, config["keep_best"], best.step.tolist(), config["patience"])
    return step, best, validated


def _call_size(steps_per_second: float) -> int:
    """The number of steps of the next call."""
    several = min(_SEVERAL_STEPS, int(steps_per_second * _LONG_CALL_SECONDS))
    return max(1, several, int(steps_per_second * _CALL_SECONDS))


def _report(
    config: Mapping[str, Any], directory: RunDirectory, console: Console, write_report: WriteReport
) -> None:
    """Writes report.html, if the config asks for it; a failure does not change the result."""
    if not config["report"] or not processes.is_primary():
        return
    try:
        write_report([directory.path], directory.path / "report.html")
        console.line(f"report: {directory}/report.html")
    except Exception as error:
        console.line(
            f"note: no report.html ({type(error).__name__}: {error}); "
            f"python -m mnist_cnn.report --workdir {directory} tries again"
        )
