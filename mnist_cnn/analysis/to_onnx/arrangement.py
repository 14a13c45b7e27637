"""Operations that move values: JAX's primitives as operators of ONNX, one function for each kind.

To support another primitive, add it to `OPERATORS`.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mnist_cnn.analysis.to_onnx.values import (
    Constant,
    Operation,
    Tensor,
    bind,
    onnx_type,
    ordered,
    shape_input,
    transposed,
    without,
)


def _broadcast(op: Operation) -> Tensor:
    operand, dimensions = op.operands[0], op.params["broadcast_dimensions"]
    assert isinstance(operand, Tensor)
    if len(dimensions) == len(op.sizes):
        return operand
    new = [axis for axis in range(len(op.sizes)) if axis not in dimensions]
    name = transposed(op.graph, operand, ordered(operand.axes))
    name = op.graph.node("Unsqueeze", name, op.graph.integers(new))
    held = dict(zip(dimensions, operand.sizes, strict=True))
    sizes = tuple(held.get(axis, (1, 1)) for axis in range(len(op.sizes)))
    return Tensor(name, sizes, ordered(sizes))


def _reshape(op: Operation) -> Tensor:
    varying = [size for size in op.sizes if size[0] != size[1]]
    if len(varying) == 1:
        shape = op.graph.integers([-1 if size in varying else size[0] for size in op.sizes])
    else:
        shape = shape_input(op.graph, op.sizes)
    return op.result(op.graph.node("Reshape", op.stored(0, op.params["dimensions"]), shape))


def _squeeze(op: Operation) -> Tensor:
    (operand,), dropped = op.operands, set(op.params["dimensions"])
    assert isinstance(operand, Tensor)
    positions = sorted(operand.axes.index(axis) for axis in dropped)
    name = op.graph.node("Squeeze", operand.name, op.graph.integers(positions))
    sizes = tuple(size for axis, size in enumerate(operand.sizes) if axis not in dropped)
    return Tensor(name, sizes, without(operand.axes, dropped))


def _transpose(op: Operation) -> Tensor:
    (operand,), order = op.operands, op.params["permutation"]
    assert isinstance(operand, Tensor)
    axes = tuple(order.index(axis) for axis in operand.axes)
    return Tensor(operand.name, tuple(operand.sizes[axis] for axis in order), axes)


def _concatenate(op: Operation) -> Tensor:
    first = next(i for i, operand in enumerate(op.operands) if isinstance(operand, Tensor))
    axes = op.axes_of(first)
    names = [op.stored(index, axes) for index in range(len(op.operands))]
    return op.result(op.graph.node("Concat", *names, axis=axes.index(op.params["dimension"])), axes)


def _stack(op: Operation) -> Tensor:
    axis = op.params["axis"]
    names = [
        op.graph.node("Unsqueeze", op.stored(index), op.graph.integers([axis]))
        for index in range(len(op.operands))
    ]
    return op.result(op.graph.node("Concat", *names, axis=axis))


def _pad(op: Operation) -> Tensor:
    config, other = (equation.params["padding_config"] for equation in op.equations)
    if config != other or any(interior for _, _, interior in config):
        raise op.refused("between the pixels or of the batch")
    axes = op.axes_of(0)
    pads = op.graph.integers([int(config[axis][side]) for side in (0, 1) for axis in axes])
    fill = op.constant(1)
    value = op.graph.constant(fill.astype(onnx_type(fill.dtype)))
    return op.result(op.graph.node("Pad", op.stored(0, axes), pads, value), axes)


def _slice(op: Operation) -> Tensor:
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


def _take(op: Operation) -> Tensor:
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
        result = bind(equation, [jnp.asarray(numbers), *others], params)[op.output]
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


def _look_up(op: Operation) -> Tensor:
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


OPERATORS: dict[str, Callable[[Operation], Tensor]] = {
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _squeeze,
    "transpose": _transpose, "concatenate": _concatenate, "pad": _pad, "slice": _slice,
    "stack": _stack,
    **{name: _take for name in ("gather", "rev", "dynamic_slice", "tile", "split", "unstack")},
}  # fmt: skip
