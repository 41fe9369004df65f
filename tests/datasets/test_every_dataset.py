"""Every converter, as its command runs it, against made-up hands whose truth is known."""

import pickle

import numpy as np
import pytest
from made import DATASETS, box_of, check, convert, examples, load, parse

from handpose_jax.data import images
from handpose_jax.data.prepared import PreparedSource

CAMERAS = ('BB_left', 'BB_right', 'SK')

# What is made up, and the options of the command.
DATA_SETS = {
    'cmu': ({}, ()),
    'coco_wholebody': ({'seed': 1}, ()),
    'dexter_object': ({'seed': 1, 'frames': {'Grasp2': 5}}, ()),
    'folder': ({'seed': 2}, ()),
    'freihand': ({'labels': 24, 'evaluation': 3, 'size': 96}, ('--versions', 'all')),
    'rhd': ({'seed': 1, 'records': {'training': 6, 'evaluation': 3}, 'size': 96}, ()),
    'shp': (
        {'seed': 1, 'frames': {'B1Random': 2, 'B2Counting': 3, 'B3Random': 2, 'B4Random': 2}},
        ('--cameras', *CAMERAS, '--test_cameras', *CAMERAS),
    ),
}

# Records that the authors say there are; those of the splits that numbers are measured on.
PUBLISHED = {
    'cmu': {'train': 1912, 'test': 846, 'panoptic': 14817, 'synth': 14261},
    'coco_wholebody': {'train': None, 'val': None},
    'dexter_object': {'test': 3_014},
    'folder': {'train': None, 'val': None, 'test': None},
    'freihand': {'train': 104_000, 'val': 20_000, 'test': 6_240, 'evaluation': 3960},
    'rhd': {'train': 41_258, 'test': 2_728},
    'shp': {'train': 45_000, 'test': 9_000},
}
EVALUATION = {'val', 'test', 'evaluation'}
# In FreiHAND its tutorial's validation is no evaluation.
NO_EVALUATION = {('freihand', 'val')}

# Bytes of the function that makes the records; SHP's names its twelve sequences.
SENT = {'shp': 3000}


@pytest.fixture(scope='module', params=DATA_SETS)
def made(request, tmp_path_factory):
    """Name, builder, folder, truth, and the splits that the command makes of it."""
    name = request.param
    written, options = DATA_SETS[name]
    builder, dummy = load(name)
    folder = tmp_path_factory.mktemp(name)
    truth = dummy.write(folder, **written)
    splits, _ = convert(builder, folder, tmp_path_factory.mktemp('out') / 'D', *options)
    # Pictures without a fingertip are no records of Dexter+Object.
    truth = {key: one for key, one in truth.items() if one.annotated.any()}
    return name, builder, folder, truth, splits


def test_every_data_set_is_here():
    assert set(DATA_SETS) == {path.parent.name for path in DATASETS.glob('*/*_dummy_data.py')}


def test_every_record_is_the_truth(made):
    name, _, _, truth, splits = made
    found = []
    for split, content in splits.items():
        records = examples(content)
        names = [record['image_id'] for record in records]
        found += names
        if truth[names[0]].split:
            assert names == [key for key, one in truth.items() if one.split == split]
        for record in records:
            # Dexter+Object's boxes are no smaller than a hand; its own tests are about them.
            check(record, truth[record['image_id']], with_box=name != 'dexter_object')
    assert sorted(found) == sorted(truth)


def test_splits_are_named_and_counted_as_published(made):
    name, _, _, _, splits = made
    assert {key: split.published for key, split in splits.items()} == PUBLISHED[name]
    for key, split in splits.items():
        assert split.evaluation == (key in EVALUATION and (name, key) not in NO_EVALUATION)


def test_functions_that_make_records_are_small_and_can_be_sent(made):
    name, _, _, _, splits = made
    for split in splits.values():
        sent = pickle.dumps(split.make)
        assert len(sent) < SENT.get(name, 1000)
        again, first = pickle.loads(sent)(0), split.make(0)
        assert again['image_id'] == first['image_id']
        np.testing.assert_array_equal(again['keypoints'], first['keypoints'])


def test_prepared_hands_are_the_drawn_ones(made, tmp_path):
    name, builder, folder, truth, splits = made
    builder.prepare(parse(builder, folder, tmp_path / 'D', *DATA_SETS[name][1]))
    for split, content in splits.items():
        source = PreparedSource(tmp_path / 'D', split=split)
        assert len(source) == content.records
        for index in range(len(source)):
            sample, record = source[index], source.record(index)
            true = truth[sample['image_id']]
            known = true.annotated
            np.testing.assert_array_equal(sample['visible'], known)
            np.testing.assert_allclose(
                sample['keypoints'][known], true.keypoints[known], rtol=0, atol=1e-3
            )
            assert sample['is_left'] == true.is_left
            np.testing.assert_array_equal(sample['image'], images.read_image(true.image))
            np.testing.assert_array_equal(record['visible'], content.make(index)['visible'])
            if name != 'dexter_object':
                box, size = box_of(true)
                side = 2.2 * max(box[2] - box[0], box[3] - box[1])
                assert sample['box'][2] - sample['box'][0] == pytest.approx(side, rel=1e-4)
                assert sample['norm_size'] == pytest.approx(size, abs=1e-3)
            if true.camera is not None:
                np.testing.assert_allclose(
                    record['keypoints_3d'][known], true.keypoints_3d[known], rtol=0, atol=1e-6
                )
                np.testing.assert_allclose(record['camera'], true.camera, rtol=1e-6)
