"""The folder source: what it reads, and what it says about annotations that are wrong."""

import collections
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handpose_jax.data import images, sources

KEYPOINTS = [[10 + 2 * k, 5 + k] for k in range(21)]  # tight box 10, 5, 50, 25


def record(**fields):
    return {'file': 'a.png', 'keypoints': KEYPOINTS} | fields


def folder(root, records, names=('a.png', 'b.png', 'c.png')):
    """Writes 80 x 60 images and the annotations; returns the folder."""
    for shade, name in enumerate(names):
        Image.new('RGB', (80, 60), (shade, 0, 0)).save(root / name)
    (root / 'annotations.json').write_text(json.dumps(records))
    return root


def test_a_record_with_required_fields_only(tmp_path):
    source = sources.FolderSource(folder(tmp_path, [record()]))
    sample = source[0]
    assert len(source) == 1
    assert sample['image'].shape == (60, 80, 3)
    np.testing.assert_array_equal(sample['keypoints'], np.array(KEYPOINTS, np.float32))
    assert sample['keypoints'].dtype == np.float32
    assert sample['visible'].tolist() == [True] * 21
    # 2.2 x 40 around (30, 15)
    np.testing.assert_allclose(sample['box'], [-14, -29, 74, 59])
    assert sample['box'].dtype == np.float32
    assert sample['norm_size'] == 40
    assert sample['is_left'] is False
    assert sample['image_id'] == source.image_id(0) == 'a.png'
    assert source.groups == ('',)


def test_every_optional_field(tmp_path):
    visible = [k != 20 for k in range(21)]
    full = record(
        visible=visible,
        handedness='left',
        split='val',
        source='studio',
        width=80,
        height=60,
        box=[0, 10, 20, 40],
        id='hand 1',
        keypoint_std=[1.0] * 21,
    )
    source = sources.FolderSource(folder(tmp_path, [full]), split='val', crop_scale=2.0)
    sample = source[0]
    assert sample['visible'].tolist() == visible
    assert sample['is_left'] is True
    assert sample['norm_size'] == 30
    np.testing.assert_allclose(sample['box'], [-20, -5, 40, 55])
    assert sample['image_id'] == 'hand 1'
    assert source.groups == ('studio',)


def test_the_box_encloses_visible_keypoints_only(tmp_path):
    points = [*KEYPOINTS[:20], [4000, -4000]]
    source = sources.FolderSource(
        folder(tmp_path, [record(keypoints=points, visible=[1] * 20 + [0])]), crop_scale=1.0
    )
    np.testing.assert_allclose(source[0]['box'], [10, -4.5, 48, 33.5])
    assert source[0]['norm_size'] == 38


def test_null_counts_as_absent(tmp_path):
    source = sources.FolderSource(folder(tmp_path, [record(box=None, visible=None, id=None)]))
    assert source[0]['norm_size'] == 40


def test_samples_do_not_share_memory_with_the_source(tmp_path):
    source = sources.FolderSource(folder(tmp_path, [record()]))
    source[0]['keypoints'][:] = 0
    source[0]['visible'][:] = False
    assert source[0]['keypoints'].min() == 5
    assert source[0]['visible'].all()


def test_iterating_ends(tmp_path):
    source = sources.FolderSource(folder(tmp_path, [record(), record(file='b.png')]))
    assert [sample['image'][0, 0, 0] for sample in source] == [0, 1]


def test_several_hands_in_one_file_have_names_of_their_own(tmp_path):
    records = [record(), record(file='b.png'), record()]
    source = sources.FolderSource(folder(tmp_path, records))
    assert [source.image_id(i) for i in range(3)] == ['a.png#0', 'b.png', 'a.png#2']


def test_split_and_where(tmp_path):
    records = [
        record(split='train', licence='MIT'),
        record(file='b.png', split='val', licence='MIT'),
        record(file='c.png', split='train', licence='unknown', source='web'),
    ]
    root = folder(tmp_path, records)
    assert len(sources.FolderSource(root)) == 3
    train = sources.FolderSource(root, split='train')
    assert [train.image_id(i) for i in range(2)] == ['a.png', 'c.png']
    free = sources.FolderSource(root, split='train', where={'licence': 'MIT'})
    assert [free.image_id(i) for i in range(len(free))] == ['a.png']
    with pytest.raises(ValueError, match=r"split 'test'; the splits are 'train' \(2.*'val' \(1"):
        sources.FolderSource(root, split='test')
    with pytest.raises(ValueError, match=r"licence = 'GPL'.*'MIT' \(1 .*'unknown' \(1 "):
        sources.FolderSource(root, split='train', where={'licence': 'GPL'})


