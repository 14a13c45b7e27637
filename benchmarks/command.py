"""What the benchmarks' commands have in common: their arguments, and the record that they write."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import jax

from mnist_cnn.runner.environment import describe_environment


def parse(doc: str, rounds: int) -> argparse.Namespace:
    """`rounds` and `output`, a folder that is there."""
    parser = argparse.ArgumentParser(description=doc.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="of everything that is timed")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs", "benchmarks"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def environment(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures of `benchmarks.<name>` depend on."""
    command = ["python", "-m", f"benchmarks.{name}", f"--rounds={arguments.rounds}"]
    return describe_environment(jax.devices(), command)


def write(name: str, arguments: argparse.Namespace, result: dict[str, Any]) -> pathlib.Path:
    """The record: <output>/<name>.json."""
    path = arguments.output / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
