"""Networks as ONNX: other runtimes give the run's logits, for any number of images."""

import collections
import json
import os
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, config_of, read_idx, result_of
from flax import linen as nn, nnx

import mnist_cnn
from mnist_cnn.analysis.export_formats import FORMATS
from mnist_cnn.analysis.network import Network
from mnist_cnn.analysis.to_onnx.converter import convert
from mnist_cnn.data.spec import DataSpec
from mnist_cnn.errors import UserError
from mnist_cnn.models import layers
from mnist_cnn.models.apply import scale, train_kwargs
from mnist_cnn.models.ensemble import Ensemble
from mnist_cnn.models.kernels.rewrite import fast_on_cpu
from mnist_cnn.models.nnx_module import as_linen
from mnist_cnn.runner.checkpoint import sha256
from mnist_cnn.training.state import create_state

SHAPE, CLASSES = (12, 16, 3), 26


def flat(x):
    return x.reshape(x.shape[0], -1)


def module(call):
    """The Linen module with this `__call__`, which does not receive `train`."""

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES)(flat(call(self, x)))

    return Module()


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = layers.max_pool(nn.relu(layers.BatchNorm(train)(layers.Conv(8, (3, 3))(x))), (2, 2))
        x = layers.BatchNorm(train)(nn.relu(layers.ConvMaxPool(8, (3, 3))(x)))
        return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=not train)(flat(x)))


class OfNNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 6, (5, 5), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(14 * 14 * 6, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(flat(nnx.relu(self.norm(self.conv(x))))))


def attention(self, x):
    x = nn.Conv(8, (4, 4), strides=4)(x).reshape(x.shape[0], -1, 8)
    token = self.param("token", nn.initializers.normal(), (1, 1, 8))
    x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], 1)
    x = x + nn.MultiHeadDotProductAttention(2, deterministic=True)(nn.LayerNorm()(x))
    return (x + nn.Dense(8)(nn.gelu(nn.Dense(16)(x))))[:, 0]


def recurrent(self, x):
    rows = x.reshape(*x.shape[:2], -1)
    return jnp.stack([nn.RNN(nn.GRUCell(5), reverse=way)(rows) for way in (False, True)], 1)


def activations(self, x):
    functions = (
        nn.silu, nn.softplus, nn.elu, nn.leaky_relu, nn.tanh, nn.relu6, nn.softmax, nn.hard_swish,
        lambda x: nn.gelu(x, approximate=False),
    )  # fmt: skip
    return sum(function(nn.Dense(5)(flat(x))) for function in functions)


def rearranged(self, x):
    red, *_ = jnp.split(x, 3, -1)
    moved = [x[:, ::-1], x[:, :, 1::2], x[:, jnp.array([5, 2])], jnp.roll(x, 1, 2), red]
    chosen = flat(x)[jnp.arange(x.shape[0])[:, None], jnp.arange(7)]
    rows = jnp.moveaxis(nn.Dense(4)(jnp.moveaxis(x, 0, 1)).max(2), 0, 1)  # the batch in between
    return jnp.concatenate([*map(flat, [*moved, rows, jnp.tile(x, (1, 1, 1, 2))]), chosen], 1)


def transposed(self, x):
    x = nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x)
    return nn.ConvTranspose(2, (2, 2), strides=(3, 3), padding="VALID")(x)


def embedded(self, x):
    return nn.Embed(8, 3)((7.9 * x[:, ::4, ::4, 0]).astype(int))


# Name -> the module, and the operators that compute its features if that matters.
MODULES = {
    "batch normalization and dropout": (
        Normalized(), "Transpose Conv Relu MaxPool Conv MaxPool Relu Mul Add Transpose"
    ),
    "flax.nnx": (as_linen(OfNNX), "Transpose Conv Relu Transpose"),
    "strides and dilation": (
        module(lambda _, x: nn.relu(nn.Conv(
            7, (3, 2), (2, 3), "VALID"
        )(nn.Conv(5, (3, 3), kernel_dilation=2)(x)))),
        "Transpose Conv Conv Relu Transpose",
    ),
    "depthwise, mean over the image": (
        module(lambda _, x: nn.Conv(6, (3, 3), feature_group_count=3)(x).mean((1, 2))), None
    ),
    "average pooling": (
        module(lambda _, x: nn.avg_pool(nn.Conv(4, (3, 3))(x), (3, 3), (2, 2), "SAME")),
        "Transpose Conv AveragePool Transpose",
    ),
    "moved pixels": (module(rearranged), None),
    "overlapping pooling": (
        module(lambda _, x: nn.max_pool(nn.Conv(4, (3, 3))(x), (3, 2), (2, 1), "SAME")),
        "Transpose Conv MaxPool Transpose",
    ),
    "attention with a token of its own": (module(attention), None),
    "a loop over the rows": (module(recurrent), None),
    "activations": (module(activations), None),
    "transposed convolution": (module(transposed), None),
    "a table": (module(embedded), None),
}  # fmt: skip
QUICK = 6  # the tests of the others are slow


