"""The fast layers are the ordinary ones: same values, same gradients, native off the CPU."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mnist_cnn import layers


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


def test_not_a_number_passes_through_max_pool():
    images = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(images, (2, 2))).all()


@pytest.mark.parametrize(("platform", "native"), [("tpu", True), ("cuda", True), ("cpu", False)])
def test_the_form_is_chosen_by_the_platform_that_is_lowered_for(platform, native):
    def loss(kernel, images):
        return layers.max_pool(
            layers.conv_general_dilated(images, kernel, (1, 1), "SAME"), (2, 2)
        ).sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(
        jax.ShapeDtypeStruct((5, 5, 3, 4), jnp.float32),
        jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32),
    )
    assert ("select_and_scatter" in exported.mlir_module()) == native
