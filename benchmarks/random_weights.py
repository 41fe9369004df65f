"""Weights that look trained, for measurements of speed: they take as long as trained ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model: Any) -> Any:
    """Variables of an unfolded network; no statistic is zero or one.

    Args:
        model: from handpose_jax.models.build.
    """
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name.endswith('kernel'):
            value = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape)
        elif name in ('scale', 'var'):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.normal(0, 0.1, leaf.shape)
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
