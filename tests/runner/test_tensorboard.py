"""A real TensorBoard reads a run directory: what its tabs ask for is there."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import metrics_of, result_of, run


@pytest.fixture(scope="module")
def board(tiny_experiment, tmp_path_factory):
    """TensorBoard's address, and its folder: a run, prolonged, and killed before any checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    command = ("mnist_cnn.main", "--config", tiny_experiment)
    options = ("--config.train_split=train[:400]", "--config.validation_split=train[400:]")
    run(*command, "--workdir", folder / "short", *options)
    shutil.copytree(folder / "short", folder / "prolonged")
    run(*command, "--workdir", folder / "prolonged", *options, "--config.num_steps=55")
    shutil.copytree(folder / "short", folder / "killed", ignore=lambda *_: ["checkpoints"])
    (folder / "killed" / "result.json").unlink()
    run(*command, "--workdir", folder / "killed", *options)
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


def ask(board, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(board[0] + path, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def wait_for(question, seconds=40):
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "TensorBoard shows nothing"
        time.sleep(0.3)
    return answer


def test_tensorboard_shows_the_scalars_by_split(board):
    def tags():
        found = ask(board, "data/plugin/scalars/tags")
        return found if sum("test/loss" in tags for tags in found.values()) == 3 else None

    found = wait_for(tags)
    assert set(found) == {"short", "prolonged", "killed"}  # no run beside them
    assert {"train/loss", "train/accuracy", "validation/loss", "test/accuracy"} <= set(
        found["short"]
    )
    for name in found:
        points = ask(board, f"data/plugin/scalars/scalars?run={name}&tag=train/loss")
        written = [e for e in metrics_of(board[1] / name) if e["split"] == "train"]
        assert [point[1] for point in points] == [e["step"] for e in written]
        assert [point[2] for point in points] == pytest.approx([e["loss"] for e in written])


def test_tensorboard_shows_the_hyper_parameters_with_the_final_metric(board):
    body = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
        "colParams": [{"metric": {"tag": "test/accuracy", "group": ""}}],
        "startIndex": 0,
        "sliceSize": 10,
    }

    def groups():
        answer = ask(board, "data/plugin/hparams/session_groups", body)
        found = {group["name"]: group for group in answer.get("sessionGroups", [])}
        return found if len(found) == 3 and all(g["metricValues"] for g in found.values()) else None

    found = wait_for(groups)
    for name, steps in (("short", 40), ("prolonged", 55)):
        fields = found[name]["hparams"]
        assert fields["learning_rate"] == 0.001 and fields["seed"] == 1337
        assert fields["num_steps"] == steps and "Tiny" in fields["model"]
        assert "log_every" not in fields
        values = {v["name"]["tag"]: v["value"] for v in found[name]["metricValues"]}
        assert values["test/accuracy"] == pytest.approx(
            result_of(board[1] / name)["test_mean"]["accuracy"]
        )
