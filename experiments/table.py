"""The README's table of results, from the records in `experiments/results/`.

    python experiments/table.py

A record holds a run's environment.json and result.json as they were written.
"""

import json
import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
COLUMNS = "experiment", "seeds", "test accuracy", "test loss", "as one ensemble", "time, all seeds"


def row(record):
    environment, result = record["environment"], record["result"]
    mean = result["test_mean"]
    experiment = environment["command"][environment["command"].index("--config") + 1]
    return (
        f"[`{experiment}`]({experiment})",
        str(len(result["seeds"])),
        f"{100 * mean['accuracy']:.2f} ± {100 * mean['ci95']:.2f} %",
        f"{mean['loss']:.4f}",
        f"{100 * result['ensemble']['accuracy']:.2f} %",
        f"{result['seconds']['total'] / 60:.0f} min",
    )


def table():
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, records)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
