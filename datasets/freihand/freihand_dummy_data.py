"""Writes made-up hands in the layout of FreiHAND's two archives, and tells the truth about them.

    FreiHAND_pub_v2/training/rgb/00000000.jpg             four blocks, one for each version
    FreiHAND_pub_v2/training_xyz.json, training_K.json    one record for each label
    FreiHAND_pub_v2/evaluation/rgb/, evaluation_K.json    without places of keypoints
    FreiHAND_pub_v2_eval/evaluation/rgb/00000000.jpg, evaluation_xyz.json, evaluation_K.json

Masks and the files of hand models and scales, which nothing here reads, are not written.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Float
from made_up import Truth, by_id, save

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

NUM_VERSIONS = 4

_DISTANCE = 0.6, 1.0


def write(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    labels: int = 24,
    evaluation: int = 4,
    size: int = 112,
) -> dict[str, Truth]:
    """Writes both archives, unpacked; one that is asked for no hands is not written.

    Args:
        folder: receives FreiHAND_pub_v2 and FreiHAND_pub_v2_eval.
        seed: decides everything.
        labels: hands for training; each makes four images.
        evaluation: hands for evaluation.
        size: side of the images, pixels; the authors' have 224.

    Returns:
        By image_id the records of all versions.
    """
    rng = np.random.default_rng(seed)
    root, eval_root = Path(folder) / 'FreiHAND_pub_v2', Path(folder) / 'FreiHAND_pub_v2_eval'
    truth = []
    if labels:
        truth += _write_part(rng, root, 'training', labels, NUM_VERSIONS, size)
    if evaluation:
        truth += _write_part(rng, eval_root, 'evaluation', evaluation, 1, size)
    if labels and evaluation:
        shutil.copytree(eval_root / 'evaluation', root / 'evaluation')
        shutil.copy(eval_root / 'evaluation_K.json', root)
    return by_id(truth)


def _write_part(
    rng: np.random.Generator, root: Path, part: str, labels: int, versions: int, size: int
) -> list[Truth]:
    (root / part / 'rgb').mkdir(parents=True)
    hands = [
        posed.sample(rng, height=size, width=size, camera=_camera(rng, size), distance=_DISTANCE)
        for _ in range(labels)
    ]
    truth = []
    for version in range(versions):
        for label, one in enumerate(hands):
            number = f'{version * labels + label:08d}'
            image = one.image
            if version > 0:
                # The same hand, another background.
                image = posed.paint(rng, one.keypoints, height=size, width=size)
            path = root / part / 'rgb' / f'{number}.jpg'
            save(path, image)
            truth.append(
                Truth(
                    f'{part}/{number}',
                    '' if part == 'training' else part,
                    path,
                    one.keypoints,
                    np.ones(hand.NUM_KEYPOINTS, bool),
                    False,
                    keypoints_3d=one.keypoints_3d,
                    camera=one.camera,
                )
            )
    tables = {
        'xyz': [one.keypoints_3d.tolist() for one in hands],
        'K': [one.camera.tolist() for one in hands],
    }
    for field, values in tables.items():
        (root / f'{part}_{field}.json').write_text(json.dumps(values))
    return truth


def _camera(rng: np.random.Generator, size: int) -> Float[np.ndarray, '3 3']:
    """Differs from hand to hand; its axis does not meet the middle of the image."""
    focal = rng.uniform(1.8, 2.4, 2) * size
    middle = size / 2 + rng.uniform(-0.05, 0.05, 2) * size
    return np.array([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1]])
