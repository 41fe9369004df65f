"""Poses of a hand: a library of common ones, and random ones.

Every sampled pose is within JOINT_LIMITS, and no finger runs through another or through the palm by
more than MAX_PENETRATION, the yielding of soft flesh.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from handpose_jax import hand
from handpose_jax.synthetic.body import skeleton
from handpose_jax.synthetic.body.types import HandPose

MAX_PENETRATION = 0.004
"""Metres: how deep two parts of an average hand may press into each other."""

_Angles = tuple[int, int, int, int]

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
_CLOSED: _Angles = (-5, 3, 5, 3)
_RELAXED: _Angles = (1, 24, 30, 16)
_FIST: _Angles = (0, 88, 105, 74)
_FIST_LITTLE: _Angles = (0, 84, 98, 66)
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
    'fist': (_T_OVER, _FIST, _FIST, _FIST, _FIST_LITTLE),
    'point': (_T_OVER, _STRAIGHT, _FIST, _FIST, _FIST_LITTLE),
    'peace': ((-2, 48, 50, 42), (8, 2, 4, 2), (-6, 2, 4, 2), _FIST, _FIST_LITTLE),
    'ok': ((0, 51, 22, 26), (0, 54, 58, 28), (0, 18, 18, 8), (4, 10, 12, 6), (12, 4, 8, 4)),
    'pinch': ((1, 47, 16, 22), (-2, 54, 50, 24), _CUP, (0, 50, 56, 34), (2, 54, 60, 36)),
    'thumb_up': (_T_UP, _FIST, _FIST, _FIST, _FIST_LITTLE),
    'claw': ((8, 16, 20, 38), (9, -6, 62, 40), (0, -8, 66, 42), (8, -6, 64, 42), (16, -6, 58, 40)),
    'hook': (_T_FLAT, _HOOK, _HOOK, _HOOK, _HOOK),
    'cylinder': (_T_OPPOSED, (1, 44, 50, 28), (0, 48, 54, 30), (0, 52, 54, 32), (2, 54, 50, 32)),
    'ball': ((10, 40, 18, 14), _BALL, (0, 38, 44, 26), _BALL, (16, 36, 38, 24)),
    'card': ((-9, 18, 26, 18), (0, 58, 70, 38), (0, 64, 74, 42), (0, 68, 76, 44), (0, 70, 74, 44)),
    'call_me': (_T_OUT, _FIST, _FIST, _FIST, (18, 2, 6, 4)),
    'rock': (_T_OVER, (6, 2, 4, 2), _FIST, _FIST, (14, 4, 6, 4)),
    'love_you': (_T_OUT, (6, 2, 4, 2), _FIST, _FIST, (14, 4, 6, 4)),
    'one': (_T_OVER, _STRAIGHT, _FIST, _FIST, _FIST_LITTLE),
    'two': ((-2, 48, 50, 42), (10, 0, 6, 2), (-8, 0, 6, 2), _FIST, _FIST_LITTLE),
    'three': ((-11, 47, 50, 42), (8, 2, 4, 2), (0, 2, 4, 2), (8, 8, 8, 4), (0, 66, 92, 58)),
    'three_thumb': (_T_OUT, (10, 2, 4, 2), (-8, 2, 4, 2), _FIST, _FIST_LITTLE),
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
    'asl_a': (_T_BESIDE, _FIST, _FIST, _FIST, _FIST_LITTLE),
    'asl_b': (_T_PALM, _CLOSED, (0, 3, 5, 3), _CLOSED, (-9, 3, 5, 3)),
    'asl_c': (_T_OPPOSED, (0, 36, 50, 28), (0, 38, 50, 28), (-1, 40, 50, 28), (-2, 40, 48, 28)),
    'asl_d': ((2, 46, 24, 30), _STRAIGHT, (0, 58, 56, 34), _ROUND, (-2, 56, 56, 34)),
    'asl_e': ((-5, 34, 47, 46), _CURL, _CURL, _CURL, _CURL),
    'asl_f': ((0, 51, 22, 26), (0, 54, 58, 28), (-2, 2, 6, 3), (6, 2, 6, 3), (14, 2, 6, 3)),
    'asl_g': ((-14, 8, 18, 0), (0, 32, 6, 3), _FIST, _FIST, _FIST_LITTLE),
    'asl_h': ((-2, 48, 50, 42), (-3, 30, 5, 3), (0, 30, 5, 3), _FIST, _FIST_LITTLE),
    'asl_i': (_T_OVER, _FIST, _FIST, _FIST, (8, 2, 5, 3)),
    'asl_k': ((-30, 30, 31, -2), (6, 2, 4, 2), (0, 48, 6, 3), _FIST, _FIST_LITTLE),
    'asl_l': (_T_OUT, _STRAIGHT, _FIST, _FIST, _FIST_LITTLE),
    'asl_m': ((-22, 36, 62, 70), (0, 74, 68, 34), (0, 76, 68, 34), (0, 78, 70, 34), _FIST_LITTLE),
    'asl_n': ((10, 42, 44, 46), (0, 74, 68, 34), (0, 76, 68, 34), _FIST, _FIST_LITTLE),
    'asl_o': ((4, 45, 31, 30), _ROUND, _ROUND, _ROUND, _ROUND),
    'asl_q': ((-8, 22, 18, 6), (0, 52, 8, 4), _FIST, _FIST, _FIST_LITTLE),
    'asl_t': ((-12, 23, 20, 12), (-4, 71, 79, 40), _FIST, _FIST, _FIST_LITTLE),
    'asl_u': ((-2, 48, 50, 42), _CLOSED, (-1, 3, 5, 3), _FIST, _FIST_LITTLE),
    'asl_w': ((-11, 47, 50, 42), (8, 2, 4, 2), (0, 2, 4, 2), (8, 8, 8, 4), (0, 66, 92, 58)),
    'asl_x': (_T_OVER, (0, 22, 82, 48), _FIST, _FIST, _FIST_LITTLE),
    'asl_y': (_T_OUT, _FIST, _FIST, _FIST, (20, 2, 6, 4)),
}
"""Common poses, degrees: thumb to little finger, each in the order of HandPose.fingers."""

# Radii of the flesh around the bones of an average hand, metres: three of each finger, then that of
# the palm between the wrist and a finger's base (not the thumb's: its ball hides that).
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
    parts = [
        (finger, step, int(keypoint))
        for finger, at in enumerate(skeleton.FINGER_KEYPOINTS)
        for step, keypoint in enumerate(at)
        if step > 0 or finger != skeleton.THUMB
    ]
    radii = [_RADII[finger, step - 1] if step else _PALM_RADIUS for finger, step, _ in parts]
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


_COMBINATIONS = itertools.combinations(range(len(_PARTS)), 2)
_PAIRS = np.array([(i, j) for i, j in _COMBINATIONS if _may_meet(_PARTS[i], _PARTS[j])])
_FAR = np.array([part[2] for part in _PARTS])
_PARENTS = {child: parent for parent, child in hand.BONES}
_NEAR = np.array([_PARENTS[part[2]] for part in _PARTS])
_IN_PALM = np.array([part[1] == 0 for part in _PARTS])


def library() -> dict[str, HandPose]:
    """Returns the common poses by name, clamped, each with a straight wrist."""
    return {
        name: skeleton.clamp(HandPose(np.radians(np.array(rows, np.float64)), np.zeros(2)))
        for name, rows in LIBRARY_DEGREES.items()
    }


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


def penetration(keypoints: Float[np.ndarray, '21 3']) -> float:
    """Measures how deep any two parts of an average hand run into each other.

    Fingers are capsules around their bones, and the palm is four of them.

    Args:
        keypoints: f64[21 3], metres.

    Returns:
        Metres; negative is the narrowest gap.
    """
    starts, ends = keypoints[_NEAR], keypoints[_FAR]
    starts = np.where(_IN_PALM[:, None], starts + _PALM_START * (ends - starts), starts)
    i, j = _PAIRS.T
    distances = segment_distances(np.stack([starts[i], starts[j]]), np.stack([ends[i], ends[j]]))
    return float(np.max(_PART_RADII[i] + _PART_RADII[j] - distances))


def untangle(pose: HandPose) -> HandPose:
    """Opens a pose just as far as its parts stop running into each other.

    First the thumb goes towards a thumb held out, then the fingers to the directions in which they
    do not cross, and last of all the whole hand opens.

    Args:
        pose: angles, radians.

    Returns:
        The nearest pose found on this way; `pose` clamped, where it is free already.
    """
    pose = skeleton.clamp(pose)
    if _is_free(pose):
        return pose
    thumb = pose.fingers.copy()
    thumb[skeleton.THUMB] = np.radians(_T_OUT)
    uncrossed = thumb.copy()
    uncrossed[1:, 0] = 0.0
    spread = np.radians(np.array(LIBRARY_DEGREES['spread']))
    here = pose
    for target in (thumb, uncrossed, spread):
        there = skeleton.clamp(HandPose(target, pose.wrist))
        if _is_free(there):
            return _nearest_free(here, there)
        here = there
    raise AssertionError('an open hand collides with itself')


def _is_free(pose: HandPose) -> bool:
    posed = skeleton.forward_kinematics(skeleton.AVERAGE, pose)
    return penetration(posed.keypoints) <= MAX_PENETRATION


def _nearest_free(tangled: HandPose, free: HandPose) -> HandPose:
    """The pose between the two that is nearest to the tangled one, found by halving."""
    low, high, best = 0.0, 1.0, free
    for _ in range(6):
        middle = (low + high) / 2
        fingers, wrist = ((1 - middle) * a + middle * b for a, b in zip(tangled, free, strict=True))
        candidate = skeleton.clamp(HandPose(fingers, wrist))
        if _is_free(candidate):
            high, best = middle, candidate
        else:
            low = middle
    return best


_LIBRARY = tuple(library().values())
_RELAXED_POSE = library()['relaxed']


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
        fingers = known[int(rng.integers(len(known)))].fingers
        if kind < 0.60:
            other = known[int(rng.integers(len(known)))].fingers
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
