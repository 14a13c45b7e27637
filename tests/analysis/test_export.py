"""The exported network: other processes, without this package, give the same answers."""

import os
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from conftest import ROOT, config_of, metrics_of, read_idx, result_of, run, start

import mnist_cnn
from mnist_cnn.analysis.export_formats import FORMATS
from mnist_cnn.analysis.network import Network
from mnist_cnn.errors import ConfigError
from mnist_cnn.models import weights
from mnist_cnn.models.ensemble import Ensemble
from mnist_cnn.training.state import create_state

# Programs of a user who does not have this package: `import mnist_cnn` fails.
ELSEWHERE = {
    "stablehlo": """
from jax import export
program = export.deserialize(bytearray(open(path, "rb").read()))
assert program.platforms == ("cpu", "cuda", "tpu")
def network(images):
    return np.asarray(program.call(images))
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
def network(images):
    return session.run(["logits"], {"images": images})[0]
""",
    "safetensors": """
from safetensors.numpy import load_file
weights = load_file(path)
def network(images):  # the tutorial's network in NumPy alone
    x = images.astype(np.float32) / 255
    for layer in ("conv1", "conv2"):
        kernel, n = weights[layer + ".kernel"], x.shape[1]
        x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (1, 2))
        x = np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2))) + weights[layer + ".bias"]
        x = np.maximum(x, 0).reshape(len(x), n // 2, 2, n // 2, 2, -1).max((2, 4))
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ weights["dense1.kernel"] + weights["dense1.bias"], 0)
    return x @ weights["dense2.kernel"] + weights["dense2.bias"]
""",
}
RUN = """
import sys
sys.modules["mnist_cnn"] = None
import numpy as np
path, images, output = sys.argv[1:]
{program}
images = np.load(images)
logits = [network(images[start : start + 250]) for start in range(0, len(images), 250)]
np.save(output, np.concatenate(logits))
assert len(network(images[:3])) == 3
"""


@pytest.fixture(scope="module")
def expected(trained_base):
    """The network, the 10,000 test images, and its logits."""
    network, images = mnist_cnn.load(trained_base), read_idx("t10k-images-idx3-ubyte")
    return network, images, network(images)


@pytest.mark.parametrize(
    "kind",
    [
        "onnx",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("stablehlo", "safetensors")),
    ],
)
def test_process_without_this_package_gives_the_same_answers(kind, expected, tmp_path):
    network, images, logits = expected
    path = tmp_path / f"network.{kind}"
    path.write_bytes(FORMATS[kind](network))
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(program=ELSEWHERE[kind]), str(path),
         str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "logits.npy")
    np.testing.assert_array_equal(found.argmax(-1), logits.argmax(-1))
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)
    if kind == "stablehlo":
        np.testing.assert_array_equal(found, logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "speedrun"])
