"""What `mnist_cnn.data` guarantees, on the real files and with real processes."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import types
import urllib.parse

import hypothesis
import numpy as np
import pytest
from conftest import MNIST, ROOT, read_idx
from hypothesis import strategies as st

from mnist_cnn.data import dataset as data, download, idx, tfds_builder
from mnist_cnn.errors import ConfigError, DataError

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = download.FILES


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A folder for prepared data that no other test uses."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))
    return tmp_path / "tensorflow_datasets"


@pytest.fixture(scope="session")
def mnist(prepared_datasets):
    return data.open_dataset("mnist")


def idx_images(count, rows=28, columns=28):
    pixels = np.random.default_rng(count).integers(0, 256, count * rows * columns, np.uint8)
    return struct.pack(">4I", 0x803, count, rows, columns) + pixels.tobytes()


def idx_labels(count):
    return struct.pack(">2I", 0x801, count) + bytes(i % 10 for i in range(count))


def write_files(folder, train=1203, test=7, suffix=".gz"):
    """Four small files with random pixels, gzipped if the suffix says so."""
    contents = (idx_images(train), idx_labels(train), idx_images(test), idx_labels(test))
    folder.mkdir(exist_ok=True)
    for name, content in zip(download.FILES, contents, strict=True):
        packed = gzip.compress(content, 1) if suffix else content
        (folder / f"{name}{suffix}").write_bytes(packed)
    return folder


@pytest.fixture
def manual(tmp_path, data_dir):
    return write_files(tmp_path / "manual")


def message(call, *arguments):
    """The text of the `DataError` that the call raises, which must be one line."""
    with pytest.raises(DataError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def fuzz(examples):
    examples = int(os.environ.get("FUZZ_EXAMPLES", examples))
    return hypothesis.settings(max_examples=examples, deadline=None)


def python(code, manual_dir):
    """Starts another Python process that runs `code` with the module `data` and `sys`."""
    code = "import sys\nfrom mnist_cnn.data import dataset as data\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(manual_dir)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


# The embedded files


def test_embedded_files_have_the_checksums_registered_in_tfds():
    registered = download.registered("mnist").values()
    for name, info in zip(download.FILES, registered, strict=True):
        content = (MNIST / f"{name}.gz").read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (info.checksum, info.size)


FIRST_LABELS = {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "test": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]}


@pytest.mark.parametrize(("split", "count"), [("train", 60000), ("test", 10000)])
def test_examples_are_those_of_the_source_files_in_their_order(mnist, split, count):
    images, labels = mnist.read(split)
    assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
    assert labels.shape == (count,) and labels.dtype == np.int32
    assert labels[:10].tolist() == FIRST_LABELS[split]
    sources = {"train": (IMAGES, LABELS), "test": (TEST_IMAGES, TEST_LABELS)}[split]
    for array, source in zip((images, labels), sources, strict=True):
        np.testing.assert_array_equal(array, read_idx(source))


def test_dataset_describes_itself(mnist, prepared_datasets):
    assert (mnist.name, mnist.origin, mnist.official) == ("mnist", "the package", True)
    assert mnist.num_examples == {"train": 60000, "test": 10000}
    assert list(mnist.files) == [f"{name}.gz" for name in download.FILES]
    assert mnist.directory.parents[2] == prepared_datasets
    assert mnist.directory.parents[1].name == "mnist_cnn_mnist"  # never tfds' own `mnist`


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:99] + b"?" + b[100:]])
def test_altered_embedded_file_is_refused(damage, tmp_path, data_dir, monkeypatch):
    shutil.copytree(MNIST, tmp_path / "mnist")
    path = tmp_path / "mnist" / f"{LABELS}.gz"
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    text = message(data.open_dataset, "mnist")
    assert str(path) in text and "registered" in text


# Splits


ROWS = {
    "train": [("train", 0, 60000)],
    "train[:55000]": [("train", 0, 55000)],
    "train[-10%:]": [("train", 54000, 60000)],
    "train[33%:34%]": [("train", 19800, 20400)],
    "test[:-9999]": [("test", 0, 1)],
    "train[:80%]+test[5:6]": [("train", 0, 48000), ("test", 5, 6)],
    "test + train[1:2]": [("test", 0, 10000), ("train", 1, 2)],
    "all": [("train", 0, 60000), ("test", 0, 10000)],
}


@pytest.mark.parametrize("split", ROWS)
def test_splits_select_the_examples_that_tfds_selects(mnist, split):
    assert mnist.rows(split) == ROWS[split]


@pytest.mark.parametrize(
    "split",
    ["valid", "train[:60001]", "train[5:5]", "train[10:5]", "test[10000:]", "train[", "", "all[:5]",
     "train[:101%]", "train[1.5:]", "train+valid", "train+test[3:3]", "train[5]", None, 3],
)  # fmt: skip
def test_wrong_split_is_refused_and_the_legal_ones_are_named(mnist, split):
    for call in (mnist.rows, mnist.read):
        text = message(call, split)
        assert repr(split) in text
        assert "'train' (60000 examples)" in text and "'test' (10000 examples)" in text


@hypothesis.given(st.text("trainesall[]:+-%_.0159 sh٣", max_size=20) | st.text())
@hypothesis.example("train[٣:]").via("digits that are not ASCII")
@fuzz(300)
def test_any_split_gives_rows_or_a_data_error(mnist, split):
    with contextlib.suppress(DataError):
        rows = mnist.rows(split)
        assert rows and all(0 <= a < b <= mnist.num_examples[name] for name, a, b in rows)


def test_slices_are_read_in_the_order_in_which_they_are_given(mnist):
    images, labels = mnist.read("test[3:5]+train[:2]+test[:1]")
    assert labels.tolist() == [0, 4, 5, 0, 7]
    np.testing.assert_array_equal(images[[0, 1, 4]], read_idx(TEST_IMAGES)[[3, 4, 0]])


# The user's own files


@pytest.mark.parametrize("between", ["-idx", ".idx"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_manual_files_are_read_in_every_spelling(between, suffix, tmp_path, data_dir):
    folder = write_files(tmp_path / "manual", suffix=suffix)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", between))
    dataset = data.open_dataset("mnist", folder)
    images, labels = dataset.read("train")
    assert images.tobytes() == idx_images(1203)[16:] and labels.tolist()[:12] == [*range(10), 0, 1]
    assert dataset.num_examples == {"train": 1203, "test": 7}
    assert (dataset.origin, dataset.official) == (str(folder), False)
    for name, digest in dataset.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_first_documented_spelling_is_read(tmp_path, data_dir):
    folder = write_files(tmp_path / "manual", train=11)
    names = [f"{n}{gz}" for n in (LABELS, LABELS.replace("-idx", ".idx")) for gz in (".gz", "")]
    for number, name in enumerate(names):
        (folder / name).write_bytes(struct.pack(">2I11B", 0x801, 11, number, *range(10)))
    for number, name in enumerate(names):
        dataset = data.open_dataset("mnist", folder)
        assert name in dataset.files and dataset.read("train")[1][0] == number
        (folder / name).unlink()
    assert f"lacks {LABELS}.gz" in message(data.open_dataset, "mnist", folder)


def test_missing_files_and_folders_are_named(manual, tmp_path, data_dir):
    (manual / f"{IMAGES}.gz").unlink()
    (manual / f"{TEST_LABELS}.gz").unlink()
    (manual / f"{TEST_LABELS}.gz").mkdir()
    text = message(data.open_dataset, "mnist", manual)
    assert f"lacks {IMAGES}.gz, {TEST_LABELS}.gz" in text and str(manual) in text
    assert str(tmp_path / "no") in message(data.open_dataset, "mnist", tmp_path / "no")
    assert not data_dir.exists()


def test_official_files_share_one_prepared_folder(mnist):
    dataset = data.open_dataset("mnist", MNIST)
    assert dataset.official and dataset.directory == mnist.directory


@pytest.mark.slow
def test_unpacked_official_files_are_official_unless_a_pixel_differs(tmp_path, data_dir, mnist):
    for name in download.FILES:
        (tmp_path / name).write_bytes(gzip.decompress((MNIST / f"{name}.gz").read_bytes()))
    dataset = data.open_dataset("mnist", tmp_path)
    assert dataset.official and dataset.files != mnist.files
    content = bytearray((tmp_path / TEST_IMAGES).read_bytes())
    content[1000] ^= 1
    (tmp_path / TEST_IMAGES).write_bytes(content)
    changed = data.open_dataset("mnist", tmp_path)  # never the folder of the other files
    assert not changed.official and changed.directory != dataset.directory
    assert changed.read("test[:2]")[0].ravel()[1000 - 16] == content[1000]
    assert not data.open_dataset("fashion_mnist", MNIST).official


# The IDX format

WRONG_FILES = {
    "ends in its header": (IMAGES, idx_images(1203)[:9], "header"),
    "empty": (IMAGES, b"", "header"),
    "truncated": (IMAGES, idx_images(1203)[:-1], "943151 follow"),
    "trailing bytes": (LABELS, idx_labels(1203) + b"\0", "more follow"),
    "truncated gzip": (LABELS, gzip.compress(idx_labels(1203))[:-3], "damaged gzip"),
    "flipped bit in gzip": (LABELS, gzip.compress(idx_labels(1203))[:-8] + bytes(8), "damaged"),
    "gzip, then garbage": (LABELS, gzip.compress(idx_labels(1203)) + b"garbage", "damaged gzip"),
    "gzip of more": (LABELS, gzip.compress(idx_labels(1203) + bytes(9)), "more follow"),
    "gzip of two": (LABELS, gzip.compress(idx_labels(1203)) * 2, "more follow"),
    "web page": (IMAGES, b"<html>404 not found</html>", "0x3c68746d"),
    "labels for images": (IMAGES, idx_labels(1203), "0x00000801"),
    "floats": (LABELS, struct.pack(">2I", 0xD01, 1203) + bytes(1203), "0x00000d01"),
    "floats for images": (IMAGES, struct.pack(">4I", 0xD03, 1, 8, 8), "expected 0x00000803 or"),
    "two sizes": (IMAGES, idx_images(1203, 32, 27), "are 28x28x1, but those of"),
    "too small": (IMAGES, idx_images(1203, 7, 28), "28 pixels wide and 7 high, expected 8x8 to"),
    "too large": (IMAGES, idx_images(1203, 28, 129), "129 pixels wide and 28 high, expected"),
    "gap": (LABELS, idx_labels(1203)[:-1] + b"\x0b", "0 to 11, but no image has label 10"),
    "begins at 2": (LABELS, idx_labels(1203)[:8] + bytes([2]) * 1203, "begin at 2, expected 0 or"),
    "one class": (LABELS, idx_labels(1203)[:8] + bytes(1203), "all labels are 0, expected two"),
    "test label": (TEST_LABELS, idx_labels(7)[:-1] + b"\x0a", "of image 7 is 10, expected 0 to 9"),
    "no examples": (TEST_LABELS, struct.pack(">2I", 0x801, 0), "at least one"),
    "count": (TEST_LABELS, idx_labels(8), "holds 7 images"),
    "huge": (IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 28, 28), "can hold at most"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_wrong_file_is_refused_by_name_and_reason(kind, manual, data_dir):
    name, content, reason = WRONG_FILES[kind]
    (manual / f"{name}.gz").write_bytes(content)
    text = message(data.open_dataset, "mnist", manual)
    assert reason in text and name in text
    assert not data_dir.exists()


@hypothesis.given(
    st.binary(max_size=100)
    | st.sampled_from([idx_images(2), idx_labels(5), b"\x1f\x8b" + idx_labels(5)]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 255)), max_size=4),
    st.integers(-20, 3),
)
@fuzz(600)
def test_any_or_damaged_bytes_give_an_array_or_a_data_error(content, zipped, changes, length):
    damaged = bytearray(gzip.compress(content) if zipped else content)
    for place, value in changes:
        if place < len(damaged):
            damaged[place] = value
    damaged = bytes(damaged[:length] if length < 0 else damaged + bytes(length))
    with contextlib.suppress(DataError):
        images = idx.parse_images(damaged, "file")
        assert images.ndim == 4 and images.shape[3] in (1, 3) and images.size > 0
    with contextlib.suppress(DataError):
        assert len(idx.parse_labels(damaged, "file")) > 0


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(idx_labels(5) + bytes(50_000_000), 1),  # unpacks to more than its header says
        gzip.compress(struct.pack(">2I", 0x801, 50_000_000)),  # unpacks to less
        struct.pack(">2I", 0x801, 50_000_000),
    ],
    ids=["unpacks to more", "unpacks to less", "not packed"],
)
def test_no_file_makes_the_parser_allocate_much(content):
    tracemalloc.start()
    message(idx.parse_labels, content, "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_file_larger_than_the_limit_is_refused_unread(manual):
    os.truncate(manual / f"{IMAGES}.gz", 2**40)  # sparse
    assert "larger" in message(data.open_dataset, "mnist", manual)


# The prepared folder


def damages(content):
    """The content with a flipped bit, truncated, emptied, extended."""
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return flipped, content[:middle], b"", content + b"\n"


@pytest.mark.slow
def test_damaged_prepared_folder_is_prepared_again_silently(manual, data_dir, capfd):
    dataset = data.open_dataset("mnist", manual)
    expected = {split: dataset.read(split)[0].tobytes() for split in ("train", "test")}
    names = sorted(path.name for path in dataset.directory.iterdir())
    assert len(names) == 6  # records of two splits, dataset_info, features, metadata, SHA256SUMS

    def check(opened):
        for split, images in expected.items():
            assert opened.read(split)[0].tobytes() == images
        assert sorted(path.name for path in dataset.directory.iterdir()) == names
        assert tfds_builder.load_metadata(dataset.directory)

    for name in names:
        path = dataset.directory / name
        for content in damages(path.read_bytes()):
            path.write_bytes(content)
            check(data.open_dataset("mnist", manual))
        path.unlink()
        check(dataset)  # opened before the damage
    shutil.rmtree(data_dir)
    check(dataset)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("count", "reason"), [(7, "other examples"), (1, "other examples"), (6, "broadcast")]
)
def test_arrays_are_compared_with_those_that_were_prepared(count, reason, manual, tmp_path):
    dataset = data.open_dataset("mnist", manual)
    folder = write_files(tmp_path / "other", test=count)
    (folder / f"{TEST_IMAGES}.gz").write_bytes(idx_images(count)[:-1] + b"?")
    other = data.open_dataset("mnist", folder)
    for path in other.directory.glob("*-test.*"):  # other examples, with sums that match them
        shutil.copy(path, dataset.directory)
    lines = [f"{tfds_builder._sha256(p)}  {p.name}\n" for p in dataset.directory.iterdir()]
    sums = "".join(line for line in lines if "SHA256SUMS" not in line)
    (dataset.directory / "SHA256SUMS").write_text(sums)
    text = message(dataset.read, "test")
    assert "cannot be read" in text and reason in text


def test_source_that_changed_since_it_was_opened_is_not_prepared(manual, data_dir):
    dataset = data.open_dataset("mnist", manual)
    shutil.rmtree(data_dir)
    write_files(manual, test=8)
    assert "changed since" in message(dataset.read, "train")


def test_prepared_folder_is_not_written_again(manual, data_dir):
    data.open_dataset("mnist", manual)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    data.open_dataset("mnist", manual).read("all")
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_each_prepared_file_is_hashed_once_when_all_is_read(manual, monkeypatch):
    names = {path.name for path in data.open_dataset("mnist", manual).directory.iterdir()}
    hashed, sha256 = [], tfds_builder._sha256
    monkeypatch.setattr(tfds_builder, "_sha256", lambda p: hashed.append(p.name) or sha256(p))
    dataset = data.open_dataset("mnist", manual)
    assert not any("array_record" in name for name in hashed)
    hashed.clear()
    dataset.read("train[:5]+train[7:]+test")
    assert sorted(hashed) == sorted(names - {"SHA256SUMS"})


def test_content_is_known_although_each_source_file_is_read_once(manual, tmp_path, monkeypatch):
    dataset = data.open_dataset("mnist", manual)
    for split, sha256 in dataset.contents.items():
        images, labels = dataset.read(split)
        content = images.tobytes() + labels.astype(np.uint8).tobytes()
        assert hashlib.sha256(content).hexdigest() == sha256
    names, read_file = [], data._read_file
    monkeypatch.setattr(data, "_read_file", lambda p: names.append(p.name) or read_file(p))
    assert data.open_dataset("mnist", manual).contents == dataset.contents
    assert sorted(names) == sorted(path.name for path in manual.iterdir())
    unpacked = data.open_dataset("mnist", write_files(tmp_path / "unpacked", suffix=""))
    assert unpacked.contents == dataset.contents and unpacked.files != dataset.files
    assert data.is_same_data(unpacked.describe(), dataset.describe())


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_file_in_the_place_of_a_folder_is_noted_or_replaced(which, manual, data_dir, capfd):
    dataset = data.open_dataset("mnist", manual)
    place = [dataset.directory, *dataset.directory.parents][which]
    shutil.rmtree(place)
    place.write_text("")
    if which == 0:  # this folder belongs to the program: it is prepared again
        assert data.open_dataset("mnist", manual).directory == dataset.directory
    else:
        assert data.open_dataset("mnist", manual).read("train")[1].shape == (1203,)
        err = capfd.readouterr().err
        assert str(data_dir) in err and "set TFDS_DATA_DIR" in err and err.count("\n") == 1


def test_data_is_used_from_memory_if_no_folder_can_be_written(small_mnist, monkeypatch, capfd):
    prepared = data.open_dataset("mnist", small_mnist)
    monkeypatch.setenv("TFDS_DATA_DIR", "/proc/nowhere")  # where root may not write either
    dataset = data.open_dataset("mnist", small_mnist)
    assert (dataset.files, dataset.num_examples) == (prepared.files, prepared.num_examples)
    for split in ("train", "test[3:5]+train[:2]"):
        for array, expected in zip(dataset.read(split), prepared.read(split), strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "used from memory" in err and "/proc/nowhere" in err and "set TFDS_DATA_DIR" in err


def test_folder_that_is_no_local_path_is_refused(small_mnist, monkeypatch):
    with pytest.raises(ConfigError, match=r"manual_dir: got 's3:/bucket/x', expected a local path"):
        data.open_dataset("mnist", pathlib.Path("s3://bucket/x"))
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    with pytest.raises(ConfigError, match=r"TFDS_DATA_DIR: got 'gs://bucket/data', expected a"):
        data.open_dataset("mnist", small_mnist)


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", "~/prepared")
    write_files(tmp_path / "mine")
    dataset = data.open_dataset("mnist", "~/mine")
    assert dataset.origin == str(tmp_path / "mine")
    assert tmp_path / "prepared" in dataset.directory.parents


def test_full_disk_is_noted_and_leaves_nothing_behind(data_dir, small_mnist):
    process = python(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        print(data.open_dataset("mnist", sys.argv[1]).read("all")[0].shape)
        """,
        small_mnist,
    )
    out, err = process.communicate()
    assert out == "(750, 28, 28, 1)\n" and err.count("\n") == 1, err
    assert str(data_dir) in err and "set TFDS_DATA_DIR" in err
    assert not list(data_dir.rglob("incomplete*"))
    assert data.open_dataset("mnist", small_mnist).num_examples == {"train": 500, "test": 250}


