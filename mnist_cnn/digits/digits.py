"""A picture of a digit -> MNIST's own form: uint8 [28, 28], ink 255 on paper 0.

MNIST's makers describe it so (LeCun, Cortes, Burges): the digit was scaled to fit a box of 20x20
pixels keeping its shape, with grey levels from anti-aliasing, and placed by its centre of mass in
the middle of 28x28.  Before that comes what NIST's scanner did for them: telling ink from paper.

    image = read("photo.jpg")      # a PIL image, refused if it is none or too large
    digit = mnist_form(image)      # uint8 [28, 28]

Only Pillow, NumPy and SciPy: no network, no JAX.  Nothing that is read is executed.
"""

from __future__ import annotations

import math
import os
import pathlib
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_cnn.errors import PictureError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 100_000_000  # more is refused: a small file may claim to be a picture of terabytes

_WORKING = 320  # a larger picture is reduced to about the pixels of a square of this side
_NEIGHBOURS = np.ones((3, 3), bool)
_LEAST_CONTRAST = 24.0  # ink differs from its paper by this much of 255 ...
_LEAST_SIGNAL = 5.0  # ... and by this many standard deviations of the paper's noise
_THIN = 1.4  # a stroke thinner than this (pixels of 28; MNIST's are 1.5 to 4) is drawn over ...
_DRAWN = 2.4  # ... so that it gets MNIST's usual width


def read(path: str | os.PathLike[str]) -> Image.Image:
    """The picture of a file (a GIF's first frame), upright as its EXIF data says.

    Raises:
      PictureError: it is not there, no picture, damaged, or has more than `MAX_PIXELS`.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            raise PictureError("there is no picture that can be read in this folder")
        if not path.is_file():  # a device or a pipe might never end
            raise PictureError("it is no regular file" if path.exists() else "no such file")
        with open(path, "rb") as file:
            return decode(file)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise PictureError(f"cannot be read: {getattr(error, 'strerror', error)}") from None


def decode(file: BinaryIO) -> Image.Image:
    """The picture that an open file holds; as `read`.

    Raises:
      PictureError: it is no picture, damaged, or has more than `MAX_PIXELS`.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.draft("RGB", (2 * _WORKING, 2 * _WORKING))  # a JPEG is decoded smaller, faster
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        file.seek(0)
        if not file.read(1):
            raise PictureError("the file is empty") from None
        names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise PictureError(f"no picture that can be read, expected {names}") from None
    except Image.DecompressionBombError:
        raise PictureError(f"larger than the {MAX_PIXELS:,} pixels that are accepted") from None
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"damaged: {reason}") from None


def save(digit: UInt8[np.ndarray, "28 28"], path: str | os.PathLike[str]) -> None:
    """Writes MNIST's form as a grey PNG file."""
    Image.fromarray(digit).save(path, "PNG")


def mnist_form(image: Image.Image) -> UInt8[np.ndarray, "28 28"]:
    """The picture's digit as MNIST has it, whatever the picture's size, mode and colours.

    One that is in MNIST's form already, as its own images are, keeps every pixel.

    Raises:
      PictureError: there is nothing on it that stands out like a stroke of ink.
    """
    colours = _colours(image)
    for values in (colours, 255 - colours):
        if _in_form(values):
            return np.rint(values[..., 0]).astype(np.uint8)
    ink = _ink(colours)  # coverage 0..1, nothing but the digit, cropped to it
    ink = _drawn_over(ink)
    height, width = ink.shape
    scale = 20 / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.HAMMING))
    small = small / small.max()
    canvas = np.zeros((28, 28), np.uint8)
    top, left = _corner(small.sum(1)), _corner(small.sum(0))
    canvas[top : top + size[1], left : left + size[0]] = np.rint(small.clip(0, 1) * 255)
    return canvas


