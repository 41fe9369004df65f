"""What scripts do with errors of the people who call them: a sentence, and no traceback."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line without the usage, which can fill a screen."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message on stderr and exit code 2."""
        self.exit(2, f'error: {message}; {self.prog} --help tells all options\n')


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends the process with one message and exit code 1 where its user can put something right.

    A ValueError says itself what is wrong. An OSError is of the user where it names a file; the
    others stay.
    """
    try:
        yield
    except ValueError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(
            f'error: {error.filename}: cannot be read or written ({error.strerror}); look whether '
            'the path is right, or give another'
        )
