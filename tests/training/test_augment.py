"""Affine changes of images: what they do, and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np

from mnist_cnn.training import augment


def draw(count=500, step=0, **amounts):
    return augment.draw(jax.random.key(step), amounts, count)


def test_an_image_is_rotated_scaled_and_shifted_as_specified(hundred_images):
    images = hundred_images.images[:1] / 255.0
    picture = np.asarray(images)[0, :, :, 0]

    def warped(matrix, offset=(0.0, 0.0)):
        return np.asarray(augment.warp(images, jnp.array([matrix]), jnp.array([offset])))[0, ..., 0]

    same = [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_array_equal(warped(same), picture)
    np.testing.assert_allclose(warped([[0.0, 1.0], [-1.0, 0.0]]), np.rot90(picture), atol=1e-5)
    np.testing.assert_allclose(warped(same, (0.0, 3.0))[:, :25], picture[:, 3:], atol=1e-5)
    assert not warped(same, (0.0, 3.0))[:, 25:].any()
    np.testing.assert_allclose(
        warped(same, (0.5, 0.0))[:-1], (picture[1:] + picture[:-1]) / 2, atol=1e-5
    )
    halved = warped([[2.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(halved.sum(), picture.sum() / 4, rtol=0.05)
    assert not warped(same, (100.0, 0.0)).any()


def test_random_changes_fill_their_range_and_stay_in_it():
    matrix, offset = map(np.asarray, draw(rotation=30.0, shift=2.0))
    angle = np.degrees(np.arctan2(matrix[:, 0, 1], matrix[:, 0, 0]))
    assert 28 < angle.max() <= 30 and -30 <= angle.min() < -28
    assert 1.9 < offset.max() <= 2 and -2 <= offset.min() < -1.9
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-5)
    scales = 1 / np.asarray(draw(zoom=0.2)[0])[:, [0, 1], [0, 1]]
    assert 1.19 < scales.max() <= 1.2 and 0.8 <= scales.min() < 0.81
    assert not np.asarray(draw(zoom=0.2)[1]).any()
    shear = np.asarray(draw(shear=0.3)[0])
    assert 0.29 < shear[:, 1, 0].max() <= 0.3 and not shear[:, 0, 1].any()
