"""A trained network as the content of a file for other programs."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_cnn.errors import UserError
from mnist_cnn.runner import recorded_config
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.version import __version__

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network


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


def safetensors(network: "Network") -> bytes:
    """Parameters and batch statistics by name: "conv1.kernel", "norm1.mean".

    The metadata has what `mnist_cnn.load` needs to make the network of it again.
    """
    from safetensors.numpy import save

    from mnist_cnn.models import weights

    tensors: dict[str, Any] = {}
    for collection in network.variables.values():
        tensors |= weights.flat(collection)
    content = save(tensors, {"format": "flax", **_metadata(network)})
    # The library writes the metadata in another order in each process.
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[size:]


def onnx(network: "Network") -> bytes:
    """`images` uint8 [N, H, W, C] -> `logits` float32 [N, K]; UserError for another model.

    The metadata has the form of the images, and the names of the classes.
    """
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    from mnist_cnn.models import weights
    from mnist_cnn.models.cnn import CNN

    if not isinstance(network.model, CNN):
        raise UserError(
            f"--format onnx: got a network of {type(network.model).__name__}, expected the "
            "tutorial's (model='cnn'); use stablehlo or safetensors"
        )
    tensors: dict[str, Any] = weights.flat(network.params)
    for name in ("conv1.kernel", "conv2.kernel"):  # ONNX: [out, in, height, width]
        tensors[name] = np.ascontiguousarray(tensors[name].transpose(3, 2, 0, 1))
    rows = tensors["dense1.kernel"].shape[0]
    tensors |= {"scale": np.float32(255), "rows": np.array([0, rows], np.int64)}
    nodes: list[Any] = []

    def node(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    x = node("Div", node("Cast", "images", to=TensorProto.FLOAT), "scale")
    x = node("Transpose", x, perm=[0, 3, 1, 2])
    for layer in ("conv1", "conv2"):
        x = node("Conv", x, f"{layer}.kernel", f"{layer}.bias", pads=[2, 2, 2, 2])
        x = node("MaxPool", node("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = node("Reshape", node("Transpose", x, perm=[0, 2, 3, 1]), "rows")
    x = node("Relu", node("Gemm", x, "dense1.kernel", "dense1.bias"))
    node("Gemm", x, "dense2.kernel", "dense2.bias", output="logits")
    graph = helper.make_graph(
        nodes,
        "mnist_cnn",
        [
            helper.make_tensor_value_info(
                "images", TensorProto.UINT8, ["N", *network.spec.image_shape]
            )
        ],
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, ["N", network.spec.num_classes]
            )
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    # Runtimes of 2022 and later read opset 17 and IR version 8.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, _metadata(network))
    checker.check_model(model)
    return model.SerializeToString()


def _metadata(network: "Network") -> dict[str, str]:
    """What a file says of its network: lists and objects as JSON."""
    return {
        "mnist_cnn": __version__,
        "image_shape": json.dumps(network.spec.image_shape),
        "class_names": json.dumps(network.spec.class_names),
        "config": json.dumps(recorded_config.as_dict(network.config)),
        "seed": str(network.seed),
        "step": str(network.step),
        "params_sha256": sha256(network.variables),
    }


FORMATS: dict[str, Callable[["Network"], bytes]] = {
    function.__name__: function for function in (stablehlo, onnx, safetensors)
}
