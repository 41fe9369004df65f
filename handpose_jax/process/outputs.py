"""Results that people find in folders of theirs: never written over what this package did not make.

Whatever is written here can be told from other people's files by a mark near its beginning: in the
text of a PNG, in `made_by` of a JSON file, in the head of a page.
"""

import os
from typing import Any

from handpose_jax.process import storage

MADE_BY = 'handpose_jax'

PNG_TEXT = b'Software\0' + MADE_BY.encode()
HTML_MARK = f'<meta name="generator" content="{MADE_BY}">'
MARKDOWN_MARK = f'[//]: # (made by {MADE_BY})'

_MARKS = (
    f'"made_by": "{MADE_BY}'.encode(),
    PNG_TEXT,
    HTML_MARK.encode(),
    MARKDOWN_MARK.encode(),
)
_LOOKED_AT = 4096


def check(path: str | os.PathLike[str]) -> None:
    """Looks whether a result may be written to a path.

    Raises:
        ValueError: if another file is there.
    """
    place = storage.folder(path)
    if not _is_ours(place):
        raise ValueError(
            f'{path}: is there and was not made by {MADE_BY}, so it is not replaced; '
            'move it away, or give another folder for the results'
        )


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a result, whole or not at all; makes the folder if absent.

    Args:
        path: of the file.
        data: all of it, with one of the marks in its first 4 kB.

    Raises:
        ValueError: if another file is there.
        OSError: if it cannot be written.
    """
    check(path)
    target = storage.folder(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f'{target.name}.new'
    temporary.write_bytes(data)
    temporary.replace(target)


def _is_ours(place: Any) -> bool:
    try:
        with place.open('rb') as file:
            beginning = file.read(_LOOKED_AT)
            return any(mark in beginning for mark in _MARKS)
    except FileNotFoundError:
        return True
    except OSError:
        # A folder of that name, say: writing will tell.
        return not place.exists()
