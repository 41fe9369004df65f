"""The converter of FreiHAND, on made-up hands in its layout; and the real samples."""

import itertools
import json
import shutil
import zipfile

import numpy as np
import pytest
from made import check, check_order, examples, load, parse

from handpose_jax import hand
from handpose_jax.data import images
from handpose_jax.data.prepared import PreparedSource
from handpose_jax.data.quarantine import BadRecord

LABELS = 24


freihand, dummy = load('freihand')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Both archives, unpacked, with made-up hands, and the truth."""
    folder = tmp_path_factory.mktemp('freihand')
    return folder, dummy.write(folder, labels=LABELS, evaluation=3, size=96)


def number_of(record):
    part, number = record['image_id'].split('/')
    return part, int(number)


def test_raw_is_each_label_once_and_all_is_each_four_times_in_the_same_split(made):
    folder, truth = made
    labels = {}
    for versions, count in (('raw', 1), ('all', 4)):
        found = freihand.splits(folder, versions=versions)
        numbers = {
            split: [number_of(record)[1] for record in examples(found[split])]
            for split in ('train', 'val', 'test')
        }
        for record in itertools.chain(*map(examples, found.values())):
            check(record, truth[record['image_id']])
        assert sorted(itertools.chain(*numbers.values())) == list(range(count * LABELS))
        labels[versions] = {
            split: sorted(number % LABELS for number in those) for split, those in numbers.items()
        }
        for split, those in labels[versions].items():
            assert those == sorted([*set(those)] * count), split
    for split, those in labels['all'].items():
        assert sorted(set(those)) == labels['raw'][split]


@pytest.mark.parametrize(
    ('versions', 'counts', 'last'),
    [
        ('raw', {'train': 26_000, 'val': 5_000, 'test': 1_560}, {'train': 25_999, 'test': 32_559}),
        (
            'all',
            {'train': 104_000, 'val': 20_000, 'test': 6_240},
            {'train': 3 * 32_560 + 25_999, 'test': 130_239},
        ),
    ],
)
def test_the_published_number_of_records_is_cut_as_the_tutorial_does(
    made, monkeypatch, versions, counts, last
):
    folder, truth = made
    first = truth['training/00000000']
    values = {(21, 3): first.keypoints_3d, (3, 3): first.camera}
    monkeypatch.setattr(
        freihand,
        '_table',
        lambda path, shape: np.broadcast_to(values[shape], (32_560, *shape)),
    )
    monkeypatch.setattr(freihand, '_check_blocks', lambda folder, labels: None)
    found = freihand.splits(folder, versions=versions)
    assert {split: found[split].records for split in counts} == counts
    assert {split: found[split].published for split in counts} == counts
    for split, number in last.items():
        with pytest.raises(BadRecord, match=f'rgb/{number:08d}.jpg'):
            found[split].make(found[split].records - 1)


def test_what_is_not_there_is_told_and_crops_may_be_whole_images(made, tmp_path, capsys):
    freihand.prepare(parse(freihand, made[0] / 'FreiHAND_pub_v2', tmp_path / 'D'))
    sample = PreparedSource(tmp_path / 'D', split='test', crop='image')[0]
    assert sample['image_id'] == 'training/00000022'
    np.testing.assert_array_equal(sample['box'], [-0.5, -0.5, 95.5, 95.5])
    assert json.loads((tmp_path / 'D' / 'prepare.json').read_text())['versions'] == 'raw'
    told = capsys.readouterr().out
    assert '24 photographs, not 32,560' in told
    assert 'there will be no evaluation; it is in FreiHAND_pub_v2_eval.zip' in told
    assert 'train: 19 records, 19 found, -25,981 against the 26,000 published' in told


def test_archives_do_as_well_as_folders(made, tmp_path):
    folder, _ = made
    for root in ('FreiHAND_pub_v2', 'FreiHAND_pub_v2_eval'):
        with zipfile.ZipFile(tmp_path / f'{root}.zip', 'w') as packed:
            for path in sorted((folder / root).rglob('*.*')):
                packed.write(path, path.relative_to(folder / root))
    found = freihand.splits(tmp_path, versions='all')
    assert {name: split.records for name, split in found.items()} == {
        'train': 76,
        'val': 12,
        'test': 8,
        'evaluation': 3,
    }
    assert examples(found['test'])[-1]['image_id'] == 'training/00000095'


def test_one_archive_is_enough_or_both_in_one_folder_and_none_is_told(made, tmp_path):
    folder, _ = made
    assert list(freihand.splits(folder / 'FreiHAND_pub_v2_eval')) == ['evaluation']
    assert list(freihand.splits(folder / 'FreiHAND_pub_v2')) == ['train', 'val', 'test']
    both = tmp_path / 'FreiHAND_pub_v2'
    shutil.copytree(folder / 'FreiHAND_pub_v2', both)
    shutil.copy(folder / 'FreiHAND_pub_v2_eval' / 'evaluation_xyz.json', both)
    for given in (tmp_path, both):
        assert list(freihand.splits(given)) == ['train', 'val', 'test', 'evaluation']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'no part of FreiHAND is there; download FreiHAND_pub_v2'):
        freihand.splits(tmp_path / 'empty')
    (tmp_path / 'cut' / 'FreiHAND_pub_v2').mkdir(parents=True)
    with pytest.raises(ValueError, match=r'expected training_xyz\.json in it; unpack'):
        freihand.splits(tmp_path / 'cut')


@pytest.fixture
def few(made, tmp_path):
    """A function that changes the tables of eight hands and converts the sixth one."""
    root = tmp_path / 'FreiHAND_pub_v2'
    (root / 'training' / 'rgb').mkdir(parents=True)
    folder, _ = made
    for field in ('xyz', 'K'):
        values = json.loads((folder / f'FreiHAND_pub_v2/training_{field}.json').read_text())
        (root / f'training_{field}.json').write_text(json.dumps(values[:8]))
    for number in range(8):
        name = f'training/rgb/{number:08d}.jpg'
        shutil.copy(folder / 'FreiHAND_pub_v2' / name, root / name)

    def convert(field='xyz', change=None, text=None):
        file = root / f'training_{field}.json'
        if change is not None:
            values = json.loads(file.read_text())
            change(values)
            text = json.dumps(values)
        if text is not None:
            file.write_text(text)
        return freihand.splits(root)['train'].make(5)

    convert.root = root
    return convert


def set_to(value, *where):
    def change(records):
        target = records[5]
        for step in where[:-1]:
            target = target[step]
        target[where[-1]] = value

    return change


def singular(records):
    records[5] = [[400.0, 0.0, 48.0], [800.0, 0.0, 96.0], [0.0, 0.0, 1.0]]


def behind(records):
    records[5][8][2] *= -1


@pytest.mark.parametrize(
    ('field', 'change', 'expected', 'got'),
    [
        ('xyz', lambda records: records[5].pop(), '(21, 3)', '(20, 3)'),
        ('xyz', lambda records: records[5][20].pop(), '(21, 3)', '[['),
        ('xyz', set_to(float('nan'), 3, 1), 'finite', 'nan'),
        ('xyz', set_to(float('inf'), 3, 1), 'finite', 'inf'),
        ('xyz', set_to('0.1', 0, 1), '(21, 3)', "'0.1'"),
        ('xyz', set_to(None, 0, 1), '(21, 3)', 'None'),
        ('xyz', set_to({}, 0), '(21, 3)', '{}'),
        ('xyz', behind, 'in front of the camera', 'for keypoint 8 (index_tip)'),
        ('xyz', set_to(0.0, 2, 2), 'in front of the camera', 'for keypoint 2 (thumb_mcp)'),
        ('K', singular, 'inverted', '800.0'),
        ('K', lambda records: records[5].pop(), '(3, 3)', '(2, 3)'),
        ('K', set_to(None, 0, 0), '(3, 3)', 'None'),
        ('K', set_to(float('nan'), 0, 0), 'finite', 'nan'),
    ],
)
def test_damaged_records_are_named(few, field, change, expected, got):
    with pytest.raises(BadRecord) as raised:
        few(field, change)
    error = raised.value
    assert error.file == str(few.root / f'training_{field}.json')
    assert (error.record, error.field) == ('5', field)
    assert expected in error.expected
    assert got in error.got
    # The others are not held up by it.
    assert freihand.splits(few.root)['train'].make(4)['image_id'] == 'training/00000004'


def test_a_hand_a_mile_away_is_no_hand(few):
    with pytest.raises(BadRecord, match=r"record 5, field 'keypoints_3d'.* within 1000 m"):
        few('xyz', set_to([0.0, 0.0, 1609.0], 0))


def test_missing_and_broken_images_are_named(few):
    image = few.root / 'training' / 'rgb' / '00000005.jpg'
    image.write_bytes(image.read_bytes()[:12])
    with pytest.raises(BadRecord, match=r"training_xyz\.json: record 5, field 'image'"):
        few()
    image.unlink()
    with pytest.raises(BadRecord, match=r"record 5, field 'image'.*00000005\.jpg, got No such"):
        few()


@pytest.mark.parametrize(
    ('field', 'change', 'match'),
    [
        ('K', lambda records: records.pop(), r'8 in training_xyz\.json and 7 in training_K\.json'),
        ('xyz', lambda records: records.clear(), r'0 in training_xyz\.json and 8 in'),
    ],
)
def test_tables_of_different_length_stop_at_once(few, field, change, match):
    with pytest.raises(ValueError, match=match):
        few(field, change)


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('[[[0.1, 0.2', r'training_xyz\.json: expected a JSON file .*Expecting'),
        ('', r'training_xyz\.json: expected a JSON file .*Expecting value'),
        ('[' * 100_000, r'training_xyz\.json: expected a JSON file .*nested too deeply'),
        ('{"0": []}', r'training_xyz\.json: expected a list of records'),
    ],
)
def test_tables_that_are_none_stop_at_once(few, text, match):
    with pytest.raises(ValueError, match=match):
        few('xyz', text=text)


def test_a_missing_table_stops_at_once(few):
    (few.root / 'training_K.json').unlink()
    with pytest.raises(ValueError, match=r'training_K\.json: expected a JSON file .*No such file'):
        few()


@pytest.mark.parametrize('change', ['one too few', 'one too many'])
def test_versions_that_do_not_fit_the_records_stop_at_once(made, tmp_path, change):
    folder, _ = made
    root = tmp_path / 'FreiHAND_pub_v2'
    shutil.copytree(folder / 'FreiHAND_pub_v2', root)
    for field in ('xyz', 'K'):
        file = root / f'training_{field}.json'
        values = json.loads(file.read_text())
        values = values[:-1] if change == 'one too few' else [*values, values[0]]
        file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r'expected \d+ images, four for each of the 2[35] rec'):
        freihand.splits(root, versions='all')


def test_real_samples_are_in_our_order_and_four_versions_of_a_label_are_one_hand(assets):
    folder = assets / 'hands' / 'samples' / 'freihand'
    content = json.loads((folder / 'test_freihand.json').read_text())
    by_label = {}
    for one in content['annotations']:
        image = images.read_image(folder / f'{one["image_id"]:08d}.jpg')
        assert image.shape == (224, 224, 3)
        rows = np.reshape(one['keypoints'], (hand.NUM_KEYPOINTS, 3))
        by_label.setdefault(one['image_id'] % freihand.NUM_LABELS, []).append(rows[:, :2])
    assert {label: len(those) for label, those in by_label.items()} == {355: 4, 17620: 4}
    for those in by_label.values():
        assert np.ptp(those, axis=0).max() < 1e-6
        check_order(those[0])
