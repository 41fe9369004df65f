"""Files from strangers, changed at random: each is read or refused by name, soon, and no one dies.

The seed makes every file again. Each kind has whole files first; they are changed in their bytes
and in their structure: parts taken out, doubled, swapped, numbers made large. Children read them,
as a library that crashes takes its process with it.
"""

import contextlib
import faulthandler
import functools
import gzip
import io
import json
import multiprocessing
import pickle
import random
import resource
import runpy
import struct
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from handpose_jax.data import images
from handpose_jax.data.conversion import archives, matfiles, safe_pickle
from handpose_jax.data.folder import FolderSource
from handpose_jax.data.quarantine import BadRecord

DATASETS = Path(__file__).parents[2] / 'datasets'

# Per file, in seconds of processor time; and what a child may hold, in bytes.
SLOWEST = 10.0
MEMORY = 6 * 2**30
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def photo():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize((60, 44))


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = 'a hand'
    return block


def whole_images():
    picture = photo()
    made = [
        *(('JPEG', {'exif': exif(6)}), ('JPEG', {'progressive': True, 'exif': exif(3)})),
        *(('JPEG', {'restart_marker_rows': 1}), ('JPEG', {'subsampling': 0, 'optimize': True})),
        *(('PNG', {'exif': exif(8)}), ('PNG', {'transparency': (1, 2, 3)})),
        *(('WEBP', {'exif': exif(5)}), ('WEBP', {'lossless': True, 'exif': exif(7)})),
        *(('TIFF', {'exif': exif(6)}), ('TIFF', {'compression': 'tiff_lzw', 'exif': exif(2)})),
        *(('TIFF', {'compression': 'tiff_adobe_deflate', 'tiffinfo': {278: 8}}),),
        *(('TIFF', {'compression': 'jpeg'}), ('BMP', {}), ('GIF', {'comment': b'a hand'})),
    ]
    for file_format, options in made:
        stream = io.BytesIO()
        picture.save(stream, file_format, **options)
        yield stream.getvalue()
    for mode, file_format in (('L', 'JPEG'), ('CMYK', 'JPEG'), ('P', 'PNG'), ('P', 'BMP')):
        stream = io.BytesIO()
        picture.convert(mode).save(stream, file_format)
        yield stream.getvalue()


CONTENT = {
    'a.txt': b'hello',
    'd/b.bin': random.Random(0).randbytes(3000),
    'd/e/c.json': b'{"hand": 1}' * 80,
    f'd/{"long" * 40}.txt': b'named',
}


def whole_archives():
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, 'w', compression) as archive:
            for name, data in CONTENT.items():
                archive.writestr(zipfile.ZipInfo(name), data, compression)
        yield stream.getvalue()
    for layout in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode='w', format=layout) as archive:
            for name, data in CONTENT.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if layout == tarfile.PAX_FORMAT:
                    member.pax_headers = {'comment': 'made up', 'mtime': '1.5'}
                archive.addfile(member, io.BytesIO(data))
        yield stream.getvalue()


def whole_pickles():
    table = np.arange(12.0).reshape(3, 4)
    value = {0: {'uv_vis': table, 'K': table.astype(np.float32)}, 1: ['a', (1, 2.5, None, True)]}
    for protocol in range(6):
        yield pickle.dumps(value, protocol)