def random_variables(model, shape=SHAPE):
    """Variables of which no bias and no statistic is 0 or 1."""
    kwargs = train_kwargs(model, False)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), **kwargs))
    random = np.random.default_rng(0)

    def value(path, leaf):
        low = 0.5 if path[-1].key in ("var", "scale") else -0.5
        return random.uniform(low, low + 1, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def apply(model):
    def logits(variables, images):
        def applied(variables, images):
            return model.apply(variables, images, **train_kwargs(model, False))

        return fast_on_cpu(applied, variables, scale(images))

    return logits


def assert_same(content, images, expected, tolerance=1e-5):
    """Asserts that ONNX Runtime finds these logits, of batches and of 1 and 7 images."""
    session = onnxruntime.InferenceSession(content)

    def logits(images):
        return session.run(["logits"], {"images": images})[0]

    assert_same_logits(logits, images, expected, tolerance)


def assert_same_in_opencv(content, images, expected):
    """As `assert_same`, in OpenCV's module dnn, which takes uint8 images in this order of axes."""
    try:
        import cv2
    except ImportError:
        reason = "OpenCV is missing: pip install opencv-python-headless"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    program = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))

    def logits(images):
        program.setInput(images, "images")
        return program.forward("logits").copy()

    assert_same_logits(logits, images, expected, 1e-5)


