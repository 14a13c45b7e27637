"""Every image of a split is scored once, whatever the batch size."""

import jax
import numpy as np
import pytest
from networks import Linear

import mnist_cnn
from mnist_cnn.training.metrics import summarize
from mnist_cnn.training.scoring import score
from mnist_cnn.training.state import create_state


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_every_image_is_scored_once_whatever_the_batch_size(hundred_images, batch_size):
    images, labels = hundred_images.images, np.asarray(hundred_images.labels)
    state = create_state(mnist_cnn.experiment(model=Linear()))
    logits, losses = score(state.model, state.loss, state.variables, images, labels, batch_size)
    expected = Linear().apply({"params": state.params}, images / 255.0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    metrics = summarize(np.asarray(logits), np.asarray(losses), labels)
    assert metrics["examples"] == 100
    assert metrics["correct"] == int((np.asarray(expected).argmax(-1) == labels).sum())
    assert metrics["accuracy"] == metrics["correct"] / 100
    loss = -jax.nn.log_softmax(expected)[np.arange(100), labels].mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
