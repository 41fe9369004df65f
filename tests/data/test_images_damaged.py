"""Image files from strangers: one orientation, no half a picture, no minutes for a few bytes.

Files are made here byte by byte, from the formats' standards, or by Pillow and then damaged.
"""

import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from handpose_jax.data import image_files, images

SHORT, BYTE, ASCII, UNDEFINED, LONG = 3, 1, 2, 7, 4


def photo(height=96, width=128, channels=3):
    """Smooth noise: every part of it takes bytes, and no part is grey."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height)))
    return large if channels == 3 else large[:, :, 0]


def encode(file_format, picture=None, **options):
    stream = io.BytesIO()
    picture = Image.fromarray(photo() if picture is None else picture)
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def outcome(data, **options):
    """'whole', or the error."""
    try:
        images.decode_image(data, 'x.img', **options)
    except ValueError as error:
        said = str(error)
    else:
        return 'whole'
    assert said.startswith('x.img: ')
    return said


# ------------------------------------------------------------------------------------ orientation


def exif(kind, value, *, count=1, order='<', more=()):
    """An EXIF block with one tag, the orientation; more of them on request."""
    entries = [(kind, value, count), *more]
    body = struct.pack(order + 'H', len(entries))
    for code, number, values in entries:
        field = struct.pack(
            order + {SHORT: 'HH', LONG: 'I'}.get(code, 'BBBB'), *_padded(code, number)
        )
        body += struct.pack(order + 'HHI', 274, code, values) + field
    start = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', 8)
    return start + body + bytes(4)


def _padded(code, number):
    return {SHORT: (number, 0), LONG: (number,)}.get(code, (number, 0, 0, 0))


def with_exif(file_format, block):
    """A picture of 128 x 96 with an EXIF block."""
    if file_format == 'TIFF':
        return tiff(more=block)
    options = {'lossless': True} if file_format == 'WEBP' else {}
    if file_format == 'JPEG':
        block = b'Exif\0\0' + block
    return encode(file_format, exif=block, **options)


def tiff(more=b''):
    """An uncompressed TIFF of the photo, whose orientation is the entry of an EXIF block."""
    pixels = photo()
    order = '>' if more.startswith(b'MM') else '<'
    count = struct.unpack_from(order + 'H', more, 8)[0] if more else 0
    extra = [more[10 + 12 * n : 22 + 12 * n] for n in range(count)]
    rows = [
        *((256, LONG, 1, pixels.shape[1]), (257, LONG, 1, pixels.shape[0])),
        *((258, SHORT, 3, 8), (259, SHORT, 1, 1), (262, SHORT, 1, 2), (273, LONG, 1, 14)),
        *((277, SHORT, 1, 3), (278, LONG, 1, pixels.shape[0]), (279, LONG, 1, pixels.size)),
    ]
    entries = [
        struct.pack(order + 'HHI', tag, code, values)
        + struct.pack(order + ('HH' if code == SHORT and values == 1 else 'I'), *_padded_tag(row))
        for row in rows
        for tag, code, values, _ in [row]
    ]
    entries = sorted([*entries, *extra], key=lambda entry: struct.unpack(order + 'H', entry[:2]))
    bits = struct.pack(order + 'HHH', 8, 8, 8)
    directory = struct.pack(order + 'H', len(entries)) + b''.join(entries) + bytes(4)
    magic = b'II*\0' if order == '<' else b'MM\0*'
    start = magic + struct.pack(order + 'I', 14 + pixels.size)
    return start + bits + pixels.tobytes() + directory


def _padded_tag(row):
    _, code, count, value = row
    return (value, 0) if code == SHORT and count == 1 else (value,)


FORMATS = ['JPEG', 'PNG', 'WEBP', 'TIFF']


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('file_format', FORMATS)
def test_an_orientation_counts_if_it_is_one_short_of_1_to_8(file_format, order):
    for value, turned in ((1, False), (6, True), (8, True), (0, False), (9, False), (65535, False)):
        data = with_exif(file_format, exif(SHORT, value, order=order))
        expected = (128, 96) if turned else (96, 128)
        assert images.image_size(data, 'a') == expected
        for thorough in (False, True):
            assert images.decode_image(data, 'a', thorough=thorough).shape == (*expected, 3)


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize(
    'block',
    [
        exif(ASCII, 6),
        exif(BYTE, 6),
        exif(UNDEFINED, 6),
        exif(LONG, 6),
        exif(ASCII, ord('6'), count=2),
        exif(SHORT, 6, count=2),
        exif(SHORT, 6, count=0),
        # The first one counts.
        exif(BYTE, 6, more=[(SHORT, 6, 1)]),
    ],
    ids=['ascii', 'byte', 'undefined', 'long', 'text', 'two', 'none', 'twice'],
)
def test_any_other_orientation_is_none(file_format, block):
    data = with_exif(file_format, block)
    assert images.image_size(data, 'a') == (96, 128)
    upright = images.decode_image(with_exif(file_format, exif(SHORT, 1)), 'a')
    for thorough in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            found = images.decode_image(data, 'a', thorough=thorough)
        np.testing.assert_array_equal(found, upright)


def test_the_orientation_of_xmp_does_not_count():
    """Viewers differ about it; Pillow takes it where EXIF has none."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for file_format in ('JPEG', 'PNG', 'WEBP', 'TIFF'):
        data = (
            encode(file_format, xmp=xmp)
            if file_format != 'TIFF'
            else encode('TIFF', tiffinfo={700: xmp})
        )
        assert images.image_size(data, 'a') == images.decode_image(data, 'a').shape[:2] == (96, 128)


