"""Fields of an experiment's own module, set on the command line: typed, checked and recorded."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import config_of, result_of, run
from flax import linen as nn, nnx

import mnist_cnn
from mnist_cnn.analysis import finished_runs, run_settings
from mnist_cnn.config import model_fields
from mnist_cnn.errors import CheckpointError, ConfigError
from mnist_cnn.runner import recorded_config

EXPERIMENT = """
import mnist_cnn
from flax import linen as nn

class Net(nn.Module):
    hidden: int = 16
    rate: float = 0

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.relu(nn.Dense(self.hidden)(images.reshape(images.shape[0], -1))))

def get_config():
    return mnist_cnn.experiment(
        name="net", model=Net(), manual_dir={manual_dir!r}, num_steps=4, report=False
    )
"""


class Net(nn.Module):
    hidden: int = 16
    rate: float = 0
    widths: tuple[int, ...] = (4, 5)
    flag: bool = False
    kind: str = "a"
    maybe: int | None = None
    activation: object = nn.relu


class Nnx(nnx.Module):
    def __init__(self, filters, bias=True, *, rngs):
        self.dense = nnx.Linear(784, filters, use_bias=bias, rngs=rngs)


def make(rngs, width: int = 7):
    return Nnx(width, rngs=rngs)


@pytest.mark.parametrize(
    ("model", "name", "text", "value"),
    [
        (Net(), "hidden", "64", 64), (Net(), "rate", "0.5", 0.5), (Net(), "rate", "1", 1),
        (Net(), "widths", "(1, 2, 3)", (1, 2, 3)), (Net(), "widths", "[1]", (1,)),
        (Net(), "flag", "true", True), (Net(), "kind", "1", "1"), (Net(), "maybe", "3", 3),
        (Net(maybe=3), "maybe", "None", None), (functools.partial(Nnx, 16), "filters", "32", 32),
        (functools.partial(Nnx, filters=16), "filters", "32", 32), (make, "width", "9", 9),
        (functools.partial(Nnx, 16), "bias", "False", False),
        (nnx.bridge.ToLinen(Nnx, (16,)), "filters", "8", 8),
    ],
)  # fmt: skip
def test_value_of_a_field_has_the_type_of_the_present_one(model, name, text, value):
    before = recorded_config.describe(model)
    changed = model_fields.with_text(model, name, text)
    found = model_fields.values(changed)
    assert found == model_fields.values(model) | {name: value}
    assert type(found[name]) is type(value) or name == "rate"
    assert recorded_config.describe(changed) != before == recorded_config.describe(model)
    same = model_fields.with_field(model, name, model_fields.values(model)[name])
    assert same is model


@pytest.mark.parametrize(
    ("model", "name", "text", "said"),
    [
        (
            Net(),
            "hiden",
            "3",
            "config.model.hiden: the model has no such field; did you mean 'hidde",
        ),
        (Net(), "zz", "3", "its fields are hidden, rate, widths, flag, kind, maybe, activation"),
        (Net(), "hidden", "6.5", "got '6.5', expected an integer, as the experiment's 16"),
        (Net(), "hidden", "None", "got 'None', expected an integer"),
        (Net(), "rate", "many", "got 'many', expected a number"),
        (Net(), "widths", "3", "got 3, expected a tuple, such as (32, 64), of the same kind"),
        (Net(), "widths", "(1, 'a')", "got (1, 'a'), expected a tuple"),
        (Net(), "flag", "2", "got '2', expected True or False"),
        (Net(), "maybe", "x", "got 'x', expected an integer"),
        (
            Net(),
            "activation",
            "tanh",
            "relu is no number, string or tuple; set it in the experiment",
        ),
        (functools.partial(Nnx, 16), "filter", "3", "did you mean 'filters'?"),
        ("cnn", "hidden", "3", "the model is 'cnn', which has no fields to set"),
    ],
)
def test_wrong_field_or_value_is_refused_in_one_line(model, name, text, said):
    with pytest.raises(ConfigError) as error:
        model_fields.with_text(model, name, text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_may_vary_a_function_in_a_field():
    assert model_fields.with_field(Net(), "activation", nn.tanh).activation is nn.tanh
    with pytest.raises(ConfigError, match="expected an object like it"):
        model_fields.with_field(Net(), "activation", 3)


@pytest.fixture(scope="module")
def two_runs(small_mnist, tmp_path_factory):
    """The experiment file, and its runs with hidden=8, from the command line, and hidden=16."""
    folder = tmp_path_factory.mktemp("model_fields")
    path = folder / "net.py"
    path.write_text(EXPERIMENT.format(manual_dir=str(small_mnist)))
    run("mnist_cnn.main", "--config", path, "--config.model.hidden", "8", "--workdir", folder / "8")
    mnist_cnn.run(config_of(path), folder / "16")
    return path, folder / "8", folder / "16"


@pytest.mark.slow
def test_field_from_the_command_line_is_that_of_the_network_and_recorded_by_value(two_runs):
    path, eight, _ = two_runs
    saved = json.loads((eight / "config.json").read_text())
    assert saved["model_fields"] == {"hidden": 8, "rate": 0} and "hidden = 8" in saved["model"]
    for config in (config_of(path), with_hidden(config_of(path), 8)):  # forgotten, or given again
        network = mnist_cnn.load(eight, config)
        assert network.model.hidden == 8 and network.params["Dense_1"]["kernel"].shape == (784, 8)
    out, _ = run("mnist_cnn.evaluate", "--workdir", eight, "--config", path, "--json")
    assert json.loads(out)["accuracy"] == result_of(eight)["test"]["accuracy"][0]


def with_hidden(config, hidden):
    with config.ignore_type():
        config.model = model_fields.with_field(config.model, "hidden", hidden)
    return config


@pytest.mark.slow
def test_another_field_does_not_resume_the_run(two_runs):
    path, eight, _ = two_runs
    with pytest.raises(ConfigError, match=r"another configuration \(model.hidden: was 8, now 16\)"):
        mnist_cnn.run(config_of(path), eight)
    assert mnist_cnn.run(with_hidden(config_of(path), 8), eight)["status"] == "finished"


@pytest.mark.slow
def test_field_is_in_the_labels_of_a_comparison(two_runs):
    settings = run_settings.settings_of([finished_runs.read(path) for path in two_runs[1:]])
    assert [one.label for one in settings] == ["net, model.hidden=8", "net, model.hidden=16"]


@pytest.mark.slow
def test_run_from_before_the_record_of_fields_is_read_as_it_was(two_runs, tmp_path):
    path, eight, sixteen = two_runs
    for one in (eight, sixteen):
        shutil.copytree(one, tmp_path / one.name)
        saved = json.loads((one / "config.json").read_text())
        new = ("model_fields", "variants", "sweep_method")
        old = {key: value for key, value in saved.items() if key not in new}
        (tmp_path / one.name / "config.json").write_text(json.dumps(old))
    assert mnist_cnn.run(config_of(path), tmp_path / "16")["status"] == "finished"
    network, same = (mnist_cnn.load(one, config_of(path)) for one in (sixteen, tmp_path / "16"))
    jax.tree.map(np.testing.assert_array_equal, network.variables, same.variables)
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        mnist_cnn.load(tmp_path / "8", config_of(path))
    settings = run_settings.settings_of([*map(finished_runs.read, (sixteen, tmp_path / "16"))])
    assert len({repr(run.setting) for one in settings for run in one.runs}) == 1
