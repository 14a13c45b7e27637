"""A trained network as the content of a file for other programs."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_cnn.errors import UserError
from mnist_cnn.version import __version__

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network
    from mnist_cnn.analysis.to_onnx.graph import Graph


def stablehlo(network: "Network") -> bytes:
    """The program uint8 [N, H, W, C] -> float32 logits [N, K], including the parameters.

    `jax.export.deserialize(content).call(images)` runs it for any N.
    """
    import jax.export

    from mnist_cnn.models.apply import forward
    from mnist_cnn.parallel.devices import own_settings

    def logits(images: Any) -> Any:
        # Without the barrier XLA folds the constants, which changes bits.
        variables = jax.lax.optimization_barrier(network.variables)
        return forward(network.model, variables, images)

    shape = ", ".join(["N", *map(str, network.spec.image_shape)])
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), "uint8")
    export = jax.export.export(jax.jit(logits), platforms=("cpu", "cuda", "tpu"))
    with own_settings():
        return bytes(export(images).serialize())


def safetensors(network: "Network", **others: str) -> bytes:
    """Parameters and batch statistics by name: "conv1.kernel", "norm1.mean".

    Those of the members of an ensemble are stacked: "conv1.kernel" [R, 5, 5, 1, 32].
    The metadata has what `mnist_cnn.load` needs to make the network of it again, and `others`.
    """
    from safetensors.numpy import save

    from mnist_cnn.models import weights

    tensors: dict[str, Any] = {}
    for collection in network.variables.values():
        tensors |= weights.flat(collection)
    content = save(tensors, {"format": "flax", **_metadata(network), **others})
    # The library writes the metadata in another order in each process.
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[size:]


def onnx(network: "Network") -> bytes:
    """`images` uint8 [N, H, W, C] -> `logits` float32 [N, K]; its metadata is that of `_metadata`.

    Raises UserError if an operation of the network is not translated.
    """
    spec = network.spec
    return _graph(network).serialize(spec.image_shape, spec.num_classes, _metadata(network))


def html(network: "Network") -> bytes:
    """A page on which any browser recognizes drawings and pictures as `predict` does, offline.

    Raises UserError if an operation of the network is not translated.
    """
    from mnist_cnn.analysis.page.build import build

    whole = network
    if network.members:
        whole = dataclasses.replace(network, model=network.model.clone(with_members=True))
    try:
        graph = _graph(whole)
    except UserError as error:
        raise UserError(str(error).replace("--format onnx", "--format html")) from None
    return build(network, graph, _metadata(network))


def _graph(network: "Network") -> "Graph":
    """The program of the network as operators of ONNX."""
    from mnist_cnn.analysis.to_onnx.converter import convert
    from mnist_cnn.models.apply import forward
    from mnist_cnn.parallel.devices import own_settings

    with own_settings():
        return convert(
            functools.partial(forward, network.model), network.variables, network.spec.image_shape
        )


def _metadata(network: "Network") -> dict[str, str]:
    """What a file says of its network; what is no text, as JSON."""
    import jax

    from mnist_cnn.runner import recorded_config
    from mnist_cnn.runner.checkpoint import sha256

    hashes = [
        sha256(jax.tree.map(lambda leaf, row=row: leaf[row], network.variables))
        for row in range(len(network.members))
    ]
    height, width, channels = network.spec.image_shape
    form = {"dtype": "uint8", "height": height, "width": width, "channels": channels}
    fitted = network.temperatures
    return {
        "mnist_cnn": __version__,
        "input": json.dumps(form | {"background": 0, "ink": 255}),
        "image_shape": json.dumps(network.spec.image_shape),
        "class_names": json.dumps(network.spec.class_names, ensure_ascii=False),
        "config": json.dumps(recorded_config.as_dict(network.config)),
        "seed": json.dumps(network.seed),  # of an ensemble a list, as the sha256 of its members
        "step": json.dumps(network.step),
        # as in result.json
        "params_sha256": json.dumps(hashes) if hashes else sha256(network.variables),
        # of an ensemble a list: its own and those of its members
        **({"temperature": json.dumps(fitted if hashes else fitted[0])} if fitted else {}),
    }


FORMATS: dict[str, Callable[["Network"], bytes]] = {
    function.__name__: function for function in (stablehlo, onnx, safetensors, html)
}
