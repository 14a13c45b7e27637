"""The layers compute what Flax's compute: the same values and gradients, native off the CPU."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mnist_cnn.models import layers, summary
from mnist_cnn.models.kernels import compiler
from mnist_cnn.models.kernels.conv import LAYOUT, conv_general_dilated
from mnist_cnn.models.kernels.conv_max_pool import conv_max_pool
from mnist_cnn.models.kernels.rewrite import fast_on_cpu


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def value_and_gradients(function, *arguments, gradient=None):
    """Value and gradients, in one program; the value's gradient is random if not given."""
    if gradient is None:
        gradient = normal(2, jax.eval_shape(function, *arguments).shape)

    @jax.jit
    def compute(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(gradient.astype(value.dtype))

    return [np.asarray(x) for x in jax.tree.leaves(compute(*arguments))]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 3))])
@pytest.mark.parametrize("kernel", [(5, 5, 3, 4), (3, 2, 3, 4), (1, 1, 3, 4)])
def test_convolution_equals_nn_conv_in_values_and_gradients(kernel, padding):
    images = normal(0, (2, 9, 8, 3))
    params = {"params": {"kernel": normal(1, kernel), "bias": normal(2, (4,))}}
    ours, theirs = (
        value_and_gradients(conv(4, kernel[:2], padding=padding).apply, params, images)
        for conv in (layers.Conv, nn.Conv)
    )
    assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("padding", ["VALID", ((1, 0), (2, 3))])
def test_convolution_without_gradients_equals_nn_conv(padding, channels):
    images, kernel = normal(0, (2, 9, 8, channels)), normal(1, (3, 3, channels, 4))
    params = {"params": {"kernel": kernel, "bias": normal(2, (4,))}}
    ours, theirs = (
        jax.jit(conv(4, (3, 3), padding=padding).apply)(params, images)
        for conv in (layers.Conv, nn.Conv)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"strides": 2}, {"kernel_dilation": 2}, {"feature_group_count": 3}]
)
def test_convolution_with_other_options_is_that_of_lax(options):
    images = normal(0, (2, 9, 8, 3))
    ours, theirs = layers.Conv(6, (3, 3), **options), nn.Conv(6, (3, 3), **options)
    params = theirs.init(jax.random.key(1), images)
    np.testing.assert_array_equal(ours.apply(params, images), theirs.apply(params, images))


def nn_max_pool(images, window=(2, 2)):
    return nn.max_pool(images, window, strides=window)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2)])
@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
def test_max_pool_equals_nn_max_pool_ties_included(shape, window):
    for levels in (2, 10**6):  # with two levels nearly every window has a tie
        images = jnp.floor(levels * np.random.default_rng(0).random(shape, np.float32))
        ours, theirs = (
            value_and_gradients(lambda x, pool=pool: pool(x, window), images)
            for pool in (layers.max_pool, nn_max_pool)
        )
        assert_equal(ours, theirs)


def test_max_pool_propagates_nan():
    images = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(images, (2, 2))).all()


def same_conv_max_pool(images, kernel):
    return conv_max_pool(images, kernel, "SAME")


def flax_conv_max_pool(images, kernel):
    module = nn.Conv(kernel.shape[-1], (5, 5), use_bias=False)
    return nn_max_pool(module.apply({"params": {"kernel": kernel}}, images))


EXACT = [  # without a Fourier transform
    (2, 28, 28, 1), (1, 6, 10, 3),  # in polyphase components
    (2, 9, 8, 3),  # the reference
]  # fmt: skip
SIZES = [
    *EXACT, (2, 14, 14, 32), (1, 6, 10, 8), (1, 32, 28, 8),  # by the Fourier transform
    (1, 34, 28, 8),  # too large for it
]  # fmt: skip


@pytest.mark.parametrize("shape", EXACT)
def test_conv_max_pool_equals_flax_ties_included(shape):
    def whole(seed, shape, levels):  # sums of these are exact, so equal ones tie in every form
        whole = np.random.default_rng(seed).integers(levels, size=shape) - levels // 2
        return jnp.asarray(whole, jnp.float32)

    images, kernel = whole(0, shape, 3), whole(1, (5, 5, shape[-1], 4), 3)
    gradient = whole(3, jax.eval_shape(flax_conv_max_pool, images, kernel).shape, 9)
    assert_equal(*(
        value_and_gradients(function, images, kernel, gradient=gradient)
        for function in (same_conv_max_pool, flax_conv_max_pool)
    ))  # fmt: skip


