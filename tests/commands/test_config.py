"""Configuration and command line: legal values work, others are refused in one useful line."""

import ast
import functools
import json
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
from typing import Any

import optax
import pytest
from conftest import ROOT, finish, imported_by, run, start
from flax import linen as nn

import mnist_cnn
from mnist_cnn import __main__, command_line, config as config_lib, files, report
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import ConfigError
from mnist_cnn.runner import checks, join, recorded_config, results

COMMANDS = ("main", "evaluate", "predict", "report", "export", "demo", "join")


def test_base_py_lists_every_field_with_its_default():
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
        ("--config.batch_size", "Missing value for flag --config.batch_size"),
        ("--config.learning_rate=nan", "expected a number above 0"),
        ("--config.learning_rate=0", "expected a number above 0"),
        ("--config.dataset=mnits", "expected mnist, fashion_mnist or kmnist"),
        (
            "--config.model=resnet",
            "expected cnn, compact or compact_views, or in an experiment file a flax.linen module",
        ),
        ("--config.num_steps=0", "expected an integer from 1 to 2,147,483,647, or None"),
        ("--config.keep=1", "expected an integer from 2 to"),
        ("--config.report=maybe", "got 'maybe', expected True or False"),
        ("--config.name=../x", "expected a string of the form"),
    ],
)
def test_wrong_override_is_refused_with_the_legal_values(override, said):
    with pytest.raises(ConfigError) as error:
        command_line.parse_flags(["main", override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_legal_overrides_are_parsed_wherever_they_stand_and_the_last_one_counts(tmp_path):
    (tmp_path / "flags").write_text("--config.seed=8\n--noconfig.profile\n")
    rest, overrides = command_line.split_overrides(
        "main --config.report --config.num_steps=None --config.learning_rate=1 --config.seed 7 "
        "--config=x.py --config.validation_split=train[55000:] --workdir=a=b image.png "
        f"--config.keep=3 -config.keep=4 --config.profile --flagfile={tmp_path / 'flags'}".split()
    )
    assert rest == ["main", "--config=x.py", "--workdir=a=b", "image.png"]
    assert overrides == {
        "report": True, "num_steps": None, "learning_rate": 1.0, "seed": 8, "keep": 4,
        "validation_split": "train[55000:]", "profile": False,
    }  # fmt: skip


def test_overrides_without_an_experiment_are_refused():
    for command in ("mnist_cnn.main", "mnist_cnn.predict"):
        _, err = run(command, "--config.num_steps=None", status=2)
        assert err == (
            "error: --config.num_steps: expected an experiment to change, --config FILE\n"
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--flagfile=missing"], "--flagfile: cannot be read ([Errno 2] No such file"),
        (["--flagfile", "."], "--flagfile: cannot be read ([Errno 21] Is a directory"),
        (["--flagfile=binary"], "--flagfile: cannot be read ('utf-8' codec"),
        (["--flagfile"], "--flagfile with no argument"),
        (["--flagfile=circular"], "--flagfile: a flag file includes itself"),
        (["--config=a.py", "--config", "b.py"], "--config: got a.py and b.py, expected one"),
        (["--config=a.py", "--flagfile=config"], "--config: got a.py and b.py, expected one"),
    ],
)
def test_flag_file_or_repeated_experiment_is_refused_in_one_line(arguments, said, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "circular").write_text("--flagfile=circular\n")
    (tmp_path / "config").write_text("--config=b.py\n")
    _, err = run("mnist_cnn.main", *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT), status=2)
    assert said in err and err.startswith("error: ") and err.count("\n") == 1, err


def test_flag_file_gives_an_experiment_and_its_overrides(tmp_path):
    (tmp_path / "flags").write_text("--config=experiments/base.py\n--config.seed=many\n")
    _, err = run("mnist_cnn.evaluate", f"--flagfile={tmp_path / 'flags'}", status=2)
    assert err.startswith("error: config.seed: got 'many'")


URL_FLAGS = (
    ("main", "--workdir"), ("main", "--config"), ("main", "--config.init_from"),
    ("main", "--config.manual_dir"), ("evaluate", "--workdir"), ("evaluate", "--manual_dir"),
    ("predict", "--workdir"), ("predict", "--save_inputs"), ("report", "--workdir"),
    ("report", "--output"), ("export", "--workdir"), ("export", "--output"), ("demo", "--workdir"),
    ("join", "--workdir"),
)  # fmt: skip


@pytest.mark.slow
def test_url_in_place_of_a_path_is_refused_at_once(tmp_path):
    """Nothing is made, in particular no folder that is named `gs:`."""
    base = ["--config", ROOT / "experiments" / "base.py"]
    processes = [
        start(
            f"mnist_cnn.{command}", *(base if command == "main" and flag != "--config" else []),
            f"{flag}=gs://bucket/x.safetensors", cwd=tmp_path, PYTHONPATH=str(ROOT),
        )
        for command, flag in URL_FLAGS
    ]  # fmt: skip
    for process, (_, flag) in zip(processes, URL_FLAGS, strict=True):
        _, err = finish(process, status=2)
        said = f"{flag.replace('--config.', 'config.')}: got 'gs://bucket/x.safetensors', expected"
        assert err == f"error: {said} a local path, not a URL\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3:/bucket/x", "file:///tmp/x", "HTTP://x/y"])
