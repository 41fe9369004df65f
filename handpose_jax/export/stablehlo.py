"""StableHLO by jax.export: a program that JAX loads without this package."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from handpose_jax.export.graph import Graph

PLATFORMS = ('cpu', 'cuda', 'tpu')


def save(graph: Graph, path: Path) -> None:
    """Writes the program by jax.export: any number of images, for CPUs, CUDA and TPUs.

    Args:
        graph: what to write.
        path: receives it.
    """
    (batch,) = export.symbolic_shape('b')
    shape = jax.ShapeDtypeStruct((batch, graph.size, graph.size, 3), jnp.float32)
    exported = export.export(jax.jit(graph.infer), platforms=PLATFORMS)(shape)
    path.write_bytes(exported.serialize())
