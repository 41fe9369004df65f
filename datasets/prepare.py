"""Prepares a data set: python datasets/prepare.py NAME [options]; --help lists names and options.

Each data set lives in datasets/<name>/<name>_dataset_builder.py, which offers
`add_arguments(parser)` and `prepare(arguments)`; README.md here says how to write one.
"""

import argparse
import importlib.util
import pathlib
import sys
from types import ModuleType

HERE = pathlib.Path(__file__).parent


def _find_builders() -> dict[str, pathlib.Path]:
    """Name to file of every data set."""
    files = sorted(HERE.glob('*/*_dataset_builder.py'))
    return {path.parent.name: path for path in files if path.stem.startswith(path.parent.name)}


def load_builder(path: pathlib.Path) -> ModuleType:
    """Imports a builder by its file, so that this folder need not be a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path}: cannot be imported')
    module = importlib.util.module_from_spec(spec)
    # Worker processes import the builder's functions by this name, along this path; appended, so
    # that no file of the folder hides another module.
    sys.modules[path.stem] = module
    sys.path.append(str(path.parent.absolute()))
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='name', required=True, metavar='NAME')
    builders = {}
    for name, path in _find_builders().items():
        builders[name] = load_builder(path)
        description = (builders[name].__doc__ or '').strip()
        command = commands.add_parser(
            name,
            help=description.splitlines()[0],
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        builders[name].add_arguments(command)
    arguments = parser.parse_args()
    try:
        builders[arguments.name].prepare(arguments)
    except ValueError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
