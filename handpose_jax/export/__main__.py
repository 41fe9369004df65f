"""The command line: handpose export --workdir W."""

import argparse
import sys
from collections.abc import Sequence

from handpose_jax.export import ARTEFACTS, NUM_IMAGES, describe, export


def main(argv: Sequence[str] | None = None, prog: str = 'handpose export') -> None:
    """Exports, and prints the gate's table; user errors end as one message and exit code 1."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Writes W/export: the trained network for other runtimes, see docs/export.md.',
    )
    parser.add_argument('--workdir', required=True, metavar='W', help='folder of a training run')
    parser.add_argument(
        '--only',
        nargs='+',
        default=(),
        metavar='NAME',
        help=f'some of {", ".join(ARTEFACTS)}; default: all',
    )
    parser.add_argument(
        '--num_images',
        type=int,
        default=NUM_IMAGES,
        metavar='N',
        help='crops that the gate compares on (default %(default)s)',
    )
    flags = parser.parse_args(argv)
    try:
        summary = export(flags.workdir, only=flags.only, num_images=flags.num_images)
    except ValueError as error:
        sys.exit(f'error: {error}')
    print(describe(flags.workdir, summary))


if __name__ == '__main__':
    main()
