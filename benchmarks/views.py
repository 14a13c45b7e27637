"""What test-time views change: networks that answer with several views of an image, or with one.

    python -m benchmarks.views EXPERIMENT=RUN [EXPERIMENT=RUN ...]

EXPERIMENT is the file of a model with a method `network`, which computes one view, such as
experiments/accuracy.py; RUN is the directory of its finished run of several seeds. Writes
benchmarks/results/views.json. The networks are finished: the test images choose nothing here.
"""

import argparse
import dataclasses
import json
import pathlib
import runpy
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import mnist_cnn
from mnist_cnn.data.dataset import open_dataset
from mnist_cnn.runner.environment import describe_environment
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.statistics import mean_interval

RECORD = pathlib.Path(__file__).parent / "results" / "views.json"
FORMS = ("all views", "one view")


def one_view(model: nn.Module) -> nn.Module:
    """`model`, which answers with the image alone, as in training."""

    class OneView(type(model)):
        def __call__(self, images, train=False):
            return self.network(images, train)

    fields = [one.name for one in dataclasses.fields(model) if one.name not in ("parent", "name")]
    return OneView(**{name: getattr(model, name) for name in fields})


def measure(experiment: str, workdir: str) -> dict[str, Any]:
    """The correct answers to MNIST's test images, of each network of a run and of all together."""
    images, labels = open_dataset("mnist").read("test")
    config = runpy.run_path(experiment)["get_config"]()
    network = mnist_cnn.load(workdir, config, "all")
    ensemble: Any = network.model
    alone = dataclasses.replace(network, model=ensemble.clone(member=one_view(ensemble.member)))
    environment = RunDirectory(workdir).read("environment.json") or {}
    found = {"experiment": experiment, "seeds": list(network.members), "git": environment["git"]}
    for form, answering in zip(FORMS, (network, alone), strict=True):
        correct = (answering.all_logits(images).argmax(-1) == labels).sum(1).tolist()
        found[form] = {"correct": correct[1:], "ensemble": correct[0]}
    return found | {"examples": len(labels)}


def sentence(found: dict[str, Any]) -> str:
    """What the documents say of the networks of a run with one view, and with all."""
    parts = []
    for form in reversed(FORMS):
        accuracies = 100 * np.array(found[form]["correct"]) / found["examples"]
        together = 100 * found[form]["ensemble"] / found["examples"]
        mean = f"{accuracies.mean():.3f} ± {mean_interval(accuracies):.3f} %"
        parts.append(f"{mean} (all together {together:.2f} %)")
    return f"with one view {parts[0]}, with all {parts[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="EXPERIMENT=RUN")
    arguments = parser.parse_args()
    command = ["python", "-m", "benchmarks.views", *arguments.runs]
    record = {"environment": describe_environment(jax.devices(), command), "runs": []}
    for run in arguments.runs:
        record["runs"].append(measure(*run.split("=", 1)))
        print(run, sentence(record["runs"][-1]), sep="\n", flush=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(RECORD)


if __name__ == "__main__":
    main()