def test_a_picture_without_a_hand_is_a_region_and_nothing_else(tmp_path):
    empty = {'file': 'b.png', 'no_hand': True, 'split': 'train', 'source': 'rooms'}
    region = [10, 20, 40, 40]
    records = [
        record(no_hand=False),
        empty | {'id': 'region', 'box': region, 'keypoints': None, 'visible': [False] * 21},
        empty | {'id': 'whole', 'width': 80, 'height': 60, 'keypoints': []},
    ]
    source = sources.FolderSource(folder(tmp_path, records), crop_scale=3.0)
    assert source.groups == ('', 'rooms', 'rooms')
    hand, part, whole = (source[i] for i in range(3))
    assert 'no_hand' not in hand
    for sample, box, side in ((part, [10, 15, 40, 45], 30), (whole, [-0.5, -10.5, 79.5, 69.5], 80)):
        assert sample['no_hand'] is True
        assert not sample['keypoints'].any()
        assert not sample['visible'].any()
        assert not sample['is_left']
        # The region is cut as it is, whatever lies around hands.
        np.testing.assert_allclose(sample['box'], box)
        assert sample['norm_size'] == side
    # Alone they are a data set, too.
    assert len(sources.FolderSource(folder(tmp_path, records[1:]))) == 2


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'keypoints': KEYPOINTS[:20]}, r"'keypoints': expected 21 pairs \[x, y\], got 20"),
        (
            {'keypoints': [*KEYPOINTS[:20], [1.0, float('nan')]]},
            r"'keypoints': coordinate 1 of keypoint 20.*got nan",
        ),
        (
            {'keypoints': [*KEYPOINTS[:20], [float('inf'), 1]]},
            r"'keypoints': coordinate 0 of keypoint 20.*got inf",
        ),
        (
            {'keypoints': [*KEYPOINTS[:20], [1, 2, 1]]},
            r"'keypoints': expected a pair .* keypoint 20, got \[1, 2, 1\]",
        ),
        ({'keypoints': [*KEYPOINTS[:20], ['1', 2]]}, r"'keypoints': .*keypoint 20 .*got '1'"),
        (
            {'keypoints': [*KEYPOINTS[:20], [10**400, 2]]},
            r"'keypoints': coordinate 0 of keypoint 20.*finite",
        ),
        ({'keypoints': 'none'}, r"'keypoints': expected 21 pairs \[x, y\], got 'none'"),
        ({'keypoints': None}, r"'keypoints': required, but missing"),
        ({'keypoints': [[7, 7]] * 21}, r"'keypoints': .*more than one place.*\[7.0, 7.0\]"),
        ({'visible': [True] * 20}, r"'visible': expected 21 booleans, got 20"),
        ({'visible': [True] * 20 + [2]}, r"'visible': .* keypoint 20, got 2"),
        ({'handedness': 'Right'}, r"'handedness': expected 'left' or 'right', got 'Right'"),
        ({'box': [0, 0, 10]}, r"'box': expected \[x0, y0, x1, y1\], got \[0, 0, 10\]"),
        ({'box': [5, 0, 5, 10]}, r"'box': expected x0 < x1 and y0 < y1"),
        ({'box': [0, 0, float('nan'), 1]}, r"'box': number 2 .*got nan"),
        ({'width': 80.5}, r"'width': expected a positive whole number of pixels, got 80.5"),
        ({'height': 0}, r"'height': .*got 0"),
        ({'split': 3}, r"'split': expected text, got 3"),
        ({'id': 7}, r"'id': expected text, got 7"),
        ({'file': 'none.png'}, r"'file': no such file: .*none\.png"),
        ({'file': ''}, r"'file': .*inside"),
        ({'file': '../a.png'}, r"'file': .*inside it, got '../a.png'"),
        ({'file': '/etc/hostname'}, r"'file': .*inside"),
        ({'file': 'C:\\a.png'}, r"'file': .*inside"),
        ({'file': 'a.png\0'}, r"'file': .*inside"),
        ({'file': ['a.png']}, r"'file': expected text"),
        ({'no_hand': 1}, r"'no_hand': expected true or false, got 1"),
        ({'no_hand': 'yes'}, r"'no_hand': expected true or false, got 'yes'"),
        ({'no_hand': True}, r"'no_hand': it is true, but the record has keypoints of a hand"),
        (
            {'no_hand': True, 'keypoints': None, 'visible': [True] * 21, 'handedness': 'left'},
            r"'no_hand': it is true, but the record has visible and handedness of a hand",
        ),
        ({'no_hand': True, 'keypoints': None}, r"'box': expected the region .*got neither"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, fields, message):
    root = folder(tmp_path, [record(), record(id='other') | fields])
    with pytest.raises(
        ValueError, match=rf'(?s)annotations\.json: 1 problem.*record 1, field {message}'
    ):
        sources.FolderSource(root)


