"""SHP, or STB: a left hand before six backgrounds, seen by three cameras (Zhang et al. 2016).

Reads the folders that its authors publish; README.md beside this file tells what and where they
are. Splits: train (B2 to B6) and test (B1).
"""

import argparse
import bisect
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from handpose_jax import hand
from handpose_jax.data import prepared
from handpose_jax.data.conversion import matfiles, records
from handpose_jax.data.quarantine import BadRecord

NAME = 'shp'
VERSION = '1'
ADVICE = (
    'download images and labels from github.com/zhjwustc/icip17_stereo_hand_pose_dataset (see '
    'datasets/shp/README.md) and put them there'
)

CAMERAS = ('BB_left', 'BB_right', 'SK')
WRISTS = ('masked', 'extrapolated')

# Source: the README of the data set; B1 for evaluation as in Zimmermann and Brox 2017, section 6.
SEQUENCES = {
    'train': tuple(f'B{n}{kind}' for n in range(2, 7) for kind in ('Counting', 'Random')),
    'test': ('B1Counting', 'B1Random'),
}
FRAMES = 1500
_HEIGHT, _WIDTH = 480, 640

# Source: the README of the data set, "Camera parameters". Pixels and millimetres.
_BB = np.array([[822.79041, 0, 318.47345], [0, 822.79041, 250.31296], [0, 0, 1]])
_BASELINE = 120.054
_SK = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
_SK_ROTATION_VECTOR = (0.00531, -0.01196, 0.00301)
_SK_TRANSLATION = np.array([-24.0381, -0.4563, -1.2326])

# The palm centre, then the little finger, ring, middle, index finger and the thumb, each from its
# base to its tip. Source: the README of the data set, "labels".
_PALM = 0
_SHP_INDEX = (
    _PALM,
    *(first + joint for first in (17, 13, 9, 5, 1) for joint in range(4)),
)
"""For each of our keypoints its place in SHP; the palm centre in place of the wrist."""

_RING_BASE = hand.FINGERS['ring'][0]

_MILLIMETRES = 1000.0


class Recording(NamedTuple):
    """A sequence of one split.

    Attributes:
        name: such as 'B1Counting'.
        images: folder of its images.
        frames: how many.
    """

    name: str
    images: str
    frames: int


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """The record of a number: frame by frame, and in each the cameras in their order.

    Attributes:
        labels: folder of the .mat files.
        sequences: of the split.
        cameras: of CAMERAS.
        wrist: one of WRISTS.
    """

    labels: str
    sequences: tuple[Recording, ...]
    cameras: tuple[str, ...]
    wrist: str

    def __call__(self, index: int) -> prepared.Example:
        position, number = divmod(index, len(self.cameras))
        camera = self.cameras[number]
        ends = np.cumsum([sequence.frames for sequence in self.sequences]).tolist()
        place = bisect.bisect_right(ends, position)
        sequence = self.sequences[place]
        frame = position - (ends[place] - sequence.frames)
        path = _label_path(self.labels, sequence.name, camera)
        points, matrix = _in_camera(_labels(path)[frame][list(_SHP_INDEX)], camera)
        record = f'{sequence.name}/{camera}_{frame}'
        if not (points[:, 2] > 0).all():
            lowest = int(points[:, 2].argmin())
            raise BadRecord(
                file=path,
                record=record,
                field='handPara',
                expected='joints before the camera, z > 0',
                got=f'{points[lowest].tolist()} mm for joint {_SHP_INDEX[lowest]}',
            )
        points[hand.WRIST] = _extrapolated_wrist(points)
        annotated = np.ones(hand.NUM_KEYPOINTS, bool)
        annotated[hand.WRIST] = self.wrist == 'extrapolated'
        prefix = 'SK_color' if camera == 'SK' else camera
        return records.make_record(
            image=Path(sequence.images) / f'{prefix}_{frame}.png',
            file=path,
            record=record,
            keypoints=_project(points, matrix),
            annotated=annotated,
            is_left=True,
            image_id=record,
            keypoints_3d=points / _MILLIMETRES,
            camera=matrix,
            size=(_HEIGHT, _WIDTH),
        )


def _label_path(labels: str | Path, sequence: str, camera: str) -> str:
    """The file with a sequence's labels for a camera."""
    return str(Path(labels) / f'{sequence}_{camera[:2]}.mat')


@functools.cache
def _labels(path: str) -> Float[np.ndarray, 'n 21 3']:
    """All labels of a file, in its own order, millimetres."""
    return matfiles.read_array(path, 'handPara', (3, hand.NUM_KEYPOINTS, None)).transpose(2, 1, 0)