def test_url_from_python_is_refused_in_one_line(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = mnist_cnn.experiment
    for call in (
        lambda: mnist_cnn.run(experiment(), url),
        lambda: mnist_cnn.run(experiment(manual_dir=url), "x"),
        lambda: mnist_cnn.run(experiment(init_from=f"{url}.safetensors"), "x"),
        lambda: mnist_cnn.load(pathlib.Path(url)),
        lambda: report.write([url], "x.html"),
        lambda: report.write(["x"], url),
        lambda: join.join(["x", "y"], url),
    ):
        with pytest.raises(ConfigError, match=r"got .*, expected a local path, not a URL$"):
            call()
    assert not list(tmp_path.iterdir())


def test_home_directory_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, expected in {
        "~/x": tmp_path / "x", pathlib.Path("~/x"): tmp_path / "x", "~": tmp_path,
        "x/~": pathlib.Path("x/~"), "a:b/c": pathlib.Path("a:b/c"), "/x": pathlib.Path("/x"),
    }.items():  # fmt: skip
        assert files.local_path(path, "name") == expected
    with pytest.raises(ConfigError, match="no such home directory; give the whole path"):
        files.local_path("~nobody-has-this-name/x", "name")
    (tmp_path / "e.py").write_text(
        "import mnist_cnn\ndef get_config():\n    return mnist_cnn.experiment()\n"
    )
    _, err = run("mnist_cnn.main", "--config=~/e.py", "--config.train_split=x", status=1)
    assert "split 'x' selects no examples" in err


def test_package_lists_its_commands_and_runs_them():
    out, err = run("mnist_cnn")
    assert err == "" and __main__.COMMANDS == COMMANDS
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", out, re.MULTILINE)
    assert run("mnist_cnn", "evaluate", "--wrong", status=2)[1] == (
        "error: Unknown command line flag 'wrong'\n"
    )
    _, err = run("mnist_cnn", "train", status=2)
    assert err.startswith("error: 'train' is no command; choose from main, ")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"mnist_cnn": "mnist_cnn.__main__:main"}


@pytest.mark.parametrize("key", ["train_split", "validation_split"])
def test_training_never_reads_the_test_split(key):
    with pytest.raises(ConfigError, match="only the final evaluation reads the test split"):
        config_lib.validate(mnist_cnn.experiment(**{key: "train+test"}))
    dataset = data.open_dataset("mnist")
    with pytest.raises(ConfigError, match="only the final evaluation reads the test split"):
        checks.check_splits(dataset, mnist_cnn.experiment(**{key: "all"}))


def test_objects_in_an_experiment_are_recorded_by_name():
    config = mnist_cnn.experiment(optimizer=functools.partial(optax.sgd, momentum=0.9))
    assert recorded_config.as_dict(config)["optimizer"] == "sgd(momentum=0.9)"


def test_experiment_is_recorded_the_same_whichever_way_it_is_loaded():
    path = ROOT / "experiments" / "ensemble.py"
    read = [
        runpy.run_path(str(path), run_name=name)["get_config"]() for name in ("config_config", "a")
    ]
    one, other = map(recorded_config.as_dict, read)
    assert one == other and one["optimizer"] == "optimizer"
    earlier = one | {"optimizer": "config_config.optimizer"}  # as older versions recorded it
    assert recorded_config.differences(earlier, one) == []
    assert recorded_config.differences(one | {"optimizer": "another"}, one) != []
    assert recorded_config.differences(one | {"name": "an.accuracy"}, one) != []