# --------------------------------------------------------------------------------- half a picture

JPEGS = {
    'plain': {},
    'full colour': {'subsampling': 0},
    'optimized': {'optimize': True},
    'progressive': {'progressive': True},
    'restarts by row': {'restart_marker_rows': 1},
    'restarts by unit': {'restart_marker_blocks': 1},
    'grey': {'picture': photo(channels=1)},
    'grey progressive': {'picture': photo(channels=1), 'progressive': True},
    'exif': {'exif': b'Exif\0\0' + exif(SHORT, 6)},
}


@pytest.mark.parametrize('thorough', [False, True])
@pytest.mark.parametrize('name', JPEGS)
def test_a_jpeg_cut_short_whose_end_was_put_back_is_refused(name, thorough, capfd):
    data = encode('JPEG', quality=90, **JPEGS[name])
    assert outcome(data, thorough=thorough) == 'whole'
    start = data.index(b'\xff\xda') + 20
    for part in (0.05, 0.3, 0.5, 0.7, 0.9):
        if 'progressive' in name and part > 0.6 and not thorough:
            continue  # in its last scan: seen only by decoding twice
        cut = data[: start + int((len(data) - start) * part)].rstrip(b'\xff')
        refused = 'truncated, corrupt'
        assert refused in outcome(cut + b'\xff\xd9', thorough=thorough)
        assert 'before its end marker' in outcome(cut, thorough=thorough)
        # A download whose missing part is a hole.
        assert refused in outcome(cut + bytes(len(data) - len(cut)), thorough=thorough)
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('thorough', [False, True])
@pytest.mark.parametrize('name', ['plain', 'optimized', 'restarts by row', 'grey'])
def test_a_jpeg_with_a_part_taken_out_is_refused(name, thorough):
    data = encode('JPEG', quality=90, **JPEGS[name])
    middle, gone = len(data) // 2, len(data) // 5
    assert outcome(data[: middle - gone] + data[middle:], thorough=thorough) != 'whole'


