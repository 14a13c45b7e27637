"""The command on the user's own pictures: real processes, real files, a really trained network."""

import io
import json
import os
import pathlib
import pty
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, imported_by, read_idx, run
from pictures import picture
from PIL import Image

import mnist_cnn
from mnist_cnn import predict
from mnist_cnn.digits import pictures
from mnist_cnn.digits.mnist_form import mnist_form


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The first 1,000 test images as realistic pictures: their paths, in order."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for index, image in enumerate(read_idx("t10k-images-idx3-ubyte")[:1000, ..., 0]):
        content, suffix = picture(image, seed=index)
        paths.append(folder / f"{index:04d}{suffix}")
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture
def bad(tmp_path, files):
    """A folder of files that cannot be answered, and one that can; (folder, names of the bad)."""
    whole = files[0].read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "new\nline\x1b[31m.png").write_text("no picture")
    Image.new("L", (200, 200), 255).save(tmp_path / "blank.png")
    Image.new("1", (10_001, 10_000)).save(tmp_path / "bomb.png")
    Image.open(files[0]).save(tmp_path / "libtiff.tif", compression="tiff_lzw")
    tiff = (tmp_path / "libtiff.tif").read_bytes()
    middle = len(tiff) // 2  # libtiff itself has a word to say about this one
    (tmp_path / "libtiff.tif").write_bytes(tiff[:middle] + bytes(200) + tiff[middle + 200 :])
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "good.JPG").write_bytes(whole)
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path, names


def answers_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_pictures_are_told_as_well_as_mnists_own_images(trained_base, files):
    labels = read_idx("t10k-labels-idx1-ubyte")[:1000]
    network = mnist_cnn.load(trained_base)
    plain = network(read_idx("t10k-images-idx3-ubyte")[:1000]).argmax(-1) == labels
    answers = list(predict.answers(network, map(str, files)))
    assert [answer.file for answer in answers] == list(map(str, files))
    assert [answer.error for answer in answers] == [None] * 1000
    ours = np.array([answer.digit for answer in answers]) == labels
    print(f"plain {plain.mean():.1%}, pictures {ours.mean():.1%}")
    assert plain.mean() > 0.9
    assert ours.mean() >= plain.mean() - 0.015


def test_json_is_one_object_a_line_in_the_order_given(trained_base, files):
    given = [str(path) for path in files[:70]]  # more than a batch
    out, err = run("mnist_cnn.predict", "--workdir", trained_base, *given, "--json")
    answers = answers_of(out)
    assert err == "" and [answer["file"] for answer in answers] == given
    for answer in answers:
        assert list(answer) == ["file", "digit", "probability", "runner_up"]
        assert answer["digit"] != answer["runner_up"] and 0.1 <= answer["probability"] <= 1


def test_each_bad_file_has_its_line_and_the_others_are_answered(trained_base, bad):
    folder, names = bad
    out, err = run("mnist_cnn.predict", "--workdir", trained_base, "--json", folder, status=1)
    answers = answers_of(out)
    assert err == ""
    assert [pathlib.Path(a["file"]).name for a in answers] == sorted([*names, "good.JPG"])
    assert [pathlib.Path(a["file"]).name for a in answers if "error" in a] == names
    assert next(a["digit"] for a in answers if "digit" in a) == 7

    out, err = run(
        "mnist_cnn.predict", "--workdir", trained_base, folder, "nowhere.png", "/dev/zero", status=1
    )
    assert len(out.splitlines()) == 1 and "good.JPG: 7" in out
    assert len(err.splitlines()) == len(names) + 2
    assert "\x1b" not in err and "new\\nline\\x1b[31m.png" in err
    for said in (
        "empty.png: the file is empty", "text.png: no picture", "truncated.jpg: damaged",
        "blank.png: no digit found", "bomb.png: larger than", "nowhere.png: no such file",
        "/dev/zero: it is no regular file",
    ):  # fmt: skip
        assert said in err


def test_names_come_from_standard_input(trained_base, files):
    process = subprocess.run(
        [sys.executable, "-m", "mnist_cnn.predict", "--workdir", trained_base, "--json", "-"],
        input="\n".join(map(str, files[:3])).encode() + b"\nno\xff.png\n", capture_output=True,
    )  # fmt: skip
    answers = answers_of(process.stdout)
    assert process.returncode == 1
    assert [os.fsencode(a["file"]) for a in answers] == [
        *(bytes(path) for path in files[:3]), b"no\xff.png",
    ]  # fmt: skip


