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
    _check_shapes('squared_error_loss', heatmaps, targets, weights)
    # Masked before the arithmetic: 0 times NaN is NaN, in the gradient too.
    differences = jnp.where(weights[:, None, None, :] != 0, heatmaps - targets, 0)
    errors = differences**2
    return 0.5 * (errors.sum(axis=(1, 2)) * weights).sum() / len(heatmaps)


IOU_SMOOTHING = 1e-6
"""Added to intersection and union, so that two empty maps agree. Source: the tutorial's code."""


def iou_loss(
    heatmaps: Float[Array, 'b h w c'],
    targets: Float[Array, 'b h w c'],
    weights: Float[Array, 'b c'],
) -> Float[Array, '']:
    """The tutorial's loss: one minus the mean overlap of predicted and true map.

    The overlap of maps p and y is I / U with I = sum(y p) and U = sum(y^2) + sum(p^2) - sum(y p).

    Args:
        heatmaps: predicted, meant for maps of 0..1.
        targets: what they should be.
        weights: of each map; 0 leaves a map out, whatever it holds (NaN too): its gradient is 0.

    Returns:
        The weighted mean over all maps of the batch, 0..1 for maps of 0..1; 0 if no map counts.

    Raises:
        ValueError: if the shapes do not fit.

    Source: Chernytska 2021, IoU loss; Rahman and Wang 2016. The weights are ours: in the tutorial
    every keypoint counts.
    """
    _check_shapes('iou_loss', heatmaps, targets, weights)
    # Masked before the arithmetic: 0 times NaN is NaN, in the gradient too.
    counted = weights[:, None, None, :] != 0
    predicted, wanted = jnp.where(counted, heatmaps, 0), jnp.where(counted, targets, 0)
    common = (wanted * predicted).sum(axis=(1, 2))
    union = (wanted**2).sum(axis=(1, 2)) + (predicted**2).sum(axis=(1, 2)) - common
    overlap = (common + IOU_SMOOTHING) / (union + IOU_SMOOTHING)
    return ((1 - overlap) * weights).sum() / jnp.maximum(weights.sum(), 1e-12)


def _check_shapes(name: str, heatmaps: Array, targets: Array, weights: Array) -> None:
    b, _, _, c = heatmaps.shape
    if targets.shape != heatmaps.shape or weights.shape != (b, c):
        raise ValueError(
            f'{name}: targets must have the shape of heatmaps [b h w c], weights [b c]; '
            f'got heatmaps {heatmaps.shape}, targets {targets.shape}, weights {weights.shape}'
        )
