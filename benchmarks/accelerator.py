"""How fast the tutorial's network trains on a GPU, beside peers in the same environment.

    pip install 'jax[cuda13]' torch keras
    python -m benchmarks.accelerator

Everything is timed in one run, in turn, several rounds: the peers, then replicas that are computed
together.  A table and `accelerator.json` come out.  Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

import jax
import rich.console

from benchmarks import growth
from benchmarks.peer import Peer
from benchmarks.training import compare, table
from mnist_cnn import records

PEERS = (
    Peer("mnist_cnn", ("ours",)),
    Peer("PyTorch", ("pytorch", "channels_last")),
    Peer("PyTorch, CUDA graphs", ("pytorch", "channels_last", "compiled")),
    Peer("Keras on JAX", ("keras_fit", "jax")),
    Peer("plain Flax loop", ("flax_loop",)),
)
STEPS = {32: 480, 128: 240}  # batch size -> steps a round
REPLICAS = (1, 4, 16, 64)


def main() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers share its memory
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs", "benchmarks"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console(width=120, soft_wrap=True)
    command = ["python", "-m", "benchmarks.accelerator", f"--rounds={arguments.rounds}"]
    environment = records.environment(jax.devices(), command)
    compared = compare(PEERS, arguments.rounds, STEPS, limit=False)
    console.print(table(compared))
    together = growth.replicas(arguments.rounds, REPLICAS, steps=16 * max(REPLICAS))
    console.print(growth.say("replicas", together))
    result = {"environment": environment, "peers": compared, "replicas": together}
    (arguments.output / "accelerator.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"{arguments.output}/accelerator.json")


if __name__ == "__main__":
    main()
