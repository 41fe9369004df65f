"""A folder of drawn hands with its annotations.json, and the truth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed


class Truth(NamedTuple):
    """One record.

    Attributes:
        image_id: its name.
        file: of its image, relative to the folder.
        keypoints: f64[21 2], image pixels.
        counted: bool[21], annotated.
        is_left: which hand.
        box: f64[4], x0, y0, x1, y1 around the hand.
    """

    image_id: str
    file: str
    keypoints: np.ndarray
    counted: np.ndarray
    is_left: bool
    box: np.ndarray


def write(
    folder: Path,
    *,
    seed: int = 0,
    records: Mapping[str, int] | None = None,
    height: int = 120,
    width: int = 160,
) -> dict[str, list[Truth]]:
    """Writes the images and annotations.json into a folder.

    The records take turns in what they leave out, and in JPEG and PNG.

    Args:
        folder: receives them.
        seed: decides everything.
        records: how many in each split.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns:
        For each split its records.
    """
    counts = {'train': 4, 'val': 2, 'test': 2} if records is None else records
    rng = np.random.default_rng(seed)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    truth: dict[str, list[Truth]] = {split: [] for split in counts}
    values = []
    for split, count in counts.items():
        for number in range(count):
            value, true = _record(rng, folder, split, number, height, width)
            values.append(value)
            truth[split].append(true)
    (folder / 'annotations.json').write_text(json.dumps(values), encoding='utf-8')
    return truth


def _record(
    rng: np.random.Generator, folder: Path, split: str, number: int, height: int, width: int
) -> tuple[dict[str, Any], Truth]:
    full = number % 2 == 0
    is_left = full and number % 4 == 0
    sample = posed.sample(rng, height=height, width=width, is_left=is_left)
    file = f'images/{split}_{number:04d}.{"jpg" if full else "png"}'
    Image.fromarray(sample.image).save(folder / file)
    counted = np.ones(hand.NUM_KEYPOINTS, bool)
    value: dict[str, Any] = {
        'file': file,
        'keypoints': sample.keypoints.tolist(),
        'handedness': 'left' if is_left else 'right',
        'split': split,
    }
    if full:
        counted = rng.random(hand.NUM_KEYPOINTS) < 0.7
        counted[[hand.WRIST, *hand.FINGERTIPS]] = True
    shown = sample.keypoints[counted]
    box = np.concatenate([shown.min(axis=0), shown.max(axis=0)])
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
    return value, Truth(name, file, sample.keypoints, counted, is_left, box)
