"""The number of threads that a CPU's sums are split over: a part of the run, for it decides bits.

XLA reads the number from the environment when it starts, once in a process; unset, it is the
number of cores. More threads than cores take turns. Nothing here imports JAX.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from mnist_cnn.errors import ConfigError

# Not the number of cores: the same experiment must have the same bits on every machine. Most have
# two cores or more, and the results of this project were made with two.
DEFAULT = 2
MAX = 256  # XLA starts no more
_VARIABLES = ("PJRT_NPROC", "NPROC")  # XLA prefers the first
_POOL = "tf_XLAEigen"  # the name of these threads


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def from_environment() -> int | None:
    """The number in NPROC (or PJRT_NPROC), None if unset; ConfigError if it is no such number."""
    for name in _VARIABLES:
        if text := os.environ.get(name):
            if not text.isdecimal() or not 1 <= int(text) <= MAX:
                raise ConfigError(
                    f"{name}={text}: expected a number of threads from 1 to {MAX}; unset it, or "
                    "give --config.num_threads"
                )
            return int(text)
    return None


def default() -> int:
    """The number of threads where nothing else says one: NPROC, or else `DEFAULT`."""
    return from_environment() or DEFAULT


@contextlib.contextmanager
def used_by_xla(num_threads: int | None) -> Iterator[None]:
    """Within it, XLA starts with `num_threads` (None: `default()`), if it starts at all."""
    number = str(default() if num_threads is None else num_threads)
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ |= dict.fromkeys(_VARIABLES, number)
    try:
        yield
    finally:  # other programs read NPROC as well, and so may a process that this one starts
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


_started: int | None = None  # the number that XLA was given in this process, if known


def note_start(num_threads: int) -> None:
    """Remembers the number that XLA has been given, which is that of its only start."""
    global _started
    _started = _started or num_threads


def running() -> int:
    """The number of XLA's threads; 0 if it has not started, or on other systems than Linux."""
    if _started:
        return _started
    names = []
    for path in pathlib.Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # the thread has ended
            names.append(path.read_text().strip())
    return names.count(_POOL)


def conflict(num_threads: int, num_devices: int) -> str | None:
    """In words, if XLA runs with another number than `num_threads`.

    It has at least one thread for each of the process's `num_devices` CPU devices.
    """
    if (started := running()) in (0, num_threads, max(num_threads, num_devices)):
        return None
    return f"JAX has started in this process with {started} threads, not {num_threads}"
