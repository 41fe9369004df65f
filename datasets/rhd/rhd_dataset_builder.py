"""RHD, the Rendered Hand Pose Dataset: the dominant hand of each picture (Zimmermann, Brox 2017).

Reads the folder or archive that its authors publish; README.md beside this file tells what and
where it is. Splits: train (their `training`) and test (their `evaluation`).
"""

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import rhd_layout

from handpose_jax import geometry
from handpose_jax.data import prepared
from handpose_jax.data.conversion import records

NAME = 'rhd'
VERSION = '1'
ADVICE = (
    'download RHD_v1-1.zip from lmb.informatik.uni-freiburg.de (see datasets/rhd/README.md) and '
    'put it there, packed or unpacked'
)


class _Published(NamedTuple):
    name: str
    records: int
    evaluation: bool


# Source: Zimmermann and Brox 2017, section 5, and the page of the data set.
_SPLITS = {
    'train': _Published('training', 41_258, False),
    'test': _Published('evaluation', 2_728, True),
}


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """The record of a number.

    Attributes:
        folder: of the data set.
        split: by its authors' name.
        cache: of its annotations.
    """

    folder: str
    split: str
    cache: str

    def __call__(self, index: int) -> prepared.Example:
        hand = _annotations(self.folder, self.split, self.cache)[index]
        return records.make_record(
            image=hand.image_path,
            file=Path(self.folder) / self.split / f'anno_{self.split}.pickle',
            record=hand.image_id,
            keypoints=hand.keypoints,
            # No picture shows the place of what lies behind the camera.
            annotated=hand.keypoints_3d[:, 2] > 0,
            visible=hand.visible,
            is_left=hand.is_left,
            image_id=hand.image_id,
            box=hand.box,
            norm_size=geometry.longest_side(hand.box),
            keypoints_3d=hand.keypoints_3d,
            camera=hand.camera,
        )


@functools.cache
def _annotations(folder: str, split: str, cache: str) -> rhd_layout.RhdAnnotations:
    return rhd_layout.RhdAnnotations(folder, split, cache=cache)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py rhd` understands."""
    records.add_arguments(parser)


def splits(folder: Path, *, cache: Path) -> dict[str, prepared.Split]:
    """The splits of the unpacked data set.

    Args:
        folder: holds `training` and `evaluation`.
        cache: folder for a copy of the annotations that every process reads in a moment.

    Raises:
        ValueError: for annotations that are missing or damaged as a whole.
    """
    found = {}
    for split, published in _SPLITS.items():
        place = str(folder), published.name, str(cache / f'{published.name}.npz')
        found[split] = prepared.Split(
            records=len(_annotations(*place)),
            make=MakeExample(*place),
            published=published.records,
            evaluation=published.evaluation,
        )
    return found


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the data set."""
    folder = records.find(
        arguments.manual_dir, 'RHD_published_v2', ('RHD_v1-1.zip',), advice=ADVICE
    )
    cache = records.cache_folder(NAME, arguments)
    if not cache.exists():
        print(
            f'reading the annotations takes up to a minute or two; a copy is kept in {cache}',
            flush=True,
        )
    records.prepare(
        NAME,
        VERSION,
        arguments,
        splits(folder, cache=cache),
        description='Rendered Hand Pose Dataset (Zimmermann and Brox 2017), dominant hands.',
        with_3d=True,
    )
