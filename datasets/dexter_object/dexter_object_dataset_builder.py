"""Dexter+Object: fingertips of left hands that handle a box (Sridhar et al. 2016).

Reads the folder that its authors publish; README.md beside this file tells what and where it is.
One split, test. Only the five fingertips are annotated.
"""

import argparse
import csv
import dataclasses
import functools
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import geometry, hand
from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.quarantine import BadRecord

NAME = 'dexter_object'
VERSION = '1'
ADVICE = (
    'download it from handtracker.mpi-inf.mpg.de/projects/RealtimeHO/dexter+object.htm (see '
    'datasets/dexter_object/README.md) and put it there'
)

SEQUENCES = ('Grasp1', 'Grasp2', 'Occlusion', 'Rigid', 'Pinch', 'Rotate')
# As lists of hand data sets have it; the folders hold 3,145 pictures, not all of them annotated.
_PUBLISHED = 3014
_HEIGHT, _WIDTH = 480, 640

# Source: the calibration that comes with the data set; pixels and millimetres.
_COLOUR = np.array([[587.45209, 0, 325], [0, 600.67456, 249], [0, 0, 1]])
_COLOUR_FROM_DEPTH = np.array(
    [
        [0.9999, 0.0034, 0.0161, 19.0473],
        [-0.0033, 1.0, -0.0079, -1.8514],
        [-0.0162, 0.0079, 0.9998, -4.7501],
    ]
)
_DEPTH = np.array([[224.502, 0, 160], [0, 230.494, 120], [0, 0, 1]])

# The annotations have x to the left and y up.
_AXES = np.array([-1.0, -1.0, 1.0])

# z is 32001 where the depth camera measured nothing; it measures to a few metres.
_NO_DEPTH = 32000.0

_FINGERS = tuple(hand.FINGERS)
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?')
_MAX_FILE = 64 * 2**20
_MILLIMETRES = 1000.0

# An error of the calibration moves points by some pixels; another frame or order by many.
_MAX_DISAGREEMENT = 20.0

# The tight box of a relaxed hand's 21 keypoints, of which only the tips are known here.
_HAND_SIZE = 150.0


class Frame(NamedTuple):
    """An annotated picture.

    Attributes:
        sequence: one of SEQUENCES.
        number: of the picture and of the line in the annotations, from 1.
        tips: f64[5 3], thumb to little finger, in the depth camera's frame: x right, y down, z
            forward; millimetres.
        annotated: bool[5].
    """

    sequence: str
    number: int
    tips: Float[np.ndarray, '5 3']
    annotated: Bool[np.ndarray, '5']

    @property
    def image(self) -> str:
        """Path of the picture, below the folder of the sequences."""
        return f'{self.sequence}/color/Color_{self.number:04d}.bmp'


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        frames: with one annotated fingertip or more.
        report: for people, a line for each sequence.
    """

    frames: tuple[Frame, ...]
    report: str


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """The record of a number.

    Attributes:
        folder: holds the folders of the sequences.
        boxes: file of boxes around the hands; '' for boxes by the fingertips.
    """

    folder: str
    boxes: str

    def __call__(self, index: int) -> prepared.Example:
        frame = read(self.folder).frames[index]
        path = _annotation_path(self.folder, frame.sequence, 3)
        record = f'{frame.sequence}/Color_{frame.number:04d}'
        points = frame.tips @ _COLOUR_FROM_DEPTH[:, :3].T + _COLOUR_FROM_DEPTH[:, 3]
        known = points[frame.annotated]
        if not (known[:, 2] > 0).all():
            raise BadRecord(
                file=path,
                record=f'line {frame.number}',
                field='z',
                expected='fingertips before the colour camera',
                got=f'{known[known[:, 2].argmin()].tolist()} mm',
            )
        # What is not known has no better guess in 3D.
        points_3d = np.tile(known.mean(axis=0), (hand.NUM_KEYPOINTS, 1))
        annotated = np.zeros(hand.NUM_KEYPOINTS, bool)
        for tip, keypoint in enumerate(hand.FINGERTIPS):
            annotated[keypoint] = frame.annotated[tip]
            if frame.annotated[tip]:
                points_3d[keypoint] = points[tip]
        projected = points_3d @ _COLOUR.T
        keypoints = projected[:, :2] / projected[:, 2:]
        return records.make_record(
            image=Path(self.folder) / frame.image,
            file=path,
            record=record,
            keypoints=keypoints,
            annotated=annotated,
            is_left=True,
            image_id=record,
            box=_box(self.boxes, frame, keypoints, annotated, float(np.median(known[:, 2]))),
            keypoints_3d=points_3d / _MILLIMETRES,
            camera=_COLOUR,
            size=(_HEIGHT, _WIDTH),
        )


def _box(
    boxes: str,
    frame: Frame,
    keypoints: Float[np.ndarray, '21 2'],
    annotated: Bool[np.ndarray, '21'],
    distance: float,
) -> Float[np.ndarray, '4']:
    if boxes:
        given = _read_boxes(boxes)
        if frame.image not in given:
            raise BadRecord(
                file=boxes,
                record=frame.image,
                field='img_name',
                expected='a box for each annotated picture',
                got='none',
            )
        return given[frame.image]
    tight = geometry.keypoint_box(keypoints, annotated)
    hand_side = _HAND_SIZE * float(np.diag(_COLOUR)[:2].mean()) / distance
    middle = (tight[:2] + tight[2:]) / 2
    half = max(geometry.longest_side(tight), hand_side) / 2
    return np.concatenate([middle - half, middle + half])


def _annotation_path(folder: str | Path, sequence: str, dimensions: int) -> Path:
    """The file of a sequence's annotations in 2 or 3 dimensions."""
    return Path(folder) / sequence / 'annotations' / f'{sequence}{dimensions}D.txt'


