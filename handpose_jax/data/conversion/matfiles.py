"""Reads one numeric array from a MATLAB file (version 5, which MATLAB calls -v6 and -v7).

SciPy reads the arrays; what it gets is first cut out of the file and unpacked here, up to a limit.
SciPy believes the lengths in a file: a variable of a few megabytes that is said to be small may
unpack to gigabytes in it.

Source: MathWorks, MAT-File Format (version 5): file header, data elements and their tags.
"""

import io
import itertools
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float

MAX_BYTES = 256 * 2**20

_HEADER_BYTES = 128
_VERSION_AT, _ENDIAN_AT, _SUBSYSTEM_AT = 124, 126, 116
_VERSION_5, _VERSION_7_3 = 0x0100, 0x0200
_HDF5 = b'\x89HDF\r\n\x1a\n'

_MATRIX, _COMPRESSED = 14, 15
_TAG_BYTES = 8
# Flags, dimensions and name, in a file that means well.
_DESCRIPTION_BYTES = 2**16
_MAX_VARIABLES = 1000

_NUMERIC = (
    'double',
    'single',
    *(f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)),
)

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
    # SciPy raises nearly anything when fed with damage.
    except Exception as error:
        raise ValueError(
            f'{path}: variable {name!r}: the MATLAB file is truncated or damaged '
            f'({type(error).__name__}: {error}); {_DOWNLOAD_AGAIN}'
        ) from error


class _Element(NamedTuple):
    """Where a variable stands in the file."""

    start: int
    length: int
    compressed: bool


def _read(
    file: IO[bytes], name: str, shape: tuple[int | None, ...], max_bytes: int
) -> Float[np.ndarray, '...']:
    import scipy.io

    header, order = _read_header(file)
    found: list[tuple[_Element, tuple[int, ...], str]] = []
    names: list[str] = []
    for element in _elements(file, order):
        start = _unpack(file, order, element, _DESCRIPTION_BYTES, whole=False)
        ((its_name, its_shape, kind),) = scipy.io.whosmat(io.BytesIO(header + start))
        names.append(its_name)
        if its_name == name:
            found.append((element, its_shape, kind))
    if len(found) != 1:
        others = ', '.join(map(repr, names[:10])) or 'none'
        raise _Refused(
            f'expected one variable of this name, got {len(found)}; the file holds {others}'
        )
    element, actual, kind = found[0]
    if kind not in _NUMERIC:
        raise _Refused(f'expected an array of numbers, got one of class {kind}; {_SAVE_AGAIN}')
    wanted = ' x '.join('any' if length is None else str(length) for length in shape)
    padded = actual + (1,) * (len(shape) - len(actual))
    fits = len(padded) == len(shape) and all(
        length in (None, its_length) for length, its_length in zip(shape, padded, strict=True)
    )
    if not fits:
        raise _Refused(
            f'expected the shape {wanted}, got {" x ".join(map(str, actual))}; check that it is '
            'the right file'
        )
    if math.prod(padded) * 8 > max_bytes:
        raise _Refused(
            f'expected at most {max_bytes:,} bytes, got {math.prod(padded) * 8:,} in the shape '
            f'{" x ".join(map(str, actual))}; if it is what you expect, raise max_bytes'
        )
    data = _unpack(file, order, element, max_bytes + _DESCRIPTION_BYTES, whole=True)
    with warnings.catch_warnings():
        # SciPy warns of what it cannot read, and returns a text instead.
        warnings.simplefilter('error')
        array: Any = scipy.io.loadmat(io.BytesIO(header + data), variable_names=[name])[name]
    if array.dtype.kind not in 'iuf' or array.shape != actual:
        raise _Refused(
            f'expected real numbers in the shape {wanted}, got {array.dtype} in {array.shape}; '
            f'{_SAVE_AGAIN}'
        )
    values = array.astype(np.float64).reshape(padded)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        place = ', '.join(str(index + 1) for index in bad[0])
        raise _Refused(
            f'expected finite numbers, got {len(bad)} others, the first, '
            f'{values[tuple(bad[0])]}, at ({place}); {_DOWNLOAD_AGAIN}'
        )
    return values


def _read_header(file: IO[bytes]) -> tuple[bytes, str]:
    """The header for files of one variable, and the byte order as struct has it."""
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
    # It points to what belongs to objects, which is not handed on.
    clean = header[:_SUBSYSTEM_AT] + bytes(_VERSION_AT - _SUBSYSTEM_AT) + header[_VERSION_AT:]
    return clean, order


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
        yield _Element(
            position if packed else position - _TAG_BYTES,
            length if packed else length + _TAG_BYTES,
            packed,
        )
        position += length


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
    # SciPy would unpack what is packed in there once more.
    kind, length = _tag(unpacked, order)
    if kind != _MATRIX:
        raise _Refused(
            f'expected an array in the packed data, got something else; {_DOWNLOAD_AGAIN}'
        )
    if whole and len(unpacked) != _TAG_BYTES + length:
        raise _Refused(
            f'expected {length:,} bytes of packed data, got {len(unpacked) - _TAG_BYTES:,}; '
            f'{_DOWNLOAD_AGAIN}'
        )
    return unpacked[: _TAG_BYTES + length]
