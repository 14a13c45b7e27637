"""Seconds to 99 % from the command to its end: experiments/speedrun.py beside PyTorch.

    python -m benchmarks.speedrun

Every round runs each program once, in turn.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import rich.box
import rich.console
import rich.table

from benchmarks import record
from benchmarks.peer import PEERS, python

PARTS = ("imports", "data", "compile", "train", "evaluate")
_ROOT = pathlib.Path(__file__).parents[1]
_TORCH = next(peer for peer in PEERS if peer.environment == "pytorch")


def ours(cache: str, seed: int) -> dict[str, Any]:
    """Seconds and accuracy of the command, and the seconds of its parts from result.json."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(
            [sys.executable, "-m", "mnist_cnn.main", "--config", "experiments/speedrun.py",
             f"--config.seed={seed}", f"--workdir={folder}/run"],
            XDG_CACHE_HOME=cache,
        )[0]  # fmt: skip
        result = json.loads(pathlib.Path(folder, "run", "result.json").read_text())
    parts = result["seconds"]
    parts["imports"] = seconds - parts["total"]  # the program's clock starts after them
    return {"seconds": seconds, "accuracy": result["test"]["accuracy"][0], "parts": parts}


def torch(recipe: str, seed: int) -> dict[str, Any]:
    """Seconds and accuracy of PyTorch, with the recipe "published" or "ours"."""
    program = [python(_TORCH), "-m", "benchmarks.peers.torch_speedrun", recipe, str(seed)]
    seconds, output = _seconds(program)
    return {"seconds": seconds, "accuracy": float(output)}


def _seconds(program: list[str], **environment: str) -> tuple[float, str]:
    """The wall seconds and the standard output of a program."""
    began = time.perf_counter()
    done = subprocess.run(
        program, cwd=_ROOT, env=os.environ | environment, check=True, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return time.perf_counter() - began, done.stdout


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=7)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            measured = {
                "mnist_cnn, nothing compiled": ours(cache, seed),
                "mnist_cnn, compiled before": ours(cache, seed),
                "PyTorch, the published recipe": torch("published", seed),
                "PyTorch, this recipe": torch("ours", seed),
            }
        for name, one in measured.items():
            found.setdefault(name, []).append(one)
    environment = record.environment("speedrun", arguments)
    record.write("speedrun", arguments, {"environment": environment, "programs": found})
    table = rich.table.Table(box=rich.box.ASCII2)
    for name in ("", "seconds", "min to max", "accuracy", ", ".join(PARTS)):
        table.add_column(name, justify="left" if not name else "right")
    for name, rounds in found.items():
        seconds = [one["seconds"] for one in rounds]
        parts = ", ".join(
            f"{statistics.median(one['parts'][part] for one in rounds):.2f}"
            for part in PARTS
            if "parts" in rounds[0]
        )
        accuracy = statistics.mean(one["accuracy"] for one in rounds)
        span = f"{min(seconds):.1f} - {max(seconds):.1f}"
        table.add_row(name, f"{statistics.median(seconds):.2f}", span, f"{accuracy:.2%}", parts)
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main()
