"""Signals: which ones save and stop a run, and when a second one counts."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, config_of, finish, newest_step, result_of, same_end, start, wait_for

import mnist_cnn
from mnist_cnn.data.dataset import Dataset
from mnist_cnn.parallel.watchdog import STOP_SIGNALS
from mnist_cnn.runner import loop
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.signals import Stopped, StopRequest

# Waits in a deferred section until a signal has arrived, as training does.
WAITING = """
import os, signal, sys, time
from mnist_cnn.runner.signals import Stopped, StopRequest
stop = StopRequest()
stop.install()
try:
    with stop.deferred():
        print("ready", flush=True)
        while stop.received is None:
            time.sleep(0.01)
        {then}
        print("saved", flush=True)
except Stopped as stopped:
    print("stopped by", stopped, flush=True)
    sys.exit(stopped.status)
"""

DEADLOCK = "import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock; "
DEADLOCK += "mutex = ctypes.create_string_buffer(64); lock(mutex); lock(mutex)"


def program(text, *prefix):
    """Starts a Python program and returns when it has printed a line."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", text], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def test_every_signal_that_asks_to_stop_saves_and_a_doubled_one_is_the_same():
    assert {one.name for one in STOP_SIGNALS} == {
        "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU",
    }  # fmt: skip
    text = WAITING.format(then="os.kill(os.getpid(), stop.received); time.sleep(0.3)")
    for number, process in [(number, program(text)) for number in STOP_SIGNALS]:
        process.send_signal(number)
        out, err = finish(process, 128 + number)
        assert (out, err) == (f"saved\nstopped by {number.name}\n", "")


@pytest.mark.slow
def test_signals_repeated_by_the_system_do_not_end_the_process_unsaved():
    """SIGXCPU comes every second from the soft limit to the hard one."""
    text = WAITING.format(then="time.sleep(2.2); os.kill(os.getpid(), stop.received)")
    process = program(text)
    process.send_signal(signal.SIGXCPU)
    out, _ = finish(process, 128 + signal.SIGXCPU)
    assert out == "saved\nstopped by SIGXCPU\n"


def test_second_signal_ends_the_process_in_one_line_also_in_a_call_that_does_not_return():
    process = program(WAITING.format(then=DEADLOCK))
    process.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert "stopped by a second signal (SIGINT) without saving" in err and err.count("\n") == 1
    assert "stopped by" not in out


