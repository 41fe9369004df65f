"""What the tests of the converters share: made-up data sets, and records held against the truth."""

import argparse
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from prepare import load_builder

from handpose_jax import hand
from handpose_jax.data.conversion import records

DATASETS = Path(__file__).parents[2] / 'datasets'
KNUCKLES = (5, 9, 13, 17)


def load(name):
    """A data set's builder, and the writer of its made-up hands."""
    folder = DATASETS / name
    return (
        load_builder(folder / f'{name}_dataset_builder.py'),
        load_builder(folder / f'{name}_dummy_data.py'),
    )


def parse(builder, manual_dir, data_dir, *options):
    """The command line of prepare.py, for one process."""
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    given = ['--manual_dir', manual_dir, '--data_dir', data_dir, '--workers', '1', *options]
    return parser.parse_args([str(option) for option in given])


def convert(builder, manual_dir, data_dir, *options):
    """The splits that the command would write, and what else it tells the writer."""
    caught = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, 'prepare', lambda *args, **more: caught.update(more, splits=args[3]))
        builder.prepare(parse(builder, manual_dir, data_dir, *options))
    return caught.pop('splits'), caught


def examples(split):
    return [split.make(index) for index in range(split.records)]


def box_of(true):
    """The box that a record must have, and the size that normalises its errors."""
    shown = true.keypoints[true.annotated]
    box = np.array([*shown.min(axis=0), *shown.max(axis=0)]) if true.box is None else true.box
    size = max(box[2] - box[0], box[3] - box[1]) if true.norm_size is None else true.norm_size
    return box, size


def check(example, true, *, with_box=True):
    """Holds a record against the truth."""
    known = true.annotated
    assert example['image_id'] == true.image_id
    assert example['is_left'] is true.is_left
    np.testing.assert_array_equal(example['annotated'], known)
    visible = known if true.visible is None else known & true.visible
    np.testing.assert_array_equal(example['visible'], visible)
    close = {'rtol': 0, 'atol': 1e-3}
    np.testing.assert_allclose(example['keypoints'][known], true.keypoints[known], **close)
    assert np.isfinite(example['keypoints']).all()
    if with_box:
        box, size = box_of(true)
        np.testing.assert_allclose(example['box'], box, **close)
        assert example['norm_size'] == pytest.approx(size, abs=1e-3)
    assert example['image'] == true.image.read_bytes()
    assert ('keypoints_3d' in example) == ('camera' in example) == (true.camera is not None)
    if true.camera is not None:
        points = example['keypoints_3d']
        np.testing.assert_allclose(points[known], true.keypoints_3d[known], rtol=0, atol=1e-6)
        assert np.isfinite(points).all()
        np.testing.assert_allclose(example['camera'], true.camera, rtol=1e-6)
        # Projected in another way than the data were made.
        none = np.zeros(3)
        projected, _ = cv2.projectPoints(true.keypoints_3d, none, none, true.camera, None)
        np.testing.assert_allclose(example['keypoints'][known], projected[known, 0], **close)


def check_order(keypoints):
    """Whether a real hand is in our order, as far as lengths tell."""

    def length_of_bones(order):
        parents, children = np.array(hand.BONES).T
        ordered = keypoints[order]
        return np.linalg.norm(ordered[parents] - ordered[children], axis=1).sum()

    # Knuckles are in a row, and the thumb is at its index finger's end.
    def length_of_path(row):
        return np.linalg.norm(np.diff(keypoints[[2, *row]], axis=0), axis=1).sum()

    tip_to_base = [0, *(index for finger in hand.FINGERS.values() for index in reversed(finger))]
    assert length_of_bones(list(range(hand.NUM_KEYPOINTS))) < length_of_bones(tip_to_base)
    assert min(itertools.permutations(KNUCKLES), key=length_of_path) == KNUCKLES
