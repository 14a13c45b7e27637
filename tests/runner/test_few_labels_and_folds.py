"""Runs on few labels, and runs of a cross-validation, whose test images stay unread."""

import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    TINY_EXPERIMENT,
    config_of,
    finish,
    metrics_of,
    newest_step,
    run,
    same_end,
    start,
    wait_for,
)
from networks import Normalized
from training_runs import train

import mnist_cnn
from mnist_cnn.analysis.evaluation import evaluate
from mnist_cnn.data import dataset as data, folds, tfds_builder
from mnist_cnn.errors import ConfigError
from mnist_cnn.runner import recorded_config
from mnist_cnn.runner.join import join
from mnist_cnn.runner.smoke import check
from mnist_cnn.training import batches

FEW = {"labels_per_class": 9, "batch_size": 20}  # 90 images: the last batch is partial
HALF = {"train_split": "train[:250]", "validation_split": "train[250:]"}


@pytest.fixture(scope="module")
def few(tiny_experiment, tmp_path_factory):
    """The run directory and the result of two seeds on few labels."""
    workdir = tmp_path_factory.mktemp("few") / "run"
    return workdir, train(tiny_experiment, workdir, **FEW, num_seeds=2)


@pytest.fixture(scope="module")
def third_fold(tiny_experiment, tmp_path_factory):
    """The run directory and the result of two seeds trained without a fold."""
    workdir = tmp_path_factory.mktemp("fold") / "run"
    with pytest.MonkeyPatch.context() as patch:
        read = tfds_builder.read

        def read_training_only(directory, split, *others):
            assert split == "train", "the run reads the test images"
            return read(directory, split, *others)

        patch.setattr(tfds_builder, "read", read_training_only)
        return workdir, train(tiny_experiment, workdir, fold="3/10", num_seeds=2, seed=1336)


# Few labels.


