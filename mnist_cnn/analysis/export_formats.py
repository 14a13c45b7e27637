"""A trained network as the content of a file for other programs."""

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_cnn.data.spec import MNIST
from mnist_cnn.version import __version__

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network


def stablehlo(network: "Network") -> bytes:
    """The program uint8 [N, 28, 28, 1] -> float32 logits [N, 10], including the parameters.

    `jax.export.deserialize(content).call(images)` runs it for any N.
    """
    import jax.export

    from mnist_cnn.models.apply import forward
    from mnist_cnn.parallel.devices import own_settings

    def logits(images: Any) -> Any:
        # Without the barrier XLA folds the constants, which changes bits.
        variables = jax.lax.optimization_barrier(network.variables)
        return forward(network.model, variables, images)

    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("N, 28, 28, 1"), "uint8")
    export = jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "tpu"))
    with own_settings():
        return bytes(export(images).serialize())


def safetensors(network: "Network") -> bytes:
    """Parameters and batch statistics by name: "conv1.kernel", "norm1.mean"."""
    from safetensors.numpy import save

    from mnist_cnn.models import weights

    tensors: dict[str, Any] = {}
    for collection in network.variables.values():
        tensors |= weights.flat(collection)
    return save(tensors, {"format": "flax"})


def onnx(network: "Network") -> bytes:
    """`images` uint8 [N, 28, 28, 1] -> `logits` float32 [N, 10], with the facts of `_metadata`.

    Raises UserError if an operation of the network is not translated.
    """
    from mnist_cnn.analysis import onnx_converter
    from mnist_cnn.models.apply import forward
    from mnist_cnn.parallel.devices import own_settings

    spec = getattr(network, "spec", MNIST)
    logits = functools.partial(forward, network.model)
    with own_settings():
        graph = onnx_converter.convert(logits, network.variables, spec.image_shape)
    return graph.serialize(spec.image_shape, spec.num_classes, _metadata(network))


def _metadata(network: "Network") -> dict[str, str]:
    """What the file says about the network; the values are JSON."""
    from mnist_cnn.runner.checkpoint import sha256

    spec = getattr(network, "spec", MNIST)
    height, width, channels = spec.image_shape
    facts = {
        "classes": spec.class_names,
        "input": {
            "dtype": "uint8", "height": height, "width": width, "channels": channels,
            "background": 0, "ink": 255,
        },
        "run": {
            "experiment": network.config["name"], "seed": network.seed, "step": network.step,
        },
        "params_sha256": sha256(network.variables),  # as in result.json
        "mnist_cnn": __version__,
    }  # fmt: skip
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


FORMATS: dict[str, Callable[["Network"], bytes]] = {
    function.__name__: function for function in (stablehlo, onnx, safetensors)
}
