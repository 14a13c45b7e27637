"""A convolution as products of Fourier transforms (Mathieu, Henaff & LeCun 2014, "Fast training of
convolutional networks through FFTs").

At these sizes the transforms are best had as matrix products too, so that nothing but products is
left, in the values and in both gradients.  Nothing here knows of platforms.
"""

from __future__ import annotations

import functools
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
    nothing but zeros, is exact.
    """
    height, width, batch, channels = images.shape
    to = _transforms(height, width, *kernel.shape[:2])
    rows = _times(to.rows, images.reshape(height, -1)).reshape(-1, 2 * width, batch * channels)
    taps = _times(to.taps, kernel.reshape(to.taps.shape[1], -1)).reshape(-1, *kernel.shape[2:])
    # XLA's libraries have one thread for a batch of such small products, and XLA runs operations
    # side by side where more than eight are ready: so two groups of products for each row.
    groups = list(zip(np.split(to.columns, 2), np.split(to.columns_back, 2, 1), strict=True))
    spectra = iter(jnp.split(taps, 2 * len(rows)))
    results = []
    for row in jnp.split(rows, len(rows)):
        halves = []
        for columns, columns_back in groups:
            x = _times(columns, row[0]).reshape(-1, batch, channels)
            product = lax.dot_general(x, next(spectra), (((2,), (1,)), ((0,), (0,))))
            halves.append(_times(columns_back, product.reshape(len(columns), -1)))
        results.append(halves[0] + halves[1])
    y = _times(to.rows_back, jnp.stack(results).reshape(2 * len(rows), -1))
    y = y.reshape(height, width, batch, -1)
    return jnp.where(_sees_anything(images, *kernel.shape[:2]), y, y - lax.stop_gradient(y))


def _times(matrix: np.ndarray, x: Float[Array, "n m"]) -> Float[Array, "l m"]:
    """`matrix` @ x, whose gradient has the matrix transposed beforehand."""

    @jax.custom_vjp
    def times(x: Array) -> Array:
        return jnp.matmul(matrix, x)

    times.defvjp(lambda x: (times(x), None), lambda _, g: (jnp.matmul(matrix.T.copy(), g),))
    return times(x)


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

    rows: np.ndarray  # [N, H]: an image's columns -> rows of frequencies, two parts each
    columns: np.ndarray  # [3 M, 2 W]: such a row -> a + b, a and b of each frequency
    taps: np.ndarray  # [N / 2 * 3 M, kh * kw]: a kernel -> c, d - c and c + d of each frequency
    columns_back: np.ndarray  # [2 W, 3 M]: a row of Gauss' products -> such a row
    rows_back: np.ndarray  # [H, N]: rows -> the result's columns


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
    return _Transforms(
        rows=parts.astype(np.float32),
        columns=_by_threes(seen.real + seen.imag, seen.real, seen.imag),
        taps=_by_threes(kernel.real, kernel.imag - kernel.real, kernel.real + kernel.imag),
        columns_back=np.concatenate([back.real, back.imag]).astype(np.float32),
        rows_back=(2 / n * parts.T).astype(np.float32),
    )


def _by_threes(*factors: np.ndarray) -> np.ndarray:
    """What makes Gauss' three factors [n, l] of n numbers: float32 [3 n, l]."""
    return np.stack(factors, 1).reshape(-1, factors[0].shape[1]).astype(np.float32)
