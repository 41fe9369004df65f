"""Your own photographs: a folder of images with keypoints in one annotations.json.

handpose_jax/data/folder.py, FolderSource, says what the file holds; README.md beside this file
gives an example.
"""

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.sources import FolderSource

VERSION = '1'

DEFAULT_SPLIT = 'train'
"""Records that name no split are put here."""

EVALUATION = ('val', 'test')
"""Splits in which no record may be bad."""


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """The record of a number, within one split of the folder.

    Attributes:
        root: the folder.
        annotations: name of the JSON file in it.
        split: as the records name it; '' for those that name none.
    """

    root: str
    annotations: str
    split: str

    def __call__(self, index: int) -> prepared.Example:
        number = _members(self.root, self.annotations)[self.split][index]
        record = _source(self.root, self.annotations).record(number)
        is_flat = not (record.box[2:] > record.box[:2]).all()
        size = None
        if record.height is not None and record.width is not None:
            size = record.height, record.width
        return records.make_record(
            image=Path(self.root) / record.file,
            file=Path(self.root) / self.annotations,
            record=f'{record.number} ({record.image_id})',
            keypoints=record.keypoints,
            annotated=record.visible,
            is_left=record.is_left,
            image_id=record.image_id,
            # Only a box that was made of the keypoints can be a line, and is made again.
            box=None if is_flat else record.box,
            size=size,
        )


# Read once in each process, and not sent to it with each shard.
@functools.cache
def _source(root: str, annotations: str) -> FolderSource:
    return FolderSource(root, annotations=annotations)


@functools.cache
def _members(root: str, annotations: str) -> Mapping[str, list[int]]:
    """The numbers of the records of each split."""
    source = _source(root, annotations)
    members: dict[str, list[int]] = {}
    for index in range(len(source)):
        members.setdefault(source.record(index).split, []).append(index)
    return members


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py folder` understands."""
    records.add_arguments(parser)
    parser.add_argument('--annotations', default='annotations.json', help='name of the JSON file')
    parser.add_argument('--name', default='folder', help='of the data set')


def splits(folder: Path, *, annotations: str = 'annotations.json') -> dict[str, prepared.Split]:
    """The splits that the records name.

    Args:
        folder: of the images and annotations.
        annotations: name of the JSON file.

    Raises:
        ValueError: for annotations with any problem, or a split whose name cannot be used.
    """
    members = _members(str(folder), annotations)
    if '' in members and DEFAULT_SPLIT in members:
        raise ValueError(
            f"{folder / annotations}: field 'split': expected it in all records or in none, got "
            f'{len(members[""])} records without it beside the split '
            f'{DEFAULT_SPLIT!r}'
        )
    found = {}
    for split, numbers in members.items():
        if split:
            records.check_name(f"{folder / annotations}: field 'split'", split)
        found[split or DEFAULT_SPLIT] = prepared.Split(
            len(numbers),
            MakeExample(str(folder), annotations, split),
            evaluation=split in EVALUATION,
        )
    return found


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the folder."""
    records.check_name('--name', arguments.name)
    folder = Path(arguments.manual_dir)
    records.prepare(
        arguments.name,
        VERSION,
        arguments,
        splits(folder, annotations=arguments.annotations),
        description=f'Hands of the folder {folder.name}.',
        settings={'source': _source(str(folder), arguments.annotations).fingerprint()},
    )
