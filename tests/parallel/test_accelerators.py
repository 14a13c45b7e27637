"""The programs of a run, lowered for TPU and GPU on this machine: what can be checked without one.

The programs are those that a run jits; the mesh has eight devices that need not exist.
"""

import functools
import os
import re
import subprocess
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, run
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P

import mnist_cnn
from mnist_cnn.models.apply import forward
from mnist_cnn.models.layers import Conv, Dense, max_pool
from mnist_cnn.parallel.mesh import peak_memory
from mnist_cnn.parallel.programs import training_program
from mnist_cnn.runner.console import Console
from mnist_cnn.training import batches
from mnist_cnn.training.batches import Split
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.scoring import score
from mnist_cnn.training.state import create_state
from mnist_cnn.training.step import train_step, train_steps

ACCELERATORS = ["tpu", "cuda"]
PARAMETERS = 8  # arrays: kernel and bias of four layers


@functools.cache
def lowered(name, platform, **changes):
    """The text of a program of the base experiment, as exported for `platform`.

    "4x2" is the training of replicas on such a mesh, one for each of the 4; "8 together" that of
    eight on one device.
    """
    config = mnist_cnn.experiment(**changes)
    state, sums = jax.eval_shape(lambda: (create_state(config), Metrics.zero()))
    images = jax.ShapeDtypeStruct((600, 28, 28, 1), np.uint8)
    labels = jax.ShapeDtypeStruct((600,), np.int32)
    rows = jax.ShapeDtypeStruct((32,), np.int32)
    order = jax.ShapeDtypeStruct((19, 32), np.int32)
    index = jax.ShapeDtypeStruct((), np.int32)
    data = Split(images, labels)
    if name == "train_step":
        function = train_step
        arguments = (state, jax.eval_shape(batches.take, data, rows))
    elif name == "train_steps":
        function, arguments = train_steps, (state, sums, data, order, index, index)
    elif name == "evaluation":
        function = score
        arguments = (state.model, state.loss, state.variables, images, labels, 250)
    else:
        shape = (1, 1) if name == "8 together" else tuple(map(int, name.split("x")))
        count = 8 if name == "8 together" else shape[0]
        mesh = AbstractMesh(shape, ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
        by_replica, by_batch = P("replica"), P("replica", None, "data")
        function = training_program(mesh)
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
def test_no_program_leaves_the_device(name, platform):
    text = lowered(name, platform)
    # Callbacks, and placement in the host's memory, are custom calls; there is none at all.
    for operation in ("custom_call", "infeed", "outfeed", "send", "recv"):
        assert f"stablehlo.{operation}" not in operations(text)
    assert "pinned_host" not in text and "callback" not in text


@every_accelerator
@every_program
def test_no_program_has_a_64_bit_number(name, platform):
    text = re.sub(r"replica_groups = dense<[^>]*> : tensor<\w+>", "", lowered(name, platform))
    kinds = set(re.findall(r"tensor<(?:\w+x)*?([a-z]+\d+)>", text))
    assert {"f32", "i32", "ui8"} <= kinds or name == "train_step"
    assert not {kind for kind in kinds if kind.endswith("64")}


@every_accelerator
@every_program
def test_convolutions_are_xlas_own_and_no_gradient_scatters_on_a_gpu(name, platform):
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
    # If a GPU must be deterministic, XLA sorts for the scatter of its own pooling gradient.
    pooling = 2 if platform == "tpu" else 0
    assert found.count("stablehlo.reduce_window") == pooling
    assert found.count("stablehlo.select_and_scatter") == (pooling if training else 0)


@pytest.mark.parametrize("program", ["train_steps", "evaluation"])
def test_convolutions_are_matrix_products_on_a_cpu(program):
    found = operations(lowered(program, "cpu"))
    assert "stablehlo.dot_general" in found
    assert not {"stablehlo.convolution", "stablehlo.select_and_scatter"} & set(found)


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
def test_only_gradients_and_metrics_cross_between_the_parts_of_a_batch(mesh, groups, platform):
    text = lowered(mesh, platform)
    crossing = [
        operation
        for operation in operations(text)
        if re.search("all_|collective|reduce_scatter|permute", operation)
    ]
    metrics = 3  # images, loss, right answers
    assert crossing == ["stablehlo.all_reduce"] * (0 if groups is None else PARAMETERS + metrics)
    found = set(re.findall(r"replica_groups = dense<(.*?)> :", text))
    axes = set(re.findall(r'replica_groups = .*, axes = \[#\S*<name = "(\w+)">\]', text))
    if groups is None:
        assert not found | axes
    else:  # since jax 0.12 an operation names the axis of the mesh, not the devices
        assert (found, axes) in (({groups}, set()), (set(), {"data"}))


@every_accelerator
@pytest.mark.parametrize("name", ["train_steps", "8x1"])
def test_any_number_of_steps_is_one_loop_on_the_device(name, platform):
    assert operations(lowered(name, platform)).count("stablehlo.while") == 1


# bfloat16.


def test_bfloat16_is_for_products_and_the_state_and_sums_are_float32():
    config = mnist_cnn.experiment(compute_dtype="bfloat16")
    state, sums = jax.eval_shape(lambda: (create_state(config), Metrics.zero()))
    kept = jax.tree.leaves((state.params, state.opt_state, sums))
    assert {leaf.dtype.name for leaf in kept} == {"float32", "int32"}
    pixels = jax.ShapeDtypeStruct((4, 28, 28, 1), np.uint8)
    of_model = functools.partial(forward, state.model)
    logits = jax.eval_shape(of_model, state.variables, pixels)
    assert logits.dtype == np.float32
    text = lowered("train_step", "tpu", compute_dtype="bfloat16")
    products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.* -> tensor<(\S+)>", text)
    assert [product.rpartition("x")[2] for product in products].count("bf16") == 8
    assert len(products) == 8 + 3  # the last layer's, forward and backward, are float32


def test_compute_dtype_is_refused_for_a_custom_module(tiny_experiment):
    _, err = run(
        "mnist_cnn.main", "--config", tiny_experiment, "--config.compute_dtype=bfloat16", status=2
    )
    assert "config.compute_dtype: got 'bfloat16', but the experiment has its own model" in err
    assert err.count("\n") == 1


def test_the_logits_of_a_custom_module_become_float32_for_the_loss():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(10, dtype="bfloat16")(images.reshape(images.shape[0], -1))

    variables = Half().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert forward(Half(), variables, jnp.zeros((2, 28, 28, 1), jnp.uint8)).dtype == np.float32


def test_the_peak_memory_is_printed_if_the_device_reports_it(monkeypatch, capsys):
    reported = {"peak_bytes_in_use": 312_000_000, "bytes_limit": 16_000_000_000, "num_allocs": 7}
    devices = [
        types.SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in (None, reported)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    Console().memory(peak_memory())
    assert capsys.readouterr().out == "device memory: at most 0.31 GB of 16.00 GB a device\n"
    monkeypatch.undo()
    Console().memory(peak_memory())  # a CPU does not report it
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("given", "got"), [(None, "false"), ("true", "true")])
def test_a_command_does_not_preallocate_gpu_memory_unless_configured(given, got, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nfrom mnist_cnn import command_line\n"
        "def show(arguments):\n"
        "    print(os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'], 'jax' in sys.modules)\n"
        "command_line.run_command(show, command_line.parse_flags)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_PYTHON_CLIENT_PREALLOCATE"}
    environment |= {"PYTHONPATH": str(ROOT)}
    if given is not None:
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = given
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{got} False\n", done.stderr


class Small(nn.Module):
    """About 99.0 %, with seeds that differ by less than 0.1 points: three show a change of 0.2."""

    dtype: str

    @nn.compact
    def __call__(self, images):
        x = images.reshape(-1, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 14, 14, 4)
        x = nn.relu(Conv(24, (3, 3), padding="VALID", dtype=self.dtype)(x))
        x = nn.relu(Conv(32, (3, 3), padding="VALID", dtype=self.dtype)(x))
        x = max_pool(x, (2, 2)).reshape(images.shape[0], -1)
        x = nn.relu(Dense(128, dtype=self.dtype)(x))
        return Dense(10)(x)


@pytest.mark.slow
def test_three_seeds_learn_as_well_in_bfloat16_as_in_float32(tmp_path):
    steps = 300
    accuracy = {}
    for dtype in ("float32", "bfloat16"):
        config = mnist_cnn.experiment(
            model=Small(dtype), num_seeds=3, batch_size=128, num_steps=steps, label_smoothing=0.15,
            optimizer=lambda _: optax.adam(
                optax.cosine_onecycle_schedule(steps, 0.01, pct_start=0.1), 0.7, 0.9
            ),
            report=False,
        )  # fmt: skip
        result = mnist_cnn.run(config, tmp_path / dtype)
        accuracy[dtype] = 100 * result["test_mean"]["accuracy"]
    assert accuracy["float32"] > 98.7
    assert abs(accuracy["bfloat16"] - accuracy["float32"]) < 0.2
