"""Metrics against plain loops over keypoints, and what must not change them."""

import dataclasses
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from handpose_jax import geometry, hand, metrics
from handpose_jax.metrics import KeypointErrors
from handpose_jax.protocols import PROTOCOLS, get_protocol

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
        column = errors.error_crop[:, keypoint][errors.counted[:, keypoint]]
        assert table[name]['counted'] == len(column)
        assert table[name]['epe_mean_224'] == pytest.approx(column.mean())
        assert table[name]['epe_median_224'] == pytest.approx(np.median(column))
    assert sum(row['counted'] for row in table.values()) == errors.num_counted


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
    counted = errors.counted[:, tip_columns]
    expected = errors.error_crop[:, tip_columns][counted]
    assert summary['keypoints_counted'] == counted.sum()
    assert summary['epe_mean_224'] == pytest.approx(expected.mean())
    assert len(summary['per_keypoint']) == 5


def test_the_mean_of_a_hand_runs_over_its_counted_keypoints():
    errors = make_errors(9)
    expected = [
        error[counted].mean()
        for error, counted in zip(errors.error_crop, errors.counted, strict=True)
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


def test_pck_counts_an_error_that_equals_the_threshold():
    errors = np.array([0.0, 0.25, 0.5, np.inf])
    thresholds = np.array([0.0, 0.2, 0.25, 0.5, 1e9])
    values = metrics.pck(errors, thresholds)
    np.testing.assert_array_equal(values, [0.25, 0.25, 0.5, 0.75, 0.75])


def test_auc_of_a_straight_line_is_its_middle_on_uneven_thresholds_too():
    thresholds = np.array([2.0, 3.0, 3.5, 7.0, 12.0])
    assert metrics.auc((thresholds - 2) / 10, thresholds) == pytest.approx(0.5)
    assert metrics.auc(np.ones(5), thresholds) == pytest.approx(1.0)


def test_pck_refuses_what_would_hide_a_failure():
    with pytest.raises(ValueError, match='at least one'):
        metrics.pck(np.zeros(0), np.array([0.5]))
    with pytest.raises(ValueError, match='NaN'):
        metrics.pck(np.array([0.1, np.nan]), np.array([0.5]))


@pytest.mark.parametrize('thresholds', [[0.5], [0.0, 0.0], [1.0, 0.5]])
def test_auc_needs_ascending_thresholds(thresholds):
    with pytest.raises(ValueError, match='ascending'):
        metrics.auc(np.ones(len(thresholds)), np.array(thresholds))


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