def _in_camera(
    points: Float[np.ndarray, '21 3'], camera: str
) -> tuple[Float[np.ndarray, '21 3'], Float[np.ndarray, '3 3']]:
    """Moves labels into the frame of a camera's images.

    Labels of the stereo camera are in the frame of its left one; those of the depth camera in the
    frame of the depth sensor, where x_depth = R x_colour + t.

    Args:
        points: as labelled, millimetres.
        camera: one of CAMERAS.

    Returns:
        Points in the camera's frame (x right, y down, z forward; millimetres), and its intrinsic
        matrix.
    """
    if camera == 'SK':
        depth_from_colour = Rotation.from_rotvec(_SK_ROTATION_VECTOR)
        return depth_from_colour.apply(points - _SK_TRANSLATION, inverse=True), _SK
    offset = _BASELINE if camera == 'BB_right' else 0.0
    return points - np.array([offset, 0.0, 0.0]), _BB


def _extrapolated_wrist(points: Float[np.ndarray, '21 3']) -> Float[np.ndarray, '3']:
    """A guess of the wrist: the palm centre, moved away from the ring finger's base once more.

    Args:
        points: in the order of handpose_jax.hand, the palm centre in place of the wrist.
    """
    return points[_RING_BASE] + 2 * (points[hand.WRIST] - points[_RING_BASE])


def _project(
    points: Float[np.ndarray, '21 3'], camera: Float[np.ndarray, '3 3']
) -> Float[np.ndarray, '21 2']:
    projected = points @ camera.T
    return projected[:, :2] / projected[:, 2:]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py shp` understands."""
    records.add_arguments(parser)
    parser.add_argument(
        '--cameras',
        nargs='+',
        choices=CAMERAS,
        default=['BB_left', 'BB_right'],
        help='of the split train: 15,000 records each',
    )
    parser.add_argument(
        '--test_cameras',
        nargs='+',
        choices=CAMERAS,
        default=['BB_left'],
        help='of the split test: 3,000 records each',
    )
    parser.add_argument(
        '--wrist',
        choices=WRISTS,
        default='masked',
        help='SHP has the palm centre in its place: not annotated, or extrapolated from it',
    )


def splits(
    folder: Path,
    *,
    cameras: Sequence[str] = ('BB_left', 'BB_right'),
    test_cameras: Sequence[str] = ('BB_left',),
    wrist: str = 'masked',
) -> dict[str, prepared.Split]:
    """The splits of the data set.

    Args:
        folder: what the user downloaded: `labels` with the .mat files, and `images` with a folder
            for each sequence; or any of them as zip.
        cameras: of CAMERAS, for train.
        test_cameras: of CAMERAS, for test.
        wrist: one of WRISTS.

    Raises:
        ValueError: for a sequence that is missing, or labels that are missing or damaged.
    """
    labels = records.find(folder, 'labels', ('labels.zip',), advice=ADVICE)
    found = {}
    for split, names in SEQUENCES.items():
        chosen = tuple(dict.fromkeys(cameras if split == 'train' else test_cameras))
        make = MakeExample(
            str(labels),
            tuple(_sequence(folder, labels, name, chosen) for name in names),
            chosen,
            wrist,
        )
        found[split] = prepared.Split(
            records=len(chosen) * sum(sequence.frames for sequence in make.sequences),
            make=make,
            published=len(chosen) * len(names) * FRAMES,
            evaluation=split == 'test',
        )
    return found


def _sequence(folder: Path, labels: Path, name: str, cameras: Sequence[str]) -> Recording:
    counts = {
        path: len(_labels(path))
        for path in (_label_path(labels, name, camera) for camera in cameras)
    }
    if len(set(counts.values())) > 1:
        raise ValueError(
            f'{name}: expected labels of as many frames for each camera, got '
            + ', '.join(f'{count} in {path}' for path, count in counts.items())
        )
    return Recording(name, str(_images(folder, name)), next(iter(counts.values())))


def _images(folder: Path, name: str) -> Path:
    """The folder of a sequence's images: in `images`, or beside it where it was unpacked so."""
    archive = f'{name}.zip'
    if (folder / name).is_dir() or (folder / archive).is_file():
        return records.find(folder, name, (archive,), advice=ADVICE)
    images = records.find(folder, 'images', ('images.zip',), advice=ADVICE)
    return records.find(images, name, (archive,), advice=ADVICE)


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the data set."""
    records.prepare(
        NAME,
        VERSION,
        arguments,
        splits(
            Path(arguments.manual_dir),
            cameras=arguments.cameras,
            test_cameras=arguments.test_cameras,
            wrist=arguments.wrist,
        ),
        description='SHP / STB, stereo hand pose tracking benchmark (Zhang et al. 2016).',
        settings={
            'cameras': arguments.cameras,
            'test_cameras': arguments.test_cameras,
            'wrist': arguments.wrist,
        },
        with_3d=True,
    )
