"""Archives: everything is unpacked, or nothing; hostile ones are refused by member and reason."""

import bz2
import errno
import gzip
import io
import lzma
import random
import re
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from handpose_jax.data.conversion import archives
from handpose_jax.data.conversion.archives import extract

CONTENT = {
    'hands/readme.txt': b'hands\n',
    'hands/images/0001.png': random.Random(0).randbytes(6_000),
    'hands/images/0002.png': b'',
}


def tar_member(name, data=b'x', **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def make_tar(path, members, *, mode='w'):
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def make(path, content=CONTENT):
    """An innocent archive of the kind its suffix says."""
    if path.suffix == '.zip':
        return make_zip(path, content.items())
    suffix = path.suffix.removeprefix('.')
    mode = 'w' if suffix == 'tar' else f'w:{suffix}'
    return make_tar(path, [tar_member(*item) for item in content.items()], mode=mode)


def refused(archive, tmp_path, *parts, **limits):
    """Checks that an archive is refused, and that nothing is left of it."""
    target = tmp_path / 'out' / 'unpacked'
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        extract(archive, target, **limits)
    message = str(caught.value)
    assert message.startswith(f'{archive}: ')
    for part in parts:
        assert part in message
    assert list((tmp_path / 'out').iterdir()) == []
    # Whatever a name said, nothing came to lie outside.
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, 'out'}
    return message


KINDS = ['a.zip', 'a.tar', 'a.tar.gz', 'a.tar.bz2', 'a.tar.xz']


@pytest.mark.parametrize('name', KINDS)
def test_everything_comes_out_as_it_was(tmp_path, name):
    # By its content, whatever it is called.
    archive = make(tmp_path / name).rename(tmp_path / 'download')
    folder = extract(archive, tmp_path / 'new' / 'hands')
    assert folder == tmp_path / 'new' / 'hands'
    for path, data in CONTENT.items():
        assert (folder / path).read_bytes() == data
    files = [path for path in folder.rglob('*') if path.is_file()]
    assert len(files) == len(CONTENT) + 1  # and the marker
    assert [path.name for path in folder.parent.iterdir()] == ['hands']


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz'])
def test_an_unpacked_archive_is_not_unpacked_again(tmp_path, name):
    archive = make(tmp_path / name)
    folder = extract(archive, tmp_path / 'out')
    image = folder / 'hands/images/0001.png'
    image.write_bytes(b'touched')
    assert extract(archive, tmp_path / 'out') == folder
    assert image.read_bytes() == b'touched'


