"""What lies under the centre of every pixel: exact rays through triangle meshes (NumPy).

Pixels follow the rule of geometry.py; the world is the camera, as in mitsuba_renderer.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

NOTHING = -1
"""shape_id of pixels that show no surface."""


class Hits(NamedTuple):
    """The first surface on the ray through each pixel's centre.

    Attributes:
        depth: f64[h w], z, metres; infinite where there is none.
        shape_id: i32[h w], which mesh, or NOTHING.
        face: i32[h w], which of its triangles; 0 where there is none.
        weights: f32[h w 3], how much of each corner of that triangle there is in the point; sums to
            1, or to 0 where there is none.
    """

    depth: Float[np.ndarray, 'h w']
    shape_id: Int[np.ndarray, 'h w']
    face: Int[np.ndarray, 'h w']
    weights: Float[np.ndarray, 'h w 3']


def find(
    meshes: Sequence[tuple[np.ndarray, np.ndarray]],
    camera: Float[np.ndarray, '3 3'],
    region: tuple[int, int, int, int],
    *,
    near: float,
) -> Hits:
    """Casts a ray through every pixel's centre.

    Args:
        meshes: vertices [v 3], metres, camera frame, and faces [f 3] of each; seen from both sides.
        camera: intrinsic matrix.
        region: x0, y0, x1, y1: columns x0..x1-1 and rows y0..y1-1.
        near: rays begin at this depth, metres.

    Source: Olano and Greer 1997, "Triangle scan conversion using 2D homogeneous coordinates",
    Graphics Hardware: exact before and behind the eye alike, so nothing is clipped.
    """
    x0, y0, x1, y1 = region
    width, height = x1 - x0, y1 - y0
    camera = np.asarray(camera, np.float64)
    corners, lows, spans, owners, numbers = [], [], [], [], []
    for index, (vertices, faces) in enumerate(meshes):
        # x z, y z and z of the vertices, x and y in pixels from the region's first.
        seen = (np.asarray(vertices, np.float64) @ camera.T).T.copy()
        seen[:2] -= np.array([[x0], [y0]]) * seen[2]
        columns = np.ascontiguousarray(np.asarray(faces).T)
        low, span = _boxes(seen, columns, width, height, near)
        kept = np.flatnonzero(span.all(axis=0))
        corners.append(seen[:, columns[:, kept]])
        lows.append(low[:, kept])
        spans.append(span[:, kept])
        owners.append(np.full(len(kept), index, np.int32))
        numbers.append(kept.astype(np.int32))
    empty = np.zeros((2, 0), np.int64)
    corner = np.concatenate([np.zeros((3, 3, 0)), *corners], axis=2)
    low, span = np.concatenate([empty, *lows], axis=1), np.concatenate([empty, *spans], axis=1)
    owner = np.concatenate([np.zeros(0, np.int32), *owners])
    number = np.concatenate([np.zeros(0, np.int32), *numbers])

    planes = _planes(corner)
    # Every pixel of every triangle's box, until it proves to be outside.
    count = span[0] * span[1]
    triangle = np.repeat(np.arange(len(owner)), count)
    within = np.arange(len(triangle)) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(within, span[0][triangle])
    column += low[0][triangle]
    row += low[1][triangle]
    parts: list[np.ndarray] = []
    for k in range(3):
        across, down, level = planes[3 * k : 3 * k + 3]
        part = across[triangle] * column + down[triangle] * row + level[triangle]
        inside = np.flatnonzero(part >= 0)
        triangle, row, column = triangle[inside], row[inside], column[inside]
        parts = [earlier[inside] for earlier in (*parts, part)]
    nearness = sum(parts, start=np.zeros(len(triangle)))
    behind = ~((nearness > 0) & (nearness < 1 / near))
    nearness[behind] = 0

    pixel = row * width + column
    nearest = np.zeros(height * width)
    np.maximum.at(nearest, pixel, nearness)
    # The later triangle counts of two at the same depth, such as on a common edge.
    first = np.flatnonzero((nearness == nearest[pixel]) & ~behind)
    winner = np.full(height * width, -1)
    np.maximum.at(winner, pixel[first], first)
    shown = np.flatnonzero(winner >= 0)
    winner = winner[shown]

    depth = np.full(height * width, np.inf)
    shape_id = np.full(height * width, NOTHING, np.int32)
    face = np.zeros(height * width, np.int32)
    weights = np.zeros((height * width, 3), np.float32)
    depth[shown] = 1 / nearness[winner]
    shape_id[shown] = owner[triangle[winner]]
    face[shown] = number[triangle[winner]]
    for k, part in enumerate(parts):
        weights[shown, k] = part[winner] / nearness[winner]
    fields = (depth, shape_id, face, weights)
    return Hits(*(field.reshape(height, width, *field.shape[1:]) for field in fields))


def _boxes(
    seen: Float[np.ndarray, '3 v'],
    columns: Int[np.ndarray, '3 f'],
    width: int,
    height: int,
    near: float,
) -> tuple[Int[np.ndarray, '2 f'], Int[np.ndarray, '2 f']]:
    """First pixel (x, y) of each triangle's box in the region, and the box's size."""
    ahead = seen[2] > near
    any_ahead, all_ahead = ahead[columns].any(axis=0), ahead[columns].all(axis=0)
    low, span = (np.empty((2, columns.shape[1]), np.int64) for _ in range(2))
    for axis, side in enumerate((width, height)):
        at = (seen[axis] / np.where(ahead, seen[2], 1.0))[columns]
        # What reaches behind the eye may be anywhere.
        start = np.where(all_ahead, np.ceil(np.clip(at.min(axis=0), 0, side)), 0)
        end = np.where(all_ahead, np.floor(np.clip(at.max(axis=0), -1, side - 1)), side - 1)
        low[axis], span[axis] = start, np.where(any_ahead, np.maximum(end - start + 1, 0), 0)
    return low, span


def _planes(corner: Float[np.ndarray, '3 3 f']) -> Float[np.ndarray, '9 f']:
    """The inverse of the matrix of each triangle's corners, row by row.

    Its product with a pixel (x, y, 1) is how much of each corner lies on the pixel's ray, over the
    depth.
    """
    planes = np.empty((9, corner.shape[2]))
    for k in range(3):
        one, two = corner[:, (k + 1) % 3], corner[:, (k + 2) % 3]
        for axis in range(3):
            i, j = (axis + 1) % 3, (axis + 2) % 3
            planes[3 * k + axis] = one[i] * two[j] - one[j] * two[i]
    volume = (planes[:3] * corner[:, 0]).sum(axis=0)
    # A triangle seen edge on covers nothing.
    return planes / np.where(volume == 0, np.nan, volume)
