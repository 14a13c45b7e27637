"""What a network must know of the data it is made for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# The fields or arguments of an experiment's own network that receive these values of the data.
NETWORK_FIELDS = ("num_classes", "image_shape")


class DataSpec(NamedTuple):
    """The form of a dataset's images, and its classes; hashable."""

    image_shape: tuple[int, int, int]  # height, width, channels (1 or 3)
    class_names: tuple[str, ...]  # of the labels 0, 1, ...

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_digits(self) -> bool:
        """Whether the classes are the ten digits."""
        return self.class_names == MNIST.class_names

    @property
    def noun(self) -> str:
        """What a report calls a class."""
        return "digit" if self.is_digits else "class"

    @property
    def is_handwriting(self) -> bool:
        """Whether the images have MNIST's form: one character each, ink on paper, 28 x 28."""
        characters = all(len(name) == 1 or name.isdecimal() for name in self.class_names)
        return self.image_shape == MNIST.image_shape and (characters or self == NAMED["kmnist"])


MNIST = DataSpec((28, 28, 1), tuple("0123456789"))
# `tfds_builder.digest` of its splits, independent of how the source files are packed.
MNIST_SHA256 = {
    "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
}
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
NAMED = {  # the datasets that are known by name
    "mnist": MNIST,
    "fashion_mnist": DataSpec(MNIST.image_shape, tuple(_FASHION.split(","))),
    "kmnist": DataSpec(MNIST.image_shape, tuple("o,ki,su,tsu,na,ha,ma,ya,re,wo".split(","))),
}


def from_record(data: Mapping[str, Any], dataset: Any) -> DataSpec:
    """The form of a run's data, from "data" of its environment.json and its field `dataset`.

    Older runs did not record it: their images are like MNIST's. ValueError if it is no such form.
    """
    if "image_shape" not in data and "class_names" not in data:
        return NAMED.get(dataset, MNIST)
    shape, names = data.get("image_shape"), data.get("class_names")
    if (
        not (isinstance(shape, list | tuple) and isinstance(names, list | tuple))
        or len(shape) != 3
        or any(type(size) is not int or size < 1 for size in shape)
        or shape[2] not in (1, 3)
        or len(names) < 2
        or not all(isinstance(name, str) for name in names)
    ):
        raise ValueError("image_shape and class_names are not those of a dataset")
    return DataSpec((shape[0], shape[1], shape[2]), tuple(names))
