"""The bones of a hand: their lengths, the axes they turn about, how far, and what drags what.

Everything is in the hand frame of types.py: metres, a right hand, origin at the wrist, +y to the
base of the middle finger, +z out of the back, +x to the little finger's side.

Lengths of the bones are averages of adults. Directions and ranges of the joints are textbook
anatomy, rounded; the thumb's axes were fitted to captured poses, which they reach within 2 mm.

Source: Buryanov and Kotiuk 2010, "Proportions of hand segments", International Journal of
Morphology 28(3), table of metacarpals, phalanges and soft tissue over the fingertips (confidence C:
not compared with the printed table).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handpose_jax import hand
from handpose_jax.synthetic.body.types import HandPose, HandShape

THUMB, INDEX, MIDDLE, RING, LITTLE = range(5)

FINGER_KEYPOINTS = np.array(list(hand.FINGERS.values()))
"""Keypoint indices, one row a finger, base to tip."""

FINGER_BASES = np.array(
    [
        [-0.0195, 0.0261, -0.0135],
        [-0.0230, 0.0920, -0.0030],
        [0.0000, 0.0925, 0.0000],
        [0.0205, 0.0860, -0.0025],
        [0.0385, 0.0765, -0.0090],
    ]
)
"""First keypoint of each finger: thumb's carpometacarpal, the others' metacarpophalangeal joint."""

BONE_LENGTHS = np.array(
    [
        [0.0462, 0.0316, 0.0255],
        [0.0398, 0.0224, 0.0190],
        [0.0446, 0.0263, 0.0205],
        [0.0414, 0.0257, 0.0204],
        [0.0327, 0.0181, 0.0188],
    ]
)
"""The three bones after each finger's base, metres. The last ends just under the skin of the
fingertip: it is the distal phalanx and most of the soft tissue over it."""

# Where a straight finger points (degrees from +y towards the little finger's side), and the turn
# about its own length that lets bent fingers converge on the root of the thumb.
_FAN = (None, -3.0, 0.0, 3.5, 8.0)
_ROLL = (None, 3.0, -2.0, -8.0, -16.0)

# The thumb at rest beside a flat hand: its metacarpal points this far to the side, and this far out
# of the palm; its nail is turned this far from the back of the hand (degrees).
_THUMB_SIDE, _THUMB_DOWN, _THUMB_ROLL = 47.0, 6.0, 68.0
# The carpometacarpal joint is a saddle. Flexion swings the metacarpal in front of the palm about an
# oblique axis; abduction swings it sideways about one nearly square to the palm.
_THUMB_FLEXION_AXIS = np.array([-0.662, -0.596, -0.455])
_THUMB_ABDUCTION_AXIS = np.array([-0.389, 0.335, 0.858])
# Opposition: the metacarpal turns its pad to the fingers as it is flexed or adducted.
_PRONATION_PER_FLEXION, _PRONATION_PER_ADDUCTION = 0.25, 0.45

# The palm hollows: the ring and little fingers' metacarpals follow their fingers into a fist.
_CUPPING = np.array([0.0, 0.0, 0.0, 0.05, 0.11])
_CUPPING_AXIS = np.array([-0.80, -0.55, 0.0])

WRIST_BONE = 0
"""Row of the forearm in Skeleton.frames; every other row is that of the bone's far keypoint."""


class Skeleton(NamedTuple):
    """A posed skeleton in the hand frame.

    Attributes:
        keypoints: f64[21 3], metres, the order of handpose_jax.hand.
        frames: f64[21 3 3], proper rotations. Row k is the bone that ends in keypoint k: its
            columns are the bone's side (+x), its length (+y, base to tip) and its back (+z). Of the
            bones inside the palm (wrist to a finger's base) it is only the turn against the flat
            hand. Row 0 is the forearm's, +y from the elbow to the wrist.
    """

    keypoints: Float[np.ndarray, '21 3']
    frames: Float[np.ndarray, '21 3 3']


def _degrees(*rows: tuple[int, ...]) -> Float[np.ndarray, 'r c']:
    return np.radians(np.array(rows, dtype=np.float64))


