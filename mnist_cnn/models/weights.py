"""Weights to and from elsewhere: Keras' arrays and files, safetensors.

Keras' kernels have the same axes as Flax' ([height, width, in, out] and [in, out]) in both of its
data formats; what differs is the order in which the last image [7, 7, 64] is laid flat for the
first dense layer, where Keras was told `channels_first` as the tutorial does.

Nothing in a file is executed, and Keras is not needed to read its files.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from mnist_cnn.errors import ConfigError

LAYERS = ("conv1", "conv2", "dense1", "dense2")  # the tutorial's, in Keras' order
_FLAT = (7, 7, 64)  # what dense1 is given: height, width, channels


def to_keras(params: Mapping[str, Any], data_format: str = "channels_last") -> list[np.ndarray]:
    """The tutorial network's parameters as `keras.Model.set_weights` takes them.

    Args:
      params: of `mnist_cnn.model.CNN`.
      data_format: Keras', "channels_last" or "channels_first".
    """
    weights = [np.asarray(params[layer][name]) for layer in LAYERS for name in ("kernel", "bias")]
    if data_format == "channels_first":
        height, width, channels = _FLAT
        dense = weights[4].reshape(height, width, channels, -1)
        weights[4] = dense.transpose(2, 0, 1, 3).reshape(weights[4].shape)
    return weights


def from_keras(
    weights: Sequence[np.ndarray], data_format: str = "channels_last"
) -> dict[str, dict[str, np.ndarray]]:
    """What `keras.Model.get_weights` gave, as parameters of `mnist_cnn.model.CNN`."""
    arrays = [np.asarray(weight) for weight in weights]
    if data_format == "channels_first":
        height, width, channels = _FLAT
        dense = arrays[4].reshape(channels, height, width, -1)
        arrays[4] = dense.transpose(1, 2, 0, 3).reshape(arrays[4].shape)
    return {
        layer: {"kernel": arrays[2 * place], "bias": arrays[2 * place + 1]}
        for place, layer in enumerate(LAYERS)
    }


def flat(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters by name, "conv1.kernel", as a safetensors file has them."""
    named = traverse_util.flatten_dict(params, sep=".")
    return {name: np.ascontiguousarray(named[name]) for name in sorted(named)}


def read_variables(
    path: str | os.PathLike[str], template: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The parameters and statistics in a file, of the names, shapes and dtypes of `template`.

    Args:
      path: `.safetensors`; or of the tutorial's network as Keras 3 saves it, `.keras` or
        `.weights.h5` (which does not say its data format: channels_last is assumed).
      template: "params", and "batch_stats" where there are any: trees of arrays, or of their
        shapes and dtypes.

    Raises:
      ConfigError: there is no such file, it is damaged, or a tensor is missing, too many, or of
        another shape.
    """
    place = f"config.init_from: {os.fspath(path)}"
    readers = {".safetensors": _safetensors, ".keras": _keras_archive, ".weights.h5": _keras_h5}
    suffix = next((suffix for suffix in readers if str(path).endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"{place}: expected a file that ends in {', '.join(readers)}")
    try:
        with open(path, "rb") as file:
            content = file.read()
        found = readers[suffix](content)
    except OSError as error:
        raise ConfigError(f"{place}: cannot be read ({error.strerror or error})") from None
    except ImportError as error:
        raise ConfigError(f"{place}: needs the package {error.name}; install it") from None
    except Exception as error:  # h5py, safetensors, zipfile and JSON each raise their own
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"{place}: no {suffix} file of a known form ({type(error).__name__}: {reason})"
        ) from None
    trees = {kind: traverse_util.flatten_dict(tree, sep=".") for kind, tree in template.items()}
    expected = {name: leaf for tree in trees.values() for name, leaf in tree.items()}
    for name in [*expected, *found]:
        has = list(found[name].shape) if name in found else "nothing"
        needs = list(expected[name].shape) if name in expected else "nothing"
        if has != needs:
            raise ConfigError(f"{place}: {name} has shape {has}, expected {needs}")
        if not np.isfinite(found[name]).all():
            raise ConfigError(f"{place}: {name} has values that are not finite")
    return {
        kind: traverse_util.unflatten_dict(
            {name: found[name].astype(leaf.dtype) for name, leaf in tree.items()}, sep="."
        )
        for kind, tree in trees.items()
    }


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors import numpy as safetensors

    return safetensors.load(content)


def _keras_archive(content: bytes) -> dict[str, np.ndarray]:
    """A zip of config.json and model.weights.h5."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    layers = [(layer["class_name"], layer["config"]) for layer in config["config"]["layers"]]
    # Flatten takes the axes as they are, unless it is told channels_first, which brings them into
    # the order of channels_last.  The tutorial tells it nothing.
    formats = {name: layer.get("data_format") for name, layer in layers}
    moved = (formats.get("Conv2D"), formats.get("Flatten")) == ("channels_first", "channels_last")
    return _keras_h5(weights, "channels_first" if moved else "channels_last")


def _keras_h5(content: bytes, data_format: str = "channels_last") -> dict[str, np.ndarray]:
    """`layers/conv2d/vars/0` and so on; the layers of a kind are numbered in their order."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        layers = file["layers"]
        kinds: dict[str, list[tuple[int, list[np.ndarray]]]] = {"conv2d": [], "dense": []}
        for name in layers:
            held = layers[name].get("vars", {})
            if not len(held):
                continue
            kind, _, number = name.partition("_")
            if kind not in kinds or not (number or "0").isdecimal():
                raise ValueError(f"a layer {name!r} with weights, where the network has none")
            arrays = [np.asarray(held[key]) for key in sorted(held, key=int)]
            kinds[kind].append((int(number or 0), arrays))
    ordered = [arrays for kind in kinds.values() for _, arrays in sorted(kind, key=lambda k: k[0])]
    weights = [array for arrays in ordered for array in arrays]
    if len(weights) != 2 * len(LAYERS):
        raise ValueError(f"{len(weights)} arrays, expected {2 * len(LAYERS)}")
    return flat(from_keras(weights, data_format))
