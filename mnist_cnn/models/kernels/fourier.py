"""A convolution as products of Fourier transforms (Mathieu et al. 2014, arXiv 1312.5851).

At the sizes of MNIST a transform is fastest as a matrix product too, so the values and both
gradients consist of matrix products.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex128, Float, Float64

Transform = Callable[[Float[Array, "n m"]], Float[Array, "l m"]]


def convolve(
    images: Float[Array, "H W B in"], kernel: Float[Array, "kh kw in out"]
) -> Float[Array, "H W B out"]:
    """The "same" convolution of stride 1.

    Each output value takes about 2 multiplications for each input channel, not kh * kw. Rounding
    errors are as small as those of a direct convolution, but relative to the largest value of the
    image: only the 0 where the kernel sees nothing but zeros is exact. One NaN makes the whole
    image NaN.
    """
    (height, width, batch, channels), size = images.shape, kernel.shape[:2]
    transforms = _make_transforms(height, width, *size)
    rows = transforms.rows(images.reshape(height, -1)).reshape(-1, 2 * width, batch * channels)
    filters = transforms.kernel(kernel.reshape(size[0] * size[1], -1))
    # XLA's libraries use one thread for a batch of such small products, and XLA runs operations in
    # parallel if more than eight are ready: hence two groups of products for each row.
    spectra = iter(jnp.split(filters.reshape(-1, *kernel.shape[2:]), 2 * len(rows)))
    results = []
    for row in jnp.split(rows, len(rows)):
        halves = []
        for forward, inverse in zip(transforms.columns, transforms.inverse_columns, strict=True):
            x = forward(row[0]).reshape(-1, batch, channels)
            product = lax.dot_general(x, next(spectra), (((2,), (1,)), ((0,), (0,))))
            halves.append(inverse(product.reshape(len(product), -1)))
        results.append(halves[0] + halves[1])
    y = transforms.inverse_rows(jnp.stack(results).reshape(2 * len(rows), -1))
    y = y.reshape(height, width, batch, -1)
    # Where the kernel sees only zeros, the value must be 0 and not what remains of products that
    # cancel. With a bias of 0, as in the initial parameters, a ReLU would otherwise let the
    # gradient through by chance.
    nonzero = lax.stop_gradient(images != 0).any(-1, keepdims=True).astype(jnp.float32)
    sees_nonzero = lax.reduce_window(nonzero, 0.0, lax.max, (*size, 1, 1), (1,) * 4, "SAME") > 0
    return jnp.where(sees_nonzero, y, y - lax.stop_gradient(y))


class _Transforms(NamedTuple):
    """Transforms to and from N // 2 rows of M complex frequencies, stored as pairs of real numbers.

    A product (a + ib) (c + id) takes Gauss' three real multiplications: c (a + b), a (d - c) and
    b (c + d). It is (1 + i) times the first plus i times the second minus the third.
    """

    rows: Transform  # the columns of images [H] -> N // 2 rows of frequencies, 2 numbers each
    columns: list[Transform]  # such a row [2 W] -> a + b, a, b of its M frequencies, in halves
    kernel: Transform  # a kernel [kh * kw] -> c, d - c, c + d of all frequencies
    inverse_columns: list[Transform]  # half of the three products of a row -> its share of the row
    inverse_rows: Transform  # the rows of frequencies -> the columns of the result


@functools.cache
def _make_transforms(height: int, width: int, kernel_height: int, kernel_width: int) -> _Transforms:
    """The transforms for a convolution of these sizes.

    The period is longer than the image by the zeros that a kernel can reach beyond it. The rows'
    frequencies are odd multiples of 1 / 2N. For a real image these come in conjugate pairs, of
    which N // 2 are enough, and none is its own conjugate, which would need special treatment.
    """
    n, m = height + kernel_height // 2, width + kernel_width // 2
    n, m = n + n % 2, m + m % 2
    top, left = (kernel_height - 1) // 2, (kernel_width - 1) // 2
    u, v = (np.arange(n // 2) + 0.5) / n, np.arange(m) / m

    def waves(frequencies: np.ndarray, start: int, size: int) -> Complex128[np.ndarray, "f size"]:
        return np.exp(2j * np.pi * np.outer(frequencies, np.arange(size) - start))

    row, column = waves(u, 0, height), waves(v, 0, width)
    rows = np.stack([row.real, -row.imag], 1).reshape(n, height)  # of the conjugate
    units = np.array([1, 1j])  # the two numbers of a row's frequency are its multiples of these
    x = np.einsum("vw,p->vpw", column.conj(), units).reshape(m, -1)
    kernel = np.einsum("uh,vw->uvhw", waves(u, top, kernel_height), waves(v, left, kernel_width))
    kernel = kernel.reshape(n // 2 * m, -1)
    inverse = np.einsum("vw,g->wvg", column, [1 + 1j, 1j, -1]).reshape(width, -1) / m
    columns = _interleave(x.real + x.imag, x.real, x.imag)
    filters = _interleave(kernel.real, kernel.imag - kernel.real, kernel.real + kernel.imag)
    inverse_columns = np.concatenate([inverse.real, inverse.imag])
    return _Transforms(
        rows=_multiply_by(rows),
        columns=[_multiply_by(half) for half in np.split(columns, 2)],
        kernel=_multiply_by(filters),
        inverse_columns=[_multiply_by(half) for half in np.split(inverse_columns, 2, 1)],
        inverse_rows=_multiply_by(2 / n * rows.T),
    )


def _interleave(*factors: Float64[np.ndarray, "n l"]) -> Float64[np.ndarray, "three_n l"]:
    """The matrices of Gauss' three factors as one: the first row of each, the second, and so on."""
    return np.stack(factors, 1).reshape(-1, factors[0].shape[1])


def _multiply_by(matrix: Float64[np.ndarray, "l n"]) -> Transform:
    """x -> matrix @ x; the gradient uses a matrix that is transposed in advance."""
    matrix = matrix.astype(np.float32)
    transposed = matrix.T.copy()

    @jax.custom_vjp
    def multiply(x: Array) -> Array:
        return jnp.matmul(matrix, x)

    multiply.defvjp(lambda x: (multiply(x), None), lambda _, g: (jnp.matmul(transposed, g),))
    return multiply
