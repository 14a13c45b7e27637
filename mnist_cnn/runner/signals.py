"""SIGTERM and SIGINT: training saves and stops; a second signal ends the process at once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(BaseException):
    """A signal stopped the run; `status` is the exit status, 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequest:
    """Turns the first signal into `Stopped`: at once, or at the end of a `deferred` section."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Handles SIGTERM and SIGINT from now on; must be called in the main thread."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal only sets `received`: the caller saves and raises."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)  # safe: checkpoints are written aside and renamed
        self.received = number
        if not self._deferred:
            raise Stopped(number)
