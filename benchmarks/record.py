"""The arguments of the benchmark commands, and the record that each of them writes."""

import argparse
import json
import pathlib
from typing import Any

import jax

from mnist_cnn.runner.environment import describe_environment


def parse_arguments(doc: str, rounds: int) -> argparse.Namespace:
    """Parses --rounds and --output, and makes the output folder."""
    parser = argparse.ArgumentParser(description=doc.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="repetitions of each timing")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs", "benchmarks"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def environment(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The versions, the device and the command of `benchmarks.<name>`."""
    command = ["python", "-m", f"benchmarks.{name}", f"--rounds={arguments.rounds}"]
    return describe_environment(jax.devices(), command)


def write(name: str, arguments: argparse.Namespace, result: dict[str, Any]) -> pathlib.Path:
    """Writes <output>/<name>.json."""
    path = arguments.output / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
