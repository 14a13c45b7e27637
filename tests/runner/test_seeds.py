"""Many seeds in one run: each network is what it would be alone, and the statistics are right."""

import contextlib
import io
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from conftest import config_of, metrics_of, read_idx, result_of, run, same_end, start, wait_for
from PIL import Image
from scipy import stats
from training_runs import train

import mnist_cnn
from mnist_cnn import report, statistics
from mnist_cnn.analysis import evaluation_text, finished_runs, loading
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.errors import CheckpointError
from mnist_cnn.runner import result_text, results
from mnist_cnn.runner.checkpoint import Checkpoints, read_newest, sha256
from mnist_cnn.runner.console import Console


@pytest.fixture(scope="module")
def three_seeds(tiny_experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("seeds") / "run"
    return workdir, train(tiny_experiment, workdir, num_seeds=3, seed=1336)


def test_a_seed_gives_the_same_bits_alone_and_among_many(three_seeds, undisturbed):
    alone, (workdir, together) = result_of(undisturbed[0]), three_seeds
    assert together["seeds"] == [1336, 1337, 1338]
    assert len(set(together["params_sha256"])) == 3
    assert together["params_sha256"][1] == alone["params_sha256"][0]
    for key in ("accuracy", "loss", "correct"):
        assert together["test"][key][1] == alone["test"][key][0]
    for one, many in zip(metrics_of(undisturbed[0]), metrics_of(workdir), strict=True):
        assert (one["step"], one["split"]) == (many["step"], many["split"])
        assert (one["loss"], one["accuracy"]) == (many["loss"][1], many["accuracy"][1])


def test_result_has_the_mean_its_t_interval_and_the_ensemble(three_seeds):
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


@pytest.mark.slow
def test_report_and_result_have_the_same_calibration_error(three_seeds, tmp_path):
    workdir, result = three_seeds
    error = result["test_mean"]["expected_calibration_error"]
    run_of_three = finished_runs.read(workdir)
    assert run_of_three.calibration_error == error
    assert error != statistics.calibration(*run_of_three.pooled).error
    report.write([workdir], tmp_path / "report.html")
    row = f"<th>expected calibration error, mean of 3 seeds</th><td>{error:.4f}</td>"
    assert row in (tmp_path / "report.html").read_text()


def test_two_seeds_that_cannot_tell_an_interval_print_none():
    def printed(accuracies):
        mean = results.mean_metrics(
            [{"accuracy": a, "loss": 1.0, "expected_calibration_error": 0.1} for a in accuracies]
        )
        test = {"examples": 10, "accuracy": accuracies, "loss": [1.0] * 2, "correct": [1] * 2}
        result = {"experiment": "x", "steps": 1, "seeds": [1, 2], "test": test, "test_mean": mean}
        result |= {"ensemble": {"accuracy": 1.0, "loss": 1.0, "correct": 1}, "seconds": {}}
        with contextlib.redirect_stdout(io.StringIO()) as out:
            result_text.show(Console(), result, "run")
        return out.getvalue()

    line = "mean test accuracy 50.000 % (2 seeds are too few for a 95 % confidence interval)"
    assert line in printed([0.0, 1.0])
    line = "mean test accuracy 98.500 +- 0.635 % (95 % confidence interval, Student's t, 2 seeds)"
    assert line in printed([0.9845, 0.9855])


def test_each_network_can_be_loaded_and_evaluated_by_its_seed(three_seeds, tiny_experiment):
    workdir, result = three_seeds
    config = config_of(tiny_experiment)
    for place, seed in enumerate(result["seeds"]):
        network = mnist_cnn.load(workdir, config, seed=seed)
        assert network.seed == seed
        assert sha256(network.params) == result["params_sha256"][place]
        metrics = evaluate(workdir, config=config, seed=seed)
        assert [metrics[key] for key in ("seed", "accuracy", "loss", "correct")] == [
            seed, *(result["test"][key][place] for key in ("accuracy", "loss", "correct")),
        ]  # fmt: skip
    assert mnist_cnn.load(workdir, config).seed == 1336
    with pytest.raises(CheckpointError, match="got seed 7, expected 1336 to 1338"):
        mnist_cnn.load(workdir, config, seed=7)


@pytest.mark.slow
def test_the_commands_select_a_network_by_its_seed(three_seeds, tiny_experiment, tmp_path):
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


def test_all_seeds_are_loaded_as_the_ensemble_of_the_result(three_seeds, tiny_experiment):
    workdir, result = three_seeds
    config, images = config_of(tiny_experiment), read_idx("t10k-images-idx3-ubyte")[:250]
    ensemble = mnist_cnn.load(workdir, config, seed="all")
    assert (ensemble.seed, ensemble.step, ensemble.members) == ((1336, 1337, 1338), 40, (
        1336, 1337, 1338
    ))  # fmt: skip
    logits, *each = ensemble.all_logits(images)
    for seed, one in zip(result["seeds"], each, strict=True):
        np.testing.assert_array_equal(one, mnist_cnn.load(workdir, config, seed=seed)(images))
    with np.load(workdir / "predictions.npz") as kept:
        np.testing.assert_array_equal(each, kept["logits"])
        p = np.exp(statistics.log_probabilities(kept["logits"])).mean(0)
    np.testing.assert_allclose(ensemble.probabilities(images), p, atol=1e-6)
    np.testing.assert_array_equal(logits, ensemble(images))
    with pytest.raises(
        CheckpointError, match="run: got seed 'al', expected 1336 to 1338, or \"all"
    ):
        loading._rows_of("run", result["seeds"], "al")


def test_all_of_one_seed_is_its_network(undisturbed, tiny_experiment):
    config = config_of(tiny_experiment)
    network = mnist_cnn.load(undisturbed[0], config, seed="all")
    assert (network.seed, network.members) == (1337, ())
    assert sha256(network.params) == result_of(undisturbed[0])["params_sha256"][0]
    metrics = evaluate(undisturbed[0], config=config, seed="all")
    assert metrics == evaluate(undisturbed[0], config=config)
    assert not {"members", "disagreement"} & metrics.keys()


def test_an_ensemble_is_evaluated_with_its_members_and_their_disagreement(
    three_seeds, tiny_experiment, capsys
):
    workdir, result = three_seeds
    metrics = evaluate(workdir, config=config_of(tiny_experiment), seed="all")
    json.dumps(metrics, allow_nan=False)
    assert metrics["seed"] == (1336, 1337, 1338) and metrics["examples"] == 250
    for name in ("correct", "accuracy"):
        assert metrics[name] == result["ensemble"][name]
        assert metrics["members"][name] == result["test"][name]
    for name in ("loss", "expected_calibration_error"):
        assert metrics[name] == pytest.approx(result["ensemble"][name], abs=1e-6)
    assert metrics["negative_log_likelihood"] == pytest.approx(metrics["loss"], abs=1e-6)
    likelihoods = metrics["members"]["negative_log_likelihood"]
    np.testing.assert_allclose(likelihoods, result["test"]["loss"], atol=1e-6)
    assert metrics["loss"] < np.mean(likelihoods)
    with np.load(workdir / "predictions.npz") as kept:
        a, b, c = kept["logits"].argmax(-1)
    images = int(((a != b) | (b != c)).sum())
    pairs = np.mean([(a != b).mean(), (a != c).mean(), (b != c).mean()])
    assert metrics["disagreement"] == {"images": images, "pairs": pytest.approx(pairs)}
    assert 0 < images < 250
    evaluation_text.show(Console(), metrics)
    out = capsys.readouterr().out
    assert out.startswith("mnist test, ensemble of seeds 1336 to 1338, step 40\n")
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in out.splitlines()]
    for seed, accuracy in zip(result["seeds"], result["test"]["accuracy"], strict=True):
        assert [str(seed), f"{accuracy:.2%}"] in cells
    assert ["ensemble", f"{metrics['accuracy']:.2%}"] in cells
    assert (
        f"the members disagree on {images} of 250 images; two of them on {pairs:.2%} on average"
    ) in out


