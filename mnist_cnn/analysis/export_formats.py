"""A trained network as the content of a file for other programs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_cnn.errors import UserError

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
    """`images` uint8 [N, 28, 28, 1] -> `logits` float32 [N, 10]; UserError for another model."""
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
    tensors |= {"scale": np.float32(255), "rows": np.array([0, 7 * 7 * 64], np.int64)}
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
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 28, 28, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    # Runtimes of 2022 and later read opset 17 and IR version 8.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


FORMATS: dict[str, Callable[["Network"], bytes]] = {
    function.__name__: function for function in (stablehlo, onnx, safetensors)
}
