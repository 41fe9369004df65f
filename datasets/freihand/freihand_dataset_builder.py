"""FreiHAND: photographs of right hands with 3D keypoints, most before a green screen.

Expects, in --manual_dir, FreiHAND_pub_v2.zip (splits train, val and test), FreiHAND_pub_v2_eval.zip
(split evaluation) or both, packed or unpacked. README.md beside this file
says where they are, what is in them, and how far that was checked.

Source: Zimmermann et al. 2019; the splits are the tutorial's (Chernytska 2021).
"""

import argparse
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from handpose_jax import hand
from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.quarantine import BadRecord

VERSION = '1'

ADVICE = (
    'download FreiHAND_pub_v2.zip, FreiHAND_pub_v2_eval.zip or both; '
    'datasets/freihand/README.md says where'
)

NUM_VERSIONS = 4
"""Each training photograph comes as taken, then with three other backgrounds."""

NUM_LABELS = 32_560
BOUNDS = {'train': (0, 26_000), 'val': (26_000, 31_000), 'test': (31_000, 32_560)}
"""First label of a split, and first after it. All versions of a label share a split.

Source: the tutorial's code.
"""

NUM_EVALUATION = 3_960

_ROOT, _ARCHIVE = 'FreiHAND_pub_v2', 'FreiHAND_pub_v2.zip'
_EVAL_ROOT, _EVAL_ARCHIVE = 'FreiHAND_pub_v2_eval', 'FreiHAND_pub_v2_eval.zip'

# The largest of the files that are read has some 40 MB.
_MAX_BYTES = 512 * 2**20

