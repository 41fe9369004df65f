"""The flesh of the bundled hand: a distance field around its bones, and the mesh of its surface.

The field is built once, in a rest pose of spread, straight fingers, so that no two fingers touch.
It is negative inside, metres, and near a distance only close to the surface. Its measures are those
of an average adult, rounded; the frame is the hand frame of types.py.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handpose_jax.synthetic.body import meshes, skeleton
from handpose_jax.synthetic.body.types import HandPose

REST = HandPose(
    fingers=np.radians(
        [[8.0, 6.0, 0.0, 0.0], [13.0, 0.0, 0.0, 0.0], [0.0] * 4, [10.0, 0, 0, 0], [20.0, 0, 0, 0]]
    ),
    wrist=np.zeros(2),
)
"""The pose the flesh is modelled in."""

REST_SKELETON = skeleton.forward_kinematics(skeleton.AVERAGE, REST)

FOREARM_LENGTH = 0.25
# The skin goes on this far beyond a fingertip keypoint.
FINGERTIP = 0.0028

# Half the breadth of each finger at its middle joint; the thumb's at its last joint.
HALF_BREADTHS = np.array([0.0110, 0.0096, 0.0098, 0.0092, 0.0081])

# Along a finger: 0 is its base, 1 its middle, 2 its last joint, 3 its end. Half breadth, height of
# the back and depth of the pad over the bones, as parts of the half breadth at the middle joint.
_FINGER_PROFILE = np.array(
    [
        [-0.40, 1.05, 0.82, 0.95],
        [0.00, 1.06, 0.88, 1.00],
        [0.25, 1.03, 0.80, 1.04],
        [0.50, 0.97, 0.75, 1.06],
        [0.75, 0.97, 0.79, 0.98],
        [0.90, 1.00, 0.87, 0.86],
        [1.00, 1.02, 0.91, 0.84],
        [1.12, 1.00, 0.87, 0.90],
        [1.35, 0.93, 0.76, 0.99],
        [1.60, 0.90, 0.71, 0.97],
        [1.85, 0.90, 0.72, 0.81],
        [2.00, 0.91, 0.73, 0.78],
        [2.20, 0.88, 0.63, 0.80],
        [2.50, 0.86, 0.53, 0.84],
        [2.75, 0.80, 0.50, 0.78],
        [3.00, 0.72, 0.46, 0.66],
    ]
)
# The thumb's 0 to 1 is its metacarpal, most of it inside the ball of the thumb.
_THUMB_PROFILE = np.array(
    [
        [0.10, 0.60, 0.55, 0.60],
        [0.40, 1.00, 0.90, 1.15],
        [0.70, 1.05, 0.92, 1.20],
        [0.90, 1.09, 0.98, 1.04],
        [1.00, 1.11, 1.00, 0.97],
        [1.15, 1.06, 0.90, 0.95],
        [1.45, 0.92, 0.78, 0.93],
        [1.75, 0.95, 0.80, 0.90],
        [1.90, 1.01, 0.85, 0.84],
        [2.00, 1.03, 0.86, 0.81],
        [2.15, 1.02, 0.76, 0.84],
        [2.40, 1.02, 0.60, 0.92],
        [2.70, 0.95, 0.52, 0.86],
        [3.00, 0.80, 0.46, 0.66],
    ]
)
# The last part of a finger is rounded off over this many half breadths.
_ROUNDING = 1.25

# Elbow to knuckles along y: middle in x, half breadth, height of the back, depth of the palm.
_ARM_PROFILE = np.array(
    [
        [-0.255, 0.000, 0.0400, 0.0400, 0.0400],
        [-0.200, 0.000, 0.0420, 0.0380, 0.0370],
        [-0.140, 0.000, 0.0390, 0.0310, 0.0310],
        [-0.080, 0.001, 0.0320, 0.0230, 0.0240],
        [-0.040, 0.001, 0.0282, 0.0185, 0.0200],
        [-0.015, 0.000, 0.0272, 0.0172, 0.0186],
        [0.005, 0.000, 0.0280, 0.0166, 0.0180],
        [0.025, 0.001, 0.0310, 0.0152, 0.0165],
        [0.045, 0.003, 0.0345, 0.0138, 0.0145],
        [0.065, 0.005, 0.0380, 0.0122, 0.0132],
        [0.082, 0.007, 0.0402, 0.0108, 0.0125],
        [0.0925, 0.008, 0.0400, 0.0095, 0.0115],
        [0.100, 0.008, 0.0370, 0.0075, 0.0095],
    ]
)


def smooth_profile(
    table: Float[np.ndarray, 'r c'], at: Float[np.ndarray, '*s']
) -> Float[np.ndarray, '*s k']:
    """Interpolates the columns of a table over its first one, without corners or overshoot.

    Args:
        table: f64[r c], rising in the first column.
        at: where to read it; clipped to the table's range.

    Returns:
        f64[.. c - 1].
    """
    x, y = table[:, 0], table[:, 1:]
    slopes = np.diff(y, axis=0) / np.diff(x)[:, None]
    # Fritsch and Carlson's monotone cubic: harmonic mean of the slopes where they agree in sign.
    inner = np.zeros_like(slopes[1:])
    agree = slopes[1:] * slopes[:-1] > 0
    np.divide(2 * slopes[1:] * slopes[:-1], slopes[1:] + slopes[:-1], out=inner, where=agree)
    tangents = np.concatenate([slopes[:1], inner, slopes[-1:]])
    at = np.clip(at, x[0], x[-1])
    cell = np.clip(np.searchsorted(x, at, side='right') - 1, 0, len(x) - 2)
    width = (x[cell + 1] - x[cell])[..., None]
    t = (at - x[cell])[..., None] / width
    return (
        (1 + 2 * t) * (1 - t) ** 2 * y[cell]
        + t * (1 - t) ** 2 * width * tangents[cell]
        + t * t * (3 - 2 * t) * y[cell + 1]
        + t * t * (t - 1) * width * tangents[cell + 1]
    )


def smooth_union(
    one: Float[np.ndarray, '*s'], other: Float[np.ndarray, '*s'], reach: float
) -> Float[np.ndarray, '*s']:
    """Joins two distance fields with a fillet of about `reach` metres."""
    overlap = np.maximum(reach - np.abs(one - other), 0.0)
    return np.minimum(one, other) - overlap * overlap / (4 * reach)


def finger_coordinates(
    finger: int, points: Float[np.ndarray, '*s 3']
) -> tuple[Float[np.ndarray, '*s 3'], Float[np.ndarray, '*s']]:
    """Places points along and around a finger in the rest pose.

    Args:
        finger: 0 (thumb) to 4 (little finger).
        points: f64[.. 3], hand frame.

    Returns:
        f64[.. 3], metres in the frame of the straight finger, from its base; and f64[..], 0 at the
        base, 1 and 2 at its next joints, 3 where its skin ends, and on beyond both ends.
    """
    at = skeleton.FINGER_KEYPOINTS[finger]
    local = _into(points, REST_SKELETON.keypoints[at[0]], REST_SKELETON.frames[at[1]])
    first, second, third = skeleton.BONE_LENGTHS[finger]
    stations = np.cumsum([0.0, first, second, third + FINGERTIP])
    along = local[..., 1]
    station = np.interp(along, stations, np.arange(4.0))
    station = np.where(along < 0, along / first, station)
    station = np.where(along > stations[3], 3 + (along - stations[3]) / third, station)
    return local, station


def _into(
    points: Float[np.ndarray, '*s 3'],
    origin: Float[np.ndarray, '3'],
    axes: Float[np.ndarray, '3 3'],
) -> Float[np.ndarray, '*s 3']:
    """Coordinates along the columns of `axes`; threads of a matrix product cost more than this."""
    x, y, z = (points[..., k] - origin[k] for k in range(3))
    return np.stack([x * axes[0, k] + y * axes[1, k] + z * axes[2, k] for k in range(3)], axis=-1)


def _finger(finger: int, points: Float[np.ndarray, '*s 3']) -> Float[np.ndarray, '*s']:
    local, station = finger_coordinates(finger, points)
    half_breadth = HALF_BREADTHS[finger]
    table = _THUMB_PROFILE if finger == skeleton.THUMB else _FINGER_PROFILE
    profile = half_breadth * smooth_profile(table, station)
    end = skeleton.BONE_LENGTHS[finger].sum() + FINGERTIP
    beyond = local[..., 1] - end
    inward = np.clip(1 + beyond / (_ROUNDING * half_breadth), 0.0, 1.0)
    round_off = np.maximum(1 - inward**2.3, 0.0) ** (1 / 2.3)
    breadth = np.maximum(profile[..., 0] * round_off, 1e-4)
    height = np.where(local[..., 2] > 0, profile[..., 1], profile[..., 2])
    height = np.maximum(height * round_off, 1e-4)
    x, z = np.abs(local[..., 0]) / breadth, np.abs(local[..., 2]) / height
    around = ((x**2.25 + z**2.25) ** (1 / 2.25) - 1) * np.minimum(breadth, height)
    field = np.hypot(np.maximum(around, 0), np.maximum(beyond, 0)) + np.minimum(around, 0)
    inside = 0.010 if finger != skeleton.THUMB else 0.006
    return np.maximum(field, -inside - local[..., 1])


def arm_profile(along: Float[np.ndarray, '*s']) -> Float[np.ndarray, '*s 4']:
    """Reads the arm's outline: middle in x, half breadth, height of the back, depth of the palm."""
    return smooth_profile(_ARM_PROFILE, along)


