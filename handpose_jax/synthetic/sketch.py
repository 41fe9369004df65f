"""Drawn hands: flat capsules on noise, for tests and smoke runs that must need no data at all.

Not meant to look like photographs; a network trained on them learns the drawing, nothing more.
"""

import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax import hand

# Of a straight hand whose wrist-to-middle-base distance is 1: angle of each finger's base from the
# hand's axis (degrees), its distance from the wrist, and the lengths of the three bones after it.
_FINGERS: dict[str, tuple[float, float, tuple[float, float, float]]] = {
    'thumb': (-52.0, 0.45, (0.42, 0.36, 0.28)),
    'index': (-16.0, 0.98, (0.44, 0.27, 0.22)),
    'middle': (-2.0, 1.00, (0.48, 0.31, 0.24)),
    'ring': (11.0, 0.95, (0.44, 0.29, 0.23)),
    'little': (24.0, 0.88, (0.35, 0.21, 0.20)),
}

_SUPERSAMPLING = 2


def draw(
    rng: np.random.Generator, size: int
) -> tuple[UInt8[np.ndarray, 's s 3'], Float[np.ndarray, '21 2']]:
    """Draws one right hand seen from its back, in any orientation.

    Args:
        rng: decides pose, place, colours and background.
        size: side of the image, pixels.

    Returns:
        RGB image, and (x, y) of the keypoints in its pixels.
    """
    keypoints = _pose(rng, size)
    large = size * _SUPERSAMPLING
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (large, large), interpolation=cv2.INTER_CUBIC)
    skin = rng.uniform(0.35, 1.0) * np.array([235, 190, 165]) + rng.uniform(-12, 12, 3)
    # The drawing is enlarged under the pixel-centre rule, like everything else.
    points = (keypoints + 0.5) * _SUPERSAMPLING - 0.5
    width = 0.2 * float(np.linalg.norm(points[9] - points[0]))
    palm = np.round(points[[0, 1, 5, 9, 13, 17]]).astype(np.int32)
    cv2.fillConvexPoly(image, cv2.convexHull(palm), _tone(skin, 0.95), cv2.LINE_AA)
    for parent, child in hand.BONES:
        thick = max(1, round(width * (0.8 if child in hand.FINGERTIPS else 1.0)))
        ends = [tuple(int(v) for v in np.round(points[k])) for k in (parent, child)]
        if child not in (5, 9, 13, 17):
            cv2.line(image, ends[0], ends[1], _tone(skin, 0.75), thick + 4, cv2.LINE_AA)
            cv2.line(image, ends[0], ends[1], _tone(skin, 1.05), thick, cv2.LINE_AA)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), keypoints


def _tone(colour: Float[np.ndarray, '3'], factor: float) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour * factor, 0, 255).astype(int).tolist()
    return red, green, blue


def _pose(rng: np.random.Generator, size: int) -> Float[np.ndarray, '21 2']:
    points = np.zeros((hand.NUM_KEYPOINTS, 2))
    spread = rng.uniform(0.7, 1.3)
    for finger, (base_angle, base_distance, lengths) in _FINGERS.items():
        angle = math.radians(base_angle * spread)
        # A bent finger is drawn foreshortened, as seen from the back of the hand.
        visible_part = rng.uniform(0.35, 1.0)
        position = base_distance * np.array([math.sin(angle), -math.cos(angle)])
        indices = hand.FINGERS[finger]
        points[indices[0]] = position
        for index, length in zip(indices[1:], lengths, strict=True):
            angle += math.radians(rng.uniform(-8, 8))
            step = visible_part * length * np.array([math.sin(angle), -math.cos(angle)])
            position = position + step
            points[index] = position
    turn = rng.uniform(-math.pi, math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = points @ rotation.T
    low, high = points.min(axis=0), points.max(axis=0)
    side = rng.uniform(0.4, 0.6) * size
    points = (points - (low + high) / 2) * side / (high - low).max()
    return points + (size - 1) / 2 + rng.uniform(-0.1, 0.1, 2) * size
