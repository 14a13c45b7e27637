"""The devices of this machine: those that JAX uses, and a GPU that it does not use."""

import contextlib
import importlib.metadata
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax

from mnist_cnn.errors import UserError
from mnist_cnn.parallel import threads

_NVIDIA = tuple(map(pathlib.Path, ("/proc/driver/nvidia", "/dev/nvidia0")))


def find_devices(num_threads: int | None = None) -> list[Any]:
    """JAX's devices; UserError, which names JAX_PLATFORMS if that is set, if it finds none.

    If JAX starts now, its sums on a CPU are split over `num_threads` (None: `threads.default`).
    """
    number = num_threads or threads.default()
    before = threads.running()
    try:
        with threads.used_by_xla(number):
            found = jax.devices()
        if not before:  # a thread that has just started is not counted yet
            threads.note_start(number)
        return found
    except (RuntimeError, AssertionError) as error:  # the latter for "cuda" without a GPU
        reason = " ".join(str(error).partition(" (")[0].split()) or "there is no such device"
        if chosen := jax.config.values["jax_platforms"]:
            raise UserError(
                f"JAX_PLATFORMS={chosen}: JAX cannot use that device ({reason}); unset the "
                'variable, or install JAX for the device, such as pip install "jax[cuda13]"'
            ) from None
        raise UserError(
            f"JAX found no device ({reason}); JAX_PLATFORMS=cpu uses the processor"
        ) from None


def other_threads(num_threads: int) -> str | None:
    """In words, if JAX runs on a CPU with another number of threads than `num_threads`."""
    devices = jax.local_devices()
    return threads.conflict(num_threads, len(devices)) if devices[0].platform == "cpu" else None


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Within it, this thread has the settings of JAX that the programs are written for.

    Whatever the user's JAX_ENABLE_X64 and so on are, a run works and has the same bits.
    """
    with (
        jax.enable_x64(False),
        jax.disable_jit(False),
        jax.debug_nans(False),  # a run says itself when it is no longer finite
        jax.debug_infs(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),
    ):
        yield


def unused_gpu() -> str | None:
    """What to do about an NVIDIA GPU of this machine that JAX does not use; None without one."""
    chosen = jax.config.values["jax_platforms"] or os.environ.get("JAX_PLATFORM_NAME") or ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    present = shutil.which("nvidia-smi") or any(path.exists() for path in _NVIDIA)
    on_cpu = all(device.platform == "cpu" for device in jax.local_devices())
    if hidden or not present or not on_cpu or chosen.partition(",")[0] == "cpu":
        return None
    for package in ("jax-cuda13-plugin", "jax-cuda12-plugin"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)
            return (
                f"this machine seems to have an NVIDIA GPU, but {package} did not start and JAX "
                "uses the CPU; JAX_PLATFORMS=cuda shows the reason, JAX_PLATFORMS=cpu hides this "
                "line"
            )
    return (
        "this machine seems to have an NVIDIA GPU, but JAX uses the CPU; to use the GPU: "
        'pip install "jax[cuda13]"; JAX_PLATFORMS=cpu hides this line'
    )
