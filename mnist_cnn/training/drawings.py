"""Random drawings of digits, letters and scribbles in the form of MNIST's images, on the device.

A glyph is a text of strokes. Each stroke is a list of control points of a quadratic B-spline, each
two digits: x to the right and y down, from 0 to 8 or 9; a repeated point makes a corner.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

DIGITS = {  # printed forms and European ones, each as often as the others
    0: ("40 80 88 08 00 40", "30 00 08 88 80 30 20"),
    1: (
        "12 40 40 48",
        "03 50 50 48",
        "05 50 50 48",
        "21 40 40 48",
        "12 40 40 48, 18 78",
        "05 50 50 48, 18 78",
        "03 60 60 48",
    ),
    2: ("02 00 80 84 08 08 88", "01 00 80 83 34 08 08 88", "02 00 80 85 08 06 37 88"),
    3: ("01 00 80 84 34, 34 84 88 08 07", "00 80 80 33 33 83 88 08 07"),
    4: (
        "68 60 60 06 06 86",
        "20 05 05 85, 64 58",
        "10 04 14 84, 80 78",
        "50 05 05 75, 53 48",
        "50 24 07 56 83 83 48",
    ),
    5: ("70 10 10 04 04 43 83 88 08 07", "10 04 43 83 88 08 07, 10 80", "80 00 04 53 84 88 08 06"),
    6: ("70 00 08 88 83 04 06", "60 20 08 88 84 14 07", "81 60 00 04 08 88 84 04 05"),
    7: (
        "00 80 80 38",
        "00 80 80 38, 24 74",
        "02 00 00 80 80 38",
        "02 10 21 80 48, 15 85",
        "02 10 21 80 48, 24 84, 28 68",
    ),
    8: ("40 70 74 14 10 40, 44 84 88 08 04 44", "71 20 03 84 88 08 05 83 80 71"),
    9: (
        "18 88 80 00 04 84 82",
        "07 28 88 84 80 00 04 84 83",
        "70 00 04 84 80 68 28",
        "80 10 04 74 80 80 78",
        "03 25 64 71 40 11 24 64 86 78 08",
        "71 50 10 04 44 71, 44 85 88 08",
        "72 60 00 04 64 62 68 18, 08 88",
    ),
}
OTHERS = (  # without those that many people write as they write a digit: B, D, I, O, S, Z, g, l, q
    "08 40 40 88, 15 75", "80 00 08 88", "72 60 00 08 68 76, 70 73", "80 00 00 08 08 88, 04 64",
    "80 00 00 08, 04 64", "81 40 00 08 88 84 84 44", "72 60 00 08 68 74 74 44, 74 78",
    "00 08, 80 88, 04 84", "20 80, 50 58 08 06", "00 08, 80 04 88", "00 00 08 08 88",
    "08 00 00 46 46 80 80 88", "08 00 00 88 88 80", "08 00 00 80 84 04", "40 80 88 08 00 40, 55 88",
    "40 80 88 08 00 40, 25 46 79", "08 00 00 80 84 04, 44 88", "00 80, 40 48", "00 08 88 80",
    "00 06 38 78 86 80", "00 30, 60 90, 10 18 78 80", "00 48 48 80", "00 28 28 43 43 68 68 80",
    "00 88, 80 08", "00 44 44 80, 44 48", "84 45 05 08 78 84, 83 88", "05 85 83 03 08 78",
    "08 04 30 60, 04 54", "08 00, 04 43 84 88", "08 03, 04 33 44 48, 44 73 84 88",
    "08 03, 04 43 84 88", "03 08 78 83, 83 88", "00 44, 80 08", "04 84, 40 48", "03 83, 05 85",
    "05 38 38 80", "00 80 80 88 88 08 08 00 00", "18 40 40 78 03 03 83 18 18", "04 84",
    "40 88 88 08 08 40 40", "04 84 84 61, 84 67", "20 28, 60 68, 02 82, 06 86",
    "40 84 84 48 48 04 04 40 40", "12 48 48 72 60 40 33 20 12", "02 81 05 84 08 88",
)  # fmt: skip
SCRIBBLES = ("13 70 27 82 08 51 46 80 05 67 20 88", "16 72 05 61 88 30", "22 66 17 81 35 58 04 74")


class _Table(NamedTuple):
    points: np.ndarray  # float32 [glyphs, P, 2]: x, y
    weights: np.ndarray  # float32 [glyphs, T, P]: from them to the points of a polyline
    pen: np.ndarray  # bool [glyphs, T - 1]: whether the pen draws from a point to the next
    jitter: np.ndarray  # float32 [glyphs]: standard deviation of each control point


def _spline(points: np.ndarray) -> np.ndarray:
    """A polyline along the quadratic B-spline from the first control point to the last."""
    line = [points[0]]
    start = points[0]
    for index, control in enumerate(points[1:-1], start=2):
        end = points[-1] if index == len(points) - 1 else (control + points[index]) / 2
        line += [
            (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end for t in (1 / 3, 2 / 3, 1)
        ]
        start = end
    return np.array(line if len(points) > 2 else points)


def _parse(glyph: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A glyph's points, weights and pen, as in the table."""
    strokes = [stroke.split() for stroke in glyph.split(",")]
    different = list(dict.fromkeys(point for stroke in strokes for point in stroke))
    of_stroke = {point: row for point, row in zip(different, np.eye(len(different)), strict=True)}
    lines = [_spline(np.array([of_stroke[point] for point in stroke])) for stroke in strokes]
    pen = np.concatenate([np.arange(len(line)) < len(line) - 1 for line in lines])
    return np.array([[*map(int, point)] for point in different]), np.concatenate(lines), pen[:-1]


