"""Devices share the work without changing the training, and only gradients cross between them.

The devices are a CPU's, as many as JAX is asked to simulate.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import mnist_cnn
from mnist_cnn.errors import ConfigError
from mnist_cnn.parallel.mesh import make_mesh

# In a process of its own, because JAX keeps the devices that it began with.
BUILD = """
import json, re, sys
import jax, numpy as np, optax
sys.path.insert(0, "tests")
import mnist_cnn
from networks import Linear, Normalized
from mnist_cnn.data import dataset as data
from mnist_cnn.parallel.mesh import make_mesh
from mnist_cnn.parallel.replicas import Replicas

images, labels = data.open_dataset("mnist", sys.argv[1]).read("train")

def build(mesh, batch_size, **changes):
    config = mnist_cnn.experiment(mesh=mesh, batch_size=batch_size, **changes)
    grid = make_mesh(config, config["num_seeds"], jax.devices())
    return Replicas(config, grid, images, labels)
"""
MEASURE = """
base = sys.argv[2] == "base"
model = {} if base else {"model": Linear()}

def keep_gradient(rate):  # an optimizer whose state is the gradient
    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda p: 0 * p, params),
        lambda gradients, state, params=None: (
            jax.tree.map(lambda g: -rate * g, gradients), gradients
        ),
    )

def gradients(mesh, batch_size):
    network = build(mesh, batch_size, optimizer=keep_gradient, **model)
    network.advance(0, 0, 1)
    return jax.tree.leaves(network.snapshot()["state"]["opt_state"])

def losses(mesh, batch_size, **changes):
    network = build(mesh, batch_size, **changes, **model)
    found = []
    for step in range(5):
        found.append(network.advance(0, step, step + 1).loss.tolist())
        network.clear_sums()
    return found

def collectives(mesh, **changes):
    network = build(mesh, 8, **changes, **model)
    pattern = (
        r"= ([^\\n]*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
        r"(?:-start)?\\("
    )
    found = re.findall(pattern, network.training.as_text())
    sizes = [
        4 * int(np.prod([int(n) for n in shape.split(",") if n]))
        for result, _ in found for shape in re.findall(r"\\[([0-9,]*)\\]", result)
    ]
    return sorted({name for _, name in found}), sum(sizes)

def options(mesh):  # every option that depends on the whole batch
    network = build(
        mesh, 32, model=Normalized(), rotation=10.0, shift=2.0, ema=0.5,
        optimizer=optax.sgd, learning_rate=0.1,  # Adam would magnify the rounding of zeros
    )
    network.advance(0, 0, 5)
    return jax.tree.leaves(network.variables([0])[0])

def few(mesh):  # an epoch of 50 images, with a partial batch
    network = build(
        mesh, 8, model=Normalized(), labels_per_class=5, optimizer=optax.sgd, learning_rate=0.1,
        num_seeds=2,
    )
    sums = network.advance(0, 0, 7)
    assert sums.examples.tolist() == [50, 50]
    return jax.tree.leaves(network.variables([0, 1]))

def own(mesh, **changes):  # an experiment's own step, augmentation and metrics
    def erase(key, images):
        return images * (jax.random.uniform(key, images.shape) > 0.2)

    def top2(logits, labels):
        return (jax.lax.top_k(logits, 2)[1] == labels[:, None]).any(-1)

    def penalized(state, batch, data_axis=None):
        images = mnist_cnn.augment_images(state, mnist_cnn.scale(batch.images), data_axis)
        def losses(params):
            logits, stats = mnist_cnn.training_forward(state, params, images, data_axis)
            loss = mnist_cnn.training_loss(state, logits, batch.labels)
            return loss + 1e-2 * (logits**2).sum(-1), logits, stats
        return mnist_cnn.descend(state, batch, losses, data_axis)

    network = build(
        mesh, 32, model=Linear(), augment=erase, train_step=penalized, metrics={"top2": top2},
        norms=True, **changes,
    )
    sums = network.advance(0, 0, 5)
    return [
        *(sums.others[name].tolist() for name in sorted(sums.others)),
        *(np.ravel(leaf).tolist() for leaf in jax.tree.leaves(network.variables([0])[0])),
    ]

answer = {
    "devices": len(jax.devices()),
    "gradients": {
        size: max(
            float(np.abs(a - b).max() / np.abs(a).max())
            for a, b in zip(gradients("1x1", size), gradients("1x8", size))
        )
        for size in ((8,) if base else (40,))
    },
    "losses": [losses("1x1", 32), losses("1x8", 32)],
    "replicas": [losses("1x1", 8, num_seeds=4), losses("4x2", 8, num_seeds=4)],
    "by data": collectives("1x8"),
    "by replica": collectives("4x1", num_seeds=4),
    "options": [
        float(np.abs(a - b).max()) for a, b in zip(options("1x1"), options("1x4"))
    ] if not base else [],
    "few": [
        float(np.abs(a - b).max()) for a, b in zip(few("1x1"), few("2x4"))
    ] if not base else [],
    "own": [own("1x1"), own("1x4"), own("1x1", num_seeds=2), own("2x4", num_seeds=2)]
    if not base else [],
    "operations": [
        build(mesh, 40).training.cost_analysis()["flops"] for mesh in ("1x1", "1x8")
    ] if base else [],
}
print(json.dumps(answer))
"""
MEMORY = """
answer = []
for mesh, count, at_once in json.loads(sys.argv[2]):
    network = build(mesh, 32, num_seeds=count, replicas_at_once=at_once)
    state = jax.tree.leaves(network._groups[0].state)
    held = sum(leaf.nbytes for leaf in state) / network._mesh.shape["replica"]
    answer.append([held, network.training.memory_analysis().temp_size_in_bytes])
