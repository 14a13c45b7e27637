"""Signals: training saves and stops; a second one, some seconds later, ends the process at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from mnist_cnn.parallel.watchdog import STOP_SIGNALS

# A signal to a process group arrives twice in a process whose parent forwards it.
_SAME_SECONDS = 2.0


class Stopped(BaseException):
    """A signal stopped the run; `status` is the exit status, 128 + the signal's number."""

    run_directory: str | None = None  # of a run that began

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.status = 128 + number


class StopRequest:
    """Turns the first signal into `Stopped`: at once, or at the end of a `deferred` section."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.raised = False  # `Stopped` was raised, in whatever code ran then
        self._deferred = False

    def install(self) -> None:
        """Handles all STOP_SIGNALS from now on; must be called in the main thread.

        A second signal ends the process, even if the main thread is in a library's call.
        """
        for number in STOP_SIGNALS:
            # `nohup` ignores it, and a run must survive the end of its terminal then.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        arrived, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_exit_at_second, args=(arrived,), daemon=True).start()

    @contextlib.contextmanager
    def keyboard_interrupts(self) -> Iterator[None]:
        """Within it, Ctrl-C is a request, unless the caller handles SIGINT or has no main thread.

        A second Ctrl-C, some seconds later, is a KeyboardInterrupt, which saves nothing.
        """
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        first = None

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if first is not None and time.monotonic() - first >= _SAME_SECONDS:
                raise KeyboardInterrupt("stopped at once; the steps since the last save are lost")
            first = first or time.monotonic()
            self._handle(number, frame)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, a signal only sets `received`: the caller saves and raises.

        At its end, `Stopped` is raised if the caller has not noticed a signal.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @contextlib.contextmanager
    def stops(self, run_directory: str) -> Iterator[None]:
        """Names the run in `Stopped`, which it also raises if a library made it another error."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, Stopped):
                stopped = error
            elif self.raised and self.received is not None:
                stopped = Stopped(self.received)
            else:
                raise
            stopped.run_directory = run_directory
            raise stopped from None

    def check(self) -> None:
        """Raises `Stopped` if there was a signal: a library may have swallowed the exception."""
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        if not self._deferred:
            self.raised = True
            raise Stopped(number)


def _exit_at_second(arrived: int) -> None:
    """Reads the numbers of signals when they arrive, and ends the process at a second one."""
    first = None
    while number := os.read(arrived, 1)[0]:
        if number not in STOP_SIGNALS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        # The system repeats SIGXCPU every second until its hard limit.
        elif now - first >= _SAME_SECONDS and number != signal.SIGXCPU:
            text = f"stopped by a second signal ({signal.Signals(number).name}) without saving"
            print(f"error: {text}; the checkpoints before it are kept", file=sys.stderr, flush=True)
            os._exit(128 + number)  # safe: checkpoints are written aside and renamed
