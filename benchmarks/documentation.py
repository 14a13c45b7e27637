"""Makes the outputs and the pictures that the documents show again.

    python -m benchmarks.documentation

It runs the documented commands in runs/documentation, writes what they print to
benchmarks/results/documentation.json, and the pictures to docs/images. It needs the extras `test`
and `demo` and Chromium, and takes 10 minutes on 2 cores. A test compares the documents with the
record. The pictures of the other records are drawn again from these.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax

from benchmarks import plot, results_plot
from mnist_cnn.runner.environment import describe_environment

ROOT = pathlib.Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "documentation.json"
TRAINING = RECORD.with_name("training.json")
IMAGES = ROOT / "docs" / "images"
RUNS = "runs/documentation/"
BASE = "main --config experiments/base.py"
COMMANDS = (  # of the package, in this order
    f"{BASE} --workdir runs/base",
    "main --config experiments/mlp.py --workdir runs/mlp",
    "report --workdir runs/base runs/mlp --output runs/comparison.html",
    "evaluate --workdir runs/base",
    f"{BASE} --config.num_steps=100 --config.profile=True --workdir runs/profile",
    "main --config experiments/learning_rate_sweep.py --config.num_steps=300 --workdir runs/sweep",
)
PAGES = {  # picture -> (page, width, height)
    "report": ("base/report.html", 1000, 1330),
    "comparison": ("comparison.html", 1000, 1250),
    "sweep": ("sweep/report.html", 750, 1005),
}


def main() -> None:
    shutil.rmtree(ROOT / RUNS, ignore_errors=True)
    outputs = {}
    for command in COMMANDS:
        print(f"python -m mnist_cnn.{command}", flush=True)
        arguments = [word.replace("runs/", RUNS) for word in command.split()]
        words = [sys.executable, "-m", f"mnist_cnn.{arguments[0]}", *arguments[1:]]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        outputs[command] = done.stdout.replace(RUNS, "runs/").splitlines()
    environment = describe_environment(jax.devices(), ["python", "-m", "benchmarks.documentation"])
    record = {"environment": environment, "outputs": outputs}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    for name, (page, width, height) in PAGES.items():
        screenshot((ROOT / RUNS / page).as_uri(), IMAGES / f"{name}.png", width, height)
    with tensorboard() as address:
        screenshot(
            f"{address}?tagFilter=train#timeseries",
            IMAGES / "tensorboard.png",
            1200,
            560,
            seconds=8,
        )
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "tests/commands/test_demo.py",
        "-k",
        "drawn",
    ]
    target = {"DEMO_SCREENSHOT": str(IMAGES / "demo.png")}
    subprocess.run(pytest, cwd=ROOT, env=os.environ | target, check=True)
    results_plot.draw(results_plot.PATH)
    plot.draw(json.loads(TRAINING.read_text()), IMAGES / "training.png")
    pictures = [sys.executable, "tests/pictures.py", str(IMAGES / "pictures.png")]
    subprocess.run(pictures, cwd=ROOT, check=True)


def screenshot(address: str, path: pathlib.Path, width: int, height: int, seconds: int = 1) -> None:
    """Writes the top of a page, after the seconds that it takes to draw itself."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch_persistent_context(
            folder, executable_path="/usr/bin/chromium",
            args=["--headless", "--no-sandbox", "--disable-gpu"],
        )  # fmt: skip
        page = browser.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.goto(address)
        page.wait_for_timeout(1000 * seconds)
        page.screenshot(path=path)
        browser.close()


@contextlib.contextmanager
def tensorboard() -> Iterator[str]:
    """Serves the runs of base and mlp; the address."""
    folder = ROOT / RUNS / "tensorboard"
    for name in ("base", "mlp"):
        ignore = shutil.ignore_patterns("checkpoints")
        shutil.copytree(ROOT / RUNS / name, folder / name, ignore=ignore)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        for _ in range(60):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(1)
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
