"""What a network must know of the data it is made for."""

from typing import NamedTuple


class DataSpec(NamedTuple):
    """The form of a dataset's images, and its classes; hashable."""

    image_shape: tuple[int, int, int]  # height, width, channels (1 or 3)
    class_names: tuple[str, ...]  # of the labels 0, 1, ...

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


MNIST = DataSpec((28, 28, 1), tuple("0123456789"))
