"""The trained network elsewhere: other processes, without this package, give its very answers."""

import json
import os
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, read_idx, run

import mnist_cnn
from mnist_cnn import export
from mnist_cnn.analysis.network import Network
from mnist_cnn.errors import ConfigError
from mnist_cnn.models import weights
from mnist_cnn.training.state import create_state

# What a user elsewhere would write.  `import mnist_cnn` would fail.
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
    """The 10,000 test images and the network's logits."""
    images = read_idx("t10k-images-idx3-ubyte")
    return images, mnist_cnn.load(trained_base)(images)


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_process_without_this_package_gives_the_same_answers(
    kind, trained_base, expected, tmp_path
):
    images, logits = expected
    path = tmp_path / f"network.{kind}"
    out, _ = run("mnist_cnn.export", "--workdir", trained_base, "--format", kind, "--output", path)
    assert f"{kind}, {path.stat().st_size:,} bytes" in out
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


@pytest.mark.parametrize("name", ["accuracy", "speedrun"])
def test_the_networks_of_the_experiments_leave_for_any_number_of_images(name):
    config = runpy.run_path(ROOT / "experiments" / f"{name}.py")["get_config"]()
    state = create_state(config)
    network = Network(config, state.variables, state.model, 0, config.seed)
    program = jax.export.deserialize(bytearray(export.stablehlo(network)))
    images = read_idx("t10k-images-idx3-ubyte")[:5]
    for count in (2, 5):
        np.testing.assert_allclose(program.call(images[:count]), network(images[:count]), atol=1e-5)


@pytest.mark.parametrize("kind", ["stablehlo", "safetensors", "onnx"])
def test_a_network_of_ones_own_leaves_too_or_is_refused_in_a_line(
    kind, undisturbed, tiny_experiment, tmp_path
):
    path = tmp_path / "network"
    _, err = run(
        "mnist_cnn.export", "--workdir", undisturbed[0], "--config", tiny_experiment,
        "--format", kind, "--output", path, status=1 if kind == "onnx" else 0,
    )  # fmt: skip
    assert path.exists() == (kind != "onnx")
    assert kind != "onnx" or ("got a network of Tiny, expected the tutorial's" in err)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "expected --workdir DIR --format stablehlo|onnx|safetensors --output FILE"),
        (["--format=torch"], 2, "should be one of"),
        (["--workdir=nowhere", "--format=onnx", "--output=x"], 1, "no config.json there"),
        (["--workdir=nowhere", "--format=onnx", "--output=no/x"], 1, "there is no such folder"),
        (["--workdir=nowhere", "--format=onnx", "--output=."], 1, "expected the name of a file"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(arguments, status, said, tmp_path):
    _, err = run("mnist_cnn.export", *arguments, status=status, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said in err and err.count("\n") == 1


def test_export_imports_no_pictures_and_no_datasets(trained_base, tmp_path):
    program = (
        "import sys; from mnist_cnn import export, network; "
        f"export.safetensors(network.load({str(trained_base)!r})); "
        "print(*[m for m in ('matplotlib', 'tensorflow_datasets', 'gradio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done


# Weights to begin with.


def test_a_run_begins_with_the_weights_of_a_file_and_goes_on_without_it(trained_base, tmp_path):
    path = tmp_path / "weights.safetensors"
    run("mnist_cnn.export", "--workdir", trained_base, "--format=safetensors", "--output", path)
    command = (
        "mnist_cnn.main", "--config", "experiments/base.py", f"--config.init_from={path}",
        "--config.report=False", "--workdir", tmp_path / "run",
        "--config.train_split=train[:320]", "--config.log_every=1",
    )  # fmt: skip
    run(*command, "--config.num_steps=1", "--config.learning_rate=1e-12")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, test = json.loads(lines[0]), json.loads(lines[-1])
    images = read_idx("t10k-images-idx3-ubyte")
    labels = read_idx("t10k-labels-idx1-ubyte")
    before = mnist_cnn.load(trained_base)(images).argmax(-1)
    assert test["correct"] == int((before == labels).sum())
    assert first["accuracy"] > 0.8
    path.unlink()
    run(*command, "--config.num_steps=2", "--config.learning_rate=1e-12")


def tree():
    return {
        "a": {"kernel": np.zeros((3, 2), np.float32)},
        "b": {"kernel": np.ones((2,), np.float32)},
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["a"].update(kernel=np.zeros((2, 3))), "a.kernel has shape [2, 3], expected"),
        (lambda t: t.pop("b"), "b.kernel has shape nothing, expected [2]"),
        (lambda t: t.update(c=np.zeros(1)), "c has shape [1], expected nothing"),
        (lambda t: t["b"].update(kernel=np.array([1, np.nan])), "b.kernel has values that are not"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said, tmp_path):
    from safetensors.numpy import save_file

    changed = tree()
    change(changed)
    path = tmp_path / "x.safetensors"
    save_file(weights.flat(changed), path)
    with pytest.raises(ConfigError) as error:
        weights.read_variables(path, {"params": tree()})
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.keras", "x.weights.h5", "x.pickle", "gone"])
def test_a_file_that_is_none_is_refused_before_anything_is_written(name, tiny_experiment, tmp_path):
    path = tmp_path / name
    if name != "gone":
        path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch executed'\ntR." * 9)
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, f"--config.init_from={path}",
        "--workdir", tmp_path / "run", status=2, cwd=tmp_path, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert "config.init_from" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "executed").exists()
