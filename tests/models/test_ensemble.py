"""An ensemble is one network: its members keep their bits, its probabilities are their mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_idx
from flax import linen as nn, nnx
from networks import Normalized

import mnist_cnn
from mnist_cnn.analysis.network import Network
from mnist_cnn.models.ensemble import Ensemble, mean_logits
from mnist_cnn.training.state import create_state

SEEDS = (3, 4, 5)


class Plain(nn.Module):
    """Flax's own layers, which are computed by faster forms on a CPU; two views of each image."""

    @nn.compact
    def __call__(self, images):
        views = jnp.concatenate([images, images[:, :, ::-1]])
        x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5))(views)), (2, 2), (2, 2))
        logits = nn.Dense(10)(x.reshape(x.shape[0], -1)).reshape(2, -1, 10)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), 0) - jnp.log(2)


class OfNNX(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(784, rngs=rngs)
        self.last = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, images):
        return self.last(self.norm(images.reshape(images.shape[0], -1)))


def members_of(**fields):
    """A network for each of the seeds, with batch statistics that are not those of the start."""
    networks = []
    for seed in SEEDS:
        config = mnist_cnn.experiment(eval_batch_size=20, seed=seed, **fields)
        state = create_state(config)
        variables = jax.tree.map(lambda leaf, seed=seed: leaf * (1 + seed / 10), state.variables)
        networks.append(Network(config, variables, state.model, 7, seed))
    return networks


def ensemble_of(networks):
    first = networks[0]
    or_none = first.config["loss"] == "cross_entropy_or_none"
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one.variables for one in networks])
    return Network(first.config, stacked, Ensemble(first.model, or_none), 7, SEEDS)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": Normalized()},
        {"model": Plain()},
        {"model": OfNNX},
        pytest.param({"compute_dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"model": "compact"}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=["normalized", "plain", "nnx", "bfloat16", "compact", "cnn"],
)
def test_each_member_has_the_logits_that_it_has_alone_to_the_last_bit(fields):
    networks, images = members_of(**fields), read_idx("t10k-images-idx3-ubyte")[:50]
    logits, *each = ensemble_of(networks).all_logits(images)
    for one, network in zip(each, networks, strict=True):
        np.testing.assert_array_equal(one, network(images))
    mean = np.mean([network.probabilities(images) for network in networks], axis=0)
    np.testing.assert_allclose(np.exp(logits), mean, atol=1e-6)


def test_probabilities_are_the_mean_also_of_none_of_the_classes():
    networks = members_of(model=Normalized(), loss="cross_entropy_or_none")
    ensemble, images = ensemble_of(networks), read_idx("t10k-images-idx3-ubyte")[:70]
    found, *each = ensemble.all_probabilities(images)
    for one, network in zip(each, networks, strict=True):
        np.testing.assert_array_equal(one, network.probabilities(images))
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)
    none = np.mean([network.no_digit(images) for network in networks], axis=0)
    assert none.max() > 0.01
    np.testing.assert_allclose(ensemble.no_digit(images), none, atol=1e-6)


def test_the_mean_of_opposite_sure_answers_is_exact():
    sure = jnp.zeros((2, 1, 3)).at[0, 0, 0].set(200.0).at[1, 0, 2].set(200.0)
    np.testing.assert_allclose(np.exp(mean_logits(sure, False))[0], [0.5, 0, 0.5], atol=1e-6)
    # One knows the first class, the other only that it is none: [1, 0, 0 | 0] and [0, 0, 0 | 1].
    none = sure.at[1].set(-200.0)
    found = np.exp(np.append(mean_logits(none, True)[0], 0.0))
    np.testing.assert_allclose(found / found.sum(), [0.5, 0, 0, 0.5], atol=1e-6)


def test_an_ensemble_takes_images_of_its_form_only_and_none_at_all():
    ensemble = ensemble_of(members_of(model=Normalized()))
    assert ensemble(np.zeros((0, 28, 28, 1), np.uint8)).shape == (0, 10)
    assert ensemble.members == SEEDS and "Ensemble(" in repr(ensemble)
    with pytest.raises(ValueError, match="expected uint8"):
        ensemble(np.zeros((1, 28, 28, 1), np.float32))