def _arm(points: Float[np.ndarray, '*s 3']) -> Float[np.ndarray, '*s']:
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    # The knuckles lie on a curve: the palm is shorter towards the little finger.
    knuckles = 0.0935 - 8.0 * (x + 0.008) ** 2
    along = np.where(y > 0, y * 0.0925 / np.maximum(knuckles, 0.03), y)
    middle, breadth, back, front = np.moveaxis(arm_profile(along), -1, 0)
    in_hand = np.clip(along / 0.06, 0.0, 1.0)
    arch = in_hand * 5.5 * (x - 0.002) ** 2
    z = z + arch
    height = np.where(z > 0, back, front)
    power = 2.3 + 0.5 * in_hand
    side, up = np.abs(x - middle) / breadth, np.abs(z) / height
    field = ((side**power + up**power) ** (1 / power) - 1) * np.minimum(breadth, height)
    ends = np.maximum(along - 0.099, -FOREARM_LENGTH - y)
    # Rounded at both ends.
    fillet = 0.008
    outside = np.hypot(np.maximum(field + fillet, 0), np.maximum(ends + fillet, 0))
    return outside + np.minimum(np.maximum(field + fillet, ends + fillet), 0) - fillet


def _round_cone(
    points: Float[np.ndarray, '*s 3'],
    start: Float[np.ndarray, '3'],
    end: Float[np.ndarray, '3'],
    radii: tuple[float, float],
) -> Float[np.ndarray, '*s']:
    axis = end - start
    x, y, z = (points[..., k] - start[k] for k in range(3))
    t = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / (axis @ axis), 0.0, 1.0)
    x, y, z = x - t * axis[0], y - t * axis[1], z - t * axis[2]
    return np.sqrt(x * x + y * y + z * z) - (radii[0] + t * (radii[1] - radii[0]))


