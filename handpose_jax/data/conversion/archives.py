"""Unpacks archives from anywhere: all of an archive, into a new folder, or nothing.

An archive is untrusted input. Its names may point outside the folder, its links too, and a few
kilobytes may hold petabytes. Nothing here believes what an archive says about itself: every name
is checked, bytes are counted while they are written, and what is unpacked gets its name only when
it is complete.
"""

import bz2
import errno
import gzip
import json
import lzma
import operator
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

MAX_FILES = 1_000_000
MAX_BYTES = 128 * 2**30
MAX_RATIO = 200.0
"""Defaults: beyond any data set of hands; a bomb of DEFLATE reaches a ratio of 1,032."""

MARKER = '.unpacked.json'
"""In an unpacked folder: the archive it came from, and how many files came out of it."""

_KINDS: tuple[tuple[bytes, str, Callable[..., Any] | None], ...] = (
    (b'PK\x03\x04', 'zip', None),
    (b'PK\x05\x06', 'zip', None),  # an empty one
    (b'\x1f\x8b', 'tar.gz', gzip.open),
    (b'BZh', 'tar.bz2', bz2.open),
    (b'\xfd7zXZ\x00', 'tar.xz', lzma.open),
)
_TAR_MAGIC, _TAR_MAGIC_AT = b'ustar', 257

_CHUNK = 2**20
_BLOCK = 512
# Small archives may compress as well as they like.
_FREE_BYTES = 32 * 2**20
# Room for the long names that stand before a member's own header.
_MAX_HEADER = 2**20
# Writers fill the last record of a tar with zeros: 10 kB by default, more on request.
_MAX_PADDING = 16 * 2**20
_MAX_DEPTH = 64
_SHOW_PROGRESS_FROM = 64 * 2**20


class _Refused(ValueError):
    """An error whose message is complete."""


def extract(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
    max_ratio: float = MAX_RATIO,
) -> Path:
    """Unpacks a zip, tar, tar.gz, tar.bz2 or tar.xz into a new folder.

    Files are written into a folder beside the target, `<target>.partial`, which is renamed in the
    end: after a kill or a refusal there is no target. Permissions and times are not restored.

    Args:
        archive: the file; its kind is told by its content.
        target: the folder to make. If it is there already, unpacked from this archive and whole,
            nothing is done.
        max_files: refuse archives of more files and folders.
        max_bytes: refuse archives of more bytes, unpacked.
        max_ratio: refuse archives whose content is more than this many times larger than the
            archive itself; not applied to contents below 32 MiB.

    Returns:
        The target.

    Raises:
        ValueError: naming archive and member: for another or damaged file; names that are absolute,
            hold '..', a backslash, a colon or a control character, or occur twice (upper and lower
            case being the same); links, devices and encrypted members; members that its list lacks
            or that overlap; too many files or bytes; a target that is there but is not this
            archive's; too little free space.
    """
    source, folder = Path(archive), Path(target)
    try:
        size = source.stat().st_size
        if not source.is_file():
            raise _Refused(f'{source}: expected an archive, got something that is not a file')
        if folder.exists():
            _check_unpacked(folder, source, size)
            return folder
        limits = _Limits(source, size, max_files, max_bytes, max_ratio)
        _unpack_beside(source, folder, limits)
    except OSError as error:
        raise _of_system(source, folder, error) from error
    return folder


class _Limits:
    """What is allowed, and how much of it is used up."""

    def __init__(self, archive: Path, size: int, files: int, total: int, ratio: float):
        self.archive = archive
        self.size = size
        self.max_files = files
        self.max_bytes = total
        self.max_ratio = ratio
        self.members = 0
        self.files = 0
        self.bytes = 0

    def refuse(self, what: str, advice: str = 'download it again from its authors') -> _Refused:
        return _Refused(f'{self.archive}: {what}; {advice}')

    def check_bytes(self, total: int) -> None:
        raised = 'if it is what you expect, raise'
        if total > self.max_bytes:
            raise self.refuse(
                f'expected at most {self.max_bytes:,} bytes unpacked, got more',
                f'{raised} max_bytes',
            )
        if total > max(_FREE_BYTES, self.max_ratio * self.size):
            raise self.refuse(
                f'expected a content at most {self.max_ratio:g} times the {self.size:,} bytes of '
                'the archive, got more, as of a decompression bomb',
                f'{raised} max_ratio',
            )

    def add_member(self) -> None:
        self.members += 1
        self.check_members(self.members)

    def check_members(self, total: int) -> None:
        if total > self.max_files:
            raise self.refuse(
                f'expected at most {self.max_files:,} files and folders, got more',
                'if it is what you expect, raise max_files',
            )

    def add_bytes(self, count: int) -> None:
        self.bytes += count
        self.check_bytes(self.bytes)


