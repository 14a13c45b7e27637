"""Training speed of the tutorial's network on a GPU, beside peers in the same environment.

    pip install 'jax[cuda13]' torch keras
    python -m benchmarks.accelerator

Every round times the peers in turn, then replicas that are computed together. The command prints
a table and writes accelerator.json. Run nothing else meanwhile.
"""

import os

import rich.console

from benchmarks import record, scaling
from benchmarks.peer import Peer
from benchmarks.training import compare, table

PEERS = (
    Peer("mnist_cnn", ("ours",)),
    Peer("PyTorch", ("pytorch", "channels_last")),
    Peer("PyTorch, CUDA graphs", ("pytorch", "channels_last", "compiled")),
    Peer("Keras on JAX", ("keras_fit", "jax")),
    Peer("plain Flax loop", ("flax_loop",)),
)
STEPS = {32: 480, 128: 240}  # batch size -> steps per round
REPLICAS = (1, 4, 16, 64)


def main() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers share the memory
    arguments = record.parse_arguments(__doc__, rounds=5)
    console = rich.console.Console(width=120, soft_wrap=True)
    environment = record.environment("accelerator", arguments)
    compared = compare(PEERS, arguments.rounds, STEPS, limit=False)
    console.print(table(compared))
    replicas = scaling.replicas(arguments.rounds, REPLICAS, steps=16 * max(REPLICAS))
    console.print(scaling.describe("replicas", replicas))
    result = {"environment": environment, "peers": compared, "replicas": replicas}
    console.print(record.write("accelerator", arguments, result))


if __name__ == "__main__":
    main()
