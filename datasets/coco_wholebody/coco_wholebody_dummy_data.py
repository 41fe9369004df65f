"""COCO-WholeBody's files, and MMPose's files of hands, made of drawn hands, and the truth."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_up import Truth, by_id, most, save, tight

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

_BODY, _FOOT, _FACE = 17, 6, 68


def write(
    folder: Path,
    *,
    seed: int = 0,
    persons: Mapping[str, int] | None = None,
    height: int = 120,
    width: int = 160,
) -> dict[str, Truth]:
    """Writes COCO-WholeBody's annotations and the images of COCO 2017 into a folder.

    Each image shows one person. Persons take turns in having both hands, one or none; a crowd and
    a valid hand without keypoints are among them.

    Args:
        folder: receives them.
        seed: decides everything.
        persons: how many in 'train' and 'val'.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns:
        By image_id the hands, the right one of a person first.
    """
    counts = {'train': 4, 'val': 2} if persons is None else persons
    truth: list[Truth] = []
    (folder / 'annotations').mkdir(parents=True, exist_ok=True)
    for stream, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, stream])
        pictures = folder / f'{split}2017'
        pictures.mkdir(exist_ok=True)
        images, annotations = [], []
        for number in range(count):
            # Large numbers that do not begin at one, as COCO's.
            image = _image(1000 * (stream + 1) + 7 * number, split, height, width)
            annotation, hands, picture = _person(rng, image, number, count, pictures)
            save(pictures / image['file_name'], picture)
            images.append(image)
            annotations.append(annotation)
            truth += hands
        annotations.append(_crowd(images[0]))
        path = folder / 'annotations' / f'coco_wholebody_{split}_v1.0.json'
        content = {
            'info': {'description': 'COCO-WholeBody', 'version': '1.0', 'year': '2020'},
            'licenses': [{'url': 'http://example.org', 'id': 1, 'name': 'Made up'}],
            'images': images,
            'annotations': annotations,
            'categories': [{'supercategory': 'person', 'id': 1, 'name': 'person'}],
        }
        path.write_text(json.dumps(content), encoding='utf-8')
    return by_id(truth)


def _image(number: int, split: str, height: int, width: int) -> dict[str, Any]:
    name = f'{number:012d}.jpg'
    return {
        'license': 1,
        'file_name': name,
        'coco_url': f'http://images.cocodataset.org/{split}2017/{name}',
        'height': height,
        'width': width,
        'date_captured': '2013-11-19 21:22:42',
        'flickr_url': 'http://example.org',
        'id': number,
    }


def _person(
    rng: np.random.Generator, image: dict[str, Any], number: int, count: int, folder: Path
) -> tuple[dict[str, Any], list[Truth], np.ndarray]:
    height, width = image['height'], image['width']
    sides = (('right', 'left'), ('left',), ('right',), ())[number % 4]
    identity = 400_000 + 13 * number
    annotation: dict[str, Any] = {
        'segmentation': [[0.0, 0.0, width, 0.0, width, height]],
        'num_keypoints': 0,
        'area': float(height * width),
        'iscrowd': 0,
        'keypoints': [0] * 3 * _BODY,
        'image_id': image['id'],
        'bbox': [0.0, 0.0, float(width), float(height)],
        'category_id': 1,
        'id': identity,
        'face_box': [0.0] * 4,
        'face_kpts': [0.0] * 3 * _FACE,
        'face_valid': False,
        'foot_kpts': [0.0] * 3 * _FOOT,
        'foot_valid': False,
    }
    truth = []
    # Each hand has its share of the picture's width.
    share = width // max(1, len(sides))
    pictures = [] if sides else [posed.sample(rng, height=height, width=width).image]
    for side in ('right', 'left'):
        values, box = [0.0] * 3 * hand.NUM_KEYPOINTS, np.zeros(4)
        if side in sides:
            sample = posed.sample(rng, height=height, width=share, is_left=side == 'left')
            keypoints = sample.keypoints + np.array([share * len(pictures), 0])
            pictures.append(sample.image)
            counted = most(rng, 0.8)
            values, box = _annotate(rng, keypoints, counted)
            truth.append(
                Truth(
                    f'{image["file_name"]}#{identity}/{side}',
                    folder.name.removesuffix('2017'),
                    folder / image['file_name'],
                    keypoints,
                    counted,
                    side == 'left',
                    extra={'box': box},
                )
            )
        annotation[f'{side}hand_box'] = [*box[:2], *(box[2:] - box[:2])]
        annotation[f'{side}hand_kpts'] = values
        # The last person's hands are called valid whatever they have.
        annotation[f'{side}hand_valid'] = side in sides or number == count - 1
    return annotation, truth, np.concatenate(pictures, axis=1)


def _crowd(image: dict[str, Any]) -> dict[str, Any]:
    return {
        'segmentation': {'counts': [0, 4], 'size': [image['height'], image['width']]},
        'num_keypoints': 0,
        'area': 4.0,
        'iscrowd': 1,
        'keypoints': [0] * 3 * _BODY,
        'image_id': image['id'],
        'bbox': [0.0, 0.0, 4.0, 4.0],
        'category_id': 1,
        'id': 900_000,
    }


def _annotate(
    rng: np.random.Generator, keypoints: np.ndarray, counted: np.ndarray
) -> tuple[list[float], np.ndarray]:
    """Triples x, y, v, and a box somewhat larger than the keypoints."""
    # Where it is known, v is 1 or, in part of COCO-WholeBody, a share of it.
    v = np.where(counted, rng.choice([1.0, 0.14], hand.NUM_KEYPOINTS), 0.0)
    triples = np.column_stack([np.where(counted[:, None], keypoints, 0.0), v])
    return triples.ravel().tolist(), tight(keypoints, counted) + np.array([-3, -3, 4, 4])


def write_hands(
    folder: Path,
    *,
    seed: int = 0,
    records: int = 4,
    order: Sequence[int] = tuple(range(hand.NUM_KEYPOINTS)),
    triples: bool = False,
    extras: Sequence[str] = (),
    height: int = 120,
    width: int = 160,
) -> dict[str, Truth]:
    """Writes hands.json, in the form that MMPose has for data sets of hands, and its images.

    Every other hand is a left one. File names end in _l or _r.

    Args:
        folder: receives them.
        seed: decides everything.
        records: how many.
        order: our keypoint i is the file's keypoint order[i].
        triples: keypoints as lists of three, not one after the other.
        extras: of 'hand_type', 'category', 'head_size', what the file has too.
        height: of the images, pixels.
        width: of the images, pixels.

    Returns:
        By image_id the hands.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations, truth = [], [], []
    for number in range(records):
        is_left = bool(number % 2)
        file = f'{number:04d}_{"l" if is_left else "r"}.png'
        sample = posed.sample(rng, height=height, width=width, is_left=is_left)
        save(folder / file, sample.image)
        counted = most(rng, 0.8)
        values, box = _annotate(rng, sample.keypoints, counted)
        theirs = np.zeros((hand.NUM_KEYPOINTS, 3))
        theirs[list(order)] = np.reshape(values, (hand.NUM_KEYPOINTS, 3))
        annotation: dict[str, Any] = {
            'bbox': [*box[:2], *(box[2:] - box[:2])],
            'keypoints': theirs.tolist() if triples else theirs.ravel().tolist(),
            'category_id': 1 + is_left if 'category' in extras else 1,
            'id': 50 + number,
            'image_id': 700 + number,
            'segmentation': [box.tolist()],
            'iscrowd': 0,
            'area': float(np.prod(box[2:] - box[:2])),
        }
        head_size = None
        if 'hand_type' in extras:
            annotation['hand_type'] = 'left' if is_left else 'right'
        if 'head_size' in extras:
            head_size = 60.0 + number
            annotation['head_size'] = head_size
            annotation['center'] = ((box[:2] + box[2:]) / 2).tolist()
        images.append({'file_name': file, 'height': height, 'width': width, 'id': 700 + number})
        annotations.append(annotation)
        truth.append(
            Truth(
                f'{file}#{50 + number}',
                'train',
                folder / file,
                sample.keypoints,
                counted,
                is_left,
                norm_size=head_size,
                extra={'box': box},
            )
        )
    names = ('right_hand', 'left_hand') if 'category' in extras else ('hand',)
    content = {
        'info': {'description': 'drawn'},
        'licenses': '',
        'images': images,
        'annotations': annotations,
        'categories': [
            {'supercategory': 'hand', 'id': 1 + number, 'name': name}
            for number, name in enumerate(names)
        ],
    }
    (folder / 'hands.json').write_text(json.dumps(content), encoding='utf-8')
    return by_id(truth)
