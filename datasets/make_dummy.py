"""Writes made-up hands in a data set's own layout: python datasets/make_dummy.py NAME DIR.

Flat drawings in the files, folders and formats that its authors publish, for trying prepare.py and
a config before the real data is there. DIR is then what prepare.py takes as --manual_dir.
"""

import argparse
import pathlib

from prepare import HERE, load_builder

from handpose_jax.process import command_line


def _find_writers() -> dict[str, pathlib.Path]:
    """Name to file of every data set that can be made up."""
    return {path.parent.name: path for path in sorted(HERE.glob('*/*_dummy_data.py'))}


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'expected a number of at least 0, got {text!r}')
    return int(text)


def main() -> None:
    """The command line."""
    parser = command_line.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', choices=_find_writers(), help='of the data set')
    parser.add_argument('folder', type=pathlib.Path, help='receives the files; new or empty')
    parser.add_argument('--seed', type=_seed, default=0, help='same seed, same files')
    arguments = parser.parse_args()
    with command_line.told():
        if arguments.folder.exists() and (
            not arguments.folder.is_dir() or any(arguments.folder.iterdir())
        ):
            raise ValueError(f'{arguments.folder}: expected a new or empty folder; give another')
        writer = load_builder(_find_writers()[arguments.name])
        writer.write(arguments.folder, seed=arguments.seed)
    print(
        f'{arguments.folder}: now run python datasets/prepare.py {arguments.name} '
        f'--manual_dir {arguments.folder} --data_dir D'
    )


if __name__ == '__main__':
    main()