def _ellipsoid(
    points: Float[np.ndarray, '*s 3'],
    centre: Float[np.ndarray, '3'],
    axes: Float[np.ndarray, '3 3'],
    half: tuple[float, float, float],
) -> Float[np.ndarray, '*s']:
    local = _into(points, centre, axes / np.array(half))
    return (np.sqrt(np.sum(local * local, axis=-1)) - 1) * min(half)


def _point(finger: int, station: float, side: float, up: float) -> Float[np.ndarray, '3']:
    """A point beside a finger's bones: its place along the first bone, and metres aside and up."""
    at = skeleton.FINGER_KEYPOINTS[finger]
    offset = np.array([side, station * skeleton.BONE_LENGTHS[finger, 0], up])
    return REST_SKELETON.keypoints[at[0]] + REST_SKELETON.frames[at[1]] @ offset


def _turned(z: float, x: float = 0.0) -> Float[np.ndarray, '3 3']:
    around_z = skeleton.rotation(np.array([0.0, 0.0, 1.0]), math.radians(z))
    return around_z @ skeleton.rotation(np.array([1.0, 0.0, 0.0]), math.radians(x))


# Centre, turn and half axes of the balls of the thumb and of the little finger, and of the pad
# below the fingers.
_PADS = (
    (np.array([-0.0235, 0.0400, -0.0150]), _turned(30.0, -6.0), (0.0160, 0.0310, 0.0150)),
    (np.array([0.0255, 0.0340, -0.0130]), _turned(-6.0), (0.0135, 0.0340, 0.0130)),
    (np.array([0.0070, 0.0850, -0.0100]), _turned(-9.0), (0.0310, 0.0130, 0.0085)),
)
_HOLLOW = (np.array([0.004, 0.052, -0.0275]), np.eye(3), (0.013, 0.026, 0.012))
_FIRST_WEB = (
    (_point(0, 0.45, 0.004, -0.004), np.array([-0.020, 0.058, -0.004]), (0.0105, 0.0100)),
    (_point(0, 0.72, 0.005, -0.004), np.array([-0.025, 0.072, -0.005]), (0.0080, 0.0090)),
    (_point(0, 0.90, 0.006, -0.003), np.array([-0.026, 0.082, -0.005]), (0.0045, 0.0065)),
)


