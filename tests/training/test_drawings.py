"""Drawings are random, in MNIST's form, and of the glyph that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from mnist_cnn.training import drawings

ALL = np.arange(len(drawings.TABLE.points))
draw = jax.jit(drawings.draw)


def test_drawings_have_the_form_of_mnists_images():
    images = np.asarray(draw(jax.random.key(0), jnp.asarray(ALL)))
    assert images.shape == (len(ALL), 28, 28, 1) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    for image in images[..., 0]:
        rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 22  # with a soft edge
        centre = [(image.sum(1 - axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)]
        np.testing.assert_allclose(centre, 14, atol=1.6)


def test_drawings_are_a_function_of_the_key_and_no_two_are_the_same():
    twice = [draw(jax.random.key(key), jnp.asarray(ALL)) for key in (1, 1, 2)]
    assert jnp.array_equal(twice[0], twice[1])
    assert not (twice[0] == twice[2]).all((1, 2, 3)).any()
    assert len({np.asarray(image).tobytes() for image in twice[0]}) == len(ALL)


def test_the_strokes_go_through_the_ends_and_the_corners_of_a_glyph():
    seven = list(drawings.LABELS).index(7)  # "00 80 80 38"
    points = drawings.TABLE.weights[seven] @ drawings.TABLE.points[seven]
    for corner in ((0, 0), (8, 0), (3, 8)):
        assert np.abs(points - corner).sum(1).min() < 1e-6
    crossed = drawings.TABLE.pen[seven + 1]  # a second stroke: the pen is lifted once
    assert (np.diff(np.flatnonzero(crossed)) == 2).sum() == 1


def test_every_digit_and_no_other_glyph_has_a_label():
    assert sorted(set(drawings.LABELS.tolist())) == list(range(10))
    assert len(ALL) == len(drawings.LABELS) + len(drawings.OTHERS) + len(drawings.SCRIBBLES)
