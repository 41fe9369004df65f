"""Poses of a hand: a library of common ones, random ones, and those read from a file of captures.

Every pose that leaves this module is within JOINT_LIMITS, and no finger runs through another or through
the palm by more than MAX_PENETRATION, the yielding of soft flesh.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import hand
from handpose_jax.synthetic import skeleton
from handpose_jax.synthetic.bodies import HandPose, HandShape

MAX_PENETRATION = 0.004
"""Metres: how deep two parts of an average hand may press into each other."""

_Angles = tuple[float, float, float, float]

# Degrees, as in HandPose. Thumbs:
_T_OUT: _Angles = (10, -10, 12, -8)
_T_FLAT: _Angles = (-16, -2, 26, 0)
_T_REST: _Angles = (-10, 24, 24, 8)
_T_UP: _Angles = (6, -14, 6, -14)
_T_OVER: _Angles = (2, 32, 47, 54)  # over the bent fingers of a fist
_T_BESIDE: _Angles = (-14, 8, 32, 4)  # along the side of a fist
_T_PALM: _Angles = (-33, 20, 54, 40)  # across the open palm
_T_OPPOSED: _Angles = (4, 44, 26, 20)  # facing the fingers, as around a cup
# Fingers:
_STRAIGHT: _Angles = (-2, 3, 4, 2)
_SPREAD: _Angles = (11, -2, 4, 2)
_CLOSED: _Angles = (-4, 3, 5, 3)
_RELAXED: _Angles = (1, 24, 30, 16)
_FIST: _Angles = (0, 84, 104, 72)
_HOOK: _Angles = (0, 8, 88, 55)
_CURL: _Angles = (-2, 42, 98, 66)  # fingertips on the upper edge of the palm
_CUP: _Angles = (0, 34, 44, 26)
_BALL: _Angles = (8, 38, 42, 24)
_ROUND: _Angles = (-2, 50, 52, 32)  # fingertips to the thumb's
_MIDDLE_SPREAD: _Angles = (0, -2, 4, 2)

LIBRARY_DEGREES: dict[str, tuple[_Angles, _Angles, _Angles, _Angles, _Angles]] = {
    'flat': (_T_FLAT, _STRAIGHT, _STRAIGHT, _STRAIGHT, _STRAIGHT),
    'spread': (_T_OUT, _SPREAD, _MIDDLE_SPREAD, _SPREAD, (18, -2, 4, 2)),
    'relaxed': (_T_REST, (2, 18, 24, 12), _RELAXED, (0, 28, 34, 18), (4, 30, 32, 18)),
    'fist': (_T_OVER, _FIST, _FIST, _FIST, _FIST),
    'point': (_T_OVER, _STRAIGHT, _FIST, _FIST, _FIST),
    'peace': ((-2, 48, 50, 42), (8, 2, 4, 2), (-6, 2, 4, 2), _FIST, _FIST),
    'ok': ((0, 51, 22, 26), (0, 54, 58, 28), (0, 18, 18, 8), (4, 10, 12, 6), (12, 4, 8, 4)),
    'pinch': ((1, 47, 16, 22), (-2, 54, 50, 24), _CUP, (0, 50, 56, 34), (2, 54, 60, 36)),
    'thumb_up': (_T_UP, _FIST, _FIST, _FIST, _FIST),
    'claw': ((8, 16, 20, 38), (9, -6, 62, 40), (0, -8, 66, 42), (8, -6, 64, 42), (16, -6, 58, 40)),
    'hook': (_T_FLAT, _HOOK, _HOOK, _HOOK, _HOOK),
    'cylinder': (_T_OPPOSED, (1, 44, 50, 28), (0, 48, 54, 30), (0, 52, 54, 32), (2, 54, 50, 32)),
    'ball': ((10, 40, 18, 14), _BALL, (0, 38, 44, 26), _BALL, (16, 36, 38, 24)),
    'card': ((-9, 18, 26, 18), (0, 58, 70, 38), (0, 64, 74, 42), (0, 68, 76, 44), (0, 70, 74, 44)),
    'call_me': (_T_OUT, _FIST, _FIST, _FIST, (18, 2, 6, 4)),
    'rock': (_T_OVER, (6, 2, 4, 2), _FIST, _FIST, (14, 4, 6, 4)),
    'love_you': (_T_OUT, (6, 2, 4, 2), _FIST, _FIST, (14, 4, 6, 4)),
    'one': (_T_OVER, _STRAIGHT, _FIST, _FIST, _FIST),
    'two': ((-2, 48, 50, 42), (10, 0, 6, 2), (-8, 0, 6, 2), _FIST, _FIST),
    'three': ((-11, 47, 50, 42), (8, 2, 4, 2), (0, 2, 4, 2), (8, 8, 8, 4), (0, 66, 92, 58)),
    'three_thumb': (_T_OUT, (10, 2, 4, 2), (-8, 2, 4, 2), _FIST, _FIST),
    'four': (_T_PALM, (8, 0, 4, 2), _MIDDLE_SPREAD, (8, 0, 4, 2), (14, 0, 4, 2)),
    'five': (_T_OUT, _SPREAD, _MIDDLE_SPREAD, _SPREAD, (18, -2, 4, 2)),
    'vulcan': (_T_OUT, (-2, 2, 4, 2), (-10, 2, 4, 2), (9, 2, 4, 2), (8, 2, 4, 2)),
    'pen': ((-2, 38, 20, 25), (-5, 49, 35, 18), (0, 58, 52, 26), (0, 62, 64, 38), (0, 64, 66, 40)),
    'typing': (
        (-2, 18, 16, 12),
        (4, 16, 40, 20),
        (0, 18, 42, 22),
        (3, 16, 40, 22),
        (8, 14, 36, 20),
    ),
    'waiter': ((14, -4, 10, -6), (8, -12, 6, 2), (0, -14, 6, 2), (6, -12, 6, 2), (14, -10, 6, 2)),
    # Hand shapes of the American manual alphabet; J and Z are I and one, in motion.
    'asl_a': (_T_BESIDE, _FIST, _FIST, _FIST, _FIST),
    'asl_b': (_T_PALM, _CLOSED, (0, 3, 5, 3), _CLOSED, _CLOSED),
    'asl_c': (_T_OPPOSED, (0, 36, 50, 28), (0, 38, 50, 28), (-1, 40, 50, 28), (-2, 40, 48, 28)),
    'asl_d': ((2, 46, 24, 30), _STRAIGHT, (0, 58, 56, 34), _ROUND, (-2, 56, 56, 34)),
    'asl_e': ((-5, 34, 47, 46), _CURL, _CURL, _CURL, _CURL),
    'asl_f': ((0, 51, 22, 26), (0, 54, 58, 28), (-2, 2, 6, 3), (6, 2, 6, 3), (14, 2, 6, 3)),
    'asl_g': ((-14, 8, 18, 0), (0, 32, 6, 3), _FIST, _FIST, _FIST),
    'asl_h': ((-2, 48, 50, 42), (-3, 30, 5, 3), (0, 30, 5, 3), _FIST, _FIST),
    'asl_i': (_T_OVER, _FIST, _FIST, _FIST, (8, 2, 5, 3)),
    'asl_k': ((-30, 30, 31, -2), (6, 2, 4, 2), (0, 48, 6, 3), _FIST, _FIST),
    'asl_l': (_T_OUT, _STRAIGHT, _FIST, _FIST, _FIST),
    'asl_m': ((-22, 36, 62, 70), (0, 74, 68, 34), (0, 76, 68, 34), (0, 78, 70, 34), _FIST),
    'asl_n': ((10, 42, 44, 46), (0, 74, 68, 34), (0, 76, 68, 34), _FIST, _FIST),
    'asl_o': ((4, 45, 31, 30), _ROUND, _ROUND, _ROUND, _ROUND),
    'asl_q': ((-8, 22, 18, 6), (0, 52, 8, 4), _FIST, _FIST, _FIST),
    'asl_t': ((-12, 23, 20, 12), (-4, 71, 79, 40), _FIST, _FIST, _FIST),
    'asl_u': ((-2, 48, 50, 42), _CLOSED, (-1, 3, 5, 3), _FIST, _FIST),
    'asl_w': ((-11, 47, 50, 42), (8, 2, 4, 2), (0, 2, 4, 2), (8, 8, 8, 4), (0, 66, 92, 58)),
    'asl_x': (_T_OVER, (0, 22, 82, 48), _FIST, _FIST, _FIST),
    'asl_y': (_T_OUT, _FIST, _FIST, _FIST, (20, 2, 6, 4)),
}
"""Common poses, degrees: thumb to little finger, each in the order of HandPose.fingers."""

# Radii of the flesh around the bones of an average hand, metres: three of each finger, then those of
# the palm between the wrist and each finger's base (none for the thumb: it is the ball of the thumb).
_RADII = np.array(
    [
        [0.0110, 0.0095, 0.0085],
        [0.0090, 0.0080, 0.0070],
        [0.0092, 0.0082, 0.0072],
        [0.0086, 0.0076, 0.0068],
        [0.0076, 0.0066, 0.0060],
    ]
)
_PALM_RADIUS = 0.0105
# The palm's capsules begin this far from the wrist, where the fingers reach it.
_PALM_START = 0.35


def _capsules() -> tuple[list[tuple[int, int, int]], Float[np.ndarray, 'n']]:
    """(finger, step, far keypoint) of every capsule; step 0 is in the palm. And their radii."""
    parts, radii = [], []
    for finger, at in enumerate(skeleton.FINGER_KEYPOINTS):
        for step, keypoint in enumerate(at):
            if step == 0 and finger == skeleton.THUMB:
                continue
            parts.append((finger, step, int(keypoint)))
            radii.append(_PALM_RADIUS if step == 0 else _RADII[finger, step - 1])
    return parts, np.array(radii)


_PARTS, _PART_RADII = _capsules()


def _may_meet(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether two capsules are apart by anatomy, so that meeting is a collision."""
    (finger, step, _), (other_finger, other_step, _) = sorted((one, other), key=lambda p: p[1])
    if step == 0:
        # The base of a finger grows out of the palm, and so does the ball of the thumb.
        return other_step >= 2
    if finger == other_finger:
        return False
    grown_together = step == other_step == 1 and skeleton.THUMB in (finger, other_finger)
    return not grown_together


