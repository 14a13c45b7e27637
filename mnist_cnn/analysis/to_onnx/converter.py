"""Reads a JAX program of a batch of images and converts its operations, one after the other.

The program is traced twice, for two numbers of images, and both traces are read side by side: a
size that differs depends on the number of images. What depends on no pixel is computed here, so
that it is a constant in the graph. Operations with a faster form on a CPU are taken in the form
for other platforms: a convolution is one operator.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from mnist_cnn.analysis.to_onnx import arithmetic, arrangement
from mnist_cnn.analysis.to_onnx.graph import Graph
from mnist_cnn.analysis.to_onnx.values import (
    COUNTS,
    Constant,
    Operation,
    Sizes,
    Tensor,
    Value,
    bind,
    ordered,
    refusal,
    stored,
)

_OPERATORS = arithmetic.OPERATORS | arrangement.OPERATORS


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
    (logits,) = _convert(graph, programs, [*inputs, Tensor("images", sizes, ordered(sizes))])
    sizes = tuple(zip(*(program.out_avals[0].shape for program in programs), strict=True))
    graph.finish(stored(graph, logits, sizes), "logits")
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
        raise refusal("a program that differs for {} and {} images".format(*COUNTS))
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
        raise refusal(f"the operation {name}")
    return [
        _OPERATORS[name](Operation(graph, equations, operands, output))
        for output in range(len(equations[0].outvars))
    ]


def _program(params: Any) -> core.ClosedJaxpr:
    """The program in the parameters of an operation."""
    (program,) = (p for p in params.values() if isinstance(p, core.Jaxpr | core.ClosedJaxpr))
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def _compute(equations: Any, operands: list[Constant]) -> list[Value]:
    """The results of an operation on constants."""

    def results(equation: Any, trace: int) -> list[Any]:
        return bind(equation, [operand.values[trace] for operand in operands], equation.params)

    keeps_label = equations[0].primitive.name in _KEEP_LABEL
    label = operands[0].label if keeps_label else ""
    pairs = zip(*(results(equation, i) for i, equation in enumerate(equations)), strict=True)
    return [Constant(pair, label) for pair in pairs]


def _unroll(graph: Graph, params: Any, operands: list[Value]) -> list[Value]:
    """The results of a loop of fixed length."""
    length, programs = params[0]["length"], [own["jaxpr"] for own in params]
    if length != params[1]["length"]:
        raise refusal("a loop whose length is the number of images")
    if "num_consts" in params[0]:
        numbers = [params[0]["num_consts"], params[0]["num_carry"]]
    else:  # since jax 0.12
        numbers = [len(part.vals) for part in params[0]["ft_in"].unpack()[:2]]
    split = numbers[0], sum(numbers)
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
        parts = [stored(graph, value, sizes) for value in series]
        parts = [graph.node("Unsqueeze", part, graph.integers([0])) for part in parts]
        name = graph.node("Concat", *parts, axis=0)
        stacked.append(Tensor(name, ((length, length), *sizes), ordered((0, *sizes))))
    return [*carry, *stacked]


def _element(graph: Graph, value: Value, index: int) -> Value:
    """An array without its first axis, at a position of it."""
    if isinstance(value, Constant):
        return Constant((value.values[0][index], value.values[1][index]), value.label)
    position = value.axes.index(0)
    index = index if value.sizes[0] != (1, 1) else 0
    name = graph.node("Gather", value.name, graph.constant(np.int64(index)), axis=position)
    return Tensor(name, value.sizes[1:], tuple(axis - 1 for axis in value.axes if axis))
