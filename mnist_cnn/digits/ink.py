"""Tells ink from paper: a picture -> its connected parts, and how much of each pixel is ink."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Shaped
from PIL import Image
from scipy import ndimage

from mnist_cnn.digits.frames import CONNECTED, grow, inclined, is_crossing, lines, ruled
from mnist_cnn.digits.paper import EVEN, Compared, compare, compare_in_shadow, without_edge
from mnist_cnn.errors import PictureError

Box = tuple[slice, slice]  # rows and columns

_CONTRAST = 24  # of 255: the least difference between ink and paper


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


def find_parts(colours: Float32[np.ndarray, "H W C"]) -> Page:
    """Separates ink from paper, without frames, lines and scraps at the border.

    A frame may be darker than the pencil in it, so the rest is compared with the paper again.
    Raises a `PictureError` if nothing stands out from the paper as a stroke of ink does.
    """
    difference, distance, noise = compare(colours, at_border=True)
    is_even = noise < EVEN
    parts = _ink(distance, noise)
    if parts is not None and np.count_nonzero(parts) > 0.7 * parts.size:
        parts = None
    page = found = None if parts is None else _page(difference, noise, parts)
    beyond = np.zeros(distance.shape, bool) if parts is None else ruled(parts > 0)
    if page and not page.touching.any() and not beyond.any():
        return page
    if parts is None:  # the border shows no paper, or a frame alone
        difference, distance, noise = compare(colours, at_border=False)
        parts = _ink(distance, noise)
    in_shadow = not is_even and parts is not None and _has_shadow(parts)
    if in_shadow and (lit := _without_shadow(colours)):
        (difference, distance, noise), page = lit
        parts, found, beyond = page.parts, page, ruled(page.parts > 0)
    removed = np.zeros(distance.shape, bool)
    for _ in range(3):
        if parts is None:
            break
        mask, framed = parts > 0, bool(removed.any())
        line = lines(mask | removed) & mask
        if page and not framed:
            share = 0.7 if _has_size_of_digit(page, True) else 0.95  # a digit may go to the sides
            line |= inclined(mask, share) | inclined(mask.T, share).T | beyond
        if line.any():
            parts, _ = ndimage.label(mask & ~line, CONNECTED)
        if line.any() or not found or framed:
            found = _page(difference, noise, parts, framed)
        more = line | found.scraps[found.parts]
        if not more.any():
            break
        if page and not framed and 5 * noise > _CONTRAST:
            other = compare(colours, at_border=False)
            ink = _ink(other[1], other[2])
            if ink is not None and np.count_nonzero(ink) <= 1.5 * np.count_nonzero(mask):
                whole = (found.parts > 0) & ~found.touching[found.parts]
                if np.count_nonzero(ink[whole]) >= 0.5 * np.count_nonzero(whole):
                    difference, distance, noise = other  # else a shadow would be ink
        removed |= more
        around = grow(grow(removed, 2).T, 2).T & (more | ~mask)
        difference, distance = difference * ~around[..., None], distance * ~around
        parts = _ink(distance, noise)
    if not found:
        raise PictureError("no digit found: nothing stands out from the paper")
    if page and not (parts is not None and _has_size_of_digit(found)):
        return page  # it was no frame
    return found


def _without_shadow(colours: Float32[np.ndarray, "H W C"]) -> tuple[Compared, Page] | None:
    """The comparison with paper in shadow, if it shows a figure of a digit's size and no shadow."""
    compared = compare_in_shadow(colours)
    difference, distance, noise = compared
    parts = _ink(distance, noise)
    if parts is None or _has_shadow(parts):
        return None
    page = _page(difference, noise, parts)
    return (compared, page) if _has_size_of_digit(page, inside=True) else None


def _has_shadow(parts: Int32[np.ndarray, "H W"]) -> bool:
    """Whether something much wider than a pen comes in from the border."""
    if min(parts.shape) < 100:  # strokes are as wide as the edge of a shadow
        return False
    mask = _touching(parts)[parts]
    if np.count_nonzero(mask) < 0.04 * mask.size:  # most pictures: saves time
        return False
    return bool(ndimage.minimum_filter(mask, min(mask.shape) // 16 * 2 + 1).any())


def _touching(parts: Int32[np.ndarray, "H W"]) -> Bool[np.ndarray, "P"]:
    """Whether each part touches the border."""
    touching = np.zeros(int(parts.max()) + 1, bool)
    touching[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = True
    touching[0] = False
    return touching


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
    near = grow(grow(digit, margin).T, margin).T & (digit | (page.parts[around] == 0))
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
    chosen &= ~hairlines(page)
    chosen[largest] = False
    others = np.flatnonzero(chosen).tolist()
    near = [largest]
    for number in near:  # and those close to these: a broken stroke
        close = [n for n in others if gap(page.boxes[n - 1], page.boxes[number - 1]) <= 0.2 * size]
        near += close
        others = [n for n in others if n not in close]
    return np.isin(np.arange(len(chosen)), near)[page.parts]


def stroke_width(digit: Shaped[np.ndarray, "H W"]) -> float:
    """The mean width of the strokes, in pixels: twice their area divided by their outline."""
    mask = digit > 0.5
    across, down = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1], across, down)
    outline = sum(np.count_nonzero(edge) for edge in edges)
    return 2 * float(digit.sum()) / max(1.0, outline * math.pi / 4)


def hairlines(page: Page) -> Bool[np.ndarray, "P"]:
    """Parts that are much thinner than the pen of the largest part: pieces of printed lines.

    Where lines cross or meet, the part is compared by both its sides, and may be about half as wide
    as the pen.
    """
    largest = int(page.areas.argmax())
    pen = stroke_width(page.parts[page.boxes[largest - 1]] == largest)
    extents = np.array([(0, 0)] + [sides(box) for box in page.boxes])
    crossings = page.areas < 0.55 * pen * extents.sum(axis=1)
    for number in np.flatnonzero(crossings[1:]).tolist():
        crossings[number + 1] = is_crossing(page.parts[page.boxes[number]] == number + 1)
    share = 0.45 if crossings[1:].any() else 0.35  # without crossings it may be a thin 1
    return crossings | (page.areas < share * pen * extents.max(axis=1))


def is_inside(page: Page) -> Bool[np.ndarray, "P"]:
    """Whether each part is mostly off the border, where remains of a frame are."""
    inside = np.bincount(without_edge(page.parts, 0.24).ravel(), minlength=len(page.areas))
    return inside > 0.4 * page.areas


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
    labels, count = ndimage.label(distance > low, CONNECTED)
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
    inside = np.bincount(without_edge(parts, 0.14).ravel(), minlength=len(areas))
    at_border = 1 - inside / np.maximum(areas, 1)
    return Page(
        difference, noise, parts, ndimage.find_objects(parts), areas, at_border, _touching(parts),
        framed,
    )  # fmt: skip


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