_PAIRS = np.array(
    [
        (i, j)
        for i, j in itertools.combinations(range(len(_PARTS)), 2)
        if _may_meet(_PARTS[i], _PARTS[j])
    ]
)
_FAR = np.array([part[2] for part in _PARTS])
_PARENTS = dict((child, parent) for parent, child in hand.BONES)
_NEAR = np.array([_PARENTS[part[2]] for part in _PARTS])
_IN_PALM = np.array([part[1] == 0 for part in _PARTS])


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


def from_degrees(rows: Sequence[Sequence[float]]) -> HandPose:
    """Makes a pose, clamped, with a straight wrist.

    Args:
        rows: five rows of four angles in degrees, as in HandPose.fingers.
    """
    fingers = np.radians(np.array(rows, dtype=np.float64))
    return skeleton.clamp(HandPose(fingers, np.zeros(2)))


def library() -> dict[str, HandPose]:
    """Returns the common poses by name, clamped."""
    return {name: from_degrees(rows) for name, rows in LIBRARY_DEGREES.items()}


def segment_distances(
    starts: Float[np.ndarray, '2 n 3'], ends: Float[np.ndarray, '2 n 3']
) -> Float[np.ndarray, 'n']:
    """Measures the distance between pairs of line segments.

    Args:
        starts: f64[2 n 3], one end of the first and of the second segment of every pair.
        ends: f64[2 n 3], the other end.

    Returns:
        f64[n], in the unit of the input.
    """
    first, second = ends - starts
    between = starts[0] - starts[1]
    a = np.maximum(np.sum(first * first, axis=-1), 1e-18)
    e = np.maximum(np.sum(second * second, axis=-1), 1e-18)
    b = np.sum(first * second, axis=-1)
    c = np.sum(first * between, axis=-1)
    f = np.sum(second * between, axis=-1)
    denominator = a * e - b * b
    parallel = denominator <= 1e-12 * a * e
    s = np.where(parallel, 0.0, (b * f - c * e) / np.where(parallel, 1.0, denominator))
    s = np.clip(s, 0.0, 1.0)
    t = np.clip((b * s + f) / e, 0.0, 1.0)
    # The nearest point of the first segment to that of the second: right also where t was clipped.
    s = np.clip((b * t - c) / a, 0.0, 1.0)
    return np.linalg.norm(between + s[:, None] * first - t[:, None] * second, axis=-1)


