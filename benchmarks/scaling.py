"""Cost over batch size, replicas and epochs, and the cost of start-up and input.

Each measurement takes the number of rounds and returns lists for training.json.
"""

import contextlib
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

import mnist_cnn
from benchmarks.peers.ours import Trainer
from benchmarks.peers.serve import read
from mnist_cnn.models.kernels.compiler import compiler_options
from mnist_cnn.training import batches
from mnist_cnn.training.batches import Split
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import step, steps

_ROOT = pathlib.Path(__file__).parents[1]
_TIMEOUT = 600.0  # seconds until a command has taken its first step


@functools.cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    images, labels = read("train-images-idx3-ubyte", 16), read("train-labels-idx1-ubyte", 8)
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int32)


def _interleaved(trainers: dict[int, Trainer], steps: dict[int, int], rounds: int) -> list[Any]:
    """The seconds of each trainer's steps in every round, after one round that is not counted."""
    seconds: dict[int, list[float]] = {key: [] for key in trainers}
    for _ in range(rounds + 1):
        for key, trainer in trainers.items():
            began = time.perf_counter()
            trainer.take_steps(steps[key])
            seconds[key].append(time.perf_counter() - began)
    return [values[1:] for values in seconds.values()]


def batch_sizes(rounds: int, sizes: tuple[int, ...] = tuple(2**n for n in range(3, 11))) -> Any:
    """Images per second for each batch size."""
    trainers = {size: Trainer(*_mnist(), size) for size in sizes}
    steps = {size: max(2, 1024 // size) for size in sizes}
    seconds = _interleaved(trainers, steps, rounds)
    rates = [
        [size * steps[size] / one for one in part]
        for size, part in zip(sizes, seconds, strict=True)
    ]
    return {"batch_size": sizes, "images_per_second": rates}


def replicas(rounds: int, counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32), steps: int = 96) -> Any:
    """Seconds per step and replica, for each number of replicas.

    Every number does the same work in a round. 32 replicas take 3 steps per call, as in a run.
    """
    trainers = {count: Trainer(*_mnist(), 32, num_seeds=count) for count in counts}
    taken = {count: max(1, steps // count) for count in counts}
    seconds = _interleaved(trainers, taken, rounds)
    each = [
        [one / taken[count] / count for one in part]
        for count, part in zip(counts, seconds, strict=True)
    ]
    return {"replicas": counts, "seconds_a_step": each}


def input_wait(rounds: int, count: int = 96) -> Any:
    """Seconds of a step with the real input, and of one that always uses the same batch."""
    config = mnist_cnn.experiment()
    images, labels = _mnist()
    split = Split(*jax.device_put((images, labels)))
    seed, epoch = jax.device_put((np.uint32(config.seed), np.int32(0)))
    order = batches.epoch_order(seed, epoch, len(labels), config.batch_size)
    state, sums = create_state(config), Metrics.zero()

    def constant(state: Any, sums: Any, batch: Any, start: Any, stop: Any) -> Any:
        def body(index: Any, carry: Any) -> Any:
            # Adds 0, which the compiler cannot know; otherwise it scales the batch before the loop.
            same = batch.replace(images=batch.images + (index >> 30).astype(batch.images.dtype))
            state, metrics = step(carry[0], same)
            return state, carry[1] + metrics

        return lax.fori_loop(start, stop, body, (state, sums))

    index = np.int32(0)
    options = compiler_options(jax.devices()[0].platform)
    batch = batches.take(split, order[0])
    real = jax.jit(steps).lower(state, sums, split, order, index, index)
    same = jax.jit(constant).lower(state, sums, batch, index, index)
    programs: dict[str, Callable[[int], Any]] = {
        "real": functools.partial(real.compile(options), state, sums, split, order, index),
        "constant": functools.partial(same.compile(options), state, sums, batch, index),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(np.int32(count)))
            seconds[name].append((time.perf_counter() - began) / count)
    return {name: values[1:] for name, values in seconds.items()}


def epochs(rounds: int, counts: tuple[int, ...] = (1, 2, 4, 8)) -> Any:
    """Seconds and peak memory of whole commands on 6,000 images, for each number of epochs."""
    del rounds  # one command each, after one that fills the compile cache
    results = [
        _command(f"--config.num_epochs={count}", "--config.train_split=train[:6000]")
        for count in (counts[0], *counts)
    ][1:]
    seconds, memory = zip(*results, strict=True)
    slope, start = np.polyfit(counts, seconds, 1).tolist()
    return {
        "epochs": counts, "seconds": seconds, "peak_megabytes": memory,
        "seconds_an_epoch": slope, "seconds_apart": start,
    }  # fmt: skip


def base(rounds: int) -> Any:
    """Seconds and peak memory of the base experiment's command."""
    del rounds
    seconds, memory = _command()
    return {"seconds": seconds, "peak_megabytes": memory}


def start_up(rounds: int) -> Any:
    """Seconds from the command to its first logged step, with an empty and a full compile cache."""
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_first_step(cache))
            warm.append(_first_step(cache))
    return {"cold": cold, "warm": warm}


def _start(folder: str, *changes: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mnist_cnn.main", "--config", "experiments/base.py"]
    return subprocess.Popen(
        [*command, f"--workdir={folder}/run", *changes], cwd=_ROOT,
        env=os.environ | environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _first_step(cache: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        metrics = pathlib.Path(folder, "run", "metrics.jsonl")
        began = time.perf_counter()
        process = _start(folder, "--config.log_every=1", XDG_CACHE_HOME=cache)
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None or time.perf_counter() - began > _TIMEOUT:
                    raise RuntimeError("the command ended, or timed out, before its first step")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()


def _command(*changes: str) -> tuple[float, float]:
    """The seconds and the peak resident megabytes of a command."""
    with tempfile.TemporaryDirectory() as folder:
        began, peak = time.perf_counter(), 0
        process = _start(folder, *changes)
        # The kernel's peak. The one of `wait4` includes the memory of the parent process.
        status = pathlib.Path("/proc", str(process.pid), "status")
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                peak = int(status.read_text().partition("VmHWM:")[2].split()[0])
            time.sleep(0.02)
        if process.returncode:
            raise RuntimeError(f"the command failed with exit status {process.returncode}")
        return time.perf_counter() - began, peak * 1024 / 1e6


MEASUREMENTS: dict[str, Callable[[int], Any]] = {
    "batch size": batch_sizes,
    "replicas": replicas,
    "input": input_wait,
    "start-up": start_up,
    "epochs": epochs,
    "base": base,
}


def describe(name: str, found: Any) -> str:
    """A measurement in one line."""
    median = statistics.median
    if name == "batch size":
        pairs = zip(found["batch_size"], found["images_per_second"], strict=True)
        text = ", ".join(f"{size}: {median(rates):,.0f}" for size, rates in pairs)
        return f"images per second by batch size: {text}"
    if name == "replicas":
        alone, *_ = each = found["seconds_a_step"]
        costs = [median(a / b for a, b in zip(part, alone, strict=True)) for part in each]
        pairs = zip(found["replicas"], costs, strict=True)
        return "cost of a replica by number of replicas: " + ", ".join(
            f"{n}: {c:.2f}" for n, c in pairs
        )
    if name == "input":
        wait = median(a / b for a, b in zip(found["real"], found["constant"], strict=True))
        return f"input: a step takes {wait:.3f} times one on a constant batch"
    if name == "start-up":
        cold, warm = median(found["cold"]), median(found["warm"])
        return f"start-up to the first step: {cold:.1f} s cold, {warm:.1f} s warm"
    if name == "epochs":
        pairs = zip(found["epochs"], found["seconds"], found["peak_megabytes"], strict=True)
        text = ", ".join(f"{n}: {s:.1f} s, {m:,.0f} MB" for n, s, m in pairs)
        return (
            f"epochs of 6,000 images: {text}; {found['seconds_apart']:.1f} s plus "
            f"{found['seconds_an_epoch']:.2f} s per epoch"
        )
    return f"base: {found['seconds']:.1f} s, peak memory {found['peak_megabytes']:,.0f} MB"
