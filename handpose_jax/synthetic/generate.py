"""Photographs of hands that never were, with the truth about them: one for every seed and index."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from handpose_jax.synthetic.render import camera_effects, mitsuba_renderer
from handpose_jax.synthetic.scene import labels, staging, views
from handpose_jax.synthetic.scene.labels import Staging
from handpose_jax.synthetic.scene.options import SceneOptions


class RenderedHand(NamedTuple):
    """A picture of a hand and the truth about it.

    Attributes:
        image: u8[s s 3], RGB.
        keypoints: f32[21 2], (x, y), image pixels.
        visible: bool[21], inside the picture and not hidden: nothing but the flesh around the
            keypoint lies before it.
        keypoints_3d: f32[21 3], metres, camera frame (x right, y down, z forward).
        is_left: which hand it is.
        mask: u8[s s], labels.HAND (down to the wrist, with a glove or ring), labels.FOREARM (with
            its sleeve), else 0; of the rendered pixel that is nearest to each pixel's centre.
        camera: f64[3 3] intrinsic matrix; keypoints = camera @ keypoints_3d, divided by depth.
        has_hand: False if there is no hand: nothing is visible, and the keypoints tell where one
            would be.
    """

    image: UInt8[np.ndarray, 's s 3']
    keypoints: Float[np.ndarray, '21 2']
    visible: Bool[np.ndarray, '21']
    keypoints_3d: Float[np.ndarray, '21 3']
    is_left: bool
    mask: UInt8[np.ndarray, 's s']
    camera: Float[np.ndarray, '3 3']
    has_hand: bool = True


def generate(options: SceneOptions, seed: int, index: int) -> RenderedHand:
    """Makes one picture.

    Args:
        options: what it is made of.
        seed: of the data set.
        index: of the picture in it.

    Returns:
        The picture; the same bytes whenever, wherever and beside whatever else it is made.

    Raises:
        ValueError: if a file that the options name is not what it should be.
    """
    picture, staged = staging.stage(options, seed, index)
    buffers = picture.render()
    rng = staging.random_streams(seed, index)['lens']
    light = buffers.rgb + (1 - buffers.alpha[..., None]) * staged.backdrop
    exposure = _exposure(light, buffers, staged, rng)
    effects = camera_effects.sample(rng, picture.scene.width)
    return RenderedHand(
        image=camera_effects.develop(light * exposure, effects, rng, size=options.size),
        keypoints=views.project(staged.camera, staged.keypoints_3d).astype(np.float32),
        visible=labels.find_visible(picture, staged, options.size),
        keypoints_3d=staged.keypoints_3d.astype(np.float32),
        is_left=staged.is_left,
        mask=labels.mask(buffers, staged, options.size),
        camera=staged.camera,
        has_hand=staged.has_hand,
    )


def _exposure(
    light: Float[np.ndarray, 's s 3'],
    buffers: mitsuba_renderer.RenderBuffers,
    staged: Staging,
    rng: np.random.Generator,
) -> float:
    """What a camera would choose: by the average of the picture and the light on the hand."""
    own = np.isin(buffers.shape_id, np.flatnonzero(np.array(staged.mask_values) == labels.HAND))
    whole = float(np.minimum(light, 2.0).mean())
    on_hand = float(light[own].mean()) if own.any() else whole
    # Metering on the hand alone would make all skin equally bright.
    incident = 0.3 * on_hand / max(staged.albedo, 0.02)
    error = 2 ** rng.normal(0, 0.45)
    return error * 0.2 / max(0.45 * whole + 0.55 * min(incident, 4 * whole + 0.1), 1e-3)
