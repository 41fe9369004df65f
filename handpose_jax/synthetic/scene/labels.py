"""What is known about a rendered picture: where its keypoints are, and which are visible."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene.views import project

HAND, FOREARM = 1, 2
"""Values of RenderedHand.mask beside 0."""


class Staging(NamedTuple):
    """What must be known about a scene to label its picture.

    Attributes:
        keypoints_3d: f64[21 3], camera frame.
        camera: f64[3 3] intrinsic matrix of the final picture; the scene has that of the picture
            before it is enlarged.
        is_left: which hand.
        flesh: f64[21], metres that may lie before a visible keypoint.
        parts: what each surface of the scene is: 'hand', 'worn' or 'thing'.
        mask_values: the mask's value of each surface.
        backdrop: f32[r r 3], what is seen past all surfaces, at the size it is rendered.
        albedo: the skin's average reflectance.
        has_hand: False if there is no hand, and keypoints_3d tells where one would be.
    """

    keypoints_3d: Float[np.ndarray, '21 3']
    camera: Float[np.ndarray, '3 3']
    is_left: bool
    flesh: Float[np.ndarray, '21']
    parts: tuple[str, ...]
    mask_values: tuple[int, ...]
    backdrop: Float[np.ndarray, 'r r 3']
    albedo: float
    has_hand: bool = True


def find_visible(
    picture: mitsuba_renderer.Picture, staging: Staging, size: int
) -> Bool[np.ndarray, '21']:
    """Which keypoints only their own flesh, and what is worn on it, lies before.

    They must also be inside the final picture, which is `size` pixels a side.
    """
    if not staging.has_hand:
        return np.zeros(len(staging.keypoints_3d), bool)
    keypoints = project(staging.camera, staging.keypoints_3d)
    inside = ((keypoints >= -0.5) & (keypoints <= size - 0.5)).all(axis=1)
    depths, shape_ids = picture.surfaces_towards(staging.keypoints_3d)
    before = staging.keypoints_3d[:, 2] - depths
    parts = np.array([*staging.parts, 'nothing'])[shape_ids]
    own = np.isin(parts, ['hand', 'worn'])
    return inside & np.where(own, before <= staging.flesh, before <= 0)


def mask(
    buffers: mitsuba_renderer.RenderBuffers, staging: Staging, size: int
) -> UInt8[np.ndarray, 's s']:
    """What each pixel of the final picture shows (see RenderedHand.mask)."""
    # NOTHING is -1 and finds the last entry.
    values = np.array([*staging.mask_values, 0], np.uint8)
    mask = values[buffers.shape_id]
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
