"""Run directories of version 0.1.0 stay readable and resumable.

`run_of_0_1/run` is a run of 20 steps of `run_of_0_1/experiment.py`, made by version 0.1.0.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import config_of, result_of

import mnist_cnn

OLD = pathlib.Path(__file__).with_name("run_of_0_1")
# The test losses of 40 steps without interruption by version 0.1.0.
LOSSES = [2.0649902391552923, 2.0276417467832566]


@pytest.fixture
def run_directory(tmp_path):
    return pathlib.Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def test_an_old_run_resumes_and_ends_as_it_would_have_then(run_directory):
    config = config_of(OLD / "experiment.py")
    mnist_cnn.run(config, run_directory)
    result = result_of(run_directory)
    assert result["status"] == "finished" and result["steps"] == 40
    # Another processor has other bits, so the losses are compared, not the parameters.
    np.testing.assert_allclose(result["test"]["loss"], LOSSES, rtol=1e-3)
    lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [10, 20, 20, 30, 40, 40]  # tested at 20 then, and at 40 now


def test_the_network_of_an_old_run_is_loaded(run_directory):
    network = mnist_cnn.load(run_directory, config_of(OLD / "experiment.py"), seed=1338)
    assert network.step == 20
    assert network(np.zeros((3, 28, 28, 1), np.uint8)).shape == (3, 10)
