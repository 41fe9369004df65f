"""Writes made-up hands in the layout of CMU's three downloads, and tells the truth about them.

    hand_labels/manual_train/000010000_01_l.jpg, .json     MPII: number of the image, of the person
    hand_labels/manual_test/Made_up.flv_000002_r.jpg, .json              New Zealand Sign Language
    hand143_panopticdb/hands_v143_14817.json, imgs/00000000.jpg
    hand_labels_synth/synth1/0001.jpg, .json; synth2..4/00000001.jpg, .json

A photograph with both hands is there twice, as _l and _r, like the authors'. Fingertips of synth1
are not annotated, like theirs.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from made_up import Truth, by_id, save, tight

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

_DISTANCE = 0.6, 1.2


def write(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    train: int = 4,
    test: int = 4,
    panoptic: int = 3,
    synth: tuple[int, int, int, int] = (2, 1, 1, 1),
    height: int = 120,
) -> dict[str, Truth]:
    """Writes the downloads, unpacked; those that are asked for no hands are not written.

    Args:
        folder: receives hand_labels, hand143_panopticdb and hand_labels_synth.
        seed: decides everything.
        train: hands for manual_train, two to a photograph.
        test: likewise for manual_test, the other half of the same download.
        panoptic: hands of the Panoptic Studio.
        synth: hands for synth1..synth4.
        height: of the photographs, pixels; they are 16:9, and rendered pictures square.

    Returns:
        By image_id what the converted record must hold.
    """
    rng = np.random.default_rng(seed)
    target = Path(folder)
    truth: list[Truth] = []
    for split, count, first in (('train', train, 0), ('test', test, train)):
        if train or test:
            part = target / 'hand_labels' / f'manual_{split}'
            truth += _write_manual(rng, part, count, height, first)
    if panoptic:
        truth += _write_panoptic(rng, target / 'hand143_panopticdb', panoptic, height)
    if sum(synth):
        for number, count in enumerate(synth, 1):
            part = target / 'hand_labels_synth' / f'synth{number}'
            truth += _write_synth(rng, part, count, height, digits=4 if number == 1 else 8)
    return by_id(truth)


def _write_manual(
    rng: np.random.Generator, folder: Path, count: int, height: int, first: int
) -> list[Truth]:
    folder.mkdir(parents=True)
    width = height * 16 // 9 // 2 * 2
    truth = []
    for photograph in range((count + 1) // 2):
        is_mpii = photograph % 2 == 0
        number = first + photograph
        name = f'{10_000 + number:09d}_01' if is_mpii else f'Made_up.flv_{number:06d}'
        sides = {'l': 0, 'r': width // 2}
        hands = {
            side: posed.sample(
                rng, height=height, width=width // 2, is_left=side == 'l', distance=_DISTANCE
            )
            for side in sides
        }
        picture = np.concatenate([one.image for one in hands.values()], axis=1)
        for side in list(sides)[: count - 2 * photograph]:
            keypoints = hands[side].keypoints + np.array([sides[side], 0])
            annotated = _annotated(rng)
            box = tight(keypoints, annotated)
            centre = (box[:2] + box[2:]) / 2
            # As if a head was in the picture: what counts is its size.
            head_size = float((box[2:] - box[:2]).max() / 0.7 * rng.uniform(0.8, 1.2))
            corner = rng.uniform(0, height / 4, 2)
            stem = f'{name}_{side}'
            save(folder / f'{stem}.jpg', picture)
            values = {
                'hand_pts': _rows(keypoints, annotated, rng),
                'hand_box_center': centre.tolist(),
                'head_size': head_size,
                'head_box': [corner.tolist(), (corner + head_size * np.array([0.7, 1])).tolist()],
                'is_left': int(side == 'l'),
                'is_mpii': int(is_mpii),
                'mpii_body_pts': [[0.0, 0.0, 0.0]] * 16,
                'mpii_image': f'{name}.jpg',
                'mpii_annorect_idx': 1,
            }
            (folder / f'{stem}.json').write_text(json.dumps(values))
            half = 0.35 * head_size
            truth.append(
                Truth(
                    image_id=f'{folder.name}/{stem}',
                    split=folder.name.removeprefix('manual_'),
                    image=folder / f'{stem}.jpg',
                    keypoints=keypoints,
                    annotated=annotated,
                    is_left=side == 'l',
                    box=np.concatenate([centre - half, centre + half]),
                    norm_size=head_size,
                )
            )
    return truth


def _write_panoptic(rng: np.random.Generator, folder: Path, count: int, height: int) -> list[Truth]:
    (folder / 'imgs').mkdir(parents=True)
    width = height * 16 // 9
    truth, records = [], []
    for number in range(count):
        one = posed.sample(rng, height=height, width=width, distance=_DISTANCE)
        annotated = _annotated(rng)
        box = tight(one.keypoints, annotated)
        name = f'imgs/{number:08d}.jpg'
        save(folder / name, one.image)
        records.append(
            {
                'img_paths': name,
                'img_height': float(height),
                'img_width': float(width),
                'objpos': ((box[:2] + box[2:]) / 2).tolist(),
                'joint_self': _rows(one.keypoints, annotated, rng),
            }
        )
        name_and_split = f'panoptic/{number:08d}', 'panoptic'
        truth.append(Truth(*name_and_split, folder / name, one.keypoints, annotated, False))
    (folder / 'hands_v143_14817.json').write_text(json.dumps({'root': records}))
    return truth


def _write_synth(
    rng: np.random.Generator, folder: Path, count: int, side: int, digits: int
) -> list[Truth]:
    folder.mkdir(parents=True)
    truth = []
    for number in range(1, count + 1):
        one = posed.sample(rng, height=side, width=side, distance=_DISTANCE)
        annotated = np.ones(hand.NUM_KEYPOINTS, bool)
        if folder.name == 'synth1':
            annotated[list(hand.FINGERTIPS)] = False
        stem = f'{number:0{digits}d}'
        image = folder / f'{stem}.jpg'
        save(image, one.image)
        values = {'hand_pts': _rows(one.keypoints, annotated, rng), 'is_left': 0}
        (folder / f'{stem}.json').write_text(json.dumps(values))
        name = f'{folder.name}/{stem}'
        truth.append(Truth(name, 'synth', image, one.keypoints, annotated, False))
    return truth


def _annotated(rng: np.random.Generator) -> Bool[np.ndarray, '21']:
    annotated = np.ones(hand.NUM_KEYPOINTS, bool)
    annotated[rng.permutation(hand.NUM_KEYPOINTS)[: rng.integers(0, 5)]] = False
    return annotated


def _rows(
    keypoints: Float[np.ndarray, '21 2'], annotated: Bool[np.ndarray, '21'], rng: Any
) -> list[list[float]]:
    """Rows x, y, flag; where not annotated, 0/0 or a wrong place."""
    wrong = rng.integers(0, 2, (hand.NUM_KEYPOINTS, 1)) * (keypoints + 300)
    places = np.where(annotated[:, None], keypoints, wrong)
    return np.column_stack([places, annotated]).tolist()
