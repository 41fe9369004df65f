"""RHD's converter, against made-up hands whose truth is known."""

import argparse
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare import load_builder

from handpose_jax import hand
from handpose_jax.data.conversion import safe_pickle
from handpose_jax.data.prepared import PreparedSource

DATASETS = Path(__file__).parents[2] / 'datasets'
SIZE = 96

# As the description that comes with the data set lists the rows of a hand.
RHD_ROWS = (
    *('wrist', 'thumb_tip', 'thumb_ip', 'thumb_mcp', 'thumb_cmc'),
    *('index_tip', 'index_dip', 'index_pip', 'index_mcp'),
    *('middle_tip', 'middle_dip', 'middle_pip', 'middle_mcp'),
    *('ring_tip', 'ring_dip', 'ring_pip', 'ring_mcp'),
    *('little_tip', 'little_dip', 'little_pip', 'little_mcp'),
)


builder = load_builder(DATASETS / 'rhd/rhd_dataset_builder.py')
dummy = load_builder(DATASETS / 'rhd/rhd_dummy_data.py')
rhd_layout = load_builder(DATASETS / 'rhd/rhd_layout.py')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder of a made-up RHD, and what is really on its pictures."""
    folder = tmp_path_factory.mktemp('rhd')
    truth = dummy.write(folder, seed=1, records={'training': 6, 'evaluation': 3}, size=SIZE)
    return folder / dummy.FOLDER, truth


@pytest.fixture
def copy(made, tmp_path):
    """A folder of one's own to damage."""
    return Path(shutil.copytree(made[0], tmp_path / dummy.FOLDER))


@pytest.fixture(scope='module')
def splits(made, tmp_path_factory):
    return builder.splits(made[0], cache=tmp_path_factory.mktemp('cache'))


def pickled(folder, split='training'):
    with (folder / split / f'anno_{split}.pickle').open('rb') as file:
        return pickle.load(file)


def change(folder, split, edit):
    """Edits the annotations of a split."""
    records = pickled(folder, split)
    edit(records)
    (folder / split / f'anno_{split}.pickle').write_bytes(pickle.dumps(records, protocol=2))


@pytest.mark.parametrize(('split', 'part'), [('train', 'training'), ('test', 'evaluation')])
def test_every_keypoint_is_where_it_was_drawn(made, splits, split, part):
    truths = made[1][part]
    assert splits[split].records == len(truths)
    for index, truth in enumerate(truths):
        example = splits[split].make(index)
        # Projected anew from the pinhole camera, in another way than the data was made.
        focal, centre = truth.camera[[0, 1], [0, 1]], truth.camera[:2, 2]
        projected = truth.keypoints_3d[:, :2] / truth.keypoints_3d[:, 2:] * focal + centre
        np.testing.assert_allclose(example['keypoints'], projected, atol=1e-3)
        np.testing.assert_allclose(example['keypoints_3d'], truth.keypoints_3d, atol=1e-6)
        np.testing.assert_allclose(example['camera'], truth.camera, rtol=1e-6)
        assert example['is_left'] == truth.is_left
        assert example['image_id'] == truth.image_id == f'{part}/{index:05d}'
        assert example['annotated'].all()
        np.testing.assert_array_equal(example['visible'], truth.visible)
        seen = projected[truth.visible]
        box = [*seen.min(axis=0), *seen.max(axis=0)]
        np.testing.assert_allclose(example['box'], box, atol=1e-3)
        assert example['norm_size'] == pytest.approx(max(np.ptp(seen, axis=0)), abs=1e-3)
        picture = np.asarray(Image.open(io.BytesIO(example['image'])))
        np.testing.assert_array_equal(picture, truth.image)
        path = made[0] / part / 'color' / f'{index:05d}.png'
        assert example['image'] == path.read_bytes()


def test_the_dummy_has_what_the_archive_has(made):
    folder, truths = made
    truth = truths['training']
    assert {t.is_left for t in truth} == {True, False}
    assert {t.both for t in truth} == {True, False}
    assert not all(t.visible.all() for t in truth)
    for number, record in pickled(folder).items():
        assert set(record) == {'uv_vis', 'xyz', 'K'}
        assert record['uv_vis'].shape == record['xyz'].shape == (42, 3)
        rows = {name: row + 21 * (not truth[number].is_left) for row, name in enumerate(RHD_ROWS)}
        written = record['uv_vis'][[rows[name] for name in hand.KEYPOINT_NAMES]]
        np.testing.assert_allclose(written[:, :2], truth[number].keypoints, atol=1e-3)
        others = record['uv_vis'][21:] if truth[number].is_left else record['uv_vis'][:21]
        assert others.any() == truth[number].both
        mask = np.asarray(Image.open(folder / 'training' / 'mask' / f'{number:05d}.png'))
        left, right = np.sum((mask > 1) & (mask < 18)), np.sum(mask > 17)
        assert (left > right) == truth[number].is_left
        assert (min(left, right) > 0) == truth[number].both
        # Fingers have parts of their own.
        assert len(np.unique(mask)) > 10


def test_the_splits_are_named_and_counted_as_published(splits):
    assert splits['train'].published == 41_258
    assert splits['test'].published == 2_728
    assert splits['test'].evaluation
    assert not splits['train'].evaluation


