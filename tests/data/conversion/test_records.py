"""What the converters share: finding the files, and records that are checked before they go in."""

import argparse
import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.quarantine import BadRecord

KEYPOINTS = np.column_stack([10.0 + 2 * np.arange(21), 5.0 + np.arange(21)])  # box 10, 5, 50, 25
ALL = np.ones(21, bool)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'hand.png'
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(path)
    return path


def make(picture, **changes):
    values = {
        'image': picture,
        'file': 'hands.json',
        'record': 7,
        'keypoints': KEYPOINTS,
        'annotated': ALL,
        'is_left': True,
        'image_id': 'hands/7',
    }
    return records.make_record(**{**values, **changes})


def test_a_record_with_what_it_must_have(image):
    record = make(image)
    assert record['image'] == image.read_bytes()
    np.testing.assert_array_equal(record['keypoints'], KEYPOINTS.astype(np.float32))
    np.testing.assert_array_equal(record['box'], [10, 5, 50, 25])
    assert record['norm_size'] == 40
    assert record['annotated'].all()
    assert record['visible'].all()
    assert record['is_left'] is True
    assert 'camera' not in record


def test_what_is_not_annotated_is_neither_checked_nor_kept(image):
    annotated = np.arange(21) != 4
    points = KEYPOINTS.copy()
    points[4] = np.nan
    record = make(image, keypoints=points, annotated=annotated, visible=np.arange(21) != 5)
    np.testing.assert_array_equal(record['keypoints'][4], [30, 15])
    assert record['visible'].sum() == 19
    assert record['annotated'].sum() == 20


def test_box_norm_size_and_3d_are_kept(image):
    points = np.random.default_rng(0).normal(size=(21, 3))
    record = make(
        image, box=[0, 0, 8, 4], norm_size=3.5, keypoints_3d=points, camera=np.eye(3), size=(40, 64)
    )
    np.testing.assert_array_equal(record['box'], [0, 0, 8, 4])
    assert record['norm_size'] == 3.5
    np.testing.assert_array_equal(record['keypoints_3d'], points.astype(np.float32))


def test_a_picture_without_a_hand_has_no_annotated_keypoint(image):
    record = make(image, annotated=~ALL, box=[2, 3, 30, 23], no_hand=True)
    assert not record['annotated'].any()
    assert not record['visible'].any()
    assert not record['keypoints'].any()
    assert record['norm_size'] == 28


def with_value(value):
    points = KEYPOINTS.copy()
    points[3, 1] = value
    return points


@pytest.mark.parametrize(
    ('changes', 'field', 'message'),
    [
        ({'keypoints': with_value(np.nan)}, 'keypoints', r'nan.*keypoint 3 \(thumb_ip\)'),
        ({'keypoints': with_value(1e7)}, 'keypoints', 'within 1e.06 px'),
        ({'keypoints': KEYPOINTS[:20]}, 'keypoints', r'shape \(21, 2\)'),
        ({'keypoints': [['x', 'y']] * 21}, 'keypoints', r'shape \(21, 2\)'),
        ({'keypoints': [[1, 2]] * 20 + [[1]]}, 'keypoints', r'shape \(21, 2\)'),
        ({'keypoints': None}, 'keypoints', 'got None'),
        ({'annotated': ~ALL}, 'keypoints', 'at least one annotated keypoint'),
        ({'no_hand': True}, 'no_hand', 'no annotated keypoint where there is no hand'),
        ({'keypoints': np.ones((21, 2))}, 'keypoints', 'at more than one place'),
        ({'box': [5, 5, 5, 9]}, 'box', 'x0 < x1'),
        ({'box': [0, 0, np.inf, 9]}, 'box', 'finite'),
        ({'norm_size': 0.0}, 'norm_size', 'positive number'),
        ({'norm_size': float('nan')}, 'norm_size', 'positive number'),
        ({'size': (64, 40)}, 'image', '40 x 64 pixels as annotated, got 64 x 40'),
        ({'image': 'nowhere.png'}, 'image', 'nowhere.png, got No such file'),
        ({'keypoints_3d': np.full((21, 3), np.nan), 'camera': np.eye(3)}, 'keypoints_3d', 'finite'),
        ({'keypoints_3d': np.ones((21, 3))}, 'camera', r'shape \(3, 3\)'),
    ],
)
def test_a_bad_record_names_file_record_and_field(image, changes, field, message):
    with pytest.raises(BadRecord, match=message) as caught:
        make(image, **changes)
    error = caught.value
    assert (error.file, error.record, error.field) == ('hands.json', '7', field)
    assert str(error).startswith(f"hands.json: record 7, field '{field}': expected ")


