"""Runs a process of a job in a child, so that its sudden end is explained in one line.

If another process of the job is lost, JAX ends this one from C++ with a stack trace, and no
exception can be caught. This module must be used before JAX is imported.
"""

import os
import signal
import sys
import threading

# A run saves and stops when it receives one of these.
STOP_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)
PEER_LOST = (
    "another process of this job ended or was lost, so this one stopped; what was saved is kept: "
    "start all processes again to resume"
)


def run_under_watchdog(show_library_output: bool) -> None:
    """Returns in a child process; this process waits for its end and exits as it does."""
    end, held = os.pipe()  # the system closes `held` when this process ends, however it ends
    child = os.fork()
    if child:
        os.close(end)
        # A signal to the process group reaches the child as well: twice, which counts as once.
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda number, frame: os.kill(child, number))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGABRT:
            print(f"error: {PEER_LOST}", file=sys.stderr, flush=True)
            status = 1
        os._exit(status if status >= 0 else 128 - status)
    os.close(held)
    threading.Thread(target=lambda: (os.read(end, 1), os._exit(137)), daemon=True).start()
    if not show_library_output:  # keep what Python prints, drop what C++ prints
        silent = os.open(os.devnull, os.O_WRONLY)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
        for fd in (1, 2):
            os.dup2(silent, fd)