def test_annotations_are_parsed_once_and_then_read_from_the_copy(made, tmp_path, monkeypatch):
    folder = made[0]
    cache = tmp_path / 'c' / 'training.npz'
    direct = rhd_layout.RhdAnnotations(folder, 'training')
    first = rhd_layout.RhdAnnotations(folder, 'training', cache=cache)

    def refuse(data):
        raise AssertionError('parsed again')

    monkeypatch.setattr(safe_pickle, 'load', refuse)
    second = rhd_layout.RhdAnnotations(folder, 'training', cache=cache)
    for wanted, *others in zip(direct, first, second, strict=True):
        for other in others:
            assert other.image_id == wanted.image_id
            assert other.is_left == wanted.is_left
            for name in ('keypoints', 'visible', 'keypoints_3d', 'camera', 'box'):
                np.testing.assert_array_equal(getattr(other, name), getattr(wanted, name))
    # Nothing is left in the folder of the download.
    assert {path.name for path in (folder / 'training').iterdir()} == {
        'color',
        'mask',
        'anno_training.pickle',
    }


def test_a_copy_of_other_annotations_or_a_broken_one_is_made_again(copy, tmp_path):
    cache = tmp_path / 'training.npz'
    rhd_layout.RhdAnnotations(copy, 'training', cache=cache)
    change(copy, 'training', lambda records: records.pop(0))
    assert len(rhd_layout.RhdAnnotations(copy, 'training', cache=cache)) == 5
    cache.write_bytes(cache.read_bytes()[:1000])
    assert len(rhd_layout.RhdAnnotations(copy, 'training', cache=cache)) == 5
    with np.load(cache) as stored:
        assert stored['uv_vis'].shape == (5, 42, 3)


def spoil(name, value):
    def edit(records):
        records[1][name] = value

    return edit


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (
            spoil('xyz', np.zeros((21, 3), np.float32)),
            r"record 1, field 'xyz': expected .*\(42, 3\), got an array .*\(21, 3\)",
        ),
        (spoil('K', None), r"record 1, field 'K': expected .*\(3, 3\), got None"),
        (
            spoil('uv_vis', np.full((42, 3), np.nan, np.float32)),
            r"record 1, field 'uv_vis': expected finite values, got nan",
        ),
        (
            spoil('uv_vis', np.full((42, 3), 0.5, np.float32)),
            r"record 1, field 'uv_vis': expected a visibility of 0 or 1, got 0.5",
        ),
        (
            lambda records: records.update({1: [2]}),
            r'record 1, expected a dictionary .*got a value of type list',
        ),
    ],
)
def test_damaged_records_are_named_the_same_from_the_copy(copy, tmp_path, edit, message):
    change(copy, 'training', edit)
    made = builder.splits(copy, cache=tmp_path / 'c')['train'].make
    # The second time it comes from the copy alone.
    builder._annotations.cache_clear()
    with pytest.raises(ValueError, match=rf'anno_training\.pickle: {message}'):
        made(1)
    assert made(0)['image_id'] == 'training/00000'


def test_damaged_pictures_are_named(copy, tmp_path):
    make = builder.splits(copy, cache=tmp_path)['train'].make
    (copy / 'training' / 'color' / '00002.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r"training/00002, field 'image': .*00002\.png.*0 bytes"):
        make(2)
    (copy / 'training' / 'color' / '00002.png').unlink()
    with pytest.raises(ValueError, match=r'record 2: expected its image .*00002\.png'):
        make(2)


def test_keypoints_behind_the_camera_are_not_annotated(copy, tmp_path):
    truth_left = rhd_layout.RhdAnnotations(copy, 'training')[0].is_left

    def edit(records):
        row = 21 * (not truth_left) + RHD_ROWS.index('ring_pip')
        records[0]['uv_vis'][row, 2] = 0
        records[0]['xyz'][row, 2] = -0.1

    change(copy, 'training', edit)
    example = builder.splits(copy, cache=tmp_path)['train'].make(0)
    assert np.flatnonzero(~example['annotated']).tolist() == [hand.KEYPOINT_NAMES.index('ring_pip')]


def test_files_that_are_missing_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r'RHD_published_v2.*RHD_v1-1\.zip'):
        builder.prepare(arguments(tmp_path, tmp_path / 'D'))
    (tmp_path / 'RHD_published_v2').mkdir()
    with pytest.raises(ValueError, match=r'anno_training\.pickle: no such annotation file'):
        builder.prepare(arguments(tmp_path, tmp_path / 'D'))


def arguments(manual_dir, data_dir):
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    options = ['--manual_dir', str(manual_dir), '--data_dir', str(data_dir), '--workers', '1']
    return parser.parse_args(options)


def test_prepared_hands_are_the_drawn_ones(made, tmp_path, capsys):
    folder, truth = made
    builder.prepare(arguments(folder.parent, tmp_path / 'D'))
    report = capsys.readouterr().out
    assert 'train: 6 records, 6 found, -41,252 against the 41,258 published' in report
    source = PreparedSource(tmp_path / 'D', split='test', hidden=False)
    assert len(source) == 3
    for index, true in enumerate(truth['evaluation']):
        sample = source[index]
        np.testing.assert_allclose(sample['keypoints'], true.keypoints, atol=1e-3)
        np.testing.assert_array_equal(sample['visible'], true.visible)
        np.testing.assert_array_equal(sample['image'], true.image)
        assert sample['is_left'] == true.is_left
    settings = json.loads((tmp_path / 'D' / 'prepare.json').read_text())
    assert settings == {'version': '1', 'records': {'train': 6, 'test': 3}}
