"""A sweep whose settings are runs of their own, read again: its chosen network, and its report."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, result_of, run
from flax import linen as nn

import mnist_cnn
from mnist_cnn import config as config_lib, report
from mnist_cnn.analysis import finished_runs, plots, run_settings, sweep_plots
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner import join
from mnist_cnn.runner.checkpoint import sha256

EXPERIMENT = """
import mnist_cnn
from test_sweeps import Wide, experiment

def get_config():
    return experiment({manual_dir!r})
"""


class Wide(nn.Module):
    hidden: int = 8

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(nn.relu(nn.Dense(self.hidden)(images.reshape(images.shape[0], -1))))


class Narrow(Wide):
    pass


def experiment(manual_dir):
    """Four settings; the first two are so short that they are not chosen."""
    return mnist_cnn.experiment(
        name="several", manual_dir=manual_dir, train_split="train[:400]", num_seeds=2, num_steps=30,
        validation_split="train[400:]", model=Wide(), batch_size=20, report=False,
        variants={"short": {"num_steps": 2}, "narrow": {"model": Narrow(), "model.hidden": 12}},
        sweep={"learning_rate": [1e-3, 4e-3]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def sweep(small_mnist, tmp_path_factory):
    """The configuration and the directory of a sweep with four settings and two seeds."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    config = experiment(str(small_mnist))
    mnist_cnn.run(config, folder, quiet=True)
    return config, folder


def test_load_is_the_network_of_the_chosen_setting(sweep):
    config, folder = sweep
    result = result_of(folder)
    assert result["sweep"]["chosen"] == 3
    for given in (config, config_lib.of_setting(config, config_lib.settings(config)[3])):
        network = mnist_cnn.load(folder, given)
        assert type(network.model) is Narrow and network.model.hidden == 12
        assert sha256(network.variables) == result["params_sha256"][0]
    other = mnist_cnn.load(folder, config, seed=1338)
    assert sha256(other.variables) == result["params_sha256"][1] and other.config["sweep"] is None
    found = evaluate(folder, config=config, seed=1338)
    assert found["accuracy"] == result["test"]["accuracy"][1]
    direct = mnist_cnn.load(folder / "settings" / "000", config)
    assert type(direct.model) is Wide and direct.step == 2
    with pytest.raises(CheckpointError, match=r"got seed 3, expected 1337 to 1338"):
        mnist_cnn.load(folder, config, seed=3)


def test_load_without_the_module_says_what_to_give(sweep):
    _, folder = sweep
    with pytest.raises(CheckpointError, match=r"its model is 'Narrow.* --config EXPERIMENT"):
        mnist_cnn.load(folder)
    plain = mnist_cnn.experiment(model=Wide())
    with pytest.raises(CheckpointError, match=r"belongs to another configuration \(model: was 'Na"):
        mnist_cnn.load(folder, plain)


@pytest.mark.slow
def test_commands_use_the_chosen_setting(sweep, tmp_path):
    config, folder = sweep
    path = tmp_path / "several.py"
    path.write_text(EXPERIMENT.format(manual_dir=str(config["manual_dir"])))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "analysis")])
    out, err = run(
        "mnist_cnn.evaluate", "--workdir", folder, "--config", path, "--json", PYTHONPATH=paths
    )
    assert json.loads(out)["accuracy"] == result_of(folder)["test"]["accuracy"][0] and err == ""
    out, _ = run(
        "mnist_cnn.export", "--workdir", folder, "--config", path, "--format=safetensors",
        "--output", tmp_path / "x", PYTHONPATH=paths,
    )  # fmt: skip
    assert "seed 1337, step 30" in out


def test_unfinished_sweep_has_no_network_and_a_report_of_what_is_there(sweep, tmp_path):
    config, folder = sweep
    begun = shutil.copytree(folder, tmp_path / "run")
    for name in ("result.json", "predictions.npz"):
        (begun / name).unlink()
    shutil.rmtree(begun / "settings" / "003")
    (begun / "settings" / "002" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="no setting is chosen yet"):
        mnist_cnn.load(begun, config)
    found = finished_runs.read(begun)
    assert found.note == (
        f"{begun} is not finished: 2 of its 4 settings are validated so far. It has no test "
        "result; run its command again to finish it."
    )
    labels = [one.label for one in run_settings.curves_of(found, "")]
    assert labels == [
        "short, learning_rate=0.001", "short, learning_rate=0.004", "narrow, learning_rate=0.001"
    ]  # fmt: skip
    assert report.write([begun], tmp_path / "x.html") == [found.note]
    assert "narrow, learning_rate=0.001, training, step 30" in (tmp_path / "x.html").read_text()
    shutil.rmtree(begun / "settings")
    (begun / "settings").mkdir()
    report.write([begun], tmp_path / "x.html")


