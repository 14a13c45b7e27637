"""A CSV file of images without labels -> a network's answers in a CSV file, as Kaggle expects."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_cnn.data import csv_files
from mnist_cnn.errors import DataError
from mnist_cnn.files import write_atomically

if TYPE_CHECKING:
    from mnist_cnn.analysis.network import Network

SUFFIXES = (".csv", ".csv.gz")


def write_submission(network: "Network", path: Path, output: Path) -> int:
    """Writes the columns ImageId, from 1, and Label, the class; returns the number of images.

    Labels in the file at `path` are ignored.  Raises a `DataError` if its images are not of the
    size of the network's; OSError: a file cannot be read or written.
    """
    images, _ = csv_files.read(path.read_bytes(), path)
    shape = network.spec.image_shape
    if images.shape[1:] != shape:
        height, width, channels = shape
        raise DataError(
            f"{path}: {images[0].size} pixels an image, expected {height * width * channels}: the "
            f"network was trained on images of {height} x {width} x {channels}"
        )
    found = network(images).argmax(axis=-1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ImageId", "Label"])
    writer.writerows(
        (number, network.spec.class_names[label]) for number, label in enumerate(found, start=1)
    )
    write_atomically(output, text.getvalue().encode())
    return len(images)
