"""Which test images of MNIST networks miss, whatever their experiment: a picture and a record.

    python -m benchmarks.missed RUN [RUN ...]

RUN is the directory of a finished run, of which all networks count, or "digits", the network of the
package. Writes benchmarks/results/missed.json and docs/images/missed.png. The test images choose
nothing here: the networks are finished.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import mnist_cnn
from mnist_cnn.analysis import finished_runs, mosaics, packaged
from mnist_cnn.data import doubtful
from mnist_cnn.data.dataset import open_dataset
from mnist_cnn.runner.environment import describe_environment

ROOT = pathlib.Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "missed.json"
PICTURE = ROOT / "docs" / "images" / "missed.png"


def answers_of(workdir: str, images: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """What the networks of a run are, and their answers [R, N] to MNIST's test images."""
    if workdir == packaged.PACKAGED:
        network = mnist_cnn.load(workdir)
        found = {"experiment": network.config["name"], "seeds": [network.seed]}
        return found, network(images).argmax(-1)[None]
    run = finished_runs.read(workdir)
    if not run.tested or not len(run.doubtful):
        raise SystemExit(f"{workdir}: expected a finished run, tested on MNIST's test images")
    commit = (run.environment.get("git") or {}).get("commit")
    found = {"experiment": run.config["name"], "seeds": run.seeds, "commit": commit}
    return found, run.predictions.logits.argmax(-1)


def measure(workdirs: Sequence[str]) -> dict[str, Any]:
    """The networks, the images that most of each run miss, and how many miss each doubtful one."""
    images, labels = open_dataset("mnist").read("test")
    networks, answers = [], []
    for workdir in workdirs:
        network, found = answers_of(workdir, images)
        wrong = found != labels
        in_doubt = wrong[:, list(doubtful.votes())]
        counts = {"missed": wrong.sum(1).tolist(), "missed_in_doubt": in_doubt.sum(1).tolist()}
        networks.append(network | counts)
        answers.append(found)
    every = np.concatenate(answers)
    missed = np.all([(found != labels).mean(0) > 0.5 for found in answers], axis=0)
    votes = doubtful.votes()

    def describe(index: int) -> dict[str, Any]:
        counts = np.bincount(every[every[:, index] != labels[index], index], minlength=10)
        common = {"answer": int(counts.argmax()), "answered": int(counts.max())}
        found = {"index": index, "label": int(labels[index]), **common, "doubtful": index in votes}
        return found | {"missed": int((every[:, index] != labels[index]).sum())}

    return {
        "networks": networks,
        "missed": [describe(int(index)) for index in np.flatnonzero(missed)],
        "doubtful": [describe(index) for index in votes],
    }


def sentence(record: dict[str, Any]) -> str:
    """What the documents say of a record."""
    networks, missed, in_doubt = (record[key] for key in ("networks", "missed", "doubtful"))
    count = sum(len(network["seeds"]) for network in networks)
    by_all = sum(image["missed"] == count for image in missed)
    misses = [f"{np.mean(one['missed_in_doubt']):.3g} ({one['experiment']})" for one in networks]
    some = sum(image["doubtful"] for image in missed)
    return (
        f"In each of the {len(networks)} experiments most networks miss these {len(missed)} "
        f"images, {some} of them with a label in doubt; all {count} networks miss {by_all} of "
        f"them. Of the {len(in_doubt)} images in doubt a network misses on average "
        f"{', '.join(misses[:-1])} and {misses[-1]}."
    )


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
    """Each of the missed images, with its label and the most common wrong answer."""
    images = open_dataset("mnist").read("test")[0][..., 0]
    count = sum(len(network["seeds"]) for network in record["networks"])
    shown = [
        mosaics.Captioned(
            images[image["index"]],
            f"{image['label']}{'?' * image['doubtful']} answered as {image['answer']}",
            f"no. {image['index']}: {image['answered']} of {count}",
            image["doubtful"],
        )
        for image in record["missed"]
    ]
    path.write_bytes(mosaics.image_grid("Missed images", "", shown).light)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    arguments = parser.parse_args()
    command = ["python", "-m", "benchmarks.missed", *arguments.runs]
    found = {"environment": describe_environment(jax.devices(), command)}
    found |= measure(arguments.runs)
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, PICTURE)
    print(sentence(found), RECORD, PICTURE, sep="\n")


if __name__ == "__main__":
    main()
