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
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

_DISTANCE = 0.6, 1.2


class Truth(NamedTuple):
    """What a record of the converted data set must hold.

    Attributes:
        image: path of the image file.
        keypoints: f64[21 2], image pixels; anything where not annotated.
        annotated: bool[21].
        is_left: which hand.
        box: f64[4], image pixels: 0.7 heads wide around the centre of the hand, or the tight box of
            the annotated keypoints where there is no head.
        norm_size: side of the head, or the longest side of the box; pixels.
    """

    image: Path
    keypoints: Float[np.ndarray, '21 2']
    annotated: Bool[np.ndarray, '21']
    is_left: bool
    box: Float[np.ndarray, '4']
    norm_size: float


def write(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    train: int = 4,
    test: int = 4,
    panoptic: int = 3,
    synth: tuple[int, int, int, int] = (2, 1, 1, 1),
    height: int = 120,
) -> dict[str, dict[str, Truth]]:
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
        By split, and in it by the image_id of the converted record, what that must hold.
    """
    rng = np.random.default_rng(seed)
    target = Path(folder)
    truth: dict[str, dict[str, Truth]] = {}
    for split, count, first in (('train', train, 0), ('test', test, train)):
        if train or test:
            part = target / 'hand_labels' / f'manual_{split}'
            truth[split] = _write_manual(rng, part, count, height, first)
    if panoptic:
        truth['panoptic'] = _write_panoptic(rng, target / 'hand143_panopticdb', panoptic, height)
    if sum(synth):
        truth['synth'] = {}
        for number, count in enumerate(synth, 1):
            part = target / 'hand_labels_synth' / f'synth{number}'
            truth['synth'] |= _write_synth(rng, part, count, height, digits=4 if number == 1 else 8)
    return truth


def _write_manual(
    rng: np.random.Generator, folder: Path, count: int, height: int, first: int
) -> dict[str, Truth]:
    folder.mkdir(parents=True)
    width = height * 16 // 9 // 2 * 2
    truth = {}
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
        encoded = _jpeg(np.concatenate([one.image for one in hands.values()], axis=1))
        for side in list(sides)[: count - 2 * photograph]:
            keypoints = hands[side].keypoints + np.array([sides[side], 0])
            annotated = _annotated(rng)
            box = _tight(keypoints, annotated)
            centre = (box[:2] + box[2:]) / 2
            # As if a head was in the picture: what counts is its size.
            head_size = float((box[2:] - box[:2]).max() / 0.7 * rng.uniform(0.8, 1.2))
            corner = rng.uniform(0, height / 4, 2)
            stem = folder / f'{name}_{side}'
            stem.with_name(f'{stem.name}.jpg').write_bytes(encoded)
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
            stem.with_name(f'{stem.name}.json').write_text(json.dumps(values))
            half = 0.35 * head_size
            truth[f'{folder.name}/{stem.name}'] = Truth(
                image=stem.with_name(f'{stem.name}.jpg'),
                keypoints=keypoints,
                annotated=annotated,
                is_left=side == 'l',
                box=np.concatenate([centre - half, centre + half]),
                norm_size=head_size,
            )
    return truth


def _write_panoptic(
    rng: np.random.Generator, folder: Path, count: int, height: int
) -> dict[str, Truth]:
    (folder / 'imgs').mkdir(parents=True)
    width = height * 16 // 9
    truth, records = {}, []
    for number in range(count):
        one = posed.sample(rng, height=height, width=width, distance=_DISTANCE)
        annotated = _annotated(rng)
        box = _tight(one.keypoints, annotated)
        name = f'imgs/{number:08d}.jpg'
        (folder / name).write_bytes(_jpeg(one.image))
        records.append(
            {
                'img_paths': name,
                'img_height': float(height),
                'img_width': float(width),
                'objpos': ((box[:2] + box[2:]) / 2).tolist(),
                'joint_self': _rows(one.keypoints, annotated, rng),
            }
        )
        truth[f'panoptic/{number:08d}'] = _without_head(folder / name, one, annotated)
    (folder / 'hands_v143_14817.json').write_text(json.dumps({'root': records}))
    return truth


def _write_synth(
    rng: np.random.Generator, folder: Path, count: int, side: int, digits: int
) -> dict[str, Truth]:
    folder.mkdir(parents=True)
    truth = {}
    for number in range(1, count + 1):
        one = posed.sample(rng, height=side, width=side, distance=_DISTANCE)
        annotated = np.ones(hand.NUM_KEYPOINTS, bool)
        if folder.name == 'synth1':
            annotated[list(hand.FINGERTIPS)] = False
        stem = f'{number:0{digits}d}'
        (folder / f'{stem}.jpg').write_bytes(_jpeg(one.image))
        values = {'hand_pts': _rows(one.keypoints, annotated, rng), 'is_left': 0}
        (folder / f'{stem}.json').write_text(json.dumps(values))
        truth[f'{folder.name}/{stem}'] = _without_head(folder / f'{stem}.jpg', one, annotated)
    return truth


def _without_head(image: Path, one: posed.DrawnHand, annotated: Bool[np.ndarray, '21']) -> Truth:
    box = _tight(one.keypoints, annotated)
    return Truth(
        image=image,
        keypoints=one.keypoints,
        annotated=annotated,
        is_left=one.is_left,
        box=box,
        norm_size=float((box[2:] - box[:2]).max()),
    )


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


def _tight(
    keypoints: Float[np.ndarray, '21 2'], annotated: Bool[np.ndarray, '21']
) -> Float[np.ndarray, '4']:
    counted = keypoints[annotated]
    return np.array([*counted.min(axis=0), *counted.max(axis=0)])


def _jpeg(image: np.ndarray) -> bytes:
    _, data = cv2.imencode('.jpg', image[:, :, ::-1])
    return data.tobytes()
