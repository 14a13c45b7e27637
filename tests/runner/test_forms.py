"""Images of other sizes, with colours and other classes, from training to every command."""

import json
import re

import forms
import jax
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn, nnx
from PIL import Image
from safetensors import safe_open

import mnist_cnn
from mnist_cnn import report, statistics
from mnist_cnn.analysis import answers, evaluation_text, export_formats
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import CheckpointError, ConfigError, DataError
from mnist_cnn.models.cnn import CNN
from mnist_cnn.runner import loop, predictions, smoke
from mnist_cnn.runner.blocks import blocks
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.run_directory import RunDirectory
from mnist_cnn.training import augment


class Own(nn.Module):
    """A network of an experiment that takes the number of classes from the data."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(images)), (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class OwnNnx(nnx.Module):
    """One of NNX, whose constructor needs the size of its images too."""

    def __init__(self, num_classes, image_shape, rngs):
        self.dense = nnx.Linear(int(np.prod(image_shape)), num_classes, rngs=rngs)

    def __call__(self, images):
        return self.dense(images.reshape(images.shape[0], -1))


MODELS = {"cnn": "cnn", "own": Own(), "nnx": OwnNnx}
FORMS = [
    pytest.param(("grey", "cnn"), marks=pytest.mark.slow),
    ("coloured", "own"),
    pytest.param(("coloured", "cnn"), marks=pytest.mark.slow),
]
SPECS = {"grey": forms.GREY, "coloured": forms.COLOURED}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    return {name: forms.make_manual_dir(root / name, spec) for name, spec in SPECS.items()}


def experiment(folder, model="cnn", **changes):
    fields = {"num_steps": 12, "eval_batch_size": 40, "rotation": 5.0, "shift": 1.0} | changes
    return mnist_cnn.experiment(manual_dir=str(folder), model=MODELS.get(model, model), **fields)


def train(config, workdir):
    return loop.run(config, workdir, console=Console(quiet=True), write_report=report.write)


@pytest.fixture(scope="module", params=FORMS)
def trained(request, folders, tmp_path_factory):
    """The form's name, its config and a finished run of it."""
    name, model = request.param
    config = experiment(folders[name], model)
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(config, workdir)
    return name, config, workdir


def test_a_network_learns_the_classes_of_its_data(trained):
    name, _, workdir = trained
    spec, result = SPECS[name], json.loads((workdir / "result.json").read_text())
    assert result["test"]["examples"] == 10 * spec.num_classes
    assert result["test"]["accuracy"][0] > 2 / spec.num_classes
    assert RunDirectory(workdir).read_spec() == spec
    stored = predictions.read(RunDirectory(workdir))
    assert stored.logits.shape == (1, 10 * spec.num_classes, spec.num_classes)
    shape = spec.image_shape if name == "coloured" else spec.image_shape[:2]
    assert stored.images.shape[1:] == shape
    assert stored.filters.shape[3:] == shape[2:] and len(stored.filters) in (4, 32)


def test_evaluation_names_the_classes_and_repeats_the_run(trained, capsys):
    name, config, workdir = trained
    metrics = evaluate(workdir, config=config)
    result = json.loads((workdir / "result.json").read_text())
    assert metrics["accuracy"] == result["test"]["accuracy"][0]
    names = SPECS[name].class_names
    assert tuple(row["class"] for row in metrics["classes"]) == names
    evaluation_text.show(Console(), metrics)
    out = capsys.readouterr().out
    assert all(f"| {one[:20]}" in re.sub(r"\| +", "| ", out) for one in names)


def test_the_report_shows_the_classes_by_their_names(trained):
    name, _, workdir = trained
    page = (workdir / "report.html").read_text()
    assert "<b>bag" not in page
    if name == "coloured":
        assert "Metrics per class" in page and "<th>&lt;b&gt;bag</th>" in page
        assert "<th>a name of thirty-one characters</th>" in page
    assert page.count("<figure>") == 6


