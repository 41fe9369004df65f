"""Options of XLA that make this package's programs faster on CPUs."""

import functools

import jax

# XLA uses half of AVX-512's registers unless told; processors without it ignore this.
_WIDE = ('xla_cpu_prefer_vector_width', '512')
# XLA's YNNPACK packs the weights of matrix products anew at each call, and slowly where there are
# few pixels: Eigen's are up to twice as fast for one image, but training is far slower with them.
_NO_YNN = ('xla_cpu_experimental_ynn_fusion_type', '')

Options = dict[str, bool | int | float | str]


def for_training() -> Options | None:
    """For jax.jit(compiler_options=...) of a training step; starts JAX's backend.

    Returns:
        None where JAX runs on something else than a CPU, or where this XLA knows none of them: they
        are experimental.
    """
    return _known(_WIDE)


def for_inference() -> Options | None:
    """As for_training, for a network alone, of one image or of many."""
    return _known(_WIDE, _NO_YNN)


def _known(*wanted: tuple[str, str]) -> Options | None:
    if jax.default_backend() != 'cpu':
        return None
    found: Options = {name: value for name, value in wanted if _is_known(name, value)}
    return found or None


@functools.cache
def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
