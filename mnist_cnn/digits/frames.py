"""Finds straight lines and frames, which are printed or drawn around a digit and belong to none."""

import numpy as np
from jaxtyping import Bool


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
