"""A model, loss or optimizer that cannot work is one line that names its place, before a step."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, config_of, run

import mnist_cnn
from mnist_cnn.errors import ConfigError
from mnist_cnn.models.apply import as_logits, forward
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.component_checks import check_components
from mnist_cnn.training import batches
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import train_step

FILE = """
import functools
from typing import Any
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen as nn
import mnist_cnn

cross_entropy = optax.softmax_cross_entropy_with_integer_labels

class Net(nn.Module):
    outputs: int = 10

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.outputs)(images.reshape(images.shape[0], -1))

class With(Net):
    table: Any = None

{code}

def get_config():
    return mnist_cnn.experiment(name="own", {fields})
"""


def module(body, signature="self, images", base="nn.Module"):
    lines = body.replace("\n", "\n        ")
    start = f"class Own({base}):  # here\n    @nn.compact\n"
    return f"{start}    def __call__({signature}):\n        {lines}"


def function(name, signature, body):
    return f"def {name}({signature}):  # here\n    {body}"


def write(folder, fields, code=""):
    """Writes an experiment file; returns it and the line that its error should name."""
    path = folder / "own.py"
    content = FILE.format(code=code, fields=fields)
    lines = content.splitlines()
    marked = next((n for n, line in enumerate(lines, 1) if "# here" in line), len(lines))
    path.write_text(content)
    return path, marked


LOSS = "loss=own"
OPTIMIZER = "optimizer=own"
MODEL = "model=Own()"
REFUSED = {
    "loss [B, 1]": (
        LOSS, function("own", "logits, labels", "return cross_entropy(logits, labels)[:, None]"),
        "config.loss", "returned float32 [7, 1] for logits [7, 10], expected a float for each",
    ),
    "scalar loss": (
        LOSS, function("own", "logits, labels", "return cross_entropy(logits, labels).mean()"),
        "config.loss", "returned float32 [] for logits [7, 10], expected a float for each image",
    ),
    "loss of integers": (
        LOSS, function("own", "logits, labels", "return labels"),
        "config.loss", "returned int32 [7]",
    ),
    "loss None": (LOSS, function("own", "x, labels", "pass"), "config.loss", "returned None"),
    "loss that fails": (
        LOSS, "def own(x, labels):\n    return optax.softmax_cross_entropy(x, labels)  # here",
        "config.loss", "ValueError: Incompatible shapes",
    ),
    "library's loss": (
        "loss=functools.partial(optax.softmax_cross_entropy)", "",
        "config.loss", "ValueError: Incompatible shapes",
    ),
    "9 outputs": ("model=Net(9) # here\n", "", "config.model", "[B, 9], expected logits [B, 10]"),
    "1 output": ("model=Net(1) # here\n", "", "config.model", "[B, 1], expected logits [B, 10]"),
    "11 outputs": ("model=Net(11) # here\n", "", "config.model", "[B, 11], expected logits"),
    "two results": (
        MODEL, module("return Net()(images), images"), "config.model", "returned a tuple, expected",
    ),
    "integers": (
        MODEL, module("return Net()(images).astype(jnp.int32)"), "config.model", "array of int32",
    ),
    "**kwargs": (
        MODEL, module("return Net()(images)", "self, images, **kwargs"),
        "config.model", "`__call__` of Own has **kwargs and no argument `train`",
    ),
    "dict": (
        "model=With(table={'a': 1}) # here\n", "",
        "config.model", "the field table of With is {'a': 1}, which cannot be hashed",
    ),
    "array": (
        "model=With(table=np.zeros((300, 300)))", "",
        "config.model", "field table of With is an object of type ndarray of shape [300, 300]",
    ),
    "class": ("model=Net", "", "config.model", "got Net, expected an object of a flax."),
    "no parameters": (
        MODEL, module("return images.reshape(-1, 784)[:, :10]"), "config.model", "no parameters",
    ),
    "collection": (
        MODEL,
        module("self.variable('cache', 'n', lambda: jnp.zeros(3))\nreturn Net()(images)"),
        "config.model", "Own has variables in cache; expected params and batch_stats only",
    ),
    "random numbers": (
        MODEL,
        module("return Net()(images) + jax.random.normal(self.make_rng('noise'))# here")
        .replace("# here", "", 1),
        "config.model", "needs random numbers of 'noise'; there are only those of 'dropout'",
    ),
    "mistake": (
        MODEL,
        module("return images @ jnp.zeros((4, 5))  # here").replace("# here", "", 1),
        "config.model", "TypeError: dot_general requires",
    ),
    "optimizer None": (
        OPTIMIZER, function("own", "rate", "optax.sgd(rate)"),
        "config.optimizer", "returned None, expected an optax.GradientTransformation",
    ),
    "optimizer's argument": (
        "optimizer=functools.partial(optax.sgd, bogus=1) # here\n", "",
        "config.optimizer", "TypeError: sgd() got an unexpected keyword argument 'bogus'",
    ),
    "optimizer that changes": (
        OPTIMIZER,
        function("own", "rate", "return optax.GradientTransformation("
                 "lambda p: jnp.zeros(3), lambda g, s, p: (g, jnp.zeros(4)))"),
        "config.optimizer", "its state or the parameters change shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line_with_key_file_and_line(name, tmp_path):
    fields, code, key, said = REFUSED[name]
    path, line = write(tmp_path, fields, code)
    with pytest.raises(ConfigError) as error:
        check_components(config_of(path), str(path))
    text = str(error.value)
    assert text.startswith(f"{key} ({path}, line ") and said in text
    assert "\n" not in text and len(text) < 400 + len(str(path)) and " at 0x" not in text
    number = int(re.search(r"line (\d+)\)", text)[1])
    content = path.read_text().splitlines()
    if (
        "model=Net" in fields
    ):  # where it is defined, unlike an object that is found where it is made
        line = content.index("class Net(nn.Module):") + 1
    assert number == line, content[number - 1]


WRONG_LOSS = (*REFUSED["loss [B, 1]"][:2], "config.loss")
MORE_ROWS = (MODEL, module("x = Net(40)(images)\nreturn x.reshape(-1, 10)"), "config.model")


@pytest.mark.parametrize(
    ("experiment", "smoke"), [(WRONG_LOSS, False), (WRONG_LOSS, True), (MORE_ROWS, False)]
)
@pytest.mark.slow
def test_a_run_and_the_smoke_check_end_before_anything_is_written(experiment, smoke, tmp_path):
    fields, code, key = experiment
    path, line = write(tmp_path, fields, code)
    out, err = run(
        "mnist_cnn.main", "--config", path.name, *(["--config.smoke"] if smoke else []),
        cwd=tmp_path, status=2, PYTHONPATH=str(mnist_cnn.__path__[0]) + "/..",
    )  # fmt: skip
    assert err.startswith(f"error: {key} (own.py, line {line}): ") and err.count("\n") == 1
    assert smoke or "training images" not in out  # the smoke check names the data first
    assert "compile" not in out
    assert {entry.name for entry in tmp_path.iterdir()} <= {"own.py", "__pycache__", "runs"}
    assert not list(tmp_path.glob("runs/*"))


def test_without_an_experiment_file_the_line_of_the_definition_is_named(tmp_path):
    def own(logits, labels):
        return logits

    line = own.__code__.co_firstlineno
    with pytest.raises(ConfigError, match=rf"config\.loss \(.*test_component.*py, line {line}\)"):
        mnist_cnn.run(mnist_cnn.experiment(loss=own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


LAYERS = """x = nn.Dense(8)(images.reshape(images.shape[0], -1))
x = nn.BatchNorm(use_running_average=NOT)(x)
x = nn.Dropout(0.5, deterministic=NOT)(x)
return nn.Dense(10)(x)"""


def own_network(folder, argument, value, **fields):
    code = module(LAYERS.replace("NOT", value), f"self, images, {argument}")
    return config_of(write(folder, MODEL, code)[0], **fields)


def after_two_steps(config, images):
    """The digest of the variables, and the logits in evaluation."""
    state = create_state(config)
    for _ in range(2):
        state, _ = train_step(state, batches.take(images, jnp.arange(30)))
    logits = forward(state.model, state.variables, images.images)
    return sha256(state.variables), sha256({"logits": logits})


@pytest.fixture(scope="module")
def trained_by_train(hundred_images, tmp_path_factory):
    config = own_network(tmp_path_factory.mktemp("own"), "train=False", "not train")
    return after_two_steps(config, hundred_images)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        pytest.param("deterministic=True", "deterministic", marks=pytest.mark.slow),
        pytest.param("training=False", "not training", marks=pytest.mark.slow),
        pytest.param("is_training=False", "not is_training", marks=pytest.mark.slow),
        pytest.param("*, deterministic", "deterministic", marks=pytest.mark.slow),
        pytest.param("use_running_average=True", "use_running_average", marks=pytest.mark.slow),
        pytest.param(
            "train=False, deterministic=True", "deterministic or not train", marks=pytest.mark.slow
        ),
    ],
)
def test_modules_that_name_train_otherwise_train_to_the_same_bits(
    argument, value, trained_by_train, hundred_images, tmp_path
):
    config = own_network(tmp_path, argument, value)
    assert check_components(config) == []
    assert after_two_steps(config, hundred_images) == trained_by_train


def test_a_note_names_the_layers_that_never_train(tmp_path):
    config = own_network(tmp_path, "evaluate=True", "evaluate")
    (note,) = check_components(config, str(tmp_path / "own.py"))
    assert note.startswith("note: config.model (") and "own.py, line 20)" in note
    assert "BatchNorm_0, Dropout_0; if that is not intended" in note
    assert check_components(own_network(tmp_path, "train=False", "not train")) == []


@pytest.mark.parametrize("last", ["nn.softmax", "nn.sigmoid", "nn.log_softmax", "nn.relu", ""])
def test_a_note_says_that_outputs_are_probabilities(last, tmp_path):
    path, line = write(tmp_path, MODEL, module(f"return {last}(Net()(images))"))
    notes = check_components(config_of(path), str(path))
    if last in ("nn.softmax", "nn.sigmoid"):
        assert len(notes) == 1 and f"({path}, line {line}): its outputs are prob" in notes[0]
    else:
        assert notes == []


@pytest.mark.slow
def test_the_note_is_printed_before_the_first_step(small_mnist, tmp_path):
    fields = f"{MODEL}, manual_dir={str(small_mnist)!r}, num_steps=1, report=False"
    path, _ = write(tmp_path, fields, module("return nn.softmax(Net()(images))"))
    out, _ = run("mnist_cnn.main", "--config", path, "--workdir", tmp_path / "run")
    assert 0 < out.index("its outputs are probabilities") < out.index("step 1")


@pytest.mark.parametrize(
    "fields",
    [
        "model=nn.remat(Net)()", "model=nn.Sequential((Net(), nn.log_softmax))", "model=Own()",
        "model=Net(), optimizer=optax.inject_hyperparams(optax.sgd), schedule='cosine'",
        "optimizer=lambda rate: optax.MultiSteps(optax.adam(rate), 2).gradient_transformation()",
    ],
)  # fmt: skip
def test_unusual_components_that_work_are_accepted(fields, tmp_path):
    body = "x = nn.BatchNorm(use_running_average=not train, axis_name='data')(images)"
    code = module(f"{body}\nreturn Net()(x)", "self, images, train")
    path, _ = write(tmp_path, fields, code)
    assert check_components(config_of(path), str(path)) == []


@pytest.mark.slow
def test_the_experiments_of_the_repository_give_no_notes():
    for path in sorted((ROOT / "experiments").glob("*.py")):
        config = config_of(path)
        assert check_components(config) == [], path


def test_an_array_of_labels_is_no_logits():
    """The checks hold at every trace, not only before a run."""
    with pytest.raises(ConfigError, match="returned an array of int32, expected logits"):
        as_logits(np.zeros((3, 10), np.int32))
