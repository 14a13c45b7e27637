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

MAX_BYTES = 2**32  # of one file, packed or unpacked: 5 million images of MNIST's size


def parse_images(data: bytes, name: str) -> UInt8[np.ndarray, "N H W C"]:
    """At least one image, 0 to 255, read-only; `data` is the whole file `name`.

    The file has no axis of channels, or one of length 1 or 3, the last or that after N.
    """
    images = _parse(data, name, (3, 4))
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = np.ascontiguousarray(np.moveaxis(images, 1, 3))
    if images.shape[3] not in (1, 3):
        raise DataError(f"{name}: its header states {list(images.shape)}, expected [N, H, W, 3]")
    return images


def parse_labels(data: bytes, name: str) -> UInt8[np.ndarray, " N"]:
    """Labels, 0 to 255; otherwise like `parse_images`."""
    return _parse(data, name, (1,))


def _parse(data: bytes, name: str, ndims: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    zipped = data[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if zipped else io.BytesIO(data)
    ratio = 1032 if zipped else 1  # the largest possible (zlib.net/zlib_tech.html)
    try:
        magic = int.from_bytes(start := stream.read(4))
        ndim = magic - 0x0800  # 8: unsigned bytes
        if len(start) == 4 and ndim not in ndims:
            expected = " or ".join(f"{0x0800 + n:#010x}" for n in ndims)
            raise DataError(
                f"{name}: begins with {magic:#010x}, expected {expected}: is it the IDX file of "
                f"the {'labels' if ndims == (1,) else 'images'}?"
            )
        header = stream.read(4 * ndim) if len(start) == 4 else b""
        if not header or len(header) < 4 * ndim:
            raise DataError(f"{name}: ends within its header: get the file again")
        shape = np.frombuffer(header, ">u4").tolist()
        size = math.prod(shape)
        if size == 0:
            raise DataError(f"{name}: its header states {shape}, expected at least one example")
        if size > (limit := min(MAX_BYTES, len(data) * ratio)):
            raise DataError(f"{name}: its header states {size} bytes, it can hold at most {limit}")
        body = memoryview(data)[stream.tell() :]  # no copy
        if zipped:  # one more byte: reaches the end, where gzip checks its checksum
            body = memoryview(stream.read(size + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip ({error}): get the file again") from error
    if len(body) != size:
        count = "more" if len(body) > size else len(body)
        raise DataError(f"{name}: its header states {size} bytes, but {count} follow")
    return np.frombuffer(body, np.uint8).reshape(shape)
