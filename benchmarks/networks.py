"""Training speed of networks written in plain Flax, beside PyTorch and the plain Flax loop.

    python -m benchmarks.networks

Every round times the peers in turn, each in its own environment. The command prints a table and
writes networks.json. Run nothing else meanwhile.
"""

from typing import Any

import rich.console

from benchmarks import record, training
from benchmarks.peer import PRECISIONS, Peer, torch_peers

STEPS = {  # network of peers/plain.py -> batch size -> steps per round
    "tutorial": {32: 48, 128: 16},
    "accurate": {125: 12},
    "small": {64: 48},
    "mobile": {64: 48},
}


def peers(network: str) -> list[Peer]:
    """This package in both precisions, PyTorch in all its forms, and the plain Flax loop."""
    ours = [Peer(f"mnist_cnn, {name}", ("ours", network, name)) for name in PRECISIONS]
    return [*ours, *torch_peers(network), Peer("plain Flax loop", ("flax_loop", network))]


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=10)
    console = rich.console.Console(width=150, soft_wrap=True)
    result: dict[str, Any] = {"environment": record.environment("networks", arguments)}
    for network, steps in STEPS.items():
        compared = training.compare(peers(network), arguments.rounds, steps, limit=False)
        result[network] = compared
        console.print(network, training.table(compared))
    console.print(record.write("networks", arguments, result))


if __name__ == "__main__":
    main()
