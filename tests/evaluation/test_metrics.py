"""Metrics against plain loops over keypoints, and what must not change them."""

import dataclasses
import itertools
import json
import math
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from handpose_jax import geometry, hand
from handpose_jax.evaluation import metrics
from handpose_jax.evaluation.metrics import KeypointErrors
from handpose_jax.evaluation.protocols import PROTOCOLS, get_protocol

SIZE = 112


def make_batch(rng, number=6, *, mirrored=True):
    maps = []
    for _ in range(number):
        centre, half = rng.uniform(50, 400, 2), rng.uniform(40, 160)
        crop_from_image = geometry.crop_from_image(
            np.concatenate([centre - half, centre + half]),
            SIZE,
            rotation=rng.uniform(-3, 3),
            mirror=mirrored and bool(rng.integers(2)),
        )
        maps.append(geometry.invert(crop_from_image))
    return {
        'image': np.zeros((number, SIZE, SIZE, 3), np.uint8),
        'keypoints': rng.uniform(0, SIZE, (number, 21, 2)).astype(np.float32),
        'visible': rng.random((number, 21)) < 0.8,
        'hidden': np.zeros((number, 21), bool),
        'has_hand': np.ones(number, bool),
        'norm_size': rng.uniform(30, 200, number).astype(np.float32),
        'image_from_crop': np.stack(maps).astype(np.float32),
        'valid': np.ones(number, bool),
        'index': rng.permutation(1000)[:number].astype(np.int32),
    }


def predict(rng, batch, spread=6.0):
    noise = rng.normal(0, spread, batch['keypoints'].shape)
    confidence = rng.random(batch['visible'].shape).astype(np.float32)
    return (batch['keypoints'] + noise).astype(np.float32), confidence


def make_errors(seed=0, number=6):
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, number)
    return KeypointErrors.from_batch(*predict(rng, batch), batch, SIZE)


def take(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def same(a, b):
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(KeypointErrors)
    )


@pytest.mark.parametrize('seed', range(3))
def test_the_summary_agrees_with_loops_over_the_keypoints(seed):
    rng = np.random.default_rng(seed)
    batch = make_batch(rng)
    predicted, confidence = predict(rng, batch)
    errors = KeypointErrors.from_batch(predicted, confidence, batch, SIZE)

    crop, image, relative = [], [], []
    for i, k in itertools.product(range(6), range(21)):
        if batch['visible'][i, k]:
            a, b = batch['image_from_crop'][i].astype(float), predicted[i, k].astype(float)
            t = batch['keypoints'][i, k].astype(float)
            crop.append(math.dist(b, t) * 224 / SIZE)
            moved = [a[:, :2] @ point + a[:, 2] for point in (b, t)]
            image.append(math.dist(*moved))
            relative.append(image[-1] / float(batch['norm_size'][i]))
    summary = errors.summary(get_protocol('cmu'))
    assert summary['keypoints_counted'] == len(crop) == batch['visible'].sum()
    assert summary['hands'] == 6
    assert summary['epe_mean_224'] == pytest.approx(sum(crop) / len(crop), rel=1e-12)
    assert summary['epe_median_224'] == pytest.approx(np.percentile(crop, 50), rel=1e-12)
    assert summary['epe_mean_image'] == pytest.approx(sum(image) / len(image), rel=1e-12)
    assert summary['epe_median_image'] == pytest.approx(np.percentile(image, 50), rel=1e-12)

    curve = [sum(r <= i / 100 for r in relative) / len(relative) for i in range(101)]
    assert summary['pck']['thresholds'] == pytest.approx([i / 100 for i in range(101)])
    assert summary['pck']['values'] == pytest.approx(curve)
    assert summary['auc'] == pytest.approx(sum(curve[1:-1]) / 100 + (curve[0] + curve[-1]) / 200)
    assert summary['pck_at_0.2'] == pytest.approx(sum(r <= 0.2 for r in relative) / len(relative))
    assert 0.05 < summary['auc'] < 0.95


