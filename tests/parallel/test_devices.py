"""Devices that JAX does not use or have are said in one line; JAX's settings break no run."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import config_of, finish, result_of, run, same_end, start
from training_runs import train

import mnist_cnn
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.analysis.export_formats import stablehlo
from mnist_cnn.errors import UserError
from mnist_cnn.models.apply import init_variables
from mnist_cnn.models.cnn import CNN
from mnist_cnn.parallel import devices
from mnist_cnn.runner import smoke
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.environment import describe_environment
from mnist_cnn.training import rng


@pytest.fixture
def with_gpu(monkeypatch, tmp_path):
    """As on a machine with an NVIDIA GPU on which the user chose no device."""
    chosen = jax.config.values["jax_platforms"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    monkeypatch.setattr(devices, "_NVIDIA", (tmp_path,))
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", chosen)


@pytest.mark.slow
def test_unused_gpu_is_one_line_with_the_remedy_in_a_run_and_in_the_smoke_check(
    with_gpu, tiny_experiment, tmp_path, capsys
):
    mnist_cnn.run(config_of(tiny_experiment, num_steps=1), tmp_path / "run")
    notes = [x for x in capsys.readouterr().out.splitlines() if "NVIDIA" in x]
    assert len(notes) == 1 and 'pip install "jax[cuda13]"' in notes[0]
    assert smoke.check(config_of(tiny_experiment))
    assert 'pip install "jax[cuda13]"' in capsys.readouterr().out.splitlines()[0]


def test_gpu_whose_plugin_does_not_start_has_another_remedy(with_gpu, monkeypatch):
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda name: "0.10.2")
    assert "jax-cuda13-plugin did not start" in devices.unused_gpu()
    assert "JAX_PLATFORMS=cuda shows the reason" in devices.unused_gpu()


def test_nothing_is_said_without_a_gpu_or_if_the_user_chose_the_cpu(
    with_gpu, tmp_path, monkeypatch
):
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("JAX_PLATFORM_NAME", "cpu")):
        monkeypatch.setenv(name, value)
        assert devices.unused_gpu() is None
        monkeypatch.delenv(name)
    jax.config.update("jax_platforms", "cpu")
    assert devices.unused_gpu() is None
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(devices, "_NVIDIA", ())
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert devices.unused_gpu() is not None
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert devices.unused_gpu() is None


@pytest.mark.slow
def test_device_that_is_not_there_is_one_line_in_every_command(
    undisturbed, tiny_experiment, tmp_path
):
    network = ("--workdir", undisturbed[0], "--config", tiny_experiment)
    commands = (
        ("mnist_cnn.main", "--config", tiny_experiment),
        ("mnist_cnn.evaluate", *network),
        ("mnist_cnn.predict", *network, "digit.png"),
        ("mnist_cnn.export", *network, "--format=safetensors", "--output=network"),
        ("mnist_cnn.demo", *network),
        ("mnist_cnn.join", undisturbed[0], undisturbed[0], "--workdir=joined"),
    )
    values = ("nonsense", "tpu", "cuda")
    for value, command in zip(2 * values, commands, strict=True):
        if value != "nonsense" and shutil.which("nvidia-smi"):
            continue
        out, err = run(*command, status=1, cwd=tmp_path, JAX_PLATFORMS=value)
        assert err.startswith(f"error: JAX_PLATFORMS={value}: JAX cannot use that device (")
        assert (out, err.count("\n")) == ("", 1)
    smoke = start(*commands[0], "--config.smoke=True", JAX_PLATFORMS="nonsense")
    out, err = finish(smoke, status=1)
    assert "device    JAX_PLATFORMS=nonsense: JAX cannot use that device" in out
    assert (out.count("\n"), err) == (1, "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_plugin_that_fails_without_the_variable_names_it_as_the_remedy(with_gpu, monkeypatch):
    def fails():
        raise RuntimeError("Unable to initialize backend 'tpu': no\nsuch device (you may need")

    monkeypatch.setattr(devices.jax, "devices", fails)
    with pytest.raises(UserError, match=r"no such device\); JAX_PLATFORMS=cpu uses") as error:
        devices.find_devices()
    assert "\n" not in str(error.value)


# JAX's settings, and environment variables that change bits.


SETTINGS = {
    "JAX_ENABLE_X64": jax.enable_x64(True),
    "JAX_NUMPY_RANK_PROMOTION": jax.numpy_rank_promotion("raise"),
    "JAX_NUMPY_DTYPE_PROMOTION": jax.numpy_dtype_promotion("strict"),
    "JAX_DEBUG_NANS": jax.debug_nans(True),
    "JAX_DEBUG_INFS": jax.debug_infs(True),
    "JAX_DISABLE_JIT": jax.disable_jit(True),
    "JAX_THREEFRY_PARTITIONABLE": jax.threefry_partitionable(False),
    "JAX_TRANSFER_GUARD": jax.transfer_guard("disallow"),
    "JAX_DEFAULT_MATMUL_PRECISION": jax.default_matmul_precision("highest"),
}
VALUES = {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict",
          "JAX_TRANSFER_GUARD": "disallow", "JAX_THREEFRY_PARTITIONABLE": "0",
          "JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # fmt: skip
ALL = {name: VALUES.get(name, "1") for name in SETTINGS} | {
    "JAX_LOG_COMPILES": "1", "JAX_TRACEBACK_FILTERING": "off", "JAX_CHECK_TRACER_LEAKS": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg", "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.mark.slow
def test_jaxs_settings_change_no_bit_of_a_run_and_of_its_network(
    undisturbed, tiny_experiment, tmp_path
):
    images = np.zeros((3, 28, 28, 1), np.uint8)
    expected = mnist_cnn.load(undisturbed[0], config_of(tiny_experiment))(images)
    with contextlib.ExitStack() as stack:
        for setting in SETTINGS.values():
            stack.enter_context(setting)
        with devices.own_settings():  # the kernels of convolutions need them
            jax.eval_shape(lambda: init_variables(CNN(), rng.key(0, "init")))
        train(tiny_experiment, tmp_path / "run", num_steps=20)
        train(tiny_experiment, tmp_path / "run")  # resumes
        network = mnist_cnn.load(tmp_path / "run", config_of(tiny_experiment))
        logits = network(images)
        metrics = evaluate(tmp_path / "run", config=config_of(tiny_experiment))
        exported = stablehlo(network)
    ours, theirs = result_of(tmp_path / "run"), result_of(undisturbed[0])
    assert [ours[key] for key in ("params_sha256", "test")] == [
        theirs[key] for key in ("params_sha256", "test")
    ]
    np.testing.assert_array_equal(logits, expected)
    assert [metrics["loss"]] == theirs["test"]["loss"]
    np.testing.assert_array_equal(jax.export.deserialize(exported).call(images), expected)


@pytest.mark.slow
def test_jaxs_variables_change_no_bit_of_the_base_experiment(tmp_path):
    command = ("mnist_cnn.main", "--config", "experiments/base.py", "--config.report=False",
               "--config.num_steps=3", "--config.checkpoint_every=2", "--workdir")  # fmt: skip
    run(*command, tmp_path / "plain")
    _, err = run(*command, tmp_path / "run", **ALL)
    assert err == ""
    same_end(tmp_path / "run", tmp_path / "plain")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["environment_variables"].items() >= ALL.items()


def test_variables_that_change_bits_are_recorded_and_said_at_a_resume(monkeypatch, capsys):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    before = describe_environment(jax.devices(), [])
    recorded = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_a=1", "JAX_ENABLE_X64": "0",
                "NPROC": "2"}  # fmt: skip
    for name, value in (recorded | {"HOME": "/root", "EDITOR": "ed"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_PLATFORMS")
    now = describe_environment(jax.devices(), [])
    assert now["environment_variables"] == recorded
    assert now["jax_enable_x64"] is False and now["jax_default_matmul_precision"] is None
    others = {"mesh": {}, "processes": 1, "replicas_at_once": 1, "num_threads": 2}
    console = Console()
    console.changes(before | others, now | others)
    changed = "JAX_ENABLE_X64, JAX_PLATFORMS, OMP_NUM_THREADS, XLA_FLAGS"
    assert f"the run began with other {changed} (environment.json)" in capsys.readouterr().out
    console.changes(now | others, now | others | {"cpu_count": 64})  # its threads stay
    assert capsys.readouterr().out == ""
    precision = {"jax_default_matmul_precision": "highest"}
    console.changes(now | others, now | others | precision)
    assert "began with other jax_default_matmul_precision" in capsys.readouterr().out
    old = {"cpu_count": 2, "versions": now["versions"]}  # of a version that recorded less
    console.changes(old, now | others)
    said = capsys.readouterr().out
    assert said.startswith("note: the run began with a version that did not record its number of")
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "typo"), ("JAX_DEFAULT_MATMUL_PRECISION", "typo"), ("XLA_FLAGS", "--typo"),
     ("NPROC", "typo")],
)  # fmt: skip
def test_variable_with_an_impossible_value_is_one_line_that_names_it(
    name, value, tiny_experiment, tmp_path
):
    process = start(
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path, **{name: value}
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and out == "" and err.count("\n") == 1
    assert name.lower() in err.lower() and value in err
