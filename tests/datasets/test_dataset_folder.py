"""Folders of one's own images against drawn hands."""

import json

import numpy as np
import pytest
from made import load, parse
from PIL import Image

from handpose_jax.data.prepared import PreparedSource
from handpose_jax.data.quarantine import BadRecord
from handpose_jax.data.sources import FolderSource

builder, dummy = load('folder')


def edit(folder, number, **changes):
    path = folder / 'annotations.json'
    values = json.loads(path.read_text())
    values[number].update(changes)
    path.write_text(json.dumps(values))


def write_records(folder, records):
    folder.mkdir(exist_ok=True)
    for name in {record['file'] for record in records}:
        Image.new('RGB', (80, 60)).save(folder / name)
    (folder / 'annotations.json').write_text(json.dumps(records))
    return folder


def record(**fields):
    return {'file': 'a.png', 'keypoints': [[10 + 2 * k, 5 + k] for k in range(21)]} | fields


def test_records_without_a_split_are_for_training(tmp_path):
    splits = builder.splits(write_records(tmp_path / 'f', [record(), record(file='b.png')]))
    assert list(splits) == ['train']
    assert [splits['train'].make(i)['image_id'] for i in range(2)] == ['a.png', 'b.png']
    mixed = [record(), record(file='b.png', split='val')]
    splits = builder.splits(write_records(tmp_path / 'g', mixed))
    assert {name: split.records for name, split in splits.items()} == {'train': 1, 'val': 1}
    unclear = [record(), record(file='b.png', split='train')]
    with pytest.raises(ValueError, match=r"'split': .*got 1 records without it.*'train'"):
        builder.splits(write_records(tmp_path / 'h', unclear))


def test_keypoints_on_a_line_are_no_error(tmp_path):
    line = [[10, 5 + k] for k in range(21)]
    splits = builder.splits(write_records(tmp_path / 'f', [record(keypoints=line)]))
    example = splits['train'].make(0)
    np.testing.assert_array_equal(example['box'], [10, 5, 10, 25])
    assert example['norm_size'] == 20


def test_a_picture_without_a_hand_is_prepared_as_one(tmp_path):
    none = {'file': 'b.png', 'no_hand': True, 'box': [10, 20, 50, 40], 'id': 'none'}
    write_records(tmp_path / 'F', [record(), none])
    builder.prepare(parse(builder, tmp_path / 'F', tmp_path / 'D'))
    direct, read = FolderSource(tmp_path / 'F'), PreparedSource(tmp_path / 'D')
    assert [one.get('no_hand') for one in (read[0], read[1])] == [None, True]
    for name in ('image', 'keypoints', 'visible', 'box', 'norm_size', 'no_hand', 'is_left'):
        np.testing.assert_array_equal(read[1][name], direct[1][name])


@pytest.mark.parametrize('name', ['../x', 'Train', 'my split', 'a-b', '1'])
def test_splits_that_cannot_be_part_of_a_file_name_are_refused(tmp_path, name):
    folder = write_records(tmp_path / 'f', [record(split=name)])
    with pytest.raises(ValueError, match=r"'split': expected a name of small letters"):
        builder.splits(folder)
    with pytest.raises(ValueError, match='--name: expected a name of small letters'):
        builder.prepare(parse(builder, folder, tmp_path / 'D', '--name', name))


def test_damage_is_named(tmp_path):
    dummy.write(tmp_path, records={'train': 3})
    edit(tmp_path, 0, height=61)
    make = builder.splits(tmp_path)['train'].make
    with pytest.raises(BadRecord, match='160 x 61 pixels as annotated, got 160 x 120') as caught:
        make(0)
    assert caught.value.file == str(tmp_path / 'annotations.json')
    assert caught.value.record == '0 (train-0)'
    (tmp_path / 'images' / 'train_0001.png').write_bytes(b'no image')
    with pytest.raises(BadRecord, match=r"1 \(images/train_0001\.png\), field 'image'"):
        make(1)
    (tmp_path / 'images' / 'train_0001.png').unlink()
    edit(tmp_path, 2, keypoints=[[1, 2]])
    copy = (tmp_path / 'annotations.json').rename(tmp_path / 'other.json')
    with pytest.raises(ValueError, match=r'2 problem\(s\)') as problems:
        builder.splits(tmp_path, annotations=copy.name)
    assert "record 1, field 'file': no such file" in str(problems.value)
    assert "record 2, field 'keypoints': expected 21 pairs" in str(problems.value)
    with pytest.raises(ValueError, match=r'annotations\.json: no such annotation file'):
        builder.splits(tmp_path / 'nowhere')


def test_a_prepared_folder_gives_the_samples_of_the_folder_itself(tmp_path):
    dummy.write(tmp_path / 'F', seed=3)
    options = parse(builder, tmp_path / 'F', tmp_path / 'D', '--name', 'mine')
    builder.prepare(options)
    for split in ('train', 'test'):
        direct = FolderSource(tmp_path / 'F', split=split)
        read = PreparedSource(tmp_path / 'D', split=split)
        assert len(read) == len(direct)
        for index in range(len(direct)):
            one, other = read[index], direct[index]
            counted = other['visible']
            np.testing.assert_array_equal(one['visible'], counted)
            np.testing.assert_array_equal(one['keypoints'][counted], other['keypoints'][counted])
            np.testing.assert_array_equal(one['image'], other['image'])
            np.testing.assert_allclose(one['box'], other['box'], atol=1e-3)
            assert one['is_left'] == other['is_left']
            assert one['norm_size'] == pytest.approx(other['norm_size'], rel=1e-6)
            assert one['image_id'] == other['image_id']
    # Other annotations are another data set, which may not go on in the same place.
    edit(tmp_path / 'F', 0, source='elsewhere')
    for cached in (builder._source, builder._members):
        cached.cache_clear()
    with pytest.raises(ValueError, match='holds a data set made with other settings'):
        builder.prepare(options)