def test_each_keypoint_has_its_own_row_by_name():
    errors = make_errors(5)
    table = errors.summary(get_protocol('box'))['per_keypoint']
    assert tuple(table) == hand.KEYPOINT_NAMES
    for keypoint, name in enumerate(hand.KEYPOINT_NAMES):
        column = errors.error_crop[:, keypoint][errors.valid[:, keypoint]]
        assert table[name]['counted'] == len(column)
        assert table[name]['epe_mean_224'] == pytest.approx(column.mean())
        assert table[name]['epe_median_224'] == pytest.approx(np.median(column))
    assert sum(row['counted'] for row in table.values()) == errors.num_valid


def test_the_error_is_in_the_224_frame_whatever_the_networks_size():
    rng = np.random.default_rng(0)
    small = make_batch(rng)
    predicted, confidence = predict(rng, small)
    large = dict(small, keypoints=small['keypoints'] * 4)
    at_112 = KeypointErrors.from_batch(predicted, confidence, small, 112)
    at_448 = KeypointErrors.from_batch(predicted * 4, confidence, large, 448)
    np.testing.assert_allclose(at_112.error_crop, at_448.error_crop, rtol=1e-6)


def test_the_error_in_the_photograph_is_the_crops_error_times_the_crops_scale():
    # Rotation and mirroring keep lengths, so only the crop's scale is left.
    rng = np.random.default_rng(1)
    batch = make_batch(rng)
    errors = KeypointErrors.from_batch(*predict(rng, batch), batch, SIZE)
    scale = np.sqrt(np.abs(np.linalg.det(batch['image_from_crop'][:, :, :2].astype(float))))
    np.testing.assert_allclose(
        errors.error_image, errors.error_crop * SIZE / 224 * scale[:, None], rtol=1e-5
    )


def test_a_perfect_prediction_has_no_error_and_a_full_curve():
    batch = make_batch(np.random.default_rng(2))
    errors = KeypointErrors.from_batch(batch['keypoints'], np.ones((6, 21)), batch, SIZE)
    summary = errors.summary(get_protocol('box'))
    assert summary['epe_mean_224'] == summary['epe_median_image'] == 0
    assert summary['auc'] == summary['pck_at_0.2'] == 1


def test_arrays_of_jax_are_welcome():
    rng = np.random.default_rng(2)
    batch = make_batch(rng)
    predicted, confidence = predict(rng, batch)
    on_device = {name: jnp.asarray(value) for name, value in batch.items()}
    errors = KeypointErrors.from_batch(
        jnp.asarray(predicted), jnp.asarray(confidence), on_device, SIZE
    )
    assert same(errors, KeypointErrors.from_batch(predicted, confidence, batch, SIZE))


def test_padding_counts_nowhere():
    rng = np.random.default_rng(3)
    batch = make_batch(rng)
    predicted, confidence = predict(rng, batch)
    whole = KeypointErrors.from_batch(predicted[:4], confidence[:4], take(batch, slice(4)), SIZE)
    # The padding is as hostile as it can be.
    batch['valid'][4:] = False
    batch['keypoints'][4:], batch['norm_size'][4:] = np.nan, 0
    predicted[4:] = np.nan
    padded = KeypointErrors.from_batch(predicted, confidence, batch, SIZE)
    assert same(whole, padded)
    assert padded.num_hands == 4


