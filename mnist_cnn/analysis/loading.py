"""Reads a trained network: of a run directory, of a safetensors file, or that of the package.

A directory or file is enough, wherever it was copied from, and nothing in it is executed.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn

from mnist_cnn import config as config_lib
from mnist_cnn.analysis import packaged
from mnist_cnn.analysis.network import Network
from mnist_cnn.config import model_fields
from mnist_cnn.data.spec import DataSpec, from_record
from mnist_cnn.errors import CheckpointError, ConfigError, shorten
from mnist_cnn.files import local_path
from mnist_cnn.models import weights
from mnist_cnn.models.apply import Variables, init_variables, make_variables
from mnist_cnn.models.ensemble import Ensemble
from mnist_cnn.parallel.devices import find_devices, other_threads, own_settings
from mnist_cnn.runner import experiment_file, recorded_config, results
from mnist_cnn.runner.checkpoint import read_newest, specs
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training import rng
from mnist_cnn.training.components import build_model


@own_settings()
def load(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    seed: int | Literal["all"] | None = None,
    step: int | None = None,
) -> Network:
    """The network of a run directory or of a safetensors file; "digits" is that of the package.

    Of a run it is the one that was tested, or that of the newest good checkpoint if it is not yet.
    Of a sweep it is that of the chosen setting; if the run keeps the best, that is it. With `step`
    it is the network as it was at that checkpoint, which must be kept.

    `config` is needed if the experiment has its own model, because nothing in a run directory is
    executed; nothing but its objects is used, with the fields that the run's model has. It may be
    that of the whole sweep. Of several seeds, the first by default; "all" is the ensemble of all,
    without those whose parameters are not finite, which are named on standard error. Of one seed
    that is its network. A file is what was written to it; of an ensemble, `seed` chooses a member.
    Raises CheckpointError: there is no run or file, no good checkpoint or no such seed, or `config`
    is needed or belongs to another experiment. UserError: JAX has no device.
    """
    if workdir == packaged.PACKAGED:
        workdir = packaged.FILE
    if str(workdir).endswith(".safetensors"):
        return _from_file(local_path(workdir, "the network"), config, seed, step)
    directory = _of_networks(RunDirectory(workdir))
    num_threads = directory.num_threads()
    find_devices(num_threads)
    if num_threads and (other := other_threads(num_threads)):
        print(
            f"{directory}: {other}, which the run has; the last bits of what its network computes "
            "may differ, and do not in a new process",
            file=sys.stderr,
        )
    config = _complete_config(directory, config)
    replicas = config_lib.replicas(config)
    rows = _replica_rows(directory, config, seed)
    spec = directory.read_spec()
    model = build_model(config, spec)
    report = functools.partial(print, f"{directory}:", file=sys.stderr)
    newest, tree, _ = read_newest(directory.checkpoints, None, report)
    best = tree.get("best")
    steps = np.atleast_1d(best["step"])[rows].tolist() if best else [newest] * len(rows)
    if step is not None and set(steps) != {step}:
        newest, tree, _ = read_newest(directory.checkpoints, None, report, step)
        best, steps = None, [newest] * len(rows)
    state = tree["state"]
    variables = state.get("averaged") or make_variables(state["params"], state.get("batch_stats"))
    if best:
        variables = best["variables"]
    axis = (len(replicas),) if len(replicas) > 1 else ()
    expected = _shapes(model, spec, axis)
    if specs(variables) != specs(expected):
        raise CheckpointError(
            f"{directory.checkpoints}: checkpoint {newest} is of another network than the "
            "experiment file now defines; restore that file (the run directory may contain it as "
            "experiment-*.py)"
        )
    variables = jax.tree.unflatten(jax.tree.structure(expected), jax.tree.leaves(variables))
    stacked = jax.tree.map(lambda leaf: leaf[rows] if axis else leaf[None], variables)
    seeds = [replicas[row].seed for row in rows]
    result = directory.read_result() or {}
    temperatures = results.temperatures(result, seeds, steps)
    network = _network(str(directory), config, stacked, model, seeds, steps, spec, temperatures)
    accuracy = results.test_accuracy(result, network.seed) if step is None else None
    return dataclasses.replace(network, test_accuracy=accuracy)


def _network(
    place: str,
    config: Mapping[str, Any],
    stacked: Variables,
    model: nn.Module,
    seeds: list[int],
    steps: list[int],
    spec: DataSpec,
    temperatures: tuple[float, ...],
) -> Network:
    """The network of variables [R, ...] if R is 1, else the ensemble of those that are finite."""
    kept = list(range(len(seeds)))
    if len(seeds) > 1:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(stacked)]
        kept = [row for row in kept if all(np.isfinite(leaf[row]).all() for leaf in leaves)]
    left_out = [str(seed) for row, seed in enumerate(seeds) if row not in kept]
    if left_out:
        reason = f"parameters that are not finite: seed {', '.join(left_out)}"
        if not kept:
            raise CheckpointError(f"{place}: no ensemble, because all members have {reason}")
        print(f"{place}: left out of the ensemble, because of {reason}", file=sys.stderr)
    if left_out:  # the ensemble of the others was not fitted
        temperatures = ()
    seeds, steps = ([values[row] for row in kept] for values in (seeds, steps))
    if len(kept) == 1:
        variables = jax.tree.map(lambda leaf: leaf[kept[0]], stacked)
        variables = jax.device_put(variables)
        return Network(config, variables, model, steps[0], seeds[0], spec, temperatures)
    variables = jax.tree.map(lambda leaf: leaf[np.array(kept)], stacked)
    model = Ensemble(model, or_none=config["loss"] == "cross_entropy_or_none")
    step = steps[0] if len(set(steps)) == 1 else tuple(steps)
    variables = jax.device_put(variables)
    return Network(config, variables, model, step, tuple(seeds), spec, temperatures)


def _from_file(
    path: pathlib.Path,
    config: Mapping[str, Any] | None,
    seed: int | str | None,
    step: int | None,
) -> Network:
    """The network of a file that `export --format safetensors` wrote."""
    from safetensors import SafetensorError, safe_open

    find_devices()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        saved = json.loads(metadata["config"])
        # Of an ensemble, lists; one step is that of all members.
        kept, steps = (np.array(json.loads(metadata[key]), int) for key in ("seed", "step"))
        steps = np.broadcast_to(steps, kept.shape).ravel()
        if not kept.size:
            raise ValueError("no seeds")
        shape, names = (json.loads(metadata[key]) for key in ("image_shape", "class_names"))
        temperatures = np.array(json.loads(metadata.get("temperature", "[]")), float).ravel()
        spec = from_record({"image_shape": shape, "class_names": names}, saved.get("dataset"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected a file of `export --format safetensors` of this version "
            f"({type(error).__name__}: {shorten(str(error))})"
        ) from None
    seeds = kept.ravel().tolist()
    rows = _rows_of(str(path), seeds, "all" if seed is None else seed)
    seeds, steps = [seeds[row] for row in rows], steps[rows].tolist()
    if step is not None and set(steps) != {step}:
        expected = " and ".join(map(str, sorted(set(steps))))
        raise CheckpointError(f"{path}: got step {step}, expected {expected}")
    complete, _ = _matching(str(path), saved, config)
    model = build_model(complete, spec)
    template = _shapes(model, spec, kept.shape)
    try:
        variables = weights.read_variables(path, template, spec.image_shape)
    except ConfigError as error:
        raise CheckpointError(str(error).removeprefix("config.init_from: ")) from None
    stacked = jax.tree.map(lambda leaf: leaf[rows] if kept.ndim else leaf[None], variables)
    if len(temperatures) > len(rows) == 1:  # of one member of an ensemble
        temperatures = temperatures[1 + rows[0] :][:1]
    fitted = tuple(temperatures.tolist())
    return _network(str(path), complete, stacked, model, seeds, steps, spec, fitted)


def _shapes(model: nn.Module, spec: DataSpec, axis: tuple[int, ...]) -> Any:
    """Shapes and dtypes of the variables, [*axis, ...]: nothing is initialized or compiled."""
    shapes = jax.eval_shape(lambda: init_variables(model, rng.key(0, "init"), spec))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(axis + leaf.shape, leaf.dtype), shapes)


def _of_networks(directory: RunDirectory) -> RunDirectory:
    """Where the checkpoints are: of a sweep without one program, that of the chosen setting."""
    directory.read_config()  # the path may be that of no run
    if not directory.has_settings():
        return directory
    if not directory.read_result():
        raise _not_chosen(directory)
    return directory.chosen()


def _not_chosen(directory: RunDirectory) -> CheckpointError:
    return CheckpointError(
        f"{directory.path}: this sweep is not finished, so no setting is chosen yet; "
        "resume the run first"
    )


def _complete_config(
    directory: RunDirectory, config: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The run's configuration, with the objects of `config` for those that it only names."""
    complete, objects = _matching(str(directory.path), directory.read_config(), config)
    old = (directory.read("environment.json") or {}).get("experiment") or {}
    source = experiment_file.read(objects) if objects else None
    if source and os.path.basename(source.path) == os.path.basename(old.get("file", "")):
        for note in experiment_file.changed_notes(directory, {"experiment": old}, source):
            print(note, file=sys.stderr)
    return complete


