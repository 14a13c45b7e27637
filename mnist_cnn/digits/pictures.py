"""Picture files -> PIL images; anything else is refused with a `PictureError`."""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_cnn.errors import ConfigError, PictureError
from mnist_cnn.files import local_path

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng")
MAX_PIXELS = 100_000_000  # a small file may claim to be a picture of terabytes


def read(path: str | Path) -> Image.Image:
    """Reads a file's picture (a GIF's first frame), rotated as its EXIF data say.

    Raises a `PictureError` if the file is missing or unreadable, not a picture in one of `FORMATS`,
    damaged, or has more than `MAX_PIXELS` pixels.
    """
    try:
        path = local_path(path, "a picture")
        if path.is_dir():
            os.listdir(path)  # raises OSError without the permission
            raise PictureError("this folder contains no picture")
        if not path.is_file():  # reading a device or a pipe might never end
            raise PictureError("it is no regular file" if path.exists() else "no such file")
        with path.open("rb") as file:
            return decode(file)
    except ConfigError:
        raise PictureError("no local path, expected the name of a file or folder") from None
    except (OSError, ValueError) as error:  # ValueError: the name contains a null byte
        raise PictureError(f"cannot be read: {getattr(error, 'strerror', error)}") from None


def decode(file: io.BufferedReader | io.BytesIO) -> Image.Image:
    """Decodes the picture in an open file; otherwise like `read`."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            width = image.width
            image.draft("RGB", (640, 640))  # reduces large JPEGs, but not below this: faster
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.info["scale"] = width / image.width  # pixels of the file for one of these
            return upright
    except UnidentifiedImageError:
        file.seek(0)
        if not file.read(1):
            raise PictureError("the file is empty") from None
        expected = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise PictureError(f"no picture that can be read, expected {expected}") from None
    except Image.DecompressionBombError:
        raise PictureError(f"larger than the limit of {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise many kinds on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"damaged: {reason}") from None


def save(digit: UInt8[np.ndarray, "28 W"], path: str | Path) -> None:
    """Writes an image as a grey PNG file."""
    Image.fromarray(digit).save(path, "PNG")
