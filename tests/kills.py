"""Kills a run with SIGKILL, again and again, until it ends; and compares its end.

    python tests/kills.py --kills 100

Half of the kills come at a random instant of the process' life.  The others come at the worst: in
the middle of a write.  Those processes are started by this file (`--die FUNCTION N`), which makes
the N-th call of FUNCTION write a part, and then sends SIGKILL to its own process.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle(place, count):
    """Arms the trap: at the `count`-th time that the process comes to `place`, it is killed."""
    from mnist_cnn.data import tfds_builder
    from mnist_cnn.files import write_atomically
    from mnist_cnn.runner import run_directory

    calls = 0

    def trapped(function, before):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == count:
                before(*arguments, **keywords)
                die()
            return function(*arguments, **keywords)

        return call

    def write_half(path, content):
        with open(path.with_name(f".{path.name}.tmp"), "wb") as file:
            file.write(content[: len(content) // 2])

    def log_half(self, entry, series):
        self._metrics.write(json.dumps(entry)[:20])
        self._metrics.flush()

    if place == "json":  # config, environment, result
        write_atomically = trapped(write_atomically, write_half)
    elif place == "metrics":
        run_directory.RunDirectory.log = trapped(run_directory.RunDirectory.log, log_half)
    elif place == "rename":  # Orbax' and our own last step of a write
        os.rename = trapped(os.rename, lambda *_, **__: None)
        os.replace = trapped(os.replace, lambda *_, **__: None)
    elif place == "data":
        tfds_builder._sha256 = trapped(tfds_builder._sha256, lambda *_: None)


def run_until_it_ends(experiment, workdir, kills, chance, environment):
    """Starts the run over and over, killing it `kills` times at most: the places of the kills."""
    met = []
    command = ["--config", str(experiment), "--workdir", str(workdir)]
    while True:
        place = None
        if len(met) < kills:
            place = chance.choice(["any", "any", "any", "any", "json", "metrics", "rename", "data"])
        if place in (None, "any"):
            arguments = [sys.executable, "-m", "mnist_cnn.main", *command]
        else:
            count = str(chance.randint(1, 4))
            if place == "data":  # so that there is something to prepare, and to interrupt
                shutil.rmtree(environment["TFDS_DATA_DIR"], ignore_errors=True)
            arguments = [sys.executable, __file__, "--die", place, count, *command]
        process = subprocess.Popen(
            arguments, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=chance.uniform(1, 6) if place == "any" else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == -signal.SIGKILL:
            met.append(place)
        else:
            assert process.returncode == 0, out
            return met


def end_of(workdir):
    """What two runs must agree on: parameters, optimiser state, sums, result and metrics."""
    result = json.loads((workdir / "result.json").read_text())
    del result["seconds"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    from mnist_cnn.runner.checkpoint import Checkpoints, sha256

    checkpoints = Checkpoints(workdir / "checkpoints", keep=None)
    _, tree, _ = checkpoints.restore(None, report=print)
    checkpoints.close()
    return result, lines, sha256(tree)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from conftest import TINY_EXPERIMENT, make_small_mnist

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        small = make_small_mnist(folder / "small_mnist")
        experiment = folder / "tiny.py"
        experiment.write_text(TINY_EXPERIMENT.format(manual_dir=str(small)))
        environment = {"TFDS_DATA_DIR": str(folder / "tfds")}
        chance = random.Random(options.seed)
        run_until_it_ends(experiment, folder / "undisturbed", 0, chance, environment)
        expected = end_of(folder / "undisturbed")
        met = []
        while len(met) < options.kills:
            shutil.rmtree(folder / "killed", ignore_errors=True)
            kills = min(chance.randint(2, 8), options.kills - len(met))
            met += run_until_it_ends(experiment, folder / "killed", kills, chance, environment)
            for ours, theirs in zip(end_of(folder / "killed"), expected, strict=True):
                assert ours == theirs, f"after {met}:\n{ours}\nexpected\n{theirs}"
            print(len(met), "kills, the same bits", dict(collections.Counter(met)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die"]:
        place, count = sys.argv[2:4]
        sys.argv[1:4] = []
        from mnist_cnn import main as command

        die_in_the_middle(place, int(count))
        command.command(command.main, command.parse_flags)
    else:
        main()