def test_a_keypoint_that_is_not_visible_counts_nowhere():
    rng = np.random.default_rng(4)
    batch = make_batch(rng)
    predicted, confidence = predict(rng, batch)
    before = KeypointErrors.from_batch(predicted, confidence, batch, SIZE)
    hidden = ~batch['visible']
    assert hidden.any()
    predicted[hidden], batch['keypoints'][hidden] = 1e6, np.nan
    after = KeypointErrors.from_batch(predicted, confidence, batch, SIZE)
    assert after.summary(get_protocol('cmu')) == before.summary(get_protocol('cmu'))
    np.testing.assert_array_equal(after.epe_per_hand(), before.epe_per_hand())


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_counts_as_wrong(bad):
    batch = make_batch(np.random.default_rng(5))
    batch['visible'][:] = True
    predicted = batch['keypoints'].copy()
    predicted[2, 8, 1] = bad
    errors = KeypointErrors.from_batch(predicted, np.ones((6, 21)), batch, SIZE)
    assert np.isinf(errors.error_crop[2, 8])
    assert np.isinf(errors.error_image[2, 8])
    summary = errors.summary(get_protocol('cmu'))
    assert summary['keypoints_counted'] == 6 * 21
    assert summary['predictions_not_finite'] == 1
    assert summary['pck']['values'][-1] == pytest.approx(125 / 126)
    assert summary['auc'] == pytest.approx(125 / 126)
    assert summary['epe_mean_224'] is None
    assert summary['epe_median_224'] == 0
    assert summary['per_keypoint']['index_tip']['pck_at_0.2'] == pytest.approx(5 / 6)
    assert np.isinf(errors.epe_per_hand()[2])
    json.dumps(summary, allow_nan=False)


def test_nothing_counted_is_said_and_not_computed():
    batch = make_batch(np.random.default_rng(6))
    batch['visible'][:] = False
    errors = KeypointErrors.from_batch(batch['keypoints'], np.ones((6, 21)), batch, SIZE)
    for nothing in (errors, KeypointErrors.empty(), KeypointErrors.merge()):
        summary = nothing.summary(get_protocol('cmu'))
        assert summary['keypoints_counted'] == 0
        for name in ('epe_mean_224', 'epe_median_image', 'auc', 'pck_at_0.2'):
            assert summary[name] is None
        assert summary['pck']['values'] is None
        json.dumps(summary, allow_nan=False)
    assert np.isnan(errors.epe_per_hand()).all()


def test_one_keypoint_that_is_never_annotated_is_none_in_its_row_only():
    errors = make_errors(7)
    errors = errors.select([k for k in range(21) if k != 4])
    summary = errors.summary(get_protocol('cmu'))
    assert summary['per_keypoint']['thumb_tip'] == {
        'counted': 0,
        'epe_mean_224': None,
        'epe_median_224': None,
        'pck_at_0.2': None,
    }
    assert summary['auc'] is not None


def test_a_protocol_of_few_keypoints_counts_only_these():
    tips = dataclasses.replace(get_protocol('box'), name='tips', keypoints=hand.FINGERTIPS)
    errors = make_errors(8)
    summary = errors.summary(tips)
    tip_columns = list(hand.FINGERTIPS)
    counted = errors.valid[:, tip_columns]
    expected = errors.error_crop[:, tip_columns][counted]
    assert summary['keypoints_counted'] == counted.sum()
    assert summary['epe_mean_224'] == pytest.approx(expected.mean())
    assert len(summary['per_keypoint']) == 5


def test_the_mean_of_a_hand_runs_over_its_counted_keypoints():
    errors = make_errors(9)
    expected = [
        error[counted].mean()
        for error, counted in zip(errors.error_crop, errors.valid, strict=True)
    ]
    np.testing.assert_allclose(errors.epe_per_hand(), expected)


def test_merging_leaves_no_trace_of_order_or_grouping():
    rng = np.random.default_rng(10)
    batch = make_batch(rng, 12)
    # Equal indices, as from two sources, must not let the order in either.
    batch['index'][:6] = batch['index'][6:]
    predicted, confidence = predict(rng, batch)
    parts = [
        KeypointErrors.from_batch(predicted[rows], confidence[rows], take(batch, rows), SIZE)
        for rows in (slice(0, 3), slice(3, 4), slice(4, 9), slice(9, 12))
    ]
    whole = KeypointErrors.merge(KeypointErrors.from_batch(predicted, confidence, batch, SIZE))
    assert whole.num_hands == 12
    for order in itertools.permutations(parts):
        assert same(KeypointErrors.merge(*order), whole)
    a, b, c, d = parts
    nested = KeypointErrors.merge(
        KeypointErrors.merge(d, b), KeypointErrors.empty(), KeypointErrors.merge(c, a)
    )
    assert same(nested, whole)
    assert nested.summary(get_protocol('cmu')) == whole.summary(get_protocol('cmu'))