def test_a_record_that_is_no_object(tmp_path):
    with pytest.raises(ValueError, match='record 1, expected an object, got 3'):
        sources.FolderSource(folder(tmp_path, [record(), 3]))


def test_an_id_that_is_used_twice(tmp_path):
    records = [record(id='x'), record(file='b.png', id='x')]
    with pytest.raises(ValueError, match=r"record 1, field 'id': .*'x' of record 0"):
        sources.FolderSource(folder(tmp_path, records))


def test_all_problems_are_collected(tmp_path):
    """Also those of other splits and several of one record; twenty are listed."""
    records = [record(file=f'{k}.png', split='val', handedness='?', width=-1) for k in range(15)]
    with pytest.raises(ValueError, match='30 problem') as caught:
        sources.FolderSource(folder(tmp_path, [record(split='train'), *records]), split='train')
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 20 + 1
    assert "record 1, field 'handedness'" in lines[1]
    assert "record 1, field 'width'" in lines[2]
    assert lines[-1].endswith('10 more')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'expected JSON'),
        ('[{"file": ', 'expected JSON'),
        ('{"images": []}', 'expected a list of records, got a dict'),
        ('[]', 'empty'),
        ('[' * 100_000, 'expected JSON'),
    ],
)
def test_a_file_that_is_no_list_of_records(tmp_path, text, message):
    (tmp_path / 'hands.json').write_text(text)
    with pytest.raises(ValueError, match=rf'hands\.json: .*{message}'):
        sources.FolderSource(tmp_path, annotations='hands.json')


def test_annotations_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r'annotations\.json: no such annotation file'):
        sources.FolderSource(tmp_path)
    (tmp_path / 'annotations.json').write_bytes(b'[\xff\xfe]')
    with pytest.raises(ValueError, match=r'annotations\.json: expected JSON in UTF-8'):
        sources.FolderSource(tmp_path)
    with pytest.raises(ValueError, match='cannot be read'):
        sources.FolderSource(tmp_path, annotations='.')


def test_a_damaged_image_is_named_when_it_is_read(tmp_path):
    root = folder(tmp_path, [record(), record(file='b.png', id='hand 7')])
    (root / 'b.png').write_bytes((root / 'b.png').read_bytes()[:60])
    source = sources.FolderSource(root)
    source[0]
    with pytest.raises(ValueError, match=r'record 1 \(hand 7\): .*b\.png: .*truncated'):
        source[1]


@pytest.mark.parametrize(('field', 'actual'), [('width', 80), ('height', 60)])
def test_an_image_of_another_size_than_annotated(tmp_path, field, actual):
    source = sources.FolderSource(folder(tmp_path, [record(**{field: 99})]))
    with pytest.raises(ValueError, match=rf'(?s)record 0 .*{field}.*expected {actual}.*got 99'):
        source[0]


@pytest.mark.parametrize('scale', [0.0, -1.0, float('nan')])
def test_crop_scale_out_of_range(tmp_path, scale):
    with pytest.raises(ValueError, match='crop_scale'):
        sources.FolderSource(folder(tmp_path, [record()]), crop_scale=scale)