@pytest.mark.parametrize('thorough', [False, True])
def test_a_jpeg_with_a_hole_of_zeros_is_refused(thorough):
    data = encode('JPEG', photo(480, 640), quality=90)
    for size in (1024, 4096):
        holed = data[: len(data) // 2] + bytes(size) + data[len(data) // 2 + size :]
        assert outcome(holed, thorough=thorough) != 'whole'


@pytest.mark.parametrize('thorough', [False, True])
@pytest.mark.parametrize('options', [{}, {'optimize': True}, {'progressive': True}])
@pytest.mark.parametrize('colour', [0, 128, 255])
def test_a_jpeg_of_one_colour_is_whole(thorough, options, colour):
    """Its data are holes of zeros, nearly, and its colour is that which decoders fill in."""
    picture = np.full((480, 640, 3), colour, np.uint8)
    data = encode('JPEG', picture, **options)
    np.testing.assert_allclose(images.decode_image(data, 'a', thorough=thorough), picture, atol=1)


def test_a_part_between_restart_markers_that_is_cut_short_is_refused_if_looked_for():
    data = encode('JPEG', quality=90, **JPEGS['restarts by row'])
    at = data.index(b'\xff\xd3')
    cut = data[: at - 40] + data[at:]
    assert 'missing' in outcome(cut)
    assert outcome(data) == 'whole'


def test_restart_markers_that_are_missing_or_out_of_turn_are_refused():
    data = encode('JPEG', quality=90, **JPEGS['restarts by row'])
    first, second, third = (data.index(bytes([0xFF, 0xD0 + n])) for n in range(3))
    assert 'expected 5 restart markers' in outcome(data[:first] + data[second:], thorough=False)
    swapped = data[:first] + data[second:third] + data[first:second] + data[third:]
    assert 'in turn' in outcome(swapped, thorough=False)


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    data = encode('JPEG', quality=90, progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b'\xff\xda']
    assert len(starts) > 5
    for start in starts[1:]:
        tables = data.rfind(b'\xff\xc4', 0, start)
        before = min(start, tables if data[tables - 2 : tables] != b'\xff\xda' else start)
        assert 'scans of its picture are missing' in outcome(data[:before] + b'\xff\xd9')


@pytest.mark.parametrize('thorough', [False, True])
def test_what_follows_the_end_of_a_picture_does_not_matter(thorough):
    for file_format in ('JPEG', 'PNG'):
        data = encode(file_format)
        expected = images.decode_image(data, 'a', thorough=thorough)
        found = images.decode_image(data + bytes(100) + data, 'a', thorough=thorough)
        np.testing.assert_array_equal(found, expected)


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(*, width=64, height=48, packed=None, header=None, before=b'', end=True):
    """A PNG of 8-bit RGB, put together by hand."""
    rows = b''.join(b'\0' + row.tobytes() for row in photo(height, width))
    packed = zlib.compress(rows) if packed is None else packed
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0) if header is None else header
    start = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + before
    return start + chunk(b'IDAT', packed) + (chunk(b'IEND', b'') if end else b'')


def test_checksums_of_a_png():
    rows = b''.join(b'\0' + row.tobytes() for row in photo(48, 64))
    packed = zlib.compress(rows)
    assert outcome(png()) == 'whole'
    np.testing.assert_array_equal(images.decode_image(png(), 'a'), photo(48, 64))
    flipped = bytearray(png())
    flipped[200] ^= 1
    for thorough in (False, True):
        assert 'checksum of its chunk IDAT is wrong' in outcome(bytes(flipped), thorough=thorough)
    # Repaired outside: only the picture's own checksum still tells.
    wrong = packed[:-4] + bytes([packed[-4] ^ 1]) + packed[-3:]
    assert 'truncated, corrupt' in outcome(png(packed=wrong))
    assert 'truncated, corrupt' in outcome(png(packed=packed[:-4]))
    half = zlib.compress(rows[: len(rows) // 2])
    for thorough in (False, True):
        assert 'rows fill 9,264 bytes, got 4632' in outcome(png(packed=half), thorough=thorough)
    assert 'got more' in outcome(png(packed=zlib.compress(rows + bytes(10**7))))
    assert 'before its end chunk' in outcome(png(end=False), thorough=False)
    assert 'unknown chunk' in outcome(png(before=chunk(b'CgBI', b'    ')), thorough=False)
    assert outcome(png(before=chunk(b'teXt', b'a'))) == 'whole'


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'RGBA', 'I;16'])
@pytest.mark.parametrize('size', [(1, 1), (5, 3), (64, 48)])
def test_pngs_of_all_kinds_are_whole(mode, size):
    picture = Image.fromarray(photo()).convert('L' if mode == 'I;16' else mode).resize(size)
    stream = io.BytesIO()
    picture.convert(mode).save(stream, 'PNG')
    assert outcome(stream.getvalue()) == 'whole'


