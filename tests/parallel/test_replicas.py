"""Many seeds and settings in one run: each network is what it would be alone, the mean is true."""

import contextlib
import io
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, metrics_of, read_idx, result_of, run, same_end, start, wait_for
from flax import linen as nn
from PIL import Image
from scipy import stats

import mnist_cnn
from mnist_cnn import config as config_lib
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.data import dataset as data
from mnist_cnn.errors import CheckpointError
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.console import Console
from mnist_cnn.runner.loop import Diverged, run as run_quietly
from mnist_cnn.training.components import adam, build_hyperparameters
from mnist_cnn.training.options import training_loss
from mnist_cnn.training.state import create_state


def train(tiny_experiment, workdir, **changes):
    config = config_of(tiny_experiment)
    with config.unlocked():
        config.update(changes)
    return run_quietly(config, workdir, console=Console(quiet=True))


@pytest.fixture(scope="module")
def three_seeds(tiny_experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("seeds") / "run"
    return workdir, train(tiny_experiment, workdir, num_seeds=3, seed=1336)


def test_a_seed_is_the_same_network_alone_and_among_many(three_seeds, undisturbed):
    alone, (workdir, together) = result_of(undisturbed[0]), three_seeds
    assert together["seeds"] == [1336, 1337, 1338]
    assert len(set(together["params_sha256"])) == 3
    assert together["params_sha256"][1] == alone["params_sha256"][0]
    for key in ("accuracy", "loss", "correct"):
        assert together["test"][key][1] == alone["test"][key][0]
    for one, many in zip(metrics_of(undisturbed[0]), metrics_of(workdir), strict=True):
        assert (one["step"], one["split"]) == (many["step"], many["split"])
        assert (one["loss"], one["accuracy"]) == (many["loss"][1], many["accuracy"][1])


def test_the_mean_has_its_interval_by_students_t_and_the_ensemble_its_accuracy(three_seeds):
    workdir, result = three_seeds
    accuracies = result["test"]["accuracy"]
    low, high = stats.t.interval(0.95, 2, np.mean(accuracies), stats.sem(accuracies))
    assert result["test_mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["test_mean"]["ci95"] == pytest.approx((high - low) / 2)
    assert result["test_mean"]["loss"] == pytest.approx(np.mean(result["test"]["loss"]))
    with np.load(workdir / "predictions.npz") as kept:
        logits, labels = kept["logits"], kept["labels"]
    p = np.mean([np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits], axis=0)
    assert result["ensemble"]["correct"] == int((p.argmax(-1) == labels).sum())
    assert result["ensemble"]["accuracy"] == result["ensemble"]["correct"] / 250
    loss = -np.log(p[np.arange(250), labels]).mean()
    assert result["ensemble"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_each_network_can_be_loaded_and_evaluated_by_its_seed(three_seeds, tiny_experiment):
    workdir, result = three_seeds
    config = config_of(tiny_experiment)
    for place, seed in enumerate(result["seeds"]):
        network = mnist_cnn.load(workdir, config, seed=seed)
        assert network.seed == seed
        assert sha256(network.params) == result["params_sha256"][place]
        figures = evaluate(workdir, config=config, seed=seed)
        assert [figures[key] for key in ("seed", "accuracy", "loss", "correct")] == [
            seed, *(result["test"][key][place] for key in ("accuracy", "loss", "correct")),
        ]  # fmt: skip
    assert mnist_cnn.load(workdir, config).seed == 1336
    with pytest.raises(CheckpointError, match="got seed 7, expected 1336 to 1338"):
        mnist_cnn.load(workdir, config, seed=7)


def test_the_commands_take_a_network_by_its_seed(three_seeds, tiny_experiment, tmp_path):
    workdir, result = three_seeds
    images = read_idx("t10k-images-idx3-ubyte")[:1]
    Image.fromarray(images[0, ..., 0]).save(digit := tmp_path / "digit.png")
    given = ("--workdir", workdir, "--config", tiny_experiment, "--seed=1338")
    assert json.loads(run("mnist_cnn.evaluate", *given, "--json")[0])["loss"] == pytest.approx(
        result["test"]["loss"][2], rel=1e-6
    )
    config = config_of(tiny_experiment)
    wanted = [
        mnist_cnn.load(workdir, config, seed=seed).probabilities(images).max()
        for seed in (1336, 1338)
    ]
    answer = json.loads(run("mnist_cnn.predict", *given, "--json", digit)[0])
    assert answer["probability"] == pytest.approx(wanted[1], abs=1e-6) != wanted[0]
    out, _ = run("mnist_cnn.export", *given, "--format=safetensors", f"--output={tmp_path}/out")
    assert "seed 1338" in out
    for command, *pictures in (["predict", digit], ["demo"]):
        _, err = run(f"mnist_cnn.{command}", *given, "--seed=7", *pictures, status=1)
        assert "got seed 7, expected 1336 to 1338" in err


def test_a_killed_study_ends_with_the_same_bits(three_seeds, tiny_experiment, tmp_path):
    command = (
        "mnist_cnn.main", "--config", tiny_experiment, "--workdir", tmp_path,
        "--config.num_seeds=3", "--config.seed=1336",
    )  # fmt: skip
    process = start(*command)
    wait_for(lambda: (tmp_path / "checkpoints" / "10").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = run(*command)
    assert "going on from the checkpoint of step" in out and "Student's t" in out
    same_end(tmp_path, three_seeds[0])


def test_going_on_with_other_groups_is_said(three_seeds, tiny_experiment, tmp_path):
    config = config_of(tiny_experiment)
    config.update(num_seeds=3, seed=1336, num_steps=20)
    mnist_cnn.run(config, tmp_path)
    config.update(num_steps=40, replicas_at_once=3)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        mnist_cnn.run(config, tmp_path)
    assert "note: the run began with other replicas_at_once" in " ".join(output.getvalue().split())


def test_groups_that_the_seeds_do_not_fill_change_no_result(three_seeds, tiny_experiment, tmp_path):
    """Two at a time, computed together: the same networks but for rounding, in the same order."""
    grouped = train(tiny_experiment, tmp_path, num_seeds=3, seed=1336, replicas_at_once=2)
    expected = three_seeds[1]
    assert grouped["seeds"] == expected["seeds"] and len(set(grouped["params_sha256"])) == 3
    np.testing.assert_allclose(grouped["test"]["loss"], expected["test"]["loss"], rtol=1e-3)


def replicas_of(small_mnist, **changes):
    config = mnist_cnn.experiment(batch_size=16, **changes)
    images, labels = data.open_dataset("mnist", str(small_mnist)).read("train")
    mesh = make_mesh(config, config["num_seeds"], jax.devices())
    return Replicas(config, mesh, images, labels)


def test_networks_trained_together_agree_with_those_alone_over_five_steps(small_mnist):
    """The base network: alone in turn to the bit, computed together within 1e-4 of the loss."""
    alone = replicas_of(small_mnist, seed=5)
    in_turn = replicas_of(small_mnist, seed=4, num_seeds=3)
    together = replicas_of(small_mnist, seed=4, num_seeds=3, replicas_at_once=3)
    assert (in_turn.at_once, together.at_once) == (1, 3)
    for step in range(5):
        losses = [part.advance(0, step, step + 1).loss for part in (alone, in_turn, together)]
        for part in (alone, in_turn, together):
            part.clear_sums()
        assert losses[0][0] == losses[1][1]
        np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)
    assert sha256(alone.variables([0])[0]) == sha256(in_turn.variables([1])[0])


def test_what_does_not_fit_an_accelerator_waits_in_the_hosts_memory(small_mnist, monkeypatch):
    """As on a device with room for two of five: three groups, none of which is lost."""
    expected = replicas_of(small_mnist, num_seeds=5, replicas_at_once=2)
    monkeypatch.setattr(parallel, "on_cpu", lambda mesh: False)
    monkeypatch.setattr(Replicas, "_fits", lambda self: self.at_once <= 2)
    parked = replicas_of(small_mnist, num_seeds=5)
    assert parked.at_once == expected.at_once == 2
    kinds = [leaf.sharding.memory_kind for g in parked._groups for leaf in jax.tree.leaves(g.state)]
    assert set(kinds) == {"pinned_host"}
    for trained in (parked, expected):
        trained.advance(0, 0, 2)
        trained.restore(trained.snapshot())
        trained.advance(0, 2, 3)
    parked_ones, expected_ones = (one.variables(range(5)) for one in (parked, expected))
    assert [*map(sha256, parked_ones)] == [*map(sha256, expected_ones)]
    assert parked.finite().tolist() == [True] * 5


def test_the_program_does_not_grow_with_the_number_of_replicas(small_mnist):
    def instructions(num_seeds):
        trained = replicas_of(small_mnist, num_seeds=num_seeds, replicas_at_once=num_seeds)
        return trained.training.as_text().count(" = ")

    few, many = instructions(2), instructions(6)
    assert abs(many - few) <= 0.05 * few


# Sweeps.

HALVES = {"train_split": "train[:400]", "validation_split": "train[400:]"}


@pytest.fixture(scope="module")
def sweep(tiny_experiment, tmp_path_factory):
    """Three learning rates, of which one diverges, two seeds each."""
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    changes = {"sweep": {"learning_rate": [1e-4, 3e-3, 1e30]}, "num_seeds": 2, "report": True}
    return workdir, train(tiny_experiment, workdir, **HALVES, **changes)


def test_a_sweep_is_judged_on_validation_and_tested_in_the_chosen_setting(
    sweep, tiny_experiment, tmp_path
):
    workdir, result = sweep
    settings = result["sweep"]["settings"]
    assert [one["setting"] for one in settings] == [
        {"learning_rate": rate} for rate in (1e-4, 3e-3, 1e30)
    ]
    assert [one["status"] for one in settings] == ["finished", "finished", "diverged"]
    means = [one["validation_mean"]["accuracy"] for one in settings[:2]]
    assert result["sweep"]["chosen"] == int(np.argmax(means)) == 1
    assert settings[0]["validation"]["examples"] == 100
    plain = train(tiny_experiment, tmp_path, **HALVES, learning_rate=3e-3, num_seeds=2)
    for key in ("seeds", "test", "test_mean", "params_sha256", "ensemble"):
        assert result[key] == plain[key]
    validation = [e for e in metrics_of(tmp_path) if e["split"] == "validation"][-1]
    assert settings[1]["validation"]["accuracy"] == validation["accuracy"]
    with np.load(workdir / "predictions.npz") as kept:
        assert kept["logits"].shape == (2, 250, 10)


def test_a_sweeps_files_are_json_and_its_report_a_page(sweep):
    workdir, _ = sweep
    json.loads((workdir / "result.json").read_text(), parse_constant=pytest.fail)
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_constant=pytest.fail)
        assert len(np.atleast_1d(entry["loss"])) == (2 if entry["split"] == "test" else 6)
    page = (workdir / "report.html").read_text()
    assert "The sweep, judged on train[400:]" in page and "Mistakes over learning_rate" in page
    assert "diverged" in page and "chosen" in page


class Lottery(nn.Module):
    """Of some seeds it is not finite from the beginning."""

    @nn.compact
    def __call__(self, images):
        def blank(key):
            return jnp.where(jax.random.bernoulli(key), jnp.nan, 0.0)

        return nn.Dense(10)(images.reshape(-1, 784)) + self.param("blank", blank)


def test_a_sweep_of_which_every_setting_lost_a_seed_says_so(tiny_experiment, tmp_path):
    rates = {"learning_rate": [1e-3, 1e-2]}
    lost = []
    for seed in range(8):
        state = create_state(mnist_cnn.experiment(model=Lottery(), seed=seed))
        lost.append(bool(jnp.isnan(state.params["blank"])))
    first = next(seed for seed in range(7) if lost[seed] != lost[seed + 1])
    with pytest.raises(Diverged, match="not finite at step"):
        train(
            tiny_experiment, tmp_path, **HALVES, sweep=rates, model=Lottery(), seed=first,
            num_seeds=2, num_steps=8,
        )  # fmt: skip
    assert result_of(tmp_path)["status"] == "diverged"


def test_a_sweep_in_which_everything_diverges_says_so(tiny_experiment, tmp_path):
    with pytest.raises(Diverged, match="not finite at step"):
        train(tiny_experiment, tmp_path, **HALVES, sweep={"learning_rate": [1e30, 1e31]})
    assert result_of(tmp_path)["status"] == "diverged"


VALUES = {
    "learning_rate": 3e-3, "b1": 0.5, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.1,
    "label_smoothing": 0.2, "ema": 0.5, "rotation": 20.0, "zoom": 0.2, "shear": 0.2, "shift": 2.0,
}  # fmt: skip
SHORT = {**HALVES, "num_steps": 10}


@pytest.fixture(scope="module")
def ten_steps(tiny_experiment, tmp_path_factory):
    """The result and the validation loss of the defaults."""
    workdir = tmp_path_factory.mktemp("ten_steps") / "run"
    return train(tiny_experiment, workdir, **SHORT), validation_loss(workdir)


def validation_loss(workdir):
    return next(line["loss"] for line in metrics_of(workdir) if line["split"] == "validation")


@pytest.mark.parametrize("name", config_lib.HYPERPARAMETERS)
def test_every_hyper_parameter_reaches_the_step_swept_or_set(
    name, ten_steps, tiny_experiment, tmp_path
):
    value, default = VALUES[name], config_lib.FIELDS[name].default
    swept = train(tiny_experiment, tmp_path / "a", **SHORT, sweep={name: [default, value]})
    plain = train(tiny_experiment, tmp_path / "b", **SHORT, **{name: value})
    base, loss = ten_steps
    found = [one["validation_mean"]["loss"] for one in swept["sweep"]["settings"]]
    np.testing.assert_allclose(found, [loss, validation_loss(tmp_path / "b")], rtol=1e-4)
    assert base["params_sha256"] != plain["params_sha256"]
    assert swept["params_sha256"][0] in (plain["params_sha256"] + base["params_sha256"]) or (
        default == 0  # left out where not asked for: other rounding
    )


def test_label_smoothing_is_that_of_szegedy_et_al():
    state = create_state(mnist_cnn.experiment(label_smoothing=0.3))
    logits, labels = jax.random.normal(jax.random.key(0), (7, 10)), jnp.arange(7)
    target = 0.7 * jax.nn.one_hot(labels, 10) + 0.03
    expected = -(target * jax.nn.log_softmax(logits)).sum(-1)
    loss = training_loss(state, logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_weight_decay_is_decoupled():
    hyper = build_hyperparameters(mnist_cnn.experiment(weight_decay=0.5, learning_rate=0.01))
    plain = {key: value for key, value in hyper.items() if key != "weight_decay"}
    params, gradients = {"w": jnp.array([2.0, -3.0])}, {"w": jnp.array([0.1, 0.2])}
    steps = []
    for chosen in (hyper, plain):
        optimizer = adam(chosen)
        steps.append(optimizer.update(gradients, optimizer.init(params), params)[0]["w"])
    np.testing.assert_allclose(steps[0] - steps[1], -0.01 * 0.5 * params["w"], rtol=1e-4)


def test_an_unfinished_sweep_has_no_network_yet(sweep, tiny_experiment, tmp_path):
    shutil.copytree(sweep[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="no setting is chosen yet"):
        mnist_cnn.load(tmp_path / "run", config_of(tiny_experiment))
    network = mnist_cnn.load(sweep[0], config_of(tiny_experiment))
    assert sha256(network.params) == sweep[1]["params_sha256"][0]