def assert_same_logits(logits, images, expected, tolerance):
    batches = [logits(images[start : start + 250]) for start in range(0, len(images), 250)]
    difference = np.abs(np.concatenate(batches) - expected).max()
    print(f"largest difference {difference:.1e}, of logits up to {np.abs(expected).max():.3g}")
    assert difference <= tolerance
    for count in (1, 7):
        found = logits(images[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=tolerance)


def random_images(shape=SHAPE):
    return np.random.default_rng(1).integers(0, 256, (9, *shape)).astype(np.uint8)


def kinds(content):
    return [node.op_type for node in onnx.load_from_string(content).graph.node]


@pytest.mark.parametrize(
    "name",
    [
        *list(MODULES)[:QUICK],
        *(pytest.param(n, marks=pytest.mark.slow) for n in list(MODULES)[QUICK:]),
    ],
)
def test_a_module_has_the_same_logits_for_any_number_of_images_of_any_form(name):
    model, operators = MODULES[name]
    shape = (28, 28, 1) if name == "flax.nnx" else SHAPE
    variables, logits, images = random_variables(model, shape), apply(model), random_images(shape)
    content = convert(logits, variables, shape).serialize(shape, CLASSES, {})
    expected = np.asarray(jax.jit(logits)(variables, images))
    # What float32 rounds depends on the size of the values.
    assert_same(content, images, expected, 1e-5 * max(1, np.abs(expected).max()))
    if operators:
        assert kinds(content) == ["Cast", "Div", *operators.split(), "Reshape", "Gemm"]


@pytest.mark.parametrize("or_none", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_ensemble_is_one_file(or_none, tmp_path):
    model, images = Ensemble(Normalized(), or_none), random_images()
    each = [
        jax.tree.map(lambda leaf, part=part: part * leaf, random_variables(Normalized()))
        for part in (0.4, 0.7, 1.0)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    config = mnist_cnn.experiment(
        model=Normalized(), loss="cross_entropy_or_none" if or_none else "cross_entropy"
    )
    spec = DataSpec(SHAPE, tuple(map(chr, range(97, 97 + CLASSES))))
    network = Network(config, stacked, model, (5, 5, 6), (1, 2, 3), spec)
    content = FORMATS["onnx"](network)
    assert_same(content, images, network(images))
    assert_same_in_opencv(content, images, network(images))
    file = onnx.load_from_string(content)
    onnx.checker.check_model(file, full_check=True)
    facts = {entry.key: json.loads(entry.value) for entry in file.metadata_props
             if entry.key != "mnist_cnn"}  # fmt: skip
    assert (facts["seed"], facts["step"]) == ([1, 2, 3], [5, 5, 6])
    assert facts["params_sha256"] == [sha256(variables) for variables in each]
    assert (
        sum(constant.name.startswith("Dense_0.kernel") for constant in file.graph.initializer) == 3
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda _, x: jnp.sort(x, 1), "the operation sort, which is not translated to ONNX"),
        (lambda _, x: x - x.mean(0), "a constant that depends on the number of images"),
        (lambda _, x: x[x.shape[0] // 2 :], "of the batch|number of images|among the images"),
        (lambda _, x: x if x.shape[0] > 3 else x + 1, "a program that differs for 3 and 5 images"),
    ],
)
def test_what_is_not_translated_is_one_line_that_names_it(call, said):
    model = module(call)
    with pytest.raises(UserError, match=said) as error:
        convert(apply(model), random_variables(model), SHAPE)
    assert str(error.value).startswith("--format onnx: the network has ")
    assert "\n" not in str(error.value)


def test_the_tutorials_network_is_a_few_operators_and_describes_itself(trained_base):
    network, images = mnist_cnn.load(trained_base), read_idx("t10k-images-idx3-ubyte")[:500]
    content = FORMATS["onnx"](network)
    assert " ".join(kinds(content)) == (
        "Cast Div Transpose Conv MaxPool Relu Conv MaxPool Relu Transpose Reshape Gemm Relu Gemm"
    )
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {constant.name for constant in model.graph.initializer} > {
        f"{layer}.{part}"
        for layer in ("conv1", "conv2", "dense1", "dense2")
        for part in ("kernel", "bias")
    }
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["class_names"]) == list("0123456789")
    form = {"dtype": "uint8", "height": 28, "width": 28, "channels": 1}
    assert json.loads(facts["input"]) == form | {"background": 0, "ink": 255}
    assert json.loads(facts["config"])["name"] == "base"
    assert (facts["seed"], facts["step"]) == ("1337", "200")
    assert facts["params_sha256"] == result_of(trained_base)["params_sha256"][0]
    assert facts["mnist_cnn"] == mnist_cnn.__version__
    session = onnxruntime.InferenceSession(content)
    ends = [
        (end.name, end.type, end.shape) for end in (*session.get_inputs(), *session.get_outputs())
    ]
    assert ends == [
        ("images", "tensor(uint8)", ["N", 28, 28, 1]), ("logits", "tensor(float)", ["N", 10])
    ]  # fmt: skip
    expected = network(images)
    assert_same(content, images, expected)
    assert_same_in_opencv(content, images, expected)


@pytest.mark.slow
def test_views_of_the_image_are_gathers_of_constant_places(hundred_images):
    config = config_of(ROOT / "experiments" / "mlp.py")
    views = runpy.run_path(str(ROOT / "experiments" / "accuracy.py"))["views"]

    class Viewed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(flat(views(x).reshape(-1, 28, 28, 1))).reshape(11, -1, 10).mean(0)

    with config.ignore_type():
        config.model = Viewed()
    state = create_state(config)
    network = Network(config, state.variables, state.model, 0, config.seed)
    content = FORMATS["onnx"](network)
    images = np.asarray(hundred_images.images)
    assert_same(content, images, network(images))
    assert_same_in_opencv(content, images, network(images))
    counts = collections.Counter(kinds(content))
    assert counts["Gather"] <= 44 and not counts.keys() & {"Floor", "Cos", "GatherElements"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "mlp", "speedrun", "accuracy", "ensemble"])
def test_a_trained_network_has_the_same_logits_on_the_whole_test_set(name, small_mnist, tmp_path):
    """Of the accurate networks, whose eleven views take long, on a part of it."""
    viewed = name in ("accuracy", "ensemble")
    own = {"manual_dir": str(small_mnist), "batch_size": 25} if viewed else {}
    config = config_of(
        ROOT / "experiments" / f"{name}.py", num_seeds=1, num_epochs=1,
        num_steps=5 if viewed else 60, warmup_steps=0, report=False, **own,
    )  # fmt: skip
    mnist_cnn.run(config, tmp_path, quiet=True)
    network, images = mnist_cnn.load(tmp_path, config), read_idx("t10k-images-idx3-ubyte")
    if viewed:
        images = images[:1000:5]
    content, expected = FORMATS["onnx"](network), network(images)
    assert_same(content, images, expected)
    assert_same_in_opencv(content, images, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "digits", "speedrun", "ensemble"])
def test_a_trained_ensemble_has_the_same_logits_on_test_images(name, small_mnist, tmp_path):
    config = config_of(
        ROOT / "experiments" / f"{name}.py", num_seeds=3, num_epochs=1, num_steps=10,
        warmup_steps=0, report=False, manual_dir=str(small_mnist), batch_size=25,
    )  # fmt: skip
    mnist_cnn.run(config, tmp_path, quiet=True)
    network, images = mnist_cnn.load(tmp_path, config, "all"), read_idx("t10k-images-idx3-ubyte")
    images = images[: 200 if name == "ensemble" else 10_000 if name == "speedrun" else 1000]
    content, expected = FORMATS["onnx"](network), network(images)
    assert_same(content, images, expected)
    assert_same_in_opencv(content, images[:500], expected[:500])
