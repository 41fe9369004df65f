"""Checks of hands in three dimensions: which hand it is, its bones, and where a camera sees it."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handpose_jax import hand
from handpose_jax.synthetic.body import poses, skeleton

_BONES = np.array(hand.BONES)
_INDEX, _LITTLE = hand.FINGERS['index'][0], hand.FINGERS['little'][0]
_POSES = 250
# Annotators' noise and other hands than our skeleton's, in units of the bones' root mean square.
_NOISE = 0.1


class Usual(NamedTuple):
    """What is known of posed hands.

    Attributes:
        weights: the combination of heights over the palm that tells a right hand from a left one;
            its median over right hands is 1.
        ratios: shortest and longest (one in a thousand is beyond) of each bone, over the root mean
            square of the hand's bones.
        units: smallest and largest root mean square of a hand's bones, metres.
    """

    weights: Float[np.ndarray, '21']
    ratios: Float[np.ndarray, '2 20']
    units: Float[np.ndarray, '2']


def palm_side(keypoints_3d: Float[np.ndarray, 'n 21 3']) -> Float[np.ndarray, 'n']:
    """Positive for right hands, negative for left ones: which side of the palm the fingers are on.

    Args:
        keypoints_3d: in a right-handed frame, such as a camera's with x right, y down, z forward.

    Returns:
        About 1 for a typical right hand. Close to 0 nothing can be said.
    """
    return _heights(keypoints_3d) @ usual().weights


def bone_ratios(keypoints_3d: Float[np.ndarray, 'n 21 3']) -> Float[np.ndarray, 'n 20']:
    """Length of each bone over the root mean square of the hand's bones."""
    lengths = _lengths(keypoints_3d)
    return lengths / np.maximum(_units(lengths)[:, None], 1e-12)


def hand_units(keypoints_3d: Float[np.ndarray, 'n 21 3']) -> Float[np.ndarray, 'n']:
    """Root mean square of each hand's bones, in the keypoints' unit."""
    return _units(_lengths(keypoints_3d))


def projection_errors(
    keypoints_3d: Float[np.ndarray, 'n 21 3'],
    camera: Float[np.ndarray, 'n 3 3'],
    keypoints: Float[np.ndarray, 'n 21 2'],
) -> Float[np.ndarray, 'n 21']:
    """Pixels between where the camera sees the keypoints and where they are annotated."""
    seen = np.einsum('nij,nkj->nki', np.asarray(camera, np.float64), keypoints_3d)
    depth = np.where(np.abs(seen[..., 2:]) < 1e-9, np.nan, seen[..., 2:])
    errors = np.linalg.norm(seen[..., :2] / depth - keypoints, axis=2)
    return np.where(np.isfinite(errors), errors, np.inf)


@functools.cache
def usual() -> Usual:
    """Measured on posed skeletons, once a process."""
    rng = np.random.default_rng(0)
    hands = np.stack(
        [
            skeleton.forward_kinematics(
                skeleton.sample_shape(rng), poses.sample_pose(rng)
            ).keypoints
            for _ in range(_POSES)
        ]
    )
    heights = _heights(hands)
    mean = heights.mean(axis=0)
    # Fisher's discriminant between these and their mirror images, whose heights are the negatives.
    spread = np.cov(heights.T) + _NOISE**2 * np.eye(hand.NUM_KEYPOINTS)
    weights = np.linalg.solve(spread, mean)
    weights /= np.median(heights @ weights)
    units = _units(_lengths(hands))
    return Usual(
        weights=weights,
        ratios=np.quantile(bone_ratios(hands), [0.001, 0.999], axis=0),
        units=np.quantile(units, [0.001, 0.999]),
    )


def _heights(keypoints_3d: Float[np.ndarray, 'n 21 3']) -> Float[np.ndarray, 'n 21']:
    from_wrist = keypoints_3d - keypoints_3d[:, :1]
    normal = np.cross(from_wrist[:, _INDEX], from_wrist[:, _LITTLE])
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    units = np.maximum(_units(_lengths(keypoints_3d)), 1e-12)
    return np.einsum('nki,ni->nk', from_wrist, normal) / units[:, None]


def _lengths(keypoints_3d: Float[np.ndarray, 'n 21 3']) -> Float[np.ndarray, 'n 20']:
    steps = keypoints_3d[:, _BONES[:, 1]] - keypoints_3d[:, _BONES[:, 0]]
    return np.linalg.norm(steps, axis=2)


def _units(lengths: Float[np.ndarray, 'n 20']) -> Float[np.ndarray, 'n']:
    return np.sqrt((lengths**2).mean(axis=1))