class _Names:
    """Turns members' names into paths inside a folder; refuses those that are not."""

    def __init__(self, limits: _Limits):
        self._limits = limits
        self._files: set[tuple[str, ...]] = set()
        self._folders: set[tuple[str, ...]] = set()

    def place(self, name: str, *, is_folder: bool) -> tuple[str, ...]:
        """The parts of a member's path; () for the folder itself."""
        parts = tuple(part for part in name.split('/') if part not in ('', '.'))
        problem = None
        if name.startswith('/'):
            problem = 'an absolute path'
        elif '..' in parts:
            problem = "a path with '..'"
        elif '\\' in name:
            problem = 'a path with a backslash'
        elif ':' in name:
            problem = 'a path with a drive letter or a colon'
        elif re.search(r'[\x00-\x1f\x7f]', name):
            problem = 'a path with a control character'
        elif not parts and not is_folder:
            problem = 'no name'
        elif len(parts) > _MAX_DEPTH:
            problem = f'one of more than {_MAX_DEPTH} folders in each other'
        elif '/'.join(parts).casefold() == MARKER:
            problem = 'the name of the file that marks an unpacked folder'
        # File systems that know no case, or write accents otherwise, would mix these up.
        key = tuple(unicodedata.normalize('NFC', part).casefold() for part in parts)
        above = {key[:length] for length in range(1, len(key))}
        if problem is None and not is_folder and (key in self._files or key in self._folders):
            problem = 'a name that was there before (upper and lower case being the same)'
        elif problem is None and (above & self._files or (is_folder and key in self._files)):
            problem = 'a folder whose name is a file in the archive'
        if problem is not None:
            raise self._limits.refuse(
                f'member {_shown(name)}: expected a path inside, got {problem}'
            )
        self._folders |= above
        (self._folders if is_folder else self._files).add(key)
        return parts


def _shown(name: str) -> str:
    return repr(name if len(name) <= 200 else f'{name[:197]}...')


def _check_unpacked(folder: Path, archive: Path, size: int) -> None:
    try:
        marker = json.loads((folder / MARKER).read_text('utf-8'))
        same = marker['archive'] == archive.name and marker['bytes'] == size
        files = int(marker['files'])
    except (OSError, ValueError, KeyError, TypeError):
        same, files = False, 0
    if not same:
        raise _Refused(
            f'{folder}: expected a new folder, or the one that {archive} was unpacked into before, '
            f'got another; remove it, and {archive.name} will be unpacked there'
        )
    # Without the marker itself.
    found = sum(len(names) for _, _, names in os.walk(folder)) - 1
    if found < files:
        raise _Refused(
            f'{folder}: expected the {files:,} files of {archive.name}, got {found:,}; remove the '
            'folder, and the archive will be unpacked again'
        )


