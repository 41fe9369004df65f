"""The bundled body: the flesh of flesh.py on the bones of skeleton.py, with nails and a sleeve.

The skin is bound to the bones by two numbers for every finger: how much of a vertex belongs to it,
and how far along its chain of joints the vertex lies. At a joint the skin turns in thirds of the
bend, so that it keeps its thickness there, where a plain blend of two bones would pinch it.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from handpose_jax.synthetic.body import flesh, meshes, skeleton
from handpose_jax.synthetic.body.flesh import REST_SKELETON
from handpose_jax.synthetic.body.types import CLOTH, NAIL, SKIN, HandPose, HandShape, PosedBody

# Steps in which a joint bends, and the places they make on a finger: the palm, then three joints.
_STEPS = 3
_PLACES = 3 * _STEPS + 1
# Rows of transforms: the palm, then the places of every finger (the first is its bone inside the
# palm), then the steps of the wrist; the last is the forearm.
_WRIST_ROW = 5 * _PLACES
_ROWS = _WRIST_ROW + _STEPS

# Where a joint's skin bends, metres before and behind it along the finger.
_BASE_ZONE = (0.0085, 0.0100)
_THUMB_ZONE = (0.0060, 0.0300)
_THUMB_SECOND_ZONE = (0.0085, 0.0085)
# The same for the two last joints, in half breadths of the finger.
_JOINT_ZONE = 0.70
# Along the forearm: the skin of the wrist bends between these, metres.
_WRIST_ZONE = (-0.034, 0.016)


class Sleeve(NamedTuple):
    """A sleeve around the forearm.

    Attributes:
        cuff: metres from the wrist towards the elbow at which it ends.
        looseness: metres between skin and cloth.
        seed: of its folds.
    """

    cuff: float
    looseness: float
    seed: int


class Part(NamedTuple):
    """A piece of the body in the rest pose.

    Attributes:
        vertices: f64[v 3], metres, hand frame.
        faces: i32[f 3], counter-clockwise from outside.
        uv: f64[v 2], v up.
        weights: f64[v t], the share of every transform in a vertex; sums to 1.
        source: int[v]; vertices of one number are one point, cut apart by the chart.
    """

    vertices: Float[np.ndarray, 'v 3']
    faces: Int[np.ndarray, 'f 3']
    uv: Float[np.ndarray, 'v 2']
    weights: Float[np.ndarray, 'v t']
    source: Int[np.ndarray, 'v']


# The frame of each straight finger.
_BONES = REST_SKELETON.frames[skeleton.FINGER_KEYPOINTS[:, 1]]


def _ramp(at: Float[np.ndarray, '*s'], start: float, end: float) -> Float[np.ndarray, '*s']:
    t = np.clip((at - start) / (end - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def finger_progress(finger: int, points: Float[np.ndarray, 'n 3']) -> Float[np.ndarray, 'n']:
    """How far points of the rest pose have come along a finger's joints: 0 palm .. 3 last bone."""
    local, _ = flesh.finger_coordinates(finger, points)
    along = local[:, 1]
    first, second, _ = np.cumsum(skeleton.BONE_LENGTHS[finger])
    half = _JOINT_ZONE * flesh.HALF_BREADTHS[finger]
    zones = [_BASE_ZONE, (half, half), (0.9 * half, 0.9 * half)]
    if finger == skeleton.THUMB:
        zones[:2] = [_THUMB_ZONE, _THUMB_SECOND_ZONE]
    progress = np.zeros(len(points))
    for joint, (before, behind) in zip((0.0, first, second), zones, strict=True):
        progress += _ramp(along, joint - before, joint + behind)
    return progress


