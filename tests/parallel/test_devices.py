"""A GPU that JAX does not use, and a device that it does not have, are said in one line."""

import shutil

import jax
import pytest
from conftest import config_of, finish, run, start

import mnist_cnn
from mnist_cnn.errors import UserError
from mnist_cnn.parallel import devices
from mnist_cnn.runner import smoke


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
