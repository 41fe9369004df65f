"""RHD's layout made of drawn hands: the same folders, files, names, encodings, and the truth."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import rhd_layout
from made_up import Truth, by_id, most, tight

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

FOLDER = 'RHD_published_v2'

# First value of the hand's parts in the mask; the palm comes 15 later.
_FIRST_PART = {'left': 2, 'right': 18}
_PALM = 15
_PERSON = 1
_PARTS = 3


def write(
    folder: Path,
    *,
    seed: int = 0,
    records: Mapping[str, int] | None = None,
    size: int = 320,
) -> dict[str, Truth]:
    """Writes the data set's folder, RHD_published_v2, into a folder.

    Even records have a left dominant hand, odd ones a right one; every third has no other hand.
    Some keypoints are hidden. Depth images are left out; nothing reads them.

    Args:
        folder: receives it.
        seed: decides everything.
        records: how many in 'training' and 'evaluation'.
        size: side of the pictures, pixels.

    Returns:
        By image_id what the dominant hands really are.
    """
    counts = {'training': 4, 'evaluation': 2} if records is None else records
    truth: list[Truth] = []
    for stream, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, stream])
        made = _records(rng, count, size, folder / FOLDER / split, truth)
        rhd_layout.write_records(folder / FOLDER, split, made)
    return by_id(truth)


def _records(
    rng: np.random.Generator, count: int, size: int, folder: Path, truth: list[Truth]
) -> Iterator[rhd_layout.WrittenRecord]:
    for number in range(count):
        dominant, other = ('left', 'right') if number % 2 == 0 else ('right', 'left')
        both = number % 3 != 2
        focal = rng.uniform(0.8, 0.95) * size
        middle = (size - 1) / 2 + rng.uniform(-3, 3, 2)
        camera = np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1.0]])
        mask = np.zeros((size, size), np.uint8)
        mask[: size // 20] = _PERSON
        image = np.zeros((size, size, 3), np.uint8)
        hands: dict[str, rhd_layout.WrittenHand] = {}
        # The dominant hand is the nearer one, drawn last: it covers the other.
        for side, distance in ((other, (1.2, 1.4)), (dominant, (0.4, 0.6))):
            if side == other and not both:
                continue
            sample = posed.sample(
                rng,
                height=size,
                width=size,
                camera=camera,
                is_left=side == 'left',
                distance=distance,
            )
            covered = _mark(mask, sample.keypoints, _FIRST_PART[side])
            if not hands:
                image = sample.image
            else:
                image = np.where(covered[:, :, None], sample.image, image)
            hands[side] = rhd_layout.WrittenHand(
                sample.keypoints, most(rng, 0.8), sample.keypoints_3d
            )
        keypoints, visible, keypoints_3d = hands[dominant]
        truth.append(
            Truth(
                image_id=f'{folder.name}/{number:05d}',
                split={'training': 'train', 'evaluation': 'test'}[folder.name],
                image=folder / 'color' / f'{number:05d}.png',
                keypoints=keypoints,
                annotated=np.ones(hand.NUM_KEYPOINTS, bool),
                is_left=dominant == 'left',
                box=tight(keypoints, visible),
                visible=visible,
                keypoints_3d=keypoints_3d,
                camera=camera,
                extra={'both': both, 'picture': image},
            )
        )
        yield rhd_layout.WrittenRecord(image, mask, camera, hands.get('left'), hands.get('right'))


def _mark(mask: np.ndarray, keypoints: np.ndarray, first: int) -> np.ndarray:
    """Draws the parts of a hand: the palm, and of each finger three from its tip to its base.

    Returns:
        bool[h w], where it was drawn.
    """
    alone = np.zeros_like(mask)
    points = np.round(keypoints).astype(np.int32)
    palm = points[[hand.WRIST, *(finger[0] for finger in hand.FINGERS.values())]]
    cv2.fillConvexPoly(alone, cv2.convexHull(palm), first + _PALM)
    thickness = max(2, round(float(np.ptp(keypoints, axis=0).max()) / 15))
    for number, finger in enumerate(hand.FINGERS.values()):
        for part in range(_PARTS):
            ends = [tuple(points[k].tolist()) for k in (finger[3 - part], finger[2 - part])]
            cv2.line(alone, ends[0], ends[1], first + _PARTS * number + part, thickness)
    covered = alone > 0
    mask[covered] = alone[covered]
    return covered