def _in_form(colours: Float32[np.ndarray, "H W C"]) -> bool:
    """Whether it has MNIST's form: white on pure black, the box of 20x20, its place in 28x28.

    True of 69,982 of MNIST's 70,000 images; the others' boxes are smaller or a pixel off.
    """
    if colours.shape != (28, 28, 1) or colours.max() < 250:
        return False
    rows, columns = _box(colours[..., 0] > 0)
    digit = colours[rows, columns, 0]
    return (
        max(digit.shape) == 20
        and rows.start == _corner(digit.sum(1))
        and columns.start == _corner(digit.sum(0))
    )


def _corner(weights: Float32[np.ndarray, "n"]) -> int:
    """Where n <= 20 rows (or columns) start so that their centre of mass is in the middle of 28.

    MNIST's own lie at index 14.0, within half a pixel.
    """
    centre = float(weights @ np.arange(len(weights))) / float(weights.sum())
    return min(max(round(14 - centre), 0), 28 - len(weights))


def _colours(image: Image.Image) -> Float32[np.ndarray, "H W C"]:
    """Values 0..255 of one or three colours, reduced to the working size, nothing transparent."""
    transparent = image.has_transparency_data
    if image.mode[0] in "IF":  # 16 or 32 bits: down to the highest 8 that are used
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0).clip(0)
        if image.mode == "F" and values.max() <= 1:
            values *= 255
        bits = max(8, math.ceil(math.log2(float(values.max()) + 1)))
        image = Image.fromarray((values / 2 ** (bits - 8)).astype(np.uint8))
    elif transparent:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    factor = math.ceil(math.sqrt(image.width * image.height) / _WORKING)
    if factor > 1:
        image = image.reduce(factor)
    values = np.asarray(image, np.float32)
    if values.ndim == 2:
        return values[..., None]
    if image.mode == "RGBA":
        values = _without_transparency(values)
    if (values == values[..., :1]).all():
        values = values[..., :1]  # grey: a third of the work
    return values


def _without_transparency(values: Float32[np.ndarray, "H W 4"]) -> Float32[np.ndarray, "H W 3"]:
    """A digit drawn on nothing is laid on black or white, whatever differs; holes are filled."""
    colours, opacity = values[..., :3], values[..., 3:] / 255
    visible = colours[opacity[..., 0] > 0.5]
    if len(visible) > opacity.size / 2:  # the paper is there: go on with its colour
        behind = np.median(visible, axis=0)
    else:
        behind = np.full(3, 255.0 if len(visible) == 0 or visible.mean() < 128 else 0.0)
    return (colours * opacity + behind * (1 - opacity)).astype(np.float32)


