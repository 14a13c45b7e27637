"""Whether an experiment's own model, loss and other functions do what a run needs of them.

They are traced for their shapes as soon as the form of the data is known, so that a mistake is one
line that names the line of the experiment file, and no wrong gradient and no error at the end of
the training.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.extend import core

from mnist_cnn.config import OBJECTS
from mnist_cnn.data.spec import MNIST, DataSpec
from mnist_cnn.errors import ConfigError, shorten, users_line
from mnist_cnn.models.apply import forward
from mnist_cnn.models.layers import DATA_AXIS
from mnist_cnn.runner.checkpoint import specs
from mnist_cnn.runner.experiment_file import where_made
from mnist_cnn.training import components, metrics
from mnist_cnn.training.batches import Batch
from mnist_cnn.training.components import Components
from mnist_cnn.training.metrics import Metrics
from mnist_cnn.training.options import training_forward, training_loss
from mnist_cnn.training.state import TrainState, initial_state, to_dict
from mnist_cnn.training.step import step

# Operations that change no value.
_SHAPES = ("convert_element_type", "reshape", "squeeze", "broadcast_in_dim")
# The numbers of images to choose from: no other axis has that size, so that none is taken for it.
_COUNTS = (7, 11, 13, 17, 19)


def check_components(
    config: Mapping[str, Any], file: str | None = None, spec: DataSpec = MNIST
) -> list[str]:
    """Notes on the objects that `config` contains, used for such data; nothing is computed.

    `file` is the experiment file, if it is known. Raises ConfigError if one of them cannot be used.
    """
    if not any(callable(config[key]) for key in OBJECTS):
        return []
    named = functools.partial(_named, config, file=file)
    with named("model"):
        model = components.build_model(config, spec)
    parts = components.build_components(config, spec=spec)
    count = next(n for n in _COUNTS if n not in (*spec.image_shape, spec.num_classes))
    batch = Batch(
        images=_shape(jnp.uint8, count, *spec.image_shape),
        labels=_shape(jnp.int32, count),
        weights=_shape(jnp.float32, count),
    )
    idle: list[str] = []
    try:  # the whole step at once; the parts one by one only to name the one that fails
        state = _new_state(config, parts)
        with nn.intercept_methods(functools.partial(_find_idle, idle)):
            _take_step(state, batch, parts)
        works = _trace(to_dict, state) is not None
    except Exception:
        works = False
    if not works:
        _name_the_fault(config, parts, batch, named)
    with named("model"):
        program, logits = jax.make_jaxpr(
            _over_mesh(functools.partial(forward, model)), return_shape=True
        )(state.variables, batch.images)
        _check_count(_shape(logits.dtype, *logits.shape[1:]), count)
    place, notes = _place(config, "model", file), []
    if idle:
        notes.append(
            f"note: {place}: these layers work as in evaluation also during training: "
            f"{', '.join(dict.fromkeys(idle))}; if that is not intended, give `__call__` an "
            "argument `train` and pass it to them"
        )
    if _is_probability(program.jaxpr):
        notes.append(
            f"note: {place}: its outputs are probabilities, but loss and predictions take them for "
            "logits; leave out the softmax or sigmoid at its end"
        )
    return notes


def _name_the_fault(
    config: Mapping[str, Any], parts: Components, batch: Batch, named: Callable[[str], Any]
) -> None:
    """Raises ConfigError for the first of the parts that does not do what a step needs."""
    with named("model"):
        model, plain = (
            parts.model,
            parts._replace(schedule=None, augment=None, train_step=None, metrics=()),
        )
        state = _new_state(config, plain._replace(optimizer=lambda hyper: optax.identity()))
        whole = len(batch.labels)
        for count in (1, whole):
            images = _shape(jnp.uint8, count, *parts.spec.image_shape)
            _check_count(_trace(functools.partial(forward, model), state.variables, images), count)
        train = functools.partial(training_forward, data_axis=None)
        images = _shape(jnp.float32, *batch.images.shape)
        logits, statistics = _trace(train, state, state.params, images)
        _check_count(logits, whole)
        if specs(statistics) != specs(state.batch_stats):
            raise ConfigError("its batch_stats change their names or shapes in training")
    with named("loss"):

        def total(logits: Any, state: TrainState, labels: Any) -> Any:
            return training_loss(state, logits, labels).sum()

        _trace(jax.grad(total), logits, state, batch.labels)
    with named("optimizer"):
        state = _new_state(config, plain)
        _trace(to_dict, state)
        _take_step(state, batch, plain)
    more: list[tuple[str, dict[str, Any]]] = [
        ("augment", {"schedule": None, "train_step": None, "metrics": ()}),
        ("schedule", {"train_step": None, "metrics": ()}),
        ("metrics", {"train_step": None}),
        ("train_step", {}),
    ]
    for key, rest in more:
        with named(key):
            some = parts._replace(**rest)
            _take_step(_new_state(config, some), batch, some)


def _take_step(state: TrainState, batch: Batch, parts: Components) -> None:
    """Traces a step; ConfigError if it does not return a state like `state` and metrics."""
    returned = _trace(state.train_step or step, state, batch)
    expected: Any = jax.tree.structure((state, Metrics.zero(metrics.names(parts))))
    if jax.tree.structure(returned) != expected:
        raise ConfigError(
            f"returned {shorten(returned)}, expected (state, metrics), as `descend` in "
            "mnist_cnn.training.step does"
        )
    if specs(returned[0]) != specs(state):
        raise ConfigError("its state or the parameters change shape or dtype at a step")


def _shape(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _is_probability(program: core.Jaxpr) -> bool:
    """Whether the last operation of a program is a softmax or a sigmoid."""
    made_by: dict[Any, Any] = {
        variable: equation for equation in program.eqns for variable in equation.outvars
    }
    equation = made_by.get(program.outvars[0])
    while equation and equation.primitive.name in _SHAPES:
        equation = made_by.get(equation.invars[0])
    if equation is None:
        return False
    for inner in equation.params.values():
        if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
            return _is_probability(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
    numerator = made_by.get(equation.invars[0]) if equation.primitive.name == "div" else None
    return equation.primitive.name == "logistic" or (
        numerator is not None and numerator.primitive.name == "exp"
    )


def _new_state(config: Mapping[str, Any], parts: Components) -> TrainState:
    hyper = components.build_hyperparameters(config, total_steps=1)
    return jax.eval_shape(functools.partial(initial_state, parts), jnp.uint32(0), hyper)


def _over_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` where the mesh axis DATA_AXIS exists, as it does in a run; results [1, ...]."""
    return jax.vmap(function, in_axes=None, axis_name=DATA_AXIS, axis_size=1)


