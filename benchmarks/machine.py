"""The machine's measured rates, and the least time of a training step at these rates.

The rates are those of float32 matrix products (the faster of JAX and NumPy) and of memory. The
least time counts what a program with ordinary convolutions cannot avoid: the multiply-adds of each
layer, forward and for both gradients, and the bytes that Adam reads and writes.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_cnn.models import summary
from mnist_cnn.models.cnn import CNN

LIMIT = "ordinary convolutions at best"  # the name of this limit in tables and plots

_SIZE = 2048  # of the square matrices
_FLOATS = 2**23  # of an array: 34 MB, like one of Adam's; three exceed most caches
_PASSES = 10  # over the arrays in one program, so that their memory is already mapped


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The operations of one training step.

    Attributes:
      multiply_adds: for each layer those of the forward pass, of the kernel's gradient and of the
        input's gradient.
      adam_bytes: Adam reads parameters, gradients and two averages, and writes all but the
        gradients.
    """

    multiply_adds: dict[str, dict[str, int]]
    adam_bytes: int

    @property
    def flops(self) -> int:
        return 2 * sum(sum(parts.values()) for parts in self.multiply_adds.values())


def step_cost(batch_size: int) -> StepCost:
    """The cost for the tutorial's network. The first layer's input needs no gradient."""
    layers = summary.summarize(CNN())
    multiply_adds = {}
    for index, layer in enumerate(layers):
        count = batch_size * layer.multiply_adds
        multiply_adds[layer.name] = {
            "forward": count, "kernel_gradient": count, "input_gradient": count if index else 0,
        }  # fmt: skip
    parameters = sum(layer.parameters for layer in layers)
    return StepCost(multiply_adds, (4 + 3) * 4 * parameters)


@dataclasses.dataclass(frozen=True)
class Rates:
    """The machine's rates at the time of measurement."""

    flops_per_second: float
    bytes_per_second: float

    def least_seconds(self, cost: StepCost) -> float:
        """The seconds of a step: its products at full rate, then Adam at full rate."""
        return cost.flops / self.flops_per_second + cost.adam_bytes / self.bytes_per_second


def measure(repetitions: int = 5) -> Rates:
    """The best of several products and passes over memory; about two seconds on two cores."""
    matrix = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), np.float32)
    on_device = jnp.asarray(matrix)
    x, y = jnp.ones(_FLOATS), jnp.ones(_FLOATS)
    add = jax.jit(lambda x, y, n: lax.fori_loop(0, n, lambda _, x: x + 0.5 * y, x))
    add(x, y, 1).block_until_ready()
    products, passes = [], []
    for _ in range(repetitions):
        products.append(_seconds(lambda: (on_device @ on_device).block_until_ready()))
        products.append(_seconds(lambda: matrix @ matrix))
        passes.append(_seconds(lambda: add(x, y, _PASSES).block_until_ready()) / _PASSES)
    return Rates(2 * _SIZE**3 / min(products), 3 * 4 * _FLOATS / min(passes))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
