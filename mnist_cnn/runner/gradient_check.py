"""The gradient of a small network by the compiled training step, and by NumPy in float64.

A compiler that computes wrongly is seldom noticed: training continues, and is a little worse. The
network has the layers of `models.cnn.CNN`, so the step uses the fast forms of all of them.
"""

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Int32, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from mnist_cnn.errors import UserError
from mnist_cnn.models.kernels.compiler import compiler_options
from mnist_cnn.models.layers import ConvMaxPool, Dense
from mnist_cnn.training.batches import Split
from mnist_cnn.training.components import LOSSES, Components
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.state import initial_state
from mnist_cnn.training.step import steps

# Relative to the largest value of each gradient. float32 costs up to 1e-6: a value is a sum of up
# to 1,568 products, each rounded by 6e-8, and the signs of the errors differ.
TOLERANCE = 2e-5
# With this seed no rounding decides: the two largest values of a pooling window, and every value
# and the 0 of its ReLU, differ by more than 1e-4.
_SEED = 5

Values = dict[str, np.ndarray]  # of "conv1.kernel", "conv1.bias" and so on, in float64


class SmallCNN(nn.Module):
    """`models.cnn.CNN` with fewer filters and units."""

    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = nn.relu(ConvMaxPool(8, (5, 5), name="conv1")(images))
        x = nn.relu(ConvMaxPool(12, (5, 5), name="conv2")(x))
        x = nn.relu(Dense(32, name="dense1")(x.reshape(len(x), -1)))
        return Dense(10, name="dense2")(x)


def check_gradient() -> float:
    """The largest relative difference; UserError if it is above `TOLERANCE`."""
    inputs = example()
    found, expected = compiled_gradient(*inputs), reference_gradient(*inputs)
    differences = {
        name: float(np.max(np.abs(found[name] - value)) / np.max(np.abs(value)))
        for name, value in expected.items()
    }
    # `not <=`, because NaN is wrong too.
    if wrong := [name for name, value in differences.items() if not value <= TOLERANCE]:
        name, version = wrong[0], importlib.metadata.version("jaxlib")
        raise UserError(
            f"{name}: a compiled training step differs from a float64 reference by "
            f"{differences[name]:.1e} of the largest value, expected at most {TOLERANCE:.0e}: "
            f"jaxlib {version} computes wrongly on this device; install the versions of "
            "constraints.txt, or others"
        )
    return max(differences.values())


def example() -> tuple[Values, UInt8[np.ndarray, "B 28 28 1"], Int32[np.ndarray, " B"]]:
    """Parameters that float32 represents, images and labels; the same on every machine."""
    rng = np.random.default_rng(_SEED)
    shapes = {
        "conv1": (5, 5, 1, 8),
        "conv2": (5, 5, 8, 12),
        "dense1": (588, 32),
        "dense2": (32, 10),
    }
    params = {}
    for layer, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        params[f"{layer}.kernel"] = rng.normal(0, scale, shape)
        params[f"{layer}.bias"] = rng.normal(0, 0.1, shape[-1])
    params = {name: value.astype(np.float32).astype(float) for name, value in params.items()}
    return params, rng.integers(0, 256, (2, 28, 28, 1), np.uint8), np.array([3, 8], np.int32)


def compiled_gradient(params: Values, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The loss and the gradients of one step of `training.step.steps`, compiled as for a run."""
    # The optimizer keeps the gradients as its state.
    keep = optax.GradientTransformation(lambda params: params, lambda g, *_: (g, g))
    in_float32 = {tuple(name.split(".")): np.float32(value) for name, value in params.items()}
    variables = {"params": unflatten_dict(in_float32)}
    platform = jax.default_backend()
    # An accelerator would round the factors of products to fewer bits.
    with jax.default_matmul_precision(None if platform == "cpu" else "highest"):
        components = Components(SmallCNN(), LOSSES["cross_entropy"], lambda hyper: keep)
        state = initial_state(components, jnp.uint32(0), {}, variables)
        split, order = Split(images, labels), np.arange(len(labels), dtype=np.int32)[None]
        arguments = state, Metrics.zero(), split, order, np.int32(0), np.int32(1)
        program = jax.jit(steps).lower(*arguments)
        state, sums = program.compile(compiler_options=compiler_options(platform))(*arguments)
    gradients = flatten_dict(jax.device_get(state.opt_state), sep=".")
    return {"loss": np.asarray(sums.loss) / len(labels), **gradients}


def reference_gradient(params: Values, images: np.ndarray, labels: np.ndarray) -> Values:
    """The mean loss and its gradients, by the formulas that a textbook has."""
    x, saved = images / 255, []
    for layer in ("conv1", "conv2"):
        kernel = params[f"{layer}.kernel"]
        z = _conv(x, kernel) + params[f"{layer}.bias"]
        windows = _windows(np.maximum(z, 0))
        saved.append((layer, x, z, windows))
        x = windows.max(-1)
    flat = x.reshape(len(x), -1)
    z1 = flat @ params["dense1.kernel"] + params["dense1.bias"]
    hidden = np.maximum(z1, 0)
    logits = hidden @ params["dense2.kernel"] + params["dense2.bias"]
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exps / exps.sum(-1, keepdims=True)
    target = np.eye(10)[labels]
    found = {"loss": np.asarray(-np.log((probabilities * target).sum(-1)).mean())}

    gradient = (probabilities - target) / len(labels)  # of the logits
    found["dense2.kernel"], found["dense2.bias"] = hidden.T @ gradient, gradient.sum(0)
    gradient = gradient @ params["dense2.kernel"].T * (z1 > 0)
    found["dense1.kernel"], found["dense1.bias"] = flat.T @ gradient, gradient.sum(0)
    gradient = (gradient @ params["dense1.kernel"].T).reshape(x.shape)
    for layer, x, z, windows in reversed(saved):
        gradient = _route_to_largest(windows, gradient) * (z > 0)
        found[f"{layer}.bias"] = gradient.sum((0, 1, 2))
        products = np.tensordot(_patches(x), gradient, ((0, 1, 2), (0, 1, 2)))  # [in, 5, 5, out]
        found[f"{layer}.kernel"] = products.transpose(1, 2, 0, 3)
        turned = params[f"{layer}.kernel"][::-1, ::-1].swapaxes(2, 3)
        gradient = _conv(gradient, turned)
    return found


def _patches(x: np.ndarray) -> np.ndarray:
    """[B, H, W, C] -> what a 5 x 5 kernel sees at each pixel, [B, H, W, C, 5, 5]; outside is 0."""
    return sliding_window_view(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), (5, 5), (1, 2))


def _conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[B, H, W, in] and [5, 5, in, out] -> [B, H, W, out]."""
    return np.tensordot(_patches(x), kernel, ((3, 4, 5), (2, 0, 1)))


def _windows(x: np.ndarray) -> np.ndarray:
    """[B, H, W, C] -> the four values of each 2 x 2 window, [B, H / 2, W / 2, C, 4]."""
    batch, height, width, channels = x.shape
    split = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, channels, 4)


def _route_to_largest(windows: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The gradient of `_windows(x).max(-1)` for x: the first of the largest values takes it."""
    routed = np.eye(4)[windows.argmax(-1)] * gradient[..., None]
    batch, rows, columns, channels, _ = routed.shape
    split = routed.reshape(batch, rows, columns, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(batch, 2 * rows, 2 * columns, channels)
