"""Takes image files apart by our own hand, before a library sees their bytes.

Size and orientation are read here, once, for everyone. What a decoder is given is put together
anew from the parts that make the picture: no EXIF block, no comment, no colour profile reaches it.
Bounds on pixels, scans, segments and tables are kept here, as a few kilobytes can otherwise occupy
a decoder for minutes, and data that are missing are found here where the decoders keep quiet.
"""

import bisect
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

FORMATS = 'JPEG, PNG, WebP, BMP, TIFF or GIF'
MAX_SIDE = 65_535
"""The longest side that JPEG can write: decoders take time and memory for each row."""

# Progressive files of all known encoders have about ten. Each scan goes through the whole picture.
_MAX_SCANS = 100
# A colour profile or extended metadata fill some hundred segments; a PNG writes its picture in
# chunks of 8 KiB and more.
_MAX_SEGMENTS = 4_000
_MAX_CHUNKS = 100_000
_MAX_MARKERS = 8_000_000
_MAX_STRIPS = 65_535
_MAX_TAGS = 1_000
_MAX_GIF_FRONT = 2**20
_BLOCK = 2**20


class Damage(ValueError):
    """What is wrong with a file, without its name."""


class Header(NamedTuple):
    """What a file says about its picture.

    width and height are in pixels, as stored; orientation is EXIF's, 1 to 8; jpeg is a JPEG taken
    apart, as far as its picture.
    """

    file_format: str
    width: int
    height: int
    orientation: int = 1
    jpeg: 'Jpeg | None' = None

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as the picture is to be seen."""
        lying = self.orientation >= 5
        return (self.width, self.height) if lying else (self.height, self.width)


def header(data: bytes) -> Header:
    """Reads kind, size and orientation, also where the picture itself is cut off or damaged.

    Raises:
        Damage: for a header that is cut off, damaged, or beyond the bounds of this module.
        KeyError: for a file of another kind.
    """
    file_format = kind(data)
    if file_format is None:
        raise KeyError(data[:12])
    try:
        found = _READERS[file_format](data)
    except (struct.error, IndexError) as error:
        raise Damage('its header is cut off') from error
    if not (found.width > 0 and found.height > 0):
        raise Damage(f'its size is {found.width} x {found.height}')
    return found


def kind(data: bytes) -> str | None:
    """The format that a file's first bytes tell; None for another."""
    for file_format, prefixes in _PREFIXES.items():
        if data.startswith(prefixes) and (file_format != 'WebP' or data[8:12] == b'WEBP'):
            return file_format
    return None


def read_orientation(tiff: bytes) -> int:
    """EXIF's orientation from a block that begins as a TIFF file does.

    Anything but 1 to 8, stored as one SHORT, counts as 1: photo viewers show such pictures, and
    those whose block is damaged, as they are stored.
    """
    try:
        return _tiff_orientation(_Directory(tiff))
    except (Damage, struct.error, IndexError):
        return 1


def _tiff_orientation(directory: '_Directory') -> int:
    for tag, (code, count, at) in directory.entries:
        if tag == _ORIENTATION:
            value = directory.unpack('H', at) if (code, count) == (_SHORT, 1) else 1
            return value if 1 <= value <= 8 else 1
    return 1


# ------------------------------------------------------------------------------------------- JPEG

# Markers of ITU-T T.81, table B.1.
_SOI, _EOI = b'\xff\xd8', b'\xff\xd9'
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
_DHT, _SOS, _DQT, _DRI, _APP0, _APP1, _APP14 = 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE
# JFIF's and Adobe's segments say what the components are.
_KEPT = {_BASELINE, _EXTENDED, _PROGRESSIVE, _DHT, _SOS, _DQT, _DRI, _APP0, _APP14}
_EXIF = b'Exif\0\0'


class _Scan(NamedTuple):
    start: int
    data_start: int
    end: int
    restarts: np.ndarray


