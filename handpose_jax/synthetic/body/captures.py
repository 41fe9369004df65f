"""Captured poses of real hands: read from a file, and turned into joint angles."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import hand
from handpose_jax.synthetic.body import skeleton
from handpose_jax.synthetic.body.types import HandPose


class Captures(NamedTuple):
    """Poses read from a file.

    Attributes:
        names: of each pose, as the file calls it.
        is_left: bool[p], which hand was captured; the poses hold for either.
        poses: the angles.
        residuals: f64[p], metres, how far each is from what was captured, as `fit` measures it.
        partial: names of the file's records that lack keypoints, and were left out.
    """

    names: tuple[str, ...]
    is_left: Bool[np.ndarray, 'p']
    poses: tuple[HandPose, ...]
    residuals: Float[np.ndarray, 'p']
    partial: tuple[str, ...]


# These of WebXR's 25 joints are those of handpose_jax.hand: no palm bones but the thumb's.
_WEBXR_JOINTS = 25
_WEBXR_KEYPOINTS = np.array(
    [0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19, 21, 22, 23, 24]
)
_HANDEDNESS = ('left', 'right')
_PALM_KEYPOINTS = np.array([0, 5, 9, 13, 17])


def read_webxr(path: str) -> Captures:
    """Reads captured poses and finds the angles that come nearest to each.

    Args:
        path: a json file {"poses": [{"names": [..], "handedness": "left" | "right",
            "joints_mm": 25 x [x, y, z]}, ..]}: the joints of WebXR's hand input in its order,
            millimetres, in any frame. A record of fewer joints is left out and named in `partial`.

    Returns:
        The poses; those of left hands are read as their mirror images.

    Raises:
        ValueError: if the file, a record or a field is not as above.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: expected a json file of poses, got: {error}') from error
    records = content.get('poses') if isinstance(content, dict) else None
    if not isinstance(records, list) or not records:
        raise ValueError(f'{path}: expected an object with a list "poses", not empty')
    rows, partial = [], []
    for number, record in enumerate(records):
        where = f'{path}, pose {number}'
        name, left, joints = _webxr_record(record, where)
        if len(joints) < _WEBXR_JOINTS:
            partial.append(name)
            continue
        keypoints = joints[_WEBXR_KEYPOINTS] / 1000
        try:
            pose, residual = fit(keypoints * (-1.0, 1.0, 1.0) if left else keypoints)
        except ValueError as error:
            raise ValueError(f'{where} ({name}), field joints_mm: {error}') from error
        rows.append((name, left, pose, residual))
    names, is_left, poses, residuals = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Captures(
        names, np.array(is_left, bool), poses, np.array(residuals, np.float64), tuple(partial)
    )


def _webxr_record(record: Any, where: str) -> tuple[str, bool, Float[np.ndarray, 'j 3']]:
    if not isinstance(record, dict):
        raise ValueError(f'{where}: expected an object, got {type(record).__name__}')
    for field in ('names', 'handedness', 'joints_mm'):
        if field not in record:
            raise ValueError(f'{where}: field {field} is missing; it has {sorted(record)}')
    names = record['names']
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(f'{where}, field names: expected a list of strings, got {names!r}')
    if record['handedness'] not in _HANDEDNESS:
        raise ValueError(
            f'{where} ({names[0]}), field handedness: expected one of {_HANDEDNESS}, got '
            f'{record["handedness"]!r}'
        )
    try:
        joints = np.array(record['joints_mm'], dtype=np.float64)
    except (TypeError, ValueError):
        joints = np.empty(0)
    if joints.ndim != 2 or joints.shape[1] != 3 or len(joints) > _WEBXR_JOINTS:
        raise ValueError(
            f'{where} ({names[0]}), field joints_mm: expected {_WEBXR_JOINTS} lists of three '
            f'numbers, got {np.shape(joints) if joints.size else record["joints_mm"]!r}'
        )
    if not np.isfinite(joints).all():
        raise ValueError(f'{where} ({names[0]}), field joints_mm: expected finite numbers')
    return names[0], record['handedness'] == 'left', joints


