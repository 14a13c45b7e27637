"""Runs of one experiment with other seeds, put together as if they had been one run.

    python -m mnist_cnn.join RUN RUN [RUN ...] --workdir DIR

Seeds are trained apart where they would take too long together, or on several machines; a seed
gives the same network either way.  DIR gets the checkpoint and the metrics of all of them; the
experiment's own command then tests them, and finds nothing left to train.

Exit status: 0 done; 1 an error, said in one line; 2 bad usage.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from mnist_cnn import config as config_lib
from mnist_cnn.checkpoint import Checkpoints, Tree
from mnist_cnn.errors import CheckpointError
from mnist_cnn.records import RunDirectory

_NAMES = ("name", "seed", "num_seeds")  # in what the runs may differ


@dataclasses.dataclass(frozen=True)
class _Part:
    """What one run brings."""

    directory: RunDirectory
    config: dict[str, Any]
    step: int
    tree: Tree  # each array [R, ...]
    extra: dict[str, Any]


def join(
    workdirs: Sequence[str | os.PathLike[str]], workdir: str | os.PathLike[str]
) -> Mapping[str, Any]:
    """Writes `workdir` from the newest checkpoints of `workdirs`.

    Args:
      workdirs: run directories, of runs that differ in `name`, `seed` and `num_seeds` alone, have
        come to the same step, and have seeds without a gap between them.
      workdir: a directory that holds no run yet.

    Returns:
      The configuration of all: `seed` is the least of them, `name` that of the run that has it.

    Raises:
      CheckpointError: there is no good checkpoint, or the runs do not belong together.
    """
    parts = sorted(map(_read, workdirs), key=lambda part: part.config["seed"])
    first = parts[0]
    seeds = [part.config["seed"] + n for part in parts for n in range(part.config["num_seeds"])]
    for part in parts:
        _check(part, first)
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise CheckpointError(
            f"{', '.join(str(part.directory) for part in parts)}: got the seeds "
            f"{', '.join(map(str, seeds))}, expected each once and none left out"
        )
    directory = RunDirectory(workdir)
    if directory.read("config.json") is not None:
        raise CheckpointError(f"--workdir {directory}: there is a run already; give another one")
    tree = jax.tree_util.tree_map(
        lambda *leaves: np.concatenate(leaves), *(part.tree for part in parts)
    )
    seconds = {
        key: sum(part.extra["seconds"][key] for part in parts) for key in first.extra["seconds"]
    }
    directory.lock()
    checkpoints = Checkpoints(directory.checkpoints, first.config["keep"])
    checkpoints.save(first.step, tree, {"step": first.step, "seconds": seconds})
    checkpoints.wait()
    checkpoints.close()
    _join_metrics([part.directory for part in parts], directory, first.step)
    config = first.config | {"num_seeds": len(seeds)}
    directory.write("config.json", config)  # last: without it there is no run
    directory.close()
    return config


def _read(workdir: str | os.PathLike[str]) -> _Part:
    directory = RunDirectory(workdir)
    config = directory.read("config.json")
    if config is None:
        raise CheckpointError(f"{directory}: no config.json there, so it is no run directory")
    if config.get("sweep"):
        raise CheckpointError(f"{directory}: a sweep; only seeds of one setting can be joined")
    checkpoints = Checkpoints(directory.checkpoints, keep=None)
    restored = checkpoints.restore(None, report=lambda line: None)
    checkpoints.close()
    if restored is None:
        raise CheckpointError(f"{directory}: no checkpoint there yet; let the run go on first")
    step, tree, extra = restored
    if config["num_seeds"] == 1:
        tree = jax.tree_util.tree_map(lambda leaf: leaf[None], tree)
    return _Part(directory, config, step, tree, extra)


def _check(part: _Part, first: _Part) -> None:
    """They must be of one experiment, at one step, on the same data."""
    alike = part.config | {key: first.config[key] for key in _NAMES}
    differences = config_lib.differences(first.config, alike)
    if part.step != first.step:
        differences.append(f"step: was {first.step:,}, now {part.step:,}")
    data, other = (
        (one.directory.read("environment.json") or {}).get("data", {}).get("sha256")
        for one in (first, part)
    )
    if data != other:
        differences.append("the data files are others")
    if differences:
        raise CheckpointError(
            f"{part.directory} and {first.directory} do not belong together "
            f"({'; '.join(differences)}); give runs that differ in their seeds alone"
        )


def _join_metrics(parts: Sequence[RunDirectory], directory: RunDirectory, step: int) -> None:
    """The lines that all have, each with the numbers of every seed."""
    lines = [
        {
            (line["step"], line["split"]): line
            for line in part.read_metrics()
            if line["split"] != "test"
        }
        for part in parts
    ]
    directory.open_metrics(step)
    for key, line in lines[0].items():
        if all(key in one for one in lines):
            joined = {name: line[name] for name in ("step", "epoch", "split")}
            for name in line.keys() - joined.keys() - {"images_per_second"}:
                joined[name] = [
                    value for one in lines for value in np.atleast_1d(one[key][name]).tolist()
                ]
            directory.log(joined, {"": slice(None)})


def main(arguments: list[str]) -> int:
    from mnist_cnn import command
    from mnist_cnn.errors import ConfigError, printable

    workdir = flags.FLAGS.workdir
    if workdir is None or len(arguments) < 3:
        raise ConfigError("expected RUN RUN [RUN ...] --workdir DIR; see --helpshort")
    command.silence_libraries()
    config = join(arguments[1:], workdir)
    print(
        f"{printable(str(workdir))}: {config['num_seeds']} seeds from {config['seed']}; to test "
        f"them, the experiment's command with --config.seed={config['seed']} "
        f"--config.num_seeds={config['num_seeds']} --workdir={printable(str(workdir))}"
    )
    return 0


if __name__ == "__main__":  # the flags are the command's alone: importing this module adds none
    from mnist_cnn import command

    flags.DEFINE_string("workdir", None, "The directory to write.")
    command.command(main, command.parse_flags)