print(json.dumps(answer))
"""


def on_eight_devices(program, *arguments):
    """What a program that begins with BUILD prints."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD + program, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Among the quick tests, two processes share a batch in test_processes.py.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in ("linear", "base")],
)
def measured(request, small_mnist):
    return on_eight_devices(MEASURE, str(small_mnist), request.param) | {"model": request.param}


def test_eight_devices_compute_the_gradients_of_one(measured):
    assert measured["devices"] == 8
    for size, error in measured["gradients"].items():
        assert 0 < error < 1e-5, f"batch size {size}"


def test_eight_devices_have_the_losses_of_one_over_five_steps(measured):
    one, eight = measured["losses"]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert one[0] != one[1]


def test_replicas_and_data_on_one_mesh_have_the_losses_of_one_device(measured):
    one, eight = map(np.array, measured["replicas"])
    assert one.shape == (5, 4) and len(np.unique(one[0])) == 4
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_only_gradients_and_metrics_cross_and_nothing_between_replicas(measured):
    parameters = 3_274_634 if measured["model"] == "base" else 7_850
    numbers = 3  # loss, correct, examples
    assert measured["by data"] == [["all-reduce"], 4 * (parameters + numbers)]
    assert measured["by replica"] == [[], 0]


def test_each_device_computes_its_part_of_the_batch(measured):
    if measured["operations"]:
        one, eight = measured["operations"]  # every device repeats the optimizer's
        assert 0.125 < eight / one < 0.2


def test_devices_that_share_a_batch_normalize_and_augment_it_as_one_would(measured):
    if measured["options"]:
        assert len(measured["options"]) == 8 and max(measured["options"]) < 1e-4


def test_devices_that_share_a_batch_of_few_labels_train_on_the_same_images(measured):
    if measured["few"]:
        assert len(measured["few"]) == 2 * 8 and max(measured["few"]) < 1e-4


def test_an_own_step_augmentation_and_metrics_are_those_of_one_device(measured):
    if not measured["own"]:
        return
    alone, shared, two, two_shared = measured["own"]
    for one, other in ((alone, shared), (two, two_shared)):
        assert len(one) == len(other) == 4 + 2  # top2 and three norms, kernel and bias
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
    assert 0 < alone[2][0] <= 5 * 32 and len(two[2]) == 2  # top2, of each replica


@pytest.mark.slow
def test_the_documented_memory_of_a_device_is_what_the_program_needs(small_mnist):
    row = r"^\| (\dx\d) \| (\d)( together)? \| [^|]+ \| ([\d.]+) MB \| ([\d.]+) MB \|$"
    text = (ROOT / "docs" / "devices-and-hosts.md").read_text()
    rows = re.findall(row, text, flags=re.MULTILINE)
    assert len(rows) == 5
    cases = [
        (mesh, int(count), int(count) if together else None) for mesh, count, together, *_ in rows
    ]
    found = on_eight_devices(MEMORY, str(small_mnist), json.dumps(cases))
    documented = [[1e6 * float(number) for number in row[-2:]] for row in rows]
    np.testing.assert_allclose(found, documented, rtol=0.02)


class Device:
    """What a mesh needs of a device."""


@pytest.fixture
def eight_devices():
    return [Device() for _ in range(8)]


@pytest.mark.parametrize(
    ("replicas", "shape"), [(1, (1, 8)), (2, (2, 4)), (3, (2, 4)), (8, (8, 1)), (30, (8, 1))]
)
def test_by_default_all_devices_work_replicas_first(replicas, shape, eight_devices):
    mesh = make_mesh(mnist_cnn.experiment(), replicas, eight_devices)
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("batch_size", "replicas", "count", "shape"),
    [(32, 1, 3, (1, 2)), (32, 1, 7, (1, 4)), (125, 5, 8, (4, 1)), (125, 1, 8, (1, 5))],
)
def test_a_device_is_idle_if_the_batch_has_no_even_part_for_it(
    batch_size, replicas, count, shape, eight_devices
):
    config = mnist_cnn.experiment(batch_size=batch_size)
    assert make_mesh(config, replicas, eight_devices[:count]).devices.shape == shape


@pytest.mark.parametrize(
    ("changes", "count", "text"),
    [
        (
            {"batch_size": 30, "mesh": "1x4"},
            4,
            "got 30, which 4 devices cannot share evenly; expected a multiple",
        ),
        ({"mesh": "2x4"}, 4, "got 2x4 (8 devices), expected at most 4 of them"),
        ({"mesh": "4x1"}, 4, "got 4x1, expected at most 1 for replicas"),
    ],
)
def test_an_impossible_mesh_is_refused_in_one_line(changes, count, text, eight_devices):
    config = mnist_cnn.experiment(**changes)
    with pytest.raises(ConfigError) as error:
        make_mesh(config, 1, eight_devices[:count])
    assert text in str(error.value) and "\n" not in str(error.value)
