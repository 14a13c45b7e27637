"""Memory and speed of a training on 1,000,000 images of 28x28, beside MNIST's 60,000.

    python -m benchmarks.many_images

The images are MNIST's, shifted by up to two pixels. The first training on them prepares them, the
others read what was prepared. The command needs 3 GB of disk. It prints the peaks of the memory
and the ratio of the speeds, and writes many_images.json, which docs/devices-and-hosts.md quotes.
Run nothing else meanwhile.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import record
from mnist_cnn.data.dataset import open_dataset

IMAGES, STEPS = 1_000_000, 300


def write_images(folder: pathlib.Path) -> None:
    """Writes the IDX files of IMAGES training images, and of MNIST's test images."""
    dataset = open_dataset("mnist")
    for name, split, count in (("train", "train", IMAGES), ("t10k", "test", 10_000)):
        images, labels = dataset.read(split)
        with open(folder / f"{name}-images-idx3-ubyte", "wb") as file:
            file.write(np.array([0x803, count, 28, 28], ">u4").tobytes())
            for start in range(0, count, len(images)):
                number = start // len(images)
                moved = np.roll(images, (number % 5, number // 5), (1, 2))
                file.write(moved[: count - start].tobytes())
        content = np.array([0x801, count], ">u4").tobytes()
        content += np.resize(labels, count).astype(np.uint8).tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(content)


def train(folder: pathlib.Path, *arguments: str) -> dict[str, float]:
    """Peak of the memory in GB, and images a second of the steps, of a training."""
    workdir = folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_cnn.main", "--config=experiments/base.py",
         f"--config.num_steps={STEPS}", "--config.report=False", f"--workdir={workdir}",
         *arguments],
        cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.DEVNULL,
        env=os.environ | {"TFDS_DATA_DIR": str(folder / "prepared")},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the training on {arguments} failed")
    seconds = json.loads((workdir / "result.json").read_text())["seconds"]["train"]
    return {"peak_gb": usage.ru_maxrss * 1024 / 1e9, "images_per_second": 32 * STEPS / seconds}


def sentence(found: dict[str, Any]) -> str:
    """What docs/devices-and-hosts.md says of the record."""
    peak = max(one["peak_gb"] for one in found["many"])
    pairs = zip(found["many"], found["mnist"], strict=True)
    ratio = statistics.median(a["images_per_second"] / b["images_per_second"] for a, b in pairs)
    return (
        f"{IMAGES:,} images of 28x28 took {found['prepared']['peak_gb']:.1f} GB at the peak when "
        f"they were prepared for the first time, {peak:.1f} GB after that, and were trained on at "
        f"{ratio:.2f} of the speed of MNIST's 60,000"
    )


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=5)
    found: dict[str, Any] = {"environment": record.environment("many_images", arguments)}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_images(folder)
        many = f"--config.manual_dir={folder}"
        found["prepared"] = train(folder, many)
        found["many"], found["mnist"] = [], []
        for _ in range(arguments.rounds):
            found["many"].append(train(folder, many))
            found["mnist"].append(train(folder))
    print(sentence(found))
    print(record.write("many_images", arguments, found))


if __name__ == "__main__":
    main()
