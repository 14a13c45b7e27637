"""What the machine could do: its rates, measured, and the least time that a training step takes.

The rates are those of float32 matrix products (JAX's and NumPy's, the better one) and of memory.
The least time counts what no program that multiplies directly can avoid: the multiply-adds of
each layer, forward and for both gradients, and the bytes that Adam reads and writes.  It knows
nothing of how anybody computes them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mnist_cnn import summary
from mnist_cnn.model import CNN

_SIZES = 1024, 2048, 4096  # of the square matrices
_FLOATS = 2**25  # of an array, 134 MB: no cache holds three


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one training step cannot avoid.

    Attributes:
      multiply_adds: by layer and by what it is for: forward, the kernel's gradient, the input's.
      adam_bytes: parameters, gradients and both averages read; all but the gradients written.
    """

    multiply_adds: dict[str, dict[str, int]]
    adam_bytes: int

    @property
    def flops(self) -> int:
        return 2 * sum(sum(parts.values()) for parts in self.multiply_adds.values())


def step_cost(batch_size: int) -> StepCost:
    """Counts a step of the tutorial's network.  The first layer's input needs no gradient."""
    layers = summary.summarize(CNN())
    multiply_adds = {}
    for index, layer in enumerate(layers):
        count = batch_size * layer.multiply_adds
        multiply_adds[layer.name] = {
            "forward": count, "kernel_gradient": count, "input_gradient": count if index else 0,
        }  # fmt: skip
    parameters = sum(layer.parameters for layer in layers)
    return StepCost(multiply_adds, (4 + 3) * 4 * parameters)


class Machine:
    """Measures the rates, again and again; each is the best that was seen."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._matrices = [rng.standard_normal((size, size), np.float32) for size in _SIZES]
        self._x, self._y = jnp.ones(_FLOATS), jnp.ones(_FLOATS)
        self._add = jax.jit(lambda x, y: x + 0.5 * y, donate_argnums=0)
        self.flops_per_second = {"jax": 0.0, "numpy": 0.0}
        self.bytes_per_second = 0.0

    def measure(self, repetitions: int = 3) -> None:
        """About two seconds on two cores."""
        for matrix in self._matrices:
            on_device = jnp.asarray(matrix)
            for _ in range(repetitions):
                seconds = {
                    "jax": _seconds(lambda a=on_device: (a @ a).block_until_ready()),
                    "numpy": _seconds(lambda a=matrix: a @ a),
                }
                for name, value in seconds.items():
                    rate = 2 * len(matrix) ** 3 / value
                    self.flops_per_second[name] = max(self.flops_per_second[name], rate)
        for _ in range(3 * repetitions):
            rate = 3 * 4 * _FLOATS / _seconds(self._stream)
            self.bytes_per_second = max(self.bytes_per_second, rate)

    def _stream(self) -> None:
        self._x = self._add(self._x, self._y).block_until_ready()

    def least_seconds(self, cost: StepCost) -> dict[str, float]:
        """The least time of a step's products, of its Adam, and of both.

        "least" lets them overlap perfectly, so no program can be faster; "in_turn" does one after
        the other.
        """
        products = cost.flops / max(self.flops_per_second.values())
        adam = cost.adam_bytes / self.bytes_per_second
        return {
            "products": products, "adam": adam,
            "least": max(products, adam), "in_turn": products + adam,
        }  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
