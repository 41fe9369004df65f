"""Standard output as it may be in a container or a pipe: closed, broken, full, or of ASCII."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Lets a command line print wherever its output goes; exits where nobody can receive it.

    Characters that the encoding does not have are written as escapes, and a reader that went away
    (`| head -1`) ends the process quietly, with code 1.
    """
    for name in ('stdin', 'stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:
            # Closed, which leaves a number that the next file would get, and all that libraries
            # print with it. Opened in this order each gets its own number.
            mode = 'r' if name == 'stdin' else 'w'
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and name != 'stdin':
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
    except OSError:
        # It is stdout's own where a further line fails too.
        if code := _write('\n'):
            sys.exit(code)
        raise
    except SystemExit as leaving:
        if not leaving.code and (code := _write('')):
            sys.exit(code)
        raise
    if code := _write(''):
        sys.exit(code)


def _write(text: str) -> str | int | None:
    """Writes to stdout what is left, and a text; returns what to exit with if that fails."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is left goes nowhere, so that the interpreter does not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        broken = isinstance(error, BrokenPipeError)
        return 1 if broken else f'error: standard output cannot be written: {error.strerror}'
    return None
