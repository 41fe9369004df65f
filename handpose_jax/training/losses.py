"""Losses between predicted and target heatmaps, masked keypoint by keypoint (jnp)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from handpose_jax.heatmaps import SIGMA


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

EMPTY_SMOOTHING = math.pi * SIGMA**2 / 224**2
"""The same where the target is empty, as a share of the map's pixels: sum(y^2) of one peak.

Nothing can overlap an empty target, and with the tutorial's number the loss would be 1 and flat for
whatever is seen there. With this one a whole peak where there is none costs one half, and its slope
is about that of a peak that is missing. Our choice (confidence C).
"""


def iou_loss(
    heatmaps: Float[Array, 'b h w c'],
    targets: Float[Array, 'b h w c'],
    weights: Float[Array, 'b c'],
) -> Float[Array, '']:
    """The tutorial's loss: one minus the mean overlap of predicted and true map.

    The overlap of maps p and y is I / U with I = sum(y p) and U = sum(y^2) + sum(p^2) - sum(y p).
    Both get IOU_SMOOTHING more; those of an empty target EMPTY_SMOOTHING times the map's pixels.

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
    is_empty = (wanted == 0).all(axis=(1, 2))
    pixels = heatmaps.shape[1] * heatmaps.shape[2]
    smoothing = jnp.where(is_empty, EMPTY_SMOOTHING * pixels, IOU_SMOOTHING)
    overlap = (common + smoothing) / (union + smoothing)
    return ((1 - overlap) * weights).sum() / jnp.maximum(weights.sum(), 1e-12)


def _check_shapes(name: str, heatmaps: Array, targets: Array, weights: Array) -> None:
    b, _, _, c = heatmaps.shape
    if targets.shape != heatmaps.shape or weights.shape != (b, c):
        raise ValueError(
            f'{name}: targets must have the shape of heatmaps [b h w c], weights [b c]; '
            f'got heatmaps {heatmaps.shape}, targets {targets.shape}, weights {weights.shape}'
        )