def test_what_the_network_saw_is_shown_and_saved(trained_base, files, tmp_path):
    out, _ = run(
        "mnist_cnn.predict", "--workdir", trained_base, "--show", files[0], files[1],
        "--save_inputs", tmp_path / "seen",
    )  # fmt: skip
    saved = sorted((tmp_path / "seen").iterdir())
    assert [path.name for path in saved] == ["00001-0000.png", "00002-0001.png"]
    seen = np.asarray(Image.open(saved[0]))
    assert (seen == mnist_form(pictures.read(files[0]))).all()
    assert predict.blocks(seen) in out and "█" in out
    assert len(out.splitlines()) == 2 * (1 + 14)


def test_on_a_terminal_the_blocks_come_by_themselves(trained_base, files):
    controller, terminal = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "mnist_cnn.predict", "--workdir", trained_base, files[0]],
        stdout=terminal, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert process.returncode == 0 and shown.count("\n") == 15 and "█" in shown


def test_one_program_serves_every_number_of_pictures(trained_base, files):

    network = mnist_cnn.load(trained_base)
    list(predict.answers(network, [str(files[0])]))
    compiled = evaluate.logits_of._cache_size()
    for count in (2, 63, 64, 65, 130):
        assert len(list(predict.answers(network, map(str, files[:count])))) == count
    assert evaluate.logits_of._cache_size() == compiled


def test_a_long_list_is_never_held_whole(trained_base, files):
    network = mnist_cnn.load(trained_base)
    asked = 0

    def names():
        nonlocal asked
        for _ in range(10_000):
            asked += 1
            yield str(files[0])

    next(predict.answers(network, names()))
    assert asked <= 2 * predict.BATCH_SIZE


def test_mnists_own_images_are_answered_exactly_as_by_evaluate(trained_base, tmp_path):
    images = read_idx("t10k-images-idx3-ubyte")[:1000]
    names = [str(tmp_path / f"{index}.png") for index in range(1000)]
    for image, name in zip(images, names, strict=True):
        Image.fromarray(image[..., 0]).save(name)
    network = mnist_cnn.load(trained_base)
    answers = list(predict.answers(network, names))
    assert [answer.digit for answer in answers] == network(images).argmax(-1).tolist()


def test_predict_imports_neither_plots_nor_datasets_nor_pages(trained_base, files):
    names = imported_by("mnist_cnn.predict", "--workdir", trained_base, files[0])
    assert not {"matplotlib", "tensorflow_datasets", "gradio", "tensorflow", "pandas"} & names
    assert {"jax", "PIL"} <= names


def test_a_copied_directory_answers_as_the_original(trained_base, files, tmp_path):
    """Only what the network is made of: config and checkpoint, in another place, read-only."""
    import shutil

    for name in ("config.json", "checkpoints"):
        source = trained_base / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    here, _ = run("mnist_cnn.predict", "--workdir", trained_base, "--json", files[5])
    there, _ = run("mnist_cnn.predict", "--workdir", ".", "--json", files[5], cwd=tmp_path,
                   PYTHONPATH=str(ROOT))  # fmt: skip
    assert here == there


def test_an_experiments_own_module_needs_its_config(tiny_experiment, files, tmp_path):
    run("mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path / "run")
    command = ("mnist_cnn.predict", "--workdir", tmp_path / "run", files[0])
    _, err = run(*command, status=1)
    assert len(err.splitlines()) == 1 and "--config EXPERIMENT" in err
    out, _ = run(*command, "--config", tiny_experiment)
    assert f"{files[0].name}: " in out


@pytest.mark.parametrize("arguments", [[], ["--workdir", "x"], ["--workdir", "x", "--nonsense"]])
def test_bad_usage_is_one_line_and_status_2(arguments):
    out, err = run("mnist_cnn.predict", *arguments, status=2)
    assert out == "" and len(err.splitlines()) == 1


def test_a_pickle_is_no_picture(trained_base, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "trap.png").write_bytes((tmp_path / "trap.npy").read_bytes())
    run("mnist_cnn.predict", "--workdir", trained_base, tmp_path / "trap.png", status=1)
    assert not (tmp_path / "sprung").exists()
    eps = io.BytesIO()  # what Pillow would hand to Ghostscript
    Image.new("RGB", (50, 50)).save(eps, "EPS")
    (tmp_path / "page.png").write_bytes(eps.getvalue())
    _, err = run("mnist_cnn.predict", "--workdir", trained_base, tmp_path / "page.png", status=1)
    assert "expected PNG, JPEG" in err
