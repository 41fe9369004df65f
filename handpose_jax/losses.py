"""Losses between predicted and target heatmaps, masked keypoint by keypoint (jnp)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def squared_error_loss(
    heatmaps: Float[Array, 'b h w c'],
    targets: Float[Array, 'b h w c'],
    weights: Float[Array, 'b c'],
) -> Float[Array, '']:
    """The paper's loss: squared errors summed over pixels and maps, halved, per example.

    Args:
        heatmaps: predicted.
        targets: what they should be.
        weights: of each map; 0 leaves a map out, whatever it holds (NaN too): its gradient is 0.

    Returns:
        The mean over the batch of the halved sum.

    Raises:
        ValueError: if the shapes do not fit; broadcasting would give another loss without a word.

    Source: Gouidis et al. 2019 give heatmap regression; sum and factor are those of the authors'
    published figures (paper notes, confidence B).
    """
    b, _, _, c = heatmaps.shape
    if targets.shape != heatmaps.shape or weights.shape != (b, c):
        raise ValueError(
            'squared_error_loss: targets must have the shape of heatmaps [b h w c], weights [b c]; '
            f'got heatmaps {heatmaps.shape}, targets {targets.shape}, weights {weights.shape}'
        )
    # Masked before the arithmetic: 0 times NaN is NaN, in the gradient too.
    differences = jnp.where(weights[:, None, None, :] != 0, heatmaps - targets, 0)
    errors = differences**2
    return 0.5 * (errors.sum(axis=(1, 2)) * weights).sum() / b
