"""A graph of ONNX operators, and its form with the fewest of them."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

# Runtimes of 2022 and later read opset 17 and IR version 8.
OPSET, IR_VERSION = 17, 8


@dataclasses.dataclass
class Node:
    kind: str  # the name of the operator
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes in the order of their computation, and the constants that they read, by name."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._labels: dict[str, str] = {}  # of constants
        self._known: dict[Any, str] = {}  # what is there already, and its name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of the result of an operator; equal ones are computed once."""
        key = (kind, inputs, str(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = f"{kind.lower()}{len(self.nodes)}"
            self.nodes.append(Node(kind, list(inputs), self._known[key], attributes))
        return self._known[key]

    def constant(self, value: Any, label: str = "") -> str:
        """The name of a constant, in the file its label if that is free; equal ones are one."""
        array = np.array(value, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant {len(self._known)}"
            self._labels[self._known[key]] = label or "constant"
        self.constants.setdefault(self._known[key], array)  # it may have been dropped
        return self._known[key]

    def integers(self, values: Sequence[int]) -> str:
        """The name of a list of integers, such as a shape."""
        return self.constant(np.array(values, np.int64))

    def finish(self, output: str, name: str) -> None:
        """Drops and joins nodes, and gives their results final names; `output` becomes `name`."""
        self.nodes.append(Node("Identity", [output], name, {}))
        self._simplify(name)
        names = {"images": "images", name: name}
        (output,) = self.nodes[-1].inputs  # of the simplified graph
        if any(node.output == output for node in self.nodes):  # not a constant or the images
            self.nodes.pop()
            names[output] = name
        counts: collections.Counter[str] = collections.Counter()
        for known in self.constants:
            label = self._labels[known]
            counts[label] += 1
            names.setdefault(known, f"{label}_{counts[label]}" if counts[label] > 1 else label)
        for index, node in enumerate(self.nodes):
            names.setdefault(node.output, f"{node.kind.lower()}{index}")
        for node in self.nodes:
            node.inputs = [names[used] for used in node.inputs]
            node.output = names[node.output]
        self.constants = {names[known]: value for known, value in self.constants.items()}

    def serialize(
        self, image_shape: Sequence[int], num_classes: int, metadata: dict[str, str]
    ) -> bytes:
        """The content of a file: `images` uint8 [N, *image_shape] -> `logits` [N, num_classes]."""
        from onnx import TensorProto, checker, helper, numpy_helper

        graph = helper.make_graph(
            [helper.make_node(n.kind, n.inputs, [n.output], **n.attributes) for n in self.nodes],
            "mnist_cnn",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *image_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", num_classes])],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, producer_name="mnist_cnn", opset_imports=[opset], ir_version=IR_VERSION
        )
        helper.set_model_props(model, metadata)
        checker.check_model(model, full_check=True)
        return model.SerializeToString()

    def _simplify(self, output: str) -> None:
        while True:
            used, kept = {output}, []
            for node in reversed(self.nodes):
                if node.output in used:
                    used.update(node.inputs)
                    kept.append(node)
            self.nodes = kept[::-1]
            self.constants = {name: value for name, value in self.constants.items() if name in used}
            uses = collections.Counter(name for node in self.nodes for name in node.inputs)
            by_output = {node.output: node for node in self.nodes if uses[node.output] == 1}
            if not any(self._joined(node, by_output) for node in self.nodes):
                return

    def _joined(self, node: Node, by_output: dict[str, Node]) -> bool:
        """Joins a constant term or factor with what comes before it; whether that was possible.

        `by_output` has the nodes whose results are used once.
        """
        before = by_output.get(node.inputs[0])
        value = self.constants.get(node.inputs[-1])
        if node.kind not in ("Add", "Mul", "Div") or value is None or value.dtype.kind != "f":
            return False
        if value.size == 1 and value.item() == (node.kind != "Add"):  # x + 0, x * 1, x / 1
            return self._replace(node, node.inputs[0])
        if before is None or not np.isfinite(value).all():
            return False
        if before.kind == "MaxPool" and node.kind == "Add":
            # The largest of x + a is the largest of x, plus a.
            product = by_output.get(before.inputs[0])
            if not product or product.kind != "Conv" or not self._fits(product, value):
                return False
            before.inputs, node.inputs = [product.output, node.inputs[1]], [before.output]
            before.kind, node.kind = node.kind, before.kind
            before.attributes, node.attributes = node.attributes, before.attributes
            return True
        if before.kind in ("Conv", "Gemm") and node.kind != "Div":
            return self._fits(before, value) and self._joined_with_product(before, node, value)
        first = self.constants.get(before.inputs[-1])
        if first is None or before.kind not in ("Add", "Mul"):
            return False
        label = self._labels[before.inputs[1]]
        if (before.kind, node.kind) == ("Add", "Mul"):  # (x + a) * b = x * b + a * b
            before.kind, node.kind = "Mul", "Add"
            before.inputs[1], node.inputs[1] = node.inputs[1], self.constant(first * value, label)
            return True
        if before.kind != node.kind and (before.kind, node.kind) != ("Mul", "Div"):
            return False
        operation = {"Add": np.add, "Mul": np.multiply, "Div": np.divide}[node.kind]
        before.inputs[1] = self.constant(operation(first, value), label)
        return self._replace(node, before.output)

    def _fits(self, product: Node, value: np.ndarray) -> bool:
        """Whether `value` has one number for each output channel of constant weights."""
        kernel = self.constants.get(product.inputs[1])
        if kernel is None or any(name not in self.constants for name in product.inputs[2:]):
            return False
        channels = kernel.shape[product.kind == "Gemm"]
        return value.size == 1 or (value.ndim > 1 and value.shape[1] == value.size == channels)

    def _joined_with_product(self, product: Node, node: Node, value: np.ndarray) -> bool:
        weights, *biases = product.inputs[1:]
        kernel, axis = self.constants[weights], int(product.kind == "Gemm")
        value = np.broadcast_to(value.reshape(-1), (kernel.shape[axis],))
        if node.kind == "Mul":
            others = [i for i in range(kernel.ndim) if i != axis]
            scaled = kernel * np.expand_dims(value, others)
            product.inputs[1] = self.constant(scaled, self._labels[weights])
            product.inputs[2:] = [
                self.constant(self.constants[bias] * value, self._labels[bias]) for bias in biases
            ]
        else:
            for bias in biases:
                value = value + self.constants[bias]
            label = self._labels[(biases or node.inputs[1:])[0]]
            product.inputs[2:] = [self.constant(value, label)]
        return self._replace(node, product.output)

    def _replace(self, node: Node, name: str) -> bool:
        """Removes a node whose result is now that of `name`."""
        self.nodes.remove(node)
        for other in self.nodes:
            other.inputs = [name if used == node.output else used for used in other.inputs]
        return True
