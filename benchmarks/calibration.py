"""What a temperature changes: prints the table of docs/reports.md, and writes its record.

    python -m benchmarks.calibration RUN [RUN ...]

RUN is the directory of a finished run with a validation_split.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_cnn.runner.run_directory import RunDirectory

RECORD = pathlib.Path(__file__).parent / "results" / "calibration.json"
HEAD = (
    "experiment", "seeds", "test accuracy", "NLL", "ECE",
    "temperature", "NLL with it", "ECE with it",
)  # fmt: skip


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds in Markdown; of the temperature also the standard deviation."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for run in runs:
        result = run["result"]
        mean, found = result["test_mean"], result["calibrated"]
        temperatures = np.array(found["temperature"])
        lines.append(
            (
                f"`{result['experiment']}.py`",
                str(len(result["seeds"])),
                f"{100 * mean['accuracy']:.2f} ± {100 * mean['ci95']:.2f} %",
                f"{mean['loss']:.4f}",
                f"{100 * mean['expected_calibration_error']:.2f} %",
                f"{temperatures.mean():.3f} (SD {temperatures.std(ddof=1):.3f})",
                f"{np.mean(found['negative_log_likelihood']):.4f}",
                f"{100 * np.mean(found['expected_calibration_error']):.2f} %",
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    directories = map(RunDirectory, parser.parse_args().runs)
    runs = [
        {"environment": one.read("environment.json"), "result": one.read_result()}
        for one in directories
    ]
    RECORD.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    print(table(runs), RECORD, sep="\n")


if __name__ == "__main__":
    main()