# Processes

READ_ALL = """
import hashlib
print(hashlib.sha256(data.open_dataset("mnist", sys.argv[1]).read("all")[0]).hexdigest())
"""


def test_concurrent_processes_prepare_one_folder(data_dir, small_mnist):
    processes = [python(READ_ALL, small_mnist) for _ in range(3)]
    results = {process.communicate() for process in processes}
    assert len(results) == 1 and results.pop()[1] == ""
    (directory,) = data_dir.glob("*/*/1.0.0")
    assert tfds_builder.load_metadata(directory)
    assert list(directory.parent.iterdir()) == [directory]


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("file_adapters.ArrayRecordFileAdapter.write_examples = write_half", "incomplete"),
        ("dataset_info.DatasetInfo.write_to_directory = die", "incomplete"),
        ("tfds_builder._sha256 = die", "1.0.0"),
    ],
    ids=["in a record", "before the rename", "before the sums"],
)
def test_killed_preparation_is_completed_by_the_next_process(moment, left, data_dir, small_mnist):
    code = """
        import os, pathlib, signal
        from mnist_cnn.data import tfds_builder
        from tensorflow_datasets.core import dataset_info, file_adapters
        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)
        def write_half(path, iterator):
            pathlib.Path(path).write_bytes(next(iter(iterator))[1])
            die()
        MOMENT
        data.open_dataset("mnist", sys.argv[1])
    """
    process = python(code.replace("MOMENT", moment), small_mnist)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (folder,) = data_dir.glob("*/[0-9a-f]*/*")
    assert folder.name.startswith(left)
    dataset = data.open_dataset("mnist", small_mnist)
    np.testing.assert_array_equal(dataset.read("test")[0], read_idx(TEST_IMAGES)[:250])
    assert list(dataset.directory.parent.iterdir()) == [dataset.directory]