def test_load_source(tmp_path):
    root = folder(tmp_path, [record()])
    assert len(sources.load_source('folder', root=root)) == 1
    with pytest.raises(ValueError, match=r"'fodler'; known are .*folder"):
        sources.load_source('fodler', root=root)
    with pytest.raises(ValueError, match=r"'folder': missing .*'root'"):
        sources.load_source('folder')
    with pytest.raises(ValueError, match=r"'folder': .*'crop_scales'"):
        sources.load_source('folder', root=root, crop_scales=2.0)


@pytest.mark.skipif('HANDPOSE_ASSETS' not in os.environ, reason='needs HANDPOSE_ASSETS')
def test_the_real_hands():
    root = Path(os.environ['HANDPOSE_ASSETS']) / 'real_hands'
    source = sources.FolderSource(root)
    sizes = collections.Counter(source.record(index).split for index in range(len(source)))
    assert sizes == {'train': 2851, 'val': 394, 'test': 154}
    assert len(set(source.groups)) == 11
    for index in range(0, len(source), 300):
        sample = source[index]
        height, width = sample['image'].shape[:2]
        centre = sample['keypoints'].mean(axis=0)
        assert 0 < centre[0] < width
        assert 0 < centre[1] < height


def parts(**changes):
    return {
        'one': {'name': 'sketch', 'count': 3, 'size': 40},
        'two': {'name': 'sketch', 'count': 20, 'size': 48, 'split': 'test', **changes},
    }


def test_a_mixture_is_its_parts_one_after_the_other():
    mixed = sources.load_source('mixture', parts=parts(), split='train')
    one = sources.load_source('sketch', count=3, size=40)
    two = sources.load_source('sketch', count=20, size=48, split='test')
    assert len(mixed) == len(one) + len(two) == 5
    assert list(mixed.groups) == ['one'] * 3 + ['two'] * 2
    expected = [one[0], one[1], one[2], two[0], two[1]]
    for index, sample in enumerate(expected):
        assert mixed.image_id(index) == mixed[index]['image_id'] == sample['image_id']
        np.testing.assert_array_equal(mixed[index]['image'], sample['image'])
    for index in (-1, 5):
        with pytest.raises(IndexError):
            mixed[index]


def test_a_mixture_has_another_fingerprint_when_a_part_has():
    fingerprints = {
        sources.load_source('mixture', parts=some, split='train').fingerprint()
        for some in (parts(), parts(count=30), dict(reversed(parts().items())))
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({}, 'expected at least one data set'),
        ({'x': {'count': 3}}, r'data.parts.x.name: expected one of .*prepared'),
        ({'x': {'name': 'nothing'}}, "data.parts.x: unknown source 'nothing'"),
        ({'x': {'name': 'sketch', 'count': 0}}, 'data.parts.x: data.count must be at least 1'),
    ],
)
def test_a_mixture_names_its_wrong_part(wrong, message):
    with pytest.raises(ValueError, match=message):
        sources.load_source('mixture', parts=wrong)


def read_one(tmp_path, change, encoding='utf-8', **options):
    """Records of a folder whose annotations were changed as text values."""
    records = [record(id=str(number)) for number in range(3)]
    for one in records:
        change(one)
    folder(tmp_path, records)
    path = tmp_path / 'annotations.json'
    path.write_bytes(path.read_text().encode(encoding))
    return sources.FolderSource(tmp_path, **options)


@pytest.mark.parametrize('nowhere', [None, [None, None], [float('nan'), 3.0]])
def test_a_keypoint_that_is_not_visible_needs_no_place(tmp_path, nowhere):
    def change(one):
        one['keypoints'] = [*KEYPOINTS[:20], nowhere]
        one['visible'] = [True] * 20 + [False]

    sample = read_one(tmp_path, change)[0]
    assert np.isfinite(sample['keypoints']).all()
    np.testing.assert_array_equal(sample['keypoints'][:20], np.float32(KEYPOINTS[:20]))
    assert sample['visible'].sum() == 20


def test_what_other_tools_write_is_read(tmp_path):
    def change(one):
        one['width'] = float(one.get('width') or 80)

    assert len(read_one(tmp_path, change, encoding='utf-8-sig')) == 3