def fit(keypoints: Float[np.ndarray, '21 3']) -> tuple[HandPose, float]:
    """Finds the angles of a captured right hand.

    Args:
        keypoints: f64[21 3], metres, in any right-handed frame.

    Returns:
        The pose, clamped (its wrist is straight: nothing shows the forearm), and the mean distance
        in metres between the 21 keypoints and those of a hand so posed with bones as long as the
        captured ones and fingers that begin where the captured ones do. It is large where a left
        hand was given: a palm is too flat to tell.

    Raises:
        ValueError: if the keypoints of the palm coincide, or do not lie as a palm's do.
    """
    local, scale = _in_hand_frame(keypoints)
    chains = local[skeleton.FINGER_KEYPOINTS]
    # Trackers do not see the root of the thumb, and put it in different places.
    chains[skeleton.THUMB, 0] = skeleton.FINGER_BASES[skeleton.THUMB]
    steps = np.diff(chains, axis=1)
    lengths = np.maximum(np.linalg.norm(steps, axis=2, keepdims=True), 1e-9)
    pose = skeleton.clamp(HandPose(_fit_fingers(steps / lengths), np.zeros(2)))
    _, frames = skeleton.finger_frames(pose.fingers)
    posed = chains[:, :1] + np.cumsum(lengths * frames[..., 1], axis=1)
    distances = np.linalg.norm(posed - chains[:, 1:], axis=2)
    return pose, float(distances.sum() / hand.NUM_KEYPOINTS / scale)


def _in_hand_frame(keypoints: Float[np.ndarray, '21 3']) -> tuple[Float[np.ndarray, '21 3'], float]:
    """Lays a captured palm onto the skeleton's, turned and scaled; the scale, too."""
    ours = np.concatenate([np.zeros((1, 3)), skeleton.FINGER_BASES[1:]])
    theirs = keypoints[_PALM_KEYPOINTS]
    our_centre, their_centre = ours.mean(axis=0), theirs.mean(axis=0)
    spread = np.linalg.norm(theirs - their_centre)
    if spread < 1e-4:
        raise ValueError('wrist and finger bases coincide: expected a hand in the right unit')
    scale = np.linalg.norm(ours - our_centre) / spread
    left, _, right = np.linalg.svd((theirs - their_centre).T @ (ours - our_centre))
    turn = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    local = scale * (keypoints - their_centre) @ turn + our_centre
    misfit = np.linalg.norm(local[_PALM_KEYPOINTS] - ours, axis=1).mean()
    if misfit > 0.015:
        raise ValueError(
            f'the palm is {1000 * misfit:.0f} mm off that of a hand: check the order of the joints'
        )
    return local, float(scale)


def _fit_fingers(directions: Float[np.ndarray, '5 3 3']) -> Float[np.ndarray, '5 4']:
    """Damped Gauss-Newton on all fingers at once, from three starts, inside the limits."""
    low, high = (limit.fingers for limit in skeleton.JOINT_LIMITS)

    def residuals(angles: Float[np.ndarray, '*b 5 4']) -> Float[np.ndarray, '*b 5 9']:
        _, frames = skeleton.finger_frames(angles)
        error = frames[..., 1] - directions
        return error.reshape(*error.shape[:-2], 9)

    starts = np.array([0.1, 0.45, 0.8])[:, None, None] * high
    starts[..., 0] = 0.0
    angles = np.clip(starts, low, high)
    error = residuals(angles)
    damping = np.full((len(starts), 5, 1, 1), 1e-2)
    nudge = 1e-5
    for _ in range(15):
        nudged = residuals(angles + nudge * np.eye(4)[:, None, None])
        jacobian = np.moveaxis((nudged - error) / nudge, 0, -1)
        transposed = np.swapaxes(jacobian, -1, -2)
        curvature = transposed @ jacobian + damping * np.eye(4)
        step = np.linalg.solve(curvature, -transposed @ error[..., None])[..., 0]
        tried = np.clip(angles + step, low, high)
        tried_error = residuals(tried)
        better = (tried_error**2).sum(axis=-1) < (error**2).sum(axis=-1)
        angles = np.where(better[..., None], tried, angles)
        error = np.where(better[..., None], tried_error, error)
        damping = np.where(better[..., None, None], damping / 5, damping * 5)
    best = np.argmin((error**2).sum(axis=-1), axis=0)
    return angles[best, np.arange(5)]