@pytest.mark.slow
def test_an_ensemble_that_knows_none_has_the_loss_of_the_result(tiny_experiment, tmp_path):
    result = train(tiny_experiment, tmp_path, num_seeds=2, loss="cross_entropy_or_none")
    config = config_of(tiny_experiment, num_seeds=2, loss="cross_entropy_or_none")
    metrics = evaluate(tmp_path, config=config, seed="all")
    assert metrics["loss"] == pytest.approx(result["ensemble"]["loss"], abs=1e-6)
    assert metrics["correct"] == result["ensemble"]["correct"]
    images = read_idx("t10k-images-idx3-ubyte")[:20]
    each = [mnist_cnn.load(tmp_path, config, seed) for seed in result["seeds"]]
    none = np.mean([network.no_digit(images) for network in each], axis=0)
    ensemble = mnist_cnn.load(tmp_path, config, "all")
    np.testing.assert_allclose(ensemble.no_digit(images), none, atol=1e-6)


def test_a_seed_that_is_not_finite_is_left_out_of_the_ensemble_and_named(
    three_seeds, tiny_experiment, tmp_path, capsys
):
    workdir, config = tmp_path / "run", config_of(tiny_experiment)
    shutil.copytree(three_seeds[0], workdir)
    _, tree, extra = read_newest(workdir / "checkpoints", None, print)
    images = read_idx("t10k-images-idx3-ubyte")[:20]

    def load_with(seeds, step):
        """The ensemble after a checkpoint whose parameters are NaN for these seeds."""
        for seed in seeds:
            for leaf in jax.tree.leaves(tree["state"]["params"]):
                leaf[seed - 1336] = np.nan
        with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=10)) as checkpoints:
            checkpoints.save(step, tree, extra)
            checkpoints.wait()
        return mnist_cnn.load(workdir, config, seed="all")

    tree = jax.tree.map(np.array, tree)
    ensemble = load_with([1337], 41)
    reason = "left out of the ensemble, because of parameters that are not finite: seed 1337\n"
    assert capsys.readouterr().err == f"{workdir}: {reason}"
    assert ensemble.members == (1336, 1338)
    each = [mnist_cnn.load(workdir, config, seed) for seed in (1336, 1338)]
    mean = np.mean([network.probabilities(images) for network in each], axis=0)
    np.testing.assert_allclose(ensemble.probabilities(images), mean, atol=1e-6)
    evaluation_text.show(Console(), evaluate(workdir, "test[:50]", config=config, seed="all"))
    assert capsys.readouterr().out.startswith("mnist test[:50], ensemble of seeds 1336, 1338, step")
    assert (load_with([1336], 42).seed, capsys.readouterr().err.count("\n")) == (1338, 1)
    with pytest.raises(CheckpointError, match="no ensemble, because all members have") as error:
        load_with([1338], 43)
    assert "\n" not in str(error.value)


