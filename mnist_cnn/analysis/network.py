"""A trained network, read from a run directory: a callable on uint8 images.

The directory is enough, wherever it was copied from, and nothing in it is executed.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float32, Float64, UInt8

from mnist_cnn import config as config_lib, model_fields
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import CheckpointError, shorten
from mnist_cnn.models.apply import Variables, init_variables, make_variables
from mnist_cnn.parallel.devices import find_devices, other_threads, own_settings
from mnist_cnn.runner import experiment_file, recorded_config
from mnist_cnn.runner.checkpoint import read_newest, specs
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training import rng
from mnist_cnn.training.components import build_model
from mnist_cnn.training.scoring import compute_logits


@dataclasses.dataclass(frozen=True)
class Network:
    """A callable on images uint8 [N, H, W, C] with values 0..255; ValueError for others."""

    config: Mapping[str, Any] = dataclasses.field(repr=False)  # the run's
    variables: Variables = dataclasses.field(repr=False)  # parameters and batch statistics
    model: nn.Module
    step: int  # the number of training steps
    seed: int
    spec: DataSpec = MNIST  # the form of its images, and its classes

    @property
    def params(self) -> Any:
        """The variables without the statistics of batch normalization."""
        return self.variables["params"]

    @own_settings()
    def __call__(self, images: Any) -> Float32[np.ndarray, "N K"]:
        """The logits of uint8 images [N, H, W, C]; a ValueError for anything else."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.spec.image_shape:
            raise ValueError(
                f"got images {images.dtype} {list(images.shape)}, expected uint8 "
                f"[N, {', '.join(map(str, self.spec.image_shape))}]"
            )
        batch_size = self.config["eval_batch_size"]
        logits = np.zeros((len(images), self.spec.num_classes), np.float32)
        for start, size in _pieces(len(images), batch_size):
            piece = images[start : start + size]
            padded = np.pad(piece, ((0, size - len(piece)), (0, 0), (0, 0), (0, 0)))
            computed = compute_logits(self.model, self.variables, padded, batch_size)
            logits[start : start + size] = np.asarray(computed)[: len(piece)]
        return logits

    def probabilities(
        self, images: UInt8[np.ndarray, "N H W C"], batch_size: int = 64
    ) -> Float64[np.ndarray, "N K"]:
        """The softmax of the logits; one compiled program serves any number of images.

        A network trained with the loss "cross_entropy_or_none" may find that an image shows none of
        its classes. The rest of its probabilities, whose sum is below 1 then, is that of "none".
        """
        none, count = self.config["loss"] == "cross_entropy_or_none", self.spec.num_classes
        logits = np.zeros((len(images), count + none))  # the logit of "none" is 0
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0))
            logits[start : start + batch_size, :count] = self(np.pad(batch, padding))[: len(batch)]
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials[:, :count] / exponentials.sum(axis=-1, keepdims=True)

    def no_digit(self, images: UInt8[np.ndarray, "N H W C"]) -> Float64[np.ndarray, "N"]:
        """The probability that an image shows none of the classes; 0 if the network cannot tell."""
        return (1 - self.probabilities(images).sum(axis=-1)).clip(0)