class _Part(NamedTuple):
    """One shape of the flesh.

    Attributes:
        field: its distance field.
        ends: two points of it.
        margin: metres; how far it goes beyond the box of its ends.
        fillet: metres, to the rest; a negative one hollows the flesh out.
    """

    field: Callable[[Float[np.ndarray, '*s 3']], Float[np.ndarray, '*s']]
    ends: Float[np.ndarray, '2 3']
    margin: float
    fillet: float

    def may_touch(self, low: Float[np.ndarray, '3'], high: Float[np.ndarray, '3']) -> bool:
        """Whether it can change the flesh in a box."""
        first, last = self.ends.min(axis=0) - self.margin, self.ends.max(axis=0) + self.margin
        return not ((first - self.fillet > high).any() or (last + self.fillet < low).any())


def _cone_part(
    start: Float[np.ndarray, '3'],
    end: Float[np.ndarray, '3'],
    radii: tuple[float, float],
    fillet: float,
) -> _Part:
    field = functools.partial(_round_cone, start=start, end=end, radii=radii)
    return _Part(field, np.stack([start, end]), max(radii), fillet)


def _ellipsoid_part(
    centre: Float[np.ndarray, '3'],
    axes: Float[np.ndarray, '3 3'],
    half: tuple[float, float, float],
    fillet: float,
) -> _Part:
    field = functools.partial(_ellipsoid, centre=centre, axes=axes, half=half)
    return _Part(field, np.stack([centre, centre]), max(half), fillet)


def _finger_part(finger: int, fillet: float) -> _Part:
    ends = REST_SKELETON.keypoints[skeleton.FINGER_KEYPOINTS[finger][[0, 3]]]
    return _Part(functools.partial(_finger, finger), ends, 1.6 * HALF_BREADTHS[finger], fillet)


def _parts() -> list[_Part]:
    base = skeleton.FINGER_BASES
    parts = [_ellipsoid_part(*pad, fillet=0.010) for pad in _PADS]
    parts.append(_ellipsoid_part(*_HOLLOW, fillet=-0.010))
    for finger in range(1, 5):
        radius = 0.0066 * HALF_BREADTHS[finger] / 0.0095
        knuckle = base[finger] + np.array([0.0, -0.001, 0.0044])
        parts.append(_ellipsoid_part(knuckle, np.eye(3), (radius, radius, radius), 0.005))
        root = np.array([0.35 * base[finger][0], 0.005, 0.0125])
        under = knuckle + np.array([0.0, -0.008, 0.0022])
        parts.append(_cone_part(root, under, (0.0018, 0.0021), 0.0045))
    # The head of the ulna, a bump at the back of the wrist.
    ulna = np.array([0.0150, -0.017, 0.0060])
    parts.append(_ellipsoid_part(ulna, np.eye(3), (0.0105, 0.0130, 0.0105), 0.010))
    # The fold between thumb and index finger: muscle beside the metacarpals, thin at its edge.
    parts += [_cone_part(start, end, radii, 0.010) for start, end, radii in _FIRST_WEB]
    for finger in range(1, 4):
        # Skin between the fingers reaches almost to the middle of their first bones.
        ends = _point(finger, 0.24, 0.004, -0.0035), _point(finger + 1, 0.24, -0.004, -0.0035)
        parts.append(_cone_part(*ends, (0.0052, 0.0050), 0.007))
    parts.append(_finger_part(skeleton.THUMB, 0.009))
    parts += [_finger_part(finger, 0.0055) for finger in range(1, 5)]
    return parts


_PARTS = _parts()


