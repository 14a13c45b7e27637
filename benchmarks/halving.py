"""Successive halving beside the whole grid: experiments/learning_rate_sweep.py with 300 steps.

python -m benchmarks.halving
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import record
from mnist_cnn.runner.console import Console

METHODS = ("grid", "halving")
COMMAND = "--config experiments/learning_rate_sweep.py --config.num_steps=300".split()
_ROOT = pathlib.Path(__file__).parents[1]


def sweep(method: str) -> dict[str, Any]:
    """What result.json has of the sweep."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "mnist_cnn.main", *COMMAND, "--config.report=False"]
        program += [f"--config.sweep_method={method}", f"--workdir={folder}/run"]
        subprocess.run(program, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(pathlib.Path(folder, "run", "result.json").read_text())["sweep"]
    for entry in found["settings"]:
        entry.pop("validation", None)
    return found


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=1)
    found = {method: sweep(method) for method in METHODS}
    environment = record.environment("halving", arguments)
    record.write("halving", arguments, {"environment": environment, "sweeps": found})
    for method in METHODS:
        Console().sweep(found[method])


if __name__ == "__main__":
    main()
