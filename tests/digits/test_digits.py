"""Pictures of digits of every kind become images like MNIST's."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import read_idx
from pictures import mnist_form, number
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import render
from benchmarks.handwriting import PICTURES
from mnist_cnn.digits import pictures
from mnist_cnn.digits.ink import stroke_width
from mnist_cnn.digits.lines import find_digits
from mnist_cnn.errors import PictureError


@pytest.fixture(scope="module")
def five():
    """A real 5 with the bar at its top, uint8 [28, 28]."""
    images, labels = read_idx("t10k-images-idx3-ubyte"), read_idx("t10k-labels-idx1-ubyte")
    return images[np.flatnonzero(labels == 5)[0], ..., 0]


@pytest.fixture(scope="module")
def page(five):
    """The same 5, dark on light, off-centre on 300 x 200 pixels."""
    digit = 255 - np.asarray(Image.fromarray(five).resize((140, 140), Image.Resampling.BICUBIC))
    values = np.full((200, 300), 255, np.uint8)
    values[40:180, 130:270] = digit
    return Image.fromarray(values)


def distance(one, other):
    """The mean difference of two digits, of 255, after the best shift by at most one pixel."""
    shifts = [
        np.roll(one, (y, x), (0, 1)).astype(float) - other for y in (-1, 0, 1) for x in (-1, 0, 1)
    ]
    return min(np.abs(shift).mean() for shift in shifts)


def saved(image, kind, **options):
    """The picture after a round trip through a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return pictures.decode(file)


@pytest.mark.parametrize("mode", ["L", "RGB", "black on white"])
def test_mnist_image_keeps_every_pixel(mode):
    images = read_idx("t10k-images-idx3-ubyte")[:200, ..., 0]
    written = 255 - images if mode == "black on white" else images
    pictures = [Image.fromarray(image) for image in written]
    if mode == "RGB":
        pictures = [picture.convert("RGB") for picture in pictures]
    ours = np.stack([mnist_form(saved(picture, "PNG")) for picture in pictures])
    assert ours.dtype == np.uint8 and (ours == images).all()


def test_mnist_image_with_more_paper_around_it_hardly_changes():
    images = read_idx("t10k-images-idx3-ubyte")[:200, ..., 0]
    ours = np.stack([mnist_form(Image.fromarray(np.pad(image, 1))) for image in images])
    assert ours.shape == images.shape and np.abs(ours.astype(int) - images).mean() < 1.5


@pytest.mark.parametrize("change", ["fainter", "smaller", "high", "to the left", "on grey"])
def test_image_almost_in_mnist_form_is_brought_to_it(five, change):
    picture = {
        "fainter": five // 2,
        "smaller": np.pad(np.asarray(Image.fromarray(five[4:24, 4:24]).resize((14, 14))), 7),
        "high": np.roll(five, -3, axis=0),
        "to the left": np.roll(five, -3, axis=1),
        "on grey": np.maximum(five, 40),
    }[change]
    assert (picture != mnist_form(Image.fromarray(picture))).any()
    assert distance(mnist_form(Image.fromarray(picture)), five) < 12


def test_digit_fills_20_by_20_with_its_centre_of_mass_in_the_middle(page):
    form = mnist_form(page).astype(float)
    rows, columns = np.nonzero(form)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert rows @ form[rows, columns] / form.sum() == pytest.approx(14, abs=0.5)
    assert columns @ form[rows, columns] / form.sum() == pytest.approx(14, abs=0.5)


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_every_file_format_is_read(page, five, kind):
    assert distance(mnist_form(saved(page.convert("RGB"), kind)), five) < 12


def transparent(page, ink):
    mask = Image.eval(page, lambda value: 255 - value)
    image = Image.new("RGBA", page.size, (*ink, 0))
    image.putalpha(mask)
    return image