# A camera's has the product of the focal lengths, some 200,000 square pixels.
_MIN_DETERMINANT = 1e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py freihand` understands."""
    records.add_arguments(parser)
    parser.add_argument(
        '--versions',
        choices=('raw', 'all'),
        default='raw',
        help='training photographs as taken, which the tutorial uses, or all four of each',
    )


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the parts that are there."""
    found = splits(arguments.manual_dir, versions=arguments.versions)
    if 'train' not in found:
        print(f'{_ROOT}: not in {arguments.manual_dir}, so there will be no train, val and test')
    elif (labels := sum(found[split].records for split in BOUNDS)) not in (
        NUM_LABELS,
        NUM_LABELS * NUM_VERSIONS,
    ):
        print(
            f'{labels:,} photographs, not {NUM_LABELS:,} or four times as many: train, val and '
            'test are cut in proportion'
        )
    if 'evaluation' not in found:
        print(
            f'evaluation_xyz.json: not in {arguments.manual_dir}, so there will be no evaluation; '
            f'it is in {_EVAL_ARCHIVE}'
        )
    records.prepare(
        'freihand',
        VERSION,
        arguments,
        found,
        description='FreiHAND, Zimmermann et al. 2019',
        settings={'versions': arguments.versions},
        with_3d=True,
    )


def splits(folder: str | os.PathLike[str], *, versions: str = 'raw') -> dict[str, prepared.Split]:
    """The splits of the parts that are in a folder.

    Args:
        folder: what the user gives as --manual_dir.
        versions: 'raw' or 'all', see add_arguments.

    Raises:
        ValueError: if there is no part, or one is damaged as a whole.
    """
    training = _find(Path(folder), 'training_xyz.json', _ROOT, _ARCHIVE)
    evaluation = _find(Path(folder), 'evaluation_xyz.json', _EVAL_ROOT, _EVAL_ARCHIVE)
    if evaluation is None and training is not None:
        # Some people unpack both archives into one folder.
        evaluation = training if (training / 'evaluation_xyz.json').is_file() else None
    if training is None and evaluation is None:
        raise ValueError(f'--manual_dir {folder}: no part of FreiHAND is there; {ADVICE}')
    found = {}
    if training is not None:
        count = NUM_VERSIONS if versions == 'all' else 1
        labels = _count(training, 'training')
        if versions == 'all':
            _check_blocks(training, labels)
        for split, bounds in BOUNDS.items():
            # In proportion, so that made-up data have all splits too.
            first, end = (bound * labels // NUM_LABELS for bound in bounds)
            found[split] = prepared.Split(
                (end - first) * count,
                FreiHand(str(training), 'training', first=first, end=end, labels=labels),
                published=(bounds[1] - bounds[0]) * count,
                evaluation=split == 'test',
            )
    if evaluation is not None:
        labels = _count(evaluation, 'evaluation')
        found['evaluation'] = prepared.Split(
            labels,
            FreiHand(str(evaluation), 'evaluation', first=0, end=labels, labels=labels),
            published=NUM_EVALUATION,
            evaluation=True,
        )
    return found


@dataclasses.dataclass(frozen=True)
class FreiHand:
    """From a number to a record.

    Attributes:
        folder: holds <part>_xyz.json, <part>_K.json and <part>/rgb.
        part: 'training' or 'evaluation'.
        first: label of the first record.
        end: first label after the last one.
        labels: how many the part has; image i has the label i mod labels.
    """

    folder: str
    part: str
    first: int
    end: int
    labels: int

    def __call__(self, index: int) -> prepared.Example:
        version, offset = divmod(index, self.end - self.first)
        label = self.first + offset
        number = version * self.labels + label
        file = Path(self.folder) / f'{self.part}_xyz.json'
        xyz = self._value('xyz', label, (hand.NUM_KEYPOINTS, 3))
        camera = self._value('K', label, (3, 3))
        if not abs(np.linalg.det(camera)) > _MIN_DETERMINANT:
            raise self._bad('K', label, 'a matrix that can be inverted', camera.tolist())
        projected = xyz @ camera.T
        behind = ~(projected[:, 2] > 0)
        if behind.any():
            row = int(np.argmax(behind))
            raise self._bad(
                'xyz',
                label,
                'keypoints in front of the camera',
                f'{xyz[row].tolist()} for keypoint {row} ({hand.KEYPOINT_NAMES[row]})',
            )
        return records.make_record(
            image=Path(self.folder) / self.part / 'rgb' / f'{number:08d}.jpg',
            file=file,
            record=label,
            keypoints=projected[:, :2] / projected[:, 2:],
            annotated=np.ones(hand.NUM_KEYPOINTS, bool),
            is_left=False,
            image_id=f'{self.part}/{number:08d}',
            keypoints_3d=xyz,
            camera=camera,
        )

    def _value(self, field: str, label: int, shape: tuple[int, ...]) -> np.ndarray:
        file = _file(self.folder, self.part, field)

        def bad(field: str, expected: str, got: Any) -> BadRecord:
            return self._bad(field, label, expected, got)

        return records.numbers(field, _table(file, shape)[label], shape, bad, finite=True)

    def _bad(self, field: str, label: int, expected: str, got: Any) -> BadRecord:
        file = _file(self.folder, self.part, field)
        return BadRecord(file=file, record=label, field=field, expected=expected, got=got)


def _find(given: Path, file: str, root: str, archive: str) -> Path | None:
    if (given / file).is_file():
        return given
    if (given / root).is_dir() or (given / archive).is_file():
        folder = records.find(given, root, (archive,), advice=ADVICE)
        if not (folder / file).is_file():
            raise ValueError(f'{folder}: expected {file} in it; unpack {archive} again')
        return folder
    return None


def _count(folder: Path, part: str) -> int:
    """How many labels a part has, by all its tables."""
    shapes = {'xyz': (hand.NUM_KEYPOINTS, 3), 'K': (3, 3)}
    counts = {
        field: len(_table(_file(folder, part, field), shape)) for field, shape in shapes.items()
    }
    if len(set(counts.values())) != 1 or 0 in counts.values():
        listed = ' and '.join(
            f'{count:,} in {part}_{field}.json' for field, count in counts.items()
        )
        raise ValueError(
            f'{folder}: expected a record in each of the two tables for every hand, got {listed}; '
            'unpack the archive again'
        )
    return counts['xyz']


def _check_blocks(folder: Path, labels: int) -> None:
    """Whether the versions follow each other in blocks of as many images as there are labels."""
    rgb, total = folder / 'training' / 'rgb', NUM_VERSIONS * labels
    if not (rgb / f'{total - 1:08d}.jpg').is_file() or (rgb / f'{total:08d}.jpg').is_file():
        raise ValueError(
            f'{rgb}: expected {total:,} images, four for each of the {labels:,} records of '
            f'training_xyz.json, so that the last is {total - 1:08d}.jpg; unpack the archive '
            'again, or give --versions raw'
        )


def _file(folder: str | Path, part: str, field: str) -> str:
    return str(Path(folder) / f'{part}_{field}.json')


@functools.cache
def _table(path: str, shape: tuple[int, ...]) -> np.ndarray | list[Any]:
    """All values of a file, read once in each process: one array, unless a record is damaged."""
    try:
        values = records.read_json(path, max_bytes=_MAX_BYTES)
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{path}: expected a JSON file with a list of records ({error}); unpack the archive '
            'again'
        ) from error
    if not isinstance(values, list):
        raise ValueError(f'{path}: expected a list of records, got {records.show(values)}')
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        return values
    # As lists of numbers the published files take ten times the memory.
    return array if array.dtype.kind in 'iuf' and array.shape[1:] == shape else values