def test_record_of_an_object_has_no_address_in_memory():
    def mask(params):
        return params

    class Callable:
        def __call__(self, learning_rate):
            return optax.sgd(learning_rate)

    for optimizer in (functools.partial(optax.adamw, mask=mask), Callable()):
        text = recorded_config.describe(mnist_cnn.experiment(optimizer=optimizer)["optimizer"])
        assert "0x" not in text and ("mask" in text or "Callable" in text)


def augment_one(key, images):
    return images


@pytest.mark.parametrize(
    "sweep",
    [
        {"seed": [1, 2]}, {"b1": []}, {"b1": 0.5}, {"b1": [0.5, 0.5]}, {"b1": [0.5, 1.0]},
        {"b1": ["0.5"]}, {"dataset": ["mnist", "kmnist"]}, {"num_threads": [1, 2]},
        {"keep": [2, 3]}, {"batch_size": [0, 4]}, {"batch_size": [4, 4]}, {3: [1]},
        {"model": ["cnn", "ccn"]},
        {"augment": [augment_one, augment_one]}, {"loss": [lambda *_: 0, lambda *_: 1]},
    ],
)  # fmt: skip
def test_wrong_sweep_is_refused(sweep):
    config = mnist_cnn.experiment(
        sweep=sweep, train_split="train[:55000]", validation_split="train[55000:]"
    )
    with pytest.raises(ConfigError, match=r"config\.sweep: .*got .*, expected"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sweep": {"b1": [0.5, 0.9]}}, "expected a validation_split as well"),
        ({"optimizer": optax.sgd, "b1": 0.5}, "config.b1: got 0.5, but the experiment has its"),
        ({"loss": len, "label_smoothing": 0.1}, "own loss, which does not read this field"),
        ({"seed": 2**31 - 3, "num_seeds": 4}, "the last would be 2,147,483,648"),
        ({"variants": {"a": {}}}, "config.variants: expected a validation_split as well"),
        ({"sweep_method": "halving"}, "got 'halving', expected a sweep or variants as well"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, said):
    with pytest.raises(ConfigError) as error:
        config_lib.validate(mnist_cnn.experiment(**fields))
    assert said in str(error.value)


def test_order_of_a_sweep_is_part_of_it():
    grid = {"learning_rate": [1e-3, 1e-2], "b1": [0.5, 0.9]}
    halves = {"train_split": "train[:55000]", "validation_split": "train[55000:]"}
    one, other = (
        recorded_config.as_dict(
            mnist_cnn.experiment(sweep={key: grid[key] for key in keys}, **halves)
        )
        for keys in (("learning_rate", "b1"), ("b1", "learning_rate"))
    )
    assert recorded_config.differences(one, one) == []
    assert len(recorded_config.differences(one, other)) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sweep": {"lerning_rate": [1, 2]}}, "expected a field; did you mean 'learning_rate'?"),
        ({"sweep": {"model.hiden": [1, 2]}}, "the setting model.hiden=1: config.model.hiden: the "),
        ({"sweep": {"model.hidden": [1, 2.5]}}, "the setting model.hidden=2.5: config.model.hidde"),
        ({"sweep": {"model.hidden": [1, 1]}}, "sweep: model.hidden: got [1, 1], expected a list"),
        ({"variants": {"a b": {}}}, "config.variants: got 'a b', expected a name of the form"),
        ({"variants": {"a": 3}}, "config.variants: a: got 3, expected fields"),
        (
            {"variants": {"a": {"bach_size": 3}}},
            "variants: a: got 'bach_size', expected a field; d",
        ),
        ({"variants": {"a": {"seed": 3}}}, "config.variants: a: got 'seed', expected one of train"),
        ({"variants": {"a": {"batch_size": 0}}}, "config.variants: a: batch_size: got 0, expected"),
        ({"variants": {"a": {"b1": 0.5}}}, "the setting variant='a': config.b1: got 0.5, but the "),
        (
            {"variants": {"a": {}, "b": {"model": "cnn", "model.hidden": 3}}},
            "model is 'cnn', which",
        ),
        (
            {"variants": {"a": {"batch_size": 3}}, "sweep": {"batch_size": [3, 4]}},
            "config.variants: a: batch_size is in the sweep as well",
        ),
    ],
)
def test_wrong_setting_is_named_in_one_line_before_anything_is_trained(fields, said, tmp_path):
    changes = {"train_split": "train[:55000]", "validation_split": "train[55000:]"} | fields
    config = mnist_cnn.experiment(model=Wide(), optimizer=optax.sgd, **changes)
    with pytest.raises(ConfigError) as error:
        mnist_cnn.run(config, tmp_path / "run")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