@pytest.mark.slow
def test_preparation_killed_while_it_writes_is_completed_by_the_next_process(data_dir):
    slowly = "from mnist_cnn.data import tfds_builder\ntfds_builder._EXAMPLES_PER_RECORD = 1\n"
    process = python(slowly + READ_ALL, MNIST)
    deadline = time.monotonic() + 60
    while not list(data_dir.glob("*/*/incomplete*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert list(data_dir.glob("*/*/incomplete*/*"))
    dataset = data.open_dataset("mnist")
    assert dataset.read("test[:1]")[1].tolist() == [7]
    assert list(dataset.directory.parent.iterdir()) == [dataset.directory]


def test_nothing_is_printed_unpickled_or_imported_needlessly(data_dir, small_mnist):
    process = python(
        """
        assert not {"tensorflow_datasets", "jax", "tensorflow"} & set(sys.modules)
        import pickle
        def refuse(*_, **__):
            raise AssertionError("unpickled")
        pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = refuse
        sys.addaudithook(lambda event, _: event == "pickle.find_class" and refuse())
        for _ in range(2):  # prepares the folder, then reads it
            data.open_dataset("mnist", sys.argv[1]).read("train[:50%]")
        assert not {"jax", "tensorflow"} & set(sys.modules)
        """,
        small_mnist,
    )
    assert process.communicate() == ("", "") and process.returncode == 0


# Names and the network


@pytest.mark.parametrize(
    "name, hint",
    [
        ("minst", "'mnist'"),
        ("fashion-mnist", "'fashion_mnist'"),
        ("cifar", "kmnist"),
        (7, "kmnist"),
    ],
)
def test_unknown_dataset_is_refused_with_the_nearest_name(name, hint):
    text = message(data.open_dataset, name)
    assert repr(name) in text and hint in text


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def no_network(*_, **__):
    raise OSError("no network")


def hang(*_, **__):
    time.sleep(5)
    no_network()


@pytest.mark.parametrize("resolve", [no_network, hang])
def test_missing_network_is_reported_within_two_seconds(resolve, data_dir, monkeypatch, capfd):
    download.registered("kmnist")  # imports tfds
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    start = time.perf_counter()
    text = message(data.open_dataset, "kmnist")
    assert time.perf_counter() - start < 2
    assert "cannot be reached" in text and "manual_dir" in text
    assert all(f"{name}.gz" in text for name in download.FILES)
    assert capfd.readouterr() == ("", "")


def test_proxy_is_probed_instead_of_the_host(monkeypatch):
    with socket.socket() as alive, socket.socket() as dead:
        alive.bind(("127.0.0.1", 0))
        alive.listen()
        dead.bind(("127.0.0.1", 0))  # does not listen
        up, down = (f"127.0.0.1:{s.getsockname()[1]}" for s in (alive, dead))

        def reachable(host):
            return download._reachable(urllib.parse.urlsplit(f"http://{host}/file"))

        assert reachable(up) and not reachable(down)
        monkeypatch.setenv("http_proxy", f"http://{down}")
        assert not reachable(up)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert reachable(up)
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("http_proxy", up)
        assert reachable(down)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server of small files that are registered as KMNIST."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    tfds.enable_progress_bar()  # as in a new process
    folder = write_files(tmp_path / "served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        state = "whole"

        def do_GET(self):
            if Handler.state == "whole":
                super().do_GET()
            elif Handler.state == "failing":
                self.send_error(503)  # otherwise it hangs up without an answer

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        url = f"http://127.0.0.1:{running.server_port}/"
        infos = {}
        for path in (folder / f"{name}.gz" for name in download.FILES):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            infos[url + path.name] = checksums.UrlInfo(path.stat().st_size, digest, path.name)
        monkeypatch.setattr(download, "registered", lambda name: infos)
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield types.SimpleNamespace(folder=folder, handler=Handler)
        running.shutdown()


def test_download_goes_through_tfds_and_is_cached(server, data_dir, monkeypatch, capfd):
    dataset = data.open_dataset("kmnist")
    assert (dataset.origin, dataset.official) == ("tfds download", True)
    assert dataset.read("train")[0].tobytes() == idx_images(1203)[16:]
    cached = sorted((data_dir / "downloads" / "kmnist").glob("*.gz"))
    assert len(cached) == 4  # where tfds' own kmnist looks for them
    shutil.rmtree(dataset.directory)
    monkeypatch.setattr(socket, "create_connection", no_network)
    assert data.open_dataset("kmnist").read("test")[0].tobytes() == idx_images(7)[16:]
    assert capfd.readouterr() == ("", "")
    cached[0].write_bytes(cached[0].read_bytes()[:-1])
    text = message(data.open_dataset, "kmnist")
    assert str(cached[0]) in text and "delete it" in text


def test_download_of_other_bytes_is_refused(server, data_dir, capfd):
    (server.folder / f"{LABELS}.gz").write_bytes(b"altered")
    text = message(data.open_dataset, "kmnist")
    assert "not downloaded" in text and "checksum" in text
    (server.folder / f"{LABELS}.gz").unlink()
    assert "404" in message(data.open_dataset, "kmnist")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("state", ["failing", "hanging up"])
def test_failing_server_is_given_up_within_seconds(state, server, data_dir, capfd, caplog):
    server.handler.state = state
    start = time.perf_counter()
    assert "not downloaded" in message(data.open_dataset, "kmnist")
    assert time.perf_counter() - start < 20  # 205 s with tfds' default
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_download_needs_no_folder_that_can_be_written(server, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", "/proc/nowhere")
    dataset = data.open_dataset("kmnist")
    assert dataset.read("train")[0].tobytes() == idx_images(1203)[16:]
    assert not any(path.exists() for path in dataset._sources)
    assert "used from memory" in capfd.readouterr().err


def test_silent_server_or_proxy_is_given_up(server, data_dir, monkeypatch):
    """One that accepts a connection and never answers."""
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        timer = threading.Timer(30, silent.close)  # a test that fails must end as well
        timer.start()
        assert "timed out" in message(data.open_dataset, "kmnist")
        timer.cancel()