def finger_shares(points: Float[np.ndarray, 'n 3']) -> Float[np.ndarray, 'n 5']:
    """How much each finger, with its bone in the palm, owns points of the rest pose; sums to 1."""
    distances, lengths = [], []
    for finger in range(5):
        local, _ = flesh.finger_coordinates(finger, points)
        start = 0.0 if finger == skeleton.THUMB else -0.075
        end = skeleton.BONE_LENGTHS[finger].sum()
        along = np.clip(local[:, 1], start, end)
        distance = np.linalg.norm(local - along[:, None] * [0.0, 1.0, 0.0], axis=1)
        distances.append(distance / (flesh.HALF_BREADTHS[finger] / 0.0095))
        lengths.append(local[:, 1])
    distance = np.stack(distances, axis=1)
    # Where fingers are apart, each owns its skin alone; inside the palm they share it.
    nearest = np.argmin(distance, axis=1)
    beyond = np.take_along_axis(np.stack(lengths, axis=1), nearest[:, None], axis=1)
    softness = 0.0022 + 0.0055 * (1 - _ramp(beyond, -0.010, 0.020))
    share = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / softness)
    share = np.maximum(share - 0.02, 0.0)
    return share / share.sum(axis=1, keepdims=True)


def _weights(
    progress: Float[np.ndarray, 'v 5'],
    share: Float[np.ndarray, 'v 5'],
    points: Float[np.ndarray, 'v 3'],
) -> Float[np.ndarray, 'v t']:
    weights = np.zeros((len(points), _ROWS))
    rows = np.arange(len(points))
    for finger in range(5):
        place = np.clip(progress[:, finger] * _STEPS, 0, _PLACES - 1)
        low = np.minimum(place.astype(int), _PLACES - 2)
        offset = finger * _PLACES
        weights[rows, offset + low] += share[:, finger] * (1 - (place - low))
        weights[rows, offset + low + 1] += share[:, finger] * (place - low)
    bend = _STEPS * (1 - _ramp(points[:, 1], *_WRIST_ZONE))
    hand_part = np.clip(1 - bend, 0.0, 1.0)
    weights *= hand_part[:, None]
    for step in range(1, _STEPS + 1):
        weights[:, _WRIST_ROW + step - 1] = np.clip(1 - np.abs(bend - step), 0.0, 1.0)
    return weights


# The skin's chart: the rest pose seen from behind (left half) and from the front (right half), y
# up; the forearm is drawn shorter.
CHART_LEFT, CHART_RIGHT = -0.122, 0.096
_CHART_Y = np.array([-0.275, -0.040, 0.206])
_CHART_V = np.array([0.0, 0.19, 1.0])


def chart(points: Float[np.ndarray, 'n 3'], *, palm: bool) -> Float[np.ndarray, 'n 2']:
    """Places points of the rest pose in the skin's texture.

    Args:
        points: f64[n 3], metres.
        palm: in the half of the palm, not of the back.

    Returns:
        f64[n 2], texture coordinates, v up.
    """
    across = (points[:, 0] - CHART_LEFT) / (CHART_RIGHT - CHART_LEFT)
    across = np.clip(across, 0.002, 0.998)
    u = 1 - 0.5 * across if palm else 0.5 * across
    return np.stack([u, np.interp(points[:, 1], _CHART_Y, _CHART_V)], axis=1)


def unchart(uv: Float[np.ndarray, 'n 2']) -> Float[np.ndarray, 'n 2']:
    """Returns x and y of texture coordinates of the skin: the inverse of `chart`."""
    across = 2 * np.minimum(uv[:, 0], 1 - uv[:, 0])
    x = CHART_LEFT + across * (CHART_RIGHT - CHART_LEFT)
    return np.stack([x, np.interp(uv[:, 1], _CHART_V, _CHART_Y)], axis=1)


@functools.lru_cache(maxsize=2)
def _skin(step: float) -> Part:
    mesh = flesh.mesh(step)
    points = mesh.vertices
    progress = np.stack([finger_progress(finger, points) for finger in range(5)], axis=1)
    share = finger_shares(points)
    # Past the webs the fingers' own joints stay crisp.
    loose = 1 - _ramp((share * progress).sum(axis=1), 0.9, 1.0)
    around = meshes.Neighbours(mesh.faces, len(points))
    both = np.concatenate([progress, share], axis=1)
    for _ in range(8):
        both = both + 0.7 * loose[:, None] * (around.means(both) - both)
    weights = _weights(both[:, :5], both[:, 5:], points)
    on_palm = meshes.vertex_normals(points, mesh.faces)[mesh.faces, 2].sum(axis=1) < 0
    back = np.unique(mesh.faces[~on_palm])
    palm = np.unique(mesh.faces[on_palm])
    number = np.zeros((2, len(points)), np.int32)
    number[0, back], number[1, palm] = np.arange(len(back)), len(back) + np.arange(len(palm))
    source = np.concatenate([back, palm])
    return Part(
        points[source],
        np.where(on_palm[:, None], number[1][mesh.faces], number[0][mesh.faces]),
        np.concatenate([chart(points[back], palm=False), chart(points[palm], palm=True)]),
        weights[source],
        source,
    )


