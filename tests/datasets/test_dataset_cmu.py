"""The converter of the CMU hands, on made-up hands in its layout; and the real samples."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made import check_order, examples, load, parse

from handpose_jax import geometry, hand
from handpose_jax.data.prepared import PreparedSource
from handpose_jax.data.quarantine import BadRecord

cmu, dummy = load('cmu')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The three downloads with made-up hands, and the truth."""
    folder = tmp_path_factory.mktemp('cmu')
    return folder, dummy.write(folder)


def test_some_keypoints_of_every_kind_are_unknown(made):
    assert sum((~one.annotated).sum() for one in made[1].values()) > 20


def test_both_hands_of_a_photograph_are_records_and_know_their_side(made):
    folder, _ = made
    left, right = examples(cmu.splits(folder)['test'])[:2]
    assert (left['image_id'][-2:], right['image_id'][-2:]) == ('_l', '_r')
    assert (left['is_left'], right['is_left']) == (True, False)
    assert left['image'] == right['image']
    assert left['box'][2] < right['box'][2]


def test_fingertips_of_synth1_are_unknown_as_in_the_authors_files(made):
    folder, _ = made
    for record in examples(cmu.splits(folder)['synth']):
        tips = record['annotated'][list(hand.FINGERTIPS)]
        assert tips.any() == (not record['image_id'].startswith('synth1/'))


def test_prepared_crops_are_1_54_heads_wide_around_the_hand(made, tmp_path, capsys):
    folder, _ = made
    for part in ('hand_labels', 'hand_labels_synth'):
        (tmp_path / part).symlink_to(folder / part)
    cmu.prepare(parse(cmu, tmp_path, tmp_path / 'D', '--check_images'))
    source = PreparedSource(tmp_path / 'D', split='test')
    assert len(source) == 4
    for index in range(4):
        sample = source[index]
        file = folder / 'hand_labels' / f'{sample["image_id"]}.json'
        values = json.loads(file.read_text())
        box = sample['box'].astype(np.float64)
        assert box[2] - box[0] == pytest.approx(1.54 * values['head_size'], rel=1e-5)
        centre = (box[:2] + box[2:]) / 2
        np.testing.assert_allclose(centre, values['hand_box_center'], atol=1e-3)
        assert sample['norm_size'] == pytest.approx(values['head_size'])
    settings = json.loads((tmp_path / 'D' / 'prepare.json').read_text())
    assert settings['parts'] == ['hand_labels', 'hand_labels_synth']
    told = capsys.readouterr().out
    assert 'hand143_panopticdb: not in' in told
    assert 'there will be no panoptic' in told
    assert 'test: 4 records, 4 found, -842 against the 846 published' in told


def test_archives_do_as_well_as_folders(made, tmp_path):
    folder, truth = made
    with zipfile.ZipFile(tmp_path / 'hand_labels.zip', 'w') as packed:
        for path in sorted((folder / 'hand_labels').rglob('*.*')):
            packed.write(path, path.relative_to(folder))
        # What macOS packs beside a file.
        packed.writestr('hand_labels/manual_test/._000010004_01_l.json', b'\0\1')
    with tarfile.open(tmp_path / 'hand143_panopticdb.tar', 'w') as packed:
        packed.add(folder / 'hand143_panopticdb', 'hand143_panopticdb')
    found = cmu.splits(tmp_path)
    assert list(found) == ['train', 'test', 'panoptic']
    for name, split in found.items():
        expected = [key for key, one in truth.items() if one.split == name]
        assert [record['image_id'] for record in examples(split)] == expected


def test_one_part_is_enough_and_none_is_told(made, tmp_path):
    folder, _ = made
    (found,) = cmu.splits(folder / 'hand143_panopticdb')
    assert found == 'panoptic'
    with pytest.raises(ValueError, match=r'no part of the CMU hands .* at least one of hand_lab'):
        cmu.splits(tmp_path)


@pytest.mark.parametrize(
    'missing', ['hand_labels/manual_test', 'hand_labels/manual_train', 'hand_labels_synth/synth3']
)
def test_a_missing_folder_is_named(missing, tmp_path):
    dummy.write(tmp_path, train=1, test=1, panoptic=0, synth=(1, 1, 1, 1), height=48)
    shutil.rmtree(tmp_path / missing)
    with pytest.raises(ValueError, match=f'there is no {Path(missing).name}; unpack the archive'):
        cmu.splits(tmp_path)


@pytest.fixture
def one(made, tmp_path):
    """A function that changes the annotations of one hand and converts it."""
    folder, _ = made
    target = tmp_path / 'hand_labels' / 'manual_test'
    target.mkdir(parents=True)
    (tmp_path / 'hand_labels' / 'manual_train').mkdir()
    stem = 'Made_up.flv_000005_r'
    for suffix in ('.jpg', '.json'):
        shutil.copy(folder / 'hand_labels' / 'manual_test' / f'{stem}{suffix}', target)
    file = target / f'{stem}.json'

    def convert(change=None, text=None):
        if change is not None:
            values = json.loads(file.read_text())
            change(values)
            text = json.dumps(values)
        if text is not None:
            file.write_text(text)
        return cmu.splits(tmp_path)['test'].make(0)

    convert.file = file
    return convert


