"""Keeps a table between two marks of README.md equal to what the results files say."""

import pathlib
import sys
from collections.abc import Callable

import results_file

README = pathlib.Path(__file__).parent.parent / 'README.md'
END = '<!-- end -->\n'


def replaced(readme: str, begin: str, table: str) -> str:
    """README's text with a fresh table.

    Args:
        readme: the text.
        begin: the line above the table; END stands below it.
        table: in Markdown.

    Raises:
        ValueError: if the text has no place for it.
    """
    before, found, rest = readme.partition(begin)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f'README.md: expected {begin.strip()!r} and after it {END.strip()!r}')
    return before + begin + table + end + after


def run(description: str | None, begin: str, table: Callable[[], str]) -> None:
    """The command line of a script that replaces a table of README.md, or compares it.

    Args:
        description: for --help.
        begin: see replaced.
        table: makes the table; a ValueError is an error of the user's.
    """
    parser = results_file.parser(description)
    parser.add_argument('--check', action='store_true', help='change nothing, fail if it would')
    flags = parser.parse_args()
    old = README.read_text()
    try:
        new = replaced(old, begin, table())
    except ValueError as error:
        sys.exit(f'error: {error}')
    if not flags.check:
        README.write_text(new)
    elif new != old:
        sys.exit('README.md: the table is stale; run this without --check')