def test_a_loaded_network_takes_images_of_its_form_only(trained):
    name, config, workdir = trained
    network, spec = mnist_cnn.load(workdir, config), SPECS[name]
    images, labels = forms.examples(spec, "test")
    accuracy = (network(images).argmax(-1) == labels).mean()
    assert accuracy == json.loads((workdir / "result.json").read_text())["test"]["accuracy"][0]
    shape = ", ".join(map(str, spec.image_shape))
    with pytest.raises(ValueError, match=re.escape(f"expected uint8 [N, {shape}]")):
        network(np.zeros((1, 28, 28, 1), np.uint8))


def test_exports_have_the_form_of_the_data(trained, tmp_path):
    name, config, workdir = trained
    network, spec = mnist_cnn.load(workdir, config), SPECS[name]
    images = forms.examples(spec, "test")[0][:5]
    logits = network(images)
    program = jax.export.deserialize(bytearray(export_formats.stablehlo(network)))
    np.testing.assert_allclose(program.call(images), logits, atol=1e-5)
    (tmp_path / "weights.safetensors").write_bytes(export_formats.safetensors(network))
    with safe_open(tmp_path / "weights.safetensors", "np") as file:
        metadata = [file.metadata()]
    if config["model"] == "cnn":
        session = onnxruntime.InferenceSession(export_formats.onnx(network))
        np.testing.assert_allclose(session.run(None, {"images": images})[0], logits, atol=1e-5)
        assert session.get_inputs()[0].shape == ["N", *spec.image_shape]
        metadata.append(session.get_modelmeta().custom_metadata_map)
    for one in metadata:
        assert tuple(json.loads(one["class_names"])) == spec.class_names
        assert tuple(json.loads(one["image_shape"])) == spec.image_shape


def test_pictures_are_answered_by_the_names_of_the_classes(trained, tmp_path):
    name, config, workdir = trained
    network, spec = mnist_cnn.load(workdir, config), SPECS[name]
    images, _ = forms.examples(spec, "test")
    height, width, _ = spec.image_shape
    files = [str(tmp_path / f"{n}.png") for n in (1, 2)]
    Image.fromarray(images[0].squeeze()).save(files[0])
    large = Image.fromarray(images[0].squeeze()).resize((4 * width, 4 * height), Image.NEAREST)
    large.save(files[1])
    exact, scaled = answers.answers(network, files)
    assert np.array_equal(exact.seen, images[0].squeeze())
    assert exact.digit == network(images[:1]).argmax()
    assert scaled.seen.shape == exact.seen.shape
    assert np.abs(scaled.seen.astype(int) - exact.seen).mean() < 20
    found = json.loads(exact.as_json())
    assert found["class"] == spec.class_names[found["digit"]]
    assert found["runner_up_class"] == spec.class_names[found["runner_up"]]
    assert f"1.png: {found['class']}  " in exact.as_text()
    assert len(blocks(exact.seen).splitlines()) == height // 2


@pytest.mark.slow
def test_an_nnx_network_receives_classes_and_size(folders, tmp_path):
    config = experiment(folders["coloured"], "nnx", num_steps=3, report=False)
    train(config, tmp_path / "run")
    assert mnist_cnn.load(tmp_path / "run", config).params["dense"]["kernel"].shape == (768, 12)


def test_an_own_network_that_ignores_the_number_of_classes_is_refused(folders, tmp_path):
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(10)(images.reshape(images.shape[0], -1))

    for check in (lambda c: train(c, tmp_path / "run"), lambda c: smoke.check(c, Console(True))):
        with pytest.raises(ConfigError) as error:
            check(experiment(folders["coloured"], Fixed()))
        text = str(error.value)
        assert "\n" not in text and "test_forms.py, line" in text
        assert "returned an array [B, 10], expected logits [B, 12]" in text
        assert "num_classes" in text
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_does_not_resume_with_data_of_another_form(folders, tmp_path):
    config = experiment(folders["grey"], "own", num_steps=2, report=False)
    train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="began with other images or labels"):
        train(experiment(folders["coloured"], "own", num_steps=2), tmp_path / "run")


