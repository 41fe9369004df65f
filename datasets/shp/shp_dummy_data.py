"""SHP's layout made of drawn hands: the same folders, files, names, encodings, and the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

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
_AROUND = 20
_SMALL = 8


class Truth(NamedTuple):
    """A frame, in the order of handpose_jax.hand; by camera: BB_left, BB_right, SK.

    Attributes:
        keypoints: f64[21 2], pixels of the camera's image.
        keypoints_3d: f64[21 3], metres in the camera's frame.
    """

    keypoints: dict[str, np.ndarray]
    keypoints_3d: dict[str, np.ndarray]


def write(
    folder: Path,
    *,
    seed: int = 0,
    frames: Mapping[str, int] | None = None,
    sequences: Sequence[str] = SEQUENCES,
    cameras: Sequence[str] = ('BB_left', 'BB_right', 'SK'),
) -> dict[str, list[Truth]]:
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
        Of each sequence its frames.
    """
    truth: dict[str, list[Truth]] = {}
    (folder / 'labels').mkdir(parents=True, exist_ok=True)
    for number, sequence in enumerate(sequences):
        rng = np.random.default_rng([seed, number])
        truth[sequence] = [_frame(rng) for _ in range((frames or {}).get(sequence, 1))]
        images = folder / 'images' / sequence
        images.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(truth[sequence]):
            _write_images(images, index, frame, cameras, rng)
        for device, camera in (('BB', 'BB_left'), ('SK', 'SK')):
            hands = np.stack(
                [_labelled(frame.keypoints_3d[camera] * 1000, device) for frame in truth[sequence]]
            )
            # 3 x 21 x frames.
            scipy.io.savemat(
                folder / 'labels' / f'{sequence}_{device}.mat',
                {'handPara': hands.transpose(2, 1, 0)},
                do_compression=True,
            )
    return truth


def _frame(rng: np.random.Generator) -> Truth:
    left, depth = _in_both(rng), _hand(rng, SK, (0.4, 0.6))
    right = left - (BASELINE / 1000, 0, 0)
    return Truth(
        {
            'BB_left': _project(left, BB),
            'BB_right': _project(right, BB),
            'SK': _project(depth, SK),
        },
        {'BB_left': left, 'BB_right': right, 'SK': depth},
    )


def _in_both(rng: np.random.Generator) -> np.ndarray:
    """A hand that is in the pictures of both halves of the stereo camera."""
    while True:
        left = _hand(rng, BB, (0.6, 0.8))
        if _project(left - (BASELINE / 1000, 0, 0), BB)[:, 0].min() > _MARGIN:
            return left


def _hand(
    rng: np.random.Generator, camera: np.ndarray, distance: tuple[float, float]
) -> np.ndarray:
    """Keypoints in a camera's frame, metres; its drawing is thrown away, so it is a small one."""
    sample = posed.sample(
        rng,
        height=HEIGHT // _SMALL,
        width=WIDTH // _SMALL,
        camera=np.diag([1 / _SMALL, 1 / _SMALL, 1]) @ camera,
        is_left=True,
        distance=distance,
    )
    return sample.keypoints_3d


def _project(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    focal, centre = np.diag(camera)[:2], camera[:2, 2]
    return points[:, :2] / points[:, 2:] * focal + centre


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
    folder: Path, index: int, frame: Truth, cameras: Sequence[str], rng: np.random.Generator
) -> None:
    for camera in cameras:
        picture = _paint(rng, frame.keypoints[camera])
        name = 'SK_color' if camera == 'SK' else camera
        cv2.imwrite(str(folder / f'{name}_{index}.png'), picture[..., ::-1])
    if 'SK' in cameras:
        # Depth in millimetres: red + 256 x green. Here everything is at the hand's distance.
        depth = round(1000 * float(frame.keypoints_3d['SK'][:, 2].mean()))
        bgr = np.full((HEIGHT, WIDTH, 3), (0, depth // 256, depth % 256), np.uint8)
        cv2.imwrite(str(folder / f'SK_depth_{index}.png'), bgr)


def _paint(rng: np.random.Generator, keypoints: np.ndarray) -> np.ndarray:
    """The hand on a plain wall; only what is around it takes time."""
    picture = np.full((HEIGHT, WIDTH, 3), rng.integers(40, 200, 3), np.uint8)
    x0, y0 = np.maximum(np.floor(keypoints.min(axis=0)).astype(int) - _AROUND, 0).tolist()
    x1, y1 = np.ceil(keypoints.max(axis=0)).astype(int).tolist()
    cut = picture[y0 : y1 + _AROUND, x0 : x1 + _AROUND]
    height, width, _ = cut.shape
    cut[:] = posed.paint(rng, keypoints - (x0, y0), height=height, width=width)
    return picture
