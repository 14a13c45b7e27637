"""Runs of one experiment with different seeds, joined as if they had been one run."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mnist_cnn import config as config_lib
from mnist_cnn.data.dataset import is_same_data
from mnist_cnn.errors import CheckpointError
from mnist_cnn.files import local_path
from mnist_cnn.parallel.devices import find_devices
from mnist_cnn.runner import recorded_config
from mnist_cnn.runner.checkpoint import Checkpoints, Tree, read_newest
from mnist_cnn.runner.run_directory import RunDirectory

_MAY_DIFFER = ("name", "seed", "num_seeds", "manual_dir")  # data is compared by SHA-256
_SHARED_METRICS = ("step", "epoch", "split", "examples")  # the others have a value for each seed


@dataclasses.dataclass(frozen=True)
class _Part:
    """One of the runs to join."""

    directory: RunDirectory
    config: dict[str, Any]
    environment: dict[str, Any]
    seeds: list[int]
    step: int
    tree: Tree  # each array [R, ...]
    seconds: dict[str, float]
    other_sums: dict[str, list[float]]  # of an experiment's own metrics, [R] each


def join(
    workdirs: Sequence[str | os.PathLike[str]],
    workdir: str | os.PathLike[str],
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes `workdir` from the newest good checkpoints of `workdirs`, completely or not at all.

    On processors of one kind a seed gives the same network, alone or among others. The experiment,
    resumed in `workdir`, tests all networks. The runs may differ in `name`, `seed`, `num_seeds`,
    `manual_dir` and fields that change no parameters; they are at the same step, and their seeds
    are consecutive. `report` receives a line for each damaged checkpoint, and a note if the
    experiment files of the runs differ.

    Returns the configuration: that of the run with the lowest seed, except `num_seeds`. Raises
    CheckpointError if a run has no good checkpoint, the runs do not belong together, or `workdir`
    exists.
    """
    path = local_path(workdir, "--workdir").absolute()
    if path.exists():
        raise CheckpointError(f"--workdir {workdir}: it exists already; give another directory")
    find_devices()  # Orbax uses them
    parts = sorted((_read(one, report) for one in workdirs), key=lambda part: part.config["seed"])
    for part in parts[1:]:
        _check_same_experiment(part, parts[0])
    seeds = [seed for part in parts for seed in part.seeds]
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise CheckpointError(
            f"{', '.join(str(part.directory) for part in parts)}: got the seeds "
            f"{', '.join(map(str, seeds))}, expected consecutive seeds, each once"
        )
    digests = {part.environment.get("experiment", {}).get("sha256") for part in parts} - {None}
    if len(digests) > 1:
        report("note: the experiment files of the runs differ (experiment-*.py); compare them")
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        config = _write(parts, RunDirectory(unfinished))
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return config


def _read(workdir: str | os.PathLike[str], report: Callable[[str], None]) -> _Part:
    directory = RunDirectory(workdir)
    config = config_lib.DEFAULTS | directory.read_config()
    if config["sweep"] or config["variants"]:
        raise CheckpointError(f"{directory}: a sweep; only seeds of one setting can be joined")
    named = lambda line: report(f"{directory}: {line}")  # noqa: E731
    step, tree, extra = read_newest(directory.checkpoints, None, named)
    if config["num_seeds"] == 1:
        tree = jax.tree.map(lambda leaf: leaf[None], tree)
    environment = directory.read("environment.json") or {}
    seeds = [replica.seed for replica in config_lib.replicas(config)]
    sums = extra.get("metrics", {})
    return _Part(directory, config, environment, seeds, step, tree, extra["seconds"], sums)


def _check_same_experiment(part: _Part, first: _Part) -> None:
    """Raises CheckpointError if experiment, data or step differ."""
    comparable = part.config | {key: first.config[key] for key in _MAY_DIFFER}
    differences = recorded_config.differences(first.config, comparable)
    if not is_same_data(*(one.environment.get("data", {}) for one in (part, first))):
        differences.append("their images or labels differ")
    threads = [one.environment.get("num_threads") for one in (first, part)]
    if None not in threads and threads[0] != threads[1]:
        differences.append("num_threads: was {}, now {}".format(*threads))
    if differences:
        raise CheckpointError(
            f"{first.directory} and {part.directory} do not belong together "
            f"({'; '.join(differences)}); give runs that differ only in their seeds"
        )
    if part.step != first.step:
        raise CheckpointError(
            f"{first.directory} is at step {first.step:,}, {part.directory} at {part.step:,}; "
            + (
                "with `patience` each run may end at a step of its own; train the seeds in one run"
                if first.config["patience"] is not None
                else "resume the shorter run first"
            )
        )


def _write(parts: Sequence[_Part], directory: RunDirectory) -> dict[str, Any]:
    """Writes the joined run, and returns its configuration."""
    first, joined = parts[0], []
    config = first.config | {"num_seeds": sum(len(part.seeds) for part in parts)}
    tree = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.tree for part in parts))
    seconds = {key: sum(part.seconds[key] for part in parts) for key in first.seconds}
    extra = {"step": first.step, "seconds": seconds}
    if names := set.intersection(*(set(part.other_sums) for part in parts)):
        extra["metrics"] = {
            name: [total for part in parts for total in part.other_sums[name]]
            for name in sorted(names)
        }
    with contextlib.closing(Checkpoints(directory.checkpoints, keep=1)) as checkpoints:
        checkpoints.save(first.step, tree, extra)
        checkpoints.wait()
    directory.write("config.json", config)
    for part in parts:
        origin = {"workdir": str(part.directory), "seeds": part.seeds}
        joined.append(origin | {"environment": part.environment})
        for kept in part.directory.path.glob("experiment-*.py"):
            shutil.copy(kept, directory.path)
    directory.write("environment.json", first.environment | {"joined": joined})
    with contextlib.closing(directory):
        directory.open_metrics(first.step, first.step)
        for entry in _joined_metrics(parts):
            directory.log(entry, {"": slice(None)})
    return config


def _joined_metrics(parts: Sequence[_Part]) -> Iterator[dict[str, Any]]:
    """The lines that all runs have, with a list over the seeds for each metric.

    Training metrics are means since the previous line, so they are left out if the runs logged
    at different steps; so is the speed, because the networks were not trained together.
    """
    same_steps = len({part.config["log_every"] for part in parts}) == 1
    splits = ("train", "validation") if same_steps else ("validation",)
    metrics = [
        {(entry["step"], entry["split"]): entry for entry in part.directory.read_metrics()}
        for part in parts
    ]
    for key in metrics[0]:
        if key[1] not in splits or not all(key in one for one in metrics):
            continue
        entries = [one[key] for one in metrics]
        joined = {}
        for name, value in entries[0].items():
            if name in _SHARED_METRICS:
                joined[name] = value
            elif name != "images_per_second" and all(name in entry for entry in entries):
                lists = [np.atleast_1d(entry[name]) for entry in entries]
                joined[name] = np.concatenate(lists).tolist()
        yield joined
