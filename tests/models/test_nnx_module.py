"""A network of flax.nnx trains, resumes and is read again like one of flax.linen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of, imported_by, metrics_of, result_of, run
from flax import linen as nn, nnx

import mnist_cnn
from mnist_cnn.analysis.export_formats import FORMATS
from mnist_cnn.errors import ConfigError
from mnist_cnn.models import layers
from mnist_cnn.models.apply import forward, scale
from mnist_cnn.models.summary import summarize, unoptimized
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.runner.component_checks import check_components
from mnist_cnn.training import batches
from mnist_cnn.training.components import build_model
from mnist_cnn.training.options import training_forward
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import step

FILE = """
import functools, mnist_cnn
from flax import nnx

class Net(nnx.Module):
    def __init__(self, filters, rngs, rate=0.3):
        self.conv = nnx.Conv(1, filters, (5, 5), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(filters, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.hidden = nnx.List(nnx.Linear(size, 8, rngs=rngs) for size in (49 * filters, 8))
        self.last = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        x = self.drop(x.reshape(x.shape[0], -1))
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.last(x)

def get_config():
    return mnist_cnn.experiment(
        name="nnx", model=functools.partial(Net, 2), manual_dir={data!r}, batch_size=30,
        num_steps=24, log_every=7, checkpoint_every=10, eval_batch_size=100, report=False,
    )
"""


class AsLinen(nn.Module):
    """The same network of Linen, without dropout."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(2, (5, 5), strides=4, name="conv")(images)
        x = nn.relu(layers.BatchNorm(train, name="norm")(x)).reshape(len(x), -1)
        for name in ("0", "1"):
            x = nn.relu(nn.Dense(8, name=f"hidden_{name}")(x))
        return nn.Dense(10, name="last")(x)


@pytest.fixture(scope="module")
def experiment(small_mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("nnx") / "own.py"
    path.write_text(FILE.format(data=str(small_mnist)))
    return path


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    """The run directory of two seeds."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    mnist_cnn.run(config_of(experiment, num_seeds=2), workdir)
    return workdir


@pytest.fixture(scope="module")
def net(experiment):
    """The class of the network."""
    return config_of(experiment).model.func


@pytest.fixture(scope="module")
def batch(hundred_images):
    return batches.take(hundred_images, jnp.arange(32))


@pytest.mark.slow
def test_a_resumed_run_and_each_replica_alone_end_with_the_same_bits(
    experiment, finished, tmp_path
):
    config = config_of(experiment, num_seeds=2, num_steps=13)
    mnist_cnn.run(config, tmp_path / "resumed")
    config.num_steps = 24
    resumed, whole = mnist_cnn.run(config, tmp_path / "resumed"), result_of(finished)
    ones = whole["params_sha256"]
    assert (resumed["params_sha256"], resumed["test"]) == (ones, whole["test"])
    alone = mnist_cnn.run(config_of(experiment, seed=1338), tmp_path / "alone")
    assert alone["params_sha256"] == ones[1:] and ones[0] != ones[1]


@pytest.mark.slow
def test_the_trained_network_is_loaded_and_exported(experiment, finished, hundred_images):
    config = config_of(experiment)
    network = mnist_cnn.load(finished, config)
    images = np.asarray(hundred_images.images)
    correct = (network(images).argmax(-1) == hundred_images.labels).mean()
    assert correct == pytest.approx(result_of(finished)["test"]["accuracy"][0], abs=0.1) and correct
    program = jax.export.deserialize(bytearray(FORMATS["stablehlo"](network)))
    np.testing.assert_array_equal(program.call(images), network(images))
    names = FORMATS["safetensors"](network)
    assert b"hidden.0.kernel" in names and b"norm.mean" in names
    assert network.variables["batch_stats"]["norm"]["mean"].any()


@pytest.mark.slow
def test_the_commands_read_it_with_its_experiment_file(experiment, finished, tmp_path):
    given = ("--workdir", finished, "--config", experiment)
    out, _ = run("mnist_cnn.evaluate", *given)
    assert f"{result_of(finished)['test']['correct'][0]}" in out
    run("mnist_cnn.export", *given, "--format", "safetensors", "--output", tmp_path / "weights")
    image = tmp_path / "digit.png"
    from PIL import Image

    Image.fromarray(np.pad(np.full((20, 3), 255, np.uint8), ((9, 9), (20, 20)))).save(image)
    out, _ = run("mnist_cnn.predict", *given, "--json", image)
    assert '"digit"' in out


@pytest.mark.slow
def test_it_is_the_network_of_linen_to_the_last_bit(experiment, net, batch):
    """So it is as fast on a CPU, and its statistics are updated and used at the same places."""
    config = config_of(experiment, model=functools.partial(net, 2, rate=0.0))
    ours = create_state(config)
    config.model = AsLinen()

    def renamed(params):
        hidden = {f"hidden_{index}": layer for index, layer in params["hidden"].items()}
        return {name: layer for name, layer in params.items() if name != "hidden"} | hidden

    theirs = create_state(config).replace(params=renamed(ours.params), batch_stats=ours.batch_stats)
    for _ in range(3):
        (ours, one), (theirs, two) = (jax.jit(step)(state, batch) for state in (ours, theirs))
        assert sha256(renamed(ours.params)) == sha256(theirs.params)
        assert sha256(ours.batch_stats) == sha256(theirs.batch_stats)
        assert one.loss == two.loss
    logits = [forward(state.model, state.variables, batch.images) for state in (ours, theirs)]
    np.testing.assert_array_equal(*logits)
    assert unoptimized(ours.model) == []


@pytest.mark.slow
def test_it_is_drawn_and_evaluated_as_an_object_of_it_is(experiment, net, batch):
    state = create_state(config_of(experiment))
    assert sha256(state.params) != sha256(create_state(config_of(experiment, seed=1)).params)
    drawn = net(2, rngs=nnx.Rngs(0))
    deviation = float(drawn.conv.kernel[...].std())
    assert float(state.params["conv"]["kernel"].std()) == pytest.approx(deviation, 0.3)
    for _ in range(2):
        state, _ = jax.jit(step)(state, batch)
    drawn.eval()
    values = state.params | {"norm": state.params["norm"] | state.batch_stats["norm"]}
    modules = [item for item in nnx.iter_graph(drawn) if isinstance(item[1], nnx.Module)]
    for path, layer in modules:
        own = functools.reduce(lambda tree, name: tree.get(str(name), {}), path, values)
        for name in {"kernel", "bias", "scale", "mean", "var"} & set(own):
            getattr(layer, name)[...] = own[name]
    logits = forward(state.model, state.variables, batch.images)
    np.testing.assert_allclose(drawn(scale(batch.images)), logits, atol=1e-5)


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_and_is_off_in_evaluation(experiment, net, batch):
    @functools.partial(jax.jit, static_argnames="rate")
    def logits(seed=1, number=0, rate=0.5):
        config = config_of(experiment, model=functools.partial(net, 2, rate=rate))
        state = create_state(config).replace(seed=jnp.uint32(seed), step=jnp.int32(number))
        found, _ = training_forward(state, state.params, scale(batch.images), None)
        return found, forward(state.model, state.variables, batch.images)

    (one, still), (again, _) = logits(), logits()
    np.testing.assert_array_equal(one, again)
    for other, evaluated in (logits(seed=2), logits(number=1), logits(rate=0.0)):
        assert (one != other).any()
        np.testing.assert_array_equal(still, evaluated)


@pytest.mark.slow
def test_devices_that_share_a_batch_normalize_it_as_one_would(experiment, net, batch):
    config = config_of(experiment, model=functools.partial(net, 2, rate=0.0))
    state, images = create_state(config), scale(batch.images)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(images, axis):
        return training_forward(state, state.params, images, axis)

    expected, statistics = logits(images, None)
    parts = images.reshape(4, 8, 28, 28, 1)
    found, of_parts = jax.vmap(lambda part: logits(part, "data"), axis_name="data")(parts)
    np.testing.assert_allclose(found.reshape(32, 10), expected, atol=1e-5)
    for name, value in statistics["norm"].items():
        np.testing.assert_allclose(of_parts["norm"][name], np.stack([value] * 4), atol=1e-6)


@pytest.mark.slow
def test_a_run_on_two_devices_is_that_on_one(experiment, tmp_path):
    for count, mesh in ((1, "1x1"), (2, "1x2")):
        run(
            "mnist_cnn.main", "--config", experiment, f"--config.mesh={mesh}",
            "--config.num_steps=3", "--config.log_every=1", "--workdir", tmp_path / mesh,
            JAX_NUM_CPU_DEVICES=str(count),
        )  # fmt: skip
    one, two = ([line["loss"] for line in metrics_of(tmp_path / mesh)] for mesh in ("1x1", "1x2"))
    assert one[0] != two[0]  # another dropout on each device
    np.testing.assert_allclose(one[:3], two[:3], rtol=0.2)


def test_the_table_has_its_layers(experiment):
    model = build_model(config_of(experiment))
    assert type(model).__name__ == "Net"
    rows = [tuple(layer) for layer in summarize(model)]
    assert rows == [
        ("conv", (7, 7, 2), 52, 49 * 50),
        ("norm", (7, 7, 2), 4, 0),
        ("hidden/0", (8,), 792, 784),
        ("hidden/1", (8,), 72, 64),
        ("last", (10,), 90, 80),
    ]
    assert [tuple(layer) for layer in summarize(model, train=True)] == rows


class Plain(nnx.Module):
    """One layer, and what a test adds to it."""

    def __init__(self, outputs=10, *, rngs):
        self.last = nnx.Linear(784, outputs, rngs=rngs)

    def __call__(self, images):
        return self.last(images.reshape(images.shape[0], -1))


class Noisy(Plain):
    """Adds random numbers also in evaluation."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.rngs = rngs

    def __call__(self, images):
        return super().__call__(images + self.rngs.noise.normal(images.shape))


class Told(Plain):
    """Receives in the call whether it is in training."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.drop = nnx.Dropout(0.5)

    def __call__(self, images, train, rngs):
        assert (rngs is None) != train
        return super().__call__(self.drop(images, deterministic=not train, rngs=rngs))


class Constant(Plain):
    """Keeps an array."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.table = jnp.ones(3)


class Counter(Plain):
    """Keeps a variable of its own kind."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.count = nnx.Variable(jnp.zeros(3))


def in_parts(rngs):
    return nnx.Sequential(lambda images: images.reshape(images.shape[0], -1), Plain(rngs=rngs).last)


ACCEPTED = {
    "class": Plain,
    "function": in_parts,
    "partial": functools.partial(Plain, outputs=10),
    "bridge": nnx.bridge.to_linen(Plain, 10),
    "told": Told,
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("class", "partial") else pytest.param(name, marks=pytest.mark.slow)
        for name in ACCEPTED
    ],
)
def test_what_makes_a_module_is_accepted(name, batch):
    config = mnist_cnn.experiment(model=ACCEPTED[name])
    assert check_components(config) == []
    state = create_state(config)
    after, _ = jax.jit(step)(state, batch)
    assert sha256(after.params) != sha256(state.params)
    assert build_model(config) is build_model(config)


class LinenNet(nn.Module):
    """A module of Linen."""


REFUSED = {
    "object": (lambda: Plain(rngs=nnx.Rngs(0)), "got an object of Plain, whose parameters are"),
    "class of Linen": (lambda: LinenNet, "got LinenNet, expected an object of a flax.linen module"),
    "other module": (
        lambda: lambda rngs: AsLinen(),
        "returned an object of type AsLinen, expected",
    ),
    "nothing": (lambda: lambda rngs: None, "returned None, expected a flax.nnx module"),
    "no rngs": (lambda: lambda: Plain(rngs=nnx.Rngs(0)), "unexpected keyword argument 'rngs'"),
    "9 outputs": (lambda: functools.partial(Plain, 9), "[B, 9], expected logits [B, 10]"),
    "noise": (lambda: Noisy, "Noisy draws random numbers in evaluation; there are only those of"),
    "constant": (lambda: Constant, "Constant keeps an array in table; expected nnx.Param and"),
    "variable": (lambda: Counter, "Counter keeps Variable in count; expected nnx.Param and nnx"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line(name):
    make, said = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        check_components(mnist_cnn.experiment(model=make()))
    text = str(error.value)
    assert text.startswith("config.model") and said in text and "\n" not in text
    assert text.count("config.model") == 1


@pytest.mark.slow
def test_nnx_is_imported_for_such_a_network_only(experiment, tiny_experiment, tmp_path):
    for path, expected in ((experiment, True), (tiny_experiment, False)):
        names = imported_by(
            "mnist_cnn.main", "--config", path, "--config.num_steps=1", "--workdir",
            tmp_path / path.stem,
        )  # fmt: skip
        assert ("flax.nnx" in names) == expected
