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


@functools.cache
def compiler_options(platform: str) -> dict[str, str | bool]:
    """The options for a training program on "cpu", "gpu" or "tpu"; they change its speed only."""
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=_CPU_OPTIONS)
    except Exception:  # this jaxlib does not know the option
        return {}
    return _CPU_OPTIONS
