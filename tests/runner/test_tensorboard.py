"""A real TensorBoard reads run directories and shows their metrics and hyper-parameters."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest
from conftest import config_of, metrics_of, result_of, wait_for

import mnist_cnn


@pytest.fixture(scope="module")
def board(tiny_experiment, tmp_path_factory):
    """The address and the folder of a TensorBoard.

    It shows a short run, the same extended, and one killed before its first checkpoint.
    """
    folder = tmp_path_factory.mktemp("runs")
    config = config_of(tiny_experiment, train_split="train[:400]", validation_split="train[400:]")
    mnist_cnn.run(config, folder / "short")
    shutil.copytree(folder / "short", folder / "killed", ignore=lambda *_: ["checkpoints"])
    (folder / "killed" / "result.json").unlink()
    mnist_cnn.run(config, folder / "killed")
    shutil.copytree(folder / "short", folder / "extended")
    config.num_steps = 55
    mnist_cnn.run(config, folder / "extended")
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host=127.0.0.1",
         "--port=0", "--load_fast=false", "--reload_interval=1"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if match := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        yield match[0], folder
    finally:
        process.terminate()
        process.wait(20)


def request(board, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(board[0] + path, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(message) as response:
        return json.load(response)


def test_tensorboard_shows_the_scalars_by_split(board):
    def tags():
        found = request(board, "data/plugin/scalars/tags")
        return found if sum("test/loss" in tags for tags in found.values()) == 3 else None

    found = wait_for(tags, seconds=60)
    assert set(found) == {"short", "extended", "killed"}  # no additional run
    assert {"train/loss", "train/accuracy", "validation/loss", "test/accuracy"} <= set(
        found["short"]
    )
    for name in found:
        points = request(board, f"data/plugin/scalars/scalars?run={name}&tag=train/loss")
        written = [e for e in metrics_of(board[1] / name) if e["split"] == "train"]
        assert [point[1] for point in points] == [e["step"] for e in written]
        assert [point[2] for point in points] == pytest.approx([e["loss"] for e in written])


@pytest.mark.slow
def test_tensorboard_shows_the_hyperparameters_with_the_final_metric(board):
    body = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
        "colParams": [{"metric": {"tag": "test/accuracy", "group": ""}}],
        "startIndex": 0,
        "sliceSize": 10,
    }

    def groups():
        response = request(board, "data/plugin/hparams/session_groups", body)
        found = {group["name"]: group for group in response.get("sessionGroups", [])}
        return found if len(found) == 3 and all(g["metricValues"] for g in found.values()) else None

    found = wait_for(groups, seconds=60)
    for name, steps in (("short", 40), ("extended", 55)):
        fields = found[name]["hparams"]
        assert fields["learning_rate"] == 0.001 and fields["seed"] == 1337
        assert fields["num_steps"] == steps and "Tiny" in fields["model"]
        assert "log_every" not in fields
        values = {v["name"]["tag"]: v["value"] for v in found[name]["metricValues"]}
        assert values["test/accuracy"] == pytest.approx(
            result_of(board[1] / name)["test_mean"]["accuracy"]
        )
