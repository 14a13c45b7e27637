"""Random keys are a function of (seed, stream, step), and an epoch contains every image once."""

import jax
import numpy as np
import pytest

import mnist_cnn
from mnist_cnn.training import batches, rng
from mnist_cnn.training.batches import Split


def test_a_key_is_a_function_of_seed_stream_and_step():
    def draw(*stream):
        return jax.random.key_data(rng.key(*stream)).tolist()

    assert draw(1, "order", 2) == draw(1, "order", 2)
    others = [draw(1, "order", 3), draw(2, "order", 2), draw(1, "init", 2), draw(2, "order", 1)]
    assert draw(1, "order", 2) not in others and len({tuple(o) for o in others}) == 4
    assert draw(1, "order", 2) == [2262184720, 3470315938]  # published results depend on it


@pytest.mark.parametrize(("examples", "batch_size"), [(100, 10), (101, 10), (7, 7), (9, 4), (5, 1)])
def test_an_epoch_contains_every_image_once_in_a_new_order(examples, batch_size):
    order_of = jax.jit(batches.epoch_order, static_argnums=(2, 3))
    epochs = []
    for epoch in range(3):
        order = np.asarray(order_of(np.uint32(3), np.int32(epoch), examples, batch_size))
        assert order.shape == (-(-examples // batch_size), batch_size)
        rows = order[order >= 0]
        np.testing.assert_array_equal(np.sort(rows), np.arange(examples))
        epochs.append(rows.tolist())
    assert examples == 5 or (epochs[0] != epochs[1] != epochs[2])


def test_the_length_is_whole_epochs_or_the_given_number_of_steps():
    assert batches.total_steps(mnist_cnn.experiment(num_epochs=3), 100) == 3 * 4
    assert batches.total_steps(mnist_cnn.experiment(num_epochs=3, num_steps=5), 100) == 5


def test_a_partial_batch_is_completed_with_different_images_of_weight_0():
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 1), np.uint8)
    rows = np.array([7, -1, -1, -1])
    batch = jax.jit(batches.take)(Split(images, np.arange(9)), rows)
    assert batch.weights.tolist() == [1, 0, 0, 0]
    assert (batch.images[0] == images[7]).all() and batch.labels[0] == 7
    assert len({image.tobytes() for image in np.asarray(batch.images)}) == 4