class Jpeg:
    """The parts of a JPEG file that make its picture.

    Attributes:
        width, height: in pixels, as stored.
        bits: of a sample.
        components: as (name, horizontal sampling, vertical sampling).
        orientation: of the first EXIF block, 1 to 8.
        adobe: whether Adobe's segment says what the components are.
    """

    def __init__(self, data: bytes):
        """Takes a file apart, up to the picture itself.

        Raises:
            Damage: for damage of what it takes apart.
        """
        self._data = data
        self._parts: list[bytes | _Scan] = []
        self.scans: list[_Scan] = []
        self._segments = 0
        self._interval = 0
        self._frame = 0
        self.width = self.height = self.bits = 0
        self.components: list[tuple[int, int, int]] = []
        self.orientation = 1
        self.adobe = False
        position = 2
        exif_seen = False
        for marker, start, end in self._walk(position):
            if marker == _SOS or marker == _EOI[1]:
                position = start
                break
            body = data[start + 4 : end]
            if marker == _APP1 and body.startswith(_EXIF) and not exif_seen:
                exif_seen, self.orientation = True, read_orientation(body[len(_EXIF) :])
            self._take(marker, start, end)
            position = end
        if not self._frame:
            raise Damage('it has no frame header')
        self._front = position

    def read_scans(self) -> None:
        """Goes through the picture, to its end marker; call it once, before what follows here.

        Raises:
            Damage: for a picture that is no whole one: scans are missing, or restart markers.
        """
        position = self._front
        markers = _markers(self._data, position)
        codes = np.frombuffer(self._data, np.uint8)[markers + 1]
        stops = np.flatnonzero((codes & 0xF8) != 0xD0).tolist()
        # By component, the lowest bit of each coefficient that was sent; 99 for none.
        sent = [[99] * 64 for _ in self.components]
        while True:
            for marker, start, end in self._walk(position):
                if marker in (_SOS, _EOI[1]):
                    break
                self._take(marker, start, end)
                position = end
            else:
                raise Damage('it ends before its end marker')
            if marker == _EOI[1]:
                break
            first = int(np.searchsorted(markers, end))
            stop = bisect.bisect_left(stops, first)
            if stop == len(stops):
                raise Damage('it ends before its end marker')
            restarts = slice(first, stops[stop])
            scan = _Scan(start, end, int(markers[restarts.stop]), markers[restarts])
            self._parts.append(scan)
            self.scans.append(scan)
            if len(self.scans) > _MAX_SCANS:
                raise Damage(f'it has more than {_MAX_SCANS} scans')
            self._check_scan(scan, codes[restarts], sent)
            position = scan.end
        if not self.scans:
            raise Damage('it holds no picture')
        if any(map(any, sent)):
            raise Damage('scans of its picture are missing')

    @property
    def single(self) -> bool:
        """Whether the picture is one scan, which a decoder turns into rows while it reads it."""
        return len(self.scans) == 1 and self._frame != _PROGRESSIVE

    @property
    def restarts(self) -> bool:
        """Whether parts of a scan are set off by restart markers."""
        return any(len(scan.restarts) for scan in self.scans)

    def put_together(
        self, *, pad: bytes = b'', at_restarts: bool = False, cut: int = 0, end: bytes = _EOI
    ) -> bytes:
        """A JPEG file of these parts.

        Args:
            pad: goes behind the coded data of each scan: nothing that a decoder would look at if
                the data are whole.
            at_restarts: the pad goes before each restart marker as well.
            cut: leave out that many last bytes of the last scan.
            end: what stands for the end marker.
        """
        data, pieces = self._data, [_SOI]
        last = self.scans[-1]
        for part in self._parts:
            if isinstance(part, bytes):
                pieces.append(part)
                continue
            stop = max(part.end - cut, part.data_start) if part is last else part.end
            bounds = [part.start, *(part.restarts.tolist() if at_restarts else ()), stop]
            for piece_start, piece_end in itertools.pairwise(bounds):
                pieces += [data[piece_start:piece_end], pad]
        return b''.join([*pieces, end])

    def tail(self, count: int) -> bytes:
        """The last bytes of the last scan, at most that many."""
        last = self.scans[-1]
        return self._data[max(last.data_start, last.end - count) : last.end]

    def _walk(self, position: int) -> Iterator[tuple[int, int, int]]:
        """Yields (marker, start, end) of the segments from a position on."""
        data = self._data
        while position + 2 <= len(data):
            self._segments += 1
            if self._segments > _MAX_SEGMENTS:
                raise Damage(f'it has more than {_MAX_SEGMENTS:,} segments')
            if data[position] != 0xFF:
                raise Damage(f'expected a marker at byte {position}')
            marker = data[position + 1]
            if marker == 0xFF:  # a byte that fills up
                position += 1
                continue
            if marker == _EOI[1]:
                yield marker, position, position + 2
                return
            length = int.from_bytes(data[position + 2 : position + 4], 'big')
            if marker in (0, 1, _SOI[1]) or 0xD0 <= marker <= 0xD7 or length < 2:
                raise Damage(f'expected a segment at byte {position}, got the marker {marker:#x}')
            end = position + 2 + length
            if end > len(data):
                return
            yield marker, position, end
            position = end

    def _take(self, marker: int, start: int, end: int) -> None:
        data = self._data
        if marker in _OTHER_FRAMES:
            raise Damage('its coding is lossless, arithmetic or hierarchical')
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            if self._frame:
                raise Damage('it has two frame headers')
            self._frame = marker
            self.bits, self.height, self.width, count = struct.unpack_from('>BHHB', data, start + 4)
            if end - start != 10 + 3 * count or not 1 <= count <= 4:
                raise Damage('its frame header is damaged')
            for at in range(start + 10, end, 3):
                self.components.append((data[at], data[at + 1] >> 4, data[at + 1] & 15))
            if not all(1 <= h <= 4 and 1 <= v <= 4 for _, h, v in self.components):
                raise Damage('its frame header is damaged')
        elif marker == _DRI:
            (self._interval,) = struct.unpack_from('>H', data, start + 4)
        elif marker == _APP14:
            self.adobe = True
        if marker in _KEPT:
            self._parts.append(data[start:end])

    def _check_scan(self, scan: _Scan, codes: np.ndarray, sent: list[list[int]]) -> None:
        data, at = self._data, scan.start + 4
        count = data[at]
        if scan.data_start - scan.start != 8 + 2 * count or not count:
            raise Damage('the header of a scan is damaged')
        names = data[at + 1 : at + 1 + 2 * count : 2]
        known = [name for name, _, _ in self.components]
        if not set(names) <= set(known):
            raise Damage('the header of a scan is damaged')
        indices = [known.index(name) for name in names]
        first, last, bits = data[scan.data_start - 3 : scan.data_start]
        if self._frame != _PROGRESSIVE:
            first, last, bits = 0, 63, 0
        elif not first <= last <= 63:
            raise Damage('the header of a scan is damaged')
        for index in indices:
            sent[index][first : last + 1] = [bits & 15] * (last + 1 - first)
        units = self._units(indices)
        needed = -(-units // self._interval) - 1 if self._interval else 0
        # Some encoders write one more, before the end.
        if not needed <= len(codes) <= needed + bool(self._interval) or (
            len(codes) and np.any(codes != 0xD0 + np.arange(len(codes)) % 8)
        ):
            raise Damage(
                f'parts of its picture are missing: expected {needed} restart markers, in turn, '
                f'got {len(codes)}'
            )

    def _units(self, indices: list[int]) -> int:
        """Into how many coding units (MCU) a scan of these components divides the picture."""
        across = max(h for _, h, _ in self.components)
        down = max(v for _, _, v in self.components)
        if len(indices) > 1:
            return -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        _, h, v = self.components[indices[0]]
        return -(-self.width * h // (8 * across)) * -(-self.height * v // (8 * down))


def _markers(data: bytes, start: int) -> np.ndarray:
    """Where markers stand in coded data, restart markers among them; in order."""
    view = np.frombuffer(data, np.uint8)
    found: list[np.ndarray] = []
    total = 0
    for at in range(start, len(data) - 1, _BLOCK):
        places = np.flatnonzero(view[at : min(at + _BLOCK, len(data) - 1)] == 0xFF)
        after = view[at + 1 :][places]
        # Zero says that the byte before is no marker, 255 fills up.
        places = places[(after != 0) & (after != 0xFF)]
        found.append(places + at)
        total += len(places)
        if total > _MAX_MARKERS:
            raise Damage(f'it has more than {_MAX_MARKERS:,} markers')
    return np.concatenate(found) if found else np.empty(0, int)


def _jpeg_header(data: bytes) -> Header:
    found = Jpeg(data)
    return Header('JPEG', found.width, found.height, found.orientation, found)


# -------------------------------------------------------------------------------------------- PNG

_PNG_START = 8
_PICTURE_CHUNKS = {b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'}
# Samples of a pixel by colour type.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# What an interlaced picture is written in: (first column, first row, step across, step down).
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, start, end) of each whole chunk, up to the last."""
    position = _PNG_START
    for count in itertools.count():
        if position + 12 > len(data):
            return
        if count >= _MAX_CHUNKS:
            raise Damage(f'it has more than {_MAX_CHUNKS:,} chunks')
        (length,) = struct.unpack_from('>I', data, position)
        name, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            return
        yield name, position, end
        if name == b'IEND':
            return
        position = end


def _png_header(data: bytes) -> Header:
    length, name, width, height = struct.unpack_from('>I4sII', data, _PNG_START)
    if (length, name) != (13, b'IHDR'):
        raise Damage('it does not begin with its header')
    exif = (data[at + 8 : end - 4] for name, at, end in _png_chunks(data) if name == b'eXIf')
    return Header('PNG', width, height, read_orientation(next(exif, b'')))


def png_picture(data: bytes) -> bytes:
    """A PNG of only the chunks that make the picture.

    Raises:
        Damage: for a checksum that is wrong, a chunk that is missing or unknown.
    """
    kept = [data[:_PNG_START]]
    view = memoryview(data)
    name = b''
    for name, start, end in _png_chunks(data):
        check = int.from_bytes(data[end - 4 : end], 'big')
        # The first letter's case says whether the picture can be seen without the chunk.
        if not name[0] & 32 or name in _PICTURE_CHUNKS:
            if name not in _PICTURE_CHUNKS:
                raise Damage(f'it has the unknown chunk {name!r}')
            if zlib.crc32(view[start + 4 : end - 4]) != check:
                raise Damage(f'the checksum of its chunk {name.decode("latin-1")} is wrong')
            kept.append(data[start:end])
    if name != b'IEND':
        raise Damage('it ends before its end chunk')
    return b''.join(kept)


def png_interlaced(data: bytes) -> bool:
    """Whether rows of a PNG stand in another order than they are seen."""
    return data[_PNG_START + 20] != 0


def check_png_rows(data: bytes) -> None:
    """Unpacks the rows of a PNG, keeping nothing, for their number and their own checksum.

    Raises:
        Damage: for rows that are missing, or more of them; for damage.
    """
    width, height, bits, colour = struct.unpack_from('>IIBB', data, _PNG_START + 8)
    if colour not in _SAMPLES or bits > 16:
        raise Damage('its header is damaged')
    passes = _ADAM7 if png_interlaced(data) else ((0, 0, 1, 1),)
    expected = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            # Each row has a byte before it that names its filter.
            expected += rows * (1 + -(-columns * bits * _SAMPLES[colour] // 8))
    unpacker, total = zlib.decompressobj(), 0
    pieces = (data[at + 8 : end - 4] for name, at, end in _png_chunks(data) if name == b'IDAT')
    try:
        # Nothing follows; the last rows may wait inside for room.
        for piece in itertools.chain(pieces, [b'']):
            while total <= expected and not unpacker.eof:
                found = len(unpacker.decompress(piece, _BLOCK))
                total += found
                piece = unpacker.unconsumed_tail
                if not piece and found < _BLOCK:
                    break
    except zlib.error as error:
        raise Damage(str(error)) from error
    if total != expected:
        raise Damage(
            f'its rows fill {expected:,} bytes, got {"more" * (total > expected) or total}'
        )
    if not unpacker.eof:
        raise Damage('its compressed rows have no end')


# ------------------------------------------------------------------------------------------- TIFF

_SHORT = 3
# Bytes of a value by type; 13 and 16 to 18 are offsets.
_TYPE_SIZES = dict(
    zip(
        (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18),
        (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8),
        strict=True,
    )
)
_UNSIGNED = {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}
_WIDTH, _LENGTH, _ORIENTATION = 256, 257, 274
# Facsimile and the JPEG of TIFF 6.0 itself.
_UNCHECKED = {2, 3, 4, 6}
_JPEG_IN_TIFF = 7
# The tags of TIFF 6.0 that say how pixels are stored: all that a decoder is to see.
_PICTURE_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 301, 317),
    *(320, 322, 323, 324, 325, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532),
}
_STRIPS = {273, 279, 324, 325}


class _Directory:
    """The first directory of tags of a TIFF file or an EXIF block."""

    def __init__(self, data: bytes):
        if data[:2] not in (b'II', b'MM'):
            raise Damage('its header is damaged')
        self._data = data
        self._order = '<' if data[:2] == b'II' else '>'
        big = self.unpack('H', 2) == 43
        self._offset_code, self._entry_size = ('Q', 20) if big else ('I', 12)
        self.start = self.unpack(self._offset_code, 8 if big else 4)
        self.count_code = 'Q' if big else 'H'
        count = self.unpack(self.count_code, self.start)
        if count > _MAX_TAGS:
            raise Damage(f'it has more than {_MAX_TAGS:,} tags')
        inline = struct.calcsize(self._offset_code)
        self.first = self.start + struct.calcsize(self.count_code)
        self.entries: list[tuple[int, tuple[int, int, int]]] = []
        """(tag, (type, number of values, where they stand)) in order."""
        for at in range(self.first, self.first + count * self._entry_size, self._entry_size):
            tag, code = self.unpack('HH', at)
            values = self.unpack(self._offset_code, at + 4)
            where = at + 4 + inline
            if values * _TYPE_SIZES.get(code, 1) > inline:
                where = self.unpack(self._offset_code, where)
            self.entries.append((tag, (code, values, where)))

    def unpack(self, code: str, at: int):
        values = struct.unpack_from(self._order + code, self._data, at)
        return values[0] if len(values) == 1 else values

    def numbers(self, tag: int) -> list[int]:
        """The values of a tag that holds whole numbers; none if it is missing."""
        for found, (code, count, at) in self.entries:
            if found == tag:
                if code not in _UNSIGNED or count > _MAX_STRIPS:
                    raise Damage(f'its tag {tag} holds no whole numbers, or too many')
                return list(
                    struct.unpack_from(f'{self._order}{count}{_UNSIGNED[code]}', self._data, at)
                )
        return []

    def number(self, tag: int, default: int | None = None) -> int:
        """The value of a tag that holds one whole number."""
        values = [default] if default is not None else []
        found = self.numbers(tag) or values
        if len(found) != 1:
            raise Damage(f'its tag {tag} is missing or holds several numbers')
        return found[0]

    def check_strips(self) -> None:
        """Checks that all strips or tiles are there: decoders leave the place of others empty."""
        width, height, samples = self.number(_WIDTH), self.number(_LENGTH), self.number(277, 1)
        compression = self.number(259, 1)
        if compression in _UNCHECKED:
            raise Damage(f'its compression ({compression}) tells nothing about missing data')
        starts, sizes = self.numbers(324), self.numbers(325)
        if starts:
            across, down = self.number(322), self.number(323)
        else:
            starts, sizes = self.numbers(273), self.numbers(279)
            across, down = width, min(self.number(278, height), height)
        if not (across and down):
            raise Damage('its strips or tiles are empty')
        needed = -(-width // across) * -(-height // down)
        needed *= samples if self.number(284, 1) == 2 else 1
        if len(starts) < needed or len(sizes) not in (0, len(starts)):
            raise Damage(f'expected {needed:,} strips or tiles, got {len(starts):,}')
        if compression == _JPEG_IN_TIFF:
            for start, size in zip(starts, sizes, strict=True):
                Jpeg(self._data[start : start + size]).read_scans()

    def only_picture(self) -> bytes:
        """The file with a first directory of those tags alone that say how pixels are stored."""
        total, kept = 0, {}
        for number, (tag, (code, count, at)) in enumerate(self.entries):
            if tag not in _PICTURE_TAGS:
                continue
            size = count * _TYPE_SIZES.get(code, 1)
            total += size
            if tag in kept or code not in _TYPE_SIZES or at + size > len(self._data):
                raise Damage(f'its tag {tag} is damaged')
            if tag in _STRIPS and count > _MAX_STRIPS:
                raise Damage(f'it has more than {_MAX_STRIPS:,} strips or tiles')
            kept[tag] = self.first + number * self._entry_size
        if total > len(self._data):
            raise Damage('its tags hold more than the file')
        data, size = bytearray(self._data), self._entry_size
        entries = b''.join(self._data[at : at + size] for at in kept.values())
        end = struct.pack(self._order + self._offset_code, 0)
        struct.pack_into(self._order + self.count_code, data, self.start, len(kept))
        # Written over the old one, which is not shorter; no other directory follows.
        data[self.first : self.first + len(entries) + len(end)] = entries + end
        return bytes(data)


def _tiff_header(data: bytes) -> Header:
    directory = _Directory(data)
    width, height = directory.number(_WIDTH), directory.number(_LENGTH)
    return Header('TIFF', width, height, _tiff_orientation(directory))


def tiff_picture(data: bytes) -> bytes:
    """A TIFF with only those tags of its first picture that say how its pixels are stored.

    Raises:
        Damage: for tags that are damaged or beyond the bounds.
    """
    try:
        directory = _Directory(data)
        picture = directory.only_picture()
        directory.check_strips()
        return picture
    except struct.error as error:
        raise Damage('its tags are damaged') from error


# ---------------------------------------------------------------------------------- WebP, GIF, BMP


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    for count in itertools.count():
        if position + 8 > len(data):
            return
        if count >= _MAX_CHUNKS:
            raise Damage(f'it has more than {_MAX_CHUNKS:,} chunks')
        name, length = struct.unpack_from('<4sI', data, position)
        yield name, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _webp_header(data: bytes) -> Header:
    name, body = next(_webp_chunks(data), (b'', b''))
    if name == b'VP8X':
        width = 1 + int.from_bytes(body[4:7], 'little')
        height = 1 + int.from_bytes(body[7:10], 'little')
        if len(body) < 10:
            raise Damage('its header is cut off')
    elif name == b'VP8 ':
        width, height = (side & 0x3FFF for side in struct.unpack_from('<HH', body, 6))
    elif name == b'VP8L':
        (packed,) = struct.unpack_from('<I', body, 1)
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    else:
        raise Damage(f'it begins with the chunk {name!r}')
    exif = next((body for name, body in _webp_chunks(data) if name == b'EXIF'), b'')
    return Header('WebP', width, height, read_orientation(exif.removeprefix(_EXIF)))


def webp_picture(data: bytes) -> bytes:
    """The file, without what follows behind its end.

    Raises:
        Damage: for a file that is shorter than it says.
    """
    (length,) = struct.unpack_from('<I', data, 4)
    if length + 8 > len(data):
        raise Damage(f'expected {length + 8:,} bytes, got {len(data):,}')
    return data[: length + 8]


def _gif_header(data: bytes) -> Header:
    width, height, flags = struct.unpack_from('<HHB', data, 6)
    position = 13 + _palette_bytes(flags)
    # To the first picture, as comments may stand before it.
    while data[position] == 0x21:
        position += 2
        while data[position]:
            position += 1 + data[position]
            if position > _MAX_GIF_FRONT:
                raise Damage(f'more than {_MAX_GIF_FRONT:,} bytes stand before its picture')
        position += 1
    if data[position] != 0x2C:
        raise Damage('it holds no picture')
    left, top, across, down = struct.unpack_from('<HHHH', data, position + 1)
    # Decoders widen the canvas for a picture that reaches beyond it.
    return Header('GIF', max(width, left + across), max(height, top + down))


def _palette_bytes(flags: int) -> int:
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0


def _bmp_header(data: bytes) -> Header:
    (length,) = struct.unpack_from('<I', data, 14)
    width, height = struct.unpack_from('<HH' if length == 12 else '<ii', data, 18)
    return Header('BMP', width, abs(height))


_PREFIXES: dict[str, tuple[bytes, ...]] = {
    'JPEG': (b'\xff\xd8\xff',),
    'PNG': (b'\x89PNG\r\n\x1a\n',),
    'GIF': (b'GIF87a', b'GIF89a'),
    'BMP': (b'BM',),
    'TIFF': (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'),
    'WebP': (b'RIFF',),
}
_READERS: dict[str, Callable[[bytes], Header]] = {
    'JPEG': _jpeg_header,
    'PNG': _png_header,
    'GIF': _gif_header,
    'BMP': _bmp_header,
    'TIFF': _tiff_header,
    'WebP': _webp_header,
}
