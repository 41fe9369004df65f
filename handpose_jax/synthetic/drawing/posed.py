"""Flat drawings of hands that have true 3D keypoints and a camera: for made-up data sets.

A data set in its authors' layout is made of these where no photograph may be had, so that its
reader can be checked against known truth. Like flat.py's they are not meant to look real.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax import hand
from handpose_jax.synthetic.body import poses, skeleton
from handpose_jax.synthetic.scene.views import project

_SUPERSAMPLING = 2

_KNUCKLES = (5, 9, 13, 17)
"""Where the palm ends: bones to them are not drawn, the palm is."""

_MARGIN = 0.06
"""This part of the picture stays free around the keypoints."""

_TRIES = 50


class DrawnHand(NamedTuple):
    """A drawing and its truth.

    Attributes:
        image: RGB.
        keypoints: f64[21 2], (x, y), image pixels; all inside the picture.
        keypoints_3d: f64[21 3], metres, camera frame (x right, y down, z forward).
        camera: f64[3 3], the intrinsic matrix; keypoints = camera keypoints_3d / z.
        is_left: which hand.
    """

    image: UInt8[np.ndarray, 'h w 3']
    keypoints: Float[np.ndarray, '21 2']
    keypoints_3d: Float[np.ndarray, '21 3']
    camera: Float[np.ndarray, '3 3']
    is_left: bool


def sample(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    camera: Float[np.ndarray, '3 3'] | None = None,
    is_left: bool = False,
    distance: tuple[float, float] = (0.35, 0.7),
) -> DrawnHand:
    """Poses a hand at random, puts it before a camera and draws it.

    Args:
        rng: decides everything.
        height: of the picture, pixels.
        width: of the picture, pixels.
        camera: intrinsic matrix, pixels; by default one of moderate angle.
        is_left: draw a left hand.
        distance: range of the hand's distance, metres; further away where it would not fit.

    Raises:
        ValueError: if no such hand fits into the picture of this camera.
    """
    if camera is None:
        focal = 1.2 * max(height, width)
        camera = np.array(
            [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], np.float64
        )
    shape, pose = skeleton.sample_shape(rng), poses.sample_pose(rng)
    posed = skeleton.forward_kinematics(shape, pose).keypoints * (-1 if is_left else 1, 1, 1)
    turned = posed @ _random_rotation(rng).T
    turned -= (turned.min(axis=0) + turned.max(axis=0)) / 2
    depth = rng.uniform(*distance)
    size = np.array([width, height])
    for _ in range(_TRIES):
        free = size * (1 - 2 * _MARGIN) - np.ptp(
            project(camera, turned + np.array([0, 0, depth])), axis=0
        )
        if (free > 0).all():
            # Across the picture by a share of what is left beside the hand.
            middle = (size - 1) / 2 + rng.uniform(-0.4, 0.4, 2) * free
            ray = np.linalg.solve(camera, np.array([*middle, 1.0]))
            points = turned + depth * ray
            keypoints = project(camera, points)
            low, high = _MARGIN * size, (1 - _MARGIN) * size
            if ((keypoints > low) & (keypoints < high)).all():
                image = paint(rng, keypoints, height=height, width=width)
                return DrawnHand(image, keypoints, points, camera, is_left)
        # Nearer to the border a hand looks larger, so it may not fit there after all.
        depth *= 1.1
    raise ValueError(
        f'a hand at {distance} m does not fit into {width} x {height} pixels of the camera '
        f'{camera.tolist()}; give a shorter focal length or a larger distance'
    )


def paint(
    rng: np.random.Generator, keypoints: Float[np.ndarray, '21 2'], *, height: int, width: int
) -> UInt8[np.ndarray, 'h w 3']:
    """Draws a hand as capsules around its bones, on smooth noise.

    Args:
        rng: decides the colours.
        keypoints: (x, y), pixels of the picture.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        RGB.
    """
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    large = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    image = cv2.resize(coarse, large, interpolation=cv2.INTER_CUBIC)
    skin = rng.uniform(0.35, 1.0) * np.array([235, 190, 165]) + rng.uniform(-12, 12, 3)
    # The drawing is enlarged under the pixel-centre rule, like everything else.
    points = (keypoints + 0.5) * _SUPERSAMPLING - 0.5
    palm_bones = np.linalg.norm(points[list(_KNUCKLES)] - points[hand.WRIST], axis=1)
    thickness = 0.2 * float(palm_bones.max())
    palm = np.round(points[[hand.WRIST, 1, *_KNUCKLES]]).astype(np.int32)
    cv2.fillConvexPoly(image, cv2.convexHull(palm), _tone(skin, 0.95), cv2.LINE_AA)
    for parent, child in hand.BONES:
        if child in _KNUCKLES:
            continue
        thick = max(1, round(thickness * (0.8 if child in hand.FINGERTIPS else 1.0)))
        ends = [tuple(int(v) for v in np.round(points[k])) for k in (parent, child)]
        cv2.line(image, ends[0], ends[1], _tone(skin, 0.75), thick + 4, cv2.LINE_AA)
        cv2.line(image, ends[0], ends[1], _tone(skin, 1.05), thick, cv2.LINE_AA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _tone(colour: Float[np.ndarray, '3'], factor: float) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour * factor, 0, 255).astype(int).tolist()
    return red, green, blue


def _random_rotation(rng: np.random.Generator) -> Float[np.ndarray, '3 3']:
    # Uniform over all rotations: the QR decomposition of a Gaussian matrix with signs settled.
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q