DEFAULT_STEP = 0.0028
"""Size of the mesh's triangles at the hand, metres."""


def skin_part() -> Part:
    """Returns the skin of the rest pose, for those who paint it."""
    return _skin(DEFAULT_STEP)


# Nails, in half breadths of their fingers: half breadth and length; the thumb's is the largest.
_NAIL_HALF_BREADTH = np.array([0.66, 0.59, 0.60, 0.59, 0.57])
_NAIL_LENGTH = np.array([1.45, 1.34, 1.38, 1.36, 1.34])
_NAIL_ACROSS, _NAIL_ALONG = 9, 9


def _skin_height(finger: int, x: Float[np.ndarray, 'n'], y: Float[np.ndarray, 'n']) -> np.ndarray:
    """Height of the skin of a finger's back, in its own frame."""
    low, high = np.zeros(len(x)), np.full(len(x), 0.016)
    for _ in range(14):
        middle = (low + high) / 2
        outside = flesh.field(_from_finger(finger, np.stack([x, y, middle], axis=1))) > 0
        low, high = np.where(outside, low, middle), np.where(outside, middle, high)
    return low


def _from_finger(finger: int, local: Float[np.ndarray, 'n 3']) -> Float[np.ndarray, 'n 3']:
    """Brings points from the frame of a straight finger (see flesh) to the hand frame."""
    base, next_joint = skeleton.FINGER_KEYPOINTS[finger][:2]
    return REST_SKELETON.keypoints[base] + local @ REST_SKELETON.frames[next_joint].T


