"""The examples of docs/change-anything.md do what they say, and resume to the same bits."""

import functools
import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import (
    ROOT,
    config_of,
    metrics_of,
    result_of,
    run,
    same_end,
    start,
    wait_for,
)  # fmt: skip
from networks import Linear

import mnist_cnn
from mnist_cnn.config import takes_total_steps
from mnist_cnn.errors import ConfigError
from mnist_cnn.models.apply import scale
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.component_checks import check_components
from mnist_cnn.runner.recorded_config import as_dict, describe, differences
from mnist_cnn.training import batches
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import step

PAGE = (ROOT / "docs" / "change-anything.md").read_text()
CODES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = {re.search(r'name="(\w+)"', code)[1]: code for code in CODES if "get_config" in code}
# Runs any example on little data; if it brings no network, with one that trains in a second.
WRAPPER = """
import runpy
from networks import Linear
make = runpy.run_path({path!r})["get_config"]

def get_config():
    config = make()
    with config.ignore_type():
        if config.model == "cnn":
            config.model = Linear()
        config.update(
            manual_dir={data!r}, batch_size=30, num_epochs=1, num_steps=40,
            log_every=7, checkpoint_every=10, eval_batch_size=100, report=False,
        )
    return config
"""


@pytest.fixture(scope="module")
def examples(small_mnist, tmp_path_factory):
    """The name of an example -> the file that runs it on little data."""
    folder, files = tmp_path_factory.mktemp("examples"), {}
    for name, code in EXAMPLES.items():
        (folder / f"{name}.py").write_text(code)
        files[name] = folder / f"small_{name}.py"
        path = str(folder / f"{name}.py")
        files[name].write_text(WRAPPER.format(path=path, data=str(small_mnist)))
    return files


