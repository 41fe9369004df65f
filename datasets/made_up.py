"""What the writers of made-up data sets share: the truth about a record, and drawings of hands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

# Large pictures take time to draw: only what is around the hand is drawn.
_AROUND = 20
_SMALL = 8


class Truth(NamedTuple):
    """What a record of the converted data set must hold, in the order of handpose_jax.hand.

    Attributes:
        image_id: its name.
        split: that it is in; '' where the converter decides.
        image: path of its image file.
        keypoints: f64[21 2], image pixels; anything where not annotated.
        annotated: bool[21].
        is_left: which hand.
        box: f64[4], x0, y0, x1, y1, image pixels; None for the tight one of the annotated
            keypoints.
        norm_size: image pixels; None for the longest side of the box.
        visible: bool[21]; None where the data set does not tell.
        keypoints_3d: f64[21 3], metres, camera frame; None if the data set has none.
        camera: f64[3 3], intrinsic matrix, pixels; None likewise.
        extra: what only this data set has.
    """

    image_id: str
    split: str
    image: Path
    keypoints: Float[np.ndarray, '21 2']
    annotated: Bool[np.ndarray, '21']
    is_left: bool
    box: Float[np.ndarray, '4'] | None = None
    norm_size: float | None = None
    visible: Bool[np.ndarray, '21'] | None = None
    keypoints_3d: Float[np.ndarray, '21 3'] | None = None
    camera: Float[np.ndarray, '3 3'] | None = None
    extra: Mapping[str, Any] = {}


def by_id(records: list[Truth]) -> dict[str, Truth]:
    """The records by their names, in their order."""
    return {one.image_id: one for one in records}


def most(rng: np.random.Generator, share: float) -> Bool[np.ndarray, '21']:
    """Some keypoints, among them always the wrist and the fingertips."""
    chosen = rng.random(hand.NUM_KEYPOINTS) < share
    chosen[[hand.WRIST, *hand.FINGERTIPS]] = True
    return chosen


def tight(
    keypoints: Float[np.ndarray, '21 2'], counted: Bool[np.ndarray, '21']
) -> Float[np.ndarray, '4']:
    """The smallest box around some keypoints."""
    return np.concatenate([keypoints[counted].min(axis=0), keypoints[counted].max(axis=0)])


def save(path: Path, image: UInt8[np.ndarray, 'h w 3']) -> None:
    """Writes an RGB image, in the format of the file's suffix."""
    cv2.imwrite(str(path), image[..., ::-1])


def project(
    points: Float[np.ndarray, 'n 3'], camera: Float[np.ndarray, '3 3']
) -> Float[np.ndarray, 'n 2']:
    """Where a camera sees points of its own frame."""
    return points[:, :2] / points[:, 2:] * np.diag(camera)[:2] + camera[:2, 2]


def left_hand(
    rng: np.random.Generator,
    camera: Float[np.ndarray, '3 3'],
    size: tuple[int, int],
    distance: tuple[float, float],
) -> Float[np.ndarray, '21 3']:
    """A left hand in the picture, of a height and width, of a camera; metres, in its frame."""
    height, width = (side // _SMALL for side in size)
    smaller = np.diag([1 / _SMALL, 1 / _SMALL, 1]) @ camera
    return posed.sample(
        rng, height=height, width=width, camera=smaller, is_left=True, distance=distance
    ).keypoints_3d


def on_a_wall(
    rng: np.random.Generator, keypoints: Float[np.ndarray, '21 2'], size: tuple[int, int]
) -> UInt8[np.ndarray, 'h w 3']:
    """A picture, of a height and width, of a hand before a plain wall."""
    picture = np.full((*size, 3), rng.integers(40, 200, 3), np.uint8)
    x0, y0 = np.maximum(np.floor(keypoints.min(axis=0)).astype(int) - _AROUND, 0).tolist()
    x1, y1 = np.ceil(keypoints.max(axis=0)).astype(int).tolist()
    cut = picture[y0 : y1 + _AROUND, x0 : x1 + _AROUND]
    height, width, _ = cut.shape
    cut[:] = posed.paint(rng, keypoints - (x0, y0), height=height, width=width)
    return picture