def test_networks_of_the_experiments_are_exported_for_any_number_of_images(name):
    config = config_of(ROOT / "experiments" / f"{name}.py")
    state = create_state(config)
    network = Network(config, state.variables, state.model, 0, config.seed)
    program = jax.export.deserialize(bytearray(FORMATS["stablehlo"](network)))
    images = read_idx("t10k-images-idx3-ubyte")[:5]
    for count in (2, 5):
        np.testing.assert_allclose(program.call(images[:count]), network(images[:count]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_or_none"])
def test_an_ensemble_is_one_program_with_the_same_bits(loss):
    config = config_of(ROOT / "experiments" / "base.py", loss=loss)
    states = []
    for config.seed in (1, 2, 3):
        states.append(create_state(config))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[one.variables for one in states])
    model = Ensemble(states[0].model, or_none=loss == "cross_entropy_or_none")
    network = Network(config, stacked, model, 0, (1, 2, 3))
    program = jax.export.deserialize(bytearray(FORMATS["stablehlo"](network)))
    images = read_idx("t10k-images-idx3-ubyte")[: config.eval_batch_size]
    np.testing.assert_array_equal(program.call(images), network(images))
    np.testing.assert_allclose(program.call(images[:3]), network(images)[:3], atol=2e-6)


@pytest.mark.slow
def test_custom_module_is_exported(undisturbed, tiny_experiment):
    network = mnist_cnn.load(undisturbed[0], config_of(tiny_experiment))
    for kind in FORMATS:
        assert FORMATS[kind](network)


@pytest.mark.parametrize("kind", [pytest.param("stablehlo", marks=pytest.mark.slow), "onnx"])
def test_command_writes_the_file(kind, undisturbed, tiny_experiment, tmp_path):
    path = tmp_path / "network"
    out, _ = run(
        "mnist_cnn.export", "--workdir", undisturbed[0], "--config", tiny_experiment,
        "--format", kind, "--output", path,
    )  # fmt: skip
    assert f"{path}: {kind}, {path.stat().st_size:,} bytes, seed 1337" in out


def test_errors_of_export_are_one_line(tmp_path):
    cases = [
        ([], 2, "expected --workdir DIR --format stablehlo|onnx|safetensors --output FILE"),
        (["--format=torch"], 2, "should be one of"),
        (["--workdir=nowhere", "--format=onnx", "--output=x"], 1, "contains no config.json"),
        (
            ["--workdir=nowhere", "--format=onnx", "--output=no/x"],
            1,
            "its directory does not exist",
        ),
        (["--workdir=nowhere", "--format=onnx", "--output=."], 1, "expected the name of a file"),
    ]
    processes = [start("mnist_cnn.export", *case[0], cwd=tmp_path) for case in cases]
    for process, (_, status, message) in zip(processes, cases, strict=True):
        _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert message in err and err.count("\n") == 1, err


@pytest.mark.slow
def test_export_imports_no_plots_and_no_datasets(trained_base):
    program = (
        "import sys, mnist_cnn; from mnist_cnn.analysis.export_formats import safetensors; "
        f"safetensors(mnist_cnn.load({str(trained_base)!r})); "
        "print(*[m for m in ('matplotlib', 'tensorflow_datasets', 'gradio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done


@pytest.mark.parametrize(
    ("format", "blocked", "said"),
    [
        ("onnx", "onnx", "needs the package onnx: pip install 'mnist_cnn[export]'"),
        # JAX's ImportError has no name.
        ("stablehlo", "flatbuffers", "a package cannot be imported (Please install 'flatbuffers'"),
    ],
)
@pytest.mark.slow
def test_missing_package_is_named(format, blocked, said, trained_base, tmp_path):
    program = f"import runpy, sys; sys.modules[{blocked!r}] = None; "
    program += "runpy.run_module('mnist_cnn.export', run_name='__main__')"
    output = tmp_path / "network"
    arguments = ["--workdir", trained_base, "--format", format, "--output", output]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and not output.exists()
    assert done.stderr.startswith(f"error: --format {format}: {said}"), done.stderr
    assert done.stderr.count("\n") == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["export"]
    assert any(requirement.startswith(blocked) for requirement in extra)


# init_from.


@pytest.mark.slow
def test_run_starts_with_the_weights_of_a_file_and_resumes_without_it(
    undisturbed, tiny_experiment, tmp_path
):
    workdir = undisturbed[0]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(FORMATS["safetensors"](mnist_cnn.load(workdir, config_of(tiny_experiment))))
    config = config_of(
        tiny_experiment, init_from=str(path), log_every=1, num_steps=1, learning_rate=1e-12
    )
    mnist_cnn.run(config, tmp_path / "run")
    first, test = metrics_of(tmp_path / "run")
    assert test["correct"] == result_of(workdir)["test"]["correct"][0]
    assert first["accuracy"] > 0.3  # ten classes
    path.unlink()
    config.num_steps = 2
    assert mnist_cnn.run(config, tmp_path / "run")["steps"] == 2


def tree():
    return {
        "a": {"kernel": np.zeros((3, 2), np.float32)},
        "b": {"kernel": np.ones((2,), np.float32)},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["a"].update(kernel=np.zeros((2, 3))), "a.kernel has shape [2, 3], expected"),
        (lambda t: t.pop("b"), "b.kernel has shape nothing, expected [2]"),
        (lambda t: t.update(c=np.zeros(1)), "c has shape [1], expected nothing"),
        (lambda t: t["b"].update(kernel=np.array([1, np.nan])), "b.kernel has values that are not"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    from safetensors.numpy import save_file

    changed = tree()
    change(changed)
    path = tmp_path / "x.safetensors"
    save_file(weights.flat(changed), path)
    with pytest.raises(ConfigError) as error:
        weights.read_variables(path, {"params": tree()})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.keras", "x.weights.h5", "x.pickle", "gone"])
def test_unusable_weight_files_are_refused_before_anything_is_written(
    name, tiny_experiment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if name != "gone":
        path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch executed'\ntR." * 9)
    config = config_of(tiny_experiment)
    config.init_from = str(path)
    with pytest.raises(ConfigError, match=r"^config\.init_from: [^\n]*$"):
        mnist_cnn.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "executed").exists()


def test_command_refuses_an_unusable_weight_file_in_one_line(tiny_experiment, tmp_path):
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.init_from=gone.safetensors",
        "--workdir", tmp_path / "run", status=2, cwd=tmp_path, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert "config.init_from" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
