"""One process at a time writes into a folder: `with lock.hold(folder): ...`."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, TextIO

from handpose_jax.process import storage

try:
    import fcntl
except ImportError:  # Windows, where training is not supported
    fcntl = None  # type: ignore[assignment]

FILE = 'lock.json'


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes out of a folder while the block runs.

    The system lets go of the lock when the process ends in whatever way, so a killed one bars
    nobody. It is kept on file systems that know locks; buckets do not, and there nothing is locked.

    Args:
        folder: made if it is not there.

    Raises:
        ValueError: if another process holds it (the message says which), or it cannot be written.
    """
    place = storage.folder(folder)
    if storage.is_bucket(folder) or fcntl is None:
        yield
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = _take(place / FILE)
    except BlockingIOError:
        raise ValueError(
            f'{folder}: {_describe(place / FILE)} is writing there; wait until it has ended, or '
            'give another folder'
        ) from None
    except OSError as error:
        raise ValueError(
            f'{folder}: cannot write there ({error.strerror}); give a folder that can be written'
        ) from error
    with file:
        file.truncate(0)
        file.write(json.dumps({'host': socket.gethostname(), 'process': os.getpid()}) + '\n')
        file.flush()
        try:
            yield
        finally:
            # Removed while it is held, so that a name that can be opened is never of a lost lock.
            with contextlib.suppress(OSError):
                (place / FILE).unlink()


def _take(path: Any) -> TextIO:
    """Opens the file and locks it.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if it cannot be written.
    """
    while True:
        file = path.open('a+')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it may have removed it between the two lines above.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise
        except OSError:
            return file  # a file system without locks
        file.close()


def _describe(path: Any) -> str:
    try:
        holder = json.loads(path.read_text())
        return f'process {holder["process"]} on {holder["host"]}'
    except (OSError, ValueError, KeyError, TypeError):
        return 'another process'