MODES = {
    "1 bit": lambda page: saved(page.convert("1", dither=Image.Dither.NONE), "PNG"),
    "palette": lambda page: saved(page.convert("P"), "GIF"),
    "palette with transparency": lambda page: saved(page.convert("P"), "PNG", transparency=255),
    "grey with alpha": lambda page: saved(page.convert("LA"), "PNG"),
    "black on nothing": lambda page: saved(transparent(page, (0, 0, 0)), "PNG"),
    "white on nothing": lambda page: saved(transparent(page, (255, 255, 255)), "WEBP"),
    "CMYK": lambda page: saved(page.convert("CMYK"), "JPEG"),
    "CMYK in TIFF": lambda page: saved(page.convert("CMYK"), "TIFF"),
    "16 bits": lambda page: saved(
        Image.fromarray(np.asarray(page, np.uint16) * 257), "PNG"
    ),
    "12 bits of 16": lambda page: saved(Image.fromarray(np.asarray(page, np.uint16) * 16), "TIFF"),
    "floating point": lambda page: saved(Image.fromarray(np.asarray(page, np.float32)), "TIFF"),
    "floating point to 1": lambda page: saved(
        Image.fromarray(np.asarray(page, np.float32) / 255), "TIFF"
    ),
    "LAB": lambda page: saved(Image.merge("LAB", [page] * 3), "TIFF"),
    "white on black": lambda page: Image.eval(page, lambda value: 255 - value),
    "blue on yellow": lambda page: Image.composite(
        Image.new("RGB", page.size, "gold"), Image.new("RGB", page.size, "navy"), page
    ),
    "red on orange": lambda page: Image.composite(
        Image.new("RGB", page.size, (255, 165, 0)), Image.new("RGB", page.size, (255, 0, 0)), page
    ),
    "green on red, as light": lambda page: Image.composite(
        Image.new("RGB", page.size, (200, 60, 60)), Image.new("RGB", page.size, (60, 131, 60)), page
    ),
    "pencil": lambda page: Image.eval(page, lambda value: 190 + value // 5),
    "lit from a side": lambda page: Image.fromarray(
        (np.asarray(page) * np.linspace(0.45, 1, page.width)).astype(np.uint8)
    ),
    "noise": lambda page: Image.fromarray(
        (np.asarray(page) * 0.7 + np.random.default_rng(1).normal(30, 12, (200, 300)))
        .clip(0, 255).astype(np.uint8)
    ),
    "large": lambda page: page.resize((3000, 2000)),
    "a strip": lambda page: page.crop((130, 0, 270, 200)),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_colour_gives_the_same_digit(page, five, mode):
    assert distance(mnist_form(MODES[mode](page)), five) < 16


def test_exif_rotation_is_applied(page, five):
    turned, exif = page.rotate(90, expand=True), Image.Exif()
    assert distance(mnist_form(saved(turned, "JPEG")), five) > 30
    exif[0x0112] = 6
    assert distance(mnist_form(saved(turned, "JPEG", exif=exif)), five) < 12


def test_first_frame_of_a_gif_is_read(page, five):
    other = Image.new("L", page.size, 255)
    gif = saved(page, "GIF", save_all=True, append_images=[other])
    assert distance(mnist_form(gif), five) < 12


def test_specks_and_the_edge_of_a_table_are_ignored(page, five):
    draw = ImageDraw.Draw(page := page.copy())
    draw.rectangle((0, 0, 300, 12), fill=40)
    for x, y in ((20, 60), (60, 150), (90, 100)):
        draw.rectangle((x, y, x + 3, y + 3), fill=0)
    assert distance(mnist_form(page), five) < 16


def test_hairline_is_thickened_to_the_width_of_mnists_strokes():
    image = Image.new("L", (600, 600), 255)
    ImageDraw.Draw(image).ellipse((100, 60, 420, 540), outline=0, width=3)
    form = mnist_form(image)
    assert 1.8 < stroke_width(form.astype(np.float32) / 255) < 3.2


def in_a_frame(page, ink=0, width=6, gap=0):
    """The page with a printed line along each side, close to its border."""
    framed = page.convert("RGB")
    draw, (right, bottom) = ImageDraw.Draw(framed), (page.width, page.height)
    for x in (10, right - 14):
        draw.line((x, 0, x, bottom), fill=(ink,) * 3, width=width)
    for y in (10, bottom - 14):
        draw.line((0, y, right, y + 3), fill=(ink,) * 3, width=width)
        if gap:
            draw.rectangle((right // 2 - gap, y - 9, right // 2, y + 9), fill=(255,) * 3)
    return framed


def pencil(page):
    return Image.eval(page, lambda value: 170 + value // 3)


@pytest.mark.parametrize("frame", [{}, {"width": 10}, {"width": 3, "ink": 90}, {"gap": 16}])
@pytest.mark.parametrize("pen", [lambda page: page, pencil])
def test_frame_is_removed_even_if_it_is_darker_than_the_digit(page, five, frame, pen):
    assert distance(mnist_form(in_a_frame(pen(page), **frame)), five) < 16
    assert len(find_digits(in_a_frame(pen(page), **frame))) == 1


@pytest.mark.parametrize("rise", [0, 12, 33])
def test_printed_box_that_goes_on_outside_the_picture_is_not_read(page, five, rise):
    boxed = page.resize((450, 300)).crop((150, 10, 440, 300))
    draw, side = ImageDraw.Draw(boxed), boxed.width
    for place in (30, 255):
        draw.line([(0, place - rise), (side, place + rise)], 120, 3)
        draw.line([(place + rise, 0), (place - rise, side)], 120, 3)
    (found,) = find_digits(boxed)
    assert distance(found.form, five) < 8


def test_digit_stays_whole_where_it_crosses_a_line(five):
    """A 5 whose bar lies close to the top, and which a ruled line crosses."""
    values = np.full((200, 200), 255, np.uint8)
    digit = 255 - np.asarray(Image.fromarray(five).resize((168, 168), Image.Resampling.BICUBIC))
    values[16:184, 16:184] = digit
    values[170:173] = np.minimum(values[170:173], 60)
    assert distance(mnist_form(Image.fromarray(values)), five) < 16


def test_ruled_line_that_the_digit_stands_on_is_removed(page, five):
    ruled = page.copy()
    ImageDraw.Draw(ruled).line((0, 150, 300, 162), 110, 3)  # the 5 ends at row 159
    assert distance(mnist_form(ruled), five) < 12


def test_pieces_of_a_printed_line_beside_a_wider_pen_are_no_digits(page, five):
    lined = page.copy()
    draw = ImageDraw.Draw(lined)
    draw.line((60, 20, 64, 110), 120, 2)
    draw.line((66, 120, 69, 180), 120, 2)
    (found,) = find_digits(lined)
    assert distance(found.form, five) < 8
    assert distance(mnist_form(lined), five) < 8


def test_border_that_is_mostly_line_does_not_hide_the_digit(page, five):
    draw = ImageDraw.Draw(page := page.copy())
    draw.line((9, 0, 9, 200), fill=60, width=18)
    draw.line((0, 191, 300, 191), fill=60, width=18)
    draw.line((295, 0, 295, 120), fill=60, width=10)
    assert distance(mnist_form(page), five) < 16


def test_shadow_in_a_printed_box_does_not_cut_the_digit():
    six = read_idx("train-images-idx3-ubyte")[56863, ..., 0]
    photo = render.photo(six, np.random.default_rng([1, 1863]))
    assert photo.factors >= {"box", "shadow", "pencil", "wide pen"}
    (found,) = find_digits(photo.image)
    left, top, right, bottom = found.box
    assert 75 <= right - left <= 90 and 110 <= bottom - top <= 130  # of 200 x 200 pixels


@pytest.mark.parametrize("index", [1311, 1725, 1930, 2328])
def test_line_that_a_digit_touches_is_removed_though_it_fades(index):
    digit = read_idx("train-images-idx3-ubyte")[index, ..., 0]
    photo = render.photo(digit, np.random.default_rng([2, index]))
    assert "ruled" in photo.factors
    found = find_digits(photo.image, single=True)[0]
    left, _, right, _ = found.box
    assert right - left < 120  # of 200 pixels; the lines are at least 130 long


SHADOWS = {
    682: (54, 60, 117, 155), 1649: (68, 31, 155, 122), 1706: (89, 96, 144, 160),
    2352: (47, 64, 137, 131),
}  # fmt: skip
CROSSINGS = {525: (73, 65, 131, 140), 2479: (34, 76, 92, 150), 2904: (120, 70, 164, 155)}


@pytest.mark.parametrize("index", [*SHADOWS, *CROSSINGS])
def test_edge_of_a_shadow_and_crossings_of_lines_are_not_read(index):
    digit = read_idx("train-images-idx3-ubyte")[index, ..., 0]
    photo = render.photo(digit, np.random.default_rng([2, index]))
    assert ("shadow" if index in SHADOWS else "box") in photo.factors
    expected = (SHADOWS | CROSSINGS)[index]  # found right by eye
    (found,) = find_digits(photo.image, single=True)
    assert np.abs(np.subtract(found.box, expected)).max() <= 3
    (whole, *_) = sorted(find_digits(photo.image), key=lambda one: -len(range(*one.pieces)))
    assert np.abs(np.subtract(whole.box, expected)).max() <= 3


@pytest.mark.parametrize("name", ["0855-0", "0892-2", "0899-8", "0938-5"])
def test_wide_digit_that_touches_the_border_is_no_shadow(name):
    (found,) = find_digits(Image.open(PICTURES / "sklearn_digits" / f"{name}.png"))
    left, top, right, bottom = found.box
    assert (top, bottom) == (0, 120) and right - left >= 70  # the whole picture's height


def test_faint_stretch_of_a_stroke_is_kept():
    values = np.full((120, 120), 255, np.uint8)
    values[20:100, 55:65] = 60
    values[45:75, 55:65] = 190  # a third of the contrast: under the threshold of what is dark
    form = mnist_form(Image.fromarray(values))
    rows = np.flatnonzero(form.any(axis=1))
    assert np.ptp(rows) + 1 == len(rows) == 20


def test_hole_of_a_blurred_digit_is_open():
    image = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(image).ellipse((20, 14, 44, 50), outline=0, width=8)
    form = mnist_form(image.filter(ImageFilter.GaussianBlur(5)))
    assert form[14, 14] < 0.4 * form.max() < form[14].max()


def test_whole_picture_of_a_digit_without_paper_around_it_is_no_frame():
    ring = Image.new("L", (100, 140), 255)
    ImageDraw.Draw(ring).ellipse((0, 0, 99, 139), outline=0, width=14)
    form = mnist_form(ring)
    assert form.max() == 255 and form[14, 14] == 0 and (form[14] > 200).sum() >= 2


@pytest.mark.parametrize("text", ["70412", "11", "1984"])
@pytest.mark.parametrize("around", ["nothing", "a frame", "a speck"])
def test_every_digit_of_a_number_is_found(text, around):
    images, labels = read_idx("t10k-images-idx3-ubyte"), read_idx("t10k-labels-idx1-ubyte")
    chosen = [images[np.flatnonzero(labels == int(c))[0], ..., 0] for c in text]
    image, boxes = number(chosen, [len(text)])
    if around == "a frame":
        ImageDraw.Draw(image).rectangle((8, 8, image.width - 9, image.height - 9), outline=0)
    elif around == "a speck":
        ImageDraw.Draw(image).rectangle((4, 4, 7, 7), fill=0)
    found = find_digits(image)
    assert np.abs(np.array([one.box for one in found]) - boxes).max() <= 4
    for one, digit in zip(found, chosen, strict=True):
        assert distance(one.form, digit) < 16
    assert len(find_digits(image, single=True)) == 1


def test_box_is_in_pixels_of_the_file_after_its_rotation(page):
    turned, exif = page.resize((3000, 2000)).rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6
    (found,) = find_digits(saved(turned, "JPEG", exif=exif))
    (expected,) = find_digits(page)
    assert np.abs(np.array(found.box) - 10 * np.array(expected.box)).max() <= 40


def test_halves_of_a_broken_stroke_are_one_digit():
    image = Image.new("L", (200, 200), 255)
    draw = ImageDraw.Draw(image)
    draw.arc((70, 40, 130, 98), 200, 440, 0, 6)  # a 3 that is broken in the middle
    draw.arc((70, 101, 130, 162), 280, 520, 0, 6)
    (found,) = find_digits(image)
    _, top, _, bottom = found.box
    assert top <= 42 and bottom >= 160


def test_pieces_that_are_close_are_offered_as_one_digit_too():
    image = Image.new("L", (200, 200), 255)
    draw = ImageDraw.Draw(image)
    draw.line((80, 40, 70, 100, 112, 100), 0, 6)  # a 4 in two pieces
    draw.line((122, 50, 122, 160), 0, 6)
    left, both, right = sorted(find_digits(image), key=lambda one: one.pieces)
    assert [one.pieces for one in (left, both, right)] == [(0, 1), (0, 2), (1, 2)]
    assert both.box == (left.box[0], left.box[1], right.box[2], right.box[3])
    draw.line((112, 100, 122, 100), 0, 6)
    (whole,) = find_digits(image)
    assert distance(both.form, whole.form) < 4


def test_pieces_that_are_far_from_each_other_are_no_digit(five):
    image, _ = number([five] * 3, [3])
    assert [one.pieces for one in find_digits(image)] == [(0, 1), (1, 2), (2, 3)]


def test_ring_that_covers_half_of_the_picture_is_the_digit_not_its_hole():
    image = Image.new("L", (120, 120), 255)
    ImageDraw.Draw(image).ellipse((16, -4, 104, 124), 255, 0, 29)  # a bold 0 cut off on two sides
    form = mnist_form(image.filter(ImageFilter.GaussianBlur(6)))
    assert form[14, 14] < 60 and form[14].max() > 200


def test_single_digits_are_not_split():
    images = read_idx("t10k-images-idx3-ubyte")[:300, ..., 0]
    pages = [Image.fromarray(255 - np.pad(image, 3)).resize((136, 136)) for image in images]
    assert sum(len(find_digits(page)) > 1 for page in pages) <= 1


def test_heic_picture_is_read_or_its_package_named(page, five):
    head = b"\0\0\0\x1cftypheic" + bytes(16)
    try:
        import pillow_heif
    except ImportError:
        with pytest.raises(PictureError, match=r"pillow_heif: pip install 'mnist_cnn\[heic\]'"):
            pictures.decode(io.BytesIO(head))
        pytest.skip("needs pillow-heif: pip install 'mnist_cnn[heic]'")
    file = io.BytesIO()
    pillow_heif.from_pillow(page.convert("RGB")).save(file)
    file.seek(0)
    assert distance(mnist_form(pictures.decode(file)), five) < 12
    with pytest.raises(PictureError, match=r"HEIC|damaged|no picture"):
        pictures.decode(io.BytesIO(head))


def striped():
    """A stroke that is half darker and half lighter than the paper."""
    values = np.full((120, 120), 128, np.uint8)
    values[30:90, 50:60] -= 100
    values[30:90, 60:70] += 100
    return Image.fromarray(values)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (100, 100), 255),
        Image.new("RGBA", (100, 100), (0, 0, 0, 0)),
        Image.new("1", (1, 1)),
        Image.fromarray(np.random.default_rng(0).normal(200, 10, (300, 300)).astype(np.uint8)),
        Image.fromarray(np.tile(np.linspace(90, 250, 300).astype(np.uint8), (200, 1))),
        striped(),
    ],
    ids=["white", "transparent", "one pixel", "noise", "a shadow", "stripes"],
)
def test_page_without_a_digit_is_refused(image):
    with pytest.raises(PictureError, match="digit"):
        mnist_form(image)


def test_picture_without_an_inside_is_refused():
    values = np.random.default_rng(0).integers(0, 256, (2, 9)).astype(np.uint8)
    with pytest.raises(PictureError, match="too small to show a digit"):
        find_digits(Image.fromarray(values))


def test_damaged_file_is_refused(page):
    for kind in pictures.FORMATS:
        file = io.BytesIO()
        page.convert("RGB").save(file, kind)
        whole = file.getvalue()
        with pytest.raises(PictureError):
            pictures.decode(io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(PictureError, match="empty"):
        pictures.decode(io.BytesIO())
    with pytest.raises(PictureError, match="expected PNG, JPEG"):
        pictures.decode(io.BytesIO(b"%PDF-1.7 and so on"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_it_is_unpacked():
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    for side in (10_001, 2**31 - 1):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with pytest.raises(PictureError, match="larger than the limit of 100,000,000 pixels"):
            pictures.decode(io.BytesIO(png))
