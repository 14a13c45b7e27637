"""Compiler options that make a training program fast."""

import functools

import jax

# By default XLA gives a CPU's convolutions to YNNPACK, which takes twice as long for them as Eigen.
# With this option YNNPACK gets matrix products and sums only, for which it is faster.
_CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


def compiler_options(platform: str) -> dict[str, str | bool]:
    """The options for a training program on "cpu", "gpu" or "tpu"; they change its speed only."""
    return _CPU_OPTIONS if platform == "cpu" and _refusal() is None else {}


def compiler_note(platform: str) -> list[str]:
    """A line if this XLA refuses the options, else none."""
    if platform != "cpu" or (reason := _refusal()) is None:
        return []
    return [
        f"note: this version of XLA refuses the option {', '.join(_CPU_OPTIONS)} ({reason}); "
        "training continues without it, perhaps more slowly"
    ]


@functools.cache
def _refusal() -> str | None:
    """Why XLA refuses the options; None if it takes them."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=_CPU_OPTIONS)
    except Exception as error:
        return " ".join(str(error).split())[:100]
    return None
