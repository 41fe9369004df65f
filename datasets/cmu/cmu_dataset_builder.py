"""CMU hands: photographs labelled by hand, the Panoptic Studio, and rendered hands.

Expects, in --manual_dir, any of the three downloads: hand_labels.zip (splits train and test),
hand143_panopticdb.tar (split panoptic) and hand_labels_synth.zip (split synth), packed or unpacked.
README.md beside this file says where they are, what is in them, and how far that was checked.

Source: Simon et al. 2017.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from handpose_jax import geometry, hand
from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.quarantine import BadRecord

VERSION = '1'

ADVICE = (
    'download at least one of hand_labels.zip, hand143_panopticdb.tar and hand_labels_synth.zip; '
    'datasets/cmu/README.md says where'
)

HEAD_TO_HAND = 0.7
"""Side of a hand's box over the head's; the crop is 2.2 times that box, 1.54 heads.

Source: the evaluation of Simon et al. 2017 (a hand is 0.7 heads; 2.2 times that is cut out).
"""

PANOPTIC_FILE = 'hands_v143_14817.json'

SYNTH_FOLDERS = ('synth1', 'synth2', 'synth3', 'synth4')


class Part(NamedTuple):
    """One of the three downloads.

    Attributes:
        archive: the file it is published as.
        splits: what is made of it, with the number of hands published.
    """

    archive: str
    splits: dict[str, int]


PARTS = {
    'hand_labels': Part('hand_labels.zip', {'train': 1_912, 'test': 846}),
    'hand143_panopticdb': Part('hand143_panopticdb.tar', {'panoptic': 14_817}),
    'hand_labels_synth': Part('hand_labels_synth.zip', {'synth': 6_546 + 3_243 + 2_348 + 2_124}),
}

# Files of one hand have some 4 KB, that of the Panoptic Studio some 30 MB.
_MAX_BYTES_OF_ONE = 2**20
_MAX_BYTES_OF_ALL = 512 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py cmu` understands."""
    records.add_arguments(parser)


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the parts that are there."""
    found = splits(arguments.manual_dir)
    parts = [name for name, part in PARTS.items() if found.keys() & part.splits.keys()]
    for name, part in PARTS.items():
        if name not in parts:
            left_out = ' and '.join(part.splits)
            print(f'{name}: not in {arguments.manual_dir}, so there will be no {left_out}')
    records.prepare(
        'cmu',
        VERSION,
        arguments,
        found,
        description='CMU hands, Simon et al. 2017: ' + ', '.join(parts),
        settings={'parts': parts},
    )


def splits(folder: str | os.PathLike[str]) -> dict[str, prepared.Split]:
    """The splits of the parts that are in a folder.

    Args:
        folder: what the user gives as --manual_dir.

    Raises:
        ValueError: if there is no part, or one is damaged as a whole.
    """
    roots = {
        name: records.find(folder, name, (part.archive,), advice=ADVICE)
        for name, part in PARTS.items()
        if _is_there(Path(folder), name, part.archive)
    }
    if not roots:
        raise ValueError(f'--manual_dir {folder}: no part of the CMU hands is there; {ADVICE}')
    makers: dict[str, Callable[[int], prepared.Example]] = {}
    counts: dict[str, int] = {}
    if 'hand_labels' in roots:
        for split in ('train', 'test'):
            folders = _folders(roots['hand_labels'], (f'manual_{split}',))
            makers[split], counts[split] = OwnFile(folders, by_head=True), len(_stems(folders))
    if 'hand143_panopticdb' in roots:
        file = str(roots['hand143_panopticdb'] / PANOPTIC_FILE)
        makers['panoptic'], counts['panoptic'] = Panoptic(file), len(_panoptic_records(file))
    if 'hand_labels_synth' in roots:
        folders = _folders(roots['hand_labels_synth'], SYNTH_FOLDERS)
        makers['synth'], counts['synth'] = OwnFile(folders, by_head=False), len(_stems(folders))
    published = {split: count for part in PARTS.values() for split, count in part.splits.items()}
    return {
        split: prepared.Split(
            counts[split], make, published=published[split], evaluation=split == 'test'
        )
        for split, make in makers.items()
    }


@dataclasses.dataclass(frozen=True)
class OwnFile:
    """From a number to a record, where each image has a JSON file of its own beside it.

    Attributes:
        folders: with images and annotations.
        by_head: the size of the person's head decides box and normaliser; else the keypoints do.
    """

    folders: tuple[str, ...]
    by_head: bool

    def __call__(self, index: int) -> prepared.Example:
        stem = _stems(self.folders)[index]
        file = Path(f'{stem}.json')

        def bad(field: str, expected: str, got: Any) -> BadRecord:
            return BadRecord(
                file=file, record=file.stem, field=field, expected=expected, got=records.show(got)
            )

        try:
            values = records.read_json(file, max_bytes=_MAX_BYTES_OF_ONE)
        except (ValueError, OSError) as error:
            raise bad('(all)', 'a JSON file with one hand', error) from error
        if not isinstance(values, dict):
            raise bad('(all)', 'a JSON object', values)
        keypoints, annotated = _keypoints(values, 'hand_pts', bad)
        box, head_size = None, None
        if self.by_head:
            head_size = _head_size(values, bad)
            x, y = _numbers(values, 'hand_box_center', (2,), bad)
            half = HEAD_TO_HAND * head_size / 2
            box = (x - half, y - half, x + half, y + half)
        return records.make_record(
            image=f'{stem}.jpg',
            file=file,
            record=file.stem,
            keypoints=keypoints,
            annotated=annotated,
            is_left=_is_left(values, bad),
            image_id=f'{file.parent.name}/{file.stem}',
            box=box,
            norm_size=head_size,
        )


@dataclasses.dataclass(frozen=True)
class Panoptic:
    """From a number to a record of the Panoptic Studio, all of them right hands.

    Attributes:
        file: the JSON file of all hands.
    """

    file: str

    def __call__(self, index: int) -> prepared.Example:
        def bad(field: str, expected: str, got: Any) -> BadRecord:
            return BadRecord(
                file=self.file,
                record=f'root[{index}]',
                field=field,
                expected=expected,
                got=records.show(got),
            )

        values = _panoptic_records(self.file)[index]
        if not isinstance(values, dict):
            raise bad('(all)', 'a JSON object', values)
        keypoints, annotated = _keypoints(values, 'joint_self', bad)
        name = values.get('img_paths')
        if not isinstance(name, str) or not _is_inside(name):
            raise bad('img_paths', 'a path below the folder, such as imgs/00000000.jpg', name)
        size = None
        if 'img_height' in values or 'img_width' in values:
            height, width = (_numbers(values, key, (), bad) for key in ('img_height', 'img_width'))
            size = (int(height), int(width))
        return records.make_record(
            image=Path(self.file).parent / name,
            file=self.file,
            record=f'root[{index}]',
            keypoints=keypoints,
            annotated=annotated,
            is_left=False,
            image_id=f'panoptic/{PurePosixPath(name).stem}',
            size=size,
        )


def _is_there(given: Path, name: str, archive: str) -> bool:
    return (given / name).is_dir() or (given / archive).is_file() or given.absolute().name == name


def _folders(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        raise ValueError(
            f'{root}: expected the folders {", ".join(names)}, but there is no '
            f'{" and no ".join(missing)}; unpack the archive again'
        )
    return tuple(str(root / name) for name in names)


# Lists and tables are made once in each process, and not sent to it with each shard.
@functools.cache
def _stems(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Paths without suffix of all hands: of either file, so that a missing one is noticed."""
    return tuple(
        stem
        for folder in folders
        for stem in sorted(
            {
                entry.path.removesuffix('.jpg').removesuffix('.json')
                for entry in os.scandir(folder)
                # Some systems put hidden files beside those they pack.
                if entry.name.endswith(('.jpg', '.json')) and not entry.name.startswith('.')
            }
        )
    )