def test_the_ensemble_of_an_unfinished_run_is_that_of_its_newest_checkpoint(
    three_seeds, tiny_experiment, tmp_path
):
    shutil.copytree(three_seeds[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    config, images = config_of(tiny_experiment), read_idx("t10k-images-idx3-ubyte")[:20]
    ensemble = mnist_cnn.load(tmp_path / "run", config, seed="all")
    assert ensemble.step == 30
    same = mnist_cnn.load(three_seeds[0], config, seed="all", step=30)
    np.testing.assert_array_equal(ensemble(images), same(images))


@pytest.mark.slow
def test_the_commands_take_all_seeds(three_seeds, tiny_experiment, tmp_path):
    workdir, result = three_seeds
    given = ("--workdir", workdir, "--config", tiny_experiment, "--seed=all")
    found = json.loads(run("mnist_cnn.evaluate", *given, "--json")[0])
    assert found["seed"] == [1336, 1337, 1338] and found["correct"] == result["ensemble"]["correct"]
    path = tmp_path / "all.safetensors"
    out, _ = run("mnist_cnn.export", *given, "--format=safetensors", "--output", path)
    assert out.endswith(" bytes, ensemble of seeds 1336 to 1338, step 40\n")
    given = ("--workdir", path, "--config", tiny_experiment)
    again = json.loads(run("mnist_cnn.evaluate", *given, "--json")[0])
    assert again | {"workdir": str(workdir)} == found
    for command in ("evaluate", "predict", "export", "demo"):
        _, err = run(f"mnist_cnn.{command}", *given, "--seed=al", status=2)
        assert err == (
            "error: flag --seed=al: expected a seed, such as 1337, or all, the ensemble of all "
            "seeds\n"
        )


@pytest.mark.slow
def test_a_killed_run_of_seeds_ends_with_the_same_bits(three_seeds, tiny_experiment, tmp_path):
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
    assert "resuming from the checkpoint of step" in out and "Student's t" in out
    same_end(tmp_path, three_seeds[0])


@pytest.mark.slow
def test_resuming_with_other_groups_is_noted(three_seeds, tiny_experiment, tmp_path):
    config = config_of(tiny_experiment)
    config.update(num_seeds=3, seed=1336, num_steps=20)
    mnist_cnn.run(config, tmp_path)
    config.update(num_steps=40, replicas_at_once=3)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        mnist_cnn.run(config, tmp_path)
    assert "note: the run began with other replicas_at_once" in " ".join(output.getvalue().split())


@pytest.mark.slow
def test_an_incomplete_group_of_seeds_changes_no_result(three_seeds, tiny_experiment, tmp_path):
    """Two at a time, computed together: the same networks but for rounding, in the same order."""
    grouped = train(tiny_experiment, tmp_path, num_seeds=3, seed=1336, replicas_at_once=2)
    expected = three_seeds[1]
    assert grouped["seeds"] == expected["seeds"] and len(set(grouped["params_sha256"])) == 3
    np.testing.assert_allclose(grouped["test"]["loss"], expected["test"]["loss"], rtol=1e-3)