def _matching(
    place: str, saved: Mapping[str, Any], config: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The configuration `saved` with objects of `config`, and these; CheckpointError if it differs.

    Those of `config` itself, or of the first of the settings of its sweep with which the
    configuration is the saved one.
    """
    candidates, changed = [config], []
    if config is not None and not config_lib.has_one_program(config):
        candidates += [config_lib.of_setting(config, one) for one in config_lib.settings(config)]
    for candidate in candidates:
        complete, objects = _with_objects(place, saved, candidate)
        changes = recorded_config.differences(saved, recorded_config.as_dict(complete))
        if not changes:
            return complete, objects
        changed += changes
    raise CheckpointError(f"{place} belongs to another configuration ({changed[0]})")


def _with_objects(
    place: str, saved: Mapping[str, Any], config: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The configuration `saved` with the objects of `config`, and these."""
    objects, named = {}, {}
    for key in config_lib.OBJECTS:
        if config_lib.FIELDS[key].accepts(saved.get(key, config_lib.DEFAULTS[key])):
            continue
        if config is not None:
            objects[key] = config[key]
        elif key == "model":
            raise CheckpointError(
                f"{place}: its model is {shorten(saved.get(key))}, from an "
                "experiment file; give that experiment as well: --config EXPERIMENT, in Python "
                "load(.., config)"
            )
        elif key in saved:  # a network needs nothing but the model: other names are kept
            named[key] = saved[key]
    if "model" in objects and recorded_config.describe(objects["model"]) != saved["model"]:
        fields = saved.get("model_fields", {})
        objects["model"] = model_fields.recorded(objects["model"], fields)
    left_out = (*named, "model_fields")
    complete = config_lib.experiment(
        **{k: v for k, v in saved.items() if k not in left_out} | objects
    )
    with complete.ignore_type():
        complete.update(named)
    return complete, objects


def _replica_rows(
    directory: RunDirectory, config: Mapping[str, Any], seed: int | str | None
) -> list[int]:
    """Which replicas of the chosen setting are meant: of `seed`, of the first one, or all."""
    is_sweep = config["sweep"] or config["variants"]
    sweep = (directory.read_result() or {}).get("sweep") if is_sweep else {"chosen": 0}
    if not sweep or sweep.get("chosen") is None:
        raise _not_chosen(directory)
    seeds = range(config["seed"], config["seed"] + config["num_seeds"])
    first = config_lib.setting_rows(len(seeds), sweep["chosen"]).start
    rows = _rows_of(str(directory.path), seeds, seeds[0] if seed is None else seed)
    return [first + row for row in rows]


def _rows_of(place: str, seeds: Sequence[int], seed: int | str) -> list[int]:
    """The places of `seed` among the seeds, or of "all"; CheckpointError if it is none."""
    if isinstance(seed, str) and seed == "all":
        return list(range(len(seeds)))
    if seed not in seeds:
        several = f'{results.listed(seeds)}, or "all"'
        expected = str(seeds[0]) if len(seeds) == 1 else several
        raise CheckpointError(f"{place}: got seed {shorten(seed)}, expected {expected}")
    return [seeds.index(seed)]
