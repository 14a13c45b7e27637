"""A picture of a digit -> an image like MNIST's: uint8 [28, 28], ink 255 on paper 0.

As LeCun, Cortes and Burges made MNIST (http://yann.lecun.com/exdb/mnist): each digit is scaled with
anti-aliasing to fit a box of 20x20 pixels, keeping its aspect ratio, and its centre of mass is
placed in the middle of 28x28.
"""

import math

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from scipy import ndimage

from mnist_cnn.digits import ink

_THIN = 1.4  # thinner strokes (in pixels of 28; MNIST's are 1.5 to 4 wide) are thickened ...
_USUAL = 2.4  # ... to this width


def mnist_form(image: Image.Image) -> UInt8[np.ndarray, "28 28"]:
    """The picture's digit as MNIST has it; the picture may have any size, mode and colours.

    A picture that already has this form, as MNIST's own images do, keeps every pixel.

    Raises:
      PictureError: nothing stands out from the paper as a stroke of ink does.
    """
    colours = ink.colours(image)
    for values in (colours, 255 - colours):
        if _has_mnist_form(values):
            return np.rint(values[..., 0]).astype(np.uint8)
    digit = _thicken(ink.coverage(colours))
    height, width = digit.shape
    scale = 20 / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.HAMMING))
    small = small / small.max()
    canvas = np.zeros((28, 28), np.uint8)
    top, left = _corner(small.sum(1)), _corner(small.sum(0))
    canvas[top : top + size[1], left : left + size[0]] = np.rint(small.clip(0, 1) * 255)
    return canvas


def stroke_width(digit: Float32[np.ndarray, "H W"]) -> float:
    """The mean width of the strokes, in pixels: twice their area divided by their outline."""
    mask = np.pad(digit > 0.5, 1)
    outline = np.count_nonzero(mask[1:] != mask[:-1])
    outline += np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    return 2 * float(digit.sum()) / max(1.0, outline * math.pi / 4)


def _has_mnist_form(colours: Float32[np.ndarray, "H W C"]) -> bool:
    """Whether this is white on pure black, in a box of 20x20, placed as MNIST does.

    True of 69,982 of MNIST's 70,000 images; the others' boxes are smaller or a pixel off.
    """
    if colours.shape != (28, 28, 1) or colours.max() < 250:
        return False
    rows, columns = ink.bounding_box(colours[..., 0] > 0)
    digit = colours[rows, columns, 0]
    return (
        max(digit.shape) == 20
        and rows.start == _corner(digit.sum(1))
        and columns.start == _corner(digit.sum(0))
    )


def _corner(weights: Float32[np.ndarray, "n"]) -> int:
    """Where n <= 20 rows (or columns) start so that their centre of mass is in the middle of 28.

    In MNIST's own images it is at index 14.0, within half a pixel.
    """
    centre = float(weights @ np.arange(len(weights))) / float(weights.sum())
    return min(max(round(14 - centre), 0), 28 - len(weights))


def _thicken(digit: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
    """Widens the strokes of a fine pen, which would nearly vanish at 20x20."""
    width = stroke_width(digit) * 20 / max(digit.shape)
    if width >= _THIN:
        return digit
    radius = max(1, round((_USUAL - width) / 2 * max(digit.shape) / 20))
    return ndimage.maximum_filter(np.pad(digit, radius), 2 * radius + 1, mode="constant")
