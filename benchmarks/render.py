"""Photos of handwriting, drawn: a digit of MNIST as a pen would have left it on somebody's paper.

Nothing here is shared with the random changes of experiments/digits.py. Which factors a photo has
is drawn for each with an even chance, except that of papers, lines and pens it has one.
"""

import functools
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter
from scipy import ndimage

SIDE = 200  # pixels of the finished photo
MARGIN = 40  # on each side, cut off after the change of perspective
INKS = {
    "black ink": (25, 25, 30), "blue ink": (30, 50, 140), "red ink": (170, 30, 40),
    "pencil": (105, 105, 110),
}  # fmt: skip
PAPERS = ((250, 250, 248), (236, 230, 215), (222, 226, 232), (205, 190, 165))
LINES = ("plain", "ruled", "squared", "box")
PENS = ("the pen of MNIST", "thin pen", "wide pen")
FACTORS = ("off-centre", "perspective", "shadow", "blur", "noise", "JPEG")


class Photo(NamedTuple):
    """A picture and the names of its factors."""

    image: Image.Image
    factors: frozenset[str]


def photo(digit: UInt8[np.ndarray, "28 28"], rng: np.random.Generator) -> Photo:
    """A photo of 200 x 200 pixels, in colour, of a digit on paper."""
    chosen = {name for name in FACTORS if rng.random() < 0.5}
    pen, lines, ink = (list(x)[rng.integers(len(x))] for x in (PENS, LINES, INKS))
    chosen |= {pen, lines, ink}
    side = SIDE + 2 * MARGIN
    strokes = _strokes(digit, pen, rng.uniform(4.0, 6.0))  # the digit is 80 to 120 pixels tall
    rows, columns = ndimage.find_objects(strokes > 0.5, 1)[0]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    room = (SIDE - 70) // 2 - np.array([height, width]) // 2
    shift = rng.uniform(-1, 1, 2) * room.clip(0) if "off-centre" in chosen else rng.normal(0, 3, 2)
    top, left = (np.array([side - height, side - width]) // 2 + shift).astype(int)
    covered = np.zeros((side, side), np.float32)
    covered[top : top + height, left : left + width] = strokes[rows, columns]

    paper = np.array(PAPERS[rng.integers(len(PAPERS))], np.float32)
    scene = paper * (1 + rng.uniform(0.2, 1) * _fibres(rng)[..., None])
    printed, strength = _lines(lines, (top, left, height, width), rng)
    tint = paper * (1 - strength) + strength * np.array(
        [(60, 60, 60), (60, 90, 170), (170, 60, 60)][rng.integers(3)], np.float32
    )
    scene += printed[..., None] * (tint - scene)
    covered *= rng.uniform(0.85, 1)
    if ink == "pencil":
        covered *= (0.85 + 4 * _fibres(rng)).clip(0.4, 1)
    scene += covered[..., None] * (np.array(INKS[ink], np.float32) - scene)

    image = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    image = image.transform((SIDE, SIDE), Image.Transform.PERSPECTIVE,
                            _camera(rng, "perspective" in chosen),
                            Image.Resampling.BILINEAR)  # fmt: skip
    if "blur" in chosen:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.0)))
    values = np.asarray(image, np.float32) * np.float32(rng.uniform(0.75, 1.05))
    if "shadow" in chosen:
        values *= _shadow(rng)[..., None]
    if "noise" in chosen:
        values += _grain(rng, values.shape) * np.float32(rng.uniform(3, 9))
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if "JPEG" in chosen:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 75)))
        image = Image.open(file)
        image.load()
    return Photo(image, frozenset(chosen))


def number(digits: Sequence[UInt8[np.ndarray, "28 28"]], rng: np.random.Generator) -> Image.Image:
    """Grey: digits by one pen in a row, as far apart as 0.2 to 1 times their height."""
    pen, scale = PENS[rng.integers(len(PENS))], rng.uniform(3.0, 5.0)
    gap, row = round(rng.uniform(0.2, 1) * 20 * scale), []
    for digit in digits:
        strokes = _strokes(digit, pen, scale * rng.uniform(0.9, 1.1))
        rows, columns = ndimage.find_objects(strokes > 0.5, 1)[0]
        strokes = strokes[rows, columns]
        above = round(max(0, 15 * scale - len(strokes) / 2 + rng.normal(0, scale)))
        below = max(0, round(30 * scale) - above - len(strokes))
        row.append(np.pad(strokes, ((above, below), (gap, 0)))[: round(30 * scale)])
    covered = np.pad(np.hstack(row), ((20, 20), (20, 20 + gap)))
    values = 235 - 200 * covered + _grain(rng, covered.shape) * np.float32(3)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _strokes(
    digit: UInt8[np.ndarray, "28 28"], pen: str, scale: float
) -> Float32[np.ndarray, "H W"]:
    """The digit enlarged, with sharp edges and strokes of the pen's width."""
    size = round(28 * scale) + 24
    large = Image.fromarray(np.pad(digit, 3)).resize((size, size), Image.Resampling.BICUBIC)
    inside = np.asarray(large) > 115
    if pen == "the pen of MNIST":
        return ndimage.uniform_filter(inside.astype(np.float32), 3)
    if pen == "wide pen":
        reach = ndimage.distance_transform_edt(~inside)
        return (0.6 * scale + 0.5 - reach).clip(0, 1).astype(np.float32)
    depth = ndimage.distance_transform_edt(inside)  # thin: what is close to the middle line
    middle = ndimage.maximum_filter(depth, round(3 * scale))
    return ((depth - 0.5 * middle).clip(0, 1) * (middle > 1)).astype(np.float32)