def test_a_folder_that_lost_a_file_is_not_taken_for_whole(tmp_path):
    archive = make(tmp_path / 'a.zip')
    folder = extract(archive, tmp_path / 'out')
    (folder / 'hands/readme.txt').unlink()
    with pytest.raises(ValueError, match=r'the 3 files of a\.zip, got 2; remove the folder'):
        extract(archive, tmp_path / 'out')


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    archive = make(tmp_path / 'a.zip')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine.txt').write_text('mine')
    with pytest.raises(ValueError, match='expected a new folder'):
        extract(archive, tmp_path / 'out')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['mine.txt']
    other = make(tmp_path / 'b.zip', {'other': b'1'})
    extract(other, tmp_path / 'unpacked')
    with pytest.raises(ValueError, match='got another'):
        extract(archive, tmp_path / 'unpacked')


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_killed_extraction_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    archive = make(tmp_path / 'a.zip')
    with monkeypatch.context() as patch:
        # As a kill has it: in the middle, and no chance to clean up.
        patch.setattr(shutil, 'rmtree', lambda *args, **kwargs: None)
        patch.setattr(archives._Limits, 'add_bytes', interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(archive, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert (tmp_path / 'out.partial').is_dir()
    folder = extract(archive, tmp_path / 'out')
    assert (folder / 'hands/images/0001.png').read_bytes() == CONTENT['hands/images/0001.png']
    assert not (tmp_path / 'out.partial').exists()


BAD_NAMES = {
    '/etc/evil': 'an absolute path',
    '../evil': "'..'",
    'hands/../../evil': "'..'",
    'hands/..': "'..'",
    '..\\evil': 'a backslash',
    'C:/evil': 'a drive letter',
    'C:evil': 'a drive letter',
    'readme.txt:stream': 'a colon',
    'a\nb': 'a control character',
    '.': 'no name',
    'a/' * 65 + 'b': 'more than 64 folders',
    './.Unpacked.json': 'marks an unpacked folder',
}


@pytest.mark.parametrize('kind', ['zip', 'tar'])
@pytest.mark.parametrize('name', BAD_NAMES)
def test_a_name_that_is_no_path_inside_is_refused(tmp_path, name, kind):
    members = [('fine', b'1'), (name, b'evil')]
    if kind == 'zip':
        archive = make_zip(tmp_path / 'a.zip', members)
    else:
        archive = make_tar(tmp_path / 'a.tar', [tar_member(*member) for member in members])
    refused(archive, tmp_path, f'member {name!r}', BAD_NAMES[name])


@pytest.mark.parametrize(
    'names',
    [
        ('hands/a', 'hands/a'),
        ('hands/a', 'hands/A'),
        ('hands/a', 'hands/./a'),
        ('hands/stra\N{LATIN SMALL LETTER SHARP S}e', 'hands/strasse'),
        ('caf\N{LATIN SMALL LETTER E WITH ACUTE}', 'cafe\N{COMBINING ACUTE ACCENT}'),
        ('a', 'a/b'),
        ('a/b', 'a'),
        ('A', 'a/b'),
    ],
)
@pytest.mark.parametrize('kind', ['zip', 'tar'])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_members_of_one_name_are_refused(tmp_path, names, kind):
    if kind == 'zip':
        archive = make_zip(tmp_path / 'a.zip', [(name, b'1') for name in names])
    else:
        archive = make_tar(tmp_path / 'a.tar', [tar_member(name) for name in names])
    refused(archive, tmp_path, f'member {names[1]!r}', 'name')


def test_folders_may_be_listed_twice_and_in_any_order(tmp_path):
    folder = {'type': tarfile.DIRTYPE}
    members = [
        tar_member('.', b'', **folder),
        tar_member('./hands/deep/file'),
        tar_member('./hands', b'', **folder),
        tar_member('./hands/', b'', **folder),
        tar_member('empty', b'', **folder),
    ]
    unpacked = extract(make_tar(tmp_path / 'a.tar', members), tmp_path / 'out')
    assert (unpacked / 'hands/deep/file').read_bytes() == b'x'
    assert (unpacked / 'empty').is_dir()


SPECIAL = {
    'symbolic link': {'type': tarfile.SYMTYPE, 'linkname': '/etc'},
    'hard link': {'type': tarfile.LNKTYPE, 'linkname': '../../etc/passwd'},
    'character device': {'type': tarfile.CHRTYPE},
    'block device': {'type': tarfile.BLKTYPE},
    'pipe': {'type': tarfile.FIFOTYPE},
}


@pytest.mark.parametrize('name', SPECIAL)
def test_links_and_devices_are_refused(tmp_path, name):
    special = tar_member('special', b'', **SPECIAL[name])
    archive = make_tar(tmp_path / 'a.tar', [tar_member('fine'), special])
    refused(archive, tmp_path, "member 'special'", 'a link' if 'link' in name else 'a device')


def test_a_file_through_a_link_does_not_come_to_lie_outside(tmp_path):
    link = tar_member('away', b'', type=tarfile.SYMTYPE, linkname=str(tmp_path))
    archive = make_tar(tmp_path / 'a.tar', [link, tar_member('away/evil')])
    refused(archive, tmp_path, "member 'away'", 'a link')


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_of_a_zip_are_refused(tmp_path, kind):
    member = zipfile.ZipInfo('special')
    member.external_attr = (kind | 0o777) << 16
    archive = make_zip(tmp_path / 'a.zip', [('fine', b'1'), (member, b'/etc/passwd')])
    refused(archive, tmp_path, "member 'special'", 'link' if kind == stat.S_IFLNK else 'device')


def test_encrypted_members_are_refused(tmp_path):
    archive = make_zip(tmp_path / 'a.zip', [('secret', b'1')])
    data = bytearray(archive.read_bytes())
    # Bit 0 of the flags, in the local header (APPNOTE 4.3.7) and in the directory (4.3.12).
    data[6] |= 1
    data[data.index(b'PK\x01\x02') + 8] |= 1
    archive.write_bytes(data)
    refused(archive, tmp_path, "member 'secret'", 'encrypted')


@pytest.mark.parametrize('name', KINDS)
def test_too_many_files_or_bytes_are_refused(tmp_path, name):
    archive = make(tmp_path / name, {f'{number:03d}': b'12345' for number in range(20)})
    refused(archive, tmp_path, 'at most 19 files', 'max_files', max_files=19)
    refused(archive, tmp_path, 'at most 99 bytes', 'max_bytes', max_bytes=99)
    extract(archive, tmp_path / 'fits', max_files=20, max_bytes=100)


def test_folders_count_too(tmp_path):
    members = [tar_member(f'{n}', b'', type=tarfile.DIRTYPE) for n in range(20)]
    archive = make_tar(tmp_path / 'a.tar', [*members, tar_member('x')])
    refused(archive, tmp_path, 'at most 20 files and folders', max_files=20)


BOMB = 2**19


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz', 'a.tar.bz2', 'a.tar.xz'])
def test_a_bomb_is_refused(tmp_path, monkeypatch, name):
    archive = make(tmp_path / name, {'zeros': bytes(BOMB), 'more': bytes(BOMB)})
    extract(archive, tmp_path / 'small')  # below 32 MiB nothing is a bomb
    shutil.rmtree(tmp_path / 'small')
    monkeypatch.setattr(archives, '_FREE_BYTES', BOMB)
    refused(archive, tmp_path, 'at most 200 times', 'max_ratio')
    extract(archive, tmp_path / 'raised', max_ratio=1e6)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path):
    archive = make_zip(tmp_path / 'a.zip', [('zeros', bytes(BOMB))])
    data = bytearray(archive.read_bytes())
    for start, offset in ((0, 22), (data.index(b'PK\x01\x02'), 24)):
        data[start + offset : start + offset + 4] = struct.pack('<I', 10)
    archive.write_bytes(data)
    refused(archive, tmp_path, 'damaged', 'CRC')


def test_a_zip_whose_members_share_their_data_is_refused(tmp_path, monkeypatch):
    # A directory that names one block of data again and again (Fifield 2019, overlapping files).
    archive = make_zip(tmp_path / 'a.zip', [('0', random.Random(0).randbytes(100_000))])
    data = archive.read_bytes()
    end = data.index(b'PK\x05\x06')
    directory = data[data.index(b'PK\x01\x02') : end]
    assert directory.endswith(b'0')
    # All by one name, which stands before the data too: another would be taken for damage.
    count = 50
    trailer = bytearray(data[end:])
    trailer[8:12] = struct.pack('<HH', count, count)
    trailer[12:16] = struct.pack('<I', count * len(directory))
    archive.write_bytes(data[: end - len(directory)] + directory * count + bytes(trailer))
    monkeypatch.setattr(archives, '_FREE_BYTES', 0)
    refused(archive, tmp_path, 'at most 10 times', max_ratio=10.0)
    refused(archive, tmp_path, 'there before')


def test_a_header_that_eats_memory_is_refused(tmp_path):
    # The extended header of a tar is read into memory whole: here one of 3 MB.
    huge = tarfile.TarInfo('a')
    huge.type, huge.size = tarfile.XHDTYPE, 3_000_000
    stream = huge.tobuf(tarfile.USTAR_FORMAT) + bytes(3_000_000)
    archive = tmp_path / 'a.tar.gz'
    archive.write_bytes(gzip.compress(stream, 1))
    refused(archive, tmp_path, 'expected headers of at most 1,048,576 bytes')


def test_a_file_with_holes_is_refused(tmp_path):
    info = tarfile.TarInfo('holes')
    info.size = 512
    info.pax_headers = {
        'GNU.sparse.major': '1',
        'GNU.sparse.minor': '0',
        'GNU.sparse.name': 'holes',
        'GNU.sparse.realsize': str(2**40),
    }
    archive = tmp_path / 'a.tar'
    with tarfile.open(archive, 'w', format=tarfile.PAX_FORMAT) as opened:
        opened.addfile(info, io.BytesIO(b'0\n'.ljust(512, b'\0')))
    refused(archive, tmp_path, 'a file with holes')


def raw_header(name, kind, size):
    """A tar header of which the library believes that it is right."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def headed(body, kind=tarfile.XHDTYPE):
    """A tar of one file, with an extended header before it."""
    padded = body + bytes(-len(body) % 512)
    member = raw_header('hand', tarfile.REGTYPE, 1) + b'x'.ljust(512, b'\0')
    return raw_header('a', kind, len(body)) + padded + member + bytes(1024)


def record(name, value):
    """A field of an extended header; its length counts its own digits."""
    length = len(f' {name}={value}\n')
    while len(f'{length} {name}={value}\n') != length:
        length += 1
    return f'{length} {name}={value}\n'.encode()


@pytest.mark.parametrize(
    'body',
    [
        b'1' * 500_000,
        b'1' * 5,
        b'11 path=ab',
        b'0 path=a\n',
        b'-9 path=a\n',
        b'99 path=a\n',
        b'9 path=\n\n\n',
        b'7 =abc\n',
        b'99999999999999999999 path=a\n',
        b'9\tpath=a\n',
        record('path', 'b') + bytes(5),
    ],
)
def test_an_extended_header_of_another_form_is_refused_at_once(tmp_path, body):
    # The library's pattern for these takes minutes on a kilobyte of digits.
    archive = tmp_path / 'a.tar.gz'
    archive.write_bytes(gzip.compress(headed(body)))
    start = time.process_time()
    refused(archive, tmp_path, 'expected the fields of an extended header')
    assert time.process_time() - start < 2


def test_extended_headers_say_names_and_sizes(tmp_path):
    for number, (body, kind, name) in enumerate(
        [
            (record('path', 'deep/er'), tarfile.XHDTYPE, 'deep/er'),
            (record('comment', 'a=b') + record('size', '1'), tarfile.XHDTYPE, 'hand'),
            (record('comment', 'all'), tarfile.XGLTYPE, 'hand'),
            (b'long/name\0', tarfile.GNUTYPE_LONGNAME, 'long/name'),
        ]
    ):
        archive = tmp_path / f'{number}.tar'
        archive.write_bytes(headed(body, kind))
        folder = extract(archive, tmp_path / f'out{number}')
        assert (folder / name).read_bytes() == b'x'
    for number, (body, kind, what) in enumerate(
        [
            (record('size', '-1'), tarfile.XHDTYPE, 'its size in bytes'),
            (record('size', '1' * 5000), tarfile.XHDTYPE, 'its size in bytes'),
            (record('path', '../evil'), tarfile.XHDTYPE, "'..'"),
            (record('path', 'evil'), tarfile.XGLTYPE, 'member by member'),
            (b'/evil', tarfile.GNUTYPE_LONGNAME, 'an absolute path'),
        ]
    ):
        archive = tmp_path / f'bad{number}.tar'
        archive.write_bytes(headed(body, kind))
        with pytest.raises(ValueError, match=re.escape(what)):
            extract(archive, tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


def test_very_many_headers_before_a_member_are_refused(tmp_path):
    empty = raw_header('a', tarfile.XHDTYPE, 0)
    archive = tmp_path / 'a.tar.gz'
    archive.write_bytes(gzip.compress(empty * 100_000))
    refused(archive, tmp_path, 'expected headers of at most 1,048,576 bytes')


def test_members_behind_the_end_of_a_tar_are_not_lost_without_a_word(tmp_path):
    archive = make(tmp_path / 'a.tar')
    archive.write_bytes(archive.read_bytes() * 2)
    refused(archive, tmp_path, 'goes on behind its end')


def zip_parts(path):
    """The three parts of a small zip: members, their list, its end."""
    data = make(path).read_bytes()
    first, end = data.index(b'PK\x01\x02'), data.index(b'PK\x05\x06')
    return data[:first], data[first:end], bytearray(data[end:])


def listed(path, members, entries, *, count=3):
    """A zip of these parts, whose end says where they stand."""
    end = struct.pack('<4s4xHHIIH', b'PK\x05\x06', count, count, len(entries), len(members), 0)
    path.write_bytes(members + entries + end)
    return path


def test_members_that_are_not_listed_are_not_lost_without_a_word(tmp_path):
    members, entries, _ = zip_parts(tmp_path / 'a.zip')
    archive = listed(tmp_path / 'a.zip', members, entries)
    shutil.rmtree(extract(archive, tmp_path / 'whole'))
    second, third = (entries.index(b'PK\x01\x02', at) for at in (1, entries.rindex(b'PK\x01\x02')))
    # One less, wherever it stands; and a list that says less than it holds, or more.
    for less in (entries[second:], entries[:second] + entries[third:], entries[:third]):
        message = refused(listed(archive, members, less, count=2), tmp_path)
        assert 'every member in its list' in message
    for count in (2, 4):
        refused(listed(archive, members, entries, count=count), tmp_path, f'{count:,} members')


@pytest.mark.parametrize('field', [28, 30, 32])
def test_an_entry_that_swallows_the_next_ones_is_refused(tmp_path, field):
    """A length of a name, an extra field or a comment that reaches over them."""
    members, entries, _ = zip_parts(tmp_path / 'a.zip')
    changed = bytearray(entries)
    (length,) = struct.unpack_from('<H', changed, field)
    second = entries.index(b'PK\x01\x02', 1)
    struct.pack_into('<H', changed, field, length + len(entries) - second)
    archive = listed(tmp_path / 'a.zip', members, bytes(changed))
    refused(archive, tmp_path, 'expected a list of 3 members, got one of 1 whole ones')


@pytest.mark.parametrize(
    ('place', 'code', 'value'),
    [(6, '<H', 0x800), (8, '<H', 0), (14, '<I', 1), (18, '<I', 5), (22, '<I', 5), (30, '<H', 0x41)],
    ids=['flags', 'method', 'checksum', 'packed', 'size', 'name'],
)
def test_a_member_that_says_another_thing_than_its_list_is_refused(tmp_path, place, code, value):
    members, entries, _ = zip_parts(tmp_path / 'a.zip')
    changed = bytearray(members)
    struct.pack_into(code, changed, place, value)
    archive = listed(tmp_path / 'a.zip', bytes(changed), entries)
    assert 'hands/readme.txt' in refused(archive, tmp_path)


def test_a_file_that_has_become_a_folder_is_refused(tmp_path):
    archive = make_zip(tmp_path / 'a.zip', [('hand1', b'content'), ('other', b'1')])
    archive.write_bytes(archive.read_bytes().replace(b'hand1', b'hand/'))
    refused(archive, tmp_path, "member 'hand/'", 'a folder without content')


def test_members_that_overlap_are_refused(tmp_path):
    archive = make_zip(tmp_path / 'a.zip', [('one', b'1' * 50), ('two', b'2' * 50)])
    members, entries = archive.read_bytes().split(b'PK\x01\x02', 1)
    changed = bytearray(b'PK\x01\x02' + entries[: entries.index(b'PK\x05\x06')])
    second = changed.index(b'PK\x01\x02', 1)
    struct.pack_into('<I', changed, second + 42, 1)
    refused(listed(archive, members, bytes(changed), count=2), tmp_path, 'overlaps another')


def test_a_zip_in_the_large_form_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, data in CONTENT.items():
            with archive.open(name, 'w', force_zip64=True) as member:
                member.write(data)
    folder = extract(tmp_path / 'a.zip', tmp_path / 'out')
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    # Written without going back, sizes and checksums stand behind the members.
    stream = io.BytesIO()
    stream.seekable = lambda: False
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
    (tmp_path / 'b.zip').write_bytes(stream.getvalue())
    folder = extract(tmp_path / 'b.zip', tmp_path / 'streamed')
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_a_list_of_too_many_members_is_refused_before_it_is_read(tmp_path):
    members, entries, _ = zip_parts(tmp_path / 'a.zip')
    archive = listed(tmp_path / 'a.zip', members, entries * 500_000, count=65_535)
    start = time.process_time()
    refused(archive, tmp_path)
    assert time.process_time() - start < 5


def test_links_that_stand_in_the_way_are_not_followed(tmp_path):
    """Of a former extraction, or put there: nothing is written or removed where they lead."""
    archive = make(tmp_path / 'a.zip')
    away = tmp_path / 'away'
    away.mkdir()
    (away / 'mine').write_text('mine')
    (tmp_path / 'out.partial').symlink_to(away)
    with pytest.raises(ValueError, match='cannot be unpacked'):
        extract(archive, tmp_path / 'out')
    (tmp_path / 'out.partial').unlink()
    (tmp_path / 'out').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='cannot be unpacked'):
        extract(archive, tmp_path / 'out')
    assert [path.name for path in away.iterdir()] == ['mine']
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('name', KINDS)
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, name):
    whole = make(tmp_path / name).read_bytes()
    archive = tmp_path / name
    # A plain tar ends with padding that nobody misses.
    used = len(whole.rstrip(b'\0')) if name == 'a.tar' else len(whole)
    lengths = {5, 512, 1024, 1536, used // 2, used - 600, used - 1}
    for length in sorted(lengths):
        archive.write_bytes(whole[:length])
        message = refused(archive, tmp_path)
        assert 'download it again' in message


def refusal(archive, target):
    try:
        extract(archive, target)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize('name', KINDS)
def test_damage_is_refused_or_does_not_matter(tmp_path, name):
    """Whatever byte is changed: what comes out is what went in, or nothing."""
    archive = make(tmp_path / name)
    whole = archive.read_bytes()
    rng = random.Random(1)
    outcomes = set()
    for number in range(16):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        archive.write_bytes(data)
        target = tmp_path / f'{number}'
        message = refusal(archive, target)
        outcomes.add(message is None)
        if message is not None:
            assert message.startswith(f'{archive}: ')
            assert not target.exists()
        elif name != 'a.tar':  # a plain tar has no checksum of its content
            found = [path for path in target.rglob('*.*') if path.name != archives.MARKER]
            contents = sorted(path.read_bytes() for path in found if path.is_file())
            assert contents == sorted(CONTENT.values())
        assert not (tmp_path / f'{number}.partial').exists()
    assert (name == 'a.tar') in outcomes


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'Rar!\x1a\x07\x00',
        b'<html>Sign in to download</html>',
        gzip.compress(b'a single file that is no tar' * 100),
        bz2.compress(b'no tar'),
        lzma.compress(b'no tar'),
        zlib.compress(b'neither'),
    ],
    ids=['empty', 'rar', 'html', 'gz', 'bz2', 'xz', 'zlib'],
)
def test_something_else_is_refused(tmp_path, content):
    archive = tmp_path / 'hands.zip'
    archive.write_bytes(content)
    (tmp_path / 'out').mkdir()
    refused(archive, tmp_path, 'download it again')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz'])
def test_an_empty_archive_is_refused(tmp_path, name):
    refused(make(tmp_path / name, {}), tmp_path, 'expected files in it, got none')


def test_a_missing_archive_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'missing\.zip: cannot be unpacked .*No such file'):
        extract(tmp_path / 'missing.zip', tmp_path / 'out')
    with pytest.raises(ValueError, match='something that is not a file'):
        extract(Path(tmp_path), tmp_path / 'out')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz'])
def test_too_little_space_is_said_beforehand(tmp_path, monkeypatch, name):
    archive = make(tmp_path / name)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    refused(archive, tmp_path, 'free space', 'got 0.00 GiB', 'free some')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz'])
def test_a_disk_that_fills_up_is_said(tmp_path, monkeypatch, name):
    def fill(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(archives._Limits, 'add_bytes', fill)
    refused(make(tmp_path / name), tmp_path, 'no space is left', 'free some')


@pytest.mark.parametrize('name', ['a.zip', 'a.tar', 'a.tar.gz'])
def test_large_archives_show_progress(tmp_path, monkeypatch, capsys, name):
    archive = make(tmp_path / name)
    extract(archive, tmp_path / 'quiet')
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(archives, '_SHOW_PROGRESS_FROM', 0)
    extract(archive, tmp_path / 'shown')
    shown = capsys.readouterr().err
    assert f'unpacking {name}' in shown
    assert re.search(r'(9\d|100)%', shown)
