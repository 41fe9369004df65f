"""The camera, and the place of the hand before it."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handpose_jax.synthetic.body import skeleton, types
from handpose_jax.synthetic.scene import props


class View(NamedTuple):
    """Camera and the place of a hand before it.

    Attributes:
        rotation: f64[3 3], camera axes from hand axes; a left hand is mirrored first.
        offset: f64[3], metres, where the hand's origin lies in the camera frame.
        camera: f64[3 3], intrinsic matrix of the final picture.
        keypoints: f64[21 3], metres, camera frame.
        size: side of the final picture, pixels.
        is_left: which hand it is.
    """

    rotation: Float[np.ndarray, '3 3']
    offset: Float[np.ndarray, '3']
    camera: Float[np.ndarray, '3 3']
    keypoints: Float[np.ndarray, '21 3']
    size: int
    is_left: bool

    def place(self, points: Float[np.ndarray, 'n 3']) -> Float[np.ndarray, 'n 3']:
        """Brings points from the hand frame to the camera frame."""
        return self.turn(points) + self.offset

    def turn(self, directions: Float[np.ndarray, 'n 3']) -> Float[np.ndarray, 'n 3']:
        """Brings directions from the hand frame to the camera frame."""
        return (directions * _MIRROR if self.is_left else directions) @ self.rotation.T


_MIRROR = np.array([-1.0, 1.0, 1.0])


def project(
    camera: Float[np.ndarray, '3 3'], points: Float[np.ndarray, 'k 3']
) -> Float[np.ndarray, 'k 2']:
    """Where points of the camera frame are seen, in pixels."""
    seen = points @ np.asarray(camera, np.float64).T
    return seen[:, :2] / seen[:, 2:]


_X, _Y, _Z = np.eye(3)

_ATTEMPTS = 12


def sample(
    rng: np.random.Generator, posed: types.PosedBody, arm: props.Arm, is_left: bool, size: int
) -> View:
    """A camera that sees the whole hand, and not the end of the forearm if that can be had."""
    mirror = _MIRROR if is_left else np.ones(3)
    keypoints = posed.keypoints * mirror
    end = arm.vertices[arm.vertices[:, 1] < arm.vertices[:, 1].min() + 0.01]
    end = (end @ arm.frame.T) * mirror
    kind = rng.choice(['any', 'upright', 'egocentric'], p=[0.5, 0.28, 0.22])
    for _ in range(_ATTEMPTS):
        rotation = _sample_rotation(rng, str(kind), is_left)
        near = kind == 'egocentric'
        distance = math.exp(rng.uniform(math.log(0.28), math.log(0.65 if near else 1.5)))
        aside = np.clip(rng.normal(0, 0.16, 2), -0.5, 0.5)
        middle = (keypoints.min(axis=0) + keypoints.max(axis=0)) / 2
        offset = distance * np.array([*aside, 1.0]) - rotation @ middle
        placed = keypoints @ rotation.T + offset
        flat = placed[:, :2] / placed[:, 2:]
        low, high = flat.min(axis=0), flat.max(axis=0)
        context = math.exp(rng.uniform(math.log(1.45), math.log(2.9)))
        focal = size / (context * float((high - low).max()))
        shift = np.clip(rng.normal(0, 0.05, 2), -0.12, 0.12) * size
        centre = (size - 1) / 2 + shift - focal * (low + high) / 2
        camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
        view = View(rotation, offset, camera, placed, size, is_left)
        if len(end) == 0:
            break
        end_placed = end @ rotation.T + offset
        depth = end_placed[:, 2]
        if depth.min() < 0.07:
            continue
        seen = project(camera, end_placed)
        inside = ((seen > -4) & (seen < size + 3)).all(axis=1).any()
        # An arm that points straight away hides its own end.
        ray = end_placed.mean(axis=0)
        along = rotation @ (-arm.frame[:, 1] * mirror)
        hidden = along @ ray / np.linalg.norm(ray) > 0.92
        if not inside or hidden:
            break
    return view


def _sample_rotation(
    rng: np.random.Generator, kind: str, is_left: bool
) -> Float[np.ndarray, '3 3']:
    """Camera axes from hand axes."""
    if kind == 'any':
        q = rng.normal(size=4)
        w, x, y, z = q / np.linalg.norm(q)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
    if kind == 'upright':
        # Fingers up, seen from anywhere around.
        base = np.column_stack([_X, -_Y, -_Z])
        around = skeleton.rotation(_Y, rng.uniform(-math.pi, math.pi))
        tilt = skeleton.rotation(_X, rng.normal(0, 0.4))
        roll = skeleton.rotation(_Z, rng.normal(0, 0.6))
        return roll @ tilt @ base @ around
    # From the owner's eyes: the forearm comes from below, the fingers point ahead and up.
    ahead = math.radians(rng.normal(35, 22))
    cos, sin = math.cos(ahead), math.sin(ahead)
    base = np.array([[1.0, 0.0, 0.0], [0.0, -cos, -sin], [0.0, sin, -cos]])
    supination = skeleton.rotation(_Y, rng.normal(0, 1.1))
    inward = 0.35 if is_left else -0.35
    return skeleton.rotation(_Z, rng.normal(inward, 0.45)) @ base @ supination