def _lines(
    kind: str, box: tuple[int, ...], rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "H W"], float]:
    """The printed lines of the paper, 0 or 1, and how far they are from the paper's colour."""
    side = SIDE + 2 * MARGIN
    drawn = np.zeros((side, side), np.float32)
    top, left, height, width = box
    thick = int(rng.integers(1, 4))
    if kind == "box":  # printed around the digit, with some space
        gaps = (rng.uniform(0.12, 0.3, 4) * max(height, width)).astype(int) + 2
        edges = top - gaps[0], top + height + gaps[1], left - gaps[2], left + width + gaps[3]
        a, b, c, d = np.clip(edges, 0, side - 4)
        for line in (a, b):
            drawn[line : line + thick] = 1
        for line in (c, d):
            drawn[:, line : line + thick] = 1
        return drawn, rng.uniform(0.5, 0.95)
    if kind == "ruled":  # the digit stands on a line or between two
        step = int(height * rng.uniform(1.15, 1.6))
        first = (top + height + int(rng.uniform(0, 0.12) * height)) % step
        drawn[first::step] = 1
        if thick > 1:
            drawn[first + 1 :: step] = 1
        return drawn, rng.uniform(0.2, 0.6)
    if kind == "squared":
        step = int(height * rng.uniform(0.35, 0.8))
        drawn[rng.integers(step) :: step] = 1
        drawn[:, rng.integers(step) :: step] = 1
        return drawn, rng.uniform(0.08, 0.25)
    return drawn, 0.0


@functools.cache
def _texture() -> Float32[np.ndarray, "1024 1024"]:
    """Paper: the sum of fine and coarse noise, of standard deviation 0.02."""
    noise = np.random.default_rng(0).standard_normal((2, 1024, 1024)).astype(np.float32)
    fine, coarse = (
        ndimage.gaussian_filter(x, s, mode="wrap") for x, s in zip(noise, (1, 6), strict=True)
    )
    return 0.014 * (fine / fine.std() + coarse / coarse.std())


@functools.cache
def _white_noise() -> Float32[np.ndarray, "500000"]:
    return np.random.default_rng(1).standard_normal(500_000, np.float32)


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "H W C"]:
    """A random part of a noise that is made once: standard normal numbers take a millisecond."""
    start = rng.integers(len(_white_noise()) - math.prod(shape))
    return _white_noise()[start : start + math.prod(shape)].reshape(shape)


def _fibres(rng: np.random.Generator) -> Float32[np.ndarray, "H W"]:
    side = SIDE + 2 * MARGIN
    y, x = rng.integers(1024 - side, size=2)
    return _texture()[y : y + side, x : x + side]


def _camera(rng: np.random.Generator, tilted: bool) -> tuple[float, ...]:
    """The coefficients of Pillow's PERSPECTIVE: turned a little, and tilted or not."""
    corners = np.array([(0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE)], float)
    angle = np.deg2rad(rng.normal(0, 3))
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    source = (corners - SIDE / 2) @ turn + SIDE / 2 + MARGIN
    if tilted:
        source += rng.uniform(-0.09, 0.09, (4, 2)) * SIDE
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, source, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(values)))


def _shadow(rng: np.random.Generator) -> Float32[np.ndarray, "H W"]:
    """Light from one side, and the soft edge of a shadow."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE, dtype=np.float32)] * 2, indexing="ij")
    angle, other = rng.uniform(0, 2 * np.pi, 2)
    slope = 1 + rng.uniform(0, 0.25) * (np.cos(angle) * x + np.sin(angle) * y - 1)
    edge = np.cos(other) * x + np.sin(other) * y - rng.uniform(-0.6, 0.6)
    dark = 1 / (1 + np.exp(-edge / rng.uniform(0.08, 0.4)))
    return (slope * (1 - rng.uniform(0.15, 0.45) * dark)).astype(np.float32)
