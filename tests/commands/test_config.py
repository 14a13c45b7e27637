"""Configuration: what is legal is accepted, what is not is refused with a line that helps."""

import ast
import functools
import runpy
from typing import Any

import optax
import pytest
from conftest import ROOT, imported_by, run
from flax import linen as nn

import mnist_cnn
from mnist_cnn import command_line, config as config_lib
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import ConfigError
from mnist_cnn.runner import checks


def test_base_py_states_every_field_and_its_default():
    path = ROOT / "experiments" / "base.py"
    config = runpy.run_path(str(path))["get_config"]()
    stated = {
        keyword.arg
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }
    assert stated == set(config_lib.FIELDS)
    assert config.to_dict() == {k: field.default for k, field in config_lib.FIELDS.items()}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.learning_rat=1", "did you mean 'learning_rate'?"),
        ("--config.batch_size=-3", "got -3, expected an integer from 1 to 1,048,576"),
        ("--config.batch_size=many", "got 'many', expected an integer"),
        ("--config.batch_size=1.5", "got '1.5', expected an integer"),
        ("--config.batch_size", "got no value"),
        ("--config.learning_rate=nan", "expected a number above 0"),
        ("--config.learning_rate=0", "expected a number above 0"),
        ("--config.dataset=mnits", "expected mnist, fashion_mnist or kmnist"),
        ("--config.model=resnet", "expected cnn, or in an experiment file a flax.linen module"),
        ("--config.num_steps=0", "expected an integer from 1 to 2,147,483,647, or None"),
        ("--config.keep=1", "expected an integer from 2 to"),
        ("--config.report=maybe", "got 'maybe', expected True or False"),
        ("--config.name=../x", "expected a text of the form"),
    ],
)
def test_a_wrong_override_is_refused_with_the_legal_values(override, said):
    with pytest.raises(ConfigError) as error:
        command_line.check_overrides(["main", override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_legal_overrides_pass():
    command_line.check_overrides(
        "main --config.report --config.report=False --config.num_steps=None "
        "--config.learning_rate=1 --config.seed 7 "
        "--config.validation_split=train[55000:] --config=x.py --workdir=a=b".split()
    )


@pytest.mark.parametrize("key", ["train_split", "validation_split"])
def test_training_never_reads_the_test_split(key):
    with pytest.raises(ConfigError, match="read by the final evaluation alone"):
        config_lib.validate(mnist_cnn.experiment(**{key: "train+test"}))
    dataset = data.open_dataset("mnist")
    with pytest.raises(ConfigError, match="read by the final evaluation alone"):
        checks.check_splits(dataset, mnist_cnn.experiment(**{key: "all"}))


def test_objects_of_an_experiment_are_recorded_by_name():
    config = mnist_cnn.experiment(optimizer=functools.partial(optax.sgd, momentum=0.9))
    assert config_lib.as_dict(config)["optimizer"] == "sgd(momentum=0.9)"


def test_an_experiment_is_the_same_however_it_is_read():
    path = ROOT / "experiments" / "ensemble.py"
    read = [
        runpy.run_path(str(path), run_name=name)["get_config"]() for name in ("config_config", "a")
    ]
    one, other = map(config_lib.as_dict, read)
    assert one == other and one["optimizer"] == "optimizer"
    earlier = one | {"optimizer": "config_config.optimizer"}  # as versions before kept it
    assert config_lib.differences(earlier, one) == []
    assert config_lib.differences(one | {"optimizer": "another"}, one) != []
    assert config_lib.differences(one | {"name": "an.accuracy"}, one) != []


def test_what_is_recorded_of_an_object_is_the_same_in_the_next_process():
    def mask(params):
        return params

    class Callable:
        def __call__(self, learning_rate):
            return optax.sgd(learning_rate)

    for optimizer in (functools.partial(optax.adamw, mask=mask), Callable()):
        text = config_lib.describe(mnist_cnn.experiment(optimizer=optimizer)["optimizer"])
        assert "0x" not in text and ("mask" in text or "Callable" in text)


def test_the_order_of_a_sweep_is_part_of_it():
    grid = {"learning_rate": [1e-3, 1e-2], "b1": [0.5, 0.9]}
    halves = {"train_split": "train[:55000]", "validation_split": "train[55000:]"}
    one, other = (
        config_lib.as_dict(mnist_cnn.experiment(sweep={key: grid[key] for key in keys}, **halves))
        for keys in (("learning_rate", "b1"), ("b1", "learning_rate"))
    )
    assert config_lib.differences(one, one) == []
    assert len(config_lib.differences(one, other)) == 1


def test_any_field_of_an_experiment_can_be_given_as_the_checker_says(tmp_path):
    """None after a space, and a name in the place of an object."""
    out, _ = run(
        "mnist_cnn.main", "--config", ROOT / "experiments" / "mlp.py", "--config.optimizer=adam",
        "--config.validation_split", "None", "--config.num_steps", "3", "--config.num_steps",
        "none", "--config.optimizer", "adam", "--config.model=cnn", "--config.smoke",
    )  # fmt: skip
    assert "✓ evaluate" in out


class Listed(nn.Module):
    widths: Any = (3,)

    def __call__(self, images):
        return images.reshape(-1, 784)[:, :10]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Listed, "expected an object of a flax.linen module"),
        (Listed([3]), "tuples instead of lists"),
    ],
)
def test_a_model_that_cannot_be_compiled_is_refused_in_a_line(model, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as error:
        mnist_cnn.run(mnist_cnn.experiment(model=model), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_differences_name_the_key_and_both_values():
    old = config_lib.as_dict(mnist_cnn.experiment())
    new = mnist_cnn.experiment(seed=5, log_every=3, num_epochs=9, keep=4)
    assert config_lib.differences(old, config_lib.as_dict(new)) == ["seed: was 1337, now 5"]


BROKEN = {
    "missing.py": (None, "there is no such file"),
    "syntax.py": ("def get_config(:", "SyntaxError"),
    "raises.py": ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    "empty.py": ("", "get_config"),
    "key.py": (
        "import mnist_cnn\ndef get_config():\n    return mnist_cnn.experiment(bach_size=3)",
        "did you mean 'batch_size'?",
    ),
    "nothing.py": ("def get_config():\n    pass", "get_config() returned None"),
    "absent.py": ("def get_config():\n    open('no such')", "No such file or directory: 'no such'"),
    "bare.py": (
        "import ml_collections\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'seed': 3})",
        "lacks config.name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_experiment_file_is_refused_in_one_line_and_nothing_is_written(name, tmp_path):
    content, said = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    out, err = run(
        "mnist_cnn.main", "--config", tmp_path / name, "--workdir=new", cwd=tmp_path, status=2
    )
    assert out == ""
    assert err.startswith("error: ") and said in err and err.count("\n") == 1, err
    assert {path.name for path in tmp_path.iterdir()} <= {name, "__pycache__"}


def test_a_wrong_flag_is_refused_before_anything_heavy_is_imported():
    names = imported_by("mnist_cnn.main", "--config.batch_size=-3", status=2)
    assert not {"jax", "flax", "numpy", "tensorflow_datasets"} & names and "absl" in names


@pytest.mark.parametrize("arguments", [[], ["--workdri=x"], ["--config=experiments/base.py", "x"]])
def test_wrong_usage_is_one_line(arguments):
    out, err = run("mnist_cnn.main", *arguments, status=2)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