def _table() -> _Table:
    digits = [glyph for forms in DIGITS.values() for glyph in forms]
    parsed = [_parse(glyph) for glyph in (*digits, *OTHERS, *SCRIBBLES)]
    count, length = (max(len(glyph[i]) for glyph in parsed) for i in (0, 1))
    table = _Table(
        np.zeros((len(parsed), count, 2), np.float32),
        np.zeros((len(parsed), length, count), np.float32),
        np.zeros((len(parsed), length - 1), bool),
        np.full(len(parsed), 0.5, np.float32),
    )
    for glyph, (points, weights, pen) in enumerate(parsed):
        table.points[glyph, : len(points)] = points
        table.weights[glyph, :, : len(points)] = weights[-1]  # the rest stays at the last point
        table.weights[glyph, : len(weights), : len(points)] = weights
        table.pen[glyph, : len(pen)] = pen
    table.jitter[-len(SCRIBBLES) :] = 2.5
    return table


TABLE = _table()
LABELS = np.array([digit for digit, forms in DIGITS.items() for _ in forms])  # of the first glyphs


def draw(key: Key[Array, ""], glyphs: Int[Array, "N"]) -> Float[Array, "N 28 28 1"]:
    """Draws glyphs, given by their number in TABLE: ink 1 on paper 0.

    Control points, proportions, slant and the width of the pen are random. As in MNIST, a drawing
    fits a box of 20 x 20 pixels and its centre of mass is in the middle.
    """
    table, count = jax.tree.map(jnp.asarray, TABLE), len(glyphs)
    keys = jax.random.split(key, 4)
    noise = jax.random.normal(keys[0], (count, *table.points.shape[1:]))
    points = table.points[glyphs] + table.jitter[glyphs][:, None, None] * noise
    line = (table.weights[glyphs][..., None] * points[:, None]).sum(2)  # [N, T, 2]
    aspect = jax.random.uniform(keys[1], (count, 1), minval=0.4, maxval=1.1)
    slant = jax.random.uniform(keys[2], (count, 1), minval=-0.35, maxval=0.15)
    x, y = aspect * line[..., 0] + slant * line[..., 1], line[..., 1]
    line = jnp.stack([y, x], -1)
    width = jax.random.uniform(keys[3], (count, 1, 1), minval=1.2, maxval=4.2)
    width = width / jnp.maximum(table.jitter[glyphs], 1)[:, None, None] ** 0.5  # scribbles: finer
    extent = (line.max(1) - line.min(1)).max(-1)[:, None, None]
    line = line * (20 - width) / jnp.maximum(extent, 1)
    start, along = line[:, :-1], jnp.diff(line, axis=1)
    length = jnp.sqrt((along**2).sum(-1, keepdims=True)) * table.pen[glyphs][..., None]
    start = start - ((start + along / 2) * length).sum(1, keepdims=True) / length.sum(
        1, keepdims=True
    )
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(28) - 14.0] * 2, indexing="ij"), -1)
    relative = grid.reshape(1, -1, 1, 2) - start[:, None]  # [N, 784, T - 1, 2]
    along = along[:, None]
    share = (relative * along).sum(-1) / jnp.maximum((along**2).sum(-1), 1e-6)
    across = relative - share.clip(0, 1)[..., None] * along
    distance = jnp.where(table.pen[glyphs][:, None], (across**2).sum(-1), 1e6).min(-1)
    ink = (width[:, 0] / 2 - jnp.sqrt(distance) + 0.5).clip(0, 1)
    return ink.reshape(count, 28, 28, 1)