def _pieces(count: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Starts and sizes of pieces that contain `count` images, the last perhaps more than there are.

    Each size is compiled, so there are few: 1, 2, 4, ... images, and then 1, 2, 4, ... batches. A
    single batch beside others is completed to two, because XLA may round otherwise without a loop.
    """
    if count <= batch_size:
        if count:
            yield 0, min(batch_size, 1 << (count - 1).bit_length())
        return
    start, batches = 0, -(-count // batch_size)
    batches += batches % 2
    while batches:
        size = 1 << (batches.bit_length() - 1)  # the largest power of two
        yield start, size * batch_size
        start, batches = start + size * batch_size, batches - size


@own_settings()
def load(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    step: int | None = None,
) -> Network:
    """The network that was tested, or that of the newest good checkpoint if it is not yet.

    Of a sweep it is that of the chosen setting; if the run keeps the best, that is it. With `step`
    it is the network as it was at that checkpoint, which must be kept.

    `config` is needed if the experiment brings its own model, because nothing in a run directory is
    executed; nothing but its objects is used, with the fields that the run's model has. It may be
    that of the whole sweep. Of several seeds, the first by default.
    Raises CheckpointError: there is no run, no good checkpoint or no such seed, or `config` is
    needed or belongs to another experiment. UserError: JAX has no device.
    """
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
    index = _replica_index(directory, config, seed)
    spec = directory.read_spec()
    model = build_model(config, spec)
    report = functools.partial(print, f"{directory}:", file=sys.stderr)
    newest, tree, _ = read_newest(directory.checkpoints, None, report)
    best = tree.get("best")
    found = int(np.atleast_1d(best["step"])[index]) if best else newest
    if step not in (None, found):
        newest, tree, _ = read_newest(directory.checkpoints, None, report, step)
        best, found = None, newest
    state = tree["state"]
    variables = state.get("averaged") or make_variables(state["params"], state.get("batch_stats"))
    if best:
        variables = best["variables"]
    # Shapes only: nothing is initialized or compiled.
    shapes = jax.eval_shape(lambda: init_variables(model, rng.key(0, "init"), spec))
    axis = (len(replicas),) if len(replicas) > 1 else ()
    expected = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(axis + leaf.shape, leaf.dtype), shapes
    )
    if specs(variables) != specs(expected):
        raise CheckpointError(
            f"{directory.checkpoints}: checkpoint {newest} is of another network than the "
            "experiment file now defines; restore that file (the run directory may contain it as "
            "experiment-*.py)"
        )
    variables = jax.tree.unflatten(jax.tree.structure(expected), jax.tree.leaves(variables))
    if len(replicas) > 1:
        variables = jax.tree.map(lambda leaf: leaf[index], variables)
    return Network(config, jax.device_put(variables), model, found, replicas[index].seed, spec)


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
    """The run's configuration, with the objects of `config` for those that it only names.

    Those of `config` itself, or of the first of the settings of its sweep with which the
    configuration is that of the run.
    """
    saved, candidates = directory.read_config(), [config]
    if config is not None and not config_lib.has_one_program(config):
        candidates += [config_lib.of_setting(config, one) for one in config_lib.settings(config)]
    changed = []
    for candidate in candidates:
        complete, objects = _with_objects(directory, saved, candidate)
        changes = recorded_config.differences(saved, recorded_config.as_dict(complete))
        if not changes:
            break
        changed += changes
    else:
        raise CheckpointError(f"{directory.path} belongs to another configuration ({changed[0]})")
    old = (directory.read("environment.json") or {}).get("experiment") or {}
    source = experiment_file.read(objects) if objects else None
    if source and os.path.basename(source.path) == os.path.basename(old.get("file", "")):
        for note in experiment_file.changed_notes(directory, {"experiment": old}, source):
            print(note, file=sys.stderr)
    return complete


def _with_objects(
    directory: RunDirectory, saved: Mapping[str, Any], config: Mapping[str, Any] | None
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
                f"{directory.path}: its model is {shorten(saved.get(key))}, from an "
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


def _replica_index(directory: RunDirectory, config: Mapping[str, Any], seed: int | None) -> int:
    """The index of the replica with `seed`, or the first one, of the chosen setting."""
    is_sweep = config["sweep"] or config["variants"]
    sweep = (directory.read_result() or {}).get("sweep") if is_sweep else {"chosen": 0}
    if not sweep or sweep.get("chosen") is None:
        raise _not_chosen(directory)
    seeds = range(config["seed"], config["seed"] + config["num_seeds"])
    if seed is not None and seed not in seeds:
        expected = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        raise CheckpointError(f"{directory.path}: got seed {seed}, expected {expected}")
    first = config_lib.setting_rows(len(seeds), sweep["chosen"]).start
    return first + (0 if seed is None else seeds.index(seed))
