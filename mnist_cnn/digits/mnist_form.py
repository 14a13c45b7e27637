"""A picture of a digit -> an image like MNIST's: uint8 [28, 28], ink 255 on paper 0.

As in MNIST (http://yann.lecun.com/exdb/mnist), each digit is scaled with anti-aliasing to fit a box
of 20x20 pixels, keeping its aspect ratio; its centre of mass is in the middle of 28x28.
"""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from scipy import ndimage

from mnist_cnn.digits import ink


def mnists_own(colours: Float32[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "28 28"] | None:
    """The pixels of a picture that has MNIST's form already, perhaps black on white; or None."""
    for values in (colours, 255 - colours):
        if _has_mnist_form(values):
            return np.rint(values[..., 0]).astype(np.uint8)
    return None


def fit(digit: Float32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "28 28"]:
    """A digit, given as how much of each pixel is ink, at MNIST's size and place."""
    digit = _thicken(digit)
    height, width = digit.shape
    scale = 20 / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.HAMMING))
    small = small / small.max()
    canvas = np.zeros((28, 28), np.uint8)
    top, left = _corner(small.sum(1)), _corner(small.sum(0))
    canvas[top : top + size[1], left : left + size[0]] = np.rint(small.clip(0, 1) * 255)
    return canvas


def _has_mnist_form(colours: Float32[np.ndarray, "H W C"]) -> bool:
    """Whether this is white on pure black, in a 20x20 box, placed as in MNIST (but 18 images)."""
    if colours.shape != (28, 28, 1) or colours.max() < 250:
        return False
    rows, columns = ink.bounds(colours[..., 0])
    digit = colours[rows, columns, 0]
    corner = (_corner(digit.sum(1)), _corner(digit.sum(0)))
    return max(digit.shape) == 20 and (rows.start, columns.start) == corner


def _corner(weights: Float32[np.ndarray, "n"]) -> int:
    """Where n <= 20 rows (or columns) start so that their centre of mass is in the middle of 28."""
    centre = float(weights @ np.arange(len(weights))) / float(weights.sum())
    return min(max(round(14 - centre), 0), 28 - len(weights))  # MNIST's is at 14.0, within 0.5


def _thicken(digit: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
    """Widens the strokes of a fine pen, which would nearly vanish at 20x20."""
    width = ink.stroke_width(digit) * 20 / max(digit.shape)  # MNIST's are 1.5 to 4 pixels wide
    if width >= 1.4:
        return digit
    radius = max(1, round((2.4 - width) / 2 * max(digit.shape) / 20))  # to the usual width, 2.4
    return ndimage.maximum_filter(np.pad(digit, radius), 2 * radius + 1, mode="constant")
