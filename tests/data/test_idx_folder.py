"""IDX files of any size, with one or three channels and any number of classes."""

import json

import numpy as np
import pytest
from own_images import random_images, refusal, write_idx

from mnist_cnn.data import dataset as data
from mnist_cnn.data.spec import MNIST, NAMED, DataSpec


def labels_of(count, classes, first=0):
    return np.arange(count) % classes + first


@pytest.mark.parametrize(
    ("shape", "classes"), [((8, 8), 2), ((128, 128), 3), ((16, 24), 26), ((8, 9), 256)]
)
def test_images_have_the_size_and_classes_of_the_files(shape, classes, tmp_path):
    images, labels = random_images(300, *shape), labels_of(300, classes)
    folder = write_idx(tmp_path / "mine", (images, labels), (images[:7], labels[:7]))
    dataset = data.open_dataset("mnist", folder)
    assert dataset.spec == DataSpec((*shape, 1), tuple(map(str, range(classes))))
    assert dataset.spec.num_classes == classes and dataset.name == "mine" and not dataset.notes
    for split, count in (("train", 300), ("test", 7)):
        found, found_labels = dataset.read(split)
        np.testing.assert_array_equal(found[..., 0], images[:count])
        np.testing.assert_array_equal(found_labels, labels[:count])
        assert found.dtype == np.uint8 and found_labels.dtype == np.int32


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("name", ["idx3", "idx4"])
def test_channels_may_come_first_or_last(axis, name, tmp_path):
    images, labels = random_images(6, 10, 12, 3), labels_of(6, 3)
    stored = np.moveaxis(images, 3, axis)
    folder = write_idx(tmp_path, (stored, labels), (stored[:2], labels[:2]), suffix=".gz")
    for path in folder.glob("*images*"):
        path.rename(folder / path.name.replace("idx3", name))
    dataset = data.open_dataset("mnist", folder)
    assert dataset.spec.image_shape == (10, 12, 3)
    np.testing.assert_array_equal(dataset.read("train")[0], images)


def test_labels_from_1_are_shifted_and_this_is_said(tmp_path):
    images, labels = random_images(12, 9, 9), labels_of(12, 4, first=1)
    dataset = data.open_dataset("mnist", write_idx(tmp_path, (images, labels), (images, labels)))
    assert dataset.spec.class_names == ("1", "2", "3", "4")
    assert dataset.read("test")[1].tolist() == (labels - 1).tolist()
    assert dataset.notes == ("labels begin at 1, which is the first class, 1",)
    prepared = data.open_dataset("mnist", tmp_path)  # from the folder that the first one wrote
    assert (prepared.spec, prepared.notes) == (dataset.spec, dataset.notes)
    bad = write_idx(tmp_path / "bad", (images, labels), (images, labels - 1))
    assert "the label of image 1 is 0, expected 1 to 4" in refusal(bad)


@pytest.mark.parametrize("name", NAMED)
def test_files_of_a_known_form_have_the_published_class_names(name, tmp_path):
    images, labels = random_images(20, 28, 28), labels_of(20, 10)
    folder = write_idx(tmp_path / "mine", (images, labels), (images, labels))
    dataset = data.open_dataset(name, folder)
    assert dataset.spec == NAMED[name] and dataset.name == name and not dataset.official


def test_files_that_contradict_one_another_are_refused(tmp_path):
    images, labels = random_images(20, 12, 12), labels_of(20, 10)
    for number, (test, reason) in enumerate(
        (
            (random_images(20, 12, 13), "images are 12x13x1, but those of train-images"),
            (random_images(20, 12, 12, 3), "images are 12x12x3, but those of train-images"),
            (random_images(20, 12, 12, 4), "states [20, 12, 12, 4], expected [N, H, W, 3]"),
        )
    ):
        text = refusal(write_idx(tmp_path / str(number), (images, labels), (test, labels)))
        assert reason in text and "t10k-images-idx3-ubyte" in text


def test_description_has_the_form_and_old_descriptions_are_compared_without_it(tmp_path):
    images, labels = random_images(20, 8, 32), labels_of(20, 5)
    folder = write_idx(tmp_path / "a", (images, labels), (images, labels))
    now = data.open_dataset("mnist", folder).describe()
    assert (now["image_shape"], now["class_names"]) == ([8, 32, 1], list("01234"))
    assert json.loads(json.dumps(now)) == now
    # The same bytes of another form are other images.
    other = images.reshape(20, 16, 16)
    folder = write_idx(tmp_path / "b", (other, labels), (other, labels))
    others = data.open_dataset("mnist", folder).describe()
    assert others["content_sha256"] == now["content_sha256"]
    assert not data.is_same_data(now, others) and data.is_same_data(now, now)
    mnist = data.open_dataset("mnist").describe()
    assert mnist["image_shape"] == [28, 28, 1] and mnist["class_names"] == list(MNIST.class_names)
    old = {key: mnist[key] for key in ("origin", "sha256", "content_sha256")}
    assert data.is_same_data(old, mnist) and not data.is_same_data(old, now)


def test_folder_of_an_earlier_version_is_prepared_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    images, labels = random_images(20, 28, 28), labels_of(20, 5)
    folder = write_idx(tmp_path / "mine", (images, labels), (images, labels))
    with monkeypatch.context() as earlier:  # it did not write the form
        write = data.tfds_builder.write
        earlier.setattr(
            data.tfds_builder, "write",
            lambda place, examples, all_of_it: write(
                place, examples, {k: v for k, v in all_of_it.items() if k in OLD_KEYS}
            ),
        )  # fmt: skip
        data.open_dataset("mnist", folder)
    metadata = data.open_dataset("mnist", folder).directory / "metadata.json"
    assert json.loads(metadata.read_text())["class_names"] == list("01234")
    before = metadata.stat().st_mtime_ns
    assert data.open_dataset("mnist", folder).spec.class_names == tuple("01234")
    assert metadata.stat().st_mtime_ns == before


OLD_KEYS = ("num_examples", "sha256", "official", "source_files")


def test_prepared_folder_of_mnist_is_that_of_earlier_versions(prepared_datasets):
    dataset = data.open_dataset("mnist")
    assert dataset.directory.parent.name == "7867cfd1ee2434543dc391ca6f4205af"
    sums = (dataset.directory / "SHA256SUMS").read_text()
    for digest, name in (
        ("504950a6e81e7ecb055e6f493385c92a641b02f0eb5dc0455998349e9e2e53c3", "features.json"),
        ("89bc767fa10ee4c6a53bb8ff0815317f23ccf28bdc16648c88adb452bdd556bf", "metadata.json"),
    ):
        assert any(line.startswith(digest) and name in line for line in sums.splitlines())
