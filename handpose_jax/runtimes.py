"""Trained networks ready to run: from a workdir to a function of images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from handpose_jax import checkpoints, heatmaps, models
from handpose_jax.types import Prediction


def make_predict_step(
    model: models.Network, decode: dict[str, Any]
) -> Callable[[Any, jax.Array], Prediction]:
    """Makes the jitted function from variables and crops u8[b h w 3] to keypoints in crop pixels.

    Args:
        model: from handpose_jax.models.build.
        decode: keyword arguments of heatmaps.decode.
    """

    @jax.jit
    def predict_step(variables: Any, images: jax.Array) -> Prediction:
        maps: Any = model.apply(variables, images, train=False)
        return heatmaps.decode(maps, stride=model.stride, **decode)

    return predict_step


def load_variables(workdir: str, config: ConfigDict, model: models.Network) -> tuple[int, Any]:
    """Reads a workdir's newest checkpoint for inference.

    Args:
        workdir: of a training run.
        config: the run's, checkpoints.load_config.
        model: from handpose_jax.models.build(**config.model.to_dict()).

    Returns:
        The checkpoint's step, and {'params', 'batch_stats'}.

    Raises:
        ValueError: if the workdir holds no checkpoint.
    """
    images = jnp.zeros((1, config.size, config.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    return checkpoints.load_variables(workdir, shapes)
