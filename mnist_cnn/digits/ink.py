"""Tells ink from paper: a picture -> how much of each pixel is ink, cropped to the digit."""

import math

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image, ImageFilter
from scipy import ndimage

from mnist_cnn.errors import PictureError


def colours(image: Image.Image) -> Float32[np.ndarray, "H W C"]:
    """The picture's grey (C = 1) or RGB values, 0 to 255, opaque and at the working size."""
    if image.mode[0] in "IF":  # 16 or 32 bits: keep the highest 8 that are used
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0).clip(0)
        if image.mode == "F" and values.max() <= 1:
            values *= 255
        bits = max(8, math.ceil(math.log2(float(values.max()) + 1)))
        image = Image.fromarray((values / 2 ** (bits - 8)).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode != "L":
        image = image.convert("RGB")
    factor = math.ceil(math.sqrt(image.width * image.height) / 320)  # to about 320 x 320 pixels
    values = np.atleast_3d(np.asarray(image.reduce(factor), np.float32))
    if image.mode == "RGBA":
        values = _blend(values)
    return values[..., :1] if (values == values[..., :1]).all() else values  # grey is faster


def coverage(colours: Float32[np.ndarray, "H W C"]) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel is ink, 0 to 1, cropped to the digit.

    Raises a `PictureError` if nothing stands out from the paper as a stroke of ink does.
    """
    paper, noise = _paper(colours)
    difference = colours - paper
    distance = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference))
    if max(distance.shape) >= 100:  # removes specks; at this size strokes are wider than they are
        image = Image.fromarray(distance.clip(0, 255).astype(np.uint8))
        distance = np.asarray(image.filter(ImageFilter.MedianFilter(3)), np.float32)
    count = max(8, distance.size // 500)
    if distance.size <= count:
        raise PictureError("too small to show a digit")
    darkest = float(np.sort(distance, axis=None)[-count:].mean())
    if darkest < max(24, 5 * noise):  # of 255; noise is a standard deviation
        raise PictureError("no digit found: nothing stands out from the paper")
    digit = _largest_figure(distance > 0.45 * darkest)

    direction = difference[digit].mean(axis=0)  # from the paper's colour to the ink's
    along = difference @ (direction / max(float(np.linalg.norm(direction)), 1e-6))
    strokes = np.sort(along[digit])
    full = float(strokes[len(strokes) * 3 // 4])
    if full <= 2.5 * noise:
        raise PictureError("no digit found: its strokes have no colour in common")
    # Keep the soft edge of the strokes, and nothing else around them.
    (box,) = ndimage.find_objects(digit, 1)
    margin = max(1, round(0.06 * max(side.stop - side.start for side in box)))
    box = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
    near = ndimage.maximum_filter(digit[box], 2 * margin + 1, mode="constant")
    ink = (along[box] / full).clip(0, 1) * near
    ink = np.where(ink > max(0.05, 2.5 * noise / full), ink, 0).astype(np.float32)
    return ink[ndimage.find_objects(ink > 0, 1)[0]]


def _blend(values: Float32[np.ndarray, "H W 4"]) -> Float32[np.ndarray, "H W 3"]:
    """Fills transparent parts with the paper's colour."""
    colours, opacity = values[..., :3], values[..., 3:] / 255
    visible = colours[opacity[..., 0] > 0.5]
    if len(visible) > opacity.size / 2:
        behind = np.median(visible, axis=0)
    else:  # the paper is transparent: black or white, whichever differs more from the ink
        behind = np.full(3, 255.0 if len(visible) == 0 or visible.mean() < 128 else 0.0)
    return (colours * opacity + behind * (1 - opacity)).astype(np.float32)


def _paper(colours: Float32[np.ndarray, "H W C"]) -> tuple[Float32[np.ndarray, "H W C"], float]:
    """The paper's colour at each pixel, and the standard deviation of its noise.

    The paper is what most of the picture's border shows.  If the light is uneven, its colour is a
    quadratic function of x and y, fitted to the border and then to all pixels close to the fit.
    """
    height, width, channels = colours.shape
    frame = max(1, round(0.04 * min(height, width)))
    edge = np.ones((height, width), bool)
    edge[frame : height - frame, frame : width - frame] = False
    border = colours[edge]
    flat = _median(border)
    noise = _deviation(border - flat)
    if noise < 1.5:
        return np.broadcast_to(flat, colours.shape), noise
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).reshape(-1, 6)
    values = colours.reshape(-1, channels)
    around = np.flatnonzero(edge)
    around = around[:: max(1, len(around) // 2000)]
    anywhere = np.arange(0, len(values), max(1, len(values) // 2000))
    chosen = around
    for candidates in (around, around, anywhere, anywhere):
        a, b = terms[chosen], values[chosen]
        weights = np.linalg.solve(a.T @ a + 1e-6 * np.eye(6), a.T @ b)  # least squares
        residual = np.abs(values[candidates] - terms[candidates] @ weights).max(axis=-1)
        limit = 2.5 * max(1.0, 1.4826 * float(np.median(residual)))
        chosen = candidates[residual <= limit]
    surface = (terms @ weights).astype(np.float32).reshape(colours.shape)
    return surface, _deviation((colours - surface)[edge])


def _median(values: Float32[np.ndarray, "N C"]) -> Float32[np.ndarray, "C"]:
    """The median of each column; five times as fast as NumPy's for a few hundred rows."""
    return np.sort(values, axis=0)[len(values) // 2]


def _deviation(residuals: Float32[np.ndarray, "N C"]) -> float:
    """The standard deviation, estimated from the median so that outliers do not count."""
    return 1.4826 * float(_median(np.abs(residuals)).max())


def _largest_figure(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The largest connected figure and the parts close to it (the bar of a 5).

    Raises a `PictureError` if the figure is a speck, or covers nearly everything.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3), bool))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    inside = areas.copy()
    inside[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    if inside.max() > 0.1 * areas.max():
        areas = inside  # figures at the border are the table's edge, a finger, the next line
    largest = int(areas.argmax())
    boxes = ndimage.find_objects(labels)
    size = max(side.stop - side.start for side in boxes[largest - 1])
    if size < max(5, 0.04 * min(mask.shape)):
        raise PictureError("no digit found: only specks stand out from the paper")
    if areas[largest] > 0.7 * mask.size:
        raise PictureError("no digit found: there is no paper around it")

    def is_near(label: int) -> bool:
        pairs = zip(boxes[label - 1], boxes[largest - 1], strict=True)
        return max(max(a.start - b.stop, b.start - a.stop) for a, b in pairs) <= 0.3 * size

    large = np.flatnonzero(areas >= 0.05 * areas[largest]).tolist()
    return np.isin(labels, [label for label in large if is_near(label)])
