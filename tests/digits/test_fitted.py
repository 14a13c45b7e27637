"""Pictures for networks whose images are not like MNIST's."""

import numpy as np
import pytest
from PIL import Image

from mnist_cnn.digits.fitted import fitted


def test_a_picture_of_the_right_form_keeps_every_pixel():
    rng = np.random.default_rng(0)
    for shape in ((12, 10), (16, 16, 3)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        found = fitted(Image.fromarray(pixels), (*shape[:2], shape[2] if shape[2:] else 1))
        np.testing.assert_array_equal(found, pixels)
    grey = np.repeat(pixels[..., :1], 3, -1)
    np.testing.assert_array_equal(fitted(Image.fromarray(grey), (16, 16, 1)), grey[..., 0])


def test_a_large_picture_keeps_its_aspect_ratio_on_the_colour_of_its_border():
    picture = np.full((40, 80, 3), (200, 10, 60), np.uint8)
    picture[10:30, 20:60] = (0, 255, 0)
    seen = fitted(Image.fromarray(picture), (16, 16, 3))
    assert seen.shape == (16, 16, 3)
    assert (seen[[0, 3, 12, 15]] == (200, 10, 60)).all()  # above and below 16 x 8 pixels
    assert (seen[7:9, 5:11] == (0, 255, 0)).all()


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_of_pictures_is_read(mode):
    picture = Image.new("L", (20, 30), 255)
    if mode == "I;16":
        picture = Image.fromarray(np.full((30, 20), 65535, np.uint16))
    elif mode != "L":
        picture = picture.convert(mode)
    for channels in (1, 3):
        assert (fitted(picture, (9, 14, channels)) == 255).all()


def test_what_is_transparent_is_white():
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (fitted(picture, (8, 8, 3)) == 255).all()