@pytest.mark.slow
def test_a_seed_has_the_same_few_labels_alone_among_many_and_in_a_sweep(
    few, tiny_experiment, tmp_path
):
    both = few[1]["params_sha256"]
    assert len(set(both)) == 2
    alone = train(tiny_experiment, tmp_path / "alone", **FEW, seed=1338)
    assert alone["params_sha256"] == [both[1]]
    assert alone["test"]["loss"][0] == few[1]["test"]["loss"][1]
    swept = train(
        tiny_experiment, tmp_path / "sweep", **FEW | HALF, sweep={"learning_rate": [1e-3, 1e-12]}
    )
    plain = train(tiny_experiment, tmp_path / "plain", **FEW | HALF)
    assert swept["params_sha256"] == plain["params_sha256"] != alone["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [None, Normalized()], ids=["tiny", "with statistics of batches"])
def test_the_other_images_change_nothing(model, tiny_experiment, small_mnist, tmp_path):
    """Not even as the images that complete the last batch of an epoch."""
    labels = data.open_dataset("mnist", small_mnist).read("train")[1]
    sizes = np.unique(labels, return_counts=True)[1]
    used = np.asarray(batches.subset(jnp.uint32(1337), jnp.asarray(labels), sizes.tolist(), 9))
    assert np.bincount(labels[used]).tolist() == [9] * 10
    shutil.copytree(small_mnist, changed := tmp_path / "mnist")
    path = changed / "train-images-idx3-ubyte"
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    images = content[16:].reshape(500, -1)
    images[np.setdiff1d(np.arange(500), used)] ^= 255
    path.write_bytes(content.tobytes())
    changes = FEW | {"num_steps": 12} | ({"model": model} if model else {})
    one = train(tiny_experiment, tmp_path / "one", **changes)
    other = train(tiny_experiment, tmp_path / "other", **changes, manual_dir=str(changed))
    assert one["params_sha256"] == other["params_sha256"]
    assert one["training_images"] == 90


def test_an_epoch_has_only_the_few_images(few):
    assert metrics_of(few[0])[-1]["epoch"] == 40 / 5  # 90 images in batches of 20
    assert few[1]["training_images"] == 90


@pytest.mark.slow
def test_a_killed_run_on_few_labels_ends_with_the_same_bits(tiny_experiment, tmp_path):
    command = (
        "mnist_cnn.main", "--config", tiny_experiment, "--config.labels_per_class=9",
        "--config.batch_size=20", "--config.num_seeds=2", "--config.num_steps=300",
    )  # fmt: skip
    process = start(*command, "--workdir", tmp_path / "killed")
    wait_for(lambda: newest_step(tmp_path / "killed") or process.poll() is not None)
    process.kill()
    finish(process, -signal.SIGKILL)
    out, _ = run(*command, "--workdir", tmp_path / "killed")
    assert "resuming from the checkpoint of step" in out
    said = "500 training images (train; each seed trains on 90, 9 of each class), 250 test images"
    assert said in out
    train(
        tiny_experiment, tmp_path / "whole", **FEW, num_seeds=2, num_steps=300, checkpoint_every=500
    )
    same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_runs_on_few_labels_can_be_joined(few, tiny_experiment, tmp_path):
    for seed in (1337, 1338):
        train(tiny_experiment, tmp_path / str(seed), **FEW, seed=seed)
    join([tmp_path / "1337", tmp_path / "1338"], tmp_path / "joined")
    result = train(tiny_experiment, tmp_path / "joined", **FEW, num_seeds=2)
    assert result["params_sha256"] == few[1]["params_sha256"]
    assert result["test"] == few[1]["test"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"labels_per_class": 40},
            "config.labels_per_class: got 40, expected an integer from 1 to 39, the number of "
            "training images of class 5, the smallest one",
        ),
        (
            {"labels_per_class": 36, "fold": "1/10"},
            "config.labels_per_class: got 36, expected an integer from 1 to 35, the number of "
            "training images of class 5",
        ),
        ({"labels_per_class": 2}, "config.batch_size: got 30, expected an integer from 1 to 20"),
        (
            {**FEW, "schedule": "cosine", "warmup_steps": 5, "num_steps": None},
            "config.warmup_steps: got 5, expected fewer than the 5 steps of the whole training",
        ),
        ({"fold": "1/40"}, "config.fold: got '1/40', expected at most 39 folds"),
        ({"fold": "4/3"}, "config.fold: got '4/3', expected I/N with N of at least 2 and I from 1"),
        ({"fold": "1/1"}, "config.fold: got '1/1', expected I/N with N of at least 2"),
        (
            {"fold": "1/3", "train_split": "train[:300]", "validation_split": "train[200:]"},
            "'train[200:]' shares images with train_split 'train[:300]'",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes, said, tiny_experiment, tmp_path
):
    with pytest.raises(ConfigError) as error:
        train(tiny_experiment, tmp_path / "run", **changes)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_smoke_check_trains_on_few_labels_without_the_fold(tiny_experiment, capsys):
    assert check(config_of(tiny_experiment, **FEW, fold="3/10", smoke=True))
    out = capsys.readouterr().out
    assert "449 training images" in out and "5 steps" not in out and "evaluate" in out


# Folds.


def test_the_held_out_images_are_scored_and_the_test_images_stay_unread(third_fold, small_mnist):
    workdir, result = third_fold
    dataset = data.open_dataset("mnist", small_mnist)
    images, labels = folds.read_tested(dataset, mnist_cnn.experiment(fold="3/10"))
    assert result["fold"] == "3/10" and result["test"]["examples"] == len(labels) == 51
    assert result["training_images"] == 449
    with np.load(workdir / "predictions.npz") as kept:
        np.testing.assert_array_equal(kept["labels"], labels)
        np.testing.assert_array_equal(kept["images"], images[kept["wrong"], :, :, 0])
    last = metrics_of(workdir)[-1]
    assert last["split"] == "held-out fold 3/10" and last["correct"] == result["test"]["correct"]
    assert not any(line["split"] == "test" for line in metrics_of(workdir))


@pytest.mark.slow
def test_every_word_of_a_run_names_the_held_out_fold(tiny_experiment, tmp_path, capsys):
    mnist_cnn.run(config_of(tiny_experiment, fold="3/10", num_seeds=2, num_steps=5), tmp_path)
    out = capsys.readouterr().out
    assert "449 training images (train without fold 3/10), 51 in held-out fold 3/10, the " in out
    assert "| held-out fold 3/10 accuracy | held-out fold 3/10 loss |" in out
    assert "mean held-out fold 3/10 accuracy " in out
    assert " test " not in out.replace("the test images stay unread", "")


