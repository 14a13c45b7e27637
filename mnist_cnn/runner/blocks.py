"""An image as lines of characters, for a terminal."""

import numpy as np
from jaxtyping import UInt8

SHADES, ASCII_SHADES = " ░▒▓█", " .+#@"  # from 0 to 255


def blocks(image: UInt8[np.ndarray, "H W *C"], shades: str = SHADES) -> str:
    """The image in grey; a character shows two pixels, of images wider than 64 pixels eight.

    An image of 28 x 28 pixels is 14 lines of 28 characters.
    """
    grey = np.atleast_3d(image).mean(axis=2)
    size = 1 if grey.shape[1] <= 64 else 2
    rows, columns = (
        -length % step for length, step in zip(grey.shape, (2 * size, size), strict=True)
    )
    grey = np.pad(grey, ((0, rows), (0, columns)), mode="edge")
    cells = grey.reshape(len(grey) // (2 * size), 2 * size, -1, size).mean(axis=(1, 3))
    characters = np.array(list(shades))[np.rint(cells / 255 * 4).astype(int)]
    return "\n".join("".join(row) for row in characters)