JOINT_LIMITS: tuple[HandPose, HandPose] = (
    HandPose(
        fingers=_degrees(
            (-34, -24, -8, -25),
            (-12, -28, -4, -6),
            (-11, -25, -4, -6),
            (-10, -22, -4, -6),
            (-10, -25, -4, -6),
        ),
        wrist=_degrees((-60, -20))[0],
    ),
    HandPose(
        fingers=_degrees(
            (28, 52, 62, 75),
            (18, 88, 105, 75),
            (11, 90, 108, 80),
            (13, 90, 110, 80),
            (24, 90, 105, 78),
        ),
        wrist=_degrees((65, 35))[0],
    ),
)
"""Lowest and highest angle of every joint, radians, in the layout of HandPose."""

# A bent finger cannot be spread: the collateral ligaments of its base are tight then.
_SPREAD_LEFT_WHEN_BENT = 0.25
# The two last joints of a finger share a tendon: the tip follows the middle joint, within a slack.
DISTAL_PER_MIDDLE = 2 / 3
_DISTAL_SLACK = (math.radians(50), math.radians(20))
# How much less than a neighbour (index-middle, middle-ring, ring-little) a finger can be bent, at
# its base and at its middle joint.
_DRAG = _degrees((85, 105), (55, 90), (55, 90))

FLAT = HandPose(fingers=np.zeros((5, 4)), wrist=np.zeros(2))
AVERAGE = HandShape(size=1.0, lengths=np.ones(5), thickness=1.0, palm_width=1.0)


def rotation(axis: Float[np.ndarray, '3'], angle: float) -> Float[np.ndarray, '3 3']:
    """Turns about an axis by the right-hand rule.

    Args:
        axis: f64[3], of any length but zero.
        angle: radians.

    Returns:
        f64[3 3], applied to column vectors.
    """
    x, y, z = axis / math.sqrt(axis @ axis)
    cos, sin = math.cos(angle), math.sin(angle)
    rest = 1.0 - cos
    return np.array(
        [
            [cos + x * x * rest, x * y * rest - z * sin, x * z * rest + y * sin],
            [y * x * rest + z * sin, cos + y * y * rest, y * z * rest - x * sin],
            [z * x * rest - y * sin, z * y * rest + x * sin, cos + z * z * rest],
        ]
    )


_X, _Y, _Z = np.eye(3)


def _rest_frames() -> Float[np.ndarray, '5 3 3']:
    """Frames of the first bone beyond each finger's base, straight."""
    side, down = math.radians(_THUMB_SIDE), math.radians(_THUMB_DOWN)
    thumb = rotation(_Z, side) @ rotation(-_X, down) @ rotation(_Y, math.radians(-_THUMB_ROLL))
    others = [
        rotation(_Z, math.radians(-fan)) @ rotation(_Y, math.radians(-roll))
        for fan, roll in zip(_FAN[1:], _ROLL[1:], strict=True)
    ]
    return np.stack([thumb, *others])


_REST_FRAMES = _rest_frames()
# Abduction turns index to little finger away from the middle one, that towards the little one.
_ABDUCTION_SIGNS = np.array([1.0, -1.0, -1.0, -1.0])


def _cross_matrix(axis: Float[np.ndarray, '3']) -> Float[np.ndarray, '3 3']:
    x, y, z = axis / np.linalg.norm(axis)
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


_CROSS = {
    'abduction': _cross_matrix(_Z),
    'bend': _cross_matrix(-_X),
    'pronation': _cross_matrix(-_Y),
    'cupping': _cross_matrix(_CUPPING_AXIS),
    'thumb_flexion': _cross_matrix(_THUMB_FLEXION_AXIS),
    'thumb_abduction': _cross_matrix(_THUMB_ABDUCTION_AXIS),
}