def change(rng, data, parts):
    """A few changes; parts are other whole files, to take pieces from."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data)) if data else 0
        length = min(rng.choice((1, 2, 4, 16, 64, 512, 2000)), len(data) - at)
        match rng.randrange(9):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)] if data else b'')
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                number = rng.choice(NUMBERS)
                code = rng.choice(('<I', '>I', '<H', '>H'))
                packed = struct.pack(code, number & (0xFFFF if code[1] == 'H' else 0xFFFFFFFF))
                data[at : at + len(packed)] = packed
            case 5:
                data[at : at + length] = bytes(length)
            case 6:
                other = rng.choice(parts)
                start = rng.randrange(len(other))
                data[at : at + length] = other[start : start + length]
            case 7:
                data[at : at + length] = rng.randbytes(length)
            case 8:
                del data[at:]
                data += rng.choice((b'', b'\xff\xd9', b'\0;', b'.', bytes(1024)))
    return bytes(data)


def mend_png(data):
    """Makes the checksums right, so that what lies behind them is reached."""
    position, pieces = 8, [data[:8]]
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], 'big')
        body = data[position + 4 : position + 8 + length]
        pieces += [data[position : position + 4], body, struct.pack('>I', zlib.crc32(body))]
        position += 12 + length
    return b''.join(pieces)


def mend_tar(data):
    """Makes the checksum of each block right that may be a header."""
    data = bytearray(data)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b'ustar':
            data[start + 148 : start + 156] = b' ' * 8
            data[start + 148 : start + 155] = b'%06o\0' % sum(data[start : start + 512])
    return bytes(data)


def read_image(data, folder):
    for thorough in (False, True):
        decoded = images.decode_image(data, 'a', max_megapixels=4.0, thorough=thorough)
        assert decoded.dtype == np.uint8
        assert decoded.shape == (*images.image_size(data, 'a'), 3)


def read_archive(data, folder):
    (folder / 'archive').write_bytes(data)
    unpacked = archives.extract(folder / 'archive', folder / 'unpacked', max_bytes=2**28)
    assert {path.name for path in folder.iterdir()} == {'archive', 'unpacked'}
    # Contents may be changed where nothing tells, as in a tar; none is lost from a zip.
    if data.startswith(b'PK'):
        found = [path.read_bytes() for path in unpacked.rglob('*') if path.is_file()]
        assert all(content in found for content in CONTENT.values())


def read_pickle(data, folder):
    safe_pickle.describe(safe_pickle.load(data))


def whole_annotations():
    points = [[10.0 + 2 * k, 5 + k / 2] for k in range(21)]
    full = {
        'file': 'a.png',
        'keypoints': points,
        'visible': [k % 5 > 0 for k in range(21)],
        'handedness': 'left',
        'box': [5, 2, 58.5, 40],
        'split': 'val',
        'source': 'studio',
        'width': 60,
        'height': 44,
        'id': 'hand 1',
    }
    least = {'file': 'd\\b.png', 'keypoints': points}
    for records, options in (([full, least], {}), ([least, full], {'indent': 1}), ([least], {})):
        yield json.dumps(records, **options).encode()


def change_values(rng, data):
    """Puts values of other kinds into the records of a JSON file, where bytes would hardly."""
    try:
        content = records = json.loads(data)
        if isinstance(records, dict):
            records = rng.choice([*records.values()])
        record = rng.choice(records)
        name = rng.choice([*record])
        value = rng.choice(
            (
                None,
                -1,
                0,
                1e300,
                10**400,
                float('nan'),
                '',
                '..',
                [],
                {},
                [[]] * 21,
                True,
                'a' * 999,
            )
        )
        if isinstance(record[name], list) and record[name] and rng.randrange(2):
            record[name][rng.randrange(len(record[name]))] = value
        else:
            record[name] = value
        return json.dumps(content).encode()
    except (ValueError, TypeError, LookupError, AttributeError):
        return data


def read_annotations(data, folder):
    (folder / 'd').mkdir()
    for name in ('a.png', 'd/b.png'):
        photo().save(folder / name)
    (folder / 'annotations.json').write_bytes(data)
    source = FolderSource(folder)
    for index in range(len(source)):
        sample = source[index]
        assert sample['keypoints'].shape == (21, 2)
        assert all(np.isfinite(sample[name]).all() for name in ('keypoints', 'box', 'norm_size'))
        assert sample['visible'].any()
        assert sample['norm_size'] > 0
    source.check_images()
    source.fingerprint()


def whole_cocos():
    """COCO-WholeBody's form with persons, and MMPose's with hands."""
    images = [
        {'id': 1, 'file_name': 'a.png', 'width': 60, 'height': 44},
        {'id': 'b', 'file_name': 'd/b.png'},
    ]
    points = [number for k in range(21) for number in (10.0 + 2 * k, 5 + k / 2, 1 + k % 2)]
    person = {'id': 1, 'image_id': 1, 'iscrowd': 0, 'category_id': 1}
    for side in ('left', 'right'):
        person |= {f'{side}hand_valid': True, f'{side}hand_kpts': points}
        person |= {f'{side}hand_box': [5, 2, 50, 30.5]}
    hand = {'id': 2, 'image_id': 'b', 'category_id': 7, 'keypoints': points, 'bbox': [5, 2, 50, 30]}
    placed = {'center': [30, 20.5], 'head_size': 40.0}
    triples = {'keypoints': [points[k : k + 3] for k in range(0, 63, 3)], 'hand_type': 'left'}
    empty = {**hand, 'id': 3, 'keypoints': [0] * 63}
    categories = [{'id': 1, 'name': 'person'}, {'id': 7, 'name': 'right hand'}]
    for annotations, options in (
        ([person], {}),
        ([{**hand, **placed}, empty], {'indent': 1}),
        ([{**hand, **placed, **triples}, person], {}),
    ):
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        yield json.dumps(content, **options).encode()


@functools.cache
def coco_builder():
    return runpy.run_path(str(DATASETS / 'coco_wholebody' / 'coco_wholebody_dataset_builder.py'))


def read_coco(data, folder):
    (folder / 'd').mkdir()
    for name in ('a.png', 'd/b.png'):
        photo().save(folder / name)
    (folder / 'hands.json').write_bytes(data)
    builder = coco_builder()
    part = builder['Part']('train', folder / 'hands.json', folder)
    for boxes in ('keypoints', 'file', 'head'):
        options = builder['Options'](handedness='left', boxes=boxes)
        with contextlib.redirect_stdout(io.StringIO()):
            split = builder['splits']([part], options=options, cache=folder / boxes)['train']
        for index in range(split.records):
            # A bad record goes into quarantine, and the others stay.
            with contextlib.suppress(BadRecord):
                example = split.make(index)
                assert example['keypoints'].shape == (21, 2)
                assert all(np.isfinite(example[name]).all() for name in ('keypoints', 'box'))


def whole_mats():
    hands = np.arange(3 * 21 * 4, dtype=np.float64).reshape(3, 21, 4)
    for compressed in (False, True):
        for kind in (np.float64, np.float32, np.int16):
            stream = io.BytesIO()
            beside = {'names': np.array(['a', 'b'], object), 'handPara': hands.astype(kind)}
            scipy.io.savemat(stream, beside, do_compression=compressed)
            yield stream.getvalue()


def read_mat(data, folder):
    (folder / 'hands.mat').write_bytes(data)
    found = matfiles.read_array(folder / 'hands.mat', 'handPara', (3, 21, None))
    assert np.isfinite(found).all()


KINDS = {
    'image': (whole_images, read_image),
    'archive': (whole_archives, read_archive),
    'pickle': (whole_pickles, read_pickle),
    'annotations': (whole_annotations, read_annotations),
    'mat': (whole_mats, read_mat),
    'coco': (whole_cocos, read_coco),
}


@functools.cache
def whole_files(kind):
    return list(KINDS[kind][0]())


def make(kind, number):
    """File number so-and-so of a kind; the same ones every time."""
    wholes = whole_files(kind)
    rng = random.Random(f'{kind} {number}')
    data = change(rng, wholes[number % len(wholes)], wholes)
    if kind == 'image' and data.startswith(b'\x89PNG') and rng.randrange(2):
        data = mend_png(data)
    if kind in ('annotations', 'coco') and rng.randrange(2):
        data = change_values(rng, wholes[number % len(wholes)])
    if kind == 'archive' and data[257:262] == b'ustar':
        data = mend_tar(data) if rng.randrange(2) else data
        data = gzip.compress(data) if rng.randrange(3) == 0 else data
    return data


def read_many(kind, numbers, seconds, report):
    """In a child: reads files, and writes beforehand which; what is wrong ends in the report."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    read = KINDS[kind][1]
    # The reader's imports are no part of its time.
    with tempfile.TemporaryDirectory() as folder:
        read(whole_files(kind)[0], Path(folder))
    until = time.process_time() + seconds
    outcomes = {'read': 0, 'refused': 0, 'wrong': [], 'slowest': 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for number in numbers:
            if time.process_time() > until:
                break
            outcomes['now'] = number
            report.write_text(json.dumps(outcomes))
            data = make(kind, number)
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    read(data, Path(folder))
                    outcomes['read'] += 1
                except ValueError as error:
                    outcomes['refused'] += 1
                    if type(error) not in (ValueError, archives._Refused, matfiles._Refused):
                        outcomes['wrong'].append([number, repr(error)])
                except BaseException as error:
                    outcomes['wrong'].append([number, repr(error)])
            took = time.process_time() - start
            outcomes['slowest'] = max(outcomes['slowest'], took)
            if took > SLOWEST:
                outcomes['wrong'].append([number, f'{took:.1f} s'])
    outcomes.pop('now', None)
    report.write_text(json.dumps(outcomes))


def fuzz(kind, count, seconds, tmp_path):
    """Reads up to count files in so many seconds of processor time; what came of it."""
    report = tmp_path / 'report.json'
    # A new process: a fork would share the locks of the test run's threads.
    child = multiprocessing.get_context('spawn').Process(
        target=read_many, args=(kind, range(count), seconds, report)
    )
    child.start()
    child.join(10 * seconds + 120)
    hung = child.is_alive()
    if hung:
        child.kill()
        child.join()
    outcomes = json.loads(report.read_text())
    print(kind, outcomes)
    assert not hung, f'{kind} {outcomes["now"]} hangs'
    assert child.exitcode == 0, f'{kind} {outcomes.get("now")} ends its process: {child.exitcode}'
    assert outcomes['wrong'] == []
    return outcomes


@pytest.mark.parametrize('kind', KINDS)
def test_whole_files_are_read(kind, tmp_path):
    for number, data in enumerate(KINDS[kind][0]()):
        (tmp_path / f'{number}').mkdir()
        KINDS[kind][1](data, tmp_path / f'{number}')


@pytest.mark.parametrize('kind', KINDS)
def test_changed_files_are_read_or_refused(kind, tmp_path):
    outcomes = fuzz(kind, 100_000, 3.0, tmp_path)
    assert outcomes['refused'] > 20


@pytest.mark.long
@pytest.mark.parametrize(
    ('kind', 'count'),
    [(kind, 6_000 if kind == 'image' else 2_000) for kind in KINDS],
)
def test_thousands_of_changed_files_are_read_or_refused(kind, count, tmp_path):
    outcomes = fuzz(kind, count, 3_600.0, tmp_path)
    assert outcomes['read'] + outcomes['refused'] == count
    assert min(outcomes['read'], outcomes['refused']) > count // 50
