"""A sweep whose settings are runs of their own: trained in turn, compared, and the best tested.

Every decision is a pure function of the configuration and of the validations in sweep.json, which
is written after each of them. A run that resumes takes the same decisions again, without training,
and trains on from where the record ends.
"""

import contextlib
import gc
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from mnist_cnn import config as config_lib
from mnist_cnn.data.dataset import open_dataset
from mnist_cnn.errors import CheckpointError, ConfigError, UserError
from mnist_cnn.files import write_atomically
from mnist_cnn.parallel import processes
from mnist_cnn.runner import checks, preparation, recorded_config, results
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.experiment_file import ExperimentFile, changed_notes
from mnist_cnn.runner.preparation import Diverged
from mnist_cnn.runner.run_directory import RunDirectory

_SHARE = Fraction(1, 4)  # of the grid's steps, which halving takes at most

# A run of one setting, up to a step, or to its end and tested; returns its result.json. The last
# argument is `loop.run`'s `on_log`. Raises Diverged.
CarryOut = Callable[[Mapping[str, Any], RunDirectory, int | None, Any], dict[str, Any]]
Outcome = Mapping[str, Any]  # a setting's result.json at a step: "validated" or "diverged"


class Rung(NamedTuple):
    """`size` settings are trained to this fraction of their lengths, then compared."""

    fraction: Fraction
    size: int


def grid(lengths: Sequence[int]) -> list[Rung]:
    """Every setting is trained to its end."""
    return [Rung(Fraction(1), len(lengths))]


