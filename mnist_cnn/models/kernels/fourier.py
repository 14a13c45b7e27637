"""A convolution as products of Fourier transforms (Mathieu, Henaff & LeCun 2014, "Fast training of
convolutional networks through FFTs").

At these sizes the transforms are best had as matrix products too, so that nothing but products is
left, in the values and in both gradients.  Nothing here knows of platforms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float


def convolve(
    images: Float[Array, "H W B in"], kernel: Float[Array, "kh kw in out"]
) -> Float[Array, "H W B out"]:
    """The "same" convolution, strides of 1, of images that have their batch behind the columns.

    For each of H x W values it multiplies in x out numbers about twice, not kh * kw times.  Its
    rounding errors are as small, but measured by the whole image: 0 alone, where a kernel sees
    nothing but zeros, is exact.  And a value that is no number makes all of its image none.
    """
    (height, width, batch, channels), size = images.shape, kernel.shape[:2]
    to = _transforms(height, width, *size)
    rows = to.rows(images.reshape(height, -1)).reshape(-1, 2 * width, batch * channels)
    taps = to.taps(kernel.reshape(size[0] * size[1], -1)).reshape(-1, *kernel.shape[2:])
    # XLA's libraries have one thread for a batch of such small products, and XLA runs operations
    # side by side where more than eight are ready: so two groups of products for each row.
    spectra = iter(jnp.split(taps, 2 * len(rows)))
    results = []
    for row in jnp.split(rows, len(rows)):
        halves = []
        for columns, columns_back in zip(to.columns, to.columns_back, strict=True):
            x = columns(row[0]).reshape(-1, batch, channels)
            product = lax.dot_general(x, next(spectra), (((2,), (1,)), ((0,), (0,))))
            halves.append(columns_back(product.reshape(len(product), -1)))
        results.append(halves[0] + halves[1])
    y = to.rows_back(jnp.stack(results).reshape(2 * len(rows), -1))
    y = y.reshape(height, width, batch, -1)
    return jnp.where(_sees_anything(images, *size), y, y - lax.stop_gradient(y))


Transform = Callable[[Float[Array, "n m"]], Float[Array, "l m"]]


def _times(matrix: np.ndarray) -> Transform:
    """The product of `matrix` [l, n] and x, whose gradient has the matrix transposed beforehand."""
    matrix = matrix.astype(np.float32)
    transposed = matrix.T.copy()

    @jax.custom_vjp
    def times(x: Array) -> Array:
        return jnp.matmul(matrix, x)

    times.defvjp(lambda x: (times(x), None), lambda _, g: (jnp.matmul(transposed, g),))
    return times


def _sees_anything(images: Float[Array, "H W B in"], kh: int, kw: int) -> Bool[Array, "H W B 1"]:
    """Whether a result has anything but zeros under its kernel.

    If not, it is 0, and not what is left of products that cancel: with a bias of 0, as at the
    beginning, a ReLU behind it would let the gradient through by chance.
    """
    there = lax.stop_gradient(images != 0).any(-1, keepdims=True).astype(jnp.float32)
    return lax.reduce_window(there, 0.0, lax.max, (kh, kw, 1, 1), (1, 1, 1, 1), "SAME") > 0


class _Transforms(NamedTuple):
    """Of N // 2 rows of M complex frequencies each; a complex number is its two parts.

    The product of two, a + ib and c + id, is made of Gauss' three real ones, c (a + b), a (d - c)
    and b (c + d): (1 + i) times the first, i times the second, less the third.
    """

    rows: Transform  # an image's columns, of H -> N // 2 rows of frequencies, two parts each
    columns: list[Transform]  # such a row, 2 W -> a + b, a and b of its M frequencies, in halves
    taps: Transform  # a kernel, kh * kw -> c, d - c and c + d of all frequencies
    columns_back: list[Transform]  # a half of Gauss' products -> its part in such a row
    rows_back: Transform  # the rows -> the result's columns


@functools.cache
def _transforms(height: int, width: int, kernel_height: int, kernel_width: int) -> _Transforms:
    """What the convolution of these sizes takes.

    A period is longer than the image by what a kernel reaches beyond it, where zeros are.  The
    rows' frequencies are odd multiples of 1 / 2 N: a real image has them in conjugate pairs, of
    which N // 2 are enough, and none that is its own conjugate and would need another treatment.
    """

    def even(size: int) -> int:
        return size + size % 2

    n, m = even(height + kernel_height // 2), even(width + kernel_width // 2)
    top, left = (kernel_height - 1) // 2, (kernel_width - 1) // 2
    u, v = (np.arange(n // 2) + 0.5) / n, np.arange(m) / m

    def waves(frequencies: np.ndarray, start: int, size: int) -> np.ndarray:
        return np.exp(2j * np.pi * np.outer(frequencies, np.arange(size) - start))

    row, column = waves(u, 0, height), waves(v, 0, width)
    parts = np.stack([row.real, -row.imag], 1).reshape(n, height)  # of the conjugate
    one_of = np.array([1, 1j])  # what a row's two parts stand for
    seen = np.einsum("vw,p->vpw", column.conj(), one_of).reshape(m, -1)
    kernel = np.einsum("uh,vw->uvhw", waves(u, top, kernel_height), waves(v, left, kernel_width))
    kernel = kernel.reshape(n // 2 * m, -1)
    back = np.einsum("vw,g->wvg", column, [1 + 1j, 1j, -1]).reshape(width, -1) / m
    columns = _by_threes(seen.real + seen.imag, seen.real, seen.imag)
    columns_back = np.concatenate([back.real, back.imag])
    return _Transforms(
        rows=_times(parts),
        columns=[_times(half) for half in np.split(columns, 2)],
        taps=_times(_by_threes(kernel.real, kernel.imag - kernel.real, kernel.real + kernel.imag)),
        columns_back=[_times(half) for half in np.split(columns_back, 2, 1)],
        rows_back=_times(2 / n * parts.T),
    )


def _by_threes(*factors: np.ndarray) -> np.ndarray:
    """What makes Gauss' three factors [n, l] of n numbers: [3 n, l]."""
    return np.stack(factors, 1).reshape(-1, factors[0].shape[1])