def _unpack_beside(archive: Path, folder: Path, limits: _Limits) -> None:
    partial = folder.with_name(f'{folder.name}.partial')
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What a killed extraction left.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with (
            archive.open('rb') as raw,
            tqdm(
                total=limits.size,
                desc=f'unpacking {archive.name}',
                unit='B',
                unit_scale=True,
                disable=limits.size < _SHOW_PROGRESS_FROM,
            ) as bar,
        ):
            kind, opener = _kind(raw, archive)

            def progress() -> None:
                bar.update(max(0, raw.tell() - bar.n))

            try:
                if kind == 'zip':
                    _unpack_zip(raw, partial, limits, progress)
                else:
                    # Compressed, it needs no less space than the archive takes.
                    _check_space(partial, limits.size, limits)
                    stream = opener(raw, mode='rb') if opener else raw
                    _unpack_tar(stream, partial, limits, progress)
            except _Refused:
                raise
            except OSError as error:
                if error.errno is not None:
                    raise
                raise _damaged(limits, kind, error) from error
            # The decoders raise nearly anything when fed with damage (struct.error, EOFError,
            # zlib.error, IndexError, ..).
            except Exception as error:
                raise _damaged(limits, kind, error) from error
        if not limits.files:
            raise limits.refuse('expected files in it, got none')
        marker = {'archive': archive.name, 'bytes': limits.size, 'files': limits.files}
        (partial / MARKER).write_text(json.dumps(marker) + '\n', encoding='utf-8')
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _kind(raw: IO[bytes], archive: Path) -> tuple[str, Callable[..., Any] | None]:
    start = raw.read(_BLOCK)
    raw.seek(0)
    for prefix, kind, opener in _KINDS:
        if start.startswith(prefix):
            return kind, opener
    if start[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        return 'tar', None
    raise _Refused(
        f'{archive}: expected a zip, tar, tar.gz, tar.bz2 or tar.xz, got a file that starts with '
        f'{start[:12]!r}; download it again, or unpack it yourself'
    )


def _damaged(limits: _Limits, kind: str, error: Exception) -> _Refused:
    return limits.refuse(
        f'the {kind} is truncated, damaged or of an unsupported kind '
        f'({type(error).__name__}: {error})',
        'download it again',
    )


def _of_system(archive: Path, folder: Path, error: OSError) -> _Refused:
    if error.errno == errno.ENOSPC:
        return _Refused(f'{archive}: no space is left to unpack it into {folder}; free some')
    return _Refused(f'{archive}: cannot be unpacked into {folder} ({error})')


def _check_space(folder: Path, needed: int, limits: _Limits) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise limits.refuse(
            f'expected {needed / 2**30:.2f} GiB of free space in {folder.parent} to unpack it, got '
            f'{free / 2**30:.2f} GiB',
            'free some, or unpack it yourself elsewhere',
        )


def _unpack_zip(
    raw: IO[bytes], folder: Path, limits: _Limits, progress: Callable[[], None]
) -> None:
    _check_directory(raw, limits)
    with zipfile.ZipFile(raw) as opened:
        members = opened.infolist()
        # What it says about itself: enough to refuse, never to trust.
        claimed = sum(member.file_size for member in members)
        limits.check_bytes(claimed)
        _check_space(folder, claimed, limits)
        names = _Names(limits)
        places = [_check_zip_member(member, names, limits) for member in members]
        _check_layout(raw, members, opened.start_dir, limits)
        for member, parts in zip(members, places, strict=True):
            limits.add_member()
            if member.is_dir():
                folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
                continue
            with opened.open(member) as content:
                _write(content, folder.joinpath(*parts), limits, progress)


# Section and field names are those of PKWARE's APPNOTE.TXT.
_LOCAL, _CENTRAL, _END = b'PK\x03\x04', b'PK\x01\x02', b'PK\x05\x06'
_END_64, _LOCATOR_64 = b'PK\x06\x06', b'PK\x06\x07'
_LOCAL_SIZE, _CENTRAL_SIZE, _END_SIZE = 30, 46, 22
_ENCRYPTED, _SIZES_FOLLOW = 1, 8
_MAX_COMMENT = 2**16
# A member's name, extra field and comment are 64 KiB each at most; whoever needs that much for each
# of many has no data set.
_MAX_DIRECTORY = 2**28


def _check_directory(raw: IO[bytes], limits: _Limits) -> None:
    """Holds the list of members, entry by entry, against the number that stands at the end.

    The library reads entries until the list's bytes are used up: a length that is too large makes
    one entry swallow those that follow it, and a long list costs memory before it can be counted.
    """
    start = max(0, limits.size - _END_SIZE - _MAX_COMMENT)
    raw.seek(start)
    tail = raw.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE:
        raise limits.refuse('the zip has no end: it is truncated', 'download it again')
    count, size, offset, comment = struct.unpack_from('<10xHIIH', tail, at)
    if at + _END_SIZE + comment != len(tail):
        raise limits.refuse('the zip goes on behind its end', 'download it again')
    end = start + at
    if tail[max(0, at - 20) : at].startswith(_LOCATOR_64):
        (end,) = struct.unpack_from('<Q', tail, at - 12)
        raw.seek(end)
        record = raw.read(56)
        if not record.startswith(_END_64) or len(record) < 56:
            raise limits.refuse('the zip has no end: it is damaged', 'download it again')
        count, size, offset = struct.unpack_from('<32xQQQ', record)
    limits.check_members(count)
    if size > _MAX_DIRECTORY or offset + size != end:
        raise limits.refuse(
            f'expected a list of members of {size:,} bytes that ends at byte {end:,}, got one that '
            f'begins at byte {offset:,}',
            'download it again',
        )
    raw.seek(offset)
    entries, position, found = raw.read(size), 0, 0
    while position < size and entries.startswith(_CENTRAL, position) and found <= count:
        if size - position < _CENTRAL_SIZE:
            break
        position += _CENTRAL_SIZE + sum(struct.unpack_from('<HHH', entries, position + 28))
        found += 1
    if (found, position) != (count, size):
        raise limits.refuse(
            f'expected a list of {count:,} members, got one of {found:,} whole ones',
            'download it again',
        )
    raw.seek(0)


def _check_zip_member(member: zipfile.ZipInfo, names: _Names, limits: _Limits) -> tuple[str, ...]:
    """Checks what the list says of a member; returns the parts of its path."""
    shown = _shown(member.orig_filename)
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = 'a link' if stat.S_ISLNK(member.external_attr >> 16) else 'a device'
        raise limits.refuse(f'member {shown}: expected a file or a folder, got {what}')
    if member.flag_bits & _ENCRYPTED:
        raise limits.refuse(
            f'member {shown}: expected a plain file, got an encrypted one', 'unpack it yourself'
        )
    if member.is_dir() and member.file_size:
        raise limits.refuse(
            f'member {shown}: expected a folder without content, got one of '
            f'{member.file_size:,} bytes',
            'download it again',
        )
    return names.place(member.orig_filename, is_folder=member.is_dir())


def _check_layout(
    raw: IO[bytes], members: list[zipfile.ZipInfo], end: int, limits: _Limits
) -> None:
    """Checks that members lie side by side, are what the list says, and that none is not listed."""
    position = 0
    ordered = sorted(members, key=operator.attrgetter('header_offset'))
    for member in [*ordered, None]:
        start = end if member is None else member.header_offset
        if start < position:
            raise limits.refuse(
                f'member {_shown(member.orig_filename if member else "")}: expected its own place '
                'in the archive, got one that overlaps another'
            )
        # What stands between may be checksums and sizes, or fill up.
        raw.seek(position)
        if _LOCAL in raw.read(min(start - position, _CHUNK)) or start - position > _CHUNK:
            raise limits.refuse(
                f'expected every member in its list, got one at byte {position:,} that is not',
                'download it again',
            )
        if member is None:
            return
        shown = _shown(member.orig_filename)
        raw.seek(start)
        local = raw.read(_LOCAL_SIZE)
        if len(local) < _LOCAL_SIZE or not local.startswith(_LOCAL):
            raise limits.refuse(f'member {shown} is damaged: it is not at its place')
        flags, method, crc, packed, size, name, extra = struct.unpack('<6xHH4xIIIHH', local)
        told = (member.CRC, member.compress_size, member.file_size)
        # Members that were written before their size was known have it behind them; large ones have
        # it in their extra field.
        apart = flags & _SIZES_FOLLOW or 2**32 - 1 in (packed, size)
        if (flags, method) != (member.flag_bits, member.compress_type) or not (
            apart or (crc, packed, size) == told
        ):
            raise limits.refuse(
                f'member {shown}: expected a header that says what the list says, got another',
                'download it again',
            )
        position = start + _LOCAL_SIZE + name + extra + member.compress_size


# Extended headers (POSIX.1-2001, pax) and GNU's: what stands before a member's own header.
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_BEFORE_TYPES = (*_PAX_TYPES, *_LONG_TYPES, tarfile.XGLTYPE)
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def _unpack_tar(stream: Any, folder: Path, limits: _Limits, progress: Callable[[], None]) -> None:
    """Reads header by header and in one pass: not a byte is read before its header is checked.

    The library parses a single header only: its own way through an archive searches extended
    headers by patterns that take minutes on a few hundred bytes.
    """
    names = _Names(limits)
    while (member := _next_tar_member(stream, limits)) is not None:
        limits.add_member()
        shown = _shown(member.name)
        if member.islnk() or member.issym():
            raise limits.refuse(
                f'member {shown}: expected a file or a folder, got a link to '
                f'{_shown(member.linkname)}'
            )
        if member.type not in (*_FILE_TYPES, tarfile.DIRTYPE):
            what = 'a file with holes' if member.type == tarfile.GNUTYPE_SPARSE else 'a device'
            raise limits.refuse(f'member {shown}: expected a file or a folder, got {what}')
        parts = names.place(member.name, is_folder=member.isdir())
        if member.isdir():
            folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
        else:
            limits.check_bytes(limits.bytes + member.size)
            content = _Part(stream, member.size)
            _write(content, folder.joinpath(*parts), limits, progress)
            if content.left:
                raise limits.refuse(
                    f'the tar is truncated in its member {shown}', 'download it again'
                )
            stream.read(-member.size % _BLOCK)
    # The checksum of what is compressed comes last.
    padding = 0
    while data := stream.read(_CHUNK):
        padding += len(data)
        if data.strip(b'\0') or padding > _MAX_PADDING:
            raise limits.refuse('the tar goes on behind its end', 'unpack it yourself')
    progress()


class _Part:
    """The next bytes of a stream."""

    def __init__(self, stream: Any, size: int):
        self._stream = stream
        self.left = size

    def read(self, count: int) -> bytes:
        data = self._stream.read(min(count, self.left))
        self.left -= len(data)
        return data


def _next_tar_member(stream: Any, limits: _Limits) -> tarfile.TarInfo | None:
    """The next header, with what stands before it; None at the end of the archive."""
    used, said = 0, dict[str, str]()
    while True:
        block = stream.read(_BLOCK)
        if block == bytes(_BLOCK) and not said:
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
        except tarfile.HeaderError as error:
            raise limits.refuse(
                'the tar has no end: it is truncated or damaged', 'download it again'
            ) from error
        if member.size < 0:
            raise limits.refuse(
                f'member {_shown(member.name)}: expected its size in bytes, got {member.size}'
            )
        if member.type not in _BEFORE_TYPES:
            break
        used += _BLOCK + member.size
        if used > _MAX_HEADER:
            raise limits.refuse(
                f'expected headers of at most {_MAX_HEADER:,} bytes, got a longer one'
            )
        body = stream.read(member.size)
        stream.read(-member.size % _BLOCK)
        if member.type in _LONG_TYPES:
            field = 'path' if member.type == tarfile.GNUTYPE_LONGNAME else 'linkpath'
            said[field] = body.partition(b'\0')[0].decode('utf-8', 'surrogateescape')
            continue
        fields = _pax_fields(body, limits)
        if member.type in _PAX_TYPES:
            said |= fields
        elif fields.keys() & {'path', 'linkpath', 'size'}:
            raise limits.refuse('expected names and sizes member by member, got one for all')
    member.name = said.get('path', member.name)
    member.linkname = said.get('linkpath', member.linkname)
    if any(key.startswith('GNU.sparse.') for key in said):
        member.type = tarfile.GNUTYPE_SPARSE
    if 'size' in said:
        if not re.fullmatch('[0-9]{1,19}', said['size']):
            raise limits.refuse(
                f'member {_shown(member.name)}: expected its size in bytes, got '
                f'{_shown(said["size"])}'
            )
        member.size = int(said['size'])
    return member


def _pax_fields(body: bytes, limits: _Limits) -> dict[str, str]:
    """The fields of an extended header, each written as 'LENGTH NAME=VALUE' and a line's end."""
    fields, position = {}, 0
    while position < len(body):
        # No length has more digits than that of the longest header.
        digits = body[position : position + 8].partition(b' ')[0]
        end = position + int(digits) if re.fullmatch(rb'[1-9][0-9]{0,6}', digits) else 0
        record = body[position + len(digits) + 1 : end - 1] if end else b''
        name, equals, value = record.partition(b'=')
        if not name or not equals or end > len(body) or body[end - 1 : end] != b'\n':
            raise limits.refuse(
                f'expected the fields of an extended header, got {body[position : position + 20]!r}'
            )
        fields[name.decode('utf-8', 'replace')] = value.decode('utf-8', 'surrogateescape')
        position = end
    return fields


def _write(content: Any, path: Path, limits: _Limits, progress: Callable[[], None]) -> None:
    limits.files += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('xb') as file:
        while data := content.read(_CHUNK):
            limits.add_bytes(len(data))
            file.write(data)
            progress()
