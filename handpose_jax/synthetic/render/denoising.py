"""Takes the noise out of traced light, and leaves edges and textures as they are (NumPy)."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from handpose_jax.synthetic.render.first_hits import NOTHING

# Passes of the filter: distance to the neighbours that are averaged, pixels.
_REACHES = (1, 2, 3)
# How unlike two neighbours on one surface may be. How far either lies off the tangent plane of the
# other: as a part of the depth, and in widths of a pixel there for each pixel between them.
_DEPTH_TOLERANCE, _PIXEL_TOLERANCE = 0.0015, 0.5
# How far their normals may differ, as 1 - cosine, for each pixel between them.
_BEND_TOLERANCE = 0.15


def smooth(
    rgb: Float[np.ndarray, 'h w 3'],
    *,
    focal: float,
    traced: Float[np.ndarray, 'h w'],
    alpha: Float[np.ndarray, 'h w'],
    albedo: Float[np.ndarray, 'h w 3'],
    positions: Float[np.ndarray, 'h w 3'],
    normals: Float[np.ndarray, 'h w 3'],
    shape_id: Int[np.ndarray, 'h w'],
) -> Float[np.ndarray, 'h w 3']:
    """Averages the light (not the colour) of neighbours on one smooth piece of a surface.

    A few light paths a pixel are noisy. Pixels that show more than one surface give their
    neighbours nothing; they take the light of the one under their centre, and then a little of the
    colours around them, so that edges stay soft.

    Args:
        rgb: linear, premultiplied by `traced`.
        focal: of the camera, pixels.
        traced: part of the light paths of each pixel that met a surface.
        alpha: the pixel's coverage.
        albedo: reflectance under the pixel's centre.
        positions: of the surface there, metres, camera frame; anything where there is none.
        normals: of the surface there, unit, to either side.
        shape_id: which surface it is, or NOTHING.

    Returns:
        Linear colour, premultiplied by `alpha`.

    Source: Dammertz et al. 2010, "Edge-avoiding A-Trous wavelet transform for fast global
    illumination filtering", High Performance Graphics, with the albedo divided out, along rows and
    columns in turn.
    """
    hit = shape_id != NOTHING
    place = np.where(hit[..., None], positions, 0).astype(np.float32).transpose(2, 0, 1).copy()
    normal = normals.astype(np.float32).transpose(2, 0, 1).copy()
    tolerance = place[2] * np.float32(_DEPTH_TOLERANCE) + 1e-9
    pixel = place[2] * np.float32(_PIXEL_TOLERANCE / focal)
    close = [_alike(axis, 1, place, normal, tolerance + pixel, shape_id) for axis in (0, 1)]
    edge = ~hit
    for axis, alike in enumerate(close):
        before, after = _pairs(axis, 1)
        edge[before] |= alike == 0
        edge[after] |= alike == 0

    traced = np.where(traced > 0.01, traced, 0).astype(np.float32)
    # Nearly nothing, so that a pixel without neighbours of its kind keeps its own light.
    gives = np.where(edge, 0.02 * traced, 1).astype(np.float32) * hit
    albedo = np.maximum(albedo, 0.02)
    light = (rgb / (albedo * np.maximum(traced, 0.05)[..., None])).transpose(2, 0, 1)
    light = _without_sparks(np.ascontiguousarray(light, np.float32), hit)
    for reach in _REACHES:
        for axis in (0, 1):
            if reach >= shape_id.shape[axis]:
                continue
            alike = (
                close[axis]
                if reach == 1
                else _alike(axis, reach, place, normal, tolerance + reach * pixel, shape_id)
            )
            before, after = _pairs(axis, reach)
            alike = 0.5 * alike
            given = light * gives
            weights, total = gives.copy(), given.copy()
            weights[before] += alike * gives[after]
            weights[after] += alike * gives[before]
            total[:, *before] += alike * given[:, *after]
            total[:, *after] += alike * given[:, *before]
            light = total / np.maximum(weights, 1e-6)
            # What was an edge now has the light of its own surface.
            gives = np.where(hit & (weights > 0.1), np.float32(1), gives)
    clean = np.where(hit[..., None], light.transpose(1, 2, 0) * albedo, 0)
    return _soft_edges(clean, rgb, hit=hit, edge=edge | (alpha < 0.999), alpha=alpha)


# How much brighter than its surroundings a pixel may be, and how dark they count at least, as a
# part of the average.
_SPARK, _DARK = 5.0, 0.2


def _without_sparks(
    light: Float[np.ndarray, '3 h w'], hit: Bool[np.ndarray, 'h w']
) -> Float[np.ndarray, '3 h w']:
    """Limits single light paths that found a lamp by a rare way: averaged, they would be blots."""
    level = light.sum(axis=0) * hit
    mean = float(level.sum()) / max(int(hit.sum()), 1)
    if mean <= 0:
        return light
    # In logarithms, where a spark itself counts for little.
    logs = np.log(level + _DARK * mean) * hit
    share = cv2.GaussianBlur(hit.astype(np.float32), (0, 0), 2.0)
    around = cv2.GaussianBlur(np.asarray(logs, np.float32), (0, 0), 2.0)
    most = _SPARK * np.exp(around / np.maximum(share, 1e-3))
    return light * np.minimum(1, most / np.maximum(level, 1e-9)).astype(np.float32)


_Slices = tuple[slice, slice]


def _pairs(axis: int, reach: int) -> tuple[_Slices, _Slices]:
    """All pixels that have a neighbour so far down (axis 0) or right (1), and those neighbours."""
    before, after = slice(None, -reach), slice(reach, None)
    whole = slice(None)
    return ((before, whole), (after, whole)) if axis == 0 else ((whole, before), (whole, after))


def _alike(
    axis: int,
    reach: int,
    place: Float[np.ndarray, '3 h w'],
    normal: Float[np.ndarray, '3 h w'],
    tolerance: Float[np.ndarray, 'h w'],
    shape_id: Int[np.ndarray, 'h w'],
) -> Float[np.ndarray, 'H W']:
    """How much two pixels show one smooth piece of a surface, 0..1."""
    before, after = _pairs(axis, reach)
    step = place[:, *after] - place[:, *before]
    one, two = normal[:, *before], normal[:, *after]
    off = np.abs((step * (one + two)).sum(axis=0)) / (2 * tolerance[before])
    # A normal may point to either side of a thin sheet.
    bend = (1 - np.abs((one * two).sum(axis=0))) * np.float32(1 / (_BEND_TOLERANCE * reach))
    alike = np.maximum(1 - off - bend, 0)
    return (alike * (shape_id[before] == shape_id[after])).astype(np.float32)


def _soft_edges(
    clean: Float[np.ndarray, 'h w 3'],
    rgb: Float[np.ndarray, 'h w 3'],
    *,
    hit: Bool[np.ndarray, 'h w'],
    edge: Bool[np.ndarray, 'h w'],
    alpha: Float[np.ndarray, 'h w'],
) -> Float[np.ndarray, 'h w 3']:
    """Mixes the colours around every edge pixel, and lets the backdrop through by its coverage."""
    present = hit.astype(np.float32)
    colours = cv2.GaussianBlur(np.ascontiguousarray(clean, np.float32), (3, 3), 0.6)
    cover = cv2.GaussianBlur(present, (3, 3), 0.6)
    mixed = colours / np.maximum(cover, 1e-3)[..., None]
    # Far from every hit there is only what was traced: a sliver thinner than a pixel.
    mixed = np.where((cover > 0.02)[..., None], mixed * alpha[..., None], rgb)
    return np.where((edge | ~hit)[..., None], mixed, clean).astype(np.float32)
