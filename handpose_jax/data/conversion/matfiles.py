"""Reads one numeric array from a MATLAB file (version 5, which MATLAB calls -v6 and -v7).

SciPy's reader is not for files of strangers. It believes the lengths in them, so that a variable of
a few megabytes that is said to be small may unpack to gigabytes, and a type of numbers that it does
not know ends the process. Whoever looks into a file far enough to prevent that has found the
numbers, so they are taken from there, and SciPy is not asked.

Source: MathWorks, MAT-File Format (version 5): file header, data elements and their tags, the
subelements of numeric arrays.
"""

import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Float

MAX_BYTES = 256 * 2**20

_HEADER_BYTES = 128
_VERSION_AT, _ENDIAN_AT = 124, 126
_VERSION_5, _VERSION_7_3 = 0x0100, 0x0200
_HDF5 = b'\x89HDF\r\n\x1a\n'

_MATRIX, _COMPRESSED = 14, 15
_TAG_BYTES = 8
# Flags, dimensions and name, in a file that means well.
_DESCRIPTION_BYTES = 2**16
_MAX_VARIABLES = 1000

# By their numbers in the format, from 1.
_CLASSES = (
    *('cell', 'struct', 'object', 'char', 'sparse', 'double', 'single', 'int8', 'uint8', 'int16'),
    *('uint16', 'int32', 'uint32', 'int64', 'uint64', 'function', 'opaque', 'object'),
)
_NUMERIC = _CLASSES[5:15]
_LOGICAL_FLAG, _COMPLEX_FLAG = 0x0200, 0x0800
# How numbers are stored, whatever their class, by the format's number and by NumPy's name.
_CODES = ('i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'f4', 'f8', 'i8', 'u8')
_STORED = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), _CODES, strict=True))

_SAVE_AGAIN = 'save it in MATLAB again, as numbers, by save(..., "-v7")'
_DOWNLOAD_AGAIN = 'download or unpack it again'


class _Refused(ValueError):
    """An error whose message is complete."""


def read_array(
    path: str | os.PathLike[str],
    name: str,
    shape: tuple[int | None, ...],
    *,
    max_bytes: int = MAX_BYTES,
) -> Float[np.ndarray, '...']:
    """Reads one real array of finite numbers.

    Args:
        path: of the file.
        name: of the variable. Others in the file are not looked into.
        shape: what it has to have; None for any length. MATLAB drops trailing dimensions of 1, so
            they may be missing in the file.
        max_bytes: refuse arrays that take more, as float64.

    Returns:
        f64 in this shape.

    Raises:
        ValueError: naming file and variable: for a missing file or variable; another version of the
            format; text, cells, structs, objects, sparse, logical and complex arrays; another
            shape; too many bytes; values that are not finite; damage.
    """
    try:
        with open(path, 'rb') as file:
            return _read(file, name, shape, max_bytes)
    except _Refused as error:
        raise ValueError(f'{path}: variable {name!r}: {error}') from error
    except FileNotFoundError as error:
        raise ValueError(f'{path}: no such file to read {name!r} from; check the path') from error
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(
            f'{path}: variable {name!r}: the MATLAB file is truncated or damaged '
            f'({type(error).__name__}: {error}); {_DOWNLOAD_AGAIN}'
        ) from error


class _Element(NamedTuple):
    """Where a variable stands in the file."""

    start: int
    length: int
    compressed: bool


class _Variable(NamedTuple):
    """What a variable says of itself, and where its numbers begin if it has some."""

    element: _Element
    name: str
    kind: str
    shape: tuple[int, ...]
    numbers_at: int


def _read(
    file: IO[bytes], name: str, shape: tuple[int | None, ...], max_bytes: int
) -> Float[np.ndarray, '...']:
    order = _read_header(file)
    variables = [_describe(file, order, element) for element in _elements(file, order)]
    found = [variable for variable in variables if variable.name == name]
    if len(found) != 1:
        others = ', '.join(repr(variable.name) for variable in variables[:10]) or 'none'
        raise _Refused(
            f'expected one variable of this name, got {len(found)}; the file holds {others}'
        )
    (variable,) = found
    actual = variable.shape
    if variable.kind not in _NUMERIC:
        raise _Refused(
            f'expected an array of real numbers, got one of class {variable.kind}; {_SAVE_AGAIN}'
        )
    wanted = ' x '.join('any' if length is None else str(length) for length in shape)
    padded = actual + (1,) * (len(shape) - len(actual))
    fits = [length in (None, own) for length, own in zip(shape, padded, strict=False)]
    if len(padded) != len(shape) or not all(fits):
        raise _Refused(
            f'expected the shape {wanted}, got {" x ".join(map(str, actual))}; check that it is '
            'the right file'
        )
    if math.prod(padded) * 8 > max_bytes:
        raise _Refused(
            f'expected at most {max_bytes:,} bytes, got {math.prod(padded) * 8:,} in the shape '
            f'{" x ".join(map(str, actual))}; if it is what you expect, raise max_bytes'
        )
    limit = max_bytes + _DESCRIPTION_BYTES
    matrix = _unpack(file, order, variable.element, limit, whole=True)
    code, start, length, _ = _part(matrix, variable.numbers_at, order)
    count = math.prod(actual)
    if code not in _STORED or length != count * np.dtype(_STORED[code]).itemsize:
        raise _Refused(
            f'expected {count:,} numbers of one of the types {sorted(_STORED)}, got {length:,} '
            f'bytes of type {code}: the file is damaged; {_DOWNLOAD_AGAIN}'
        )
    numbers = np.frombuffer(matrix, order + _STORED[code], count, start)
    # MATLAB writes columns first. A signalling NaN would warn; it is refused below.
    with np.errstate(invalid='ignore'):
        values = numbers.astype(np.float64).reshape(padded, order='F')
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        place = ', '.join(str(index + 1) for index in bad[0])
        raise _Refused(
            f'expected finite numbers, got {len(bad)} others, the first, '
            f'{values[tuple(bad[0])]}, at ({place}); {_DOWNLOAD_AGAIN}'
        )
    return values


