"""Plain operations in a network are computed by faster ones on a CPU, to the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from mnist_cnn.models import layers
from mnist_cnn.models.cnn import CNN
from mnist_cnn.models.kernels.rewrite import fast_on_cpu, slow_operations
from mnist_cnn.models.summary import unoptimized

SHAPE = (4, 13, 14, 6)
GREY = (4, 13, 14, 1)
CONVOLUTIONS = {
    "same": (nn.Conv(8, (3, 3)), SHAPE),
    "strides, valid": (nn.Conv(8, (5, 3), strides=(2, 1), padding="VALID"), SHAPE),
    "uneven padding": (nn.Conv(8, (3, 3), strides=3, padding=((2, 0), (1, 3))), SHAPE),
    "dilation": (nn.Conv(8, (3, 3), kernel_dilation=2), SHAPE),
    "dilation, strides": (nn.Conv(8, (3, 3), kernel_dilation=(2, 3), strides=2), SHAPE),
    "groups": (nn.Conv(8, (3, 3), feature_group_count=2), SHAPE),
    "depthwise": (nn.Conv(12, (3, 3), feature_group_count=6, strides=2), SHAPE),
    "depthwise, dilation": (nn.Conv(6, (3, 3), feature_group_count=6, kernel_dilation=2), SHAPE),
    "1x1": (nn.Conv(8, (1, 1)), SHAPE),
    "1x1, strides": (nn.Conv(8, (1, 1), strides=2), SHAPE),
    "7x7": (nn.Conv(8, (7, 7), strides=2), SHAPE),
    "one channel": (nn.Conv(8, (5, 5)), GREY),
    "5x5, one channel": (nn.Conv(8, (5, 5)), (4, 14, 12, 1)),
    "5x5, many channels": (nn.Conv(8, (5, 5)), (4, 14, 12, 9)),
    "3x3, one channel": (nn.Conv(8, (3, 3)), (4, 14, 12, 1)),
    "3x3, many channels": (nn.Conv(8, (3, 3)), (4, 14, 12, 33)),
    "transposed": (nn.ConvTranspose(8, (3, 3), strides=(2, 2)), SHAPE),
    "transposed, valid": (nn.ConvTranspose(8, (4, 4), strides=(2, 3), padding="VALID"), SHAPE),
    "circular": (nn.Conv(8, (3, 3), padding="CIRCULAR"), SHAPE),
}
POOLINGS = {
    "2x2": ((2, 2), (2, 2), "VALID"),
    "overlapping": ((3, 3), (2, 2), "SAME"),
    "oblong": ((2, 3), (1, 2), "SAME"),
    "padded": ((3, 3), (3, 3), ((1, 0), (2, 1))),
}


def check(function, *arguments):
    """Values and gradients are those of XLA's own operations."""

    def evaluate(function):
        def weighted(*arguments):
            result = function(*arguments)
            weights = jnp.cos(jnp.arange(result.size, dtype=jnp.float32)).reshape(result.shape)
            return (result * weights).sum(), result

        everything = tuple(range(len(arguments)))
        return jax.jit(jax.value_and_grad(weighted, everything, has_aux=True))(*arguments)

    expected = evaluate(function)
    found = evaluate(lambda *arguments: fast_on_cpu(function, *arguments))
    assert slow_operations(function, *arguments) == []
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# The others are among the slow ones.
QUICK = ("depthwise", "transposed")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONVOLUTIONS],
)
def test_any_convolution_of_flax_keeps_its_values_and_gradients(name):
    module, shape = CONVOLUTIONS[name]
    images = normal(1, *shape)
    check(module.apply, module.init(jax.random.key(0), images), images)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("pool", [nn.max_pool, nn.avg_pool])
def test_any_pooling_of_flax_keeps_its_values_and_gradients(pool, name):
    images = jnp.round(2 * normal(1, *SHAPE))  # with ties
    check(lambda images: pool(images, *POOLINGS[name]), images)


