"""A network of `flax.nnx` as a Linen module: variables in, logits and new variables out.

An object of an NNX module holds its variables, drawn by its constructor. So an experiment gives the
constructor, and each seed of a run calls it with its own random numbers. Flax's bridge, `ToLinen`,
does the same, but does not call `train` and `eval`, and needs each random stream by its name.
"""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn, nnx, traverse_util
from jaxtyping import Array, Float, Key

from mnist_cnn.data.spec import MNIST, NETWORK_FIELDS, DataSpec
from mnist_cnn.errors import ConfigError, shorten
from mnist_cnn.models.apply import MODES
from mnist_cnn.models.layers import data_axis


@functools.cache  # a compiled program is identified by its module
def as_linen(make: Callable[..., Any], spec: DataSpec = MNIST) -> nn.Module:
    """The Linen module of a function of `rngs` that returns an NNX module, such as its class.

    It receives those of `NETWORK_FIELDS` that are arguments of it. The type of the Linen module has
    the name of that class. ConfigError if `make` is no such function.
    """
    if isinstance(make, nnx.bridge.ToLinen):
        make = functools.partial(make.nnx_class, *make.args, **make.kwargs)
    kind: Any = make
    while isinstance(kind, functools.partial):
        kind = kind.func
    if isinstance(kind, nnx.Module):
        name = type(kind).__name__
        raise ConfigError(
            f"config.model: got an object of {name}, whose parameters are drawn already; give "
            f"{name} or functools.partial({name}, ...), which each seed calls with its rngs"
        )
    if not inspect.isroutine(kind) and not (
        isinstance(kind, type) and issubclass(kind, nnx.Module)
    ):
        raise ConfigError(
            f"config.model: got {shorten(kind)}, expected an object of a flax.linen module, or the "
            "class of a flax.nnx module"
        )
    is_class = isinstance(kind, type)  # of NNX: its own signature is (*args, **kwargs)
    parameters = list(inspect.signature(kind.__init__ if is_class else kind).parameters)
    given = len(make.args) if isinstance(make, functools.partial) else 0
    parameters = parameters[is_class + given :]
    if own := {name: getattr(spec, name) for name in NETWORK_FIELDS if name in parameters}:
        make = functools.partial(make, **own)
    return type(kind.__name__, (_Adapter,), {})(make)


class _Adapter(nn.Module):
    """A Linen module that makes an NNX module of its variables for each call."""

    make: Callable[..., Any]

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool = False) -> Any:
        """What the NNX module returns, after its `train` or `eval`."""
        name, initial = type(self).__name__, self.is_initializing()
        if initial:
            drawn = self.make(rngs=nnx.Rngs(self.make_rng("params")))
        else:  # only the shapes of its variables
            drawn = nnx.eval_shape(lambda: self.make(rngs=nnx.Rngs(0)))
        if not isinstance(drawn, nnx.Module):
            raise ConfigError(
                f"config.model: returned {shorten(drawn)}, expected a flax.nnx module"
            )
        for path, value in nnx.iter_graph(drawn):
            is_variable = isinstance(value, nnx.Variable)
            if is_variable and not isinstance(value, (nnx.Param, nnx.BatchStat, nnx.RngState)):
                kind = type(value).__name__
            elif isinstance(value, (jax.Array, np.ndarray)) and not is_variable:
                kind = "an array"
            else:
                continue
            raise ConfigError(
                f"config.model: {name} keeps {kind} in {'.'.join(_names(path))}; expected "
                "nnx.Param and nnx.BatchStat only; make constants in `__call__`"
            )
        split: Any = nnx.split(drawn, nnx.Param, nnx.BatchStat, nnx.RngState)
        graph, params, batch_stats, streams = split
        if initial:
            self._put("params", params)
            self._put("batch_stats", batch_stats)
        # In evaluation nothing may be drawn from it.
        key = self.make_rng("dropout") if train else jax.random.key(0)
        net: Any = nnx.merge(
            graph,
            self._filled("params", params),
            self._filled("batch_stats", batch_stats),
            _restarted(streams, key),
        )
        (net.train if train else net.eval)()
        net.set_attributes(nnx.BatchNorm, axis_name=data_axis(), raise_if_not_found=False)
        parameters = inspect.signature(net.__call__).parameters
        kwargs: dict[str, Any] = {k: mode == train for k, mode in MODES.items() if k in parameters}
        if "rngs" in parameters:
            kwargs["rngs"] = nnx.Rngs(jax.random.fold_in(key, 0)) if train else None
        if initial:
            _show_calls(net)
        before = jax.tree.leaves(nnx.state(net, nnx.RngState))
        logits = net(images, **kwargs)
        after = jax.tree.leaves(nnx.state(net, nnx.RngState))
        if not train and any(old is not new for old, new in zip(before, after, strict=True)):
            raise ConfigError(
                f"config.model: {name} draws random numbers in evaluation; there are only those of "
                "training"
            )
        if self.is_mutable_collection("batch_stats") and not initial:
            self._put("batch_stats", nnx.state(net, nnx.BatchStat))
        return logits

    def _put(self, collection: str, state: Any) -> None:
        """Stores the values of NNX variables in Linen's dictionaries."""
        flat = {_names(path): jax.tree.leaves(v)[0] for path, v in nnx.to_flat_state(state)}
        for name, value in traverse_util.unflatten_dict(flat).items():
            self.put_variable(collection, name, value)

    def _filled(self, collection: str, state: Any) -> Any:
        """`state` with the values of Linen's dictionaries."""
        values = traverse_util.flatten_dict(self.variables.get(collection, {}))
        return nnx.from_flat_state(
            (path, jax.tree.map(lambda _, path=path: values[_names(path)], variable))
            for path, variable in nnx.to_flat_state(state)
        )


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The path of a variable in Linen's dictionaries, whose keys are strings."""
    return tuple(map(str, path))


def _restarted(streams: Any, key: Key[Array, ""]) -> Any:
    """Random streams at their beginning, each with a key of its own made from `key`."""

    def restarted(index: int, variable: nnx.Variable) -> nnx.Variable:
        own = jax.random.fold_in(key, index)
        is_key = isinstance(variable, nnx.RngKey)
        return jax.tree.map(
            lambda x: jax.random.split(own, x.shape) if is_key else jnp.zeros(x.shape, x.dtype),
            variable,
        )

    flat = enumerate(nnx.to_flat_state(streams), start=1)
    return nnx.from_flat_state((path, restarted(index, v)) for index, (path, v) in flat)


def _show_calls(net: nnx.Module) -> None:
    """Lets Linen's interceptors, such as that of the summary, see the calls of the layers."""
    for path, layer in list(nnx.iter_graph(net)):
        if isinstance(layer, nnx.Module) and callable(layer):
            object.__setattr__(layer, "_linen_path", _names(path))
            object.__setattr__(layer, "__class__", _shown(type(layer)))


@functools.cache
def _shown(kind: type[nnx.Module]) -> type[nnx.Module]:
    """A class like `kind` whose calls are seen."""

    def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:
        def __call__(_: Any, *args: Any, **kwargs: Any) -> Any:
            return kind.__call__(layer, *args, **kwargs)

        seen: Any = SimpleNamespace(path=layer._linen_path)
        return nn.module.run_interceptors(__call__, seen, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__})