def penetration(
    keypoints: Float[np.ndarray, '21 3'], size: float = 1.0, thickness: float = 1.0
) -> float:
    """Measures how deep any two parts of a hand run into each other.

    Fingers are capsules around their bones, and the palm is four of them.

    Args:
        keypoints: f64[21 3], metres.
        size: of the hand, as in HandShape.
        thickness: of its flesh, as in HandShape.

    Returns:
        Metres; negative is the narrowest gap.
    """
    starts, ends = keypoints[_NEAR], keypoints[_FAR]
    starts = np.where(_IN_PALM[:, None], starts + _PALM_START * (ends - starts), starts)
    i, j = _PAIRS.T
    distances = segment_distances(np.stack([starts[i], starts[j]]), np.stack([ends[i], ends[j]]))
    touching = (_PART_RADII[i] + _PART_RADII[j]) * (size * thickness)
    return float(np.max(touching - distances))


def untangle(pose: HandPose, *, limit: float = MAX_PENETRATION) -> HandPose:
    """Opens a pose just as far as its parts stop running into each other.

    First the thumb goes towards a thumb held out, then the fingers to the directions in which they do
    not cross, and last of all the whole hand opens.

    Args:
        pose: angles, radians.
        limit: metres of penetration, of an average hand, to leave.

    Returns:
        The nearest pose found on this way; `pose` clamped, where it is free already.
    """
    pose = skeleton.clamp(pose)
    if _penetrates(pose) <= limit:
        return pose
    thumb = pose.fingers.copy()
    thumb[skeleton.THUMB] = np.radians(_T_OUT)
    uncrossed = thumb.copy()
    uncrossed[1:, 0] = 0.0
    spread = np.radians(np.array(LIBRARY_DEGREES['spread']))
    here = pose
    for target in (thumb, uncrossed, spread):
        there = skeleton.clamp(HandPose(target, pose.wrist))
        if _penetrates(there) <= limit:
            return _furthest(here, there, lambda p: _penetrates(p) <= limit)
        here = there
    raise AssertionError('an open hand collides with itself')


