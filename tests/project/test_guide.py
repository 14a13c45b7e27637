"""Every line of code in docs/from-keras.md runs."""

import os
import re

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import pytest
from conftest import ROOT, read_idx, run

if os.environ.get("CI"):
    import keras
else:
    keras = pytest.importorskip("keras", reason="needs keras: pip install 'mnist_cnn[parity]'")

TEXT = (ROOT / "docs" / "from-keras.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_every_line_of_python_runs_in_order(monkeypatch, capsys):
    """The Keras lines use 320 images of the package instead of downloading the dataset."""

    def load_data():
        return tuple(
            (read_idx(f"{part}-images-idx3-ubyte")[:320, :, :, 0],
             read_idx(f"{part}-labels-idx1-ubyte")[:320])
            for part in ("train", "t10k")
        )  # fmt: skip

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    names = {"keras": {}, "ours": {}}
    for language, side, code in BLOCKS:
        if language == "python":
            exec(compile(code, "from-keras.md", "exec"), names[side])
            names["keras"] |= {"weights": names["ours"].get("weights")}
    assert [side for language, side, _ in BLOCKS if language == "python"].count("keras") == 6
    theirs, ours = names["keras"]["model"], names["ours"]
    assert theirs.count_params() == 3_274_634
    assert len(re.findall(r"^\d\.\d+$", capsys.readouterr().out, flags=re.MULTILINE)) == 3
    probabilities = theirs.predict(names["keras"]["X_test"][:250], verbose=0)
    logits = np.asarray(ours["logits"])[:250]
    np.testing.assert_array_equal(probabilities.argmax(-1), logits.argmax(-1))


@pytest.mark.slow
def test_the_commands_run(tiny_experiment, tmp_path):
    lines = [code.strip() for language, _, code in BLOCKS if language == "sh"]
    assert lines == [
        "python -m mnist_cnn.main --config experiments/base.py --workdir runs/base",
        "python -m mnist_cnn.evaluate --workdir runs/base",
    ]
    train, evaluate = (
        line.replace("experiments/base.py", str(tiny_experiment))
        .replace("runs/base", str(tmp_path))
        .split()[2:]
        for line in lines
    )
    run(*train)
    run(*evaluate, "--config", tiny_experiment)