def test_a_shift_beyond_the_image_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"shift: got 13, .* 0 to 12, .* 12 x 10 pixels"):
        train(experiment(folders["grey"], shift=13.0), tmp_path / "run")
    sweep = {"sweep": {"shift": [1.0, 13.0]}, "validation_split": "train[80:]"}
    with pytest.raises(ConfigError, match=r"sweep: shift: got 13, expected .* 0 to 12"):
        train(experiment(folders["grey"], train_split="train[:80]", **sweep), tmp_path / "run")


@pytest.mark.slow
def test_the_smoke_check_works_on_other_images(folders, capsys):
    assert smoke.check(experiment(folders["coloured"], "own"), Console())
    assert capsys.readouterr().out.count("\n") == 8


def test_a_network_is_not_scored_on_data_of_another_form(trained, folders):
    name, config, workdir = trained
    other = folders["grey" if name == "coloured" else "coloured"]
    with pytest.raises(DataError, match=r"the images of .* are \d+ x \d+ x \d, the network's"):
        evaluate(workdir, manual_dir=str(other), config=config)


def test_a_damaged_record_of_the_form_is_one_line(trained, tmp_path):
    record = {"data": {"image_shape": [16, 16], "class_names": ["a", "b"]}}
    (tmp_path / "environment.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"environment\.json: .*; restore"):
        RunDirectory(tmp_path).read_spec()


def test_older_run_directories_have_the_form_of_their_dataset(tmp_path):
    assert RunDirectory(tmp_path).read_spec() == MNIST
    (tmp_path / "config.json").write_text('{"dataset": "fashion_mnist"}')
    (tmp_path / "environment.json").write_text('{"data": {"origin": "tfds download"}}')
    assert RunDirectory(tmp_path).read_spec().class_names[9] == "Ankle boot"


@pytest.mark.slow
def test_the_number_of_classes_is_not_part_of_the_recorded_network(folders, tmp_path):
    """So that a run resumes when its experiment file gets the field."""
    config = experiment(folders["grey"], "own", num_steps=3, report=False)
    train(config, tmp_path / "run")
    assert RunDirectory(tmp_path / "run").read_config()["model"] == "Own()"
    train(
        experiment(folders["grey"], Own(num_classes=7), num_steps=4, report=False), tmp_path / "run"
    )


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (128, 101, 3)])
def test_the_built_in_network_takes_every_size(image_shape):
    spec = DataSpec(image_shape, tuple(map(str, range(256))))
    state = jax.eval_shape(lambda: mnist_cnn.create_state(mnist_cnn.experiment(), spec=spec))
    height, width, channels = image_shape
    assert state.params["conv1"]["kernel"].shape == (5, 5, channels, 32)
    assert state.params["dense1"]["kernel"].shape == (height // 4 * (width // 4) * 64, 1024)
    assert state.params["dense2"]["kernel"].shape == (1024, 256)
    assert state.model == CNN(num_classes=256, dtype="float32")


def test_a_table_of_very_many_classes_has_the_worst(capsys):
    labels = np.arange(512) % 256
    logits = np.eye(256)[np.where(labels < 19, 255, labels)]
    metrics = {"dataset": "own", "split": "test", "seed": 1, "step": 2, "metrics": [], "loss": 1.0}
    metrics |= {"accuracy": 0.5, "correct": 1, "examples": 512, "calibrated": None}
    metrics |= statistics.classification_metrics(logits, labels)
    metrics["classes"] = [{"class": f"c{n}"} | row for n, row in enumerate(metrics["classes"])]
    evaluation_text.show(Console(), metrics)
    out = capsys.readouterr().out
    assert "the 20 classes with the lowest recall, of 256" in out
    assert re.findall(r"\| +(c\d+) \|", out) == [f"c{n}" for n in range(20)]


@pytest.mark.slow
def test_augmentation_moves_all_channels_alike():
    images = jax.random.uniform(jax.random.key(0), (4, 16, 12, 3))
    matrix, offset = augment.draw(jax.random.key(1), {"rotation": 20.0, "zoom": 0.1, "shift": 2}, 4)
    together = augment.warp(images, matrix, offset)
    for channel in range(3):
        alone = augment.warp(images[..., channel : channel + 1], matrix, offset)
        np.testing.assert_array_equal(together[..., channel], alone[..., 0])