def _penetrates(pose: HandPose) -> float:
    return penetration(skeleton.forward_kinematics(skeleton.AVERAGE, pose).keypoints)


def _furthest(bad: HandPose, good: HandPose, is_good: Callable[[HandPose], bool]) -> HandPose:
    """The pose nearest to the bad one, found by halving, that is still good."""
    low, high, best = 0.0, 1.0, good
    for _ in range(6):
        middle = (low + high) / 2
        candidate = interpolate(bad, good, middle)
        if is_good(candidate):
            high, best = middle, candidate
        else:
            low = middle
    return best


def interpolate(start: HandPose, end: HandPose, amount: float) -> HandPose:
    """Moves from one pose (amount 0) towards another (1), every angle alike; clamped."""
    return skeleton.clamp(
        HandPose(
            (1 - amount) * start.fingers + amount * end.fingers,
            (1 - amount) * start.wrist + amount * end.wrist,
        )
    )


_LIBRARY = tuple(library().values())
_RELAXED_POSE = from_degrees(LIBRARY_DEGREES['relaxed'])


def sample_pose(rng: np.random.Generator, *, library: Sequence[HandPose] | None = None) -> HandPose:
    """Draws a pose: random, or one or a mixture of two of the library's, perturbed.

    Args:
        rng: source of randomness.
        library: poses to draw from, beside random ones; this module's own where None.

    Returns:
        A pose within the limits, with fingers that do not run through each other.

    Raises:
        ValueError: if the library is empty.
    """
    known = _LIBRARY if library is None else library
    if not known:
        raise ValueError('library is empty: expected at least one pose, or None for the own ones')
    kind = rng.uniform()
    if kind < 0.30:
        fingers = _random_fingers(rng)
    else:
        fingers = known[rng.integers(len(known))].fingers
        if kind < 0.60:
            other = known[rng.integers(len(known))].fingers
            fingers = fingers + rng.uniform(0.1, 0.9) * (other - fingers)
        elif kind < 0.66:
            fingers = fingers + rng.uniform(0.3, 0.9) * (_RELAXED_POSE.fingers - fingers)
        fingers = fingers + _perturbation(rng)
    wrist = rng.normal(np.radians([-8.0, 3.0]), np.radians([20.0, 8.0]))
    return untangle(HandPose(fingers, wrist))