@pytest.mark.parametrize('name', PROTOCOLS)
def test_the_summary_survives_json(name):
    summary = make_errors(11).summary(get_protocol(name))
    assert summary['protocol'] == name
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize(('rule', 'met'), [('trapezoid', 1), ('mmpose', 0)])
def test_an_error_that_equals_the_threshold(rule, met):
    protocol = dataclasses.replace(
        get_protocol('box'), rule=rule, max_threshold=0.5, steps=2, keypoints=(8,)
    )
    batch, predicted = fixture_batch()
    predicted[:, 8] = batch['keypoints'][:, 8] + np.array([[25, 0], [0, 12.5]], np.float32)
    errors = KeypointErrors.from_batch(predicted, np.ones((2, 21)), batch, 224)
    assert errors.summary(protocol)['pck']['values'] == [0, met, 1]


def test_one_table_names_every_number_of_every_summary():
    for protocol in PROTOCOLS.values():
        summary = fixture_errors().summary(protocol)
        numbers = [name for name, value in summary.items() if isinstance(value, float)]
        assert sorted(numbers) == sorted(metric.name for metric in metrics.metrics_of(protocol))


def test_the_area_of_any_curve_is_that_of_numpys_trapezoids():
    errors = make_errors(15, 40)
    summary = errors.summary(get_protocol('box'))
    curve = summary['pck']
    thresholds = np.array(curve['thresholds'])
    area = np.trapezoid(curve['values'], thresholds) / np.ptp(thresholds)
    assert summary['auc'] == pytest.approx(area, rel=1e-12)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('keypoints', np.nan),
        ('norm_size', 0),
        ('norm_size', -3),
        ('norm_size', np.nan),
        ('image_from_crop', np.inf),
    ],
)
def test_an_unusable_record_is_named(field, value):
    batch = make_batch(np.random.default_rng(12))
    batch['visible'][:] = True
    batch[field][3] = value
    with pytest.raises(ValueError, match=rf"'{field}'.*\[{batch['index'][3]}\]"):
        KeypointErrors.from_batch(np.zeros((6, 21, 2)), np.ones((6, 21)), batch, SIZE)


def test_a_hand_with_nothing_to_count_needs_no_normaliser():
    batch = make_batch(np.random.default_rng(13))
    batch['visible'][3], batch['norm_size'][3] = False, 0
    errors = KeypointErrors.from_batch(batch['keypoints'], np.ones((6, 21)), batch, SIZE)
    assert errors.summary(get_protocol('cmu'))['auc'] == 1


def test_a_size_of_nothing_is_an_error():
    batch = make_batch(np.random.default_rng(14))
    with pytest.raises(ValueError, match='size: expected a positive number'):
        KeypointErrors.from_batch(batch['keypoints'], np.ones((6, 21)), batch, 0)


def fixture_batch(*, empty=()):
    """Two hands, in a crop of 224 px that is the photograph, with few keypoints.

    Offsets (3, 4), (0, 2), (6, 8) and (0, 30) of wrist, thumb tip, index tip and little tip, the
    last of them hidden; and none and (0, 16) of wrist and index tip. In between as many hands
    without any annotation as `empty` holds places for.
    """
    count = 2 + len(empty)
    batch = {
        'image': np.zeros((count, 2, 2, 3), np.uint8),
        'keypoints': np.zeros((count, 21, 2), np.float32),
        'visible': np.zeros((count, 21), bool),
        'hidden': np.zeros((count, 21), bool),
        'has_hand': np.ones(count, bool),
        'norm_size': np.full(count, 7, np.float32),
        'image_from_crop': np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1)),
        'valid': np.ones(count, bool),
        'index': np.arange(count, dtype=np.int32),
    }
    predicted = np.full((count, 21, 2), 77, np.float32)
    first, second = [row for row in range(count) if row not in empty]
    for row, keypoint, truth, offset in (
        (first, 0, (10, 10), (3, 4)),
        (first, 4, (40, 40), (0, 2)),
        (first, 8, (110, 10), (6, 8)),
        (first, 20, (10, 60), (0, 30)),
        (second, 0, (5, 5), (0, 0)),
        (second, 8, (5, 55), (0, 16)),
    ):
        batch['visible'][row, keypoint] = True
        batch['keypoints'][row, keypoint] = truth
        predicted[row, keypoint] = np.add(truth, offset)
    batch['hidden'][first, 20] = True
    batch['norm_size'][[first, second]] = 100, 50
    return batch, predicted


