"""Drawn hands: flat capsules on noise, for tests and smoke runs that must need no data at all.

Not meant to look like photographs; a network trained on them learns the drawing, nothing more.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax import hand
from handpose_jax.synthetic.drawing.posed import paint

# Of a straight hand whose wrist-to-middle-base distance is 1: angle of each finger's base from the
# hand's axis (degrees), its distance from the wrist, and the lengths of the three bones after it.
_FINGERS: dict[str, tuple[float, float, tuple[float, float, float]]] = {
    'thumb': (-52.0, 0.45, (0.42, 0.36, 0.28)),
    'index': (-16.0, 0.98, (0.44, 0.27, 0.22)),
    'middle': (-2.0, 1.00, (0.48, 0.31, 0.24)),
    'ring': (11.0, 0.95, (0.44, 0.29, 0.23)),
    'little': (24.0, 0.88, (0.35, 0.21, 0.20)),
}


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
    keypoints = points + (size - 1) / 2 + rng.uniform(-0.1, 0.1, 2) * size
    return paint(rng, keypoints, height=size, width=size), keypoints