def _perturbation(rng: np.random.Generator) -> Float[np.ndarray, '5 4']:
    """Small changes: of the whole hand, of each finger, of each joint."""
    strength = rng.uniform(0.3, 1.3)
    bend = rng.normal(0.0, 5.0) + rng.normal(0.0, 4.0, (5, 1)) + rng.normal(0.0, 4.0, (5, 3))
    aside = rng.normal(0.0, 2.0) + rng.normal(0.0, 2.5, (5, 1))
    return np.radians(strength * np.concatenate([aside, bend], axis=1))


def _random_fingers(rng: np.random.Generator) -> Float[np.ndarray, '5 4']:
    """Fingers that are bent more or less alike, neighbours most of all."""
    low, high = skeleton.JOINT_LIMITS
    whole = rng.uniform(-0.1, 1.0)
    steps = rng.normal(0.0, 0.22, 5)
    bend = np.clip(whole + rng.uniform(0.3, 1.2) * np.cumsum(steps - steps.mean()), 0.0, 1.0)
    fingers = np.zeros((5, 4))
    # The base and the middle joint share the bending of a finger unequally: from a hook to a roof.
    balance = np.clip(rng.normal(0.0, 0.22) + rng.normal(0.0, 0.10, 5), -0.45, 0.45)
    base = np.clip(bend * (1 + 2 * balance) + rng.normal(0, 0.05, 5), -0.3, 1.0)
    middle = np.clip(bend * (1 - 2 * balance) + rng.normal(0, 0.05, 5), 0.0, 1.0)
    fingers[:, 1] = base * high.fingers[:, 1]
    fingers[:, 2] = middle * high.fingers[:, 2]
    fingers[:, 3] = skeleton.DISTAL_PER_MIDDLE * fingers[:, 2] + rng.normal(0, np.radians(7), 5)
    spread = np.clip(rng.beta(1.6, 1.6) + rng.normal(0, 0.15, 5), 0, 1)
    fingers[:, 0] = low.fingers[:, 0] + spread * (high.fingers - low.fingers)[:, 0]
    thumb = rng.beta(1.4, 1.4, 4)
    thumb[3] = 0.35 * thumb[3] + 0.65 * thumb[2]
    fingers[skeleton.THUMB] = low.fingers[0] + thumb * (high.fingers - low.fingers)[0]
    return fingers


# Of the 25 joints of WebXR, those of handpose_jax.hand: no palm bones but the thumb's.
_WEBXR_JOINTS = 25
_WEBXR_KEYPOINTS = np.array(
    [0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19, 21, 22, 23, 24]
)
_HANDEDNESS = ('left', 'right')
_PALM_KEYPOINTS = np.array([0, 5, 9, 13, 17])