def _turn(about: str, angles: Float[np.ndarray, '*b']) -> Float[np.ndarray, '*b 3 3']:
    cross, angle = _CROSS[about], angles[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def finger_frames(
    fingers: Float[np.ndarray, '*b 5 4'],
) -> tuple[Float[np.ndarray, '*b 5 3 3'], Float[np.ndarray, '*b 5 3 3 3']]:
    """Poses the fingers of many hands.

    Args:
        fingers: f64[.. 5 4], as in HandPose, radians; not clamped.

    Returns:
        Of every finger the turn of its bone inside the palm, f64[.. 5 3 3], and the frames of its
        three bones beyond, f64[.. 5 3 3 3], as in Skeleton.
    """
    abduction, first = fingers[..., 0], fingers[..., 1]
    palm = _turn('cupping', _CUPPING * np.maximum(first, 0.0))
    thumb_abduction, thumb_flexion = abduction[..., :1], first[..., :1]
    pronation = _PRONATION_PER_FLEXION * thumb_flexion - _PRONATION_PER_ADDUCTION * thumb_abduction
    thumb = (
        _turn('thumb_abduction', thumb_abduction)
        @ _turn('thumb_flexion', thumb_flexion)
        @ _REST_FRAMES[THUMB]
        @ _turn('pronation', pronation)
    )
    others = (
        palm[..., 1:, :, :]
        @ _REST_FRAMES[1:]
        @ _turn('abduction', _ABDUCTION_SIGNS * abduction[..., 1:])
        @ _turn('bend', first[..., 1:])
    )
    near = np.concatenate([thumb, others], axis=-3)
    middle = near @ _turn('bend', fingers[..., 2])
    far = middle @ _turn('bend', fingers[..., 3])
    return palm, np.stack([near, middle, far], axis=-3)


def forward_kinematics(shape: HandShape, pose: HandPose) -> Skeleton:
    """Poses the skeleton.

    Args:
        shape: proportions; `thickness` does not matter here.
        pose: angles, radians; not clamped.

    Returns:
        Keypoints and bone frames.
    """
    keypoints = np.zeros((hand.NUM_KEYPOINTS, 3))
    frames = np.empty((hand.NUM_KEYPOINTS, 3, 3))
    bases = FINGER_BASES * (shape.size * np.array([shape.palm_width, 1.0, 1.0]))
    lengths = BONE_LENGTHS * (shape.size * np.asarray(shape.lengths)[:, None])
    flexion, deviation = float(pose.wrist[0]), float(pose.wrist[1])
    frames[WRIST_BONE] = (rotation(-_Z, deviation) @ rotation(-_X, flexion)).T
    palm, beyond = finger_frames(np.asarray(pose.fingers, dtype=np.float64))
    first, others = FINGER_KEYPOINTS[:, 0], FINGER_KEYPOINTS[:, 1:]
    frames[first], frames[others] = palm, beyond
    keypoints[first] = (palm @ bases[:, :, None])[..., 0]
    steps = lengths[..., None] * beyond[..., 1]
    keypoints[others] = keypoints[first][:, None] + np.cumsum(steps, axis=1)
    return Skeleton(keypoints, frames)


def clamp(pose: HandPose) -> HandPose:
    """Brings a pose to what a hand can do: limits, coupled tendons, neighbours that drag.

    Clamping twice changes nothing more.

    Args:
        pose: any angles, radians.

    Returns:
        The pose, with every angle inside JOINT_LIMITS.
    """
    low, high = JOINT_LIMITS
    fingers = np.clip(np.asarray(pose.fingers, dtype=np.float64), low.fingers, high.fingers)
    _drag(fingers)
    middle = fingers[1:, 2]
    follow = DISTAL_PER_MIDDLE * middle
    fingers[1:, 3] = np.clip(fingers[1:, 3], follow - _DISTAL_SLACK[0], follow + _DISTAL_SLACK[1])
    fingers = np.clip(fingers, low.fingers, high.fingers)
    bent = np.clip(fingers[1:, 1] / high.fingers[1:, 1], 0.0, 1.0)
    play = 1.0 - (1.0 - _SPREAD_LEFT_WHEN_BENT) * bent
    fingers[1:, 0] = np.clip(fingers[1:, 0], low.fingers[1:, 0] * play, high.fingers[1:, 0] * play)
    return HandPose(fingers, np.clip(np.asarray(pose.wrist), low.wrist, high.wrist))


def _drag(fingers: Float[np.ndarray, '5 4']) -> None:
    for joint in (0, 1):
        column = fingers[1:, 1 + joint]
        for at in (0, 1, 2):
            column[at + 1] = max(column[at + 1], column[at] - _DRAG[at, joint])
        for at in (2, 1, 0):
            column[at] = max(column[at], column[at + 1] - _DRAG[at, joint])


def sample_shape(rng: np.random.Generator) -> HandShape:
    """Draws a person's hand: from a child's of ten to a large man's, its fingers mostly alike."""
    return HandShape(
        size=float(np.clip(rng.normal(0.98, 0.08), 0.75, 1.2)),
        lengths=np.clip(rng.normal(1.0, 0.05) + rng.normal(0.0, 0.025, 5), 0.85, 1.15),
        thickness=float(np.clip(rng.normal(1.0, 0.08), 0.82, 1.25)),
        palm_width=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.14)),
    )
