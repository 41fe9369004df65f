"""Dexter+Object's layout made of drawn hands: the same folders, files, formats, and the truth."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import made_up
import numpy as np
from made_up import Truth

from handpose_jax import hand

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


def write(
    folder: Path, *, seed: int = 0, frames: Mapping[str, int] | None = None
) -> dict[str, Truth]:
    """Writes the data set's folder, dexter+object, into a folder.

    The first picture of each sequence has all fingertips, the second lacks one, the third all but
    one, the fourth all.

    Args:
        folder: receives it.
        seed: decides everything.
        frames: by sequence, 2 by default.

    Returns:
        By image_id the pictures, whether or not they have a fingertip.
    """
    truth: list[Truth] = []
    for number, sequence in enumerate(SEQUENCES):
        rng = np.random.default_rng([seed, number])
        place = folder / FOLDER / 'data' / sequence
        for name in ('annotations', 'color', 'depth'):
            (place / name).mkdir(parents=True, exist_ok=True)
        lines: dict[int, list[str]] = {2: [], 3: []}
        for index in range((frames or {}).get(sequence, 2)):
            missing = {1: [int(rng.integers(5))], 2: [0, 1, 3, 4], 3: range(5)}.get(index % 4, [])
            truth.append(_frame(rng, place, index + 1, list(missing), lines))
        for dimensions, text in lines.items():
            path = place / 'annotations' / f'{sequence}{dimensions}D.txt'
            path.write_text(''.join(f'{line}\n' for line in text))
    return made_up.by_id(truth)


def _frame(
    rng: np.random.Generator, place: Path, number: int, missing: list[int], lines: dict
) -> Truth:
    size = HEIGHT, WIDTH
    points = made_up.left_hand(rng, COLOUR, size, (0.4, 0.6))
    keypoints = made_up.project(points, COLOUR)
    corners = points[:3] + rng.uniform(0.02, 0.05, (3, 3))
    annotated = np.zeros(hand.NUM_KEYPOINTS, bool)
    annotated[list(hand.FINGERTIPS)] = [tip not in missing for tip in range(5)]
    # Into the depth camera's frame: the inverse of the published map, which is no exact rotation.
    marked = 1000 * np.concatenate([points[list(hand.FINGERTIPS)], corners])
    depth = np.linalg.solve(COLOUR_FROM_DEPTH[:, :3], (marked - COLOUR_FROM_DEPTH[:, 3]).T).T
    pixels = made_up.project(depth, DEPTH)
    depth[missing, 2] = NO_DEPTH
    lines[2].append(_line(pixels))
    # The annotations have x to the left and y up.
    lines[3].append(_line(depth * (-1, -1, 1)))
    name = f'Color_{number:04d}'
    image = place / 'color' / f'{name}.bmp'
    made_up.save(image, made_up.on_a_wall(rng, keypoints, size))
    # Everything at the hand's distance.
    distance = np.full(
        (DEPTH_HEIGHT, DEPTH_WIDTH), round(1000 * float(points[:, 2].mean())), np.uint16
    )
    cv2.imwrite(str(place / 'depth' / f'Depth_{number:04d}.png'), distance)
    return Truth(
        f'{place.name}/{name}',
        'test',
        image,
        keypoints,
        annotated,
        True,
        keypoints_3d=points,
        camera=COLOUR,
    )


def _line(points: np.ndarray) -> str:
    return ''.join(', '.join(f'{value:.6f}' for value in point) + '; ' for point in points)
