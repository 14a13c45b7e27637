"""The paper of a picture: its colour at each pixel, and how far each pixel is from it."""

import math

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from scipy import ndimage

from mnist_cnn.errors import PictureError

# The difference from the paper's colour, its length, and the paper's standard deviation.
Compared = tuple[Float32[np.ndarray, "H W C"], Float32[np.ndarray, "H W"], float]

EVEN = 1.5  # of 255: a border that deviates less is one colour, without shadows


def compare(colours: Float32[np.ndarray, "H W C"], at_border: bool) -> Compared:
    """Compares each pixel with the paper.

    The paper is what most of the picture's border shows, or else most of its inside.  If the light
    is uneven, its colour is a quadratic function of x and y, fitted to that region and then to all
    pixels close to the fit.
    """
    height, width, channels = colours.shape
    values = colours.reshape(-1, channels)
    step = max(1, round(math.sqrt(len(values) / 1000)))
    anywhere = np.arange(len(values)).reshape(height, width)[::step, ::step].ravel()
    edge = np.ones((height, width), bool)
    without_edge(edge, 0.04 if at_border else 0.18)[:] = False
    if at_border:
        region = np.flatnonzero(edge)
        flat = _median(values[region])
        noise = _deviation(values[region] - flat)
        around = region[:: max(1, len(region) // 1000)]
    else:  # the usual colour of the inside, because a large part of it is ink
        region = anywhere[~edge.ravel()[anywhere]]
        if not len(region):
            raise PictureError("too small to show a digit")
        inside = values[region]
        flat = _median(inside)
        noise = _deviation((values[region + 1] - inside) / 2**0.5)  # blur is no noise
        inside_sorted = np.sort(inside, axis=0)
        spread = inside_sorted[-1 - len(inside) // 50] - inside_sorted[len(inside) // 50]
        usual = np.abs(inside - flat) <= np.maximum(4, 0.25 * spread)
        around = anywhere = region[usual.all(axis=-1)]
    if at_border and noise < EVEN:
        difference = colours - flat
    else:
        surface = _fit(values, width, height, around, anywhere)
        difference = colours - surface
        if at_border:
            noise = _deviation(difference.reshape(-1, channels)[region])
    return difference, _distance(difference), noise


def compare_in_shadow(colours: Float32[np.ndarray, "H W C"]) -> Compared:
    """As `compare`, for dark ink on paper with the edges of shadows.

    The paper's colour is what remains if all that is narrower than a quarter of the picture is
    filled with what is around it (a morphological closing).
    """
    size = min(colours.shape[:2]) // 8 * 2 + 1
    difference = colours - ndimage.grey_closing(colours, (size, size, 1))
    some = difference.reshape(-1, colours.shape[2])[:: max(1, difference[..., 0].size // 4000)]
    flat = _median(some)
    difference = difference - flat
    return difference, _distance(difference), _deviation(some - flat)


def _distance(difference: Float32[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W"]:
    """The length of the differences, without specks."""
    if difference.shape[2] == 1:
        distance = np.abs(difference[..., 0])
    else:
        distance = np.sqrt(np.square(difference) @ np.ones(difference.shape[2], np.float32))
    if max(distance.shape) >= 100:  # removes specks; at this size strokes are wider than they are
        distance = _median_filter(distance.clip(0, 255).astype(np.uint8)).astype(np.float32)
    return distance


def _fit(
    values: Float32[np.ndarray, "N C"],
    width: int,
    height: int,
    first: Int64[np.ndarray, "A"],
    later: Int64[np.ndarray, "B"],
) -> Float32[np.ndarray, "H W C"]:
    """The quadratic function of x and y closest to most of the pixels with these indices."""
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    weights = np.zeros((6, values.shape[1]))
    for index, pixels in enumerate((first, first, first, later)):
        if index == 0 or pixels is later:
            column, row = x[pixels % width], y[pixels // width]
            terms = np.array([column**0, column, row, column * row, column**2, row**2])
            chosen, target = terms, values[pixels].T.astype(float)
        if index > 0:
            residual = np.abs(target - weights.T @ terms).max(axis=0)
            middle = slice((len(pixels) - 1) // 2, len(pixels) // 2 + 1)
            median = float(np.sort(residual)[middle].mean())  # faster than NumPy's median
            chosen = terms * (residual <= 2.5 * max(1.0, 1.4826 * median))
        weights = np.linalg.solve(chosen @ terms.T + 1e-6 * np.eye(6), chosen @ target.T)
    one, by_x, by_y, by_xy, by_xx, by_yy = weights
    x = x[:, None]
    rows = [one + x * (by_x + x * by_xx), by_y + x * by_xy, by_yy + 0 * x]
    powers = np.array([y**0, y, y**2], np.float32)
    surface = powers.T @ np.array(rows, np.float32).reshape(3, -1)
    return surface.reshape(height, width, -1)


def _median(values: Float32[np.ndarray, "N C"]) -> Float32[np.ndarray, "C"]:
    """The median of each column; five times as fast as NumPy's for a few hundred rows."""
    return np.sort(values, axis=0)[len(values) // 2]


def _median_filter(values: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """The median of 3x3 pixels; ten times as fast as Pillow's and SciPy's.

    It is the median of the largest minimum, the median of medians and the least maximum of three
    columns (Smith 1996, Implementing median filters in XC4000E FPGAs).
    """
    padded = np.pad(values, 1, mode="edge")
    low, middle, high = _sort3(padded[:-2], padded[1:-1], padded[2:])
    low = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    middle = _sort3(middle[:, :-2], middle[:, 1:-1], middle[:, 2:])[1]
    high = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    return _sort3(low, middle, high)[1]


def _sort3(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    below = np.minimum(high, c)
    return np.minimum(low, below), np.maximum(low, below), np.maximum(high, c)


def _deviation(residuals: Float32[np.ndarray, "N C"]) -> float:
    """The standard deviation, estimated from the median so that outliers do not count."""
    return 1.4826 * float(_median(np.abs(residuals)).max())


def without_edge(values: np.ndarray, share: float) -> np.ndarray:
    """A view of [H, W] without its edge, whose width is this share of the shorter side."""
    width = max(1, round(share * min(values.shape[:2])))
    return values[width:-width, width:-width]
