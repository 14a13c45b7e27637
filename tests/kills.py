"""Kills a run with SIGKILL again and again until it ends, and compares its result.

    python tests/kills.py --kills 100

Half of the kills come at a random time. The others come in the middle of a write: this file starts
those processes with `--die PLACE N`, so that the N-th write at PLACE is incomplete and then the
process kills itself.
"""

import argparse
import collections
import hashlib
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


def die_in_the_middle(place, count):
    """Makes the process kill itself during its `count`-th write at `place`."""
    from mnist_cnn import files
    from mnist_cnn.runner import run_directory

    calls = 0

    def killing(function, write_part):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == count:
                write_part(*arguments, **keywords)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    def write_half(path, content):
        with open(path.with_name(f".{path.name}.tmp"), "wb") as file:
            file.write(content[: len(content) // 2])

    def log_half(self, entry, series):
        self._metrics.write(json.dumps(entry)[:20])
        self._metrics.flush()

    def nothing(*arguments, **keywords):
        pass

    if place == "json":  # config, environment, result
        run_directory.write_atomically = killing(files.write_atomically, write_half)
    elif place == "metrics":
        run_directory.RunDirectory.log = killing(run_directory.RunDirectory.log, log_half)
    elif place == "rename":  # the last step of a write, in Orbax and in this package
        os.rename = killing(os.rename, nothing)
        os.replace = killing(os.replace, nothing)
    elif place == "data":  # between the files of the prepared data
        hashlib.file_digest = killing(hashlib.file_digest, nothing)


def run_until_it_ends(experiment, workdir, kills, rng, environment):
    """Starts a run until it ends, and kills it at most `kills` times: the places of the kills."""
    places = []
    command = ["--config", str(experiment), "--workdir", str(workdir)]
    while True:
        place = None
        if len(places) < kills:
            place = rng.choice(["any", "any", "any", "any", "json", "metrics", "rename", "data"])
        if place in (None, "any"):
            arguments = [sys.executable, "-m", "mnist_cnn.main", *command]
        else:
            count = str(rng.randint(1, 4))
            if place == "data":  # there must be data to prepare
                shutil.rmtree(environment["TFDS_DATA_DIR"], ignore_errors=True)
            arguments = [sys.executable, __file__, "--die", place, count, *command]
        process = subprocess.Popen(
            arguments, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=rng.uniform(1, 6) if place == "any" else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == -signal.SIGKILL:
            places.append(place)
        else:
            assert process.returncode == 0, out
            return places


def end_of(workdir):
    """What two runs must agree on: result, metrics, and the SHA-256 of the last checkpoint."""
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
        rng = random.Random(options.seed)
        run_until_it_ends(experiment, folder / "undisturbed", 0, rng, environment)
        expected = end_of(folder / "undisturbed")
        places = []
        while len(places) < options.kills:
            shutil.rmtree(folder / "killed", ignore_errors=True)
            kills = min(rng.randint(2, 8), options.kills - len(places))
            places += run_until_it_ends(experiment, folder / "killed", kills, rng, environment)
            for ours, theirs in zip(end_of(folder / "killed"), expected, strict=True):
                assert ours == theirs, f"after {places}:\n{ours}\nexpected\n{theirs}"
            print(
                len(places), "kills, the same bits", dict(collections.Counter(places)), flush=True
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die"]:
        place, count = sys.argv[2:4]
        sys.argv[1:4] = []
        from mnist_cnn import command_line, main as command

        die_in_the_middle(place, int(count))
        command_line.run_command(command.main, command.parse_flags)
    else:
        main()
