"""Losses between predicted and target heatmaps, masked keypoint by keypoint (jnp)."""

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
        weights: of each map; 0 leaves a map out.

    Returns:
        The mean over the batch of the halved sum.

    Source: Gouidis et al. 2019 give heatmap regression; sum and factor are those of the authors'
    published figures (paper notes, confidence B).
    """
    errors = (heatmaps - targets) ** 2
    return 0.5 * (errors.sum(axis=(1, 2)) * weights).sum() / heatmaps.shape[0]
