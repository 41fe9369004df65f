"""The command line: handpose report W1 W2 ... --out DIR."""

import argparse
import sys
from collections.abc import Sequence

from handpose_jax.evaluation.report import MARKDOWN_FILE, WORST, write_report


def main(argv: Sequence[str] | None = None, prog: str = 'handpose report') -> None:
    """Writes the report; user errors end as one message and exit code 1."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Puts evaluated runs on one page; the first is what the others are compared '
        'with. Evaluate them first: handpose evaluate --workdir W',
    )
    parser.add_argument('workdirs', nargs='+', metavar='W', help='folder of an evaluated run')
    parser.add_argument('--out', required=True, metavar='DIR', help='receives the report')
    parser.add_argument(
        '--worst', type=int, default=WORST, metavar='N', help='cases to show (default %(default)s)'
    )
    flags = parser.parse_args(argv)
    try:
        path = write_report(flags.workdirs, flags.out, worst=flags.worst)
    except ValueError as error:
        sys.exit(f'error: {error}')
    print(f'{path}, {path.with_name(MARKDOWN_FILE)}')


if __name__ == '__main__':
    main()
