"""How fast the tutorial's network trains on a GPU, beside peers in the same environment.

    pip install 'jax[cuda13]' torch keras
    python -m benchmarks.accelerator

Everything is timed in one run, in turn, several rounds: the peers, then replicas that are computed
together.  A table and `accelerator.json` come out.  Nothing else should run meanwhile.
"""

from __future__ import annotations

import os

import rich.console

from benchmarks import command, growth
from benchmarks.peer import Peer
from benchmarks.training import compare, table

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
    arguments = command.parse(__doc__, rounds=5)
    console = rich.console.Console(width=120, soft_wrap=True)
    environment = command.environment("accelerator", arguments)
    compared = compare(PEERS, arguments.rounds, STEPS, limit=False)
    console.print(table(compared))
    together = growth.replicas(arguments.rounds, REPLICAS, steps=16 * max(REPLICAS))
    console.print(growth.say("replicas", together))
    result = {"environment": environment, "peers": compared, "replicas": together}
    console.print(command.write("accelerator", arguments, result))


if __name__ == "__main__":
    main()