def _nail(finger: int) -> Part:
    half = flesh.HALF_BREADTHS[finger]
    breadth, length = _NAIL_HALF_BREADTH[finger] * half, _NAIL_LENGTH[finger] * half
    end = skeleton.BONE_LENGTHS[finger].sum() + flesh.FINGERTIP - 0.0006
    across = np.linspace(-1, 1, _NAIL_ACROSS)
    along = np.linspace(0, 1, _NAIL_ALONG)
    v, u = np.meshgrid(along, across, indexing='ij')
    # The root is round, the free edge flatter.
    rounded = 0.17 * np.abs(u) ** 2.6 * length * (1 - v) - 0.26 * np.abs(u) ** 2.4 * length * v
    narrow = 0.92 + 0.08 * np.sin(math.pi * np.clip(v * 1.1, 0, 1))
    x, y = u * breadth * narrow, end - length + v * length + rounded
    skin = _skin_height(finger, x.ravel(), y.ravel()).reshape(x.shape)
    # The plate does not bend down with the fingertip: along its middle it falls slowly.
    middle = skin[:, _NAIL_ACROSS // 2].copy()
    step = length / (_NAIL_ALONG - 1)
    for row in range(1, _NAIL_ALONG):
        slope = min(0.0, (middle[1] - middle[0]) / step) - 0.22 * row / _NAIL_ALONG
        middle[row] = max(middle[row], middle[row - 1] + step * slope)
    plate = middle[:, None] - x * x / (2 * 1.15 * half)
    edge = np.minimum(1 - np.abs(u), 0.9 * v)
    z = np.maximum(skin, plate) + np.where(v > 0.85, 0.0003, 0.0004) * np.clip(6 * edge, -1, 1)
    z -= 0.0003 * (1 - np.clip(6 * edge, 0, 1))
    inner = np.stack([x, y, z], axis=-1)
    # A skirt under the rim gives the free edge its thickness, and closes the sides.
    local = np.empty((_NAIL_ALONG + 2, _NAIL_ACROSS + 2, 3))
    local[1:-1, 1:-1] = inner
    local[0, 1:-1], local[-1, 1:-1] = inner[0], inner[-1]
    local[:, 0], local[:, -1] = local[:, 1], local[:, -2]
    rim = np.ones(local.shape[:2], bool)
    rim[1:-1, 1:-1] = False
    local[rim, 2] -= 0.0011
    local[[0, -1], :, 1] -= 0.0002
    local[:, [0, -1], 0] += [-0.0001, 0.0001]
    uv = np.stack(np.meshgrid(across / 2 + 0.5, along), axis=-1)
    uv = np.pad(uv, ((1, 1), (1, 1), (0, 0)), mode='edge')
    points = _from_finger(finger, local.reshape(-1, 3))
    weights = np.zeros((len(points), _ROWS))
    weights[:, finger * _PLACES + _PLACES - 1] = 1.0
    return Part(
        points,
        meshes.grid_faces(_NAIL_ALONG + 2, _NAIL_ACROSS + 2),
        uv.reshape(-1, 2),
        weights,
        np.arange(len(points)),
    )


@functools.lru_cache(maxsize=1)
def _nails() -> Part:
    return _joined([_nail(finger) for finger in range(5)])


_SLEEVE_AROUND, _SLEEVE_ALONG = 36, 22


def _sleeve(sleeve: Sleeve) -> Part:
    rng = np.random.default_rng(sleeve.seed)
    around = np.linspace(0, 2 * math.pi, _SLEEVE_AROUND + 1)
    end = -flesh.FOREARM_LENGTH - 0.012
    along = np.linspace(0, 1, _SLEEVE_ALONG)
    y = -sleeve.cuff + along * (end + sleeve.cuff)
    angle, place = np.meshgrid(around, y)
    middle, breadth, back, front = np.moveaxis(flesh.arm_profile(place), -1, 0)
    height = np.where(np.sin(angle) > 0, back, front)
    folds = np.zeros_like(angle)
    for _ in range(7):
        turns, waves = rng.integers(-2, 3), rng.uniform(40, 160)
        phase, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.35)
        folds += size * np.sin(turns * angle + waves * place + phase)
    # Near the cuff the cloth lies flat and thicker; further on it is folded.
    from_cuff = along[:, None] * (-end - sleeve.cuff)
    folds *= _ramp(from_cuff, 0.015, 0.05)
    gap = sleeve.looseness * (1 + np.clip(folds, -0.8, 1.5)) + 0.0012
    gap += 0.0012 * (1 - _ramp(from_cuff, 0.018, 0.021))
    x = middle + (breadth + gap) * np.cos(angle)
    z = (height + gap) * np.sin(angle)
    outer = np.stack([x, place, z], axis=-1)
    # The hem turns in, down to the skin's side of the cloth.
    inside = outer[0] * [0.0, 1.0, 0.0] + [0.0, -0.012, 0.0]
    inside[:, [0, 2]] = outer[0][:, [0, 2]]
    inward = np.stack([np.cos(around), np.zeros_like(around), np.sin(around)], axis=-1)
    inside -= (0.0016 + 0.35 * sleeve.looseness) * inward
    lip = outer[0] - 0.0012 * inward + [0.0, 0.0009, 0.0]
    points = np.concatenate([inside[None], lip[None], outer]).reshape(-1, 3)
    rows, columns = _SLEEVE_ALONG + 2, _SLEEVE_AROUND + 1
    v = np.r_[0.0, 0.02, 0.03 + 0.97 * along][:, None]
    uv = np.stack(np.broadcast_arrays(around / (2 * math.pi), v), axis=-1)
    source = np.arange(rows * columns).reshape(rows, columns)
    source[:, -1] = source[:, 0]
    weights = _weights(np.zeros((len(points), 5)), np.full((len(points), 5), 0.2), points)
    faces = meshes.grid_faces(rows, columns)
    return Part(points, faces, uv.reshape(-1, 2), weights, source.ravel())


