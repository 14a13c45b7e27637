"""A JAX program of a batch of images as a graph of ONNX operators.

The program is traced twice, for two numbers of images, and both traces are read side by side: a
size that differs depends on the number of images. What depends on no pixel is computed here, so
that it is a constant in the graph. Operations with a faster form on a CPU are taken in the form
for other platforms: a convolution is one operator. To support another primitive of JAX, add it to
`_OPERATORS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from mnist_cnn.analysis.onnx_graph import Graph
from mnist_cnn.errors import UserError

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


def convert(function: Callable[..., Any], variables: Any, image_shape: Sequence[int]) -> Graph:
    """The graph from `images` (uint8 [N, *image_shape]) to `logits`, for any N.

    `function(variables, images)` returns the logits. Floating point numbers are float32, whatever
    the program computes in. Raises UserError if an operation of the program has no form in ONNX.
    """
    programs = [
        jax.make_jaxpr(function)(variables, jax.ShapeDtypeStruct((count, *image_shape), "uint8"))
        for count in COUNTS
    ]
    sizes: Sizes = (COUNTS, *((size, size) for size in image_shape))
    inputs: list[Value] = [
        Constant((leaf, leaf), ".".join(str(getattr(key, "key", key)) for key in path[1:]))
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ]
    graph = Graph()
    (logits,) = _convert(graph, programs, [*inputs, Tensor("images", sizes, _ordered(sizes))])
    sizes = tuple(zip(*(program.out_avals[0].shape for program in programs), strict=True))
    graph.finish(_stored(graph, logits, sizes), "logits")
    return graph


# Reading the two traces.

# Operations that are a program of their own.
_INLINED = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip
_UNCHANGED = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "name"}
# A constant keeps the label of what it is made of by these.
_KEEP_LABEL = {"reshape", "broadcast_in_dim", "transpose", "convert_element_type", "squeeze"}


def _convert(graph: Graph, programs: Any, inputs: Sequence[Value]) -> list[Value]:
    """The results of a program, whose two traces are `programs`."""
    first, second = (program.jaxpr for program in programs)
    if [e.primitive for e in first.eqns] != [e.primitive for e in second.eqns]:
        raise _refusal("a program that differs for {} and {} images".format(*COUNTS))
    constants = [Constant(pair) for pair in zip(*(p.consts for p in programs), strict=True)]
    values = dict(zip([*first.constvars, *first.invars], [*constants, *inputs], strict=True))

    def read(variable: Any, other: Any) -> Value:
        if isinstance(variable, core.Literal):
            return Constant((variable.val, other.val))
        return values[variable]

    for equations in zip(first.eqns, second.eqns, strict=True):
        operands = [
            read(*pair) for pair in zip(*(equation.invars for equation in equations), strict=True)
        ]
        results = _convert_equation(graph, equations, operands)
        values.update(zip(equations[0].outvars, results, strict=True))
    return [read(*pair) for pair in zip(first.outvars, second.outvars, strict=True)]


def _convert_equation(graph: Graph, equations: Any, operands: list[Value]) -> Sequence[Value]:
    name, params = equations[0].primitive.name, [equation.params for equation in equations]
    if name == "platform_index":
        index = np.int32(params[0]["platforms"].index(None))
        return [Constant((index, index))]
    if name in _INLINED:
        return _convert(graph, [_program(own) for own in params], operands)
    if name == "cond" and isinstance(operands[0], Constant):
        branches = [
            own["branches"][max(0, min(int(index), len(own["branches"]) - 1))]
            for own, index in zip(params, operands[0].values, strict=True)
        ]
        return _convert(graph, branches, operands[1:])
    constants = [operand for operand in operands if isinstance(operand, Constant)]
    if len(constants) == len(operands):
        return _compute(equations, constants)
    if name in _UNCHANGED:
        return operands
    if name == "scan":
        return _unroll(graph, params, operands)
    if not equations[0].outvars:  # a message of jax.debug
        return []
    if name not in _OPERATORS:
        raise _refusal(f"the operation {name}")
    return [
        _OPERATORS[name](_Operation(graph, equations, operands, output))
        for output in range(len(equations[0].outvars))
    ]


def _program(params: Any) -> core.ClosedJaxpr:
    """The program in the parameters of an operation."""
    (program,) = (p for p in params.values() if isinstance(p, core.Jaxpr | core.ClosedJaxpr))
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def _compute(equations: Any, operands: list[Constant]) -> list[Value]:
    """The results of an operation on constants."""

    def results(equation: Any, trace: int) -> list[Any]:
        return _bind(equation, [operand.values[trace] for operand in operands], equation.params)

    keeps_label = equations[0].primitive.name in _KEEP_LABEL
    label = operands[0].label if keeps_label else ""
    pairs = zip(*(results(equation, i) for i, equation in enumerate(equations)), strict=True)
    return [Constant(pair, label) for pair in pairs]


def _bind(equation: Any, operands: list[Any], params: Any) -> list[Any]:
    bound = equation.primitive.get_bind_params(params)
    functions, options = bound if isinstance(bound, tuple) else ((), bound)
    results = equation.primitive.bind(*functions, *operands, **options)
    return results if equation.primitive.multiple_results else [results]


def _unroll(graph: Graph, params: Any, operands: list[Value]) -> list[Value]:
    """The results of a loop of fixed length."""
    length, programs = params[0]["length"], [own["jaxpr"] for own in params]
    if length != params[1]["length"]:
        raise _refusal("a loop whose length is the number of images")
    split = params[0]["num_consts"], params[0]["num_consts"] + params[0]["num_carry"]
    constants, carry, sequences = (
        operands[: split[0]],
        operands[split[0] : split[1]],
        operands[split[1] :],
    )
    steps: list[list[Value]] = []
    for index in sorted(range(length), reverse=params[0]["reverse"]):
        elements = [_element(graph, sequence, index) for sequence in sequences]
        results = _convert(graph, programs, [*constants, *carry, *elements])
        carry, step = results[: len(carry)], results[len(carry) :]
        steps.insert(0, step) if params[0]["reverse"] else steps.append(step)
    avals = [program.out_avals[len(carry) :] for program in programs]
    stacked = []
    for series, *pair in zip(zip(*steps, strict=True), *avals, strict=True):
        sizes = tuple(zip(*(aval.shape for aval in pair), strict=True))
        parts = [_stored(graph, value, sizes) for value in series]
        parts = [graph.node("Unsqueeze", part, graph.integers([0])) for part in parts]
        name = graph.node("Concat", *parts, axis=0)
        stacked.append(Tensor(name, ((length, length), *sizes), _ordered((0, *sizes))))
    return [*carry, *stacked]


def _element(graph: Graph, value: Value, index: int) -> Value:
    """An array without its first axis, at a position of it."""
    if isinstance(value, Constant):
        return Constant((value.values[0][index], value.values[1][index]))
    position = value.axes.index(0)
    index = index if value.sizes[0] != (1, 1) else 0
    name = graph.node("Gather", value.name, graph.constant(np.int64(index)), axis=position)
    return Tensor(name, value.sizes[1:], tuple(axis - 1 for axis in value.axes if axis))


def _refusal(what: str) -> UserError:
    return UserError(
        f"--format onnx: the network has {what}, which is not translated to ONNX; use stablehlo"
    )


# Values as the inputs of operators.


def _ordered(sizes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(range(len(sizes)))


def _onnx_type(dtype: Any) -> np.dtype:
    """The type that stands for one of JAX: float32 for all floating point numbers."""
    return np.dtype(np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype)


def _smallest(constant: Constant) -> np.ndarray:
    """The array with size 1 wherever it is the same along an axis; it depends on no size then."""
    arrays = []
    for value in constant.values:
        array = np.asarray(value)
        array = array.astype(_onnx_type(array.dtype))
        for axis in range(array.ndim):
            part = array.take([0], axis) if array.shape[axis] else array
            if np.array_equal(np.broadcast_to(part, array.shape), array, array.dtype.kind == "f"):
                array = part
        arrays.append(array)
    if not np.array_equal(arrays[0], arrays[1], arrays[0].dtype.kind == "f"):
        raise _refusal("a constant that depends on the number of images")
    return arrays[0]


def _transposed(graph: Graph, tensor: Tensor, axes: Sequence[int]) -> str:
    order = [tensor.axes.index(axis) for axis in axes]
    if order == sorted(order):
        return tensor.name
    return graph.node("Transpose", tensor.name, perm=order)


def _stored(graph: Graph, value: Value, sizes: Sizes, axes: Sequence[int] | None = None) -> str:
    """The name of the whole array of these sizes, stored with its axes in this order."""
    axes = _ordered(sizes) if axes is None else axes
    if isinstance(value, Constant):
        array = _smallest(value)
        held: Sizes = tuple((size, size) for size in array.shape)
        if all(first == second for first, second in sizes):
            array, held = np.broadcast_to(array, [size for size, _ in sizes]), sizes
        name = graph.constant(array.transpose(axes), value.label)
    else:
        held, name = value.sizes, _transposed(graph, value, axes)
    if held == sizes:
        return name
    return graph.node("Expand", name, _shape(graph, [sizes[axis] for axis in axes]))


def _shape(graph: Graph, sizes: Sequence[Size]) -> str:
    """The name of a list of sizes, computed from the number of images."""
    if all(first == second for first, second in sizes):
        return graph.integers([size for size, _ in sizes])
    parts = []
    for first, second in sizes:
        slope, rest = divmod(second - first, COUNTS[1] - COUNTS[0])
        if rest:
            raise _refusal("an array whose size is no multiple of the number of images")
        count = graph.node("Shape", "images", start=0, end=1)
        part = graph.node("Mul", count, graph.integers([slope]))
        parts.append(graph.node("Add", part, graph.integers([first - slope * COUNTS[0]])))
    return graph.node("Concat", *parts, axis=0)


@dataclasses.dataclass
class _Operation:
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
        return _stored(self.graph, self.operands[index], self.sizes_of(index), axes)

    def axes_of(self, index: int) -> tuple[int, ...]:
        """The order of the axes of an operand that needs no node."""
        operand = self.operands[index]
        return operand.axes if isinstance(operand, Tensor) else _ordered(self.sizes_of(index))

    def result(self, name: str, axes: Sequence[int] | None = None) -> Tensor:
        """The whole result."""
        return Tensor(name, self.sizes, _ordered(self.sizes) if axes is None else tuple(axes))

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
        return _refusal(f"the operation {self.equations[0].primitive.name} {how}")


# The operations. Each function returns the result of one operation.


def _elementwise(kind: str, **attributes: Any) -> Callable[[_Operation], Tensor]:
    return lambda op: _apply(op, functools.partial(op.graph.node, kind, **attributes))


def _chained(*kinds: str) -> Callable[[_Operation], Tensor]:
    """Operators after each other; the first may have several operands."""

    def convert(op: _Operation) -> Tensor:
        def nodes(*names: str) -> str:
            name = op.graph.node(kinds[0], *names)
            return functools.reduce(lambda name, kind: op.graph.node(kind, name), kinds[1:], name)

        return _apply(op, nodes)

    return convert


def _apply(op: _Operation, nodes: Callable[..., str]) -> Tensor:
    """`nodes` of the names of all operands, which ONNX broadcasts."""
    tensors = [operand for operand in op.operands if isinstance(operand, Tensor)]
    axes = max((tensor.axes for tensor in tensors), key=len)
    names, held = [], []
    for operand in op.operands:
        if isinstance(operand, Tensor):
            same_rank = len(operand.axes) == len(axes)
            names.append(_transposed(op.graph, operand, axes) if same_rank else operand.name)
            held.append(operand.sizes)
        else:
            array = _smallest(operand)
            held.append(tuple((size, size) for size in array.shape))
            array = array.reshape(()) if array.size == 1 else array.transpose(axes)
            names.append(op.graph.constant(array, operand.label))
    held = [sizes for sizes in held if len(sizes) == len(axes)]
    return Tensor(nodes(*names), tuple(map(max, zip(*held, strict=True))), axes)


def _commutative(kind: str) -> Callable[[_Operation], Tensor]:
    """An operator of two operands, of which the second may be constant."""

    def convert(op: _Operation) -> Tensor:
        def nodes(first: str, second: str) -> str:
            if first in op.graph.constants:
                first, second = second, first
            value = op.graph.constants.get(second)
            if kind == "Max" and value is not None and value.shape == () and value == 0:
                return op.graph.node("Relu", first)
            return op.graph.node(kind, first, second)

        return _apply(op, nodes)

    return convert


def _subtract(op: _Operation) -> Tensor:
    def nodes(first: str, second: str) -> str:
        value = op.graph.constants.get(second)
        if value is None or value.dtype.kind != "f":
            return op.graph.node("Sub", first, second)
        constant = op.operands[1]
        label = constant.label if isinstance(constant, Constant) else ""
        return op.graph.node("Add", first, op.graph.constant(-value, label))

    return _apply(op, nodes)


def _shifted(kind: str, before: float, after: float) -> Callable[[_Operation], Tensor]:
    """An operator of x + before, plus `after`."""

    def convert(op: _Operation) -> Tensor:
        def nodes(name: str) -> str:
            result = op.graph.node(
                kind, op.graph.node("Add", name, op.graph.constant(np.float32(before)))
            )
            return op.graph.node("Add", result, op.graph.constant(np.float32(after)))

        return _apply(op, nodes)

    return convert


def _power(op: _Operation) -> Tensor:
    exponent = op.params.get("y", 2)  # 2 is of the operation `square`

    def nodes(name: str) -> str:
        if exponent == 2:
            return op.graph.node("Mul", name, name)
        value = np.asarray(exponent, _onnx_type(op.equations[0].outvars[0].aval.dtype))
        return op.graph.node("Pow", name, op.graph.constant(value))

    return _apply(op, nodes)


def _is_finite(op: _Operation) -> Tensor:
    infinity = op.graph.constant(np.float32(np.inf))
    return _apply(op, lambda name: op.graph.node("Less", op.graph.node("Abs", name), infinity))


def _complement(op: _Operation) -> Tensor:
    """1 - erf(x)."""

    def nodes(name: str) -> str:
        negative = op.graph.node("Neg", op.graph.node("Erf", name))
        return op.graph.node("Add", negative, op.graph.constant(np.float32(1)))

    return _apply(op, nodes)


def _round(op: _Operation) -> Tensor:
    if op.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise op.refused("away from zero")
    return _apply(op, functools.partial(op.graph.node, "Round"))


def _clamp(op: _Operation) -> Tensor:
    return _apply(op, lambda low, x, high: op.graph.node("Min", op.graph.node("Max", x, low), high))


def _select(op: _Operation) -> Tensor:
    if len(op.operands) != 3 or op.equations[0].invars[0].aval.dtype != bool:
        raise op.refused("of more than two cases")
    return _apply(op, lambda which, no, yes: op.graph.node("Where", which, yes, no))


def _cast(op: _Operation) -> Tensor:
    from onnx import helper

    (operand,), equation = op.operands, op.equations[0]
    assert isinstance(operand, Tensor)
    old, new = (_onnx_type(v[0].aval.dtype) for v in (equation.invars, equation.outvars))
    if old == new:
        return operand
    kind = helper.np_dtype_to_tensor_dtype(new)
    return operand._replace(name=op.graph.node("Cast", operand.name, to=kind))


def _reduce(kind: str) -> Callable[[_Operation], Tensor]:
    def convert(op: _Operation) -> Tensor:
        axes, reduced = op.axes_of(0), set(op.params["axes"])
        positions = [axes.index(axis) for axis in sorted(reduced)]
        name = op.stored(0, axes)
        if kind == "ReduceSum":
            name = op.graph.node(kind, name, op.graph.integers(positions), keepdims=0)
        else:
            name = op.graph.node(kind, name, axes=positions, keepdims=0)
        return op.result(name, _without(axes, reduced))

    return convert


def _without(axes: Sequence[int], dropped: set[int]) -> tuple[int, ...]:
    """The order of the axes that are left."""
    left = [axis for axis in axes if axis not in dropped]
    return tuple(sorted(left).index(axis) for axis in left)


def _convolve(op: _Operation) -> Tensor:
    params = op.params
    layout = params["dimension_numbers"]
    strides, gaps = params["window_strides"], params["lhs_dilation"]
    pads = [tuple(map(int, pair)) for pair in params["padding"]]
    groups = params["feature_group_count"]
    if params["batch_group_count"] != 1 or min(map(min, pads)) < 0:
        raise op.refused("with groups of the batch or with negative padding")
    attributes: dict[str, Any] = {
        "strides": list(strides),
        "dilations": list(params["rhs_dilation"]),
        "group": groups,
    }
    images, kernel = op.stored(0, layout.lhs_spec), op.stored(1, layout.rhs_spec)
    if set(gaps) == {1}:
        attributes["pads"] = [pair[0] for pair in pads] + [pair[1] for pair in pads]
        return op.result(op.graph.node("Conv", images, kernel, **attributes), layout.out_spec)
    # A transposed convolution: ONNX has it as the gradient of one.
    if groups != 1 or set(strides) != {1} or kernel not in op.graph.constants:
        raise op.refused("of dilated images with strides or groups")
    weights = op.graph.constants[kernel]
    flipped = np.flip(weights, tuple(range(2, weights.ndim))).swapaxes(0, 1)
    ends = [
        [(size - 1) * dilation - pad for pad in pair]
        for size, dilation, pair in zip(
            weights.shape[2:], params["rhs_dilation"], pads, strict=True
        )
    ]
    if min(end[0] for end in ends) < 0:
        raise op.refused("of dilated images with more padding than the kernel's size")
    attributes["strides"] = list(gaps)
    attributes["pads"] = [end[0] for end in ends] + [max(end[1], 0) for end in ends]
    attributes["output_padding"] = [max(-end[1], 0) for end in ends]
    label = op.operands[1].label if isinstance(op.operands[1], Constant) else ""
    name = op.graph.node("ConvTranspose", images, op.graph.constant(flipped, label), **attributes)
    return op.result(name, layout.out_spec)


def _pool(kind: str) -> Callable[[_Operation], Tensor]:
    def convert(op: _Operation) -> Tensor:
        params = op.params
        size, strides = params["window_dimensions"], params["window_strides"]
        pads, dilations = params["padding"], params["window_dilation"]
        whole = [
            axis
            for axis in range(len(size))
            if (size[axis], strides[axis], tuple(pads[axis])) == (1, 1, (0, 0))
        ]
        if set(params["base_dilation"]) != {1} or len(whole) < 2:
            raise op.refused("over the batch or the channels")
        if kind == "AveragePool" and set(dilations) != {1}:
            raise op.refused("with dilation")
        kept = whole[0], whole[-1]  # ONNX pools over all axes but two
        spatial = [axis for axis in range(len(size)) if axis not in kept]
        attributes: dict[str, Any] = {
            "kernel_shape": [size[axis] for axis in spatial],
            "strides": [strides[axis] for axis in spatial],
            "pads": [int(pads[axis][side]) for side in (0, 1) for axis in spatial],
        }
        if kind == "AveragePool":
            attributes["count_include_pad"] = 1
        elif set(dilations) != {1}:
            attributes["dilations"] = [dilations[axis] for axis in spatial]
        axes = (*kept, *spatial)
        name = op.graph.node(kind, op.stored(0, axes), **attributes)
        if kind == "AveragePool":  # of which this is the sum
            name = op.graph.node("Mul", name, op.graph.constant(np.float32(math.prod(size))))
        return op.result(name, axes)

    return convert


def _product(op: _Operation) -> Tensor:
    """A product of matrices; the result has the axes of the batch, the left and the right."""
    (left_sum, right_sum), (left_batch, right_batch) = op.params["dimension_numbers"]
    left, right = (
        [axis for axis in range(len(op.sizes_of(index))) if axis not in {*summed, *batch}]
        for index, summed, batch in ((0, left_sum, left_batch), (1, right_sum, right_batch))
    )
    one_sum = len(left_sum) == len(right) == 1
    if one_sum and (not left_batch or len(left) == 1):
        names = (
            op.stored(0, (*left_batch, *left, *left_sum)),
            op.stored(1, (*right_batch, *right_sum, *right)),
        )
        kind = "Gemm" if len(op.sizes) == 2 else "MatMul"
        return op.result(op.graph.node(kind, *names))
    letters = "abcdefghijklmnopqrstuvwxyz"
    of_right = dict(zip([*right_sum, *right_batch], [*left_sum, *left_batch], strict=True))
    terms = [
        letters[: len(op.sizes_of(0))],
        "".join(
            letters[of_right[axis]] if axis in of_right else letters[-1 - axis]
            for axis in range(len(op.sizes_of(1)))
        ),
    ]
    result = "".join(terms[0][axis] for axis in (*left_batch, *left))
    result += "".join(terms[1][axis] for axis in right)
    equation = f"{','.join(terms)}->{result}"
    return op.result(op.graph.node("Einsum", op.stored(0), op.stored(1), equation=equation))


def _broadcast(op: _Operation) -> Tensor:
    operand, dimensions = op.operands[0], op.params["broadcast_dimensions"]
    assert isinstance(operand, Tensor)
    if len(dimensions) == len(op.sizes):
        return operand
    new = [axis for axis in range(len(op.sizes)) if axis not in dimensions]
    name = _transposed(op.graph, operand, _ordered(operand.axes))
    name = op.graph.node("Unsqueeze", name, op.graph.integers(new))
    held = dict(zip(dimensions, operand.sizes, strict=True))
    sizes = tuple(held.get(axis, (1, 1)) for axis in range(len(op.sizes)))
    return Tensor(name, sizes, _ordered(sizes))


def _reshape(op: _Operation) -> Tensor:
    varying = [size for size in op.sizes if size[0] != size[1]]
    if len(varying) == 1:
        shape = op.graph.integers([-1 if size in varying else size[0] for size in op.sizes])
    else:
        shape = _shape(op.graph, op.sizes)
    return op.result(op.graph.node("Reshape", op.stored(0, op.params["dimensions"]), shape))


def _squeeze(op: _Operation) -> Tensor:
    (operand,), dropped = op.operands, set(op.params["dimensions"])
    assert isinstance(operand, Tensor)
    positions = sorted(operand.axes.index(axis) for axis in dropped)
    name = op.graph.node("Squeeze", operand.name, op.graph.integers(positions))
    sizes = tuple(size for axis, size in enumerate(operand.sizes) if axis not in dropped)
    return Tensor(name, sizes, _without(operand.axes, dropped))


def _transpose(op: _Operation) -> Tensor:
    (operand,), order = op.operands, op.params["permutation"]
    assert isinstance(operand, Tensor)
    axes = tuple(order.index(axis) for axis in operand.axes)
    return Tensor(operand.name, tuple(operand.sizes[axis] for axis in order), axes)


def _concatenate(op: _Operation) -> Tensor:
    first = next(i for i, operand in enumerate(op.operands) if isinstance(operand, Tensor))
    axes = op.axes_of(first)
    names = [op.stored(index, axes) for index in range(len(op.operands))]
    return op.result(op.graph.node("Concat", *names, axis=axes.index(op.params["dimension"])), axes)


def _stack(op: _Operation) -> Tensor:
    axis = op.params["axis"]
    names = [
        op.graph.node("Unsqueeze", op.stored(index), op.graph.integers([axis]))
        for index in range(len(op.operands))
    ]
    return op.result(op.graph.node("Concat", *names, axis=axis))


def _pad(op: _Operation) -> Tensor:
    config, other = (equation.params["padding_config"] for equation in op.equations)
    if config != other or any(interior for _, _, interior in config):
        raise op.refused("between the pixels or of the batch")
    axes = op.axes_of(0)
    pads = op.graph.integers([int(config[axis][side]) for side in (0, 1) for axis in axes])
    fill = op.constant(1)
    value = op.graph.constant(fill.astype(_onnx_type(fill.dtype)))
    return op.result(op.graph.node("Pad", op.stored(0, axes), pads, value), axes)


def _slice(op: _Operation) -> Tensor:
    axes, sizes = op.axes_of(0), op.sizes_of(0)
    starts, ends = (
        list(zip(*(equation.params[name] for equation in op.equations), strict=True))
        for name in ("start_indices", "limit_indices")
    )
    steps = op.params["strides"] or (1,) * len(sizes)
    parts = []  # start, end, position of the axis, step
    for position, axis in enumerate(axes):
        start, end, size = starts[axis], ends[axis], sizes[axis]
        if (start, end, steps[axis]) == ((0, 0), size, 1):
            continue
        from_end = end[0] - size[0]
        if start[0] != start[1] or (end[0] != end[1] and from_end != end[1] - size[1]):
            raise op.refused("at a position that depends on the number of images")
        last = end[0] if end[0] == end[1] else from_end or 2**31 - 1
        parts.append((start[0], last, position, steps[axis]))
    name = op.stored(0, axes)
    if parts:
        starts_ends_axes_steps = map(op.graph.integers, zip(*parts, strict=True))
        name = op.graph.node("Slice", name, *starts_ends_axes_steps)
    return op.result(name, axes)


def _take(op: _Operation) -> Tensor:
    """An operation that copies values of its first operand to places that are constant."""
    if op.equations[0].primitive.name == "gather" and isinstance(op.operands[0], Constant):
        return _look_up(op)
    sizes = op.sizes_of(0)
    varying, varying_result = (
        [axis for axis, size in enumerate(some) if size[0] != size[1]] for some in (sizes, op.sizes)
    )
    if len(varying) != 1 or len(varying_result) != 1 or isinstance(op.operands[0], Constant):
        raise op.refused("among the images")
    (batch,), (batch_result,) = varying, varying_result
    axes = (batch, *(axis for axis in range(len(sizes)) if axis != batch))
    rest = math.prod(sizes[axis][0] for axis in axes[1:])
    found = []
    for trace, equation in enumerate(op.equations):
        shape = [sizes[axis][trace] for axis in axes]
        numbers = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        numbers = np.moveaxis(numbers, 0, batch)
        others = [
            operand.values[trace] for operand in op.operands[1:] if isinstance(operand, Constant)
        ]
        if len(others) + 1 < len(op.operands):
            raise op.refused("at positions that depend on the images")
        params = dict(equation.params)
        if "fill_value" in params:
            params["fill_value"] = -1  # outside of the array
        result = _bind(equation, [jnp.asarray(numbers), *others], params)[op.output]
        result = np.moveaxis(np.asarray(result), batch_result, 0)
        if result.min(initial=0) < 0:
            raise op.refused("outside of the array")
        own = np.arange(len(result)).reshape([-1] + [1] * (result.ndim - 1))
        found.append(result - rest * own)
    places = found[0][:1]
    if any((each != places).any() for each in found) or places.max(initial=0) >= rest:
        raise op.refused("among the images")
    flat = op.graph.node("Reshape", op.stored(0, axes), op.graph.integers([-1, rest]))
    name = op.graph.node("Gather", flat, op.graph.constant(places[0].astype(np.int64)), axis=1)
    return op.result(
        name, (batch_result, *(axis for axis in range(len(op.sizes)) if axis != batch_result))
    )


def _look_up(op: _Operation) -> Tensor:
    """The rows of a constant table."""
    numbers, shape = op.params["dimension_numbers"], op.sizes_of(0)
    row = tuple(size for size, _ in shape[1:])
    last = tuple(range(len(op.sizes) - len(row), len(op.sizes)))
    if (numbers.collapsed_slice_dims, numbers.start_index_map) != ((0,), (0,)) or (
        numbers.offset_dims,
        op.params["slice_sizes"],
    ) != (last, (1, *row)):
        raise op.refused("of other than whole rows")
    rows = op.graph.node("Squeeze", op.stored(1), op.graph.integers([-1]))
    return op.result(op.graph.node("Gather", op.stored(0), rows, axis=0))


_OPERATORS: dict[str, Callable[[_Operation], Tensor]] = {
    **{name: _elementwise(name.capitalize()) for name in (
        "abs acos acosh and asin asinh atan atanh ceil cos cosh div erf exp floor log neg not or "
        "pow sign sin sinh sqrt tan tanh xor"
    ).split()},
    "add": _commutative("Add"), "add_any": _commutative("Add"), "mul": _commutative("Mul"),
    "max": _commutative("Max"), "min": _commutative("Min"), "sub": _subtract,
    "eq": _elementwise("Equal"), "ne": _chained("Equal", "Not"),
    "lt": _elementwise("Less"), "le": _elementwise("LessOrEqual"),
    "gt": _elementwise("Greater"), "ge": _elementwise("GreaterOrEqual"),
    "rem": _elementwise("Mod", fmod=1), "logistic": _elementwise("Sigmoid"),
    "rsqrt": _chained("Sqrt", "Reciprocal"),
    "erfc": _complement, "expm1": _shifted("Exp", 0, -1), "log1p": _shifted("Log", 1, 0),
    "integer_pow": _power, "square": _power, "is_finite": _is_finite, "round": _round,
    "clamp": _clamp, "select_n": _select, "convert_element_type": _cast,
    "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"), "reduce_prod": _reduce("ReduceProd"),
    "conv_general_dilated": _convolve, "dot_general": _product,
    "reduce_window_max": _pool("MaxPool"), "reduce_window_sum": _pool("AveragePool"),
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _squeeze,
    "transpose": _transpose, "concatenate": _concatenate, "pad": _pad, "slice": _slice,
    "stack": _stack,
    **{name: _take for name in ("gather", "rev", "dynamic_slice", "tile", "split", "unstack")},
}  # fmt: skip
