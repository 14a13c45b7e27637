"""Tells ink from paper: a picture -> its connected parts, and how much of each pixel is ink."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8
from PIL import Image
from scipy import ndimage

from mnist_cnn.digits.pictures import in_8_bits
from mnist_cnn.errors import PictureError

Box = tuple[slice, slice]  # rows and columns

_CONTRAST = 24  # of 255: the least difference between ink and paper
_CONNECTED = np.ones((3, 3), bool)  # diagonally too


class Page(NamedTuple):
    """The ink of a picture in parts: its connected figures, with the numbers 1, 2, ..."""

    difference: Float32[np.ndarray, "H W C"]  # from the paper's colour; 0 where a line was removed
    noise: float  # a standard deviation, of 255
    parts: Int32[np.ndarray, "H W"]  # the number of each pixel's part; 0: paper
    boxes: list[Box]  # of part 1, 2, ...
    areas: Float64[np.ndarray, "P"]  # of part 0 (which has none), 1, 2, ...
    at_border: Float64[np.ndarray, "P"]  # the share of the area that is close to the border
    touching: Bool[np.ndarray, "P"]  # whether it touches the border
    framed: bool  # whether lines or scraps at the border were removed

    @property
    def scraps(self) -> Bool[np.ndarray, "P"]:
        """Parts that touch the border and stay near it: a frame, a table's edge, other writing."""
        return self.touching & (self.at_border > 0.5)


def colours(image: Image.Image, side: int = 320) -> Float32[np.ndarray, "H W C"]:
    """The picture's grey (C = 1) or RGB values, 0 to 255, opaque and at the working size.

    That is about `side` x `side` pixels; smaller pictures stay as they are.
    """
    if image.mode[0] in "IF":  # 16 or 32 bits
        image = in_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode != "L":
        image = image.convert("RGB")
    factor = math.ceil(math.sqrt(image.width * image.height) / side)
    values = np.atleast_3d(np.asarray(image.reduce(factor), np.float32))
    if image.mode == "RGBA":
        values = _blend(values)
    return values[..., :1] if (values == values[..., :1]).all() else values  # grey is faster


