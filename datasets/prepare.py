"""Prepares a data set: python datasets/prepare.py NAME [options]; --help lists names and options.

Each data set lives in datasets/<name>/<name>_dataset_builder.py, which offers
`add_arguments(parser)` and `prepare(arguments)`; README.md here says how to write one.
"""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType

from handpose_jax.process import command_line, extras

HERE = pathlib.Path(__file__).parent


def _find_builders() -> dict[str, pathlib.Path]:
    """Name to file of every data set."""
    files = sorted(HERE.glob('*/*_dataset_builder.py'))
    return {path.parent.name: path for path in files if path.stem.startswith(path.parent.name)}


def load_builder(path: pathlib.Path) -> ModuleType:
    """Imports a builder, or its made-up data, by the file."""
    # Worker processes import the builder's functions by this name, along this path; appended, so
    # that no file of the folder hides another module.
    folder = str(path.parent.absolute())
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(path.stem)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command line; user errors end as one message and exit code 1."""
    parser = command_line.Parser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Builders have options named --name: the data set must be kept under a name that none takes.
    commands = parser.add_subparsers(dest='_data_set', required=True, metavar='NAME')
    builders = {}
    for name, path in _find_builders().items():
        with extras.needed_by('datasets/prepare.py'):
            builders[name] = load_builder(path)
        description = (builders[name].__doc__ or '').strip()
        command = commands.add_parser(
            name,
            help=description.splitlines()[0],
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        builders[name].add_arguments(command)
    arguments = parser.parse_args(argv)
    for option, least in (('workers', 1), ('seed', 0)):
        value = getattr(arguments, option, None)
        if isinstance(value, int) and value < least:
            parser.error(f'argument --{option}: expected {least} or more, got {value}')
    with command_line.told():
        builders[arguments._data_set].prepare(arguments)


if __name__ == '__main__':
    main()