def test_a_dense_layer_of_flax_keeps_its_values_and_gradients():
    images, module = normal(1, 4, 1024), nn.Dense(512)
    check(module.apply, module.init(jax.random.key(0), images), images)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dense(512, dtype=jnp.bfloat16),
        *(
            pytest.param(layer, marks=pytest.mark.slow)
            for layer in (
                nn.Conv(8, (3, 3), strides=2, dtype=jnp.bfloat16),
                nn.Conv(8, (5, 5), dtype=jnp.bfloat16),
                nn.Conv(12, (3, 3), feature_group_count=6, dtype=jnp.bfloat16),
                layers.Conv(8, (3, 3), dtype=jnp.bfloat16),
                layers.ConvMaxPool(8, (5, 5), dtype=jnp.bfloat16),
            )
        ),
    ],
)
def test_bfloat16_is_kept_and_rounded_no_more_than_by_xla(layer):
    """The error against float32, of values and gradients, is at most XLA's own by half."""

    def network(layer):
        def loss(kernel, images):
            x = layer.apply({"params": {"kernel": kernel, "bias": bias}}, images)
            x = x.reshape(x.shape[0], -1) if isinstance(layer, nn.Dense) else pool(x)
            assert x.dtype == layer.dtype
            return (x.astype(jnp.float32) ** 2).mean()

        return loss

    def pool(x):
        return nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (2, 2), (1, 1))

    images = normal(1, 4, 1024) if isinstance(layer, nn.Dense) else normal(1, 4, 14, 14, 6)
    variables = layer.init(jax.random.key(0), images)["params"]
    kernel, bias = variables["kernel"], variables["bias"]

    def gradient(layer, apply=lambda function, *arguments: function(*arguments)):
        exact = network(layer)
        return jax.jit(jax.value_and_grad(lambda *arguments: apply(exact, *arguments)))(
            kernel, images
        )

    exact = gradient(layer.clone(dtype=jnp.float32), fast_on_cpu)
    for found, expected, true in zip(
        gradient(layer, fast_on_cpu), gradient(layer), exact, strict=True
    ):
        error, allowed = (
            jnp.linalg.norm(x - true) / jnp.linalg.norm(true) for x in (found, expected)
        )
        assert 0 < error <= max(1.5 * allowed, 2**-9)


@pytest.mark.slow
def test_other_layouts_keep_their_values_and_gradients():
    def of_torch(images, kernel):
        return lax.conv(images.transpose(0, 3, 1, 2), kernel, (2, 2), "SAME")

    check(of_torch, normal(1, *SHAPE), normal(2, 8, 6, 3, 3))


class Plain(nn.Module):
    """Batch normalization, dropout, jit and a mean over the batch, beside the operations."""

    @nn.compact
    def __call__(self, images, train=False):
        x = jax.jit(nn.relu)(nn.Conv(4, (3, 3), strides=2)(images))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.max_pool(x, (2, 2), (2, 2)))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_state_and_random_numbers_of_a_module_are_what_they_were():
    images, keys = normal(1, 4, 28, 28, 1), {"dropout": jax.random.key(3)}
    variables = Plain().init(jax.random.key(0), images)

    def apply(variables, images):
        return Plain().apply(variables, images, train=True, rngs=keys, mutable=["batch_stats"])

    expected = jax.jit(apply)(variables, images)
    found = jax.jit(lambda *arguments: fast_on_cpu(apply, *arguments))(variables, images)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_on_other_platforms_the_operations_are_xlas_own(platform):
    images = jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(Plain().init, jax.random.key(0), images)

    def loss(apply):
        return jax.grad(lambda variables, images: apply(variables, images).sum())

    def operations(function):
        lowered = jax.jit(function).trace(variables, images).lower(lowering_platforms=(platform,))
        names = (
            "stablehlo.convolution",
            "stablehlo.reduce_window",
            "select_and_scatter",
            "dot_gen",
        )
        return [lowered.as_text().count(name) for name in names]

    expected = operations(loss(Plain().apply))
    assert expected[0] >= 2 and expected[2] == 1
    assert operations(loss(lambda *args: fast_on_cpu(Plain().apply, *args))) == expected


def test_what_has_no_faster_form_is_named():
    def one_dimensional(rows, kernel):
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(rows, kernel, (1,), "SAME", dimension_numbers=layout)

    def in_a_loop(images):
        return lax.fori_loop(0, 3, lambda _, x: nn.max_pool(x, (1, 1)), images)

    found = slow_operations(one_dimensional, normal(1, 4, 14, 6), normal(2, 3, 6, 8))
    assert found == ["conv_general_dilated of float32[4,14,6]"]
    assert slow_operations(in_a_loop, normal(1, *SHAPE)) == [
        "reduce_window_max of float32[4,13,14,6]"
    ]


class Sequential(nn.Module):
    """A convolution of one dimension, twice."""

    @nn.compact
    def __call__(self, images):
        rows = images[..., 0]
        return nn.Dense(10)(nn.Conv(8, (3,))(rows)[:, 0] + nn.Conv(8, (3,))(rows)[:, 1])


def test_the_operations_of_a_model_without_a_faster_form_are_listed_once():
    assert unoptimized(Sequential()) == ["conv_general_dilated of float32[1,28,28]"]
    assert unoptimized(Plain()) == unoptimized(CNN()) == []


@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution_is_exported_for_any_number_of_images(strides):
    model = nn.Conv(3, (5, 5), strides=strides)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    function = jax.jit(lambda images: fast_on_cpu(model.apply, variables, images))
    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, 28, 28, 1), jnp.float32)
    given = np.ones((3, 28, 28, 1), np.float32)
    found = jax.export.export(function)(images).call(given)
    np.testing.assert_allclose(found, model.apply(variables, given), atol=1e-5)