QUICK = [(1, 6, 10, 3), (1, 6, 10, 8)]  # in polyphase components, and by the Fourier transform


@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in SIZES]
)
@pytest.mark.slow
def test_conv_max_pool_rounds_as_finely_as_flax(shape):
    images, kernel = normal(0, shape), normal(1, (5, 5, shape[-1], 64))
    with jax.enable_x64(True):
        float64 = [np.asarray(x, np.float64) for x in (images, kernel)]
        exact = value_and_gradients(flax_conv_max_pool, *float64)
        assert exact[0].dtype == np.float64

    def errors(function):
        found = value_and_gradients(function, images, kernel)
        return [np.abs(x - y).max() / np.abs(y).max() for x, y in zip(found, exact, strict=True)]

    ours, theirs = errors(same_conv_max_pool), errors(flax_conv_max_pool)
    assert max(ours) < 1e-6
    assert all(our < 3 * their for our, their in zip(ours, theirs, strict=True))


def test_conv_max_pool_is_0_where_a_kernel_sees_only_zeros_and_its_gradient_flows():
    kernel = normal(1, (5, 5, 32, 64))
    few = np.random.default_rng(3).random((8, 14, 14, 1)) < 0.03
    images = normal(0, (8, 14, 14, 32)) * few
    (ours, our_gradient), (theirs, their_gradient) = (
        value_and_gradients(lambda x, f=f: f(x, kernel), images)
        for f in (same_conv_max_pool, flax_conv_max_pool)
    )
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    assert (theirs == 0).any() and (theirs != 0).any()
    np.testing.assert_allclose(our_gradient, their_gradient, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"padding": "VALID"}, {"padding": ((1, 0), (2, 3))}, {"dtype": jnp.bfloat16}]
)
def test_conv_max_pool_layer_equals_a_convolution_and_a_max_pool(options):
    images = normal(0, (2, 12, 12, 3))
    ours, conv = layers.ConvMaxPool(4, (5, 5), **options), layers.Conv(4, (5, 5), **options)
    params = conv.init(jax.random.key(1), images)
    assert_equal(*map(jax.tree.leaves, (ours.init(jax.random.key(1), images), params)))
    params["params"]["bias"] = normal(2, (4,))
    assert params.keys() == {"params"} and params["params"].keys() == {"kernel", "bias"}
    value = ours.apply(params, images)
    expected = nn_max_pool(conv.apply(params, images))
    assert value.dtype == expected.dtype
    np.testing.assert_allclose(*(np.float32(x) for x in (value, expected)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 3))])
def test_a_pooled_layer_has_the_multiply_adds_of_its_convolution(padding):
    ours, conv = (
        summary.summarize(layer(4, (4, 5), padding=padding))[0]
        for layer in (layers.ConvMaxPool, layers.Conv)
    )
    height, width, _ = conv.output_shape
    assert ours.output_shape == (height // 2, width // 2, 4)
    assert ours.multiply_adds == conv.multiply_adds == height * width * 4 * 5 * 4
    assert ours.parameters == conv.parameters == 4 * 5 * 4 + 4


@pytest.mark.parametrize("shape", [(3, 12), (2, 3, 12)])  # the second is lax's own
def test_dense_equals_nn_dense_in_values_and_gradients(shape):
    inputs = normal(0, shape)
    params = nn.Dense(5).init(jax.random.key(1), inputs)
    ours, theirs = (
        value_and_gradients(dense(5).apply, params, inputs) for dense in (layers.Dense, nn.Dense)
    )
    assert_close(ours, theirs, 1e-5)


def train_dense(params, inputs, steps):
    """Gradient descent through two dense layers, the second of [48, 56]."""

    def loss(params):
        hidden = layers.Dense(48).apply({"params": params[0]}, inputs)
        return (layers.Dense(56).apply({"params": params[1]}, jnp.tanh(hidden)) ** 2).sum()

    def step(_, params):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    return jax.lax.fori_loop(0, steps, step, params)


DENSE = (
    [
        {"kernel": jnp.ones((40, 48)), "bias": jnp.ones(48)},
        {"kernel": jnp.ones((48, 56)), "bias": jnp.ones(56)},
    ],
    jnp.ones((8, 40)),
    3,
)


def test_a_step_copies_no_dense_kernel():
    program = jax.jit(train_dense, donate_argnums=0).lower(*DENSE).compile().as_text()
    loop = program[: program.index("ENTRY")]
    assert "f32[48,56]" in loop
    assert not re.search(r"= f32\[48,56\]\S* copy\(", loop)


def test_a_first_dense_layer_computes_no_gradient_of_its_inputs():
    text = jax.jit(train_dense).lower(*DENSE).as_text()
    # Forward, the kernels' gradients, and the gradient of the second layer's inputs.
    assert text.count("stablehlo.dot_general") == 2 + 2 + 1


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_dense_gradients_are_ordered_on_a_cpu_only(platform):
    exported = jax.export.export(jax.jit(train_dense), platforms=[platform])(*DENSE)
    assert ("optimization_barrier" in exported.mlir_module()) == (platform == "cpu")


@pytest.mark.parametrize(
    ("platform", "native_conv", "native_pool"),
    [("tpu", True, True), ("cuda", True, False), ("cpu", False, False)],
)
def test_the_target_platform_of_the_program_chooses_the_form(platform, native_conv, native_pool):
    def loss(kernel, images):
        convolved = conv_general_dilated(images, kernel, (1, 1), "SAME")
        pooled = same_conv_max_pool(images, kernel)
        return layers.max_pool(convolved, (2, 2)).sum() + pooled.sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(
        jax.ShapeDtypeStruct((5, 5, 8, 4), jnp.float32),
        jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.float32),
    )
    text = exported.mlir_module()
    assert text.count('"stablehlo.select_and_scatter"') == (2 if native_pool else 0)
    layouts = re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
    if native_conv:
        assert len(layouts) == 4
    else:  # the pooled convolution has none, the other the layout that is fast on a CPU
        assert layouts == 2 * ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"]


