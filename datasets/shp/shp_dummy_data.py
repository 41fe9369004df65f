"""SHP's layout made of drawn hands: the same folders, files, names, encodings, and the truth."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import made_up
import numpy as np
import scipy.io
from made_up import Truth

from handpose_jax import hand

SEQUENCES = tuple(f'B{n}{kind}' for n in range(1, 7) for kind in ('Counting', 'Random'))

# Source: the README of the data set. Pixels and millimetres; by OpenCV's names.
HEIGHT, WIDTH = 480, 640
BB = np.array([[822.79041, 0, 318.47345], [0, 822.79041, 250.31296], [0, 0, 1]])
SK = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
BASELINE = 120.054
RVEC = np.array([0.00531, -0.01196, 0.00301])
TVEC = np.array([-24.0381, -0.4563, -1.2326])

_FINGERS = ('little', 'ring', 'middle', 'index', 'thumb')
_MARGIN = 10
_SIZE = HEIGHT, WIDTH


def write(
    folder: Path,
    *,
    seed: int = 0,
    frames: Mapping[str, int] | None = None,
    sequences: Sequence[str] = SEQUENCES,
    cameras: Sequence[str] = ('BB_left', 'BB_right', 'SK'),
) -> dict[str, Truth]:
    """Writes `images` and `labels` into a folder.

    The hand of the stereo camera and that of the depth camera are different ones: nothing ties
    their frames together in the data set. Palm centres are put halfway between wrist and ring
    finger's base.

    Args:
        folder: receives them.
        seed: decides everything.
        frames: by sequence, 1 by default; SHP has 1,500 in each.
        sequences: to write.
        cameras: whose images to write; labels and truth are of all.

    Returns:
        By image_id the frames as each camera sees them.
    """
    truth: list[Truth] = []
    (folder / 'labels').mkdir(parents=True, exist_ok=True)
    for number, sequence in enumerate(sequences):
        rng = np.random.default_rng([seed, number])
        recorded = [_frame(rng) for _ in range((frames or {}).get(sequence, 1))]
        images = folder / 'images' / sequence
        images.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(recorded):
            truth += _write_images(images, index, frame, cameras, rng)
        for device, camera in (('BB', 'BB_left'), ('SK', 'SK')):
            hands = np.stack([_labelled(frame[camera] * 1000, device) for frame in recorded])
            # 3 x 21 x frames.
            scipy.io.savemat(
                folder / 'labels' / f'{sequence}_{device}.mat',
                {'handPara': hands.transpose(2, 1, 0)},
                do_compression=True,
            )
    return made_up.by_id(truth)


def _frame(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """By camera a hand in its frame, metres; it is in both pictures of the stereo camera."""
    right = np.zeros((1, 3))
    while right[:, 2].min() <= 0 or made_up.project(right, BB)[:, 0].min() <= _MARGIN:
        left = made_up.left_hand(rng, BB, _SIZE, (0.6, 0.8))
        right = left - (BASELINE / 1000, 0, 0)
    return {
        'BB_left': left,
        'BB_right': right,
        'SK': made_up.left_hand(rng, SK, _SIZE, (0.4, 0.6)),
    }


def _labelled(points: np.ndarray, device: str) -> np.ndarray:
    """Points in a camera's frame (millimetres, our order) as SHP labels them."""
    wrist, ring = points[hand.WRIST], points[hand.FINGERS['ring'][0]]
    order = [keypoint for finger in _FINGERS for keypoint in hand.FINGERS[finger]]
    labelled = np.concatenate([[(wrist + ring) / 2], points[order]])
    if device == 'BB':
        return labelled
    # From the colour camera to the depth sensor.
    rotation, _ = cv2.Rodrigues(RVEC)
    return labelled @ rotation.T + TVEC


def _write_images(
    folder: Path,
    index: int,
    frame: Mapping[str, np.ndarray],
    cameras: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[Truth]:
    """Writes the images of a frame, and tells the truth of all cameras."""
    for camera, points in frame.items():
        matrix = SK if camera == 'SK' else BB
        keypoints = made_up.project(points, matrix)
        image = folder / f'{"SK_color" if camera == "SK" else camera}_{index}.png'
        if camera in cameras:
            made_up.save(image, made_up.on_a_wall(rng, keypoints, _SIZE))
        yield Truth(
            image_id=f'{folder.name}/{camera}_{index}',
            split='test' if folder.name.startswith('B1') else 'train',
            image=image,
            keypoints=keypoints,
            # The palm's centre is no wrist.
            annotated=np.arange(hand.NUM_KEYPOINTS) != hand.WRIST,
            is_left=True,
            keypoints_3d=points,
            camera=matrix,
        )
    if 'SK' in cameras:
        # Depth in millimetres: red + 256 x green. Here everything is at the hand's distance.
        depth = round(1000 * float(frame['SK'][:, 2].mean()))
        bgr = np.full((HEIGHT, WIDTH, 3), (0, depth // 256, depth % 256), np.uint8)
        cv2.imwrite(str(folder / f'SK_depth_{index}.png'), bgr)