def _read_points(path: Path, dimensions: int) -> Float[np.ndarray, 'n 5 d']:
    """Reads annotations: a line for each picture, points ended by ';', their numbers by ','.

    The five fingertips come first, from thumb to little finger; three corners of the box follow
    and are not read.

    Args:
        path: of the file.
        dimensions: numbers of a point.

    Returns:
        As they are in the file; empty lines at its end are not counted.

    Raises:
        BadRecord: naming the line and the finger.
        ValueError: if the file is missing or no text.
    """
    try:
        with path.open('rb') as file:
            data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise ValueError(f'{path}: expected annotations of at most {_MAX_FILE:,} bytes')
        lines = data.decode('ascii').rstrip().split('\n')
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error.strerror}); {ADVICE}') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: expected text, got other bytes ({error}); {ADVICE}') from error
    points = np.zeros((len(lines), len(_FINGERS), dimensions))
    for number, line in enumerate(lines):
        entries = line.split(';')
        if len(entries) < len(_FINGERS):
            raise BadRecord(
                file=path,
                record=f'line {number + 1}',
                field='points',
                expected=f"{len(_FINGERS)} fingertips or more, with ';' between them",
                got=f'{len(entries)} in {line[:80]!r}',
            )
        for finger, entry in enumerate(entries[: len(_FINGERS)]):
            values = [value.strip() for value in entry.split(',')]
            if len(values) != dimensions or not all(map(_NUMBER.fullmatch, values)):
                raise BadRecord(
                    file=path,
                    record=f'line {number + 1}',
                    field=f'{_FINGERS[finger]} tip',
                    expected=f"{dimensions} numbers with ',' between them",
                    got=repr(entry[:80]),
                )
            points[number, finger] = list(map(float, values))
    return points


@functools.cache
def read(folder: str) -> Found:
    """Reads the annotations of all sequences.

    Raises:
        ValueError: for annotations or pictures that are missing or damaged; for annotations in 2D
            and 3D that do not belong together.
    """
    frames: list[Frame] = []
    report = []
    for sequence in SEQUENCES:
        path = _annotation_path(folder, sequence, 3)
        points = _read_points(path, 3)
        images = _last_image(Path(folder) / sequence / 'color')
        # Without a depth there is no point in 3D, whatever is written.
        annotated = (points[:, :, 2] > 0) & (points[:, :, 2] < _NO_DEPTH)
        usable = np.asarray(annotated.any(axis=1))
        usable[images:] = False
        tips = points * _AXES
        frames += [
            Frame(sequence, line + 1, tips[line], annotated[line])
            for line in np.flatnonzero(usable).tolist()
        ]
        compared = _compare(_annotation_path(folder, sequence, 2), tips, annotated)
        report.append(
            f'  {sequence}: {usable.sum():,} pictures used of {images:,}, for which there are '
            f'{len(points):,} lines; {annotated[usable].sum():,} fingertips; {compared}'
        )
    if not frames:
        raise ValueError(f'{folder}: expected annotated fingertips, got none; {ADVICE}')
    return Found(tuple(frames), '\n'.join(report))


