"""The IDX format, gzipped or not: bytes -> a checked array, or a `DataError` that names the file.

The bytes are not trusted: all of them are checked, and no more is unpacked than the header states.
"""

import gzip
import io
import math
import zlib

import numpy as np
from jaxtyping import UInt8

from mnist_cnn.errors import DataError

MAX_BYTES = 2**30  # of one file, packed or unpacked: 1.3 million images


def parse_images(data: bytes, name: str) -> UInt8[np.ndarray, "N 28 28 1"]:
    """At least one image, 0 (background) to 255, read-only; `data` is the whole file `name`."""
    images = _parse(data, name, ndim=3)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{name}: images are {images.shape[1]}x{images.shape[2]}, expected 28x28")
    return images[..., None]


def parse_labels(data: bytes, name: str) -> UInt8[np.ndarray, " N"]:
    """Labels, 0 to 9; otherwise like `parse_images`."""
    labels = _parse(data, name, ndim=1)
    if labels.max() > 9:
        where = int(np.argmax(labels > 9))
        raise DataError(f"{name}: label {where} is {labels[where]}, expected 0 to 9")
    return labels


def _parse(data: bytes, name: str, ndim: int) -> UInt8[np.ndarray, "..."]:
    zipped = data[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if zipped else io.BytesIO(data)
    ratio = 1032 if zipped else 1  # the largest possible (zlib.net/zlib_tech.html)
    try:
        header = stream.read(4 + 4 * ndim)
        if len(header) < 4 + 4 * ndim:
            raise DataError(f"{name}: ends within its header: get the file again")
        magic, *shape = np.frombuffer(header, ">u4").tolist()
        if magic != 0x0800 + ndim:  # 8: unsigned bytes
            raise DataError(
                f"{name}: begins with {magic:#010x}, expected {0x0800 + ndim:#010x}: is it the IDX "
                f"file of the {'images' if ndim == 3 else 'labels'}?"
            )
        size = math.prod(shape)
        if size == 0:
            raise DataError(f"{name}: its header states {shape}, expected at least one example")
        if size > (limit := min(MAX_BYTES, len(data) * ratio)):
            raise DataError(f"{name}: its header states {size} bytes, it can hold at most {limit}")
        body = stream.read(size + 1)  # one more: reaches the end, where gzip checks its checksum
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip ({error}): get the file again") from error
    if len(body) != size:
        count = "more" if len(body) > size else len(body)
        raise DataError(f"{name}: its header states {size} bytes, but {count} follow")
    return np.frombuffer(body, np.uint8).reshape(shape)
