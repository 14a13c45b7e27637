"""How a process is made to end.

SIGTERM and SIGINT: training ends its slice and saves; a second one leaves at once.  And one of a
job of several processes does not outlive the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

LOST = (
    "another process of this job ended or was lost, so this one stopped; what was saved is kept: "
    "start all of them again to go on"
)


class Stopped(BaseException):
    """The process was asked to stop; `status` is what it should exit with (128 + the signal)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequest:
    """Turns the first signal into `Stopped`: at once, or at the end of a `deferred` section."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Handles SIGTERM and SIGINT from now on; for the main thread."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal is only noted in `received`: the caller looks, saves, and raises."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)  # checkpoints are written aside and renamed: nothing breaks
        self.received = number
        if not self._deferred:
            raise Stopped(number)


def go_on_in_watched_child(show_output_of_libraries: bool) -> None:
    """Goes on in a child process, whose sudden end this one tells of in a line.

    For a process of a job: where another is lost, JAX ends it from C++, with a stack trace and no
    exception that could be caught.  To be called before JAX is imported.
    """
    end, held = os.pipe()  # `held` is closed by the end of this process, however that comes
    child = os.fork()
    if child:
        os.close(end)
        _wait_for(child)
    os.close(held)
    threading.Thread(target=lambda: (os.read(end, 1), os._exit(137)), daemon=True).start()
    if not show_output_of_libraries:  # what Python prints goes on, what C++ prints does not
        silent = os.open(os.devnull, os.O_WRONLY)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
        for fd in (1, 2):
            os.dup2(silent, fd)


def _wait_for(child: int) -> None:
    """Ends as the child does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        print(f"error: {LOST}", file=sys.stderr, flush=True)
        status = 1
    os._exit(status if status >= 0 else 128 - status)