def coverage(colours: Float32[np.ndarray, "H W C"]) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel is ink, 0 to 1, cropped to the digit.

    Raises a `PictureError` if nothing stands out from the paper as a stroke of ink does.
    """
    page = find_parts(colours)
    return strokes(page, figure(page))


def find_parts(colours: Float32[np.ndarray, "H W C"]) -> Page:
    """Separates ink from paper, without frames, lines and scraps at the border.

    A frame may be darker than the pencil in it, so the rest is compared with the paper again.
    Raises a `PictureError` if nothing stands out from the paper as a stroke of ink does.
    """
    difference, distance, noise = _compare(colours, at_border=True)
    parts = _ink(distance, noise)
    if parts is not None and np.count_nonzero(parts) > 0.7 * parts.size:
        parts = None
    page = found = None if parts is None else _page(difference, noise, parts)
    if page and not page.touching.any():
        return page
    if parts is None:  # the border shows no paper, or a frame alone
        difference, distance, noise = _compare(colours, at_border=False)
        parts = _ink(distance, noise)
    removed = np.zeros(distance.shape, bool)
    for _ in range(3):
        if parts is None:
            break
        mask, framed = parts > 0, bool(removed.any())
        line = _lines(mask | removed) & mask
        if page and not framed and _has_size_of_digit(page, True):
            line |= _inclined(mask) | _inclined(mask.T).T
        if line.any():
            parts, _ = ndimage.label(mask & ~line, _CONNECTED)
        if line.any() or not found or framed:
            found = _page(difference, noise, parts, framed)
        more = line | found.scraps[found.parts]
        if not more.any():
            break
        if page and not framed and 5 * noise > _CONTRAST:
            other = _compare(colours, at_border=False)
            ink = _ink(other[1], other[2])
            if ink is not None and np.count_nonzero(ink) <= 1.5 * np.count_nonzero(mask):
                difference, distance, noise = other  # else a shadow would be ink
        removed |= more
        around = _grow(_grow(removed, 2).T, 2).T & (more | ~mask)
        difference, distance = difference * ~around[..., None], distance * ~around
        parts = _ink(distance, noise)
    if not found:
        raise PictureError("no digit found: nothing stands out from the paper")
    if page and not (parts is not None and _has_size_of_digit(found)):
        return page  # it was no frame
    return found


def strokes(page: Page, digit: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel is the ink of the digit, which some parts of a page are; cropped."""
    box = bounds(digit)
    margin = max(1, round(0.06 * max(sides(box))))
    around = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
    digit, difference = digit[around], page.difference[around]
    differences = difference[digit]
    direction = differences.mean(axis=0)  # from the paper's colour to the ink's
    direction /= max(float(np.linalg.norm(direction)), 1e-6)
    along = np.sort(differences @ direction)
    full = float(along[len(along) * 3 // 4])
    if full <= 2.5 * page.noise:
        raise PictureError("no digit found: its strokes have no colour in common")
    # Keep the soft edge of the strokes, and nothing else around them.
    near = _grow(_grow(digit, margin).T, margin).T & (digit | (page.parts[around] == 0))
    ink = _sharpen((difference @ direction) / full * near)
    least = min(0.3, max(0.05, 2.5 * page.noise / full))
    ink = np.where(ink > least, ink.clip(0, 1), 0).astype(np.float32)
    return ink[bounds(ink)]


def _has_size_of_digit(page: Page, inside: bool = False) -> bool:
    left_out = (page.touching if inside else page.scraps)[1:]
    sizes = [max(sides(box)) for box, out in zip(page.boxes, left_out, strict=True) if not out]
    return max(sizes, default=0) >= max(5, 0.2 * min(page.parts.shape))


def bounds(values: np.ndarray) -> Box:
    """The smallest box [h, w] around the values [H, W] that are not 0; there must be one."""
    rows, columns = (np.flatnonzero(values.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def sides(box: Box) -> tuple[int, int]:
    """Height and width."""
    rows, columns = box
    return rows.stop - rows.start, columns.stop - columns.start


def gap(a: Box, b: Box) -> int:
    """How far apart boxes are, in the direction in which they are farther; at most 0: not."""
    pairs = zip(a, b, strict=True)
    return max(max(one.start - other.stop, other.start - one.stop) for one, other in pairs)


def figure(page: Page) -> Bool[np.ndarray, "H W"]:
    """The largest part and those close to it (the bar of a 5); parts at the border count less.

    Raises a `PictureError` if the figure is a speck, or covers nearly everything.
    """
    weights = np.where(page.scraps, 0.05, np.where(page.touching, 0.35, 1))
    largest = int((page.areas * weights).argmax())
    box, area = page.boxes[largest - 1], page.areas[largest]
    size = max(sides(box))
    if size < max(5, 0.04 * min(page.parts.shape)):
        raise PictureError("no digit found: only specks stand out from the paper")
    if area > 0.7 * page.parts.size:
        raise PictureError("no digit found: there is no paper around it")
    chosen = (page.areas >= 0.05 * area) & ~page.scraps
    if not page.touching[largest]:
        chosen &= ~page.touching  # lines and other writing go on outside the picture, it does not
    if page.framed:
        chosen &= is_inside(page)
    chosen[largest] = False
    others = np.flatnonzero(chosen).tolist()
    near = [largest]
    for number in near:  # and those close to these: a broken stroke
        close = [n for n in others if gap(page.boxes[n - 1], page.boxes[number - 1]) <= 0.2 * size]
        near += close
        others = [n for n in others if n not in close]
    return np.isin(np.arange(len(chosen)), near)[page.parts]


def is_inside(page: Page) -> Bool[np.ndarray, "P"]:
    """Whether each part is mostly off the border, where remains of a frame are."""
    inside = np.bincount(_without_edge(page.parts, 0.24).ravel(), minlength=len(page.areas))
    return inside > 0.4 * page.areas


def _blend(values: Float32[np.ndarray, "H W 4"]) -> Float32[np.ndarray, "H W 3"]:
    """Fills transparent parts with the paper's colour."""
    colours, opacity = values[..., :3], values[..., 3:] / 255
    visible = colours[opacity[..., 0] > 0.5]
    if len(visible) > opacity.size / 2:
        behind = np.median(visible, axis=0)
    else:  # the paper is transparent: black or white, whichever differs more from the ink
        behind = np.full(3, 255.0 if len(visible) == 0 or visible.mean() < 128 else 0.0)
    return (colours * opacity + behind * (1 - opacity)).astype(np.float32)


def _compare(
    colours: Float32[np.ndarray, "H W C"], at_border: bool
) -> tuple[Float32[np.ndarray, "H W C"], Float32[np.ndarray, "H W"], float]:
    """The difference from the paper's colour, its length, and the paper's standard deviation.

    The paper is what most of the picture's border shows, or else most of its inside.  If the light
    is uneven, its colour is a quadratic function of x and y, fitted to that region and then to all
    pixels close to the fit.
    """
    height, width, channels = colours.shape
    values = colours.reshape(-1, channels)
    step = max(1, round(math.sqrt(len(values) / 1000)))
    anywhere = np.arange(len(values)).reshape(height, width)[::step, ::step].ravel()
    edge = np.ones((height, width), bool)
    _without_edge(edge, 0.04 if at_border else 0.18)[:] = False
    if at_border:
        region = np.flatnonzero(edge)
        flat = _median(values[region])
        noise = _deviation(values[region] - flat)
        around = region[:: max(1, len(region) // 1000)]
    else:  # the usual colour of the inside, because a large part of it is ink
        region = anywhere[~edge.ravel()[anywhere]]
        inside = values[region]
        flat = _median(inside)
        noise = _deviation((values[region + 1] - inside) / 2**0.5)  # blur is no noise
        inside_sorted = np.sort(inside, axis=0)
        spread = inside_sorted[-1 - len(inside) // 50] - inside_sorted[len(inside) // 50]
        usual = np.abs(inside - flat) <= np.maximum(4, 0.25 * spread)
        around = anywhere = region[usual.all(axis=-1)]
    if at_border and noise < 1.5:
        difference = colours - flat
    else:
        surface = _fit(values, width, height, around, anywhere)
        difference = colours - surface
        if at_border:
            noise = _deviation(difference.reshape(-1, channels)[region])
    if channels == 1:
        distance = np.abs(difference[..., 0])
    else:
        distance = np.sqrt(np.square(difference) @ np.ones(channels, np.float32))
    if max(distance.shape) >= 100:  # removes specks; at this size strokes are wider than they are
        distance = _median_filter(distance.clip(0, 255).astype(np.uint8)).astype(np.float32)
    return difference, distance, noise


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


def _ink(distance: Float32[np.ndarray, "H W"], noise: float) -> Int32[np.ndarray, "H W"] | None:
    """What stands out from the paper, in connected parts 1, 2, ...; None if nothing does.

    What is dark is ink, and what is less dark if it is connected to it: a stroke's faint stretch.
    """
    count = max(8, distance.size // 500)
    if distance.size <= count:
        raise PictureError("too small to show a digit")
    strong = distance[distance > 0.5 * distance.max()]  # sorting all of it takes long
    strong = strong if len(strong) >= count else distance
    darkest = float(np.sort(strong, axis=None)[-count:].mean())
    if darkest < max(_CONTRAST, 5 * noise):
        return None
    high = 0.45 * darkest
    low = min(high, max(0.25 * darkest, 4 * noise, 8))
    labels, count = ndimage.label(distance > low, _CONNECTED)
    dark = np.zeros(count + 1, bool)
    dark[labels[distance > high]] = True
    return (np.cumsum(dark, dtype=np.int32) * dark)[labels]


def _page(
    difference: Float32[np.ndarray, "H W C"],
    noise: float,
    parts: Int32[np.ndarray, "H W"],
    framed: bool = False,
) -> Page:
    areas = np.bincount(parts.ravel()).astype(float)
    areas[0] = 0
    inside = np.bincount(_without_edge(parts, 0.14).ravel(), minlength=len(areas))
    touching = np.zeros(len(areas), bool)
    touching[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = True
    touching[0] = False
    at_border = 1 - inside / np.maximum(areas, 1)
    return Page(
        difference, noise, parts, ndimage.find_objects(parts), areas, at_border, touching, framed
    )


def _without_edge(values: np.ndarray, share: float) -> np.ndarray:
    """A view of [H, W] without its edge, whose width is this share of the shorter side."""
    width = max(1, round(share * min(values.shape[:2])))
    return values[width:-width, width:-width]


def _lines(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Straight lines that come in from a side of the picture and go along another near its border.

    They are at least 60 % of the picture long and at most 12 % wide; strokes that cross them stay.
    """
    if min(mask.shape) < 48:  # strokes are as wide as lines
        return np.zeros_like(mask)
    across, across_thin = _lines_across(mask)
    down, down_thin = (lines.T for lines in _lines_across(mask.T))
    return across_thin | down_thin | (across & down)


def _lines_across(
    mask: Bool[np.ndarray, "H W"],
) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """The horizontal lines, and these without what crosses them."""
    height, width = mask.shape
    wide = _grow(mask, max(1, height // 48))  # lines may be slightly inclined
    wide[round(0.28 * height) : height - round(0.28 * height)] = False
    rows = np.flatnonzero(np.count_nonzero(wide, axis=1) >= 0.4 * width)
    long = np.zeros_like(mask)
    if len(rows):  # a faint line has gaps
        long[rows] = _runs(wide[rows], round(0.6 * width), gap=width // 8) & mask[rows]
    thin = long
    if long.any():
        thin = long & ~_upright(mask, round(0.12 * height) + 1)
        if np.count_nonzero(thin.any(axis=0)) < 0.4 * width:
            long = thin = np.zeros_like(mask)
    return long, thin


def _inclined(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Thin straight lines from the left side to the right, inclined by up to 8 degrees."""
    height, width = mask.shape
    y, x = np.nonzero(mask)
    lines = np.zeros_like(mask)
    if min(height, width) < 48:  # strokes are as wide as lines
        return lines
    for rise in range(-(width // 7), width // 7 + 1, 2):
        offset = y - x * rise // width + width
        covered = np.bincount(offset, minlength=height + 2 * width) >= 0.7 * width
        if covered.any():
            chosen = (covered | np.roll(covered, 1) | np.roll(covered, -1))[offset]
            lines[y[chosen], x[chosen]] = True
    return lines & ~_upright(mask, round(0.08 * height) + 1) if lines.any() else lines


def _upright(mask: Bool[np.ndarray, "H W"], length: int) -> Bool[np.ndarray, "H W"]:
    """The vertical runs of at least this length."""
    steps = [min(2**power, length - 2**power) for power in range((length - 1).bit_length())]
    starts = mask
    for step in steps:
        starts = starts[:-step] & starts[step:]
    runs = np.zeros_like(mask)
    runs[: len(starts)] = starts
    for step in steps:
        runs[step:] |= runs[:-step]
    return runs


def _runs(mask: Bool[np.ndarray, "H W"], length: int, gap: int) -> Bool[np.ndarray, "H W"]:
    """The horizontal runs from a side of at least this length, with gaps up to this one."""
    height, width = mask.shape
    padded = np.zeros((height, 1 + width + gap), bool)
    padded[:, 1:-gap] = mask
    flat = padded.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    apart = np.flatnonzero(ends[2::2] - ends[1:-1:2] > gap)
    starts, stops = ends[::2][np.append(0, apart + 1)], ends[1::2][np.append(apart, -1)]
    long = stops - starts >= length
    runs = np.zeros_like(flat)
    for start, stop in zip(starts[long].tolist(), stops[long].tolist(), strict=True):
        left, right = start % padded.shape[1], width - stop % padded.shape[1]
        filled = np.count_nonzero(flat[start + 1 : stop + 1])
        if min(left, right) < 3 + gap // 2 and filled >= 0.8 * (stop - start):
            runs[start + 1 : stop + 1] = True
    return runs.reshape(padded.shape)[:, 1:-gap]


def _grow(mask: Bool[np.ndarray, "H W"], rows: int) -> Bool[np.ndarray, "H W"]:
    """The mask, wider by this number of rows at its top and bottom."""
    grown = np.copy(mask)  # in the order of a transposed mask
    for shift in range(1, rows + 1):
        grown[shift:] |= mask[:-shift]
        grown[:-shift] |= mask[shift:]
    return grown


def _sharpen(ink: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "h w"]:
    """Opens the holes of a blurred digit, whose edges are all wider than a pixel of 20x20."""
    size = max(ink.shape)
    step = max(1, round(size / 20))
    edges = np.abs(ink[step:] - ink[:-step]), np.abs(ink[:, step:] - ink[:, :-step])
    if max(float(edge.max(initial=0)) for edge in edges) >= 0.75:
        return ink
    ink = np.asarray(Image.fromarray(np.pad(ink, size // 8)).reduce(max(1, size // 32)))
    ink = ink + 4 * (ink - ndimage.gaussian_filter(ink, size // max(1, size // 32) / 8))
    dark = np.sort(ink[ink > 0.3])
    return ink / dark[len(dark) * 3 // 4]