class Wide(nn.Module):
    hidden: int = 16

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.relu(nn.Dense(self.hidden)(images.reshape(len(images), -1))))


def test_settings_of_variants_and_of_any_field_are_whole_configurations():
    config = mnist_cnn.experiment(
        model=Wide(), num_seeds=2,
        variants={"a": {}, "b": {"optimizer": optax.sgd, "num_epochs": 3}, "c": {"ema": 0.9}},
        sweep={"model.hidden": [8, 32], "schedule": ["constant", "cosine"]},
        train_split="train[:55000]", validation_split="train[55000:]",
    )  # fmt: skip
    config_lib.validate(config)
    settings = config_lib.settings(config)
    assert not config_lib.has_one_program(config) and len(settings) == 12
    assert settings[5] == {"variant": "b", "model.hidden": 8, "schedule": "cosine"}
    one = config_lib.of_setting(config, settings[5])
    changes = {"sweep": None, "variants": None, "optimizer": optax.sgd, "num_epochs": 3}
    expected = config.to_dict() | changes | {"schedule": "cosine", "model": Wide(hidden=8)}
    assert one.to_dict() == expected
    assert results.setting_label(settings[5]) == "b, model.hidden=8, schedule=cosine"


def test_example_of_variants_in_the_docs_has_six_legal_settings(tmp_path):
    page = (ROOT / "docs" / "seeds-and-sweeps.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "several.py").write_text(code)
    config = runpy.run_path(str(tmp_path / "several.py"))["get_config"]()
    config_lib.validate(config)
    settings = config_lib.settings(config)
    assert [results.setting_label(one) for one in settings[::5]] == [
        "cnn, batch_size=32", "wide, batch_size=128"
    ]  # fmt: skip
    assert config_lib.of_setting(config, settings[5])["model"].hidden == 256


def test_variants_on_the_command_line_are_literals():
    text = '--config.variants={"small": {"batch_size": 16}, "cosine": {"schedule": "cosine"}}'
    _, overrides = command_line.split_overrides(["main", text])
    assert overrides["variants"]["small"] == {"batch_size": 16}
    config_lib.validate(
        mnist_cnn.experiment(train_split="train[:9]", validation_split="train[9:20]", **overrides)
    )


def test_record_of_objects_in_a_sweep_is_by_name_and_compares_the_same():
    def config(*models, **variants):
        return recorded_config.as_dict(
            mnist_cnn.experiment(sweep={"model": models}, variants=variants)
        )

    one = config("cnn", Wide(8), a={"optimizer": optax.sgd, "model.widths": (1, 2)})
    assert one["sweep"] == {"model": ["cnn", "Wide( # attributes hidden = 8 )"]}
    assert one["variants"] == {"a": {"optimizer": "sgd", "model.widths": [1, 2]}}
    assert recorded_config.differences(json.loads(json.dumps(one)), one) == []
    other = config("cnn", Wide(9), a={"optimizer": optax.sgd, "model.widths": (1, 2)})
    (text,) = recorded_config.differences(one, other)
    assert text.startswith("sweep: was ") and "hidden = 9" in text
    (text,) = recorded_config.differences(one, config("cnn", Wide(8), a={"optimizer": optax.adam}))
    assert text.startswith("variants: was ")
    old = {key: value for key, value in one.items() if key not in ("variants", "sweep_method")}
    assert recorded_config.differences(old, one | {"variants": None}) == []  # an older record


def test_override_can_be_none_or_a_name_in_place_of_an_object():
    program = (
        "import sys\nfrom absl import flags\nfrom mnist_cnn import main\n"
        "main.parse_flags(sys.argv)\nfrom mnist_cnn.runner import recorded_config\n"
        "print(recorded_config.as_dict(flags.FLAGS.config))\n"
    )
    arguments = [
        "--config", ROOT / "experiments" / "mlp.py", "--config.optimizer=adam",
        "--config.validation_split", "None", "--config.num_steps", "3", "--config.num_steps",
        "none", "--config.model=cnn", "--config.learning_rate=1", "--config.sweep={'b1': [0.5]}",
        "--config.validation_split=train[55000:]",
    ]  # fmt: skip
    out = subprocess.check_output([sys.executable, "-c", program, *arguments], text=True)
    config = mnist_cnn.experiment(
        name="mlp", learning_rate=1.0, sweep={"b1": [0.5]}, validation_split="train[55000:]"
    )
    assert ast.literal_eval(out) == recorded_config.as_dict(config)


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
def test_model_that_cannot_be_compiled_is_refused_in_one_line(model, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as error:
        mnist_cnn.run(mnist_cnn.experiment(model=model), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_differences_name_the_key_and_both_values():
    old = recorded_config.as_dict(mnist_cnn.experiment())
    new = mnist_cnn.experiment(seed=5, log_every=3, num_epochs=9, keep=4)
    assert recorded_config.differences(old, recorded_config.as_dict(new)) == [
        "seed: was 1337, now 5"
    ]


def test_long_values_are_compared_from_their_first_difference():
    old = recorded_config.as_dict(mnist_cnn.experiment())
    names = ["Net(" + "x = 1, " * 200 + f"y = {y})" for y in (1, 2)]
    (text,) = recorded_config.differences(old | {"model": names[0]}, old | {"model": names[1]})
    assert text.startswith("model: was ...") and text.index("y = 1") < text.index("now ...")
    assert text.index("now ...") < text.index("y = 2") and len(text) < 250


BROKEN = {
    "missing.py": (None, "there is no such file"),
    "syntax.py": ("def get_config(:", "SyntaxError"),
    "value.py": ("def get_config():\n    int('x')", "value.py, line 2"),
    "raises.py": ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    "empty.py": ("", "get_config"),
    "key.py": (
        "import mnist_cnn\ndef get_config():\n    return mnist_cnn.experiment(bach_size=3)",
        "did you mean 'batch_size'?",
    ),
    "nothing.py": ("def get_config():\n    pass", "get_config() returned None"),
    "dict.py": ("def get_config():\n    return {}", "get_config() returned {}"),
    "absent.py": ("def get_config():\n    open('no such')", "No such file or directory: 'no such'"),
    "made.py": (
        "import mnist_cnn, optax\ndef get_config():\n"
        "    return mnist_cnn.experiment(optimizer=optax.sgd(0.1))",
        "got an object of type GradientTransformationExtraArgs, expected adam, or in an experiment "
        "file a function learning_rate -> optax.GradientTransformation (made.py, line 3)",
    ),
    "deep.py": (  # the line of the file, not that of the library in which the error is raised
        "import json\ndef get_config():\n    json.loads('{')",
        "(deep.py, line 3)",
    ),
    "bare.py": (
        "import ml_collections\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'seed': 3})",
        "lacks config.name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_experiment_file_is_refused_in_one_line_and_nothing_is_written(name, tmp_path):
    content, said = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    out, err = run(
        "mnist_cnn.main", "--config", tmp_path / name, "--workdir=new", cwd=tmp_path, status=2
    )
    assert out == ""
    assert err.startswith("error: ") and said in err and err.count("\n") == 1, err
    assert {path.name for path in tmp_path.iterdir()} <= {name, "__pycache__"}


def test_wrong_flag_is_refused_before_anything_heavy_is_imported():
    names = imported_by("mnist_cnn.main", "--config.batch_size=-3", status=2)
    assert not {"jax", "flax", "numpy", "tensorflow_datasets"} & names and "absl" in names


@pytest.mark.parametrize("arguments", [[], ["--workdri=x"], ["--config=experiments/base.py", "x"]])
def test_wrong_usage_is_one_line(arguments):
    out, err = run("mnist_cnn.main", *arguments, status=2)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err


@pytest.mark.slow
def test_every_command_is_refused_on_windows_in_one_line():
    """Also: none imports what Windows lacks before that."""
    program = (
        "import os, runpy, sys\n"
        "import asyncio, jax, matplotlib.font_manager, subprocess\n"  # other code on Windows
        "sys.platform, sys.modules['fcntl'] = 'win32', None\n"
        "for command in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        runpy.run_module(command, run_name='__main__')\n"
        "    print(command, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    commands = [f"mnist_cnn.{name}" for name in COMMANDS]
    process = subprocess.run(
        [sys.executable, "-c", program, *commands], capture_output=True, text=True, check=True
    )
    line = "error: mnist_cnn runs on Linux and macOS; on Windows use WSL (first `wsl --install`)\n"
    assert process.stderr == line * len(commands)
    assert process.stdout == "".join(f"{command} 1\n" for command in commands)