def _paper(colours: Float32[np.ndarray, "H W C"]) -> tuple[Float32[np.ndarray, "H W C"], float]:
    """The paper's colour everywhere, and the standard deviation of its noise.

    The paper is what most of the picture's border is.  Where that is lit unevenly, a smooth
    surface (quadratic in x and y) is laid through the border, then through all that is near it.
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
    """The middle value of each column; five times as fast as NumPy's for a few hundred."""
    middle: np.ndarray = np.sort(values, axis=0)[len(values) // 2]
    return middle


def _deviation(residuals: Float32[np.ndarray, "N C"]) -> float:
    """The standard deviation, blind to the few that stand out."""
    return 1.4826 * float(_median(np.abs(residuals)).max())


def _ink(colours: Float32[np.ndarray, "H W C"]) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel is ink, 0..1, cropped to the digit.

    Raises:
      PictureError: nothing stands out from the paper.
    """
    paper, noise = _paper(colours)
    difference = colours - paper
    distance = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference))
    if max(distance.shape) >= 100:  # specks go; strokes are wider than they by now
        image = Image.fromarray(distance.clip(0, 255).astype(np.uint8))
        distance = np.asarray(image.filter(ImageFilter.MedianFilter(3)), np.float32)
    count = max(8, distance.size // 500)
    if distance.size <= count:
        raise PictureError("too small to show a digit")
    darkest = float(np.sort(distance, axis=None)[-count:].mean())
    if darkest < max(_LEAST_CONTRAST, _LEAST_SIGNAL * noise):
        raise PictureError("no digit found: nothing stands out from the paper")
    digit = _largest_figure(distance > 0.45 * darkest)

    direction = difference[digit].mean(axis=0)  # from the paper's colour to the ink's
    length = float(np.linalg.norm(direction))
    along = difference @ (direction / max(length, 1e-6))
    strokes = np.sort(along[digit])
    full = float(strokes[len(strokes) * 3 // 4])
    if full <= 2.5 * noise:
        raise PictureError("no digit found: its strokes have no colour in common")
    coverage = (along / full).clip(0, 1)
    # The soft edge of the strokes belongs to them; the paper around them does not.
    rows, columns = _box(digit)
    margin = max(1, round(0.06 * max(rows.stop - rows.start, columns.stop - columns.start)))
    rows = slice(max(0, rows.start - margin), rows.stop + margin)
    columns = slice(max(0, columns.start - margin), columns.stop + margin)
    near = _grown(digit[rows, columns], margin)
    coverage = coverage[rows, columns] * near
    floor = max(0.05, 2.5 * noise / full)
    coverage = np.where(coverage > floor, coverage, 0).astype(np.float32)
    return coverage[_box(coverage > 0)]


def _largest_figure(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The largest connected figure and the parts that belong to it (the bar of a 5).

    Raises:
      PictureError: it is no more than a speck, or covers nearly everything.
    """
    labels, count = ndimage.label(mask, _NEIGHBOURS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    inside = areas.copy()
    inside[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    if inside.max() > 0.1 * areas.max():
        areas = inside  # what leaves the picture is the table's edge, a finger, the next line
    largest = int(areas.argmax())
    boxes = ndimage.find_objects(labels)
    size = max(part.stop - part.start for part in boxes[largest - 1])
    if size < max(5, 0.04 * min(mask.shape)):
        raise PictureError("no digit found: only specks stand out from the paper")
    if areas[largest] > 0.7 * mask.size:
        raise PictureError("no digit found: there is no paper around it")
    kept = [
        label
        for label in np.flatnonzero(areas >= 0.05 * areas[largest])
        if _gap(boxes[label - 1], boxes[largest - 1]) <= 0.3 * size
    ]
    return np.isin(labels, kept) if len(kept) > 1 else labels == largest


def _gap(box: tuple[slice, slice], other: tuple[slice, slice]) -> int:
    """Pixels between two boxes; 0 where they overlap."""
    pairs = zip(box, other, strict=True)
    return max(0, *(max(a.start - b.stop, b.start - a.stop) for a, b in pairs))


def _box(mask: Bool[np.ndarray, "H W"]) -> tuple[slice, slice]:
    """The smallest rows and columns that hold all of the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _grown(values: Shaped[np.ndarray, "H W"], radius: int) -> Shaped[np.ndarray, "H W"]:
    """Each value becomes the largest within `radius` pixels."""
    grown: np.ndarray = ndimage.maximum_filter(values, 2 * radius + 1, mode="constant")
    return grown


def _drawn_over(ink: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Strokes of a fine pen made as wide as MNIST's, or they would be nearly gone at 20x20."""
    width = stroke_width(ink) * 20 / max(ink.shape)
    if width >= _THIN:
        return ink
    radius = max(1, round((_DRAWN - width) / 2 * max(ink.shape) / 20))
    return _grown(np.pad(ink, radius), radius)


def stroke_width(ink: Float32[np.ndarray, "H W"]) -> float:
    """The mean width of the strokes, in pixels: twice their area over their outline."""
    mask = ink > 0.5
    outline = np.count_nonzero(mask[1:] != mask[:-1])
    outline += np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    outline += np.count_nonzero(mask[[0, -1]]) + np.count_nonzero(mask[:, [0, -1]])
    return 2 * float(ink.sum()) / max(1.0, outline * math.pi / 4)
