"""A checkpoint is of use without this package: Orbax alone restores it."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, config_of
from flax import traverse_util
from networks import Normalized
from training_runs import train

import mnist_cnn

# Runs the program of the documentation for each of the given networks, without this package.
RUN = """
import json, pathlib, sys
sys.modules["mnist_cnn"] = None  # its import fails
import numpy as np
from flax import traverse_util
{begin}
for number, (workdir, step, seed) in enumerate(json.loads(sys.argv[1])):
    workdir = pathlib.Path(workdir)
{program}
    found = {{"params": params, "batch_stats": batch_stats or {{}}}}
    np.savez(str(number), **traverse_util.flatten_dict(found, sep="."))
assert sys.modules["mnist_cnn"] is None
"""


def documented_program():
    """The program in the documentation: its lines before and after that with the run's names."""
    page = (ROOT / "docs" / "run-directory.md").read_text()
    (program,) = (
        code for code in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        if "orbax" in code
    )  # fmt: skip
    names = 'workdir, step, seed = pathlib.Path("runs/base"), 1875, 1337\n'
    assert "mnist_cnn" not in program and program.count(names) == 1
    return program.split(names)


@pytest.mark.slow
def test_the_documented_program_restores_every_network_without_this_package(
    tiny_experiment, undisturbed, tmp_path
):
    changes = {"num_seeds": 3, "seed": 1336, "model": Normalized(), "ema": 0.9}
    train(tiny_experiment, tmp_path / "several", **changes)
    old = ROOT / "tests" / "runner" / "run_of_0_1"
    of_old = config_of(old / "experiment.py")
    runs = [
        (tmp_path / "several", 40, 1338, config_of(tiny_experiment, **changes)),
        (tmp_path / "several", 30, 1337, config_of(tiny_experiment, **changes)),
        (undisturbed[0], 40, 1337, config_of(tiny_experiment)),
        (old / "run", 20, 1338, of_old),
    ]
    begin, program = documented_program()
    code = RUN.format(begin=begin, program="    " + program.replace("\n", "\n    "))
    given = json.dumps([(str(workdir), step, seed) for workdir, step, seed, _ in runs])
    done = subprocess.run(
        [sys.executable, "-c", code, given], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for number, (workdir, step, seed, config) in enumerate(runs):
        network = mnist_cnn.load(workdir, config, seed, step)
        expected = traverse_util.flatten_dict(network.variables, sep=".")
        assert (network.seed, network.step) == (seed, step)
        with np.load(pathlib.Path(tmp_path, f"{number}.npz")) as found:
            assert set(found.files) == set(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)


@pytest.mark.slow
def test_rows_of_a_sweep_and_of_the_best_networks_are_where_the_documentation_says(
    tiny_experiment, tmp_path
):
    changes = {
        "train_split": "train[:250]", "validation_split": "train[250:]", "num_seeds": 2,
        "sweep": {"learning_rate": [1e-4, 3e-3]}, "keep_best": "loss", "eval_every": 10,
    }  # fmt: skip
    result = train(tiny_experiment, tmp_path, **changes)
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "checkpoints" / "40" / "tree")
    assert tree["state"]["seed"].tolist() == [1337, 1338, 1337, 1338]
    rates = tree["state"]["hyper"]["learning_rate"]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 3e-3, 3e-3])
    network = mnist_cnn.load(tmp_path, config_of(tiny_experiment, **changes), seed=1338)
    row = result["sweep"]["chosen"] * 2 + 1
    assert network.step == tree["best"]["step"][row]
    for layer, arrays in tree["best"]["variables"]["params"].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array[row], network.params[layer][name])
