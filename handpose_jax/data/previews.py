"""What training makes of a sample, to look at: the plain crop, an augmented one, its heatmaps."""

from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from handpose_jax import geometry, hand, heatmaps
from handpose_jax.data.transforms import Augmentation, crop_example, crop_image
from handpose_jax.types import Sample

_STRIDE = 4
_REFERENCE_SIZE = 224


class Preview(NamedTuple):
    """A sample as training sees it; all images are of the same size.

    Attributes:
        crop: not mirrored and not changed.
        keypoints: (x, y), pixels of `crop`.
        augmented: one random example; left hands are mirrored.
        augmented_keypoints: (x, y), pixels of `augmented`.
        maps: the target heatmaps over `augmented`, in the keypoints' colours.
        visible: which keypoints count.
    """

    crop: UInt8[np.ndarray, 's s 3']
    keypoints: Float[np.ndarray, '21 2']
    augmented: UInt8[np.ndarray, 's s 3']
    augmented_keypoints: Float[np.ndarray, '21 2']
    maps: UInt8[np.ndarray, 's s 3']
    visible: Bool[np.ndarray, '21']


def preview(
    sample: Sample,
    *,
    size: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
    sigma: float = heatmaps.SIGMA,
) -> Preview:
    """Crops, augments and renders the targets.

    Args:
        sample: one hand.
        size: side of the crops, pixels; a multiple of 4.
        augmentation: ranges of the random changes.
        rng: draws them.
        sigma: of the target peaks, pixels of a 224 crop.
    """
    # Cut as in training, but not mirrored.
    plain, image_from_crop = crop_image(sample['image'], sample['box'], size)
    crop_from_image = geometry.invert(image_from_crop)
    changed = crop_example(sample, size=size, augmentation=augmentation, rng=rng)
    maps, _ = heatmaps.render(
        jnp.asarray(changed['keypoints'][None]),
        jnp.asarray(changed['visible'][None]),
        jnp.asarray(changed['has_hand'][None]),
        height=size // _STRIDE,
        width=size // _STRIDE,
        stride=_STRIDE,
        sigma=sigma * size / _REFERENCE_SIZE,
    )
    return Preview(
        crop=plain,
        keypoints=geometry.apply_affine(crop_from_image, sample['keypoints'].astype(np.float64)),
        augmented=changed['image'],
        augmented_keypoints=changed['keypoints'].astype(np.float64),
        maps=lay_over(changed['image'], np.asarray(maps[0, :, :, : hand.NUM_KEYPOINTS])),
        visible=changed['visible'],
    )


def lay_over(
    image: UInt8[np.ndarray, 's s 3'], maps: Float[np.ndarray, 'h w 21']
) -> UInt8[np.ndarray, 's s 3']:
    """Shows heatmaps in the keypoints' colours over a picture in grey.

    Args:
        image: RGB.
        maps: values 0 to 1, at any resolution.

    Returns:
        RGB; opaque where a map is 1.
    """
    colours = np.array([hand.keypoint_colour(k) for k in range(hand.NUM_KEYPOINTS)], np.float32)
    opacity = maps.max(axis=2)
    mixed = maps @ colours / np.maximum(maps.sum(axis=2, keepdims=True), 1e-6)
    side = (image.shape[1], image.shape[0])
    opacity = cv2.resize(opacity, side, interpolation=cv2.INTER_LINEAR)[..., None]
    mixed = cv2.resize(mixed, side, interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return np.clip((1 - opacity) * grey + opacity * mixed, 0, 255).astype(np.uint8)
