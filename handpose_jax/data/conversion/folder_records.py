"""Records for a prepared data set out of a folder of images with its annotations.json."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.sources import FolderSource


class MakeExample(NamedTuple):
    """The record of a number, within one split of the folder.

    Attributes:
        root: the folder.
        annotations: name of the JSON file in it, see sources.FolderSource.
        split: as the records name it; '' for those that name none.
    """

    root: str
    annotations: str
    split: str

    def __call__(self, index: int) -> prepared.Example:
        record = _source(self.root, self.annotations).record(
            _members(self.root, self.annotations)[self.split][index]
        )
        claimed = None
        if record.height is not None and record.width is not None:
            claimed = (record.height, record.width)
        flat = not (record.box[2:] > record.box[:2]).all()
        return records.make_record(
            image=Path(self.root) / record.file,
            file=Path(self.root) / self.annotations,
            record=f'{record.number} ({record.image_id})',
            keypoints=record.keypoints,
            annotated=record.visible,
            is_left=record.is_left,
            image_id=record.image_id,
            # Only a box that was made of the keypoints can be a line, and is made again.
            box=None if flat else record.box,
            size=claimed,
        )


def by_split(root: Path, annotations: str) -> Mapping[str, MakeExample]:
    """For each split that the records name, '' for none, what makes its records.

    Args:
        root: the folder.
        annotations: name of the JSON file in it.

    Raises:
        ValueError: see sources.FolderSource.
    """
    members = _members(str(root), annotations)
    return {split: MakeExample(str(root), annotations, split) for split in members}


def count(make: MakeExample) -> int:
    """How many records there are."""
    return len(_members(make.root, make.annotations)[make.split])


def fingerprint(root: Path, annotations: str) -> str:
    """Changes when the annotations, or the names or sizes of the images, do."""
    return _source(str(root), annotations).fingerprint()


@functools.cache
def _source(root: str, annotations: str) -> FolderSource:
    return FolderSource(root, annotations=annotations)


@functools.cache
def _members(root: str, annotations: str) -> Mapping[str, list[int]]:
    source = _source(root, annotations)
    members: dict[str, list[int]] = {}
    for index in range(len(source)):
        members.setdefault(source.record(index).split, []).append(index)
    return members