def read_webxr(path: str) -> Captures:
    """Reads captured poses and finds the angles that come nearest to each.

    Args:
        path: a json file {"poses": [{"names": [..], "handedness": "left" | "right", "joints_mm":
            25 x [x, y, z]}, ..]}: the joints of WebXR's hand input in its order, millimetres, in any
            frame. A record of fewer joints is left out and named in `partial`.

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
    names, is_left, poses, residuals, partial = [], [], [], [], []
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
        names.append(name)
        is_left.append(left)
        poses.append(pose)
        residuals.append(residual)
    return Captures(
        tuple(names), np.array(is_left, bool), tuple(poses), np.array(residuals), tuple(partial)
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
        The pose, clamped (its wrist is straight: nothing shows the forearm), and the mean distance in
        metres between the 21 keypoints and those of a hand so posed with bones as long as the captured
        ones and fingers that begin where the captured ones do.

    Raises:
        ValueError: if the keypoints of the palm coincide, or those of a left hand were given.
    """
    local, scale = _in_hand_frame(keypoints)
    fingers = np.zeros((5, 4))
    chains, lengths = local[skeleton.FINGER_KEYPOINTS], np.empty((5, 3))
    # Trackers do not see the root of the thumb, and put it in different places.
    chains[skeleton.THUMB, 0] = skeleton.FINGER_BASES[skeleton.THUMB]
    for finger, chain in enumerate(chains):
        steps = np.diff(chain, axis=0)
        lengths[finger] = np.maximum(np.linalg.norm(steps, axis=1), 1e-9)
        fingers[finger] = _fit_finger(finger, steps / lengths[finger][:, None])
    pose = skeleton.clamp(HandPose(fingers, np.zeros(2)))
    distances = np.zeros(hand.NUM_KEYPOINTS)
    for finger, at in enumerate(skeleton.FINGER_KEYPOINTS):
        _, frames = skeleton.finger_frames(finger, pose.fingers[finger])
        posed = chains[finger, 0] + np.cumsum(lengths[finger][:, None] * frames[:, :, 1], axis=0)
        distances[at[1:]] = np.linalg.norm(posed - chains[finger, 1:], axis=1)
    return pose, float(distances.mean() / scale)


def _in_hand_frame(
    keypoints: Float[np.ndarray, '21 3'],
) -> tuple[Float[np.ndarray, '21 3'], float]:
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
            f'the palm is {1000 * misfit:.0f} mm off a right hand: check order and handedness'
        )
    return local, float(scale)


def _fit_finger(finger: int, directions: Float[np.ndarray, '3 3']) -> Float[np.ndarray, '4']:
    """Gauss-Newton with damping, from a straight and a bent start, inside the limits."""
    low, high = (limit.fingers[finger] for limit in skeleton.JOINT_LIMITS)

    def residual(angles: Float[np.ndarray, '4']) -> Float[np.ndarray, '9']:
        _, frames = skeleton.finger_frames(finger, angles)
        return (frames[:, :, 1] - directions).ravel()

    best, best_cost = low, np.inf
    for start in (0.15, 0.75):
        if best_cost < 0.01:
            break
        angles = np.clip(np.array([0.0, *(start * high[1:])]), low, high)
        error, damping = residual(angles), 1e-2
        for _ in range(25):
            jacobian = np.stack(
                [(residual(angles + 1e-5 * unit) - error) / 1e-5 for unit in np.eye(4)], axis=1
            )
            step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(4), -jacobian.T @ error)
            tried = np.clip(angles + step, low, high)
            tried_error = residual(tried)
            if tried_error @ tried_error < error @ error:
                moved = np.abs(tried - angles).max()
                angles, error, damping = tried, tried_error, damping / 4
                if moved < 1e-4:
                    break
            else:
                damping *= 6
        if error @ error < best_cost:
            best, best_cost = angles, float(error @ error)
    return best
