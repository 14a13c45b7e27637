"""Training speed of the tutorial's network beside peers and a limit, and how its cost scales.

    python -m benchmarks.training

Every round times the peers in turn (`peers/`, each in its own environment, which is made at the
first use) and the machine's rates, which give a limit for ordinary convolutions. Then the scaling
is measured (`scaling.py`). The command prints a table and writes training.json and training.png.
Run nothing else meanwhile.
"""

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table

from benchmarks import machine, plot, record, scaling
from benchmarks.peer import PEERS, Peer, PeerProcess

STEPS = {32: 96, 128: 32}  # batch size -> steps per round
_LOSS_TOLERANCE = 0.5  # of a peer's early loss, relative to the median: initializations differ


def compare(
    peers: Sequence[Peer], rounds: int, steps: dict[int, int], limit: bool = True
) -> dict[str, Any]:
    """Times all peers in turn.

    Args:
      peers: the programs; the first is this package.
      rounds: the number of repetitions.
      steps: the steps per round for each batch size.
      limit: whether the machine's rates are measured too.

    Returns:
      For each batch size the images per second of every peer in every round, their early losses,
      and the limit of ordinary convolutions in every round.

    Raises:
      RuntimeError: a peer does not start, or does not learn as the others do.
    """
    with contextlib.ExitStack() as stack:
        running = []
        for peer in peers:
            one = PeerProcess(peer)
            stack.callback(one.close)
            running.append(one)
        result: dict[str, Any] = {
            "versions": {one.peer.title: one.versions for one in running},
            "batch_sizes": {},
        }
        for batch_size, count in steps.items():
            for one in running:  # compiles, and brings all to the same step
                one.train(batch_size, count)
            losses = {one.peer.title: one.train(batch_size, count)["loss"] for one in running}
            _check_learning(batch_size, losses)
            result["batch_sizes"][str(batch_size)] = {
                "steps": count, "loss": losses, "limit": [], "rates": [],
                "images_per_second": {one.peer.title: [] for one in running},
            }  # fmt: skip
        for _ in rich.progress.track(range(rounds), "peers", transient=True):
            for batch_size, count in steps.items():
                part = result["batch_sizes"][str(batch_size)]
                for one in running:
                    seconds = one.train(batch_size, count)["seconds"]
                    part["images_per_second"][one.peer.title].append(count * batch_size / seconds)
                if not limit:
                    continue
                rates = machine.measure()
                part["rates"].append([rates.flops_per_second, rates.bytes_per_second])
                least = rates.least_seconds(machine.step_cost(batch_size))
                part["limit"].append(batch_size / least)
    return result


def _check_learning(batch_size: int, losses: dict[str, float]) -> None:
    median = statistics.median(losses.values())
    for title, loss in losses.items():
        if not abs(loss - median) <= _LOSS_TOLERANCE * median:
            raise RuntimeError(
                f"{title} does not learn as the others do: mean loss {loss:.3f} at batch size "
                f"{batch_size}, the median is {median:.3f}"
            )


def table(compared: dict[str, Any]) -> rich.table.Table:
    """The images per second of every peer, and the speed of this package relative to it."""
    table = rich.table.Table(box=rich.box.ASCII2, title="images a second", title_justify="left")
    table.add_column("")
    for batch_size in compared["batch_sizes"]:
        for name in (f"batch {batch_size}", "min to max", "ours / it", "loss"):
            table.add_column(name, justify="right")
    titles = list(compared["versions"])
    if all(part["limit"] for part in compared["batch_sizes"].values()):
        titles.append(machine.LIMIT)
    for title in titles:
        row = [title]
        for part in compared["batch_sizes"].values():
            rates = part["images_per_second"].get(title, part["limit"])
            ratio = statistics.median(ratios(part, rates))
            loss = f"{part['loss'][title]:.3f}" if title in part["loss"] else ""
            span = f"{min(rates):,.0f} - {max(rates):,.0f}"
            row += [f"{statistics.median(rates):,.0f}", span, f"{ratio:.2f}", loss]
        table.add_row(*row)
    return table


def ratios(part: dict[str, Any], rates: Sequence[float]) -> list[float]:
    """The speed of this package relative to `rates` in every round."""
    ours = next(iter(part["images_per_second"].values()))
    return [a / b for a, b in zip(ours, rates, strict=True)]


def _print_limit(console: rich.console.Console, compared: dict[str, Any]) -> None:
    """Prints how the limit is computed."""
    for batch_size, part in compared["batch_sizes"].items():
        cost = machine.step_cost(int(batch_size))
        flops, memory = (statistics.median(rates) for rates in zip(*part["rates"], strict=True))
        console.print(
            f"{machine.LIMIT}, a step of {batch_size}: {cost.flops / 1e9:.2f} GFLOP of products at "
            f"{flops / 1e9:.0f} GFLOP/s, then {cost.adam_bytes / 1e6:.0f} MB of Adam at "
            f"{memory / 1e9:.0f} GB/s"
        )


def main() -> None:
    arguments = record.parse_arguments(__doc__, rounds=7)
    console = rich.console.Console(width=150, soft_wrap=True)
    result: dict[str, Any] = {"environment": record.environment("training", arguments)}
    compared = result["peers"] = compare(PEERS, arguments.rounds, STEPS)
    console.print(table(compared))
    _print_limit(console, compared)
    result["growth"] = {}
    for name, measure in scaling.MEASUREMENTS.items():
        with console.status(name):
            result["growth"][name] = measure(arguments.rounds)
        console.print(scaling.describe(name, result["growth"][name]))
    path = record.write("training", arguments, result)
    plot.draw(result, path.with_suffix(".png"))
    console.print(f"{path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
