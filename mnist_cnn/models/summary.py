"""A network layer by layer: output shape, parameters, multiply-adds.  Nothing is computed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_cnn.models.apply import train_kwargs
from mnist_cnn.models.layers import conv_max_pool


class Layer(NamedTuple):
    """One submodule that has parameters of its own."""

    name: str
    output_shape: tuple[int, ...]  # without the batch axis
    parameters: int
    multiply_adds: int  # for one image


def summarize(model: nn.Module, train: bool = False) -> list[Layer]:
    """The layers of `model` in the order in which an image meets them, where it is tested.

    Multiply-adds are those of the layers with a kernel: each kernel value is used once for every
    output position, before it is pooled; and as often for each view, where a network looks at an
    image in several.

    Args:
      model: any network of images.
      train: as it is trained, if its `__call__` has an argument of that name.
    """
    outputs: dict[tuple[str, ...], tuple[int, ...]] = {}
    pooled = set()

    def note(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = call(*args, **kwargs)
        shape: Any = getattr(output, "shape", None)
        if context.method_name == "__call__" and shape:  # () is of no image
            outputs[context.module.path] = shape
            if getattr(context.module, "conv_general_dilated", None) is conv_max_pool:
                pooled.add(context.module.path)
        return output

    with nn.intercept_methods(note):
        variables = jax.eval_shape(
            functools.partial(model.init, **train_kwargs(model, train)),
            dict.fromkeys(("params", "dropout"), jax.eval_shape(jax.random.key, 0)),
            jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32),
        )
    layers = []
    for path, (images, *shape) in outputs.items():
        own: Any = variables.get("params", {})
        for name in path:
            own = own.get(name, {})
        arrays = {name: value for name, value in own.items() if hasattr(value, "shape")}
        if not arrays:
            continue
        parameters = sum(math.prod(array.shape) for array in arrays.values())
        kernel = arrays.get("kernel")
        positions = images * math.prod(shape[:-1]) * (4 if path in pooled else 1)
        multiply_adds = math.prod(kernel.shape) * positions if kernel is not None else 0
        layers.append(Layer("/".join(path) or "network", tuple(shape), parameters, multiply_adds))
    return layers