def test_an_option_that_is_unknown_here_is_left_to_jax(monkeypatch):
    """A later Flax may pass one: a default of None changes nothing, a value is passed on."""
    received = []

    def convolve(*arguments, **options):
        received.append(options)
        return expected

    images, kernel = normal(0, (1, 6, 6, 2)), normal(1, (3, 3, 2, 4))
    expected = conv_general_dilated(images, kernel, (1, 1), "SAME", later=None)
    assert expected.shape == (1, 6, 6, 4)
    monkeypatch.setattr(jax.lax, "conv_general_dilated", convolve)
    conv_general_dilated(images, kernel, (1, 1), "SAME", later=3)
    assert received[0]["later"] == 3 and "dimension_numbers" in received[0]


def test_refused_compiler_options_are_one_note_and_not_used(monkeypatch):
    assert compiler.compiler_note("cpu") == [] and compiler.compiler_options("cpu") != {}
    monkeypatch.setattr(compiler, "_CPU_OPTIONS", {"xla_no_such_option": True})
    compiler._refusal.cache_clear()
    try:
        (note,) = compiler.compiler_note("cpu")
        assert note.startswith("note: ") and "xla_no_such_option" in note and "\n" not in note
        assert compiler.compiler_options("cpu") == {}
        assert compiler.compiler_note("gpu") == [] and compiler.compiler_options("gpu") == {}
    finally:
        compiler._refusal.cache_clear()


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "batch"),
    [
        pytest.param(*((8, 8), 1, 5, 32), marks=pytest.mark.slow),
        pytest.param(*((12, 10), 3, 5, 125), marks=pytest.mark.slow),
        ((9, 11), 3, 5, 125),
        pytest.param(*((12, 10), 3, 3, 32), marks=pytest.mark.slow),
        ((16, 14), 32, 3, 32),
        pytest.param(*((13, 16), 32, 3, 32), marks=pytest.mark.slow),
        pytest.param(*((32, 30), 8, 5, 8), marks=pytest.mark.slow),
        ((31, 33), 8, 5, 8),
        ((34, 32), 8, 5, 8),  # beyond the sizes of the Fourier transform
        pytest.param(*((64, 128), 3, 5, 2), marks=pytest.mark.slow),
        ((127, 128), 1, 3, 2),
    ],
)
def test_convolution_and_pooling_of_every_size_equal_those_of_lax(size, channels, kernel, batch):
    images = normal(0, (batch, *size, channels))
    weights = normal(1, (kernel, kernel, channels, 4)) / (kernel * channels**0.5)

    def theirs(images, weights):
        options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUT}
        return nn_max_pool(jax.lax.conv_general_dilated(images, weights, **options))

    def ours(images, weights):
        return conv_max_pool(images, weights, "SAME")

    def rewritten(images, weights):
        return fast_on_cpu(theirs, images, weights)

    expected = value_and_gradients(theirs, images, weights)
    for form in (ours, rewritten):
        for value, right in zip(value_and_gradients(form, images, weights), expected, strict=True):
            np.testing.assert_allclose(value, right, atol=2e-5 * np.abs(right).max())
