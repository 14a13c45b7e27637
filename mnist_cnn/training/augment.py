"""Random affine changes of training images, drawn and computed on the device."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from mnist_cnn.models.warp import matrix, warp

__all__ = ("AMOUNTS", "draw", "matrix", "warp")
AMOUNTS = ("rotation", "zoom", "shear", "shift")  # each drawn uniformly from -amount to +amount


def draw(
    key: Key[Array, ""], amounts: Mapping[str, Any], count: int
) -> tuple[Float[Array, "N 2 2"], Float[Array, "N 2"]]:
    """Draws a matrix and an offset for each of `count` images, as `warp` takes them.

    `amounts` has the largest changes by name: degrees of rotation; for zoom, the part by which
    height and width (independently) grow or shrink; for shear, the columns by which a row moves
    for each row from the centre; the pixels of shift down and right (independently).
    """

    def uniform(name: str, *shape: int) -> Array:
        own_key = jax.random.fold_in(key, AMOUNTS.index(name))
        return amounts.get(name, 0) * jax.random.uniform(own_key, (count, *shape), minval=-1)

    return matrix(uniform("rotation"), uniform("zoom", 2), uniform("shear")), uniform("shift", 2)
