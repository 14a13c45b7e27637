"""Finds straight lines and frames, which are printed or drawn around a digit and belong to none."""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

CONNECTED = np.ones((3, 3), bool)  # which neighbours of a pixel are of its part: diagonal ones too


def lines(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
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
    wide = grow(mask, max(1, height // 48))  # lines may be slightly inclined
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


def inclined(mask: Bool[np.ndarray, "H W"], share: float) -> Bool[np.ndarray, "H W"]:
    """Thin straight lines along this share of the width, inclined by up to 14 degrees."""
    height, width = mask.shape
    y, x = np.nonzero(mask)
    lines = np.zeros_like(mask)
    if min(height, width) < 48:  # strokes are as wide as lines
        return lines
    for rise in range(-(width // 4), width // 4 + 1, 2):
        offset = y - x * rise // width + width
        covered = np.bincount(offset, minlength=height + 2 * width) >= share * width
        if covered.any():
            chosen = (covered | np.roll(covered, 1) | np.roll(covered, -1))[offset]
            lines[y[chosen], x[chosen]] = True
    return lines & ~_upright(mask, round(0.08 * height) + 1) if lines.any() else lines


def ruled(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Thin straight lines that go on to both sides of all other ink, of which a digit is part."""
    found = np.zeros_like(mask)
    for turn in (np.asarray, np.transpose):  # horizontal lines, then vertical ones
        rest = turn(mask & ~found)
        height, width = rest.shape
        thin = rest & ~_upright(rest, round(0.08 * height) + 1)
        if np.count_nonzero(thin.any(axis=0)) < 0.5 * width:  # most pictures: saves time
            continue
        line = inclined(rest, 0.65)
        if not line.any():
            continue
        parts, _ = ndimage.label(rest & ~line, CONNECTED)
        areas = np.bincount(parts.ravel())[1:]
        boxes = [
            box
            for box, area in zip(ndimage.find_objects(parts), areas, strict=True)
            if area >= 0.05 * areas.max()
        ]
        extents = [side.stop - side.start for box in boxes for side in box]
        if max(extents, default=0) < 0.2 * min(height, width):
            continue
        columns = np.flatnonzero(line.any(axis=0))
        left, right = min(x.start for _, x in boxes), max(x.stop for _, x in boxes)
        if columns[0] < left - 0.1 * width and columns[-1] >= right + 0.1 * width:
            found |= turn(line)
    return found


def is_crossing(part: Bool[np.ndarray, "H W"]) -> bool:
    """Whether a part is where thin lines along the picture's sides cross or meet."""
    length = max(max(part.shape) // 5, 5 * int(part.sum()) // sum(part.shape), 6)
    if min(part.shape) < 2 * length:
        return False
    down, across = _upright(part, length), _upright(part.T, length).T
    either, least = down | across, min(int(down.sum()), int(across.sum()))
    return int(either.sum()) >= 0.9 * int(part.sum()) and least >= 0.25 * int(part.sum())


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


def grow(mask: Bool[np.ndarray, "H W"], rows: int) -> Bool[np.ndarray, "H W"]:
    """The mask, wider by this number of rows at its top and bottom."""
    grown = np.copy(mask)  # in the order of a transposed mask
    for shift in range(1, rows + 1):
        grown[shift:] |= mask[:-shift]
        grown[:-shift] |= mask[shift:]
    return grown
