"""Picture files -> PIL images and their colours; others are refused with a `PictureError`."""

import io
import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_cnn.errors import ConfigError, PictureError, import_problem
from mnist_cnn.files import local_path

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif")
UNREAD_SUFFIXES = (".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
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
    formats = [*FORMATS, *_heif(file)]
    try:
        with Image.open(file, formats=formats) as image:
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


def _heif(file: io.BufferedReader | io.BytesIO) -> list[str]:
    """The format of a phone's HEIC file, which an optional package reads; else none."""
    head = file.read(12)
    file.seek(0)
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS:
        return []
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        remedy = import_problem(error, "pip install 'mnist_cnn[heic]'")
        raise PictureError(f"a HEIC picture, which {remedy}") from None
    register_heif_opener()
    return ["HEIF"]


def in_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits a pixel with 8, the highest that are used."""
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0).clip(0)
    if image.mode == "F" and values.max() <= 1:
        values *= 255
    bits = max(8, math.ceil(math.log2(float(values.max()) + 1)))
    return Image.fromarray((values / 2 ** (bits - 8)).astype(np.uint8))


def colours(image: Image.Image, side: int = 320) -> Float32[np.ndarray, "H W C"]:
    """The picture's grey (C = 1) or RGB values, 0 to 255, opaque and at the working size.

    That is about `side` x `side` pixels; smaller pictures stay as they are.
    """
    if image.mode[0] in "IF":  # 16 or 32 bits
        image = in_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode != "L":
        image = image.convert("RGB")
    factor = math.ceil(math.sqrt(image.width * image.height) / side)
    values = np.atleast_3d(np.asarray(image.reduce(factor), np.float32))
    if image.mode == "RGBA":
        values = _blend(values)
    return values[..., :1] if (values == values[..., :1]).all() else values  # grey is faster


def opaque(image: Image.Image) -> Image.Image:
    """The picture with white in place of what is transparent, and 8 of 16 bits, however dark."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def _blend(values: Float32[np.ndarray, "H W 4"]) -> Float32[np.ndarray, "H W 3"]:
    """Fills transparent parts with the paper's colour."""
    colours, opacity = values[..., :3], values[..., 3:] / 255
    visible = colours[opacity[..., 0] > 0.5]
    if len(visible) > opacity.size / 2:
        behind = np.median(visible, axis=0)
    else:  # the paper is transparent: black or white, whichever differs more from the ink
        behind = np.full(3, 255.0 if len(visible) == 0 or visible.mean() < 128 else 0.0)
    return (colours * opacity + behind * (1 - opacity)).astype(np.float32)


def save(image: UInt8[np.ndarray, "H W *C"], path: str | Path) -> None:
    """Writes an image [H, W] or [H, W, 3] as a PNG file."""
    Image.fromarray(image).save(path, "PNG")
