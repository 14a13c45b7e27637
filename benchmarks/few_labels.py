"""What few labels cost: the base experiment on 10, 100 and 1,000 images of each class, and on all.

    python -m benchmarks.few_labels

Five seeds of each, 500 steps of 32 images whatever their number, so only the number of different
images differs. The command prints the mean test accuracies, and writes few_labels.json;
docs/few-labels-and-folds.md has its table.
"""

import tempfile
from typing import Any

import mnist_cnn
from benchmarks import record
from mnist_cnn.parallel import threads
from mnist_cnn.parallel.devices import find_devices

KEPT = ("seeds", "training_images", "steps", "test", "test_mean", "params_sha256")
LABELS, SEEDS, STEPS = (10, 100, 1000, None), 5, 500


def result_of(labels_per_class: int | None) -> dict[str, Any]:
    """Of result.json of the seeds on that number of images of each class; None: on all."""
    config = mnist_cnn.experiment(
        labels_per_class=labels_per_class, num_seeds=SEEDS, num_steps=STEPS, report=False
    )
    with tempfile.TemporaryDirectory() as folder:
        result = mnist_cnn.run(config, f"{folder}/run", quiet=True)
    return {key: result[key] for key in KEPT}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Mean test accuracies with their 95 % confidence intervals, of the records by their name."""
    lines = ["| `labels_per_class` | training images | test accuracy |", "| --- | --- | --- |"]
    for name, result in found.items():
        mean = result["test_mean"]
        accuracy = f"{100 * mean['accuracy']:.2f} ± {100 * mean['ci95']:.2f} %"
        lines.append(f"| {name} | {result['training_images']:,} | {accuracy} |")
    return "\n".join(lines)


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=1)
    find_devices(threads.default())  # with the threads of the runs
    environment = record.environment("few_labels", arguments)
    found = {"None" if few is None else f"{few:,}": result_of(few) for few in LABELS}
    print(table(found))
    path = record.write("few_labels", arguments, {"environment": environment, "results": found})
    print(path)


if __name__ == "__main__":
    main()
