"""How any Flax module is applied to images: scaled pixels in, float32 logits out."""

import inspect
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Key, UInt8

from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import ConfigError
from mnist_cnn.models.kernels.rewrite import fast_on_cpu

# The arguments by which modules receive whether they are in training, and their value if so.
MODES = {"train": True, "training": True, "is_training": True}
MODES |= {"deterministic": False, "use_running_average": False}

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ... if the module has any}


def make_variables(params: Any, batch_stats: Any) -> Variables:
    """The collections that a module is applied to; without batch_stats if there are none."""
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def train_kwargs(model: nn.Module, train: bool) -> dict[str, Any]:
    """What `__call__` receives to know whether it is in training, such as {"train": train}.

    It may have an argument `train`, `training`, `is_training`, `deterministic` or
    `use_running_average` (the last two are the opposite of `train`); {} if it has none of them.
    ConfigError if it has **kwargs instead, which do not say what the module expects.
    """
    parameters = inspect.signature(model.__call__).parameters
    kwargs = {name: mode == train for name, mode in MODES.items() if name in parameters}
    open_ended = [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    if open_ended and not kwargs and not isinstance(model, nn.Sequential):
        raise ConfigError(
            f"config.model: `__call__` of {type(model).__name__} has **{open_ended[0].name} and "
            "no argument `train`; name the argument, even if it is not used"
        )
    return kwargs


def init_variables(model: nn.Module, key: Key[Array, ""], spec: DataSpec = MNIST) -> Variables:
    """The variables of a module for such data, drawn at random.

    ConfigError if a run cannot keep them, or the module returns something else than logits.
    """
    image = jnp.zeros((1, *spec.image_shape), jnp.float32)
    output, found = model.init_with_output(key, image, **train_kwargs(model, train=False))
    as_logits(output, spec.num_classes)
    variables = dict(found)
    if not variables.get("params"):
        raise ConfigError(f"config.model: {type(model).__name__} has no parameters to train")
    if others := variables.keys() - {"params", "batch_stats"}:
        raise ConfigError(
            f"config.model: {type(model).__name__} has variables in {', '.join(sorted(others))}; "
            "expected params and batch_stats only"
        )
    return variables


def as_logits(output: Any, num_classes: int | None = None) -> Float32[Array, "B K"]:
    """What a module returned, as float32 logits; ConfigError if it is something else.

    None: of any number of classes, for a network whose own was checked when it was made.
    """
    shape, dtype = getattr(output, "shape", None), getattr(output, "dtype", None)
    if shape is None or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = f"a {type(output).__name__}" if shape is None else f"an array of {dtype}"
    elif len(shape) == 2 and num_classes in (None, shape[1]):
        return output.astype(jnp.float32)
    else:
        got = f"an array [{', '.join(['B', *map(str, shape[1:])] if shape else [])}]"
    number = "K" if num_classes is None else num_classes
    raise ConfigError(
        f"config.model: returned {got}, expected logits [B, {number}]: one for each class of the "
        "data; a module with a field num_classes receives their number"
    )


def scale(images: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Scales pixels from 0..255 to 0..1."""
    return images.astype(jnp.float32) / 255


def forward(
    model: nn.Module, variables: Variables, images: UInt8[Array, "B H W C"]
) -> Float[Array, "B K"]:
    """Logits at evaluation; always float32, so that the loss is, whatever the model computes in."""
    return forward_scaled(model, variables, scale(images))


def forward_scaled(
    model: nn.Module, variables: Variables, images: Float32[Array, "B H W C"]
) -> Float32[Array, "B K"]:
    """The logits of images whose pixels are scaled to 0..1."""

    def apply(variables: Variables, images: Array) -> Array:
        return as_logits(model.apply(variables, images, **train_kwargs(model, train=False)))

    return fast_on_cpu(apply, variables, images)
