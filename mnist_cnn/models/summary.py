"""A network layer by layer: output shape, parameters, multiply-adds. Nothing is computed."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.models.apply import train_kwargs
from mnist_cnn.models.kernels.rewrite import slow_operations


class Layer(NamedTuple):
    """A submodule that has parameters."""

    name: str
    output_shape: tuple[int, ...]  # without the batch axis
    parameters: int
    multiply_adds: int  # for one image


def summarize(model: nn.Module, spec: DataSpec = MNIST, train: bool = False) -> list[Layer]:
    """The layers of `model` in the order in which they are applied to an image [H, W, C].

    Multiply-adds are those of the layers with a kernel: each value of a kernel is used once for
    each output position. A layer that pools its output has a method `kernel_positions`, which
    returns the positions before the pooling. A model that computes several views of an image
    counts each of them. `train`: apply it as in training, if its `__call__` has that argument.
    """
    outputs: dict[tuple[str, ...], tuple[tuple[int, ...], int]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        shape: Any = getattr(output, "shape", None)
        if context.method_name == "__call__" and shape:  # a scalar belongs to no image
            positions: Any = getattr(context.module, "kernel_positions", None)
            axes = positions(*args, **kwargs) if positions else shape[:-1]
            outputs[context.module.path] = shape[1:], math.prod(axes)
        return output

    with nn.intercept_methods(record):
        variables = jax.eval_shape(*_initialization(model, spec, train))
    layers = []
    for path, (shape, positions) in outputs.items():
        own: Any = variables.get("params", {})
        for name in path:
            own = own.get(name, {})
        sizes = {name: math.prod(v.shape) for name, v in own.items() if hasattr(v, "shape")}
        if sizes:
            parameters, multiply_adds = sum(sizes.values()), positions * sizes.get("kernel", 0)
            layers.append(Layer("/".join(path) or "network", shape, parameters, multiply_adds))
    return layers


def unoptimized(model: nn.Module, spec: DataSpec = MNIST) -> list[str]:
    """The operations of a model whose gradients are slow on a CPU, in words, each once."""
    return list(dict.fromkeys(slow_operations(*_initialization(model, spec, train=True))))


def _initialization(
    model: nn.Module, spec: DataSpec, train: bool
) -> tuple[Callable[..., Any], Any, Any]:
    """The function that initializes a model by applying it, and the shapes of its arguments."""
    keys = dict.fromkeys(("params", "dropout"), jax.eval_shape(jax.random.key, 0))
    images = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    return functools.partial(model.init, **train_kwargs(model, train)), keys, images