def _read_header(file: IO[bytes]) -> str:
    """The byte order, as struct and NumPy have it."""
    header = file.read(_HEADER_BYTES)
    order = {b'IM': '<', b'MI': '>'}.get(header[_ENDIAN_AT:])
    version = struct.unpack_from(f'{order}H', header, _VERSION_AT)[0] if order else None
    file.seek(0)
    start = file.read(512 + len(_HDF5))
    if version == _VERSION_7_3 or start.startswith(_HDF5) or start[512:] == _HDF5:
        raise _Refused(
            f'expected a MATLAB file of version 5, got version 7.3, which is HDF5; {_SAVE_AGAIN}'
        )
    if order is None or version != _VERSION_5:
        raise _Refused(
            f'expected a MATLAB file of version 5, got a file that starts with {start[:12]!r}; '
            f'{_DOWNLOAD_AGAIN}, or {_SAVE_AGAIN}'
        )
    return order


def _elements(file: IO[bytes], order: str) -> Iterator[_Element]:
    size = file.seek(0, os.SEEK_END)
    position = _HEADER_BYTES
    for number in itertools.count():
        if position == size:
            return
        if number == _MAX_VARIABLES:
            raise _Refused(f'expected at most {_MAX_VARIABLES} variables in the file, got more')
        file.seek(position)
        kind, length = _tag(file.read(_TAG_BYTES), order)
        position += _TAG_BYTES
        if kind not in (_MATRIX, _COMPRESSED) or position + length > size:
            raise _Refused(
                f'expected an array at byte {position - _TAG_BYTES} of {size:,}, got an element of '
                f'type {kind} and {length:,} bytes: the file is truncated or damaged; '
                f'{_DOWNLOAD_AGAIN}'
            )
        # A matrix is handed on with its tag, which is packed too where it is compressed.
        packed = kind == _COMPRESSED
        tag = 0 if packed else _TAG_BYTES
        yield _Element(position - tag, length + tag, packed)
        position += length


def _describe(file: IO[bytes], order: str, element: _Element) -> _Variable:
    """Reads the first parts of a variable: flags, dimensions and name."""
    matrix = _unpack(file, order, element, _DESCRIPTION_BYTES, whole=False)
    _, start, _, position = _part(matrix, _TAG_BYTES, order)
    (flags,) = struct.unpack_from(f'{order}I', matrix, start)
    number = flags & 0xFF
    kind = _CLASSES[number - 1] if 0 < number <= len(_CLASSES) else f'{number}, which is unknown'
    for flag, what in ((_LOGICAL_FLAG, 'logical'), (_COMPLEX_FLAG, f'complex {kind}')):
        kind = what if flags & flag else kind
    shape: tuple[int, ...] = ()
    # The objects of newer MATLABs have no dimensions.
    if kind != 'opaque':
        _, start, length, position = _part(matrix, position, order)
        shape = struct.unpack_from(f'{order}{length // 4}I', matrix, start)
    _, start, length, position = _part(matrix, position, order)
    name = matrix[start : start + length].decode('latin-1')
    return _Variable(element, name, kind, shape, position)


def _part(matrix: bytes, position: int, order: str) -> tuple[int, int, int, int]:
    """Type, start and length of a part of a variable, and where the next one is."""
    code, length = _tag(matrix[position : position + _TAG_BYTES], order)
    start = position + _TAG_BYTES
    if code >> 16:
        # Up to four bytes stand within the tag itself.
        code, length, start = code & 0xFFFF, code >> 16, position + 4
    return code, start, length, start + length + -(start + length) % 8


def _tag(data: bytes, order: str) -> tuple[int, int]:
    if len(data) < _TAG_BYTES:
        raise _Refused(f'the file is truncated or damaged; {_DOWNLOAD_AGAIN}')
    kind, length = struct.unpack_from(f'{order}II', data)
    return kind, length


def _unpack(file: IO[bytes], order: str, element: _Element, limit: int, *, whole: bool) -> bytes:
    """The bytes of a variable, all of them or the first; never more than the limit."""
    file.seek(element.start)
    too_long = _Refused(
        f'expected at most {limit:,} bytes of data, got more than its shape says, as of a '
        f'decompression bomb; {_DOWNLOAD_AGAIN}'
    )
    if whole and element.length > limit:
        raise too_long
    data = file.read(min(element.length, limit))
    if not element.compressed:
        return data
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, limit)
    if whole and not unpacker.eof:
        # With nothing left to unpack it may still lack its checksum.
        if unpacker.decompress(unpacker.unconsumed_tail, 1):
            raise too_long
        if not unpacker.eof:
            raise _Refused(f'the packed data are truncated; {_DOWNLOAD_AGAIN}')
    kind, length = _tag(unpacked, order)
    if kind != _MATRIX or (whole and len(unpacked) != _TAG_BYTES + length):
        raise _Refused(
            f'expected an array in the packed data, got something else; {_DOWNLOAD_AGAIN}'
        )
    return unpacked[: _TAG_BYTES + length]