def fixture_errors(**options):
    batch, predicted = fixture_batch(**options)
    return KeypointErrors.from_batch(predicted, np.ones(predicted.shape[:2]), batch, 224)


# By hand. Where an error first is within the i-th of n thresholds above 0, its part of the area is
# (n - i + 1/2) / n; 1 for no error.
BY_HAND = {
    'box': {
        'keypoints_counted': 6,
        'epe_mean_224': (5 + 2 + 10 + 30 + 0 + 16) / 6,
        'epe_median_224': 7.5,
        'auc': (90.5 + 96.5 + 80.5 + 40.5 + 100 + 36.5) / 600,
        'pck_at_0.2': 4 / 6,
    },
    'cmu': {
        'keypoints_counted': 6,
        'epe_mean_224': 10.5,
        'epe_mean_image': 10.5,
        'epe_median_image': 7.5,
        'auc': (95.5 + 98.5 + 90.5 + 70.5 + 100 + 68.5) / 600,
        'pck_at_0.2': 4 / 6,
    },
    'rhd': {
        'keypoints_counted': 5,
        'epe_mean_image': 33 / 5,
        'epe_median_image': 5,
        'auc': (15.5 + 17.5 + 12.5 + 19 + 8.5) / 95,
        'pck_at_0.2': 4 / 5,
        # (0, 0), (-3, -2), (3, 4); (0, 0), (0, 16)
        'keypoints_root_aligned': 5,
        'epe_mean_root_aligned': (0 + math.sqrt(13) + 5 + 0 + 16) / 5,
        'epe_median_root_aligned': math.sqrt(13),
        'auc_root_aligned': (19 + 16.5 + 15.5 + 19 + 8.5) / 95,
        # wrist, thumb tip, index tip
        'epe_mean_image_over_keypoints': (2.5 + 2 + 13) / 3,
        'epe_median_image_over_keypoints': (2.5 + 2 + 13) / 3,
        'auc_over_keypoints': ((15.5 + 19) / 38 + 17.5 / 19 + (12.5 + 8.5) / 38) / 3,
    },
    'dexter_object': {
        'keypoints_counted': 4,
        'epe_mean_image': (2 + 10 + 30 + 16) / 4,
        'epe_median_image': 13,
        'auc': (93.5 + 66.5 + 0.5 + 46.5) / 400,
        'pck_at_0.2': 2 / 4,
    },
    'tzionas': {
        'keypoints_counted': 6,
        'epe_mean_image': 10.5,
        'auc': (66.5 + 86.5 + 33.5 + 0 + 100 + 0) / 600,
    },
    'freihand_tutorial': {
        'keypoints_counted': 6,
        # A hand of few keypoints weighs as much as the other.
        'epe_percent_of_side': ((5 + 2 + 10 + 30) / 4 / 100 + (0 + 16) / 2 / 50) / 2 * 100,
        'auc': (83.5 + 93.5 + 66.5 + 0.5 + 100 + 0) / 600,
    },
    'freihand': {
        'keypoints_counted': 6,
        'epe_mean_image': 10.5,
        'auc': (83.5 + 93.5 + 66.5 + 0.5 + 100 + 46.5) / 600,
    },
    'mmpose': {
        'keypoints_counted': 5,
        'epe_mean_image': 33 / 5,
        # Wrist 5 and 0, thumb tip 2, index tip 10 and 16: how many of the thresholds 0, 1.5, ..
        # 28.5 are above each.
        'auc': ((16 + 19) / 40 + 18 / 20 + (13 + 9) / 40) / 3,
        'pck_at_0.2': (1 + 1 + 1 / 2) / 3,
    },
}


