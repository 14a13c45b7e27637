"""Realistic pictures made from MNIST's digits, each a function of a seed."""

import io
import sys

import numpy as np
from PIL import Image

from mnist_cnn.digits.lines import find_digits


def mnist_form(image):
    """The most prominent digit of a picture as a network sees it, uint8 [28, 28]."""
    (found,) = find_digits(image, single=True)
    return found.form


def picture(digit, seed):
    """A picture of one digit (uint8 [28, 28]): the bytes of a JPEG or PNG file, and its suffix.

    It has 50 to 800 pixels a side, the digit off-centre, dark on light or light on dark, coloured
    ink and paper, uneven light, noise, specks, JPEG artefacts, and a rotation in its EXIF data.
    """
    rng = np.random.default_rng(seed)
    width, height = np.exp(rng.uniform(np.log(50), np.log(800), 2)).astype(int)
    side = int(min(width, height) * rng.uniform(0.45, 1.0))
    left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
    ink = np.zeros((height, width, 1), np.float32)
    scaled = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink[top : top + side, left : left + side, 0] = np.asarray(scaled, np.float32) / 255

    light = rng.uniform(170, 255, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(180, 255))
    dark = rng.uniform(0, 80, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 70))
    paper, pen = (light, dark) if rng.random() < 0.7 else (dark, light)
    values = paper * (1 - ink) + pen * ink
    if rng.random() < 0.5:  # light from one side, up to 30 % less at the other
        angle, loss = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
        x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height))
        values *= 1 - loss * (0.5 + (x * np.cos(angle) + y * np.sin(angle)) / 2**0.5)[..., None]
    if rng.random() < 0.6:
        values += rng.normal(0, rng.uniform(1, 12), values.shape)
    if rng.random() < 0.3:
        specks = rng.random((height, width)) < 0.001
        values[specks] = pen
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        image = image.convert("L")
    file = io.BytesIO()
    if rng.random() < 0.3:
        image.save(file, "PNG")
        return file.getvalue(), ".png"
    exif = Image.Exif()
    if rng.random() < 0.3:
        turn = {3: 180, 6: 90, 8: 270}  # EXIF orientation -> degrees anticlockwise that it undoes
        orientation = int(rng.choice(list(turn)))
        image = image.rotate(turn[orientation], expand=True)
        exif[0x0112] = orientation
    image.save(file, "JPEG", quality=int(rng.integers(40, 96)), exif=exif)
    return file.getvalue(), ".jpg"


def number(digits, lengths):
    """A picture, black on white, of digits (uint8 [28, 28]) in lines of these lengths.

    Returns it and the box of each digit: left, top, right, bottom, in pixels.
    """
    values = np.full((80 * len(lengths) + 40, 70 * max(lengths) + 40), 255, np.uint8)
    boxes, rest = [], list(digits)
    for line, length in enumerate(lengths):
        for column in range(length):
            scaled = Image.fromarray(rest.pop(0)).resize((56, 56), Image.Resampling.BICUBIC)
            left, top = 20 + 70 * column, 20 + 80 * line
            values[top : top + 56, left : left + 56] = 255 - np.asarray(scaled)
            rows, columns = np.nonzero(np.asarray(scaled) > 127)
            sides = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            boxes.append([int(side) + (left, top)[index % 2] for index, side in enumerate(sides)])
    return Image.fromarray(values), boxes


def main():
    """python tests/pictures.py IMAGE: draws twelve pictures, and what the network sees of them."""
    from conftest import read_idx

    from mnist_cnn.digits import pictures

    sheet = Image.new("RGB", (12 * 72 + 8, 72 + 64 + 16), "white")
    for column, digit in enumerate(read_idx("t10k-images-idx3-ubyte")[:12, ..., 0]):
        image = pictures.decode(io.BytesIO(picture(digit, seed=column)[0]))
        seen = Image.fromarray(mnist_form(image)).resize((64, 64), Image.Resampling.NEAREST)
        image.thumbnail((64, 64))
        left, top = 8 + 72 * column, 8
        sheet.paste(image, (left + (64 - image.width) // 2, top + (64 - image.height) // 2))
        sheet.paste(seen, (left, top + 72))
    sheet.save(sys.argv[1])


if __name__ == "__main__":
    main()