def test_an_image_that_is_none(image):
    image.write_bytes(b'<html>')
    with pytest.raises(BadRecord, match=r"field 'image'.*hand\.png.*<html>"):
        make(image)


def test_a_bad_record_survives_the_way_to_another_process():
    error = BadRecord(file='a', record=1, field='b', expected='c', got='d')
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field) == (str(error), 'b')


def test_the_folder_is_found_where_it_is(tmp_path):
    (tmp_path / 'RHD' / 'training').mkdir(parents=True)
    for given in (tmp_path, tmp_path / 'RHD'):
        assert records.find(given, 'RHD', advice='get it').samefile(tmp_path / 'RHD')
    with pytest.raises(ValueError, match=r"'hands' or 'h.zip' in it; get it"):
        records.find(tmp_path, 'hands', ('h.zip',), advice='get it')
    with pytest.raises(ValueError, match='no such folder; get it'):
        records.find(tmp_path / 'x', 'hands', advice='get it')


@pytest.mark.parametrize('inside', ['hands/a.txt', 'a.txt'])
def test_an_archive_is_unpacked_once(tmp_path, inside):
    with zipfile.ZipFile(tmp_path / 'h.zip', 'w') as archive:
        archive.writestr(inside, 'text')
    found = records.find(tmp_path, 'hands', ('h.zip',), advice='')
    assert (found / 'a.txt').read_text() == 'text'
    (found / 'a.txt').write_text('kept')
    again = records.find(tmp_path, 'hands', ('h.zip',), advice='')
    assert (again / 'a.txt').read_text() == 'kept'


class Make:
    """Records of one picture; some bad on demand."""

    def __init__(self, encoded, bad=()):
        self.encoded, self.bad = encoded, bad

    def __call__(self, index):
        if index in self.bad:
            raise BadRecord(file='f', record=index, field='x', expected='1', got='2')
        return {
            'image': self.encoded,
            'keypoints': KEYPOINTS.astype(np.float32),
            'annotated': ALL,
            'visible': ALL,
            'box': np.array([10, 5, 50, 25], np.float32),
            'norm_size': np.float32(40),
            'is_left': False,
            'image_id': f'{index}',
        }


def prepare(tmp_path, splits, **options):
    parser = argparse.ArgumentParser()
    records.add_arguments(parser)
    arguments = parser.parse_args(['--manual_dir', 'm', '--data_dir', str(tmp_path / 'd')])
    arguments.workers = 1
    vars(arguments).update(options)
    return records.prepare('hands', '1', arguments, splits, description='hands')


def encoded_png():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(buffer, 'PNG')
    return buffer.getvalue()


def test_counts_and_what_was_left_out_are_told(tmp_path, capsys):
    data = encoded_png()
    folder = prepare(
        tmp_path,
        {
            'train': prepared.Split(150, Make(data, bad=(3,)), published=152),
            'test': prepared.Split(2, Make(data), published=2, evaluation=True),
            'more': prepared.Split(1, Make(data)),
        },
    )
    out = capsys.readouterr().out
    assert f'fingerprint {prepared.fingerprint(folder)}' in out
    assert 'train: 149 records, 150 found, -2 against the 152 published' in out
    assert 'test: 2 records, 2 found, as the 2 published' in out
    assert 'more: 1 records\n' in out
    assert 'left out: 1, all listed in' in out
    assert "f: record 3, field 'x': expected 1, got 2" in out


def test_damaged_pixels_are_found_if_asked_for(tmp_path):
    cut = encoded_png()[:-30]
    splits = {'test': prepared.Split(1, Make(cut), evaluation=True)}
    with pytest.raises(ValueError, match='hands/test, record 0: 0: the PNG image is truncated'):
        prepare(tmp_path, splits, check_images=True)
    prepare(tmp_path, splits)


def test_half_a_jpeg_whose_end_was_put_back_is_found_if_asked_for(tmp_path):
    """Also where a training would not see it: in the last scan of a progressive one."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, 'JPEG', progressive=True)
    cut = stream.getvalue()[:-50].rstrip(b'\xff') + b'\xff\xd9'
    splits = {'test': prepared.Split(1, Make(cut), evaluation=True)}
    with pytest.raises(ValueError, match=r'hands/test, record 0: 0: the JPEG image .* missing'):
        prepare(tmp_path, splits, check_images=True)
    prepare(tmp_path, splits)