@pytest.mark.parametrize('empty', [(), (1,), (0, 2)])
@pytest.mark.parametrize('name', PROTOCOLS)
def test_each_protocol_by_hand(name, empty):
    """Hands without annotation change nothing but their number."""
    summary = fixture_errors(empty=empty).summary(get_protocol(name))
    assert summary['protocol'] == name
    assert summary['hands'] == 2 + len(empty)
    for key, value in BY_HAND[name].items():
        assert summary[key] == pytest.approx(value, rel=1e-12), key


def test_every_protocol_with_measures_of_its_own_is_checked_by_hand():
    common = fixture_errors().summary(get_protocol('box')).keys()
    for name in PROTOCOLS:
        own = fixture_errors().summary(get_protocol(name)).keys() - common
        assert own <= BY_HAND[name].keys()


@pytest.mark.parametrize('name', PROTOCOLS)
def test_without_a_counted_keypoint_all_measures_are_none(name):
    errors = fixture_errors()
    nothing = dataclasses.replace(errors, valid=np.zeros_like(errors.valid))
    for summary in (
        nothing.summary(get_protocol(name)),
        KeypointErrors.empty().summary(get_protocol(name)),
    ):
        json.dumps(summary, allow_nan=False)
        counts = {'hands', 'keypoints_counted', 'predictions_not_finite', 'keypoints_root_aligned'}
        texts = {'protocol', 'normaliser', 'pck', 'per_keypoint'}
        assert all(summary[key] is None for key in summary.keys() - counts - texts)
        assert summary['keypoints_counted'] == 0


def test_hidden_keypoints_alone_leave_nothing_where_only_visible_ones_count():
    errors = fixture_errors()
    hidden = dataclasses.replace(errors, hidden=errors.valid)
    assert hidden.summary(get_protocol('rhd'))['auc'] is None
    assert hidden.summary(get_protocol('mmpose'))['epe_mean_image'] is None
    assert hidden.summary(get_protocol('cmu')) == errors.summary(get_protocol('cmu'))


def test_hands_without_a_counted_wrist_drop_out_of_root_alignment():
    batch, predicted = fixture_batch()
    batch['hidden'][1, 0] = True
    errors = KeypointErrors.from_batch(predicted, np.ones((2, 21)), batch, 224)
    summary = errors.summary(get_protocol('rhd'))
    assert summary['keypoints_counted'] == 4
    assert summary['keypoints_root_aligned'] == 3
    assert summary['epe_mean_root_aligned'] == pytest.approx((math.sqrt(13) + 5) / 3)


def test_a_wrist_that_is_not_finite_misses_the_whole_hand():
    batch, predicted = fixture_batch()
    predicted[1, 0] = np.nan
    errors = KeypointErrors.from_batch(predicted, np.ones((2, 21)), batch, 224)
    summary = errors.summary(get_protocol('rhd'))
    assert summary['epe_mean_root_aligned'] is None
    assert summary['keypoints_root_aligned'] == 5
    assert summary['auc_root_aligned'] == pytest.approx((19 + 16.5 + 15.5) / 95)
    assert summary['auc'] == pytest.approx((15.5 + 17.5 + 12.5 + 8.5) / 95)


def test_one_keypoint_alone_has_no_box_to_be_relative_to():
    batch, predicted = fixture_batch()
    batch['visible'][1, 8] = False
    errors = KeypointErrors.from_batch(predicted, np.ones((2, 21)), batch, 224)
    np.testing.assert_array_equal(errors.size_of('keypoint_box'), [100, np.nan])
    summary = errors.summary(get_protocol('mmpose'))
    assert summary['pck_at_0.2'] == 1
    assert summary['keypoints_counted'] == 4