@functools.cache
def _panoptic_records(file: str) -> list[Any]:
    try:
        content = records.read_json(file, max_bytes=_MAX_BYTES_OF_ALL)
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{file}: expected a JSON file with all hands ({error}); unpack the archive again'
        ) from error
    root = content.get('root') if isinstance(content, dict) else None
    if not isinstance(root, list) or not root:
        raise ValueError(
            f"{file}: expected an object with a list 'root' of hands, got {records.show(content)}; "
            'unpack the archive again'
        )
    return root


_Bad = Callable[[str, str, Any], BadRecord]


def _keypoints(values: dict[str, Any], field: str, bad: _Bad) -> tuple[np.ndarray, np.ndarray]:
    """The keypoints, f[21 2], and which of them are annotated, bool[21]."""
    rows = _numbers(values, field, (hand.NUM_KEYPOINTS, 3), bad, finite=False)
    keypoints = rows[:, :2]
    # Exactly 0/0 stands for no place, whatever the flag says: no one clicks there.
    annotated = (rows[:, 2] == 1) & (keypoints != 0).any(axis=1)
    broken = annotated & ~np.isfinite(keypoints).all(axis=1)
    if broken.any() or not np.isfinite(rows[:, 2]).all():
        row = int(np.flatnonzero(broken | ~np.isfinite(rows[:, 2]))[0])
        raise bad(
            field,
            'finite x, y and a flag',
            f'{rows[row].tolist()} for keypoint {row} ({hand.KEYPOINT_NAMES[row]})',
        )
    if not annotated.any():
        raise bad(field, 'at least one keypoint whose third value is 1', 'none')
    return keypoints, annotated


def _head_size(values: dict[str, Any], bad: _Bad) -> float:
    """The longest side of the head's box; where it is not told, that of the box itself."""
    if 'head_size' in values or 'head_box' not in values:
        field, size = 'head_size', float(_numbers(values, 'head_size', (), bad))
    else:
        corners = _numbers(values, 'head_box', (2, 2), bad)
        low_high = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        field, size = 'head_box', geometry.longest_side(low_high)
    if not size > 0:
        raise bad(field, 'a positive number of pixels', size)
    return size


def _is_left(values: dict[str, Any], bad: _Bad) -> bool:
    value = values.get('is_left')
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise bad('is_left', '0, 1, true or false', value)
    return bool(value)


def _numbers(
    values: dict[str, Any], field: str, shape: tuple[int, ...], bad: _Bad, *, finite: bool = True
) -> np.ndarray:
    """A field as f64 of this shape."""
    return records.numbers(field, values.get(field), shape, bad, finite=finite)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and '..' not in path.parts and '\\' not in name
