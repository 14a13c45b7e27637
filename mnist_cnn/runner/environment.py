"""Where a run computes: versions, devices, processor, command and git commit."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy",
)  # fmt: skip


def describe_environment(devices: Sequence[Any], command: Sequence[str]) -> dict[str, Any]:
    """What a number depends on besides the configuration."""
    return {
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": _cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [{"platform": d.platform, "kind": d.device_kind} for d in devices],
        "git": _git(pathlib.Path(__file__).parents[1]),
    }


def command_line() -> list[str]:
    """The command of this process as its user typed it, as far as Python knows."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:
        return ["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]]
    return list(sys.argv)


def _cpu_count() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: pathlib.Path) -> dict[str, Any] | None:
    """The commit of the code, and whether the tree was dirty; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        if git("ls-files", "__init__.py") != "__init__.py":
            return None  # a copy that merely lies inside somebody's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
