"""Dexter+Object's layout made of drawn hands: the same folders, files, formats, and the truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from handpose_jax import hand
from handpose_jax.synthetic.drawing import posed

FOLDER = 'dexter+object'
SEQUENCES = ('Grasp1', 'Grasp2', 'Occlusion', 'Rigid', 'Pinch', 'Rotate')

# Source: the calibration that comes with the data set. Pixels and millimetres.
HEIGHT, WIDTH = 480, 640
COLOUR = np.array([[587.45209, 0, 325], [0, 600.67456, 249], [0, 0, 1]])
COLOUR_FROM_DEPTH = np.array(
    [
        [0.9999, 0.0034, 0.0161, 19.0473],
        [-0.0033, 1.0, -0.0079, -1.8514],
        [-0.0162, 0.0079, 0.9998, -4.7501],
    ]
)
DEPTH_HEIGHT, DEPTH_WIDTH = 240, 320
DEPTH = np.array([[224.502, 0, 160], [0, 230.494, 120], [0, 0, 1]])
NO_DEPTH = 32001

_SMALL = 8
_AROUND = 20


class Truth(NamedTuple):
    """A picture, in the order of handpose_jax.hand.

    Attributes:
        keypoints: f64[21 2], pixels of the colour image.
        keypoints_3d: f64[21 3], metres, in the colour camera's frame.
        annotated: bool[21], fingertips whose depth was measured.
    """

    keypoints: np.ndarray
    keypoints_3d: np.ndarray
    annotated: np.ndarray


def write(
    folder: Path, *, seed: int = 0, frames: Mapping[str, int] | None = None
) -> dict[str, list[Truth]]:
    """Writes the data set's folder, dexter+object, into a folder.

    The first picture of each sequence has all fingertips, the second lacks one, the third all but
    one, the fourth all.

    Args:
        folder: receives it.
        seed: decides everything.
        frames: by sequence, 2 by default.

    Returns:
        Of each sequence its pictures.
    """
    truth: dict[str, list[Truth]] = {}
    for number, sequence in enumerate(SEQUENCES):
        rng = np.random.default_rng([seed, number])
        place = folder / FOLDER / 'data' / sequence
        for name in ('annotations', 'color', 'depth'):
            (place / name).mkdir(parents=True, exist_ok=True)
        truth[sequence] = []
        lines: dict[int, list[str]] = {2: [], 3: []}
        for index in range((frames or {}).get(sequence, 2)):
            missing = {1: [int(rng.integers(5))], 2: [0, 1, 3, 4], 3: range(5)}.get(index % 4, [])
            truth[sequence].append(_frame(rng, place, index + 1, list(missing), lines))
        for dimensions, text in lines.items():
            path = place / 'annotations' / f'{sequence}{dimensions}D.txt'
            path.write_text(''.join(f'{line}\n' for line in text))
    return truth


def _frame(
    rng: np.random.Generator, place: Path, number: int, missing: list[int], lines: dict
) -> Truth:
    sample = posed.sample(
        rng,
        height=HEIGHT // _SMALL,
        width=WIDTH // _SMALL,
        camera=np.diag([1 / _SMALL, 1 / _SMALL, 1]) @ COLOUR,
        is_left=True,
        distance=(0.4, 0.6),
    )
    points = sample.keypoints_3d
    keypoints = _project(points, COLOUR)
    corners = points[:3] + rng.uniform(0.02, 0.05, (3, 3))
    annotated = np.zeros(hand.NUM_KEYPOINTS, bool)
    annotated[list(hand.FINGERTIPS)] = [tip not in missing for tip in range(5)]
    # Into the depth camera's frame: the inverse of the published map, which is no exact rotation.
    marked = 1000 * np.concatenate([points[list(hand.FINGERTIPS)], corners])
    depth = np.linalg.solve(COLOUR_FROM_DEPTH[:, :3], (marked - COLOUR_FROM_DEPTH[:, 3]).T).T
    pixels = _project(depth, DEPTH)
    depth[missing, 2] = NO_DEPTH
    lines[2].append(_line(pixels))
    # The annotations have x to the left and y up.
    lines[3].append(_line(depth * (-1, -1, 1)))
    picture = np.full((HEIGHT, WIDTH, 3), rng.integers(40, 200, 3), np.uint8)
    x0, y0 = np.maximum(np.floor(keypoints.min(axis=0)).astype(int) - _AROUND, 0).tolist()
    x1, y1 = np.ceil(keypoints.max(axis=0)).astype(int).tolist()
    cut = picture[y0 : y1 + _AROUND, x0 : x1 + _AROUND]
    height, width, _ = cut.shape
    cut[:] = posed.paint(rng, keypoints - (x0, y0), height=height, width=width)
    cv2.imwrite(str(place / 'color' / f'Color_{number:04d}.bmp'), picture[..., ::-1])
    # Everything at the hand's distance.
    distance = np.full(
        (DEPTH_HEIGHT, DEPTH_WIDTH), round(1000 * float(points[:, 2].mean())), np.uint16
    )
    cv2.imwrite(str(place / 'depth' / f'Depth_{number:04d}.png'), distance)
    return Truth(keypoints, points, annotated)


def _project(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    focal, centre = np.diag(camera)[:2], camera[:2, 2]
    return points[:, :2] / points[:, 2:] * focal + centre


def _line(points: np.ndarray) -> str:
    return ''.join(', '.join(f'{value:.6f}' for value in point) + '; ' for point in points)