def test_a_fold_is_trained_on_the_other_images_alone(third_fold, small_mnist, tmp_path):
    """The other images alone, as a data set of their own, give the same bits."""
    dataset = data.open_dataset("mnist", small_mnist)
    images, labels = folds.read_training(dataset, mnist_cnn.experiment(fold="3/10"))
    shutil.copytree(small_mnist, alone := tmp_path / "mnist")
    header = np.array([2051, len(images), 28, 28], ">i4").tobytes()
    (alone / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = np.array([2049, len(labels)], ">i4").tobytes()
    content = header + labels.astype(np.uint8).tobytes()
    (alone / "train-labels-idx1-ubyte").write_bytes(content)
    config = json.loads((third_fold[0] / "config.json").read_text())
    assert config["fold"] == "3/10" and config["labels_per_class"] is None
    (tmp_path / "tiny.py").write_text(TINY_EXPERIMENT.format(manual_dir=str(alone)))
    result = train(tmp_path / "tiny.py", tmp_path / "run", num_seeds=2, seed=1336)
    assert result["params_sha256"] == third_fold[1]["params_sha256"]


def test_evaluate_scores_the_held_out_fold_unless_told_otherwise(third_fold, tiny_experiment):
    workdir, result = third_fold
    config = config_of(tiny_experiment, fold="3/10", num_seeds=2, seed=1336)
    found = evaluate(workdir, config=config, seed=1337)
    assert found["split"] == "held-out fold 3/10" and found["examples"] == 51
    for key in ("accuracy", "loss", "correct"):
        assert found[key] == result["test"][key][1]
    assert evaluate(workdir, "test", config=config)["examples"] == 250
    other = evaluate(workdir, config=config, dataset="mnist", manual_dir=None)
    assert (other["split"], other["examples"]) == ("test", 10_000)


def test_the_ensemble_of_a_fold_is_scored_on_its_held_out_images(third_fold, tiny_experiment):
    workdir, result = third_fold
    config = config_of(tiny_experiment, fold="3/10", num_seeds=2, seed=1336)
    found = evaluate(workdir, config=config, seed="all")
    assert found["split"] == "held-out fold 3/10" and found["examples"] == 51
    assert found["correct"] == result["ensemble"]["correct"]
    assert found["members"]["correct"] == result["test"]["correct"]


@pytest.mark.slow
def test_a_fold_with_a_sweep_is_chosen_by_validation_images(tiny_experiment, tmp_path):
    sweep = {"learning_rate": [1e-4, 1e-2]}
    result = train(tiny_experiment, tmp_path, fold="1/5", sweep=sweep, **HALF)
    assert result["sweep"]["chosen"] == 1 and result["sweep"]["split"] == "train[250:]"
    assert result["training_images"] + result["test"]["examples"] == 250


@pytest.mark.slow
def test_a_run_of_a_fold_can_be_prolonged_and_keeps_the_line_of_its_first_end(
    tiny_experiment, tmp_path
):
    train(tiny_experiment, tmp_path / "run", fold="1/10", num_steps=20)
    train(tiny_experiment, tmp_path / "run", fold="1/10", num_steps=40)
    train(tiny_experiment, tmp_path / "whole", fold="1/10", num_steps=40)
    lines = [line for line in metrics_of(tmp_path / "run") if "held-out" in line["split"]]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[-1] == metrics_of(tmp_path / "whole")[-1]
    with pytest.raises(ConfigError, match=r"fold: was '1/10', now '2/10'"):
        train(tiny_experiment, tmp_path / "run", fold="2/10", num_steps=40)


def test_a_configuration_without_the_fields_is_one_with_none(undisturbed, tiny_experiment):
    """A run of an older version resumes."""
    workdir = undisturbed[0]
    config = json.loads((workdir / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in ("fold", "labels_per_class")}
    new = recorded_config.as_dict(config_of(tiny_experiment))
    assert recorded_config.differences(old, new) == []
    assert recorded_config.differences(old, new | {"fold": "1/2"}) == ["fold: was None, now '1/2'"]