def test_a_path_from_windows_is_read_where_the_file_is_there(tmp_path):
    (tmp_path / 'images').mkdir(parents=True)

    def change(one):
        one['file'] = 'images\\a.png'

    with pytest.raises(ValueError, match=r'no such file'):
        read_one(tmp_path, change)
    Image.new('RGB', (80, 60)).save(tmp_path / 'images' / 'a.png')
    source = read_one(tmp_path, change)
    assert source[0]['image'].size


def test_records_without_a_visible_keypoint_are_left_out_and_counted(tmp_path, caplog):
    def change(one):
        if one['id'] == '1':
            one['visible'] = [False] * 21
        if one['id'] == '2':
            one['keypoints'] = []

    source = read_one(tmp_path, change)
    assert [source.image_id(index) for index in range(len(source))] == ['0']
    assert '2 records without a visible keypoint left out (the first: record 1)' in caplog.text


def test_fractions_are_not_taken_for_pixels(tmp_path, caplog):
    def all_of_them(one):
        one['keypoints'] = [[x / 80, y / 80] for x, y in KEYPOINTS]

    with pytest.raises(ValueError, match='3 records of 3 lie within 0 to 1, so they are fractions'):
        read_one(tmp_path, all_of_them)

    def one_of_them(one):
        if one['id'] == '1':
            all_of_them(one)

    assert len(read_one(tmp_path, one_of_them)) == 3
    assert '1 record whose keypoints all lie within 0 to 1' in caplog.text


def test_keypoints_beside_the_picture_are_told(tmp_path, caplog):
    def away(one):
        one['keypoints'] = [[x + 1000, y] for x, y in KEYPOINTS]
        one['width'], one['height'] = 80, 80

    with pytest.raises(ValueError, match='3 records of 3; expected pixels of the upright image'):
        read_one(tmp_path, away)

    def one_of_them(one):
        if one['id'] == '2':
            away(one)

    read_one(tmp_path, one_of_them)
    assert '1 record whose visible keypoints all lie outside the image' in caplog.text


def test_hands_of_a_few_pixels_are_told(tmp_path, caplog):
    def change(one):
        if one['id'] == '0':
            one['keypoints'] = [[20 + x / 40, 20 + y / 40] for x, y in KEYPOINTS]

    read_one(tmp_path, change)
    assert '1 record whose hand is smaller than 8 pixels (the first: record 0' in caplog.text


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    outside = tmp_path / 'outside'
    outside.mkdir()
    Image.new('RGB', (80, 60)).save(outside / 'a.png')
    root = tmp_path / 'folder'
    root.mkdir()
    (root / 'linked.png').symlink_to(outside / 'a.png')
    (root / 'images').symlink_to(outside)
    for name in ('linked.png', 'images/a.png'):
        with pytest.raises(ValueError, match='is behind a link out of the folder'):
            read_one(root, lambda one, name=name: one.update(file=name))
    (root / 'inside.png').symlink_to('a.png')
    assert len(read_one(root, lambda one: one.update(file='inside.png'))) == 3


def test_a_key_given_twice_is_an_error(tmp_path):
    path = folder(tmp_path, [record()]) / 'annotations.json'
    path.write_text(path.read_text().replace('{"file"', '{"id": "a", "id": "b", "file"'))
    with pytest.raises(ValueError, match="the key 'id' is given twice in one object"):
        sources.FolderSource(tmp_path)


def test_damaged_images_are_named_before_anything_is_decoded(tmp_path, monkeypatch):
    records = [record(file=f'{name}.png', width=80, height=60) for name in 'abc']
    root = folder(tmp_path, records)
    source = sources.FolderSource(root)
    monkeypatch.setattr(images, 'decode_image', None)
    sources.check_images(source)
    whole = (root / 'b.png').read_bytes()
    (root / 'b.png').write_bytes(whole[: len(whole) // 2])
    Image.new('RGB', (40, 30)).save(root / 'c.png')
    mixed = sources.MixtureSource({'own': source})
    for of in (source, mixed):
        with pytest.raises(ValueError, match=r'(?s)2 images of 3 .*b\.png.*expected 40, the width'):
            sources.check_images(of)
