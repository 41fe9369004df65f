"""Writes made-up hands in a data set's own layout: python datasets/make_dummy.py NAME DIR.

Flat drawings in the files, folders and formats that its authors publish, for trying prepare.py and
a config before the real data is there. DIR is then what prepare.py takes as --manual_dir.
"""

import argparse
import pathlib
import sys

from prepare import HERE, load_builder


def _find_writers() -> dict[str, pathlib.Path]:
    """Name to file of every data set that can be made up."""
    return {path.parent.name: path for path in sorted(HERE.glob('*/*_dummy_data.py'))}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', choices=_find_writers(), help='of the data set')
    parser.add_argument('folder', type=pathlib.Path, help='receives the files; new or empty')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same files')
    arguments = parser.parse_args()
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        sys.exit(f'error: {arguments.folder}: expected a new or empty folder; give another')
    writer = load_builder(_find_writers()[arguments.name])
    writer.write(arguments.folder, seed=arguments.seed)
    print(
        f'{arguments.folder}: now run python datasets/prepare.py {arguments.name} '
        f'--manual_dir {arguments.folder} --data_dir D'
    )


if __name__ == '__main__':
    main()
