"""Reads the lists of a large JSON object element by element, without holding all of it in memory.

COCO's annotation files reach gigabytes, several times that as Python values; one element is small.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

_CHUNK = 2**22

# An element larger than this is no annotation, or the file is broken and never ends.
_MAX_VALUE = 2**26

_SPACE = re.compile(r'[ \t\n\r]*')
_DELIMITERS = frozenset(' \t\n\r,:]}')


def elements(
    path: Path, names: Collection[str], optional: Collection[str] = ()
) -> Iterator[tuple[str, int, Any]]:
    """Yields the elements of some lists of a JSON file, whose whole is an object.

    Args:
        path: of the file, in UTF-8.
        names: keys that the object must have; their values must be lists.
        optional: keys that it may have, likewise.

    Yields:
        The key, the element's position in its list, the element; in the order of the file.

    Raises:
        ValueError: naming the file, for what is no such JSON, and for a key that is missing.
    """
    try:
        with path.open(encoding='utf-8') as file:
            missing = set(names)
            for name, position, value in _Reader(file).members({*names, *optional}):
                missing.discard(name)
                if position >= 0:
                    yield name, position, value
    except FileNotFoundError as error:
        raise ValueError(f'{path}: no such annotation file; check the path') from error
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{path}: expected a JSON object in UTF-8 with the lists {sorted(names)}, got '
            f'something else: {error}'
        ) from error
    if missing:
        raise ValueError(
            f'{path}: expected an object with the lists {sorted(names)}, but {sorted(missing)} '
            'are missing'
        )


class _Reader:
    def __init__(self, file: TextIO):
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ''
        self._position = 0
        self._ended = False

    def members(self, names: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Like elements(); a list itself is announced by the position -1."""
        self._take('{')
        more = self._peek() != '}'
        while more:
            key = self._value()
            if not isinstance(key, str):
                raise ValueError(f'the key {key!r} is no text')
            self._take(':')
            if key in names:
                yield key, -1, None
                for position, value in enumerate(self._list(key)):
                    yield key, position, value
            else:
                self._value()
            more = self._more('}')
        self._take('}')
        if self._peek():
            raise ValueError('there is more behind its end')

    def _list(self, key: str) -> Iterator[Any]:
        if self._peek() != '[':
            raise ValueError(f'{key!r} is no list')
        self._take('[')
        more = self._peek() != ']'
        while more:
            yield self._value()
            more = self._more(']')
        self._take(']')

    def _more(self, end: str) -> bool:
        if self._peek() == end:
            return False
        self._take(',')
        return True

    def _take(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise ValueError(f'{character!r} was expected where {found or "its end"!r} is')
        self._position += 1

    def _peek(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            found = _SPACE.match(self._text, self._position)
            self._position = found.end() if found else self._position
            if self._position < len(self._text) or not self._read():
                return self._text[self._position : self._position + 1]

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                if not self._read():
                    raise
                continue
            # A number may go on behind what has been read, even -1.5e behind -1.5.
            if self._text[end : end + 1] in _DELIMITERS or not self._read():
                self._position = end
                return value

    def _read(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._ended:
            return False
        self._text = self._text[self._position :]
        self._position = 0
        if len(self._text) > _MAX_VALUE:
            raise ValueError(f'one of its values has more than {_MAX_VALUE:,} characters')
        # Twice as much each time a value does not fit, or a long one would be decoded for ever.
        chunk = self._file.read(max(_CHUNK, len(self._text)))
        self._text += chunk
        self._ended = not chunk
        return bool(chunk)
