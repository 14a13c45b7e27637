"""Runs inside this process, which need no start-up."""

from conftest import config_of

from mnist_cnn import report
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.loop import run


def train(tiny_experiment, workdir, **changes):
    config = config_of(tiny_experiment)
    with config.unlocked():
        config.update(changes)
    return run(config, workdir, console=Console(quiet=True), write_report=report.write)