def _trace(function: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of what `function` returns."""
    found = jax.eval_shape(_over_mesh(function), *arguments)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), found)


def _check_count(logits: Any, count: int) -> None:
    if len(logits) != count:
        raise ConfigError(f"returned {list(logits.shape)} for {count} images, expected [B, K]")


def _find_idle(
    found: list[str], call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Adds the path of a layer that is applied as in evaluation to `found`."""
    layer: Any = context.module
    names = {nn.Dropout: "deterministic", nn.BatchNorm: "use_running_average"}
    name = names.get(type(layer))
    if name and context.method_name == "__call__" and getattr(layer, "rate", 1) != 0:
        given = kwargs.get(name, args[1] if len(args) > 1 else None)
        if (getattr(layer, name) if given is None else given) is True:
            found.append("/".join(layer.path))
    return call(*args, **kwargs)


def _place(config: Mapping[str, Any], key: str, file: str | None) -> str:
    made = where_made(config[key], key, file)
    return f"config.{key} ({made})" if made else f"config.{key}"


@contextlib.contextmanager
def _named(config: Mapping[str, Any], key: str, file: str | None) -> Iterator[None]:
    """Turns any error into a ConfigError with the key, the user's line and the reason."""
    try:
        yield
    except Exception as error:
        line = users_line(error.__traceback__)
        start = f"config.{key} ({line})" if line else _place(config, key, file)
        text = " ".join(str(error).partition("(https:")[0].split())
        if isinstance(error, ConfigError):
            text = text.removeprefix(f"config.{key}: ")
        elif isinstance(error, flax.errors.InvalidRngError):
            stream = (re.findall('"(.*?)"', text) or ["?"])[0]
            text = (
                f"needs random numbers of {stream!r}; there are only those of 'dropout', during "
                "training, for a module whose `__call__` has an argument `train`"
            )
        else:
            text = f"{type(error).__name__}: {text[:200]}"
        raise ConfigError(f"{start}: {text}") from error
