"""Runs of one experiment with other seeds, put together as if they had been one run.

    python -m mnist_cnn.join RUN RUN [RUN ...] --workdir DIR

Seeds are trained apart where they would take too long together, or on several machines; on
machines of one kind a seed gives the same network either way.  DIR gets the checkpoint and the
metrics of all of them; the experiment's own command then goes on there: of finished runs nothing
is left to train, and it tests them.

Exit status: 0 done; 1 an error, said in one line; 2 bad usage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from mnist_cnn import config as config_lib
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner.checkpoint import Checkpoints, Tree
from mnist_cnn.runner.run_directory import RunDirectory

_MAY_DIFFER = ("name", "seed", "num_seeds", "manual_dir")  # of the data the SHA-256 is compared
_OF_ALL = ("step", "epoch", "split", "examples")  # what a line of metrics has once


@dataclasses.dataclass(frozen=True)
class _Part:
    """What one run brings."""

    directory: RunDirectory
    config: dict[str, Any]
    environment: dict[str, Any]
    step: int
    tree: Tree  # each array [R, ...]
    seconds: dict[str, float]

    @property
    def seeds(self) -> list[int]:
        return [self.config["seed"] + n for n in range(self.config["num_seeds"])]


def join(
    workdirs: Sequence[str | os.PathLike[str]],
    workdir: str | os.PathLike[str],
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Makes `workdir`, whole or not at all, of the newest good checkpoints of `workdirs`.

    Args:
      workdirs: run directories, of runs that differ in `name`, `seed`, `num_seeds` and
        `manual_dir` alone, have come to the same step, and have seeds without a gap between them.
      workdir: a directory that is not there yet.
      report: is told of a damaged checkpoint.

    Returns:
      The configuration of all: that of the run with the least seed, but for `num_seeds`.

    Raises:
      CheckpointError: there is no good checkpoint, or the runs do not belong together, or
        `workdir` is there.
    """
    path = pathlib.Path(workdir).absolute()
    if path.exists():
        raise CheckpointError(f"--workdir {workdir}: it is there already; give another directory")
    parts = sorted((_read(one, report) for one in workdirs), key=lambda part: part.config["seed"])
    for part in parts[1:]:
        _check(part, parts[0])
    seeds = [seed for part in parts for seed in part.seeds]
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise CheckpointError(
            f"{', '.join(str(part.directory) for part in parts)}: got the seeds "
            f"{', '.join(map(str, seeds))}, expected each once and none left out"
        )
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
    saved = directory.read("config.json")
    if saved is None:
        raise CheckpointError(f"{directory}: no config.json there, so it is no run directory")
    config = {key: field.default for key, field in config_lib.FIELDS.items()} | saved
    if config["sweep"]:
        raise CheckpointError(f"{directory}: a sweep; only seeds of one setting can be joined")
    checkpoints = Checkpoints(directory.checkpoints, keep=None)
    restored = checkpoints.restore(None, lambda line: report(f"{directory}: {line}"))
    checkpoints.close()
    if restored is None:
        raise CheckpointError(f"{directory}: no checkpoint there yet; let the run go on first")
    step, tree, extra = restored
    if config["num_seeds"] == 1:
        tree = jax.tree_util.tree_map(lambda leaf: leaf[None], tree)
    environment = directory.read("environment.json") or {}
    return _Part(directory, config, environment, step, tree, extra["seconds"])


def _check(part: _Part, first: _Part) -> None:
    """They must be of one experiment, on the same data, at one step."""
    alike = part.config | {key: first.config[key] for key in _MAY_DIFFER}
    differences = config_lib.differences(first.config, alike)
    if first.environment.get("data", {}).get("sha256") != (
        part.environment.get("data", {}).get("sha256")
    ):
        differences.append("the data files are others")
    if differences:
        raise CheckpointError(
            f"{first.directory} and {part.directory} do not belong together "
            f"({'; '.join(differences)}); give runs that differ in their seeds alone"
        )
    if part.step != first.step:
        raise CheckpointError(
            f"{first.directory} has come to step {first.step:,}, {part.directory} to "
            f"{part.step:,}; let the shorter one go on first"
        )


def _write(parts: Sequence[_Part], directory: RunDirectory) -> dict[str, Any]:
    """The run directory of all parts."""
    first = parts[0]
    tree = jax.tree_util.tree_map(
        lambda *leaves: np.concatenate(leaves), *(part.tree for part in parts)
    )
    seconds = {key: sum(part.seconds[key] for part in parts) for key in first.seconds}
    config = first.config | {"num_seeds": sum(len(part.seeds) for part in parts)}
    checkpoints = Checkpoints(directory.checkpoints, keep=1)
    checkpoints.save(first.step, tree, {"step": first.step, "seconds": seconds})
    checkpoints.wait()
    checkpoints.close()
    directory.write("config.json", config)
    joined = [
        {"workdir": str(part.directory), "seeds": part.seeds, "environment": part.environment}
        for part in parts
    ]
    directory.write("environment.json", first.environment | {"joined": joined})
    with contextlib.closing(directory):
        directory.open_metrics(first.step)
        for line in _metrics(parts):
            directory.log(line, {"": slice(None)})
    return config


def _metrics(parts: Sequence[_Part]) -> list[dict[str, Any]]:
    """The lines that all have, each with the numbers of every seed.

    A line of training has means since the one before: where those are not of the same steps, it
    is left out.
    """
    same_steps = len({part.config["log_every"] for part in parts}) == 1
    lines = [
        {
            (line["step"], line["split"]): line
            for line in part.directory.read_metrics()
            if line["split"] == "validation" or (line["split"] == "train" and same_steps)
        }
        for part in parts
    ]
    joined = []
    for key, line in lines[0].items():
        every = [one[key] for one in lines if key in one]
        if len(every) == len(parts):
            names = [name for name in line if all(name in one for one in every)]
            joined.append(
                {
                    name: line[name]
                    if name in _OF_ALL
                    else [value for one in every for value in np.atleast_1d(one[name]).tolist()]
                    for name in names
                    if name != "images_per_second"  # they were not trained together
                }
            )
    return joined


def main(arguments: list[str]) -> int:
    from mnist_cnn import command_line
    from mnist_cnn.errors import ConfigError, printable

    workdir = flags.FLAGS.workdir
    if workdir is None or len(arguments) < 3:
        raise ConfigError("expected RUN RUN [RUN ...] --workdir DIR; see --helpshort")
    command_line.silence_libraries()
    config = join(arguments[1:], workdir, lambda line: print(printable(line)))
    given = [f"--config.{key}={config[key]}" for key in ("name", "seed", "num_seeds")]
    go_on = shlex.join([*given, f"--workdir={workdir}"])
    print(
        f"{printable(str(workdir))}: {config['num_seeds']} seeds from {config['seed']}; to test "
        f"them, the experiment's command with {printable(go_on)}"
    )
    return 0


if __name__ == "__main__":  # the flags are the command's alone: importing this module adds none
    from mnist_cnn import command_line

    flags.DEFINE_string("workdir", None, "The directory to make.")
    command_line.run_command(main, command_line.parse_flags)
