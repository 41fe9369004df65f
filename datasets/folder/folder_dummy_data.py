"""A folder of drawn hands with its annotations.json, and the truth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from made_up import Truth, by_id, most, save, tight

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed


def write(
    folder: Path,
    *,
    seed: int = 0,
    records: Mapping[str, int] | None = None,
    height: int = 120,
    width: int = 160,
) -> dict[str, Truth]:
    """Writes the images and annotations.json into a folder.

    The records take turns in what they leave out, and in JPEG and PNG.

    Args:
        folder: receives them.
        seed: decides everything.
        records: how many in each split.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns:
        By image_id the records.
    """
    counts = {'train': 4, 'val': 2, 'test': 2} if records is None else records
    rng = np.random.default_rng(seed)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    truth, values = [], []
    for split, count in counts.items():
        for number in range(count):
            value, true = _record(rng, folder, split, number, height, width)
            values.append(value)
            truth.append(true)
    (folder / 'annotations.json').write_text(json.dumps(values), encoding='utf-8')
    return by_id(truth)


def _record(
    rng: np.random.Generator, folder: Path, split: str, number: int, height: int, width: int
) -> tuple[dict[str, Any], Truth]:
    full = number % 2 == 0
    is_left = full and number % 4 == 0
    sample = posed.sample(rng, height=height, width=width, is_left=is_left)
    file = f'images/{split}_{number:04d}.{"jpg" if full else "png"}'
    save(folder / file, sample.image)
    counted = np.ones(hand.NUM_KEYPOINTS, bool)
    value: dict[str, Any] = {
        'file': file,
        'keypoints': sample.keypoints.tolist(),
        'handedness': 'left' if is_left else 'right',
        'split': split,
    }
    if full:
        counted = most(rng, 0.7)
    box = tight(sample.keypoints, counted)
    if full:
        box += (-2, -3, 4, 5)
        value |= {
            'id': f'{split}-{number}',
            'visible': counted.tolist(),
            'box': box.tolist(),
            'width': width,
            'height': height,
            'source': 'drawn',
        }
    else:
        del value['handedness']
    name = value.get('id', file)
    return value, Truth(name, split, folder / file, sample.keypoints, counted, is_left, box)