@pytest.fixture(scope="module")
def batch(hundred_images):
    return batches.take(hundred_images, jnp.arange(32))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_at_most_fifteen_lines(name):
    assert len([line for line in EXAMPLES[name].splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_mixup_is_the_loss_of_mixed_images(examples, batch):
    state = create_state(config_of(examples["mixup"]))
    after, metrics = jax.jit(state.train_step)(state, batch)
    share = jax.random.beta(mnist_cnn.random_key(state.seed, "mixup", 0), 0.2, 0.2)
    images = share * scale(batch.images) + (1 - share) * scale(batch.images)[::-1]

    def loss(params):
        logits = Linear().apply({"params": params}, images)
        target = jax.nn.one_hot(batch.labels, 10)
        mixed = share * target + (1 - share) * target[::-1]
        return optax.softmax_cross_entropy(logits, mixed).mean()

    np.testing.assert_allclose(metrics.loss, 32 * loss(state.params), rtol=1e-5)
    plain, _ = jax.jit(step)(state, batch)
    assert sha256(jax.device_get(plain.params)) != sha256(jax.device_get(after.params))


@pytest.mark.slow
def test_an_auxiliary_loss_is_that_of_each_image(examples, hundred_images):
    state = create_state(config_of(examples["penalized"]))
    batch = batches.take(hundred_images, jnp.asarray([*range(7), -1, -1]))  # a short last batch
    _, metrics = jax.jit(state.train_step)(state, batch)
    logits = Linear().apply({"params": state.params}, scale(batch.images[:7]))
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels[:7])
    np.testing.assert_allclose(metrics.loss, (each + 1e-4 * (logits**2).sum(-1)).sum(), rtol=1e-5)


def test_an_own_step_trains_a_network_in_bfloat16(examples):
    step = config_of(examples["penalized"]).train_step
    config = mnist_cnn.experiment(train_step=step, compute_dtype="bfloat16", num_seeds=2)
    assert check_components(config) == []


@pytest.mark.slow
def test_erasing_blanks_one_square_of_each_image_and_has_a_stream_of_its_own(examples, batch):
    config = config_of(examples["erasing"])
    key, images = jax.random.key(3), jnp.ones((200, 28, 28, 1))
    erased = 1 - np.asarray(config.augment(key, images))[..., 0]
    sides = {(int(one.any(1).sum()), int(one.any(0).sum())) for one in erased}
    assert max(sides) == (8, 8) and min(min(side) for side in sides) >= 1
    for one in erased:
        assert one.sum() == one.any(1).sum() * one.any(0).sum()  # a rectangle
    seen = []
    config.augment = lambda key, images: seen.append(jax.random.key_data(key)) or images
    config.rotation = 10.0
    mnist_cnn.augment_images(create_state(config), scale(batch.images), None)
    keys = [mnist_cnn.random_key(config.seed, name) for name in ("own augment", "augment")]
    np.testing.assert_array_equal(seen[0], jax.random.key_data(keys[0]))
    assert (seen[0] != jax.random.key_data(keys[1])).any()


@pytest.mark.slow
def test_an_own_metric_is_exact_and_shown_wherever_accuracy_is(examples, tmp_path):
    config = config_of(
        examples["top2"], num_seeds=2, train_split="train[:400]", schedule="cosine", report=True,
        validation_split="train[400:]",
    )  # fmt: skip
    result = mnist_cnn.run(config, tmp_path)
    logits = np.load(tmp_path / "predictions.npz")["logits"]
    labels = np.load(tmp_path / "predictions.npz")["labels"]
    best = np.argsort(logits, -1)[..., -2:]
    right = (best == labels[None, :, None]).any(-1).mean(1).tolist()
    assert result["test"]["top2"] == right
    assert result["test_mean"]["metrics"]["top2"]["mean"] == pytest.approx(np.mean(right))
    assert result["test_mean"]["metrics"]["top2"]["ci95"] > 0
    by_split = {line["split"]: line for line in metrics_of(tmp_path)}
    assert by_split["test"]["top2"] == right and len(by_split["validation"]["top2"]) == 2
    train = by_split["train"]
    assert all(one < two < 1 for one, two in zip(train["accuracy"], train["top2"], strict=True))
    for norm in ("gradient_norm", "update_norm", "parameter_norm"):
        assert all(value > 0 for value in train[norm])
    assert train["learning_rate"][0] < 1e-4  # at the end of the cosine
    page = (tmp_path / "report.html").read_text()
    assert "top2<" in page and f"{right[0]:.4f}" in page and "mean top2" in page
    tags = b"".join(path.read_bytes() for path in tmp_path.glob("events*"))
    for tag in (b"train/top2", b"validation/top2", b"test/top2", b"train/gradient_norm"):
        assert tag in tags


@pytest.mark.slow
def test_metrics_do_not_change_the_training_nor_a_checkpoint(examples, tmp_path):
    plain, more = (config_of(examples["top2"], num_steps=15) for _ in range(2))
    plain.update(metrics=None, norms=False)
    mnist_cnn.run(plain, tmp_path)
    before = [line for line in metrics_of(tmp_path) if line["split"] == "train"]
    shutil.rmtree(tmp_path / "checkpoints" / "15")
    more.num_steps = 25
    extended = mnist_cnn.run(more, tmp_path)  # resumes at step 10, three steps after a line
    lines = [line for line in metrics_of(tmp_path) if line["split"] == "train"]
    assert lines[0] == before[0] and lines[1] | before[1] == lines[1]
    assert lines[1]["top2"] is None and lines[2]["top2"] > lines[2]["accuracy"]
    plain.num_steps = 25
    whole = mnist_cnn.run(plain, tmp_path / "whole")
    assert whole["params_sha256"] == extended["params_sha256"]


def test_a_schedule_of_ones_own_sets_the_rate_and_declares_its_length(examples, tmp_path):
    config = config_of(examples["linear"])
    result = mnist_cnn.run(config, tmp_path)
    rates = [line["learning_rate"] for line in metrics_of(tmp_path) if line["split"] == "train"]
    after = np.array([7, 14, 21, 28, 35, 40]) - 1  # the last step before each line
    np.testing.assert_allclose(rates, 1e-3 * np.minimum(1, (40 - after) / 8), rtol=1e-6)
    config.num_steps = 50
    with pytest.raises(ConfigError, match="num_steps: was 40, now 50"):
        mnist_cnn.run(config, tmp_path)
    assert result_of(tmp_path) == result


def test_a_quiet_run_prints_nothing_and_hands_out_each_line(examples, tmp_path, capfd):
    lines = []
    config = config_of(examples["mine"], num_steps=15)
    result = mnist_cnn.run(config, tmp_path, quiet=True, on_log=lines.append)
    assert capfd.readouterr() == ("", "") and result["steps"] == 15
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == [json.loads(line) for line in written] and lines[-1]["split"] == "test"


@pytest.mark.slow
def test_the_public_pieces_make_a_loop(hundred_images):
    (code,) = [code for code in CODES if "m.create_state(config)" in code]
    code = code.replace('open_dataset("mnist").read', "(lambda split: few)").replace("[:100]", "")
    few = np.asarray(hundred_images.images), np.asarray(hundred_images.labels)
    code = code.replace("batch_size=128", "batch_size=20, model=Linear(), learning_rate=0.01")
    names = {"few": few, "Linear": Linear, "print": lambda accuracy: names.update(found=accuracy)}
    exec(code, names)
    state = create_state(names["config"])
    order = batches.epoch_order(jnp.uint32(1337), jnp.int32(0), 100, 20)
    for rows in order:
        state, _ = jax.jit(step)(state, batches.take(hundred_images, rows))
    assert sha256(jax.device_get(names["state"].params)) == sha256(jax.device_get(state.params))
    assert 0.3 < names["found"] < 1
    assert set(mnist_cnn._PIECES) <= set(mnist_cnn.__all__)
    for name in mnist_cnn.__all__:
        assert getattr(mnist_cnn, name) is not None


@pytest.mark.parametrize("declared", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_optimizer_that_declares_the_length_is_not_prolonged(declared, examples, tmp_path):
    seen = []

    def of_length(learning_rate, total_steps):
        seen.append(total_steps)
        return optax.sgd(optax.linear_schedule(learning_rate, 0, total_steps))

    def plain(learning_rate):
        return optax.sgd(learning_rate)

    config = config_of(examples["mine"], optimizer=of_length if declared else plain, num_steps=10)
    mnist_cnn.run(config, tmp_path)
    config.num_steps = 12
    if not declared:
        assert mnist_cnn.run(config, tmp_path)["steps"] == 12
        return
    assert seen[-1] == 10
    with pytest.raises(ConfigError, match="num_steps: was 10, now 12"):
        mnist_cnn.run(config, tmp_path)


def own_step(images=scale, losses=None):
    def step(state, batch, data_axis=None):
        def of(params):
            logits, stats = mnist_cnn.training_forward(state, params, images(batch.images), None)
            found = mnist_cnn.training_loss(state, logits, batch.labels), logits, stats
            return losses(*found) if losses else found

        return mnist_cnn.descend(state, batch, of, data_axis)

    return step


def test_a_length_that_is_given_in_the_file_is_kept_and_depends_on_no_other():
    def falling(learning_rate, total_steps, power=1):
        return optax.sgd(optax.polynomial_schedule(learning_rate, 0, power, total_steps))

    fixed = functools.partial(falling, total_steps=100)
    assert not takes_total_steps(fixed) and takes_total_steps(functools.partial(falling, power=2))
    name = describe(fixed)
    assert name.endswith("falling(total_steps=100)")
    assert describe(falling).endswith("falling(total_steps)")
    config = mnist_cnn.experiment(optimizer=fixed)
    old = as_dict(config)
    config.num_epochs = 3
    assert differences(old, as_dict(config)) == []


REFUSED = {
    "images not scaled": ("train_step", own_step(images=lambda images: images),
                          "got images uint8, expected float32 in 0..1: use scale(batch.images)"),
    "a mean": ("train_step", own_step(losses=lambda a, b, c: (a.mean(), b, c)),
               "its losses returned arrays () and (7, 10), expected losses [7]"),
    "two values": ("train_step", own_step(losses=lambda a, b, c: (a, b)),
                   "its losses returned 2 values, expected losses [7], logits [7, 10]"),
    "a factor for each digit": ("schedule", lambda step: jnp.ones(10), "for a step, expected a"),
    "not for each image": ("metrics", {"mean": lambda logits, labels: logits.mean()},
                           "returned float32 [] for logits [7, 10], expected a number for each"),
    "other images": ("augment", lambda key, images: images[:, ::2],
                     "returned float32 [7, 14, 28, 1] for images float32 [7, 28, 28, 1]"),
    "no metrics": ("train_step", lambda state, batch, data_axis=None: state,
                   "expected (state, metrics), as `descend`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line_with_its_key(name):
    key, value, said = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        check_components(mnist_cnn.experiment(model=Linear(), **{key: value}))
    assert said in str(error.value) and f"config.{key}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "reason"), [("loss", "new name"), ("a b", "new name")])
def test_a_metric_needs_a_name_that_is_free(name, reason, tmp_path):
    config = mnist_cnn.experiment(metrics={name: lambda logits, labels: labels})
    with pytest.raises(ConfigError, match=rf"config\.metrics: got {name!r}, expected a {reason}"):
        mnist_cnn.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_killed_run_of_an_example_ends_with_the_same_bits(name, examples, tmp_path):
    tests = str(ROOT / "tests")
    command = ("mnist_cnn.main", "--config", examples[name], "--config.profile=True", "--workdir")
    process = start(*command, tmp_path / "killed", PYTHONPATH=tests)
    folder = tmp_path / "killed" / "checkpoints" / "10"
    wait_for(lambda: folder.exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = run(*command, tmp_path / "killed", PYTHONPATH=tests)
    assert "resuming from the checkpoint of step" in out
    run(*command, tmp_path / "whole", PYTHONPATH=tests)
    same_end(tmp_path / "killed", tmp_path / "whole")
    assert result_of(tmp_path / "whole")["steps"] == 40
