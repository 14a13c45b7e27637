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
from mnist_cnn import statistics
from mnist_cnn.runner import results

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


def table(sweeps: dict[str, Any]) -> str:
    """Both sweeps, in Markdown: validation accuracy, and the step at which halving ended."""
    lines = ["| setting | the grid | halving | ended at step |", "| --- | --- | --- | --- |"]
    pairs = zip(*(sweeps[method]["settings"] for method in METHODS), strict=True)
    for index, (whole, halved) in enumerate(pairs):
        accuracies = []
        for method, entry in zip(METHODS, (whole, halved), strict=True):
            mean = entry.get("validation_mean")
            text = "diverged"
            if mean:
                accuracy, half = mean["accuracy"], mean["ci95"]
                possible = statistics.is_possible(accuracy - half, accuracy + half)
                text = f"{100 * accuracy:.2f}" + f" ± {100 * half:.2f}" * possible + " %"
            accuracies.append(text + ", chosen" * (index == sweeps[method]["chosen"]))
        cells = (results.setting_label(whole["setting"]), *accuracies, f"{halved['steps']:,}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=1)
    found = {method: sweep(method) for method in METHODS}
    environment = record.environment("halving", arguments)
    record.write("halving", arguments, {"environment": environment, "sweeps": found})
    print(table(found))


if __name__ == "__main__":
    main()
