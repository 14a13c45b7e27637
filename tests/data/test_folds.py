"""Folds are stratified parts of the training images, disjoint, complete and without randomness."""

import numpy as np
import pytest

import mnist_cnn
from mnist_cnn.data import folds
from mnist_cnn.data.dataset import Dataset, open_dataset
from mnist_cnn.errors import ConfigError


def test_the_images_of_a_class_go_to_the_folds_in_turn():
    labels = np.array([7, 3, 7, 7, 3, 7, 3, 7])
    assert folds.in_fold(labels, "1/2").tolist() == [1, 1, 0, 1, 0, 0, 1, 1]
    assert folds.in_fold(labels, "3/3").tolist() == [0, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("count", [2, 7, 10])
def test_folds_are_disjoint_complete_and_stratified(count):
    labels = np.random.default_rng(count).choice([0, 1, 4, 255], 1000, p=[0.6, 0.2, 0.15, 0.05])
    members = np.array([folds.in_fold(labels, f"{i}/{count}") for i in range(1, count + 1)])
    assert (members.sum(0) == 1).all()
    for label in np.unique(labels):
        sizes = members[:, labels == label].sum(1)
        assert sizes.max() - sizes.min() <= 1


def test_a_class_with_fewer_images_than_folds_is_named():
    labels = np.repeat([0, 1, 2], [9, 4, 30])
    folds.in_fold(labels, "4/4")
    said = r"got '4/5', expected at most 4 folds, the number of training images of class 1, the sm"
    with pytest.raises(ConfigError, match=said):
        folds.in_fold(labels, "4/5")


def test_training_and_held_out_images_are_those_of_the_split(small_mnist):
    dataset = open_dataset("mnist", small_mnist)
    config = mnist_cnn.experiment(train_split="train[100:400]", fold="2/3")
    images, labels = dataset.read("train[100:400]")
    held_out = folds.in_fold(labels, "2/3")
    for found, rows in (
        (folds.read_training(dataset, config), ~held_out),
        (folds.read_tested(dataset, config), held_out),
    ):
        np.testing.assert_array_equal(found[0], images[rows])
        np.testing.assert_array_equal(found[1], labels[rows])
    plain = mnist_cnn.experiment(train_split="train[100:400]")
    assert len(folds.read_training(dataset, plain)[1]) == 300
    assert len(folds.read_tested(dataset, plain)[1]) == Dataset.size(dataset, "test") == 250