def test_an_interlaced_png_is_whole_or_refused():
    picture = photo(5, 7, 1)
    rows = b''
    for left, top, across, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
        (0, 1, 1, 2),
    ):
        part = picture[top::down, left::across]
        rows += b''.join(b'\0' + row.tobytes() for row in part) if part.size else b''
    header = struct.pack('>IIBBBBB', 7, 5, 8, 0, 0, 0, 1)
    for thorough in (False, True):
        data = png(header=header, packed=zlib.compress(rows))
        decoded = images.decode_image(data, 'a', thorough=thorough)
        np.testing.assert_array_equal(decoded[:, :, 0], picture)
        cut = png(header=header, packed=zlib.compress(rows[: len(rows) // 2]))
        assert 'truncated, corrupt' in outcome(cut, thorough=thorough)


@pytest.mark.parametrize('options', [{}, {'lossless': True}])
def test_a_webp_cut_short_whose_lengths_were_mended_is_refused(options):
    data = encode('WEBP', **options)
    for part in (0.3, 0.5, 0.9):
        cut = data[: int(len(data) * part) // 2 * 2]
        assert outcome(cut) != 'whole'
        mended = bytearray(cut)
        mended[4:8] = struct.pack('<I', len(cut) - 8)
        mended[16:20] = struct.pack('<I', len(cut) - 20)
        assert outcome(bytes(mended)) != 'whole'


def test_a_gif_cut_short_whose_end_was_put_back_is_refused():
    data = encode('GIF', photo(channels=1))
    assert outcome(data) == 'whole'
    assert outcome(data[: len(data) // 2] + b'\0;') != 'whole'


def entry_of(data, tag):
    """Where a tag of a little-endian TIFF stands."""
    (start,) = struct.unpack_from('<I', data, 4)
    (count,) = struct.unpack_from('<H', data, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    return next(at for at in places if struct.unpack_from('<H', data, at) == (tag,))


@pytest.mark.parametrize(
    'compression', ['raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg']
)
def test_a_tiff_without_its_last_strips_is_refused(compression):
    data = encode('TIFF', compression=compression, tiffinfo={278: 16})
    assert outcome(data) == 'whole'
    fewer = bytearray(data)
    for tag in (273, 279):
        at = entry_of(data, tag)
        fewer[at + 4 : at + 8] = struct.pack('<I', 3)
    assert 'expected 6 strips or tiles, got 3' in outcome(bytes(fewer))
    if compression != 'raw':
        sizes = entry_of(data, 279)
        code, place = struct.unpack_from('<H4xI', data, sizes + 2)
        shorter, width = bytearray(data), 2 if code == SHORT else 4
        size = int.from_bytes(data[place : place + width], 'little')
        shorter[place : place + width] = (size // 2).to_bytes(width, 'little')
        assert 'truncated' in outcome(bytes(shorter))


# ----------------------------------------------------------------------------------------- bounds

LONGEST = 2.0  # seconds of processor time, for what took from 20 to 120


def refused_at_once(data, *words):
    start = time.process_time()
    seen = outcome(data)
    assert time.process_time() - start < LONGEST
    for word in words:
        assert word in seen


def segment(marker, body=b''):
    return bytes([0xFF, marker]) + struct.pack('>H', 2 + len(body)) + body


def test_a_jpeg_of_a_thousand_scans():
    data = encode('JPEG', photo(960, 1280), progressive=True)
    scan = data.rindex(b'\xff\xda')
    refused_at_once(data[:-2] + data[scan:-2] * 1000 + b'\xff\xd9', 'more than 100 scans')


@pytest.mark.parametrize(
    'filling', [segment(0xE1) * 2_000_000, b'\xff' * 8_000_000, segment(0xFE) * 2_000_000]
)
def test_a_jpeg_of_very_many_empty_segments(filling):
    data = encode('JPEG')
    refused_at_once(data[:2] + filling + data[2:], 'more than 4,000 segments')
    # In front of the end marker, bytes may fill up.
    after = 'whole' if filling[:2] == b'\xff\xff' else 'more than 4,000 segments'
    refused_at_once(data[:-2] + filling + b'\xff\xd9', after)
    with pytest.raises(ValueError, match='4,000 segments'):
        images.image_size(data[:2] + filling + data[2:], 'a')


def test_a_jpeg_of_very_many_restart_markers():
    data = encode('JPEG')
    filling = b''.join(bytes([0xFF, 0xD0 + n]) for n in range(8)) * 500_000
    refused_at_once(data[:-2] + filling + b'\xff\xd9', 'restart markers')
    refused_at_once(data[:-2] + filling * 3 + b'\xff\xd9', 'more than 8,000,000 markers')


@pytest.mark.parametrize('name', ['PNG', 'TIFF', 'BMP'])
def test_a_strip(name):
    """64,000,000 x 1 pixels are as many as are allowed; decoders make something of each row."""
    width, height = 1, 64_000_000
    data = {
        'PNG': png(header=struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0), packed=b''),
        'BMP': encode('BMP')[:18] + struct.pack('<ii', width, height) + encode('BMP')[26:],
        'TIFF': tiff()
        .replace(struct.pack('<HHII', 257, LONG, 1, 96), struct.pack('<HHII', 257, LONG, 1, height))
        .replace(
            struct.pack('<HHII', 256, LONG, 1, 128), struct.pack('<HHII', 256, LONG, 1, width)
        ),
    }[name]
    refused_at_once(data, 'claims 1 x 64000000 pixels', 'more than 65,535 on a side')


def test_a_gif_picture_that_reaches_beyond_its_canvas():
    data = bytearray(encode('GIF', photo(channels=1)))
    data[6:10] = struct.pack('<HH', 1, 1)
    assert images.image_size(bytes(data), 'a') == images.decode_image(bytes(data), 'a').shape[:2]
    assert images.image_size(bytes(data), 'a') == (96, 128)
    with pytest.raises(ValueError, match='128 x 96 pixels'):
        images.decode_image(bytes(data), 'a', max_megapixels=0.01)


def test_a_gif_of_very_many_comments():
    data = encode('GIF', photo(channels=1))
    start = 13 + 3 * 256
    comments = b'\x21\xfe\x01a\0' * 1_000_000
    refused_at_once(data[:start] + comments + data[start:], 'stand before its picture')


def test_a_png_of_very_many_chunks():
    refused_at_once(png(before=chunk(b'tEXt', b'') * 200_000), 'more than 100,000 chunks')


def test_a_tiff_of_very_many_tags_or_strips():
    data = tiff()
    (start,) = struct.unpack_from('<I', data, 4)
    (count,) = struct.unpack_from('<H', data, start)
    entries = data[start + 2 : start + 2 + 12 * count]
    many = [struct.pack('<HHII', 40_000, BYTE, len(data) - 100, 8)] * 2_000
    body = struct.pack('<H', count + len(many)) + entries + b''.join(many) + bytes(4)
    refused_at_once(data[:start] + body, 'more than 1,000 tags')
    # Each tag may hold all of the file.
    some = [struct.pack('<HHII', tag, BYTE, len(data) - 100, 8) for tag in (292, 293, 320, 347)]
    body = struct.pack('<H', count + len(some)) + entries + b''.join(some) + bytes(4)
    refused_at_once(data[:start] + body, 'hold more than the file')
    strips = entries.replace(
        struct.pack('<HHI', 273, LONG, 1), struct.pack('<HHI', 273, LONG, 70_000)
    )
    padded = data[:start] + struct.pack('<H', count) + strips + bytes(4) + bytes(300_000)
    refused_at_once(padded, 'more than 65,535 strips')


def test_a_file_that_is_too_long_or_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(images, '_FREE_BYTES', 100)
    path = tmp_path / 'long.bmp'
    path.write_bytes(encode('BMP') + bytes(90_000))
    with pytest.raises(ValueError, match=r'long\.bmp: expected an image file of at most 98,500 '):
        images.read_image(path, max_megapixels=0.0123)
    with pytest.raises(ValueError, match='b: expected an image file of at most'):
        images.decode_image(encode('BMP') + bytes(90_000), 'b', max_megapixels=0.0123)
    os.mkfifo(tmp_path / 'pipe.jpg')
    with pytest.raises(ValueError, match=r'pipe\.jpg: the image cannot be read'):
        images.read_image(tmp_path / 'pipe.jpg')


def test_coding_that_cannot_be_checked_is_refused():
    data = encode('JPEG')
    at = data.index(b'\xff\xc0')
    for frame in (0xC3, 0xC5, 0xC9, 0xCB):
        changed = data[: at + 1] + bytes([frame]) + data[at + 2 :]
        assert 'lossless, arithmetic or hierarchical' in outcome(changed)


def test_what_is_put_together_is_what_was_taken_apart():
    for options in JPEGS.values():
        data = encode('JPEG', **{**options, 'exif': b''})
        parts = image_files.header(data).jpeg
        parts.read_scans()
        assert parts.put_together() == data