@pytest.mark.slow
def test_report_has_a_row_for_each_setting_and_the_curves_of_the_chosen_one(sweep, tmp_path):
    _, folder = sweep
    found = finished_runs.read(folder)
    assert found.setting["learning_rate"] == 4e-3 and found.fields["model.hidden"] == 12
    steps, losses = run_settings.settings_of([found])[0].series("validation", "loss")
    assert steps.tolist() == [20, 30] and losses.shape[0] == 2
    (sentence,) = report.write([folder], tmp_path / "x.html")
    chosen = "Setting with the best validation accuracy: narrow, learning_rate=0.004."
    assert sentence.endswith(chosen)
    page = (tmp_path / "x.html").read_text()
    assert "<tr><th>narrow, learning_rate=0.004 (chosen)</th><td>30</td><td>" in page
    assert "<tr><th>short, learning_rate=0.001</th><td>2</td><td>" in page
    assert "All networks together took 128 steps." in page
    assert "<h2>Error of each setting</h2>" in page


def test_a_setting_that_is_not_chosen_has_a_page_without_a_test(sweep, tmp_path):
    (sentence,) = report.write([sweep[1] / "settings" / "001"], tmp_path / "x.html")
    assert "is one setting of a sweep, validated at step 2. It has no test result" in sentence
    assert "not tested" in (tmp_path / "x.html").read_text()


@pytest.mark.slow
def test_two_sweeps_are_compared_by_their_chosen_settings(sweep, tmp_path):
    config, folder = sweep
    other = mnist_cnn.experiment(**{
        key: config[key] for key in config_lib.FIELDS if key not in ("variants", "sweep")
    }, sweep={"model.hidden": [6]})  # fmt: skip
    mnist_cnn.run(other, tmp_path / "run", quiet=True)
    (sentence, *_) = report.write([folder, tmp_path / "run"], tmp_path / "x.html")
    assert re.match(
        r"several, model=Wide\(hidden=6\), learning_rate=0.001 compared with several, "
        r"model=Narrow\(hidden=12\), learning_rate=0.004: .* over 2 seeds",
        sentence,
    )


def test_join_refuses_it_in_one_line(sweep, tmp_path):
    with pytest.raises(CheckpointError, match=r"a sweep; only seeds of one setting can be joined$"):
        join.join([sweep[1], sweep[1]], tmp_path / "x")


def entry(status, accuracy, **setting):
    return {"setting": setting, "status": status, "validation": {"accuracy": accuracy}}


def test_stopped_settings_are_hollow_points_beside_the_line(monkeypatch):
    found = []
    empty = plots.Plot("", "", b"", b"")
    for name in ("error_over_field", "_error_by_setting"):
        monkeypatch.setattr(sweep_plots, name, lambda *given: found.append(given) or empty)
    rates = [
        entry("finished", [0.9, 0.8], rate=0.1, variant="a"),
        entry("stopped", [0.7, 0.6], rate=0.2, variant="a"),
        entry("stopped", [0.5, 0.4], rate=0.3, variant="a"),
        {"setting": {"rate": 9.0, "variant": "a"}, "status": "diverged"},
    ]
    sweep_plots.error_over_sweep({"settings": rates})
    name, lines, split, note, stopped = found.pop()
    assert (name, split, list(lines), list(stopped)) == ("rate", "validation", ["a"], ["a"])
    assert list(lines["a"]) == [0.1] and list(stopped["a"]) == [0.2, 0.3]
    np.testing.assert_allclose(stopped["a"][0.3], [50, 60])
    assert "Settings that diverged are left out. Hollow points are settings" in note
    names = [entry("finished", [0.9], model=one, batch_size=9) for one in ("cnn", "MLP(2)")]
    sweep_plots.error_over_sweep({"settings": names})
    assert [one["setting"]["model"] for one in found.pop()[0]] == ["cnn", "MLP(2)"]
    assert sweep_plots.error_over_sweep({"settings": names[:1]}) == []


def test_many_settings_are_the_best_thirty_of_the_plot():
    many = [entry("finished", [k / 100], variant=f"v{k}") for k in range(40)]
    (plot,) = sweep_plots.error_over_sweep({"settings": many})
    assert plot.caption.endswith("The best 30 of 40 settings.")
