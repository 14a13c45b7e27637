"""The devices of this machine: those that JAX uses, and a GPU that it does not use."""

import contextlib
import importlib.metadata
import os
import pathlib
import shutil
from typing import Any

import jax

from mnist_cnn.errors import UserError

_NVIDIA = tuple(map(pathlib.Path, ("/proc/driver/nvidia", "/dev/nvidia0")))


def find_devices() -> list[Any]:
    """JAX's devices; UserError, which names JAX_PLATFORMS if that is set, if it finds none."""
    try:
        return jax.devices()
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
