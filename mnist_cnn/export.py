"""The trained network for elsewhere: a file that needs nothing of this package.

    python -m mnist_cnn.export --workdir DIR --format FORMAT --output FILE

FORMAT is `stablehlo` (runs on CPU, GPU and TPU with JAX alone), `onnx` (the tutorial's network
alone) or `safetensors` (the parameters by name).  Exit status: 0 done; 1 an error, said in one
line; 2 bad usage.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from mnist_cnn.analysis.network import Network
from mnist_cnn.errors import ConfigError, UserError, printable

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(network: Network) -> bytes:
    """The program uint8 [N, 28, 28, 1] -> float32 logits [N, 10], parameters included.

    `jax.export.deserialize(content).call(images)` runs it, for any N.
    """
    import jax
    from jax import export

    from mnist_cnn.models.apply import forward

    def logits(images: Any) -> Any:
        # As arguments, not as constants, which XLA would compute with beforehand, to other bits.
        variables = jax.lax.optimization_barrier(network.variables)
        return forward(network.model, variables, images)

    (count,) = export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((count, 28, 28, 1), "uint8")
    return bytes(export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())


def safetensors(network: Network) -> bytes:
    """Parameters and statistics, named as in their trees: "conv1.kernel", "norm1.mean"."""
    from safetensors import numpy as library

    from mnist_cnn.models import weights as interop

    named: dict[str, Any] = {}
    for collection in network.variables.values():
        named |= interop.flat(collection)
    return library.save(named, {"format": "flax"})


def onnx(network: Network) -> bytes:
    """The tutorial's network: `images` uint8 [N, 28, 28, 1] -> `logits` float32 [N, 10].

    Raises:
      UserError: it is another network.
    """
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    from mnist_cnn.models import weights as interop
    from mnist_cnn.models.cnn import CNN

    if not isinstance(network.model, CNN):
        raise UserError(
            f"--format onnx: got a network of {type(network.model).__name__}, expected the "
            "tutorial's (model='cnn'); stablehlo and safetensors take any"
        )
    weights = interop.flat(network.params)
    for layer in ("conv1", "conv2"):  # ONNX has kernels as [out, in, height, width]
        name = f"{layer}.kernel"
        weights[name] = np.ascontiguousarray(weights[name].transpose(3, 2, 0, 1))
    constants = {
        **weights, "scale": np.float32(255), "rows": np.array([0, 7 * 7 * 64], np.int64),
    }  # fmt: skip
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
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    # Opset 17 and IR 8 are what runtimes of 2022 and later read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


FORMATS: dict[str, Callable[[Network], bytes]] = {
    "stablehlo": stablehlo, "onnx": onnx, "safetensors": safetensors,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    from mnist_cnn import command_line
    from mnist_cnn.analysis import network
    from mnist_cnn.files import write_atomically

    given = flags.FLAGS
    if given.workdir is None or given.output is None or given.format is None or arguments[1:]:
        raise ConfigError(
            f"expected --workdir DIR --format {'|'.join(FORMATS)} --output FILE; see --helpshort"
        )
    command_line.silence_libraries()
    path = pathlib.Path(given.output)
    command_line.check_output(path)
    trained = network.load(given.workdir, given.config, given.seed)
    try:
        content = FORMATS[given.format](trained)
    except ImportError as error:
        raise UserError(
            f"--format {given.format} needs the package {error.name}: pip install "
            f"'mnist_cnn[export]'"
        ) from None
    write_atomically(path, content)
    print(f"{printable(str(path))}: {given.format}, {len(content):,} bytes, seed {trained.seed}")
    return 0


if __name__ == "__main__":  # the flags are the command's alone: importing this module adds none
    from ml_collections import config_flags

    from mnist_cnn import command_line

    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_enum("format", None, list(FORMATS), "What to write.")
    flags.DEFINE_string("output", None, "The file to write.")
    flags.DEFINE_integer("seed", None, "Which of a run's networks; the first.")
    config_flags.DEFINE_config_file(
        "config", None, "The experiment file, where it brought a module of its own."
    )
    command_line.command(main, command_line.parse_flags)
