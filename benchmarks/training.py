"""How fast the tutorial's network trains: beside its peers, beside what the machine would allow
with ordinary convolutions, and how the cost grows.

    python -m benchmarks.training

Everything is timed in one run, in turn, several rounds: first the peers (`peers/`, each a process
in an environment of its own, which is made at the first use), the machine's own rates in every
round, then what grows (`growth.py`).  A table, `training.json` and `training.png` come out.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table

from benchmarks import command, growth, machine, picture
from benchmarks.peer import PEERS, Peer, Running

STEPS = {32: 96, 128: 32}  # batch size -> steps a round; their number is a multiple of no epoch
_BAND = 0.35  # how far a peer's early loss may be from the median of all, as a part of it


def compare(
    peers: Sequence[Peer], rounds: int, steps: dict[int, int], limit: bool = True
) -> dict[str, Any]:
    """Trains all peers in turn, the first of which is ours.

    Args:
      peers: what is timed.
      rounds: how often.
      steps: of each batch size, in a round.
      limit: whether the machine's own rates are measured beside them.

    Returns:
      For each batch size the images a second of every peer in every round, their early losses and
      what the machine would allow with ordinary convolutions in each round.

    Raises:
      RuntimeError: a peer cannot be started, or does not learn as the others do.
    """
    with contextlib.ExitStack() as stack:
        running = []
        for peer in peers:
            one = Running(peer)
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
    middle = statistics.median(losses.values())
    for title, loss in losses.items():
        if not abs(loss - middle) <= _BAND * middle:
            raise RuntimeError(
                f"{title} does not learn as the others do: mean loss {loss:.3f} at batch size "
                f"{batch_size}, the median is {middle:.3f}"
            )


def table(compared: dict[str, Any]) -> rich.table.Table:
    """Every peer: images a second, and how many times that ours is."""
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
    """Ours to `rates`, round by round."""
    ours = next(iter(part["images_per_second"].values()))
    return [a / b for a, b in zip(ours, rates, strict=True)]


def _say_limit(console: rich.console.Console, compared: dict[str, Any]) -> None:
    """Where the limit comes from."""
    for batch_size, part in compared["batch_sizes"].items():
        cost = machine.step_cost(int(batch_size))
        flops, memory = (statistics.median(rates) for rates in zip(*part["rates"], strict=True))
        console.print(
            f"{machine.LIMIT}, a step of {batch_size}: {cost.flops / 1e9:.2f} GFLOP of products at "
            f"{flops / 1e9:.0f} GFLOP/s, then {cost.adam_bytes / 1e6:.0f} MB of Adam at "
            f"{memory / 1e9:.0f} GB/s"
        )


def main() -> None:
    arguments = command.parse(__doc__, rounds=7)
    console = rich.console.Console(width=120, soft_wrap=True)
    result: dict[str, Any] = {"environment": command.environment("training", arguments)}
    compared = result["peers"] = compare(PEERS, arguments.rounds, STEPS)
    console.print(table(compared))
    _say_limit(console, compared)
    result["growth"] = {}
    for name, measure in growth.MEASURES.items():
        with console.status(name):
            result["growth"][name] = measure(arguments.rounds)
        console.print(growth.say(name, result["growth"][name]))
    path = command.write("training", arguments, result)
    picture.draw(result, path.with_suffix(".png"))
    console.print(f"{path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
