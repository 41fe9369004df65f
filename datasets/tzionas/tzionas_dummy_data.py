"""A folder as the adapter wants it, of drawn hands, and the truth."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed


class Truth(NamedTuple):
    """One record.

    Attributes:
        image_id: its name.
        keypoints: f64[21 2], image pixels.
        counted: bool[21], annotated.
        is_left: which hand.
    """

    image_id: str
    keypoints: np.ndarray
    counted: np.ndarray
    is_left: bool


def write(
    folder: Path, *, seed: int = 0, records: int = 4, height: int = 120, width: int = 160
) -> list[Truth]:
    """Writes images of sequences, and annotations.json, into a folder.

    Args:
        folder: receives them.
        seed: decides everything.
        records: how many.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns:
        The records.
    """
    rng = np.random.default_rng(seed)
    truth, values = [], []
    for number in range(records):
        is_left = bool(number % 2)
        sample = posed.sample(rng, height=height, width=width, is_left=is_left)
        file = f'sequence_{number // 2 + 1:02d}/{number:03d}.png'
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(folder / file)
        counted = rng.random(hand.NUM_KEYPOINTS) < 0.8
        counted[list(hand.FINGERTIPS)] = True
        values.append(
            {
                'file': file,
                'keypoints': np.where(counted[:, None], sample.keypoints, 0).tolist(),
                'visible': counted.tolist(),
                'handedness': 'left' if is_left else 'right',
            }
        )
        truth.append(Truth(file, sample.keypoints, counted, is_left))
    (folder / 'annotations.json').write_text(json.dumps(values), encoding='utf-8')
    return truth