def _joined(parts: list[Part]) -> Part:
    starts = itertools.accumulate((len(part.vertices) for part in parts[:-1]), initial=0)
    shifted = [
        part._replace(faces=part.faces + start, source=part.source + start)
        for part, start in zip(parts, starts, strict=True)
    ]
    return Part(*(np.concatenate(column) for column in zip(*shifted, strict=True)))


def sample_sleeve(rng: np.random.Generator) -> Sleeve:
    """Draws a sleeve: tight or wide, ending at the hand or anywhere on the forearm."""
    return Sleeve(
        cuff=float(rng.uniform(0.0, 0.13)),
        looseness=float(0.0015 * 8 ** rng.uniform()),
        seed=int(rng.integers(2**31)),
    )


class BundledBody:
    """A hand made by the code itself: skin, nails and, if wanted, a sleeve.

    The skin is a closed mesh with its forearm; nails and sleeve lie on it as meshes of their own.
    The skin's texture coordinates are those of `chart`; a nail's run across and along it, a
    sleeve's around and along it, each from 0 to 1.
    """

    def __init__(self, *, sleeve: Sleeve | None = None, step: float = DEFAULT_STEP):
        """Builds the mesh: seconds the first time in a process, then milliseconds.

        Args:
            sleeve: to wear, or None for a bare arm.
            step: size of the mesh's triangles at the hand, metres.

        Raises:
            ValueError: if the sleeve would not end on the forearm, or the step is out of range.
        """
        if not 0.0015 <= step <= 0.005:
            raise ValueError(f'step must be 0.0015 to 0.005 m, got {step}')
        parts, regions = [_skin(step), _nails()], [SKIN, NAIL]
        if sleeve is not None:
            if not (0.0 <= sleeve.cuff <= 0.2 and 0.0005 <= sleeve.looseness <= 0.03):
                raise ValueError(
                    f'sleeve must have cuff 0 to 0.2 m and looseness 0.0005 to 0.03 m, got {sleeve}'
                )
            parts.append(_sleeve(sleeve))
            regions.append(CLOTH)
        whole = _joined(parts)
        self._regions = np.repeat(np.array(regions, np.int32), [len(part.faces) for part in parts])
        self._faces = whole.faces
        self._uv = whole.uv.astype(np.float32)
        # Cut vertices are posed once, and their normals are those of the whole surface.
        points, self._whole = np.unique(whole.source, return_inverse=True)
        first = np.full(len(points), -1)
        first[self._whole[::-1]] = np.arange(len(whole.source))[::-1]
        self._points = whole.vertices[first].astype(np.float32)
        self._weights = whole.weights[first].astype(np.float32)
        whole_faces = self._whole[whole.faces]
        self._face_columns = np.ascontiguousarray(whole_faces.T)
        corners = whole_faces.ravel()
        self._corner_order = np.argsort(corners, kind='stable')
        self._corner_face = (self._corner_order // 3).astype(np.int32)
        self._corner_start = np.searchsorted(corners[self._corner_order], np.arange(len(points)))

    def pose(self, shape: HandShape, pose: HandPose) -> PosedBody:
        """Moves the body into a pose.

        Args:
            shape: proportions.
            pose: angles, radians; not clamped.

        Returns:
            The posed body; its regions and texture coordinates are the same in every pose.
        """
        posed = skeleton.forward_kinematics(shape, pose)
        turns, offsets = _transforms(shape, posed)
        affine = np.concatenate([turns.reshape(_ROWS, 9), offsets], axis=1).astype(np.float32)
        mixed = self._weights @ affine
        linear = mixed[:, :9].reshape(-1, 3, 3)
        vertices = np.einsum('vij,vj->vi', linear, self._points) + mixed[:, 9:]
        normals = self._normals(vertices)
        return PosedBody(
            vertices=vertices[self._whole],
            normals=normals[self._whole],
            faces=self._faces,
            uv=self._uv,
            regions=self._regions,
            keypoints=posed.keypoints,
        )

    def _normals(self, vertices: Float[np.ndarray, 'v 3']) -> Float[np.ndarray, 'v 3']:
        # By component: gathers of whole rows, and np.cross, take three times as long.
        corners = [np.ascontiguousarray(column)[self._face_columns] for column in vertices.T]
        p = [corner[1] - corner[0] for corner in corners]
        q = [corner[2] - corner[0] for corner in corners]
        total = np.empty_like(vertices)
        for k in range(3):
            i, j = (k + 1) % 3, (k + 2) % 3
            across = p[i] * q[j] - p[j] * q[i]
            total[:, k] = np.add.reduceat(across[self._corner_face], self._corner_start)
        size = np.sqrt(np.einsum('vk,vk->v', total, total))[:, None]
        return total / np.maximum(size, np.float32(1e-20))


def _transforms(
    shape: HandShape, posed: skeleton.Skeleton
) -> tuple[Float[np.ndarray, 't 3 3'], Float[np.ndarray, 't 3']]:
    """What happens to a point of the rest pose at each place: turn @ point + offset."""
    keypoints = skeleton.FINGER_KEYPOINTS
    # Turns from the rest pose: of every finger's bone in the palm, then of its three beyond.
    moved = posed.frames[keypoints] @ np.swapaxes(REST_SKELETON.frames[keypoints], -1, -2)
    palm = np.diag([shape.palm_width, 1.0, shape.thickness])
    thick = np.full(5, shape.thickness)
    stretch = np.stack([thick, np.asarray(shape.lengths), thick], axis=1)
    bone = (_BONES * stretch[:, None]) @ np.swapaxes(_BONES, -1, -2)
    part = np.arange(1, _STEPS + 1)[:, None, None] / _STEPS
    turns, offsets = np.empty((_ROWS, 3, 3)), np.zeros((_ROWS, 3))
    # By finger, joint and step.
    scales = np.broadcast_to(bone[:, None, None], (5, 3, _STEPS, 3, 3)).copy()
    scales[:, 0] = palm + part * (bone[:, None] - palm)
    stepped = _part_turns(moved[:, :3], moved[:, 1:]) @ scales
    pivots = REST_SKELETON.keypoints[keypoints[:, :3]][:, :, None]
    landed = posed.keypoints[keypoints[:, :3]][:, :, None]
    fingers = turns[:_WRIST_ROW].reshape(5, _PLACES, 3, 3)
    fingers[:, 0] = moved[:, 0] @ palm
    fingers[:, 1:] = stepped.reshape(5, -1, 3, 3)
    shifts = landed - shape.size * (stepped @ pivots[..., None])[..., 0]
    offsets[:_WRIST_ROW].reshape(5, _PLACES, 3)[:, 1:] = shifts.reshape(5, -1, 3)
    turns[_WRIST_ROW:] = _part_turns(np.eye(3), posed.frames[skeleton.WRIST_BONE]) @ palm
    return shape.size * turns, offsets


def _part_turns(
    start: Float[np.ndarray, '*s 3 3'], end: Float[np.ndarray, '*s 3 3']
) -> Float[np.ndarray, '*s p 3 3']:
    """The rotations a third, two thirds and all of the way; less than a half turn."""
    turn = end @ np.swapaxes(start, -1, -2)
    i, j = [1, 2, 0], [2, 0, 1]
    axis = turn[..., j, i] - turn[..., i, j]
    sine = np.linalg.norm(axis, axis=-1) / 2
    cosine = (turn[..., 0, 0] + turn[..., 1, 1] + turn[..., 2, 2] - 1) / 2
    x, y, z = np.moveaxis(axis / np.maximum(2 * sine, 1e-12)[..., None], -1, 0)
    cross = np.zeros_like(turn)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    cross -= np.swapaxes(cross, -1, -2)
    angle = np.arctan2(sine, cosine)[..., None] * (np.arange(1, _STEPS + 1) / _STEPS)
    sines, cosines = np.sin(angle)[..., None, None], np.cos(angle)[..., None, None]
    cross = cross[..., None, :, :]
    return (np.eye(3) + sines * cross + (1 - cosines) * (cross @ cross)) @ start[..., None, :, :]