def test_hangup_is_ignored_under_nohup():
    process = program(WAITING.format(then="pass"), "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process, 143)[0] == "saved\nstopped by SIGTERM\n"


def test_watching_parent_passes_every_signal_on_and_a_doubled_one_is_the_same():
    text = (
        "from mnist_cnn.parallel import watchdog\nwatchdog.run_under_watchdog(False)\n"
        + WAITING.format(then="time.sleep(0.3)")
    )
    processes = {number: program(text) for number in STOP_SIGNALS}
    for number, process in processes.items():
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        if number in (signal.SIGTERM, signal.SIGUSR1):  # as to a process group
            os.kill(int(children), number)
        process.send_signal(number)
    for number, process in processes.items():
        out, err = finish(process, 128 + number)
        assert (out, err) == (f"saved\nstopped by {number.name}\n", "")


@pytest.mark.slow
def test_second_signal_to_a_run_keeps_its_checkpoints_and_the_run_can_resume(
    tiny_experiment, tmp_path
):
    """A step that does not end, as on a device that hangs."""
    experiment, workdir = tmp_path / "tiny.py", tmp_path / "run"
    experiment.write_text(
        tiny_experiment.read_text().replace('name="tiny"', 'name="tiny", loss=hanging')
        + f"""
import jax, optax, pathlib, time
folder = pathlib.Path({str(tmp_path)!r})
def hang():
    if (folder / "run" / "checkpoints" / "10").exists() and (folder / "hang").exists():
        (folder / "hanging").touch()
        time.sleep(600)
def hanging(logits, labels):
    jax.debug.callback(hang, ordered=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
"""
    )
    (tmp_path / "hang").touch()
    process = start(
        "mnist_cnn.main", "--config", experiment, "--workdir", workdir, "--config.num_steps=1000000"
    )
    wait_for(lambda: (tmp_path / "hanging").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    time.sleep(2.2)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert "saved" not in out
    assert "stopped by a second signal (SIGINT) without saving" in err and err.count("\n") == 1
    (tmp_path / "hang").unlink()
    steps = newest_step(workdir) + 3
    assert mnist_cnn.run(config_of(experiment, num_steps=steps), workdir)["steps"] == steps


# Signals that arrive where no step looks for them.


def send(stop, swallowed=None):
    """As if the system sent SIGTERM now, in code that handles every exception.

    `swallowed` None: it raises another one instead.
    """
    try:
        stop._handle(signal.SIGTERM, None)
    except BaseException as error:
        if swallowed is None:
            raise ImportError("partially initialized module") from error


def stopped_run(experiment, workdir, stop):
    with pytest.raises(Stopped) as error:
        loop.run(config_of(experiment), workdir, console=Console(quiet=True), stop=stop)
    assert error.value.status == 143 and error.value.run_directory == str(workdir)
    assert not (workdir / "result.json").exists() and newest_step(workdir) == 40


def test_signal_between_the_last_look_and_the_end_of_training_is_obeyed(
    undisturbed, tiny_experiment, tmp_path, monkeypatch
):
    stop, take_steps = StopRequest(), loop._take_steps

    def take_and_send(*arguments):
        validated = take_steps(*arguments)
        send(stop)
        return validated

    monkeypatch.setattr(loop, "_take_steps", take_and_send)
    stopped_run(tiny_experiment, tmp_path, stop)
    monkeypatch.undo()
    mnist_cnn.run(config_of(tiny_experiment), tmp_path)
    same_end(tmp_path, undisturbed[0])


@pytest.mark.parametrize("swallowed", [True, None], ids=["swallowed", "another error"])
def test_signal_inside_an_import_that_hides_the_exception_is_obeyed(
    swallowed, tiny_experiment, tmp_path, monkeypatch
):
    stop, read = StopRequest(), Dataset.read

    def importing_read(self, split):
        if split == "test":
            send(stop, swallowed)
        return read(self, split)

    monkeypatch.setattr(Dataset, "read", importing_read)
    stopped_run(tiny_experiment, tmp_path, stop)


# Ctrl-C in Python.


@pytest.fixture
def python_handles_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_of_a_run_from_python_saves_and_says_how_to_resume(
    python_handles_sigint, tiny_experiment, tmp_path
):
    config = config_of(tiny_experiment, num_steps=1_000_000)

    def interrupt():
        wait_for(lambda: newest_step(tmp_path) >= 20)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as error:
        mnist_cnn.run(config, tmp_path)
    assert str(error.value) == (
        f"stopped by SIGINT; saved. To resume: mnist_cnn.run(config, {str(tmp_path)!r})"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    config.num_steps = newest_step(tmp_path) + 5
    assert mnist_cnn.run(config, tmp_path)["steps"] == config.num_steps  # the lock is free
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_second_interrupt_from_python_is_a_keyboard_interrupt(python_handles_sigint):
    stop = StopRequest()
    raises = pytest.raises(KeyboardInterrupt, match="at once")
    with raises, stop.keyboard_interrupts(), stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2.1)
        assert stop.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_handler_of_the_caller_and_other_threads_are_left_alone(python_handles_sigint):
    seen = []
    own = lambda number, frame: seen.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, own)
    with StopRequest().keyboard_interrupts():
        assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def in_thread():
        with StopRequest().keyboard_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def reply_to(client, cell):
    """The kernel's reply to a cell; one to an earlier request may come before it."""
    while True:
        message = client.get_shell_msg(timeout=60)
        if message["parent_header"].get("msg_id") == cell:
            return message["content"]


@pytest.mark.slow
def test_interrupt_of_a_cell_of_a_notebook_saves_and_the_next_cell_resumes(
    tiny_experiment, tmp_path
):
    from jupyter_client.manager import KernelManager

    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(ROOT))
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        cell = client.execute(
            "import mnist_cnn, runpy\n"
            f"config = runpy.run_path({str(tiny_experiment)!r})['get_config']()\n"
            "config.num_steps = 1_000_000\n"
            f"mnist_cnn.run(config, {str(tmp_path)!r})",
            stop_on_error=False,  # or the kernel may abort a cell that comes too soon after it
        )
        wait_for(lambda: newest_step(tmp_path) >= 20)
        kernel.interrupt_kernel()
        reply = reply_to(client, cell)
        assert reply["ename"] == "KeyboardInterrupt"
        resume = re.search(r"saved\. To resume: (.*)", reply["evalue"])[1]
        steps = newest_step(tmp_path) + 3
        cell = client.execute(f"config.num_steps = {steps}\n{resume}")
        assert reply_to(client, cell)["status"] == "ok"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert result_of(tmp_path)["steps"] == steps