def test_a_point_counts_if_and_only_if_its_flag_is_1_and_it_is_not_0_0(one):
    flags = [1, 0, 1, 2, 0.5, -1, True, False, 1]
    places = [(5, 6), (7, 8), (0, 0), (5, 6), (5, 6), (5, 6), (0, 9), (0, 9), (-40.5, 900.25)]

    def change(values):
        rows = [[*place, flag] for place, flag in zip(places, flags, strict=True)]
        values['hand_pts'] = rows + [[50.0, 60.0, 1]] * 12

    record = one(change)
    expected = [True, False, False, False, False, False, True, False, True]
    assert record['annotated'].tolist() == expected + [True] * 12
    # Outside the image is where a hand goes on, and stays what it is.
    np.testing.assert_array_equal(record['keypoints'][8], [-40.5, 900.25])


def test_unknown_points_may_hold_anything(one):
    nowhere = [[float('nan'), float('inf'), 0]] + [[5.0, 6.0 + row, 1] for row in range(20)]
    record = one(lambda values: values.update(hand_pts=nowhere))
    assert np.isfinite(record['keypoints']).all()
    assert record['annotated'].sum() == 20


def test_the_box_of_the_head_gives_its_size_where_that_is_not_told(one):
    def change(values):
        del values['head_size']
        values['head_box'] = [[130.0, 20.0], [100.0, 70.0]]

    assert one(change)['norm_size'] == 50.0


def put(row, column, value):
    def change(values):
        values['hand_pts'] = [[1.0, 2.0 + row, 1] for row in range(21)]
        values['hand_pts'][row][column] = value

    return change


def everywhere(*row):
    return lambda values: values.update(hand_pts=[row] * 21)


@pytest.mark.parametrize(
    ('change', 'field', 'expected', 'got'),
    [
        (lambda v: v['hand_pts'].pop(), 'hand_pts', '(21, 3)', '(20, 3)'),
        (lambda v: v['hand_pts'][4].pop(), 'hand_pts', '(21, 3)', '[['),
        (lambda v: v.pop('hand_pts'), 'hand_pts', '(21, 3)', 'None'),
        (put(7, 1, float('nan')), 'hand_pts', 'finite', 'nan, 1.0] for keypoint 7 (index_dip)'),
        (put(3, 2, float('nan')), 'hand_pts', 'finite', 'for keypoint 3 (thumb_ip)'),
        (put(2, 0, '12.5'), 'hand_pts', 'numbers', "'12.5'"),
        (put(2, 0, None), 'hand_pts', 'numbers', 'None'),
        (everywhere(1.0, 2.0, 0.0), 'hand_pts', 'at least one', 'none'),
        (lambda v: v.pop('hand_box_center'), 'hand_box_center', '(2,)', 'None'),
        (lambda v: v.update(hand_box_center=[1.0]), 'hand_box_center', '(2,)', '(1,)'),
        (lambda v: v.update(head_size=None), 'head_size', 'a number', 'None'),
        (lambda v: v.update(head_size='90'), 'head_size', 'a number', '90'),
        (lambda v: v.update(head_size=float('inf')), 'head_size', 'finite', 'inf'),
        (lambda v: v.update(head_size=0), 'head_size', 'positive', '0.0'),
        (lambda v: [v.pop('head_size'), v.pop('head_box')], 'head_size', 'a number', 'None'),
        (lambda v: v.pop('is_left'), 'is_left', '0, 1, true or false', 'None'),
        (lambda v: v.update(is_left='left'), 'is_left', '0, 1, true or false', 'left'),
        (lambda v: v.update(is_left=2), 'is_left', '0, 1, true or false', '2'),
    ],
)
def test_damaged_annotations_are_named(one, change, field, expected, got):
    with pytest.raises(BadRecord) as raised:
        one(change)
    error = raised.value
    assert (error.file, error.record) == (str(one.file), 'Made_up.flv_000005_r')
    assert error.field == field
    assert expected in error.expected
    assert got in error.got


@pytest.mark.parametrize(
    ('content', 'got'),
    [
        ('{"hand_pts": [[1, 2', 'Expecting'),
        ('', 'Expecting value'),
        ('[1, 2]', '[1, 2]'),
        ('[' * 100_000, 'nested too deeply'),
        (' ' * (2**20 + 1), 'more than any of these files'),
        (b'{"hand_pts": "\xff"}', 'decode'),
    ],
)
def test_files_that_are_no_annotations_are_named(one, content, got):
    one.file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadRecord) as raised:
        one()
    assert raised.value.file == str(one.file)
    assert 'JSON' in raised.value.expected
    assert got in raised.value.got


def test_either_file_of_a_pair_is_missed(one):
    image = one.file.with_suffix('.jpg')
    image.rename(image.with_suffix('.away'))
    with pytest.raises(BadRecord, match=r"record Made_up\S+, field 'image'.* got No such file"):
        one()
    image.with_suffix('.away').rename(image)
    one.file.unlink()
    # The list of a folder is read once, so a new one here: what is left is the image alone.
    cmu._stems.cache_clear()
    with pytest.raises(BadRecord, match=r'record Made_up.*No such file'):
        one()


