"""A picture of anything -> the form of a network's images: their size and channels, nothing else.

For networks whose images are not like MNIST's. Colours, dark on light or light on dark, and what
surrounds the object stay as they are: they must be like those of the training images.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mnist_cnn.digits.pictures import in_8_bits, opaque


def fitted(image: Image.Image, image_shape: tuple[int, int, int]) -> UInt8[np.ndarray, "H W *C"]:
    """The picture scaled to fit into the images' size, its aspect ratio kept: uint8 [H, W(, 3)].

    The rest is filled with the median colour of the picture's border. A picture of the right size
    and channels keeps every pixel.
    """
    height, width, channels = image_shape
    if image.mode in ("I", "F"):
        image = in_8_bits(image)
    image = opaque(image).convert("L" if channels == 1 else "RGB")
    if image.size == (width, height):
        return np.asarray(image)
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    canvas = np.empty((height, width, *small.shape[2:]), np.uint8)
    canvas[:] = np.rint(np.median(border, axis=0))
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = small
    return canvas
