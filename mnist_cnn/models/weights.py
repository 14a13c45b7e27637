"""Weights to and from other programs: Keras' arrays and files (without Keras), safetensors.

Keras' kernels have the axes of Flax' ([height, width, in, out] and [in, out]) in both of its data
formats. With `channels_first`, which the tutorial uses, the input of the first dense layer is the
image [64, 7, 7] (of MNIST) made flat, not [7, 7, 64]. Nothing in a file is executed.
"""

import functools
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from mnist_cnn.data.spec import MNIST
from mnist_cnn.errors import ConfigError, import_problem
from mnist_cnn.files import local_path

LAYERS = ("conv1", "conv2", "dense1", "dense2")  # of the tutorial's network, in Keras' order


def to_keras(
    params: Mapping[str, Any],
    data_format: str = "channels_last",
    image_shape: tuple[int, int, int] = MNIST.image_shape,
) -> list[np.ndarray]:
    """Converts parameters of `CNN` to the list that `keras.Model.set_weights` takes.

    `data_format` is that of the Keras model, "channels_last" or "channels_first".
    """
    height, width = image_shape[0] // 4, image_shape[1] // 4  # pooled twice
    weights = [np.asarray(params[layer][name]) for layer in LAYERS for name in ("kernel", "bias")]
    if data_format == "channels_first":
        last = weights[4].reshape(height, width, 64, -1)
        weights[4] = last.transpose(2, 0, 1, 3).reshape(64 * height * width, -1)
    return weights


def from_keras(
    weights: Sequence[np.ndarray],
    data_format: str = "channels_last",
    image_shape: tuple[int, int, int] = MNIST.image_shape,
) -> dict[str, dict[str, np.ndarray]]:
    """Converts the list that `keras.Model.get_weights` returns to parameters of `CNN`."""
    height, width = image_shape[0] // 4, image_shape[1] // 4
    arrays = [np.asarray(weight) for weight in weights]
    if data_format == "channels_first":
        first = arrays[4].reshape(64, height, width, -1)
        arrays[4] = first.transpose(1, 2, 0, 3).reshape(height * width * 64, -1)
    pairs = zip(LAYERS, arrays[::2], arrays[1::2], strict=True)
    return {layer: {"kernel": kernel, "bias": bias} for layer, kernel, bias in pairs}


def flat(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by their names in a safetensors file, such as "conv1.kernel"."""
    named = sorted(traverse_util.flatten_dict(params, sep=".").items())
    return {name: np.ascontiguousarray(array) for name, array in named}


def read_variables(
    path: str | os.PathLike[str],
    template: Mapping[str, Mapping[str, Any]],
    image_shape: tuple[int, int, int] = MNIST.image_shape,
) -> dict[str, Any]:
    """Reads variables from a file, as NumPy arrays in the trees and dtypes of `template`.

    `path` is a `.safetensors` file, or a `.keras` or `.weights.h5` file (read as channels_last) of
    the tutorial's network, as Keras 3 saves it. `template` has "params", and "batch_stats" if there
    are any: arrays or `jax.ShapeDtypeStruct`. ConfigError: the file is missing or damaged, or a
    tensor is missing, unexpected, of another shape, or not finite.
    """
    place = f"config.init_from: {os.fspath(path)}"
    readers: dict[str, Any] = {
        ".safetensors": _safetensors,
        ".keras": functools.partial(_keras_archive, image_shape=image_shape),
        ".weights.h5": _keras_h5,
    }
    suffix = next((suffix for suffix in readers if str(path).endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"{place}: expected a file that ends in {', '.join(readers)}")
    try:
        found = readers[suffix](local_path(path, "config.init_from").read_bytes())
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{place}: cannot be read ({error.strerror or error})") from None
    except ImportError as error:
        reason = import_problem(error, "pip install 'mnist_cnn[export]'")
        raise ConfigError(f"{place}: {reason}") from None
    except Exception as error:  # h5py, safetensors, zipfile and JSON each raise their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise ConfigError(f"{place}: not a valid {suffix} file ({reason})") from None
    leaves = traverse_util.flatten_dict(template)  # ("params", "conv1", "kernel") and so on
    expected = {".".join(path[1:]): leaf for path, leaf in leaves.items()}
    for name in [*expected, *found]:
        has = list(found[name].shape) if name in found else "nothing"
        needs = list(expected[name].shape) if name in expected else "nothing"
        if has != needs:
            raise ConfigError(f"{place}: {name} has shape {has}, expected {needs}")
        if not np.isfinite(found[name]).all():
            raise ConfigError(f"{place}: {name} has values that are not finite")
    arrays = {p: found[".".join(p[1:])].astype(leaf.dtype) for p, leaf in leaves.items()}
    return dict(template) | traverse_util.unflatten_dict(arrays)


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors import numpy as safetensors

    return safetensors.load(content)


def _keras_archive(content: bytes, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Reads a zip of config.json and model.weights.h5."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
        weights = archive.read("model.weights.h5")
    # Flatten keeps the order of the axes, unless its own data_format is channels_first: then it
    # reorders them to channels_last. The tutorial does not set it.
    formats = {layer["class_name"]: layer["config"].get("data_format") for layer in layers}
    first = (formats.get("Conv2D"), formats.get("Flatten")) == ("channels_first", "channels_last")
    return _keras_h5(weights, "channels_first" if first else "channels_last", image_shape)


def _keras_h5(
    content: bytes,
    data_format: str = "channels_last",
    image_shape: tuple[int, int, int] = MNIST.image_shape,
) -> dict[str, np.ndarray]:
    """Reads `layers/conv2d/vars/0` and so on; layers of a kind are numbered in their order."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        found = []
        for name, layer in file["layers"].items():
            arrays = layer.get("vars", {})
            kind, _, number = name.partition("_")
            if len(arrays):
                if kind not in ("conv2d", "dense") or not (number or "0").isdecimal():
                    raise ValueError(f"the network has no layer {name!r} with weights")
                ordered = [np.asarray(arrays[key]) for key in sorted(arrays, key=int)]
                found.append((kind, int(number or 0), ordered))
    weights = [array for layer in sorted(found, key=lambda layer: layer[:2]) for array in layer[2]]
    if len(weights) != 2 * len(LAYERS):
        raise ValueError(f"{len(weights)} arrays, expected {2 * len(LAYERS)}")
    return flat(from_keras(weights, data_format, image_shape))