def halving(lengths: Sequence[int]) -> list[Rung]:
    """Successive halving (Jamieson & Talwalkar 2016) of settings of these lengths, in steps.

    After each rung the better half continues, until the best setting is trained to its end. Each
    rung costs the settings that end there the same steps. Whichever settings they are, the whole
    takes at most a quarter of the grid's steps. Raises ConfigError if the settings are too few.
    """
    sizes = [len(lengths)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    longest_first = sorted(lengths, reverse=True)  # the costliest case: the longest stay
    spare = _SHARE * sum(lengths) - longest_first[0]
    fraction, rungs = Fraction(1), [Rung(Fraction(1), 1)]
    for size, kept in reversed([*itertools.pairwise(sizes)]):
        ending = sum(longest_first[kept:size])
        fraction = min(fraction, spare / (len(sizes) - 1) / ending)
        if fraction == rungs[0].fraction:  # the same step as the next rung: one comparison
            rungs[0] = Rung(fraction, size)
        else:
            rungs.insert(0, Rung(fraction, size))
    if len(lengths) < 2 or min(lengths) * fraction < 1:
        raise ConfigError(
            f"config.sweep_method: halving takes at most a quarter of the grid's steps, here "
            f"{math.floor(_SHARE * sum(lengths)):,} for each seed, and trains the best of "
            f"{len(lengths)} settings to its end, up to {longest_first[0]:,}, so too few are left "
            "for the others; give more settings (five of one length, if they are long, are "
            "enough), or sweep_method='grid'"
        )
    return rungs


def search(
    rungs: Sequence[Rung], lengths: Sequence[int], train: Callable[[int, int], Outcome]
) -> list[int]:
    """The settings that reached the last rung, the best first; none if all diverged.

    `train(index, step)` trains a setting up to a step and validates it. The better settings of a
    rung continue, in the order of the grid. One that diverges is dropped; only if all that
    continued did, the next best follow, one by one.
    """
    ranked = list(range(len(lengths)))
    for rung in rungs:
        step = [int(rung.fraction * length) for length in lengths]
        first, others = sorted(ranked[: rung.size]), ranked[rung.size :]
        outcomes: dict[int, Outcome] = {}
        for index in [*first, *others]:
            if index in others and outcomes:
                break
            outcome = train(index, step[index])
            if outcome["status"] != "diverged":
                outcomes[index] = outcome
        ranked = sorted(outcomes, key=lambda index: (_order(outcomes[index]), index))
    return ranked


def _order(outcome: Outcome) -> tuple[float, float]:
    """The smaller, the better: by the mean accuracy; of equals, by the mean loss."""
    mean = outcome["validation_mean"]
    return -mean["accuracy"], math.inf if mean["loss"] is None else mean["loss"]


def run(
    config: Mapping[str, Any],
    directory: RunDirectory,
    console: Console,
    environment: dict[str, Any],
    source: ExperimentFile | None,
    carry_out: CarryOut,
    on_log: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Trains the settings that the method chooses and tests the best; returns result.json.

    Args:
      config: one without `config.has_one_program`.
      environment: the content of environment.json, which is completed.
      source: the experiment file.
      carry_out: carries out the run of a setting, in DIR/settings/INDEX.
      on_log: called with each line of metrics.jsonl of the settings, and "setting", the index.

    Raises what `loop.run` does; Diverged if every setting did.
    """
    settings = config_lib.settings(config)
    runs = [config_lib.of_setting(config, setting) for setting in settings]
    described = [
        {key: recorded_config.describe(value) for key, value in setting.items()}
        for setting in settings
    ]
    labels = [results.setting_label(setting) for setting in settings]
    lengths = [_length(one, label, source) for one, label in zip(runs, labels, strict=True)]
    rungs = (halving if config["sweep_method"] == "halving" else grid)(lengths)
    _begin(config, directory, console, environment, source)
    record = _Record(directory, described)

    def log_of(index: int) -> Any:
        return on_log and (lambda line: on_log(line | {"setting": index}))

    def train(index: int, step: int) -> Outcome:
        name = f"setting {index + 1} of {len(settings)}: {labels[index]}"
        if (outcome := record.find(index, step)) is not None:
            console.line(f"{name}: {outcome['status']} at step {outcome['steps']:,} already")
            return outcome
        console.line(name + (f", to step {step:,} of {lengths[index]:,}" * (len(rungs) > 1)))
        with contextlib.closing(directory.setting(index)) as one:
            try:
                outcome = carry_out(runs[index], one, step, log_of(index))
            except Diverged:
                found = one.read_result() if processes.is_primary() else None
                outcome = processes.broadcast(found)
                console.line(f"{name}: diverged at step {outcome['steps']:,}")
        record.add(index, step, outcome)
        gc.collect()  # the networks and the images of this setting
        return outcome

    ranked = search(rungs, lengths, train)
    if not ranked:
        _diverge(config, directory, record)
    chosen = ranked[0]
    console.line(f"the test of setting {chosen + 1} of {len(settings)}: {labels[chosen]}")
    with contextlib.closing(directory.setting(chosen)) as one:
        found = checks.finished_result(one, runs[chosen]) if processes.is_primary() else None
        tested = processes.broadcast(found)
        tested = tested or carry_out(runs[chosen], one, None, log_of(chosen))
        seeds = config["num_seeds"]
        entries = [record.entry(index, lengths[index]) for index in range(len(settings))]
        swept = {
            "split": config["validation_split"],
            "seeds": tested["seeds"],
            "method": config["sweep_method"],
            "settings": entries,
            "chosen": chosen,
            "steps": seeds * sum(entry["steps"] for entry in entries),
            "grid_steps": seeds * sum(lengths),
        }
        seconds = record.seconds({chosen: tested["seconds"]})
        result = tested | {"sweep": swept, "seconds": seconds}
        if processes.is_primary():
            directory.check_lock()
            name = "predictions.npz"
            write_atomically(directory.path / name, (one.path / name).read_bytes())
            directory.write_result(result)
    return result


def _length(config: Mapping[str, Any], label: str, source: ExperimentFile | None) -> int:
    """The steps of a setting's training; a UserError that names it if it cannot be trained."""
    try:
        return preparation.check(config, jax.devices(), source.path if source else None)
    except UserError as error:
        raise type(error)(f"setting {label}: {error}") from error


def _begin(
    config: Mapping[str, Any],
    directory: RunDirectory,
    console: Console,
    environment: dict[str, Any],
    source: ExperimentFile | None,
) -> None:
    """Checks that the directory is this sweep's, and writes config.json and environment.json."""
    if not processes.is_primary():
        return
    old = directory.read("config.json") or {}
    for key in config_lib.LENGTH:
        if old and old.get(key) != config[key]:
            raise ConfigError(
                f"{directory}: a sweep of runs cannot be prolonged ({key}: was {old.get(key)}, now "
                f"{config[key]}), because another length may choose another setting; give another "
                "--workdir"
            )
    dataset = open_dataset(config["dataset"], config["manual_dir"])
    before = checks.check_resumption(directory, dataset, step=0, total=0)
    directory.lock()
    for note in changed_notes(directory, before, source):
        console.line(note)
    environment |= {"data": dataset.describe()}
    if source is not None:
        environment |= {"experiment": source.describe()}
        source.keep(directory)
    elif "experiment" in before:
        environment |= {"experiment": before["experiment"]}
    directory.write("config.json", recorded_config.as_dict(config))
    directory.write("environment.json", environment)


class _Record:
    """The outcomes of each setting by the step they are of, as sweep.json has them."""

    def __init__(self, directory: RunDirectory, settings: Sequence[Mapping[str, Any]]) -> None:
        self._directory, self._settings = directory, settings
        found = directory.read("sweep.json") if processes.is_primary() else None
        found = processes.broadcast(found) or {"settings": [{"at": {}} for _ in settings]}
        try:
            self._at: list[dict[str, Outcome]] = [one["at"] for one in found["settings"]]
        except (KeyError, TypeError):
            self._at = []
        if len(self._at) != len(settings):
            raise CheckpointError(
                f"{directory}/sweep.json: expected the record of {len(settings)} settings, found "
                "something else; restore the file, or start over in another --workdir"
            )

    def find(self, index: int, step: int) -> Outcome | None:
        return self._at[index].get(str(step))

    def add(self, index: int, step: int, outcome: Outcome) -> None:
        keys = ("status", "steps", "validation", "validation_mean", "seconds")
        self._at[index][str(step)] = {key: outcome[key] for key in keys if key in outcome}
        if processes.is_primary():
            pairs = zip(self._settings, self._at, strict=True)
            entries = [{"setting": setting, "at": at} for setting, at in pairs]
            self._directory.write("sweep.json", {"settings": entries})

    def entry(self, index: int, length: int) -> dict[str, Any]:
        """What result.json has of a setting."""
        last = [*self._at[index].items()][-1]
        step, outcome = int(last[0]), last[1]
        status = outcome["status"]
        if status == "validated":
            status = "finished" if step == length else "stopped"
        metrics = {key: outcome[key] for key in ("validation", "validation_mean") if key in outcome}
        setting = self._settings[index]
        return {"setting": setting, "status": status, "steps": outcome["steps"], **metrics}

    def seconds(self, others: dict[int, dict[str, float]]) -> dict[str, float]:
        """The seconds of all settings; `others` are later than those in the record."""
        last = {index: [*at.values()][-1]["seconds"] for index, at in enumerate(self._at) if at}
        every = [*(last | others).values()]
        return {name: round(sum(one[name] for one in every), 3) for name in every[0]}

    def steps(self) -> int:
        return max(outcome["steps"] for at in self._at for outcome in at.values())


def _diverge(config: Mapping[str, Any], directory: RunDirectory, record: _Record) -> None:
    """Records the end without a result."""
    seeds = list(range(config["seed"], config["seed"] + config["num_seeds"]))
    if processes.is_primary():
        result = {"status": "diverged", "experiment": config["name"], "seeds": seeds}
        result |= {"steps": record.steps(), "seconds": record.seconds({})}
        directory.write_result(result)
    raise Diverged(
        f"{directory}: the loss or the parameters of every setting were not finite at some step; "
        "try lower learning rates"
    )
