"""What a network must know of the data it is made for."""

from typing import NamedTuple

from mnist_cnn.errors import DataError

MIN_SIDE, MAX_SIDE = 8, 128  # of an image, in pixels
MAX_CLASSES = 256  # a label is one byte


class DataSpec(NamedTuple):
    """The form of a dataset's images, and its classes; hashable."""

    image_shape: tuple[int, int, int]  # height, width, channels (1 or 3)
    class_names: tuple[str, ...]  # of the labels 0, 1, ...

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


CLASS_NAMES = {  # of the datasets that are known by name, as they were published
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
MNIST = DataSpec((28, 28, 1), CLASS_NAMES["mnist"])


def check_size(name: object, height: int, width: int) -> None:
    """Raises a `DataError` with the file's name unless images may have this size."""
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise DataError(
            f"{name}: {height}x{width} pixels, expected {MIN_SIDE}x{MIN_SIDE} to "
            f"{MAX_SIDE}x{MAX_SIDE}: scale the images to such a size"
        )
