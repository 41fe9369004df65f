"""A made-up photograph, its crop and what the network finds there: what an app is checked against.

The hand is drawn by this package, so that the pictures can be passed on with the network. Fine
stripes lie over it: an app that samples them without averaging first sees other stripes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax import geometry, hand
from handpose_jax.data import transforms
from handpose_jax.synthetic.drawing import flat, posed

FOLDER = 'golden'
"""In the folder of an export."""

_PHOTOGRAPH, _CROP = 'photograph.png', 'crop.png'

_SEED = 99
"""Of 120 drawings one in which a network trained on photographs is sure of all keypoints."""

_COARSE, _STRIPES = 32, 40
"""Grey levels between two shades, which keeps the file small, and the height of the stripes."""


@dataclasses.dataclass(frozen=True)
class Golden:
    """A photograph and the crop that the network is shown.

    Attributes:
        photograph: RGB.
        box: x0, y0, x1, y1, its pixels: of the hand, or of the whole photograph.
        crop: RGB.
        image_from_crop: the map from the crop's pixels to the photograph's.
    """

    photograph: UInt8[np.ndarray, 'h w 3']
    box: Float[np.ndarray, '4']
    crop: UInt8[np.ndarray, 's s 3']
    image_from_crop: Float[np.ndarray, '2 3']


def make(size: int, scale: float | None) -> Golden:
    """Draws a right hand that a crop shows at less than a third, partly beyond the photograph.

    Args:
        size: side of the crop, pixels.
        scale: side of the crop over the longest side of the box; None for a network that is shown
            whole photographs.
    """
    rng = np.random.default_rng(_SEED)
    keypoints = flat.draw(rng, 3 * size)[1] + np.array([0.5, 0.1]) * size
    height, width = 3 * size, 3 * size + size // 2
    drawn = posed.paint(rng, keypoints, height=height, width=width) // _COARSE * _COARSE
    y, x = np.mgrid[:height, :width]
    stripes = _STRIPES * ((x + 2 * y) // 2 % 2 * 2 - 1)
    lit = drawn.astype(int) + _COARSE // 2 + stripes[..., None]
    photograph = np.clip(lit, 0, 255).astype(np.uint8)
    box = (
        geometry.whole_image_box(height, width)
        if scale is None
        # As many digits as its readers are told.
        else geometry.keypoint_box(keypoints, np.ones(hand.NUM_KEYPOINTS, bool)).round(2)
    )
    crop, image_from_crop = transforms.crop_image(
        photograph, geometry.square_box(box, 1.0 if scale is None else scale), size
    )
    return Golden(photograph, box, crop, image_from_crop)


def write(golden: Golden, folder: Path) -> None:
    """Writes both pictures as PNG.

    Args:
        golden: from make.
        folder: of the export; they come into FOLDER inside it.
    """
    (folder / FOLDER).mkdir()
    for name, picture in ((_PHOTOGRAPH, golden.photograph), (_CROP, golden.crop)):
        encoded = cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
        (folder / FOLDER / name).write_bytes(encoded.tobytes())


def describe(golden: Golden, keypoints: Float[np.ndarray, '21 3']) -> dict[str, Any]:
    """What an app needs to check itself, for JSON.

    Args:
        golden: from make.
        keypoints: found in its crop: x, y in pixels of the crop, confidence.
    """
    points = keypoints[:, :2].astype(np.float64)
    return {
        'photograph': f'{FOLDER}/{_PHOTOGRAPH}',
        'crop': f'{FOLDER}/{_CROP}',
        'box': golden.box.tolist(),
        'hand': 'right',
        'keypoints_in_crop': points.round(3).tolist(),
        'keypoints': geometry.apply_affine(golden.image_from_crop, points).round(3).tolist(),
        'confidence': keypoints[:, 2].astype(np.float64).round(4).tolist(),
    }
