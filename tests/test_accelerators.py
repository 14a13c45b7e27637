"""The programs of a run, lowered for TPU and GPU on this machine: what can be seen without one.

What is lowered is what a run jits; the mesh has eight devices that nobody needs to own.
"""

import functools
import re

import jax
import jax.export
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec as P

import mnist_cnn
from mnist_cnn import batches, evaluate, replicas, train

ACCELERATORS = ["tpu", "cuda"]
PARAMETERS = 8  # arrays: kernel and bias of four layers


@functools.cache
def lowered(name, platform):
    """The text of a program of the base experiment, as exported for `platform`.

    "4x2" is the training of replicas on such a mesh, one for each of the 4; "8 together" that of
    eight on one device.
    """
    config = mnist_cnn.experiment()
    state, sums = jax.eval_shape(lambda: (train.create_state(config), train.Metrics.zero()))
    images = jax.ShapeDtypeStruct((600, 28, 28, 1), np.uint8)
    labels = jax.ShapeDtypeStruct((600,), np.int32)
    rows = jax.ShapeDtypeStruct((32,), np.int32)
    order = jax.ShapeDtypeStruct((19, 32), np.int32)
    index = jax.ShapeDtypeStruct((), np.int32)
    data = train.Data(images, labels)
    if name == "train_step":
        function = train.train_step
        arguments = (state, jax.eval_shape(batches.take, images, labels, rows))
    elif name == "train_steps":
        function, arguments = train.train_steps, (state, sums, data, order, index, index)
    elif name == "evaluation":
        function = evaluate.score
        arguments = (state.model, state.loss, state.params, images, labels, 250)
    else:
        shape = (1, 1) if name == "8 together" else tuple(map(int, name.split("x")))
        count = 8 if name == "8 together" else shape[0]
        mesh = AbstractMesh(shape, ("replica", "data"))
        by_replica, by_batch = P("replica"), P("replica", None, "data")
        function = replicas.training_program(mesh)
        arguments = (
            *(lay(tree, mesh, by_replica, count) for tree in (state, sums)),
            lay(data, mesh, P()),
            lay(order, mesh, by_batch, count),
            *(lay(index, mesh, P()) for _ in range(2)),
        )
    return jax.export.export(function, platforms=[platform])(*arguments).mlir_module()


def lay(tree, mesh, spec, *leading):
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=sharding),
        tree,
    )


def operations(text):
    return re.findall(r"\b(?:stablehlo|chlo|mhlo)\.\w+", text)


every_program = pytest.mark.parametrize(
    "name", ["train_step", "train_steps", "evaluation", "1x8", "8x1", "4x2", "8 together"]
)
every_accelerator = pytest.mark.parametrize("platform", ACCELERATORS)


@every_accelerator
@every_program
def test_no_program_calls_back_to_the_host_or_moves_anything_there(name, platform):
    text = lowered(name, platform)
    # Callbacks, and placement in the host's memory, are custom calls; there is none at all.
    for operation in ("custom_call", "infeed", "outfeed", "send", "recv"):
        assert f"stablehlo.{operation}" not in operations(text)
    assert "pinned_host" not in text and "callback" not in text


@every_accelerator
@every_program
def test_no_program_has_a_64_bit_number(name, platform):
    text = re.sub(r"replica_groups = dense<[^>]*> : tensor<\w+>", "", lowered(name, platform))
    types = set(re.findall(r"tensor<(?:\w+x)*?([a-z]+\d+)>", text))
    assert {"f32", "i32", "ui8"} <= types or name == "train_step"
    assert not {kind for kind in types if kind.endswith("64")}


@every_accelerator
@every_program
def test_convolutions_and_pooling_are_native_there(name, platform):
    forward, kernel, images = (  # the layouts of lax's own convolution and of its two gradients
        "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]",
        "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]",
        "[b, 0, 1, f]x[0, 1, o, i]->[b, 0, 1, f]",
    )
    training = name != "evaluation"
    if name != "8 together":  # there jax.vmap has put the replicas among the channels
        assert set(layouts(lowered(name, platform))) == (
            {forward, kernel, images} if training else {forward}
        )
    found = operations(lowered(name, platform))
    assert found.count("stablehlo.convolution") in ((5, 6) if training else (2,))
    assert found.count("stablehlo.reduce_window") == 2
    assert found.count("stablehlo.select_and_scatter") == (2 if training else 0)


def test_on_a_cpu_they_are_the_forms_that_are_fast_there():
    assert set(layouts(lowered("train_steps", "cpu"))) == {
        "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    }
    assert "stablehlo.select_and_scatter" not in operations(lowered("train_steps", "cpu"))


def layouts(text):
    return re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)


@every_accelerator
@pytest.mark.parametrize(
    ("mesh", "groups"),
    [
        ("1x8", "[[0, 1, 2, 3, 4, 5, 6, 7]]"),
        ("8x1", None),
        ("4x2", "[[0, 1], [2, 3], [4, 5], [6, 7]]"),
        ("8 together", None),
    ],
)
def test_gradients_and_metrics_cross_between_the_parts_of_a_batch_and_nothing_else(
    mesh, groups, platform
):
    text = lowered(mesh, platform)
    crossing = [
        operation
        for operation in operations(text)
        if re.search("all_|collective|reduce_scatter|permute", operation)
    ]
    metrics = 3  # images, loss, right answers
    assert crossing == ["stablehlo.all_reduce"] * (0 if groups is None else PARAMETERS + metrics)
    assert set(re.findall(r"replica_groups = dense<(.*?)> :", text)) == ({groups} - {None})


@every_accelerator
@pytest.mark.parametrize("name", ["train_steps", "8x1"])
def test_any_number_of_steps_is_one_loop_on_the_device(name, platform):
    assert operations(lowered(name, platform)).count("stablehlo.while") == 1
