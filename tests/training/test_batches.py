"""Random keys are a function of (seed, stream, step), and an epoch contains every image once."""

import jax
import jax.numpy as jnp
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


def test_a_subset_has_that_number_of_images_of_each_class_and_is_a_function_of_the_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 3, 9], [40, 25, 7]))
    draw = jax.jit(batches.subset, static_argnums=(2, 3))

    def subset(seed, count):
        return np.asarray(draw(jnp.uint32(seed), labels, (40, 25, 7), count)).tolist()

    found = subset(1, 5)
    assert len(set(found)) == 15 and np.bincount(labels[found]).tolist() == [
        5, 0, 0, 5, 0, 0, 0, 0, 0, 5
    ]  # fmt: skip
    assert found == subset(1, 5) and sorted(found) != sorted(subset(2, 5))
    assert set(found) < set(subset(1, 7))  # a smaller subset is a part of a larger one
    assert found == [19, 63, 16, 64, 40, 56, 49, 59, 46, 10, 47, 43, 13, 5, 24]


def test_every_image_is_in_as_many_subsets_as_any_other_of_its_class():
    labels = jnp.repeat(jnp.arange(2), jnp.array([6, 30]))
    draw = jax.jit(jax.vmap(lambda seed: batches.subset(seed, labels, (6, 30), 3)))
    counts = np.bincount(np.asarray(draw(np.arange(3000, dtype=np.uint32))).ravel(), minlength=36)
    expected = np.repeat([3000 * 3 / 6, 3000 * 3 / 30], [6, 30])
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_an_epoch_of_a_subset_contains_its_images_and_no_others():
    subset = np.array([90, 11, 52, 73, 34, 65, 26])
    order = np.asarray(batches.epoch_order(jnp.uint32(3), jnp.int32(0), 7, 4))
    rows = np.asarray(batches.rows_of_subset(jnp.asarray(order), jnp.asarray(subset)))
    np.testing.assert_array_equal(rows[order >= 0], subset[order[order >= 0]])
    images = np.zeros((100, 28, 28, 1), np.uint8)
    split = Split(images, np.arange(100), has_subsets=True)
    taken = [jax.jit(batches.take)(split, one) for one in rows]
    for batch in taken:
        assert set(np.asarray(batch.labels).tolist()) <= set(subset.tolist())
    assert [batch.weights.tolist() for batch in taken] == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_the_number_of_training_images_is_that_of_the_subset():
    labels = np.array([0, 0, 4, 4, 4])
    assert batches.num_examples(mnist_cnn.experiment(), labels) == 5
    assert batches.num_examples(mnist_cnn.experiment(labels_per_class=2), labels) == 4