def test_an_image_that_is_none_is_named(one):
    one.file.with_suffix('.jpg').write_bytes(b'<html>not found</html>')
    with pytest.raises(BadRecord, match=r"record Made_up\S+, field 'image'"):
        one()


@pytest.fixture
def studio(made, tmp_path):
    """A function that changes the records of the Panoptic Studio and converts the second one."""
    folder, _ = made
    shutil.copytree(folder / 'hand143_panopticdb', tmp_path / 'hand143_panopticdb')
    file = tmp_path / 'hand143_panopticdb' / 'hands_v143_14817.json'

    def convert(change):
        content = json.loads(file.read_text())
        change(content['root'][1])
        file.write_text(json.dumps(content))
        return cmu.splits(tmp_path)['panoptic'].make(1)

    convert.file = file
    return convert


@pytest.mark.parametrize(
    ('change', 'field', 'expected', 'got'),
    [
        (lambda v: v['joint_self'].pop(), 'joint_self', '(21, 3)', '(20, 3)'),
        (lambda v: v['joint_self'][0].append(1), 'joint_self', '(21, 3)', '[['),
        (lambda v: v.pop('img_paths'), 'img_paths', 'a path', 'None'),
        (lambda v: v.update(img_paths=3), 'img_paths', 'a path', '3'),
        (lambda v: v.update(img_paths='../x.jpg'), 'img_paths', 'below', '../x.jpg'),
        (lambda v: v.update(img_paths='/etc/x.jpg'), 'img_paths', 'below', '/etc/x.jpg'),
        (lambda v: v.update(img_paths='imgs\\x.jpg'), 'img_paths', 'below', 'imgs'),
        (lambda v: v.update(img_paths='imgs/no.jpg'), 'image', 'no.jpg', 'No such file'),
        (lambda v: v.update(img_width=1920), 'image', '1920 x 120 pixels', '213 x 120'),
        (lambda v: v.update(img_height='x'), 'img_height', 'a number', 'x'),
    ],
)
def test_damaged_records_of_the_studio_are_named(studio, change, field, expected, got):
    with pytest.raises(BadRecord) as raised:
        studio(change)
    error = raised.value
    assert (error.file, error.record, error.field) == (str(studio.file), 'root[1]', field)
    assert expected in error.expected
    assert got in error.got


@pytest.mark.parametrize(
    ('content', 'got'),
    [('{"root": [{"img_paths"', 'Expecting'), ('{"hands": []}', 'hands'), ('{"root": []}', '[]')],
)
def test_a_damaged_list_of_the_studio_stops_at_once(studio, content, got):
    studio.file.write_text(content)
    with pytest.raises(ValueError, match='unpack the archive again') as raised:
        cmu.splits(studio.file.parent)
    assert str(studio.file) in str(raised.value)
    assert got in str(raised.value)


@pytest.fixture
def samples(assets, tmp_path):
    """The four real hands, laid out again as in the archive."""
    folder = assets / 'hands' / 'samples' / 'panoptic'
    content = json.loads((folder / 'test_panoptic.json').read_text())
    names = {image['id']: image['file_name'] for image in content['images']}
    target = tmp_path / 'hand_labels' / 'manual_test'
    target.mkdir(parents=True)
    (tmp_path / 'hand_labels' / 'manual_train').mkdir()
    truth = {}
    for one in content['annotations']:
        name = names[one['image_id']]
        shutil.copyfile(folder / name, target / name)
        rows = np.reshape(one['keypoints'], (hand.NUM_KEYPOINTS, 3))
        values = {
            'hand_pts': rows.tolist(),
            'hand_box_center': one['center'],
            'head_size': one['head_size'],
            'is_left': int(name.endswith('_l.jpg')),
        }
        (target / name).with_suffix('.json').write_text(json.dumps(values))
        truth[f'manual_test/{Path(name).stem}'] = rows[:, :2]
    return tmp_path, truth


def test_real_samples_are_in_our_order_and_in_their_crop(samples):
    folder, truth = samples
    records = examples(cmu.splits(folder)['test'])
    assert sorted(record['image_id'] for record in records) == sorted(truth)
    for record in records:
        keypoints = record['keypoints'].astype(np.float64)
        np.testing.assert_allclose(keypoints, truth[record['image_id']], atol=1e-3)
        check_order(keypoints)
        crop = geometry.square_box(record['box'].astype(np.float64), 2.2)
        assert ((keypoints > crop[:2]) & (keypoints < crop[2:])).all()
        # The authors' centre is that of the tight box.
        tight = geometry.keypoint_box(keypoints, record['annotated'])
        np.testing.assert_allclose(
            (crop[:2] + crop[2:]) / 2, (tight[:2] + tight[2:]) / 2, atol=0.01
        )
    sides = {record['image_id'][-1]: record['is_left'] for record in records}
    assert sides == {'l': True, 'r': False}
