"""Writes made-up hands in the layout of FreiHAND's two archives, and tells the truth about them.

    FreiHAND_pub_v2/training/rgb/00000000.jpg             four blocks, one for each version
    FreiHAND_pub_v2/training_xyz.json, training_K.json    one record for each label
    FreiHAND_pub_v2/evaluation/rgb/, evaluation_K.json    without places of keypoints
    FreiHAND_pub_v2_eval/evaluation/rgb/00000000.jpg, evaluation_xyz.json, evaluation_K.json

Masks and the files of hand models and scales, which nothing here reads, are not written.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from handpose_jax.synthetic.drawing import posed

NUM_VERSIONS = 4

_DISTANCE = 0.6, 1.0


class Truth(NamedTuple):
    """What a label's records must hold.

    Attributes:
        images: paths of its images, one for each version.
        keypoints: f64[21 2], image pixels.
        keypoints_3d: f64[21 3], metres, camera frame.
        camera: f64[3 3], intrinsic matrix, pixels.
    """

    images: tuple[Path, ...]
    keypoints: Float[np.ndarray, '21 2']
    keypoints_3d: Float[np.ndarray, '21 3']
    camera: Float[np.ndarray, '3 3']


def write(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    labels: int = 24,
    evaluation: int = 4,
    size: int = 112,
) -> dict[str, list[Truth]]:
    """Writes both archives, unpacked; one that is asked for no hands is not written.

    Args:
        folder: receives FreiHAND_pub_v2 and FreiHAND_pub_v2_eval.
        seed: decides everything.
        labels: hands for training; each makes four images.
        evaluation: hands for evaluation.
        size: side of the images, pixels; the authors' have 224.

    Returns:
        'training' and 'evaluation', by label.
    """
    rng = np.random.default_rng(seed)
    root, eval_root = Path(folder) / 'FreiHAND_pub_v2', Path(folder) / 'FreiHAND_pub_v2_eval'
    truth = {}
    if labels:
        truth['training'] = _write_part(rng, root, 'training', labels, NUM_VERSIONS, size)
    if evaluation:
        truth['evaluation'] = _write_part(rng, eval_root, 'evaluation', evaluation, 1, size)
    if labels and evaluation:
        (root / 'evaluation' / 'rgb').mkdir(parents=True)
        for one in truth['evaluation']:
            path = root / 'evaluation' / 'rgb' / one.images[0].name
            path.write_bytes(one.images[0].read_bytes())
        copied = (eval_root / 'evaluation_K.json').read_bytes()
        (root / 'evaluation_K.json').write_bytes(copied)
    return truth


def _write_part(
    rng: np.random.Generator, root: Path, part: str, labels: int, versions: int, size: int
) -> list[Truth]:
    (root / part / 'rgb').mkdir(parents=True)
    truth = []
    for label in range(labels):
        one = posed.sample(
            rng, height=size, width=size, camera=_camera(rng, size), distance=_DISTANCE
        )
        paths = tuple(
            root / part / 'rgb' / f'{version * labels + label:08d}.jpg'
            for version in range(versions)
        )
        for version, path in enumerate(paths):
            image = one.image
            if version > 0:
                # The same hand, another background.
                image = posed.paint(rng, one.keypoints, height=size, width=size)
            _, data = cv2.imencode('.jpg', image[:, :, ::-1])
            path.write_bytes(data.tobytes())
        truth.append(Truth(paths, one.keypoints, one.keypoints_3d, one.camera))
    tables = {
        'xyz': [one.keypoints_3d.tolist() for one in truth],
        'K': [one.camera.tolist() for one in truth],
    }
    for field, values in tables.items():
        (root / f'{part}_{field}.json').write_text(json.dumps(values))
    return truth


def _camera(rng: np.random.Generator, size: int) -> Float[np.ndarray, '3 3']:
    """Differs from hand to hand; its axis does not meet the middle of the image."""
    focal = rng.uniform(1.8, 2.4, 2) * size
    middle = size / 2 + rng.uniform(-0.05, 0.05, 2) * size
    return np.array([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1]])