def test_a_perfect_network_reaches_what_mmposes_rule_allows():
    batch, _ = fixture_batch()
    errors = KeypointErrors.from_batch(batch['keypoints'], np.ones((2, 21)), batch, 224)
    summary = errors.summary(get_protocol('mmpose'))
    assert summary['auc'] == pytest.approx(0.95)
    assert summary['pck_at_0.2'] == 1


@pytest.mark.parametrize(('size', 'parts'), [(1, 8), (4, 1), (5, 8)])
def test_batches_and_parts_leave_no_trace(size, parts):
    """Any batch size with its padding, dealt to one part or eight: the same to the last bit."""
    rng = np.random.default_rng(21)
    batch = make_batch(rng, 13)
    batch['hidden'] = rng.random((13, 21)) < 0.2
    predicted, confidence = predict(rng, batch)
    predicted[3, 0] = np.nan
    whole = KeypointErrors.merge(KeypointErrors.from_batch(predicted, confidence, batch, SIZE))
    dealt = [[] for _ in range(parts)]
    for number, first in enumerate(range(0, 13, size)):
        rows = np.minimum(np.arange(first, first + size), 12)
        piece = take(batch, rows)
        piece['valid'] = np.arange(first, first + size) < 13
        dealt[number % parts].append(
            KeypointErrors.from_batch(predicted[rows], confidence[rows], piece, SIZE)
        )
    joined = KeypointErrors.merge(*(KeypointErrors.merge(*part) for part in dealt))
    np.testing.assert_array_equal(joined.predicted_image, whole.predicted_image)
    for protocol in PROTOCOLS.values():
        assert joined.summary(protocol) == whole.summary(protocol)


def test_places_in_the_photograph_and_the_side_of_the_hand_come_from_the_crop():
    rng = np.random.default_rng(22)
    batch = make_batch(rng, 8)
    predicted, confidence = predict(rng, batch)
    errors = KeypointErrors.from_batch(predicted, confidence, batch, SIZE)
    maps = batch['image_from_crop'].astype(float)
    mirrored = [a[0, 0] * a[1, 1] < a[0, 1] * a[1, 0] for a in maps]
    assert errors.is_left.tolist() == mirrored
    assert 0 < sum(mirrored) < 8
    for row, k in itertools.product(range(8), range(21)):
        at = maps[row] @ [*predicted[row, k].astype(float), 1]
        np.testing.assert_allclose(errors.predicted_image[row, k], at, rtol=1e-12)
        if errors.valid[row, k]:
            at = maps[row] @ [*batch['keypoints'][row, k].astype(float), 1]
            np.testing.assert_allclose(errors.truth_image[row, k], at, rtol=1e-12)


def make_record(number=5):
    rng = np.random.default_rng(23)
    batch = make_batch(rng, number)
    batch['hidden'] = ~batch['visible'] | (rng.random((number, 21)) < 0.1)
    predicted, confidence = predict(rng, batch)
    predicted[0, 1] = np.nan
    errors = KeypointErrors.merge(KeypointErrors.from_batch(predicted, confidence, batch, SIZE))
    meta = {'protocol': 'rhd', 'split': 'test', 'step': 3, 'size': SIZE}
    names = np.array([f'Ünna/{index}' for index in errors.index], np.str_)
    return metrics.EvaluationRecord(errors, names, meta)


@pytest.mark.parametrize('number', [0, 5])
def test_what_an_evaluation_leaves_is_read_back(tmp_path, number):
    record = make_record(5)
    rows = slice(0, number)
    errors = KeypointErrors(
        **{f.name: getattr(record.errors, f.name)[rows] for f in dataclasses.fields(KeypointErrors)}
    )
    record = metrics.EvaluationRecord(errors, record.image_id[rows], record.meta)
    path = tmp_path / 'evaluation.npz'
    metrics.write_evaluation(path, record)
    assert [file.name for file in tmp_path.iterdir()] == ['evaluation.npz']
    found = metrics.read_evaluation(path)
    for field in dataclasses.fields(KeypointErrors):
        expected = getattr(record.errors, field.name)
        np.testing.assert_array_equal(getattr(found.errors, field.name), expected)
    assert found.image_id.tolist() == record.image_id.tolist()
    assert found.meta == record.meta
    protocol = get_protocol('rhd')
    assert found.errors.summary(protocol) == record.errors.summary(protocol)


