"""The shapes and dtypes in the annotations are true: the tests check them at every call."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.door import is_bearable
from jaxtyping import TypeCheckError, jaxtyped
from networks import Linear

import mnist_cnn
from mnist_cnn.models.apply import scale
from mnist_cnn.models.layers import max_pool
from mnist_cnn.training.batches import Split, take
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import step


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (scale, (jnp.zeros((2, 28, 28, 1), jnp.float32),)),  # uint8 is right
        (max_pool, (jnp.zeros((28, 28, 1)), (2, 2))),  # no batch
        (
            take,
            (Split(np.zeros((3, 28, 28, 1), np.uint8), np.zeros(3, np.int32)), jnp.zeros((2, 2))),
        ),
    ],
)
def test_a_call_with_another_shape_or_dtype_than_annotated_fails(function, arguments):
    with pytest.raises(TypeCheckError):
        function(*arguments)


@pytest.mark.slow
def test_the_fields_of_states_batches_and_metrics_are_as_annotated():
    split = Split(jnp.zeros((64, 28, 28, 1), jnp.uint8), jnp.zeros(64, jnp.int32))
    state = create_state(mnist_cnn.experiment(ema=0.9, model=Linear()))
    batch = take(split, jnp.arange(32))
    after, metrics = jax.jit(step)(state, batch)
    for node in (split, batch, state, after, metrics, Metrics.zero(), metrics + metrics):
        with jaxtyped("context"):  # one size for each name of an axis
            for name, annotation in typing.get_type_hints(type(node)).items():
                assert is_bearable(getattr(node, name), annotation), (type(node).__name__, name)
