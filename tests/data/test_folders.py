"""Folders of pictures: `train/CLASS/*.png` and `test/CLASS/*.png`."""

import os
import shutil

import numpy as np
import pytest
from own_images import random_images, refusal
from PIL import Image

from mnist_cnn.data import dataset as data
from mnist_cnn.data.spec import DataSpec

CLASSES = ("1", "2", "10", "Zebra", "ant", "ant 2", "ant 10")  # in natural order
SHAPE = (10, 12)


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def pictures(tmp_path):
    """A folder of grey pictures, and the images in the order in which they are read."""
    images = random_images(3 * len(CLASSES), *SHAPE)
    for i, image in enumerate(images):
        split = "test" if i % 3 == 2 else "train"
        save(image, tmp_path / "pets" / split / CLASSES[i // 3] / f"{i:02d}.png")
    return tmp_path / "pets", images


def test_pictures_are_read_in_natural_order_with_the_folders_names(pictures):
    folder, images = pictures
    (folder / "train" / "ant" / ".DS_Store").write_text("hidden")
    (folder / "train" / "ant" / "notes.txt").write_text("no picture")
    dataset = data.open_dataset("mnist", folder)
    assert dataset.spec == DataSpec((*SHAPE, 1), CLASSES) and dataset.name == "pets"
    train, labels = dataset.read("train")
    np.testing.assert_array_equal(train[..., 0], np.delete(images, np.s_[2::3], axis=0))
    assert labels.tolist() == [i // 2 for i in range(14)]
    test, labels = dataset.read("test")
    np.testing.assert_array_equal(test[..., 0], images[2::3])
    assert labels.tolist() == list(range(7))
    assert list(dataset.files) == ["train", "test"]  # one digest a folder in environment.json


def test_a_renamed_class_or_a_changed_picture_is_other_data(pictures):
    folder, _ = pictures
    before = data.open_dataset("mnist", folder)
    for split in ("train", "test"):
        (folder / split / "Zebra").rename(folder / split / "Zoo")
    renamed = data.open_dataset("mnist", folder)
    assert renamed.spec.class_names[3] == "Zoo" and renamed.files != before.files
    picture = folder / "test" / "1" / "02.png"
    save(255 - np.asarray(Image.open(picture)), picture)
    changed = data.open_dataset("mnist", folder)
    assert changed.files["train"] == renamed.files["train"]
    assert changed.files["test"] != renamed.files["test"]
    assert not data.is_same_data(changed.describe(), renamed.describe())


def test_one_coloured_picture_gives_all_three_channels(pictures):
    folder, images = pictures
    colours = random_images(1, *SHAPE, 3)[0]
    save(colours, folder / "train" / "2" / "99.png")
    grey_as_rgb = np.stack([images[0]] * 3, axis=-1)
    save(grey_as_rgb, folder / "train" / "1" / "00.png")
    dataset = data.open_dataset("mnist", folder)
    train = dataset.read("train")[0]
    assert dataset.spec.image_shape == (*SHAPE, 3)
    np.testing.assert_array_equal(train[4], colours)
    np.testing.assert_array_equal(train[0], grey_as_rgb)


def test_every_kind_of_picture_that_predict_reads_is_read(pictures):
    folder, images = pictures
    first = folder / "train" / "1"
    exact = images[0]
    for name in ("b.bmp", "c.TIFF", "d.gif"):
        save(exact, first / name)
    save(exact.T, first / "e.tif", exif={0x0112: 5})  # EXIF: transposed
    save(exact.astype(np.uint16) * 257, first / "f.png")
    Image.fromarray(exact).convert("RGB").save(first / "g.png")
    Image.fromarray(exact).convert("P").save(first / "h.png")
    shutil.copy(first / "00.png", first / "i.webp")  # the content decides the format
    save(np.full(SHAPE, 60, np.uint8), first / "j.jpg", quality=95)
    transparent = np.zeros((*SHAPE, 4), np.uint8)  # black, but nothing of it is visible
    transparent[:5, :, 3] = 255
    save(transparent, first / "k.png")
    train = data.open_dataset("mnist", folder).read("train[:12]")[0][..., 0]
    np.testing.assert_array_equal(train[2:10], np.stack([exact] * 8))
    assert np.abs(train[10].astype(int) - 60).max() <= 2
    assert (train[11][:5] == 0).all() and (train[11][5:] == 255).all()


def blank(folder, name, size=SHAPE, **options):
    save(np.zeros(size, np.uint8), folder / name, **options)


WRONG = {
    "class without training images": (
        lambda f: [p.unlink() for p in (f / "train" / "ant").iterdir()],
        "train/ant holds no pictures: add some",
    ),
    "class that test lacks": (
        lambda f: shutil.rmtree(f / "test" / "ant"), "test lacks the class 'ant', which train has",
    ),
    "class that train lacks": (
        lambda f: blank(f, "test/cat/1.png"), "train lacks the class 'cat', which test has",
    ),
    "no test": (lambda f: shutil.rmtree(f / "test"), "lacks the folder 'test': expected train/"),
    "two sizes": (
        lambda f: blank(f, "train/ant/z.png", (12, 10)),
        "train/ant/z.png is 10 pixels wide and 12 high, {f}/train/1/00.png is 12 pixels wide and",
    ),
    "too small": (lambda f: blank(f, "train/1/0.png", (7, 8)), "8 pixels wide and 7 high, exp"),
    "too large": (lambda f: blank(f, "train/1/0.png", (9, 129)), "0.png: 129 pixels wide and"),
    "large JPEG": (lambda f: blank(f, "train/1/0.jpg", (2000, 2000)), "2000 pixels wide and 2000"),
    "no picture": (
        lambda f: (f / "test/ant/z.png").write_text("text"), "test/ant/z.png: no picture that can",
    ),
    "damaged": (
        lambda f: (f / "test/1/0.png").write_bytes((f / "test/1/02.png").read_bytes()[:60]),
        "test/1/0.png: damaged",
    ),
    "format that is not read": (
        lambda f: (f / "test/1/0.heic").write_text("text"), "test/1/0.heic: no picture that can be",
    ),
    "32 bits": (
        lambda f: save(np.zeros(SHAPE, np.float32), f / "test/1/0.tif"), "0.tif: has 32 bits a",
    ),
    "folder in a class": (
        lambda f: blank(f, "train/1/more/0.png"), "train/1/more is a folder, expected the pictures",
    ),
    "picture in no class": (
        lambda f: blank(f, "train/0.png"), "train/0.png is in no class: expected train/CLASS/*.png",
    ),
    "one class": (
        lambda f: [shutil.rmtree(f / s / c) for s in ("train", "test") for c in CLASSES[1:]],
        "train holds 1 folders, expected one for each class, 2 to 256",
    ),
    "257 classes": (
        lambda f: [(f / s / f"c{i}").mkdir() for s in ("train", "test") for i in range(250)],
        "train holds 257 folders, expected one for each class, 2 to 256",
    ),
    "pipe": (lambda f: os.mkfifo(f / "train/1/0.png"), "0.png is no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_folder_is_refused_by_name_and_reason(kind, pictures):
    folder, _ = pictures
    change, reason = WRONG[kind]
    change(folder)
    assert reason.format(f=folder) in refusal(folder)


def test_picture_that_changed_since_the_folder_was_opened_is_not_read(pictures):
    folder, _ = pictures
    dataset = data.open_dataset("mnist", folder)
    shutil.rmtree(dataset.directory)
    blank(folder, "train/1/00.png")
    with pytest.raises(data.DataError, match=r"00\.png changed since it was opened"):
        dataset.read("train")