def test_a_file_from_before_there_were_pictures_without_hands_is_all_hands(tmp_path):
    path = tmp_path / 'evaluation.npz'
    metrics.write_evaluation(path, make_record())
    with np.load(path, allow_pickle=False) as stored:
        older = {name: stored[name] for name in stored.files if name != 'has_hand'}
    np.savez(path, allow_pickle=False, **older)
    assert metrics.read_evaluation(path).errors.has_hand.tolist() == [True] * 5


def test_the_file_holds_arrays_by_the_names_and_no_pickles(tmp_path):
    metrics.write_evaluation(tmp_path / 'evaluation.npz', make_record())
    with np.load(tmp_path / 'evaluation.npz', allow_pickle=False) as stored:
        found = {name: (stored[name].dtype.kind, stored[name].shape) for name in stored.files}
    each = (5, 21)
    assert found == {
        'error_crop': ('f', each),
        'error_image': ('f', each),
        'valid': ('b', each),
        'hidden': ('b', each),
        'norm_size': ('f', (5,)),
        'confidence': ('f', each),
        'index': ('i', (5,)),
        'predicted_image': ('f', (*each, 2)),
        'truth_image': ('f', (*each, 2)),
        'is_left': ('b', (5,)),
        'has_hand': ('b', (5,)),
        'image_id': ('U', (5,)),
        'meta': ('U', ()),
    }


def test_a_file_of_an_older_version_is_read(tmp_path):
    record = make_record()
    metrics.write_evaluation(tmp_path / 'new.npz', record)
    with np.load(tmp_path / 'new.npz') as stored:
        columns = dict(stored)
    np.savez(tmp_path / 'old.npz', counted=columns.pop('valid'), **columns)
    found = metrics.read_evaluation(tmp_path / 'old.npz').errors
    np.testing.assert_array_equal(found.valid, record.errors.valid)
    np.testing.assert_array_equal(found.error_image, record.errors.error_image)


def test_no_evaluation_or_a_damaged_one_is_said(tmp_path):
    path = tmp_path / 'evaluation.npz'
    with pytest.raises(ValueError, match=r'evaluation\.npz: no evaluation.*handpose evaluate'):
        metrics.read_evaluation(path)
    metrics.write_evaluation(path, make_record())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b'', b'{}', whole[:-400] + bytes(400)):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r'evaluation\.npz: expected the file of an evaluation'
        ):
            metrics.read_evaluation(path)


def test_a_header_that_tells_of_fewer_numbers_is_damage(tmp_path):
    """NumPy reads only so many, and never comes to where the zip's checksum is compared."""
    path = tmp_path / 'evaluation.npz'
    metrics.write_evaluation(path, make_record(200))
    with np.load(path) as stored:
        columns = dict(stored)
    np.savez(path, **columns)  # not compressed
    metrics.read_evaluation(path)
    path.write_bytes(path.read_bytes().replace(b'(200, 21)', b'(100, 21)'))
    with np.load(path) as stored:
        assert len(stored['error_image']) == 100
    with pytest.raises(ValueError, match='does not agree with its checksum'):
        metrics.read_evaluation(path)


def test_a_pickle_in_the_file_is_not_read(tmp_path):
    path = tmp_path / 'evaluation.npz'
    metrics.write_evaluation(path, make_record())
    np.save(tmp_path / 'index.npy', np.array([print, {}], object), allow_pickle=True)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members['index.npy'] = (tmp_path / 'index.npy').read_bytes()
    with zipfile.ZipFile(path, 'w') as new:
        for name, data in members.items():
            new.writestr(name, data)
    with pytest.raises(ValueError, match='expected the file of an evaluation'):
        metrics.read_evaluation(path)
