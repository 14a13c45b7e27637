"""A picture of one or several digits -> the form of each, line by line and from left to right."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from mnist_cnn.digits import ink, mnist_form, pictures
from mnist_cnn.digits.ink import Box, Page, sides
from mnist_cnn.errors import PictureError

_MAX_DIGITS = 200  # of a picture; more are its texture
_MAX_PIECES = 4  # of a digit

Group = tuple[Box, list[int]]  # the numbers of some parts of a page, and the box around them


class Found(NamedTuple):
    """What may be a digit of a picture: a piece of its ink, or successive pieces that are close.

    A digit that a fine pen or a poor photo has broken is in pieces.
    """

    form: UInt8[np.ndarray, "28 28"]  # like MNIST's images
    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the picture's file
    pieces: tuple[int, int] = (0, 1)  # from the first to before the second, in reading order


def find_digits(image: Image.Image, single: bool = False) -> list[Found]:
    """What may be the digits of a picture, at least one; only the most prominent one if `single`.

    Each piece of the ink is there by itself, and together with those that follow close to it;
    digits that touch are one piece.  Raises a `PictureError` if nothing stands out from the paper
    as a stroke of ink does.
    """
    colours = pictures.colours(image)
    own = mnist_form.mnists_own(colours)
    if own is not None:
        return [Found(own, _in_file(image, colours, ink.bounds(own)))]
    page = ink.find_parts(colours)
    groups = [] if single else _groups(page)
    if len(groups) > 1:
        height = float(np.median([sides(box)[0] for box, _ in groups]))
        if height < 24 and max(colours.shape) < max(image.size):  # look more closely
            colours = pictures.colours(image, min(1280, round(320 * 24 / height)))
            page = ink.find_parts(colours)
            groups = _groups(page)
    if len(groups) <= 1:
        mask = ink.figure(page)
        form = mnist_form.fit(ink.strokes(page, mask))
        return [Found(form, _in_file(image, colours, ink.bounds(mask)))]
    masks = {
        (first, last): _mask(
            page, [number for _, numbers in groups[first:last] for number in numbers]
        )
        for first, last in _spans(groups)
    }
    whole = ink.figure(page)
    if all(whole[mask].all() for mask in masks.values()):
        masks[0, len(groups)] = whole  # with its small parts
    found = []
    for pieces, mask in masks.items():
        with contextlib.suppress(PictureError):
            form = mnist_form.fit(ink.strokes(page, mask))
            found.append(Found(form, _in_file(image, colours, ink.bounds(mask)), pieces))
    return found


def _spans(groups: list[Group]) -> Iterator[tuple[int, int]]:
    """Each group by itself, and successive ones that are close enough to be of one digit."""
    highest = max(sides(box)[0] for box, _ in groups)
    for first, (around, _) in enumerate(groups):
        yield first, first + 1
        for last, (box, _) in enumerate(groups[first + 1 : first + _MAX_PIECES], start=first + 1):
            apart, around = ink.gap(box, around), _around(around, box)
            if apart > 0.25 * max(sides(around)) or max(sides(around)) > 2.5 * highest:
                break
            yield first, last + 1


def _mask(page: Page, numbers: list[int]) -> Bool[np.ndarray, "H W"]:
    chosen = np.zeros(len(page.areas), bool)
    chosen[numbers] = True
    return chosen[page.parts]


def _in_file(image: Image.Image, colours: np.ndarray, box: Box) -> tuple[int, int, int, int]:
    """A box at the working size, in pixels of the file."""
    factor = math.ceil(image.width / colours.shape[1])
    scale = image.info.get("scale", 1.0)
    rows, columns = box
    left, right = (min(side * factor, image.width) for side in (columns.start, columns.stop))
    top, bottom = (min(side * factor, image.height) for side in (rows.start, rows.stop))
    return tuple(round(side * scale) for side in (left, top, right, bottom))


def _groups(page: Page) -> list[Group]:
    """The box and the parts of each digit, in the order in which they are read.

    Digits are at least half as high as the highest one.
    """
    large = page.areas >= 0.02 * page.areas.max()
    large &= ~page.scraps & ~_frames(page) & ~ink.hairlines(page)
    if (large & ~page.touching).any():
        large &= ~page.touching  # they are cut off
    if page.framed:
        large &= ink.is_inside(page)
    large[0] = False
    groups = [(page.boxes[number - 1], [number]) for number in np.flatnonzero(large).tolist()]
    if not 2 <= len(groups) <= 3 * _MAX_DIGITS:
        return groups
    highest = max(sides(box)[0] for box, _ in groups)
    groups = _joined(groups, highest)
    highest = max(sides(box)[0] for box, _ in groups)
    least = 0.08 * max(page.areas[numbers].sum() for _, numbers in groups)
    groups = [
        (box, numbers)
        for box, numbers in groups
        if sides(box)[0] >= max(8, 0.5 * highest) and page.areas[numbers].sum() >= least
    ]
    return _in_order(groups) if len(groups) <= _MAX_DIGITS else []


def _frames(page: Page) -> Bool[np.ndarray, "P"]:
    """The parts around others: a box or a grid that is printed or drawn around digits."""
    frames = np.zeros(len(page.areas), bool)
    heights = np.array([0] + [sides(box)[0] for box in page.boxes])
    centres = np.array(
        [(-1.0, -1.0)] + [((r.start + r.stop) / 2, (c.start + c.stop) / 2) for r, c in page.boxes]
    )
    for number in np.flatnonzero(heights >= 0.25 * heights.max()).tolist():
        rows, columns = page.boxes[number - 1]
        height, width = sides((rows, columns))
        if page.areas[number] > 0.4 * height * width:
            continue
        within = (centres[:, 0] > rows.start) & (centres[:, 0] < rows.stop)
        within &= (centres[:, 1] > columns.start) & (centres[:, 1] < columns.stop)
        within[number] = False
        inner = heights[within]
        frames[number] = (inner > 0.3 * height).any() or (inner > 0.04 * height).sum() >= 4
    return frames


def _joined(groups: list[Group], highest: int) -> list[Group]:
    """Joins the parts of a digit: those above each other, such as the bar of a 5."""
    groups = sorted(groups, key=lambda group: group[0][1].start)
    done: list[Group] = []
    while groups:
        box, numbers = groups.pop()
        for index, (other, others) in enumerate(groups):
            if _belong_together(box, other, highest):
                groups[index] = (_around(box, other), numbers + others)
                break
        else:
            done.append((box, numbers))
    return done


def _around(a: Box, b: Box) -> Box:
    """The smallest box around both."""
    rows, columns = (
        slice(min(one.start, other.start), max(one.stop, other.stop))
        for one, other in zip(a, b, strict=True)
    )
    return rows, columns


def _belong_together(a: Box, b: Box, highest: int) -> bool:
    overlap = min(a[1].stop, b[1].stop) - max(a[1].start, b[1].start)
    above = max(a[0].start, b[0].start) - min(a[0].stop, b[0].stop)
    narrower, lower = min(sides(a)[1], sides(b)[1]), min(sides(a)[0], sides(b)[0])
    is_part = lower < 0.6 * highest or above < 0.1 * highest
    return overlap > 0.3 * narrower and above < 0.25 * highest and is_part


def _in_order(groups: list[Group]) -> list[Group]:
    """Line by line: a digit whose middle is beside the first of a line belongs to that line."""
    lines: list[list[Group]] = []
    for group in sorted(groups, key=lambda group: group[0][0].start + group[0][0].stop):
        rows = group[0][0]
        middle = (rows.start + rows.stop) / 2
        if lines and middle <= lines[-1][0][0][0].stop:
            lines[-1].append(group)
        else:
            lines.append([group])
    return [group for line in lines for group in sorted(line, key=lambda group: group[0][1].start)]
