"""Your own photographs: a folder of images with keypoints in one annotations.json.

handpose_jax/data/sources.py, FolderSource, says what the file holds; README.md beside this file
gives an example.
"""

import argparse
from pathlib import Path

from handpose_jax.data import prepared
from handpose_jax.data.conversion import folder_records, records

VERSION = '1'

DEFAULT_SPLIT = 'train'
"""Records that name no split are put here."""

EVALUATION = ('val', 'test')
"""Splits in which no record may be bad."""


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
    named = folder_records.by_split(folder, annotations)
    if '' in named and DEFAULT_SPLIT in named:
        raise ValueError(
            f"{folder / annotations}: field 'split': expected it in all records or in none, got "
            f'{folder_records.count(named[""])} records without it beside the split '
            f'{DEFAULT_SPLIT!r}'
        )
    found = {}
    for split, make in named.items():
        if split:
            records.check_name(f"{folder / annotations}: field 'split'", split)
        found[split or DEFAULT_SPLIT] = prepared.Split(
            folder_records.count(make), make, evaluation=split in EVALUATION
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
        settings={'source': folder_records.fingerprint(folder, arguments.annotations)},
    )
