"""Restyled images are other images of the same digits."""

import jax
import jax.numpy as jnp
import pytest

from mnist_cnn.training import restyle

change = jax.jit(restyle.restyle)


@pytest.mark.slow
def test_strokes_get_thinner_and_wider_and_digits_stay_legible(hundred_images):
    images = hundred_images.images.astype(jnp.float32) / 255
    changed = change(jax.random.key(0), images)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert changed.min() >= 0 and changed.max() <= 1
    flat, before = changed.reshape(100, -1), images.reshape(100, -1)
    lengths = jnp.linalg.norm(flat, axis=1) * jnp.linalg.norm(before, axis=1)
    cosine = (flat * before).sum(1) / lengths
    assert (cosine > 0.5).sum() >= 95 and cosine.min() > 0.2  # digits may be stretched
    assert 0.7 < cosine.mean() < 0.99
    assert 5 < (changed == images).all((1, 2, 3)).sum() < 40  # a fifth stays as it is
    ink = flat.sum(1) / before.sum(1)
    assert ink.min() < 0.8 and ink.max() > 1.4


@pytest.mark.slow
def test_the_changes_are_a_function_of_the_key(hundred_images):
    images = hundred_images.images.astype(jnp.float32) / 255
    one, again, other = (change(jax.random.key(key), images) for key in (1, 1, 2))
    assert jnp.array_equal(one, again)
    assert (one != other).any((1, 2, 3)).mean() > 0.9


@pytest.mark.slow
def test_an_empty_image_stays_empty_but_for_a_line(hundred_images):
    blank = jnp.zeros_like(hundred_images.images, jnp.float32)
    changed = change(jax.random.key(3), blank)
    assert jnp.isfinite(changed).all()
    with_line = changed.max((1, 2, 3)) > 0.1
    assert 0 < with_line.sum() < 20
    assert (changed[:, 8:20, 8:20] < 0.1).mean() > 0.99  # lines are near the border


@pytest.mark.slow
def test_a_fifth_of_the_digits_is_as_wide_as_in_scans_that_fill_a_square(hundred_images):
    ones = hundred_images.images[hundred_images.labels == 1].astype(jnp.float32) / 255
    ones = jnp.tile(ones, (10, 1, 1, 1))
    wider = jax.jit(restyle._stretched)(jax.random.key(4), ones)
    changed = (wider != ones).any((1, 2, 3))
    assert 0.1 < changed.mean() < 0.3
    before, after = ((x > 0.3).any((1, 3)).sum(1)[changed] for x in (ones, wider))
    assert (after >= before - 1).all() and after.max() <= 20
    assert (after / before).mean() > 1.3


@pytest.mark.slow
def test_a_gap_is_a_straight_line_without_ink():
    gaps = restyle._gaps(jax.random.key(0), 500)
    cut = gaps.min((1, 2, 3)) < 1
    assert 0.15 < cut.mean() < 0.25
    clear = (gaps[cut] < 0.5).sum((1, 2, 3))  # 28 pixels long or longer, and 2 to 4 wide
    assert clear.min() >= 20 and clear.max() <= 4 * 40
