"""The environment of a run: versions, devices, processor, command and git commit."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mnist_cnn.parallel.threads import available_cores

_PACKAGES = "jax jaxlib flax optax orbax-checkpoint tensorflow-datasets numpy".split()
# What changes bits or may: compiler flags, JAX's settings, the number of threads, TF32.
_PREFIXES = ("JAX_", "OMP_", "MKL_", "OPENBLAS_")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC", "PJRT_NPROC", "NVIDIA_TF32_OVERRIDE")
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision")  # may also be set in Python


def describe_environment(devices: Sequence[Any], command: Sequence[str]) -> dict[str, Any]:
    """What results may depend on besides the configuration, as environment.json contains it."""
    import jax  # a command reads its own name before JAX may start

    return {
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": available_cores(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "environment_variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_PREFIXES) or name in _VARIABLES
        },
        **{name: jax.config.values[name] for name in _SETTINGS},
        "devices": [{"platform": d.platform, "kind": d.device_kind} for d in devices],
        "git": _git_commit(pathlib.Path(__file__).parents[1]),
    }


def command_line() -> list[str]:
    """The command of this process; the options of Python itself are unknown."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return list(sys.argv)
    return ["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit(folder: pathlib.Path) -> dict[str, Any] | None:
    """The commit of the code and whether the tree is dirty; None outside its repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        quiet = subprocess.DEVNULL
        return subprocess.check_output(command, stderr=quiet, text=True, timeout=10).strip()

    try:
        if git("ls-files", "__init__.py") != "__init__.py":
            return None  # a copy of the package in another repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
