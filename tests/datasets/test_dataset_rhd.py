"""RHD's converter, against made-up hands whose truth is known."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from made import DATASETS, examples, load, parse
from PIL import Image
from prepare import load_builder
from test_rhd_layout import RHD_ROWS

from handpose_jax import hand
from handpose_jax.data.conversion import safe_pickle
from handpose_jax.data.prepared import PreparedSource

SIZE = 96

builder, dummy = load('rhd')
rhd_layout = load_builder(DATASETS / 'rhd' / 'rhd_layout.py')


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


def pickled(folder, split='training'):
    with (folder / split / f'anno_{split}.pickle').open('rb') as file:
        return pickle.load(file)


def change(folder, split, edit):
    """Edits the annotations of a split."""
    records = pickled(folder, split)
    edit(records)
    (folder / split / f'anno_{split}.pickle').write_bytes(pickle.dumps(records, protocol=2))


def test_pictures_are_the_drawn_ones(made, tmp_path):
    for example in examples(builder.splits(made[0], cache=tmp_path)['train']):
        picture = np.asarray(Image.open(io.BytesIO(example['image'])))
        np.testing.assert_array_equal(picture, made[1][example['image_id']].extra['picture'])


def test_the_dummy_has_what_the_archive_has(made):
    folder, truths = made
    truth = [true for true in truths.values() if true.split == 'train']
    assert {t.is_left for t in truth} == {True, False}
    assert {t.extra['both'] for t in truth} == {True, False}
    assert not all(t.visible.all() for t in truth)
    for number, record in pickled(folder).items():
        assert set(record) == {'uv_vis', 'xyz', 'K'}
        assert record['uv_vis'].shape == record['xyz'].shape == (42, 3)
        rows = {name: row + 21 * (not truth[number].is_left) for row, name in enumerate(RHD_ROWS)}
        written = record['uv_vis'][[rows[name] for name in hand.KEYPOINT_NAMES]]
        np.testing.assert_allclose(written[:, :2], truth[number].keypoints, atol=1e-3)
        others = record['uv_vis'][21:] if truth[number].is_left else record['uv_vis'][:21]
        assert others.any() == truth[number].extra['both']
        mask = np.asarray(Image.open(folder / 'training' / 'mask' / f'{number:05d}.png'))
        left, right = np.sum((mask > 1) & (mask < 18)), np.sum(mask > 17)
        assert (left > right) == truth[number].is_left
        assert (min(left, right) > 0) == truth[number].extra['both']
        # Fingers have parts of their own.
        assert len(np.unique(mask)) > 10


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
        builder.prepare(parse(builder, tmp_path, tmp_path / 'D'))
    (tmp_path / 'RHD_published_v2').mkdir()
    with pytest.raises(ValueError, match=r'anno_training\.pickle: no such annotation file'):
        builder.prepare(parse(builder, tmp_path, tmp_path / 'D'))


def test_what_differs_from_the_published_is_told(made, tmp_path, capsys):
    builder.prepare(parse(builder, made[0].parent, tmp_path / 'D'))
    report = capsys.readouterr().out
    assert 'train: 6 records, 6 found, -41,252 against the 41,258 published' in report
    source = PreparedSource(tmp_path / 'D', split='test', hidden=False)
    for index in range(3):
        sample = source[index]
        np.testing.assert_array_equal(sample['visible'], made[1][sample['image_id']].visible)
    settings = json.loads((tmp_path / 'D' / 'prepare.json').read_text())
    assert settings == {'version': '1', 'records': {'train': 6, 'test': 3}}