def field(points: Float[np.ndarray, '*s 3']) -> Float[np.ndarray, '*s']:
    """Evaluates the flesh of the rest pose.

    Args:
        points: f64[.. 3], metres, hand frame; quicker where they lie together.

    Returns:
        f64[..], metres, negative inside.
    """
    corners = points.reshape(-1, 3)
    low, high = corners.min(axis=0), corners.max(axis=0)
    flesh = _arm(points)
    for part in _PARTS:
        if not part.may_touch(low, high):
            continue
        if part.fillet > 0:
            flesh = smooth_union(flesh, part.field(points), part.fillet)
        else:
            flesh = -smooth_union(-flesh, part.field(points), -part.fillet)
    return flesh


def _axes(step: float) -> tuple[Float[np.ndarray, '_'], ...]:
    low = REST_SKELETON.keypoints.min(axis=0) - 0.025
    high = REST_SKELETON.keypoints.max(axis=0) + 0.025
    low[0], high[0] = min(low[0], -0.055), max(high[0], 0.055)
    low[2], high[2] = min(low[2], -0.050), max(high[2], 0.048)
    even = [np.arange(low[k], high[k] + step, step) for k in range(3)]
    # The forearm is plain: its cells grow towards the elbow.
    forearm = [-0.03]
    while forearm[-1] > -FOREARM_LENGTH - 0.02:
        forearm.append(forearm[-1] - min(2.6 * step, step * (1 + 18 * (-0.03 - forearm[-1]))))
    even[1] = np.concatenate([forearm[:0:-1], np.arange(-0.03, high[1] + step, step)])
    return tuple(even)


def mesh(step: float) -> meshes.Mesh:
    """Meshes the flesh of the rest pose.

    Args:
        step: size of the mesh's cells at the hand, metres.

    Returns:
        The closed mesh, its vertices on the field's zero.
    """
    axes = _axes(step)
    grid = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    # Only where a coarse look finds the surface near: the field changes by about one a metre.
    values = np.empty(grid.shape[:3])
    block = 8
    starts = [range(0, len(axis), block) for axis in axes]
    parts = [tuple(slice(c, c + block) for c in corner) for corner in itertools.product(*starts)]
    ends = np.array([(grid[part][0, 0, 0], grid[part][-1, -1, -1]) for part in parts])
    coarse = field(ends.mean(axis=1))
    reach = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) / 2
    for part, value, near in zip(parts, coarse, coarse < 2.5 * reach + 0.006, strict=True):
        values[part] = field(grid[part]) if near else value
    made = meshes.surface_nets(values, axes)
    return made._replace(vertices=_settle(made, values, axes))


def _sample(
    values: Float[np.ndarray, 'x y z'],
    axes: tuple[Float[np.ndarray, '_'], ...],
    points: Float[np.ndarray, 'n 3'],
) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n 3']]:
    """Reads a sampled field and its slope between the samples, linearly along each axis."""
    cell, t, width = [], [], []
    for k, axis in enumerate(axes):
        index = np.clip(np.searchsorted(axis, points[:, k]) - 1, 0, len(axis) - 2)
        width.append(axis[index + 1] - axis[index])
        t.append((points[:, k] - axis[index]) / width[-1])
        cell.append(index)
    value, slope = np.zeros(len(points)), np.zeros((len(points), 3))
    for corner in itertools.product((0, 1), repeat=3):
        here = values[cell[0] + corner[0], cell[1] + corner[1], cell[2] + corner[2]]
        share = [t[k] if corner[k] else 1 - t[k] for k in range(3)]
        value += here * share[0] * share[1] * share[2]
        for k in range(3):
            sign = (1 if corner[k] else -1) / width[k]
            slope[:, k] += here * sign * share[(k + 1) % 3] * share[(k + 2) % 3]
    return value, slope


def _settle(
    made: meshes.Mesh, values: Float[np.ndarray, 'x y z'], axes: tuple[Float[np.ndarray, '_'], ...]
) -> Float[np.ndarray, 'v 3']:
    """Evens the vertices out along the surface, and keeps them on the field's zero."""
    vertices = made.vertices
    around = meshes.Neighbours(made.faces, len(vertices))
    for _ in range(4):
        vertices = vertices + 0.5 * (around.means(vertices) - vertices)
        value, slope = _sample(values, axes, vertices)
        steepness = np.maximum(np.sum(slope * slope, axis=1), 0.1)
        vertices = vertices - np.clip(value / steepness, -0.001, 0.001)[:, None] * slope
    return vertices
