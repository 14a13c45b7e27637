"""Makes any function of images fast on a CPU: convolutions, poolings, products in other forms.

The function is traced, and its program is evaluated with these operations replaced wherever they
are outside of loops and branches. So a module that is written with `flax.linen`, `flax.nnx` or
`jax.lax` alone is as fast as one that uses the package's layers. What has no faster form stays
as it is, and so does everything on other platforms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

from mnist_cnn.models.kernels.conv import Window, cpu_conv, in_float32, shifted
from mnist_cnn.models.kernels.dense import matmul
from mnist_cnn.models.kernels.pool import first_max, max_pool

Form = Callable[..., Array]  # of the operands

_LARGE_KERNEL = 2**19  # values; a smaller kernel is copied in little time


def fast_on_cpu(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, of trees of arrays, with faster operations on a CPU."""
    program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    outputs = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def slow_operations(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The convolutions and poolings of a function that have no faster form, in words."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    return [
        f"{equation.primitive.name} of {equation.invars[0].aval.str_short()}"
        for equation, replaceable in _operations(program)
        if equation.primitive.name in _FORMS.keys() - {"dot_general"}  # never slow
        and (not replaceable or _FORMS[equation.primitive.name](equation) is None)
    ]


def _operations(program: core.Jaxpr, replaceable: bool = True) -> Iterator[tuple[Any, bool]]:
    """Every operation, and whether it is where it can be replaced."""
    for equation in program.eqns:
        yield equation, replaceable
        chosen_by_platform = equation.params.get("branches_platforms") is not None
        if equation.primitive.name not in _OWN_GRADIENTS and not chosen_by_platform:
            inner = replaceable and equation.primitive.name in _INLINED
            values = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program)
            for part in filter(_is_program, values):
                yield from _operations(part.jaxpr if hasattr(part, "jaxpr") else part, inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _evaluate(program: core.Jaxpr, constants: Any, inputs: Any) -> list[Any]:
    values = dict(zip([*program.constvars, *program.invars], [*constants, *inputs], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in program.eqns:
        operands = [read(variable) for variable in equation.invars]
        with equation.ctx.manager:
            outputs = _operation(equation, operands)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in program.outvars]


def bind(equation: Any, operands: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """What an equation's operation returns with these parameters in the place of its own."""
    bound = equation.primitive.get_bind_params(parameters)
    functions, options = bound if isinstance(bound, tuple) else ((), bound)  # older JAX: a tuple
    return equation.primitive.bind(*functions, *operands, **options)


def _operation(equation: Any, operands: list[Any]) -> Any:
    """The results of one operation."""
    name, parameters = equation.primitive.name, equation.params
    if name in _INLINED:
        return _evaluate(parameters["jaxpr"].jaxpr, parameters["jaxpr"].consts, operands)

    def plain(*operands: Any) -> Any:
        return bind(equation, operands, parameters)

    form = _FORMS[name](equation) if name in _FORMS else None
    if form is None:
        results = plain(*operands)
    else:
        results = lax.platform_dependent(*operands, cpu=in_float32(form), default=plain)
    return results if equation.primitive.multiple_results else [results]


def _conv_form(equation: Any) -> Form | None:
    images, kernel = (variable.aval for variable in equation.invars)
    options = equation.params
    if images.ndim != 4 or options["batch_group_count"] > 1 or images.dtype != kernel.dtype:
        return None
    if options["preferred_element_type"] not in (None, images.dtype):
        return None
    layout = options["dimension_numbers"]
    from_images, from_kernel, from_result = (
        (spec[0], *spec[2:], spec[1])
        for spec in (layout.lhs_spec, layout.rhs_spec, layout.out_spec)
    )
    rows, columns = ((int(low), int(high)) for low, high in options["padding"])
    window = Window(
        tuple(options["window_strides"]),
        (rows, columns),
        tuple(options["lhs_dilation"]),
        tuple(options["rhs_dilation"]),
    )

    def form(images: Array, kernel: Array) -> Array:
        out, *size, depth = from_kernel
        result = cpu_conv(
            images.transpose(from_images), kernel.transpose(*size, depth, out), window
        )
        return result.transpose([from_result.index(axis) for axis in range(4)])

    return form


def _pool_form(equation: Any) -> Form | None:
    images, options = equation.invars[0].aval, equation.params
    size, strides = options["window_dimensions"], options["window_strides"]
    padding = [(int(low), int(high)) for low, high in options["padding"]]
    is_max = equation.primitive.name == "reduce_window_max"
    if (
        images.ndim != 4
        or (size[0], size[3], strides[0], strides[3]) != (1, 1, 1, 1)
        or (padding[0], padding[3]) != ((0, 0), (0, 0))
        or {*options["base_dilation"], *options["window_dilation"]} != {1}
        or not jnp.issubdtype(images.dtype, jnp.floating)
    ):
        return None
    window = Window(tuple(strides[1:3]), (padding[1], padding[2]))

    def form(images: Array) -> Array:
        if is_max and size == strides and set(padding) == {(0, 0)}:
            return max_pool(images, tuple(size[1:3]))
        values = shifted(images, size[1:3], window, -jnp.inf if is_max else 0)
        return first_max(values) if is_max else sum(values[1:], start=values[0])

    return form


def _dot_form(equation: Any) -> Form | None:
    inputs, kernel = (variable.aval for variable in equation.invars)
    options = equation.params
    if (
        (inputs.ndim, kernel.ndim) != (2, 2)
        or options["dimension_numbers"] != (((1,), (0,)), ((), ()))
        or inputs.dtype != kernel.dtype
        or options["preferred_element_type"] not in (None, inputs.dtype)
        or not jnp.issubdtype(inputs.dtype, jnp.floating)
        or kernel.size < _LARGE_KERNEL
    ):
        return None
    return matmul


# Operations whose programs are part of the whole one, and those that define their own gradients.
_INLINED = ("jit", "pjit")
_OWN_GRADIENTS = ("custom_vjp_call", "custom_vjp_call_jaxpr")
_FORMS: dict[str, Callable[[Any], Form | None]] = {
    "conv_general_dilated": _conv_form,
    "dot_general": _dot_form,
    "reduce_window_max": _pool_form,
    "reduce_window_sum": _pool_form,
}
