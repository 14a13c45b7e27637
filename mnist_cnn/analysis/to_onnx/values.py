"""Arrays of a program on the way to ONNX: constants and tensors, and as inputs of operators."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mnist_cnn.analysis.to_onnx.graph import Graph
from mnist_cnn.errors import UserError
from mnist_cnn.models.kernels import rewrite

COUNTS = (3, 5)  # the numbers of images of the two traces

Size = tuple[int, int]  # of an axis in both traces
Sizes = tuple[Size, ...]


class Constant(NamedTuple):
    """An array that depends on no pixel, in both traces."""

    values: tuple[Any, Any]
    label: str = ""  # the name of the parameter that it is made of


class Tensor(NamedTuple):
    """A result of the graph, stored with its axes in any order.

    `sizes` are in the program's order. One may be 1 where the program's is larger: ONNX broadcasts.
    """

    name: str
    sizes: Sizes
    axes: tuple[int, ...]  # for each stored axis: which of the program's axes it is


Value = Constant | Tensor


def refusal(what: str) -> UserError:
    return UserError(
        f"--format onnx: the network has {what}, which is not translated to ONNX; use stablehlo"
    )


def ordered(sizes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(range(len(sizes)))


def onnx_type(dtype: Any) -> np.dtype:
    """The type that stands for one of JAX: float32 for all floating point numbers."""
    return np.dtype(np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype)


def smallest(constant: Constant) -> np.ndarray:
    """The array with size 1 wherever it is the same along an axis; it depends on no size then."""
    arrays = []
    for value in constant.values:
        array = np.asarray(value)
        array = array.astype(onnx_type(array.dtype))
        for axis in range(array.ndim):
            part = array.take([0], axis) if array.shape[axis] else array
            if np.array_equal(np.broadcast_to(part, array.shape), array, array.dtype.kind == "f"):
                array = part
        arrays.append(array)
    if not np.array_equal(arrays[0], arrays[1], arrays[0].dtype.kind == "f"):
        raise refusal("a constant that depends on the number of images")
    return arrays[0]


def transposed(graph: Graph, tensor: Tensor, axes: Sequence[int]) -> str:
    order = [tensor.axes.index(axis) for axis in axes]
    if order == sorted(order):
        return tensor.name
    return graph.node("Transpose", tensor.name, perm=order)


def stored(graph: Graph, value: Value, sizes: Sizes, axes: Sequence[int] | None = None) -> str:
    """The name of the whole array of these sizes, stored with its axes in this order."""
    axes = ordered(sizes) if axes is None else axes
    if isinstance(value, Constant):
        array = smallest(value)
        held: Sizes = tuple((size, size) for size in array.shape)
        if all(first == second for first, second in sizes):
            array, held = np.broadcast_to(array, [size for size, _ in sizes]), sizes
        name = graph.constant(array.transpose(axes), value.label)
    else:
        held, name = value.sizes, transposed(graph, value, axes)
    if held == sizes:
        return name
    return graph.node("Expand", name, shape_input(graph, [sizes[axis] for axis in axes]))


def shape_input(graph: Graph, sizes: Sequence[Size]) -> str:
    """The name of a list of sizes, computed from the number of images."""
    if all(first == second for first, second in sizes):
        return graph.integers([size for size, _ in sizes])
    parts = []
    for first, second in sizes:
        slope, rest = divmod(second - first, COUNTS[1] - COUNTS[0])
        if rest:
            raise refusal("an array whose size is no multiple of the number of images")
        count = graph.node("Shape", "images", start=0, end=1)
        part = graph.node("Mul", count, graph.integers([slope]))
        parts.append(graph.node("Add", part, graph.integers([first - slope * COUNTS[0]])))
    return graph.node("Concat", *parts, axis=0)


@dataclasses.dataclass
class Operation:
    """One result of an operation, of which at least one operand depends on the images."""

    graph: Graph
    equations: Any  # in both traces
    operands: list[Value]
    output: int  # which of the results

    @property
    def params(self) -> Any:
        return self.equations[0].params

    def sizes_of(self, index: int) -> Sizes:
        """The sizes of an operand."""
        shapes = [equation.invars[index].aval.shape for equation in self.equations]
        return tuple(zip(*shapes, strict=True))

    @functools.cached_property
    def sizes(self) -> Sizes:
        """The sizes of the result."""
        shapes = [equation.outvars[self.output].aval.shape for equation in self.equations]
        return tuple(zip(*shapes, strict=True))

    def stored(self, index: int, axes: Sequence[int] | None = None) -> str:
        """The name of a whole operand, stored with its axes in this order."""
        return stored(self.graph, self.operands[index], self.sizes_of(index), axes)

    def axes_of(self, index: int) -> tuple[int, ...]:
        """The order of the axes of an operand that needs no node."""
        operand = self.operands[index]
        return operand.axes if isinstance(operand, Tensor) else ordered(self.sizes_of(index))

    def result(self, name: str, axes: Sequence[int] | None = None) -> Tensor:
        """The whole result."""
        return Tensor(name, self.sizes, ordered(self.sizes) if axes is None else tuple(axes))

    def constant(self, index: int) -> np.ndarray:
        """A constant operand that is the same for any number of images."""
        operand = self.operands[index]
        if isinstance(operand, Tensor):
            raise self.refused("with positions that depend on the images")
        first, second = (np.asarray(value) for value in operand.values)
        if not np.array_equal(first, second):
            raise self.refused("with positions that depend on the number of images")
        return first

    def refused(self, how: str) -> UserError:
        return refusal(f"the operation {self.equations[0].primitive.name} {how}")


def without(axes: Sequence[int], dropped: set[int]) -> tuple[int, ...]:
    """The order of the axes that are left."""
    left = [axis for axis in axes if axis not in dropped]
    return tuple(sorted(left).index(axis) for axis in left)


def bind(equation: Any, operands: list[Any], params: Any) -> list[Any]:
    results = rewrite.bind(equation, operands, params)
    return results if equation.primitive.multiple_results else [results]
