"""Operations that compute: JAX's primitives as operators of ONNX, one function for each kind.

To support another primitive, add it to `OPERATORS`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mnist_cnn.analysis.to_onnx.values import (
    Constant,
    Operation,
    Tensor,
    onnx_type,
    smallest,
    transposed,
    without,
)


def _elementwise(kind: str, **attributes: Any) -> Callable[[Operation], Tensor]:
    return lambda op: _apply(op, functools.partial(op.graph.node, kind, **attributes))


def _chained(*kinds: str) -> Callable[[Operation], Tensor]:
    """Operators after each other; the first may have several operands."""

    def convert(op: Operation) -> Tensor:
        def nodes(*names: str) -> str:
            name = op.graph.node(kinds[0], *names)
            return functools.reduce(lambda name, kind: op.graph.node(kind, name), kinds[1:], name)

        return _apply(op, nodes)

    return convert


def _apply(op: Operation, nodes: Callable[..., str]) -> Tensor:
    """`nodes` of the names of all operands, which ONNX broadcasts."""
    tensors = [operand for operand in op.operands if isinstance(operand, Tensor)]
    axes = max((tensor.axes for tensor in tensors), key=len)
    names, held = [], []
    for operand in op.operands:
        if isinstance(operand, Tensor):
            same_rank = len(operand.axes) == len(axes)
            names.append(transposed(op.graph, operand, axes) if same_rank else operand.name)
            held.append(operand.sizes)
        else:
            array = smallest(operand)
            held.append(tuple((size, size) for size in array.shape))
            array = array.reshape(()) if array.size == 1 else array.transpose(axes)
            names.append(op.graph.constant(array, operand.label))
    held = [sizes for sizes in held if len(sizes) == len(axes)]
    return Tensor(nodes(*names), tuple(map(max, zip(*held, strict=True))), axes)


def _commutative(kind: str) -> Callable[[Operation], Tensor]:
    """An operator of two operands, of which the second may be constant."""

    def convert(op: Operation) -> Tensor:
        def nodes(first: str, second: str) -> str:
            if first in op.graph.constants:
                first, second = second, first
            value = op.graph.constants.get(second)
            if kind == "Max" and value is not None and value.shape == () and value == 0:
                return op.graph.node("Relu", first)
            return op.graph.node(kind, first, second)

        return _apply(op, nodes)

    return convert


def _subtract(op: Operation) -> Tensor:
    def nodes(first: str, second: str) -> str:
        value = op.graph.constants.get(second)
        if value is None or value.dtype.kind != "f":
            return op.graph.node("Sub", first, second)
        constant = op.operands[1]
        label = constant.label if isinstance(constant, Constant) else ""
        return op.graph.node("Add", first, op.graph.constant(-value, label))

    return _apply(op, nodes)


def _shifted(kind: str, before: float, after: float) -> Callable[[Operation], Tensor]:
    """An operator of x + before, plus `after`."""

    def convert(op: Operation) -> Tensor:
        def nodes(name: str) -> str:
            result = op.graph.node(
                kind, op.graph.node("Add", name, op.graph.constant(np.float32(before)))
            )
            return op.graph.node("Add", result, op.graph.constant(np.float32(after)))

        return _apply(op, nodes)

    return convert


def _power(op: Operation) -> Tensor:
    exponent = op.params.get("y", 2)  # 2 is of the operation `square`

    def nodes(name: str) -> str:
        if exponent == 2:
            return op.graph.node("Mul", name, name)
        value = np.asarray(exponent, onnx_type(op.equations[0].outvars[0].aval.dtype))
        return op.graph.node("Pow", name, op.graph.constant(value))

    return _apply(op, nodes)


def _is_finite(op: Operation) -> Tensor:
    infinity = op.graph.constant(np.float32(np.inf))
    return _apply(op, lambda name: op.graph.node("Less", op.graph.node("Abs", name), infinity))


def _complement(op: Operation) -> Tensor:
    """1 - erf(x)."""

    def nodes(name: str) -> str:
        negative = op.graph.node("Neg", op.graph.node("Erf", name))
        return op.graph.node("Add", negative, op.graph.constant(np.float32(1)))

    return _apply(op, nodes)


def _round(op: Operation) -> Tensor:
    if op.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise op.refused("away from zero")
    return _apply(op, functools.partial(op.graph.node, "Round"))


def _clamp(op: Operation) -> Tensor:
    return _apply(op, lambda low, x, high: op.graph.node("Min", op.graph.node("Max", x, low), high))


def _select(op: Operation) -> Tensor:
    if len(op.operands) != 3 or op.equations[0].invars[0].aval.dtype != bool:
        raise op.refused("of more than two cases")
    return _apply(op, lambda which, no, yes: op.graph.node("Where", which, yes, no))


def _cast(op: Operation) -> Tensor:
    from onnx import helper

    (operand,), equation = op.operands, op.equations[0]
    assert isinstance(operand, Tensor)
    old, new = (onnx_type(v[0].aval.dtype) for v in (equation.invars, equation.outvars))
    if old == new:
        return operand
    kind = helper.np_dtype_to_tensor_dtype(new)
    return operand._replace(name=op.graph.node("Cast", operand.name, to=kind))


def _reduce(kind: str) -> Callable[[Operation], Tensor]:
    def convert(op: Operation) -> Tensor:
        axes, reduced = op.axes_of(0), set(op.params["axes"])
        positions = [axes.index(axis) for axis in sorted(reduced)]
        name = op.stored(0, axes)
        if kind == "ReduceSum":
            name = op.graph.node(kind, name, op.graph.integers(positions), keepdims=0)
        else:
            name = op.graph.node(kind, name, axes=positions, keepdims=0)
        return op.result(name, without(axes, reduced))

    return convert


def _convolve(op: Operation) -> Tensor:
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


def _pool(kind: str) -> Callable[[Operation], Tensor]:
    def convert(op: Operation) -> Tensor:
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


def _product(op: Operation) -> Tensor:
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


OPERATORS: dict[str, Callable[[Operation], Tensor]] = {
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
}  # fmt: skip
