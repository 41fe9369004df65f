"""Hands in action (Tzionas et al., IJCV 2016), for evaluation only, once you annotated it as JSON.

What its authors publish is not read: README.md beside this file says what is to be written
instead, a folder of images with one annotations.json.
"""

import argparse
from pathlib import Path

from handpose_jax.data import prepared
from handpose_jax.data.conversion import folder_records, records

VERSION = '1'
SPLIT = 'test'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py tzionas` understands."""
    records.add_arguments(parser)
    parser.add_argument('--annotations', default='annotations.json', help='name of the JSON file')


def splits(folder: Path, *, annotations: str = 'annotations.json') -> dict[str, prepared.Split]:
    """All records as the split 'test'.

    Args:
        folder: of the images and annotations.
        annotations: name of the JSON file.

    Raises:
        ValueError: for annotations with any problem, or records of another split.
    """
    named = folder_records.by_split(folder, annotations)
    (split, make), *others = named.items()
    if others or split not in ('', SPLIT):
        raise ValueError(
            f"{folder / annotations}: field 'split': expected {SPLIT!r} in all records or in none, "
            f'as this data set is never trained on, got {sorted(named)}'
        )
    return {SPLIT: prepared.Split(folder_records.count(make), make, evaluation=True)}


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the folder."""
    folder = Path(arguments.manual_dir)
    records.prepare(
        'tzionas',
        VERSION,
        arguments,
        splits(folder, annotations=arguments.annotations),
        description='Hands in action (Tzionas et al. 2016), for evaluation only.',
        settings={'source': folder_records.fingerprint(folder, arguments.annotations)},
    )
