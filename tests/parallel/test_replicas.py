"""Replicas in turn have the bits of one network alone; together they agree but for rounding."""

import jax
import numpy as np
import pytest
from networks import Linear

import mnist_cnn
from mnist_cnn.data import dataset as data
from mnist_cnn.parallel import replicas as replicas_lib
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas
from mnist_cnn.runner.checkpoint import sha256


@pytest.fixture(scope="module")
def build(small_mnist):
    images, labels = data.open_dataset("mnist", str(small_mnist)).read("train")

    def build(**changes):
        config = mnist_cnn.experiment(batch_size=16, **changes)
        mesh = make_mesh(config, config["num_seeds"], jax.devices())
        return Replicas(config, mesh, images, labels)

    return build


@pytest.mark.parametrize("model", [Linear(), pytest.param("cnn", marks=pytest.mark.slow)])
def test_networks_trained_together_agree_with_those_alone_over_five_steps(build, model):
    """In turn to the bit, together within 1e-4 of the loss."""
    alone = build(seed=5, model=model)
    in_turn = build(seed=4, num_seeds=3, model=model)
    together = build(seed=4, num_seeds=3, replicas_at_once=3, model=model)
    assert (in_turn.plan.group_size, together.plan.group_size) == (1, 3)
    for step in range(5):
        losses = [part.advance(0, step, step + 1).loss for part in (alone, in_turn, together)]
        for part in (alone, in_turn, together):
            part.clear_sums()
        assert losses[0][0] == losses[1][1]
        np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)
    assert sha256(alone.variables([0])[0]) == sha256(in_turn.variables([1])[0])


@pytest.mark.slow
def test_groups_are_sized_before_any_of_them_is_in_memory(build, monkeypatch):
    """On a device with room for two of five."""
    made, make = [], Replicas._new_group

    def new_group(self, replicas):
        made.append(replicas)
        return make(self, replicas)

    monkeypatch.setattr(replicas_lib, "on_cpu", lambda mesh: False)
    monkeypatch.setattr(Replicas, "_fits", lambda self: self.plan.group_size <= 2 and not made)
    monkeypatch.setattr(Replicas, "_new_group", new_group)
    trained = build(num_seeds=5, model=Linear())
    assert tuple(made) == trained.plan.groups == ((0, 1), (2, 3), (4, 0))
    trained.advance(0, 0, 2)
    assert trained.finite().all()


@pytest.mark.slow
@pytest.mark.parametrize("model", [Linear(), "cnn"])
def test_groups_that_do_not_fit_an_accelerator_are_offloaded_to_the_host(build, model, monkeypatch):
    """As on a device with room for two of five: three groups, none of which is lost."""
    expected = build(num_seeds=5, replicas_at_once=2, model=model)
    monkeypatch.setattr(replicas_lib, "on_cpu", lambda mesh: False)
    monkeypatch.setattr(Replicas, "_fits", lambda self: self.plan.group_size <= 2)
    offloaded = build(num_seeds=5, model=model)
    assert offloaded.plan == expected.plan and offloaded.plan.group_size == 2
    leaves = [leaf for group in offloaded._groups for leaf in jax.tree.leaves(group.state)]
    assert {leaf.sharding.memory_kind for leaf in leaves} == {"pinned_host"}
    for trained in (offloaded, expected):
        trained.advance(0, 0, 2)
        trained.restore(trained.snapshot(), {})
        trained.advance(0, 2, 3)
    ours, theirs = (one.variables(range(5)) for one in (offloaded, expected))
    assert [*map(sha256, ours)] == [*map(sha256, theirs)]
    assert offloaded.finite().tolist() == [True] * 5


@pytest.mark.parametrize("model", [Linear(), pytest.param("cnn", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_program_does_not_grow_with_the_number_of_replicas(build, model):
    def instructions(count):
        trained = build(num_seeds=count, replicas_at_once=count, model=model)
        return trained.training.as_text().count(" = ")

    few, many = instructions(2), instructions(6)
    assert abs(many - few) <= 0.05 * few
