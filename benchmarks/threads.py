"""What more or fewer threads than cores cost: the base experiment with 1 to 8, on 1 and 2 cores.

    python -m benchmarks.threads

Every round runs each number once, in turn. The command prints images a second, and writes
threads.json; docs/devices-and-hosts.md has its table. Run nothing else meanwhile. It needs
`taskset`, and two cores.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import record

CORES, THREADS, STEPS = (1, 2), (1, 2, 4, 8), 200


def images_per_second(cores: int, num_threads: int) -> tuple[float, str]:
    """The rate of the base experiment's training, and the SHA-256 of its parameters."""
    with tempfile.TemporaryDirectory() as folder:
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
        subprocess.run(
            ["taskset", "-c", allowed, sys.executable, "-m", "mnist_cnn.main",
             "--config=experiments/base.py", f"--config.num_steps={STEPS}",
             f"--config.num_threads={num_threads}", "--config.report=False",
             f"--workdir={folder}/run"],
            cwd=pathlib.Path(__file__).parents[1], check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        result = json.loads(pathlib.Path(folder, "run", "result.json").read_text())
    return 32 * STEPS / result["seconds"]["train"], result["params_sha256"][0]


def table(found: dict[str, Any]) -> str:
    """Median images a second, and of the rounds' ratios to two threads on the same cores."""
    lines = [
        f"| cores | threads: {' | '.join(map(str, THREADS))} |",
        "| --- |" + " --- |" * len(THREADS),
    ]
    for cores, row in found["images_per_second"].items():
        cells = [cores]
        for values in row.values():
            ratios = [one / two for one, two in zip(values, row["2"], strict=True)]
            cells.append(f"{statistics.median(values):,.0f} ({statistics.median(ratios):.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=10)
    rates: dict[str, dict[str, list[float]]] = {
        str(cores): {str(count): [] for count in THREADS} for cores in CORES
    }
    digests: dict[str, set[str]] = {str(count): set() for count in THREADS}
    for _ in range(arguments.rounds):
        for cores in CORES:
            for count in THREADS:
                rate, digest = images_per_second(cores, count)
                rates[str(cores)][str(count)].append(rate)
                digests[str(count)].add(digest)
    found = {
        "environment": record.environment("threads", arguments),
        "images_per_second": rates,
        "params_sha256": {count: sorted(digests[count]) for count in digests},
    }
    print(table(found))
    print(record.write("threads", arguments, found))


if __name__ == "__main__":
    main()
