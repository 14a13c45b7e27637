"""Replicas are divided into even groups, and each is found again."""

import numpy as np
import pytest

from mnist_cnn.parallel.plan import make_plan


@pytest.mark.parametrize(
    ("total", "size", "multiple", "groups"),
    [
        (1, 1, 1, [[0]]),
        (3, 1, 1, [[0], [1], [2]]),
        (5, 2, 1, [[0, 1], [2, 3], [4, 0]]),
        (10, 4, 1, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]),
        (10, 3, 8, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 0, 1, 2, 3, 4, 5]]),
        (8, 1, 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups_are_even_and_multiples_of_the_devices(total, size, multiple, groups):
    plan = make_plan(total, size, multiple)
    assert [list(group) for group in plan.groups] == groups


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_every_replica_is_found_in_its_group_and_joined_in_its_place(size):
    plan = make_plan(7, size, 1)
    for replica, (group, place) in plan.find(range(7)).items():
        assert plan.groups[group][place] == replica
    parts = [np.array(group) for group in plan.groups]
    np.testing.assert_array_equal(plan.join(parts), np.arange(7))
