"""The fast layers are the ordinary ones: same values, same gradients, native off the CPU."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mnist_cnn.models import layers


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 3))])
@pytest.mark.parametrize("kernel", [(5, 5, 3, 4), (3, 2, 3, 4), (1, 1, 3, 4)])
def test_convolution_equals_nn_conv_in_values_and_gradients(kernel, padding):
    ours = layers.Conv(4, kernel[:2], padding=padding)
    theirs = nn.Conv(4, kernel[:2], padding=padding)
    images = normal(0, (2, 9, 8, 3))
    params = {"params": {"kernel": normal(1, kernel), "bias": normal(2, (4,))}}
    weights = normal(3, theirs.apply(params, images).shape)  # so that no gradient is constant

    def value_and_gradients(module):
        return jax.jit(
            jax.value_and_grad(lambda p, x: (module.apply(p, x) * weights).sum(), argnums=(0, 1))
        )(params, images)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        value_and_gradients(ours),
        value_and_gradients(theirs),
    )


@pytest.mark.parametrize(
    "options", [{"strides": 2}, {"kernel_dilation": 2}, {"feature_group_count": 3}]
)
def test_a_special_convolution_falls_back_to_lax(options):
    images = normal(0, (2, 9, 8, 3))
    ours, theirs = layers.Conv(6, (3, 3), **options), nn.Conv(6, (3, 3), **options)
    params = theirs.init(jax.random.key(1), images)
    np.testing.assert_array_equal(ours.apply(params, images), theirs.apply(params, images))


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2)])
@pytest.mark.parametrize("window", [(2, 2), (3, 2)])
@pytest.mark.parametrize("levels", [2, 10**6])  # with two levels nearly every window has a tie
def test_max_pool_equals_nn_max_pool_ties_included(shape, window, levels):
    images = jnp.floor(levels * jax.random.uniform(jax.random.key(0), shape))
    value, pull = jax.vjp(lambda x: layers.max_pool(x, window), images)
    expected, expected_pull = jax.vjp(lambda x: nn.max_pool(x, window, strides=window), images)
    np.testing.assert_array_equal(value, expected)
    gradient = normal(1, value.shape)
    np.testing.assert_array_equal(pull(gradient)[0], expected_pull(gradient)[0])


def conv_max_pool(images, kernel):
    return layers.conv_max_pool(images, kernel, (1, 1), "SAME")


def flax_conv_max_pool(images, kernel):
    module = nn.Conv(kernel.shape[-1], (5, 5), use_bias=False)
    convolved = module.apply({"params": {"kernel": kernel}}, images)
    return nn.max_pool(convolved, (2, 2), strides=(2, 2))


# In phases, twice; in turn; by the Fourier transform, three times; in turn.
EXACT = [(2, 28, 28, 1), (1, 6, 10, 3), (2, 9, 8, 3)]
SIZES = [*EXACT, (2, 14, 14, 32), (1, 6, 10, 8), (1, 32, 28, 8), (1, 34, 28, 8)]


@pytest.mark.parametrize("shape", EXACT)
def test_conv_max_pool_equals_flax_s_two_layers_ties_included(shape):
    def whole(seed, shape, levels):  # their sums are exact, so that equal ones tie in every form
        return jnp.floor(levels * jax.random.uniform(jax.random.key(seed), shape)) - levels // 2

    images, kernel = whole(0, shape, 3), whole(1, (5, 5, shape[-1], 4), 3)
    value, pull = jax.vjp(jax.jit(conv_max_pool), images, kernel)
    expected, expected_pull = jax.vjp(jax.jit(flax_conv_max_pool), images, kernel)
    np.testing.assert_array_equal(value, expected)
    gradient = whole(3, value.shape, 9)
    jax.tree.map(np.testing.assert_array_equal, pull(gradient), expected_pull(gradient))


def value_and_gradients(function, images, kernel):
    value, pull = jax.vjp(jax.jit(function), images, kernel)
    gradient = np.random.default_rng(2).standard_normal(value.shape, np.float32)
    return [np.asarray(x) for x in (value, *pull(gradient.astype(value.dtype)))]


@pytest.mark.parametrize("shape", SIZES)
def test_conv_max_pool_is_rounded_as_finely_as_flax_s_two_layers(shape):
    images, kernel = normal(0, shape), normal(1, (5, 5, shape[-1], 64))
    with jax.enable_x64(True):
        float64 = [np.asarray(x, np.float64) for x in (images, kernel)]
        exact = value_and_gradients(flax_conv_max_pool, *float64)
        assert exact[0].dtype == np.float64

    def errors(function):
        found = value_and_gradients(function, images, kernel)
        return [np.abs(x - y).max() / np.abs(y).max() for x, y in zip(found, exact, strict=True)]

    ours, theirs = errors(conv_max_pool), errors(flax_conv_max_pool)
    assert max(ours) < 1e-6
    assert all(our < 3 * their for our, their in zip(ours, theirs, strict=True))


def test_where_a_kernel_sees_only_zeros_the_result_is_0_and_its_gradient_flows():
    kernel = normal(1, (5, 5, 32, 64))
    there = jax.random.uniform(jax.random.key(3), (32, 14, 14, 1)) < 0.03  # few pixels
    images = normal(0, (32, 14, 14, 32)) * there

    (ours, pull), (theirs, their_pull) = (
        jax.vjp(lambda x, f=f: f(x, kernel), images) for f in (conv_max_pool, flax_conv_max_pool)
    )
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    assert (theirs == 0).any() and (theirs != 0).any()
    gradient = normal(2, ours.shape)
    np.testing.assert_allclose(*(f(gradient)[0] for f in (pull, their_pull)), atol=1e-2)


@pytest.mark.parametrize("options", [{"padding": "VALID"}, {"strides": 2}, {"dtype": jnp.bfloat16}])
def test_conv_max_pool_takes_what_a_convolution_takes(options):
    images, module = normal(0, (2, 12, 12, 3)), layers.ConvMaxPool(4, (5, 5), **options)
    params = module.init(jax.random.key(1), images)
    convolved = nn.Conv(4, (5, 5), **options).apply(params, images)
    expected = nn.max_pool(convolved, (2, 2), strides=(2, 2))
    value, _ = jax.vjp(module.apply, params, images)
    np.testing.assert_allclose(*(np.float32(x) for x in (value, expected)), rtol=1e-5, atol=1e-5)


def test_not_a_number_passes_through_max_pool():
    images = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(images, (2, 2))).all()


@pytest.mark.parametrize("shape", [(3, 12), (2, 3, 12)])  # the second as lax has it
def test_dense_equals_nn_dense_in_values_and_gradients(shape):
    ours, theirs = layers.Dense(5), nn.Dense(5)
    inputs = normal(0, shape)
    params = theirs.init(jax.random.key(1), inputs)

    def value_and_gradients(module):
        def loss(params, inputs):
            return (module.apply(params, inputs) ** 3).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, inputs)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        value_and_gradients(ours),
        value_and_gradients(theirs),
    )


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
    # Forward and the kernels' gradients, and the second layer's inputs'.
    assert text.count("stablehlo.dot_general") == 2 + 2 + 1


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_dense_gradients_wait_for_each_other_on_a_cpu_alone(platform):
    exported = jax.export.export(jax.jit(train_dense), platforms=[platform])(*DENSE)
    assert ("optimization_barrier" in exported.mlir_module()) == (platform == "cpu")


@pytest.mark.parametrize(
    ("platform", "native_conv", "native_pool"),
    [("tpu", True, True), ("cuda", True, False), ("cpu", False, False)],
)
def test_the_form_is_chosen_by_the_platform_that_is_lowered_for(platform, native_conv, native_pool):
    def loss(kernel, images):
        in_turn = layers.max_pool(
            layers.conv_general_dilated(images, kernel, (1, 1), "SAME"), (2, 2)
        )
        return in_turn.sum() + layers.conv_max_pool(images, kernel, (1, 1), "SAME").sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(
        jax.ShapeDtypeStruct((5, 5, 8, 4), jnp.float32),
        jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.float32),
    )
    text = exported.mlir_module()
    assert text.count('"stablehlo.select_and_scatter"') == (2 if native_pool else 0)
    layouts = re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
    if native_conv:
        assert len(layouts) == 4
    else:  # the pooled one takes none, the other those that a CPU is fast at
        assert layouts == 2 * ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"]
