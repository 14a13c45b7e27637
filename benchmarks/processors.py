"""Which operations have the same bits on other x86 processors, which qemu-user emulates.

    apt-get install qemu-user && python -m benchmarks.processors

Each operation of a training step runs as a training program compiles it, with two threads, on this
processor and on two emulated ones without AVX-512, with and without YNNPACK's choice of kernels by
processor. The command prints the operations whose bits differ, and writes processors.json.
"""

import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import record
from mnist_cnn.models.kernels.compiler import compiler_options

EMULATED = ("Haswell", "max")  # as `qemu-x86_64 -cpu` names them; the latter with all it emulates
FLAG = "--xla_cpu_enable_platform_dependent_math=false"


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _in_blocks(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (x.reshape(-1, 196, x.shape[-1]) for x in (a, b))
    return jnp.einsum("nki,nkj->nij", a, b).sum(0)


# name -> function, shapes of its arguments
OPERATIONS = {
    "exp": (jnp.exp, [(256, 1024)]),
    "tanh": (jnp.tanh, [(256, 1024)]),
    "division, square root": (lambda x: x / (jnp.sqrt(x * x) + 1e-3), [(256, 1024)]),
    "sum over rows": (lambda x: x.sum(0), [(1024, 1024)]),
    "sum over columns": (lambda x: x.sum(1), [(1024, 1024)]),
    "max-pooling": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        [(32, 14, 14, 64)],
    ),
    "dense, 3136 inputs": (jnp.matmul, [(32, 3136), (3136, 1024)]),
    "dense, 1024 inputs to 10": (jnp.matmul, [(32, 1024), (1024, 10)]),
    "gradient of a kernel, batch 32": (lambda x, g: x.T @ g, [(32, 3136), (32, 1024)]),
    "gradient of a kernel, 512 terms": (lambda x, g: x.T @ g, [(512, 784), (512, 128)]),
    "gradient of a kernel, 6272 terms": (lambda x, g: x.T @ g, [(6272, 36), (6272, 128)]),
    "the same in blocks of 196 terms": (_in_blocks, [(6272, 36), (6272, 128)]),
    "gradient of the inputs": (lambda g, w: g @ w.T, [(32, 1024), (3136, 1024)]),
    "Fourier's products": (
        lambda x, g: jnp.einsum("fbi,fbo->fio", x, g), [(384, 32, 32), (384, 32, 64)],
    ),
    "5 x 5 convolution": (_convolve, [(32, 14, 14, 32), (5, 5, 32, 64)]),
    "its gradient for the kernel": (
        lambda x, k, g: jax.vjp(_convolve, x, k)[1](g)[1],
        [(32, 14, 14, 32), (5, 5, 32, 64), (32, 14, 14, 64)],
    ),
}  # fmt: skip


def digests() -> dict[str, str]:
    """The SHA-256 of each operation's result on this processor."""
    found = {}
    for name, (function, shapes) in OPERATIONS.items():
        rng = np.random.default_rng(0)  # integers, since NumPy's floats may depend on the processor
        values = [rng.integers(-(2**23), 2**23, shape) / 2**23 for shape in shapes]
        arguments = [value.astype(np.float32) for value in values]
        program = jax.jit(function).lower(*arguments).compile(compiler_options("cpu"))
        found[name] = hashlib.sha256(np.asarray(program(*arguments)).tobytes()).hexdigest()
    return found


def _digests_on(processor: str, flag: str) -> dict[str, str]:
    command = [os.path.realpath(sys.executable), "-m", "benchmarks.processors", "--digests"]
    if processor in EMULATED:
        command = ["qemu-x86_64", "-cpu", processor, *command]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        command, check=True, capture_output=True, text=True,
        env=os.environ | {"NPROC": "2", "PJRT_NPROC": "2", "XLA_FLAGS": flag, "PYTHONPATH": paths,
                          "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    return json.loads(done.stdout)


def differing(found: dict[str, dict[str, str]]) -> list[str]:
    """The operations whose bits are not the same on all processors."""
    return [name for name in OPERATIONS if len({one[name] for one in found.values()}) > 1]


def main() -> None:
    if sys.argv[1:] == ["--digests"]:
        print(json.dumps(digests()))
        return
    arguments = record.parse_arguments(__doc__, rounds=1)
    result = {
        name: {one: _digests_on(one, flag) for one in ("this one", *EMULATED)}
        for name, flag in (("default", ""), ("with the flag", FLAG))
    }
    for name, found in result.items():
        print(f"{name}: {'; '.join(differing(found))}")
    environment = {"environment": record.environment("processors", arguments)}
    print(record.write("processors", arguments, environment | result))


if __name__ == "__main__":
    main()