def _last_image(folder: Path) -> int:
    numbers = [
        int(match[1])
        for path in folder.glob('Color_*.bmp')
        if (match := re.fullmatch(r'Color_(\d{4,6})\.bmp', path.name))
    ]
    if not numbers:
        raise ValueError(
            f'{folder}: expected pictures, Color_0001.bmp and so on, got none; {ADVICE}'
        )
    return max(numbers)


def _compare(
    path: Path, tips: Float[np.ndarray, 'n 5 3'], annotated: Bool[np.ndarray, 'n 5']
) -> str:
    """How the annotations in 3D agree with those in 2D, which are in the depth image.

    Raises:
        ValueError: if they cannot belong together.
    """
    if not path.exists():
        return f'not compared with {path.name}, which is missing'
    pixels = _read_points(path, 2)
    if len(pixels) != len(tips):
        raise ValueError(
            f'{path}: expected {len(tips)} lines, as there are in 3D, got {len(pixels)}; {ADVICE}'
        )
    if not annotated.any():
        return 'no fingertips'
    projected = tips[annotated] @ _DEPTH.T
    offsets = projected[:, :2] / projected[:, 2:] - pixels[annotated]
    distances = np.linalg.norm(offsets, axis=1)
    if np.median(distances) > _MAX_DISAGREEMENT:
        raise ValueError(
            f'{path}: expected fingertips where those in 3D project to in the depth image, got '
            f'others: {np.median(distances):.0f} px away (median). These annotations are of '
            'another version of the data set than is understood here'
        )
    x, y = np.median(offsets, axis=0)
    far = int((distances > _MAX_DISAGREEMENT).sum())
    return (
        f'in the depth image they project to ({x:+.1f}, {y:+.1f}) px of where they were marked '
        f'(median); {far} to more than {_MAX_DISAGREEMENT:g} px away'
    )


@functools.cache
def _read_boxes(path: str) -> dict[str, Float[np.ndarray, '4']]:
    """Reads boxes around hands: a CSV file with the columns img_name, x, y, w, h.

    Returns:
        By the pictures' names, such as Grasp1/color/Color_0001.bmp: x0, y0, x1, y1, pixels.

    Raises:
        BadRecord: naming line and column.
        ValueError: if the file cannot be read.
    """
    boxes = {}
    try:
        with open(path, newline='', encoding='utf-8') as file:
            rows = csv.DictReader(file)
            for row in rows:
                record = f'line {rows.line_num}'
                values = []
                for column in ('x', 'y', 'w', 'h'):
                    text = (row.get(column) or '').strip()
                    if not _NUMBER.fullmatch(text):
                        raise BadRecord(
                            file=path,
                            record=record,
                            field=column,
                            expected='a number',
                            got=repr(text),
                        )
                    values.append(float(text))
                name = row.get('img_name') or ''
                if not name or name in boxes:
                    raise BadRecord(
                        file=path,
                        record=record,
                        field='img_name',
                        expected='the name of a picture, once',
                        got=repr(name),
                    )
                x, y, width, height = values
                boxes[name] = np.array([x, y, x + width, y + height])
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'--boxes {path}: cannot be read ({error})') from error
    return boxes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py dexter_object` understands."""
    records.add_arguments(parser)
    parser.add_argument(
        '--boxes',
        default='',
        help='CSV of boxes around the hands: img_name, x, y, w, h; default: by the fingertips',
    )


def splits(folder: Path, *, boxes: str = '') -> dict[str, prepared.Split]:
    """The split of the unpacked data set.

    Args:
        folder: holds the folders of the sequences.
        boxes: file of boxes; '' for boxes by the fingertips.

    Raises:
        ValueError: for files that are missing or damaged.
    """
    if boxes:
        _read_boxes(boxes)
    return {
        'test': prepared.Split(
            records=len(read(str(folder)).frames),
            make=MakeExample(str(folder), boxes),
            published=_PUBLISHED,
            evaluation=True,
        )
    }


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the data set."""
    folder = Path(arguments.manual_dir)
    if not (folder / 'data').is_dir():
        archives = ('dexter+object.zip', 'dexter+object.tar.gz')
        folder = records.find(folder, 'dexter+object', archives, advice=ADVICE)
    found = splits(folder / 'data', boxes=arguments.boxes)
    print(read(str(folder / 'data')).report, flush=True)
    boxes = arguments.boxes and hashlib.sha256(Path(arguments.boxes).read_bytes()).hexdigest()
    records.prepare(
        NAME,
        VERSION,
        arguments,
        found,
        description='Dexter+Object (Sridhar et al. 2016), fingertips.',
        settings={'boxes': boxes},
        with_3d=True,
    )
