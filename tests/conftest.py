"""Shared by the tests: small real data, quick experiments, finished runs and processes."""

import fcntl
import gzip
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest
import typechecker

ROOT = pathlib.Path(__file__).parents[1]
MNIST = ROOT / "mnist_cnn" / "data" / "mnist"
CHROMIUM = pathlib.Path("/usr/bin/chromium")

typechecker.install()

# Some claims hold for CPUs only: the same bits alone and among others, eight devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A run in this process needs JAX to have started with the threads of the runs in others.
os.environ.setdefault("NPROC", "2")

# `nohup` ignores it, and the tests' processes would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# One hidden layer: trains in a second, for claims that do not depend on the network.
TINY_EXPERIMENT = """
import mnist_cnn
from flax import linen as nn

class Tiny(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.relu(nn.Dense(16)(images.reshape(images.shape[0], -1))))

def get_config():
    return mnist_cnn.experiment(
        name="tiny", model=Tiny(), manual_dir={manual_dir!r}, batch_size=30, num_steps=40,
        log_every=7, checkpoint_every=10, eval_batch_size=100, report=False,
    )
"""


def read_idx(name):
    """The array of one of the embedded files."""
    content = gzip.decompress((MNIST / f"{name}.gz").read_bytes())
    return np.frombuffer(content[16:], np.uint8).reshape(-1, 28, 28, 1) if "images" in name else (
        np.frombuffer(content[8:], np.uint8)
    )  # fmt: skip


def shared_folder(tmp_path_factory):
    """The temporary folder of all workers of this session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def prepared_datasets(tmp_path_factory):
    """The folder of tfds for the whole session, so that no test touches the user's."""
    folder = shared_folder(tmp_path_factory) / "tensorflow_datasets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory):
    return make_small_mnist(tmp_path_factory.mktemp("small") / "mnist")


def make_small_mnist(folder):
    """Writes a manual_dir: the first 500 training and 250 test images as uncompressed IDX files."""
    folder.mkdir()
    for part, count in (("train", 500), ("t10k", 250)):
        images = read_idx(f"{part}-images-idx3-ubyte")[:count]
        labels = read_idx(f"{part}-labels-idx1-ubyte")[:count]
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([2049, count], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


def repack(source, folder, form):
    """Copies a manual_dir to `folder`: "zipped" (with a header of its own), or "renamed"."""
    folder.mkdir()
    for path in source.iterdir():
        if form == "renamed":
            shutil.copy(path, folder / path.name.replace("-idx", ".idx"))
            continue
        with (
            open(folder / f"{path.name}.gz", "wb") as file,
            gzip.GzipFile("another name", "wb", 1, file, mtime=12345) as packed,
        ):
            packed.write(path.read_bytes())
    return folder


def with_another_pixel(source, folder):
    """Copies a manual_dir of uncompressed files, and changes a pixel of a training image by 1."""
    shutil.copytree(source, folder)
    path = folder / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def tiny_experiment(small_mnist, tmp_path_factory):
    """An experiment file of 40 steps."""
    path = tmp_path_factory.mktemp("experiments") / "tiny.py"
    path.write_text(TINY_EXPERIMENT.format(manual_dir=str(small_mnist)))
    return path


@pytest.fixture(scope="session")
def undisturbed(tiny_experiment, tmp_path_factory):
    """The run directory, output and error output of `tiny_experiment`, run without interruption.

    Its compile cache is `cache` in the same folder. Copy the directory before writing into it.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    workdir = folder / "run"
    out, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", workdir,
        XDG_CACHE_HOME=str(folder / "cache"),
    )  # fmt: skip
    return workdir, out, err


@pytest.fixture
def unfinished(undisturbed, tmp_path):
    """A copy of that run directory as a kill after the last checkpoint would leave it."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    (workdir / "result.json").unlink()
    return workdir


@pytest.fixture(scope="session")
def trained_base(tmp_path_factory):
    """The run directory of the base network after 200 steps: about 96 % accurate."""
    folder = shared_folder(tmp_path_factory)  # one worker trains, the others wait
    with open(folder / "trained_base.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(
            "mnist_cnn.main", "--config", "experiments/base.py", "--config.num_steps=200",
            "--config.report=False", "--workdir", folder / "trained_base",
        )  # fmt: skip
    return folder / "trained_base"


def pytest_collection_modifyitems(items):
    """One worker trains the base network while the others have something else to do."""
    users = list(dict.fromkeys(i.path for i in items if "trained_base" in i.fixturenames))
    items.sort(key=lambda item: item.path in users and (-1 if item.path == users[0] else 1))


@pytest.fixture(scope="module")  # the event loop of playwright disturbs other modules
def browser(tmp_path_factory):
    """A real browser that sends no requests by itself; `browser.new_page()`."""
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"), executable_path=CHROMIUM,
            args=[
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-sync", "--disable-background-networking", "--disable-component-update",
            ],
        )  # fmt: skip
        yield context
        context.close()


def start(*arguments, cwd=ROOT, **environment):
    """Starts `python -m ...` in a process of its own; `finish` waits for it."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd, env=os.environ | environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, status=0):
    """Waits for a process and checks its exit status; returns its output and error output."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
    return out, err


def run(*arguments, status=0, **options):
    """Starts `python -m ...` and waits for it: its output and error output."""
    return finish(start(*arguments, **options), status)


def imported_by(*arguments, status=0):
    """The modules that a command has imported when it ends, as all commands do, by os._exit."""
    with tempfile.TemporaryDirectory() as folder:
        names = pathlib.Path(folder, "names")
        pathlib.Path(folder, "sitecustomize.py").write_text(
            "import os, pathlib, sys\n"
            "def write_and_exit(status, exit=os._exit):\n"
            f"    pathlib.Path({str(names)!r}).write_text('\\n'.join(sys.modules))\n"
            "    exit(status)\n"
            "os._exit = write_and_exit\n"
        )
        run(*arguments, status=status, PYTHONPATH=folder)
        return set(names.read_text().splitlines())


def result_of(workdir):
    return json.loads((pathlib.Path(workdir) / "result.json").read_text())


def newest_step(workdir):
    """The step of the newest checkpoint; 0 if there is none."""
    folders = (pathlib.Path(workdir) / "checkpoints").glob("[0-9]*")
    return max((int(path.name) for path in folders if path.name.isdigit()), default=0)


def metrics_of(workdir):
    """The lines of metrics.jsonl, without the values that depend on the clock."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [{k: v for k, v in e.items() if k != "images_per_second"} for e in entries]


def same_end(workdir, other):
    """Asserts that two runs have the same parameters to the last bit, result and metrics."""
    ours, theirs = result_of(workdir), result_of(other)
    for result in (ours, theirs):
        del result["seconds"]
    assert ours == theirs
    assert metrics_of(workdir) == metrics_of(other)


def wait_for(condition, seconds=120):
    """Waits until `condition()` is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true after {seconds} seconds"
        time.sleep(0.01)
    return value


def config_of(experiment, **changes):
    """The configuration of an experiment file with some fields changed, to run in this process."""
    config = runpy.run_path(str(experiment), run_name="experiment")["get_config"]()
    with config.ignore_type():
        config.update(changes)
    return config


@pytest.fixture(scope="session")
def hundred_images():
    """The first 100 test images of MNIST, on the device."""
    from mnist_cnn.training.batches import Split

    images = read_idx("t10k-images-idx3-ubyte")[:100]
    labels = read_idx("t10k-labels-idx1-ubyte")[:100].astype(np.int32)
    return Split(*jax.device_put((images, labels)))
