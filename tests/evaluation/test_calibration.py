"""Calibration against simulated hands whose errors' true distribution is known."""

import dataclasses
import hashlib

import numpy as np
import pytest

from handpose_jax.evaluation import calibration, metrics

SIDE_IMAGE = 300.0
SIDE_CROP = metrics.EPE_FRAME / 2.2
PEAK = 0.6  # the highest confidence: trained networks' maps rarely reach 1


def true_std(confidence):
    """Standard deviation per axis of the simulated errors, px of a 224 crop."""
    return 30 - 25 * confidence / PEAK


def true_probability(confidence, std=true_std):
    # The length of a two-dimensional Gaussian error follows Rayleigh's distribution.
    return 1 - np.exp(-((0.2 * SIDE_CROP) ** 2) / (2 * std(confidence) ** 2))


def make_record(hands=600, seed=0, std=true_std, outliers=0.0):
    rng = np.random.default_rng(seed)
    confidence = PEAK * rng.beta(2, 2, (hands, 21))
    offset = rng.normal(size=(hands, 21, 2)) * std(confidence)[:, :, None]
    far = rng.random((hands, 21)) < outliers
    offset[far] = rng.normal(scale=80, size=(far.sum(), 2))
    error_crop = np.linalg.norm(offset, axis=2)
    truth = rng.uniform(0.1, 0.9, (hands, 21, 2)) * SIDE_IMAGE
    truth[:, 0], truth[:, 20] = [0, 0.2 * SIDE_IMAGE], [SIDE_IMAGE, 0.7 * SIDE_IMAGE]
    scale = SIDE_IMAGE / SIDE_CROP
    errors = metrics.KeypointErrors(
        error_crop=error_crop,
        error_image=error_crop * scale,
        valid=np.ones((hands, 21), bool),
        hidden=np.zeros((hands, 21), bool),
        # Not the box: that correctness refers to the box must not depend on the protocol.
        norm_size=np.full(hands, 7.0),
        confidence=confidence,
        index=np.arange(hands),
        predicted_image=truth + offset * scale,
        truth_image=truth,
        is_left=np.zeros(hands, bool),
        has_hand=np.ones(hands, bool),
    )
    meta = {'protocol': 'box', 'split': 'val', 'step': 40, 'size': 224}
    return metrics.EvaluationRecord(errors, np.array([f'photo {i}' for i in range(hands)]), meta)


def with_empty_pictures(record, count=300, seed=1):
    """The record, and as many pictures without a hand, whose confidences are lower."""
    rng = np.random.default_rng(seed)
    rows = np.arange(count) % len(record.image_id)
    errors = record.errors.take(rows)
    empty = dataclasses.replace(
        errors,
        valid=np.zeros((count, 21), bool),
        confidence=0.6 * PEAK * rng.beta(2, 3, (count, 1)) * rng.uniform(0.6, 1, (count, 21)),
        has_hand=np.zeros(count, bool),
        index=len(record.image_id) + np.arange(count),
    )
    names = [*record.image_id, *(f'room {i}' for i in range(count))]
    merged = metrics.KeypointErrors.merge(record.errors, empty)
    return metrics.EvaluationRecord(merged, np.array(names), record.meta)


def change(record, **columns):
    errors = {
        field: columns.get(field, getattr(record.errors, field))
        for field in record.errors.__dataclass_fields__
    }
    return metrics.EvaluationRecord(
        metrics.KeypointErrors(**errors), columns.get('image_id', record.image_id), record.meta
    )


@pytest.fixture(scope='module')
def record():
    return make_record()


@pytest.fixture(scope='module')
def fitted(record):
    return calibration.fit(record)


def test_the_fitted_values_are_the_true_ones(fitted):
    confidence = np.repeat(PEAK * np.linspace(0.1, 0.9, 33)[:, None], 21, axis=1)
    probability, std = fitted.apply(confidence)
    # Bins of 280 keypoints: a standard error of 0.03 at most, and of 4.3% of the median.
    np.testing.assert_allclose(probability, true_probability(confidence), atol=3.5 * 0.03)
    np.testing.assert_allclose(std, true_std(confidence), rtol=3.5 * 0.043)
    assert np.abs(probability - true_probability(confidence)).mean() < 0.03
    assert np.abs(std / true_std(confidence) - 1).mean() < 0.043


def test_on_unseen_hands_the_error_of_probabilities_falls_and_coverage_is_nominal(fitted):
    held_out = fitted.report['held_out']
    before, after = held_out['before'], held_out['after']
    assert before['ece'] > 0.1
    assert after['ece'] < 2 * held_out['ece_of_perfect']
    assert after['brier'] < before['brier']
    standard_error = 0.5 / np.sqrt(held_out['keypoints'])
    for name, nominal in (('half', 0.5), ('one_sigma', 0.3935), ('two_sigma', 0.8647)):
        assert after['coverage'][name] == pytest.approx(nominal, abs=4 * standard_error)
        assert after['coverage_distance'][name] < 0.3 * before['coverage_distance'][name]


def test_what_was_measured_was_not_used_for_fitting(record, fitted):
    numbers = [hashlib.sha256(name.encode()).digest()[:8] for name in record.image_id]
    unseen = np.array([int.from_bytes(number, 'big') / 2**64 for number in numbers]) >= 2 / 3
    assert fitted.report['held_out']['hands'] == unseen.sum()
    assert fitted.report['fitted_on']['hands'] == (~unseen).sum()
    worse = {
        name: np.where(unseen[:, None], 1000.0, getattr(record.errors, name))
        for name in ('error_crop', 'error_image')
    }
    other = calibration.fit(change(record, **worse))
    np.testing.assert_array_equal(other.probability, fitted.probability)
    np.testing.assert_array_equal(other.std, fitted.std)
    assert other.report['held_out']['share_correct'] == 0


def test_hands_of_one_photograph_stay_together(record):
    pairs = np.array([f'photo {i // 2}' for i in range(len(record.image_id))])
    report = calibration.fit(change(record, image_id=pairs)).report
    photos = np.unique(pairs)
    numbers = [hashlib.sha256(name.encode()).digest()[:8] for name in photos]
    unseen = sum(int.from_bytes(number, 'big') / 2**64 >= 2 / 3 for number in numbers)
    assert report['held_out']['hands'] == 2 * unseen


def test_more_confidence_is_never_worse():
    """Even where it is in the data: there the tables are flat."""
    upside_down = make_record(hands=150, std=lambda confidence: 5 + 40 * confidence)
    for source in (upside_down, make_record(hands=60, seed=3, outliers=0.3)):
        found = calibration.fit(source)
        confidence = np.repeat(np.linspace(0, 1, 300)[:, None], 21, axis=1)
        probability, std = found.apply(confidence)
        assert (np.diff(probability, axis=0) >= -1e-12).all()
        assert (np.diff(std, axis=0) <= 1e-12).all()
        assert ((probability > 0) & (probability < 1) & (std > 0)).all()
    probability, _ = calibration.fit(upside_down).apply(confidence)
    assert np.ptp(probability) < 0.05


def test_outliers_hardly_widen_the_deviation_but_lower_the_probability(fitted):
    found = calibration.fit(make_record(hands=300, outliers=0.1))
    confidence = np.full(21, PEAK / 2)
    (probability, std), (clean_probability, clean_std) = (
        found.apply(confidence),
        fitted.apply(confidence),
    )
    # The root mean square would be 27 instead of 17.5.
    assert (std < 1.15 * clean_std).all()
    assert (probability < clean_probability).all()


def test_predictions_that_failed_count_as_wrong_and_unusable_keypoints_not_at_all(record):
    error_crop, error_image = record.errors.error_crop.copy(), record.errors.error_image.copy()
    confidence, counted = record.errors.confidence.copy(), record.errors.valid.copy()
    error_crop[:, 3] = error_image[:, 3] = np.inf
    confidence[:, 5] = np.nan
    counted[:, 7] = False
    error_crop[:, 7] = error_image[:, 7] = 0.0
    # One annotated keypoint makes no box to compare its error with.
    counted[0], counted[0, 0] = False, True
    broken = change(
        record,
        error_crop=error_crop,
        error_image=error_image,
        confidence=confidence,
        valid=counted,
    )
    found = calibration.fit(broken)
    fitted_on, held_out = found.report['fitted_on'], found.report['held_out']
    assert fitted_on['keypoints'] + held_out['keypoints'] == 19 * (len(record.image_id) - 1)
    assert np.isfinite(found.probability).all()
    assert np.isfinite(found.std).all()
    answer, std = found.apply(np.full(21, np.nan))
    assert np.isnan(answer).all()
    assert np.isnan(std).all()


def test_too_few_hands_are_refused():
    with pytest.raises(ValueError, match='at least 200 counted keypoints to'):
        calibration.fit(make_record(hands=12))


def test_expected_calibration_error_by_hand():
    probability = np.array([0.2, 0.9, 0.6])
    correct = np.array([False, True, False])
    found = calibration.expected_calibration_error(probability, correct)
    assert found == pytest.approx((0.2 + 0.1 + 0.6) / 3)
    # Bins of two: 15 bins of 30 numbers, in each one of two right, claimed 0.75.
    found = calibration.expected_calibration_error(np.full(30, 0.75), np.arange(30) % 2 == 0)
    assert found == pytest.approx(0.25)


def test_saving_and_loading_keeps_everything(tmp_path, fitted, record):
    assert calibration.load(tmp_path) is None
    presence = calibration.fit(with_empty_pictures(record))
    calibration.save(tmp_path, presence)
    np.testing.assert_allclose(calibration.load(tmp_path).presence, presence.presence, atol=1e-6)
    calibration.save(tmp_path, fitted)
    found = calibration.load(tmp_path)
    assert found.presence is None
    confidence = np.random.default_rng(0).uniform(0, 1, (4, 21))
    for loaded, original in zip(found.apply(confidence), fitted.apply(confidence), strict=True):
        np.testing.assert_allclose(loaded, original, atol=1e-6)
    assert found.report == fitted.report
    assert found.step == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ['calibration.json']


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda text: text[: len(text) // 2], 'expected a calibration in JSON'),
        (lambda text: text.replace('0.5', '0.6', 1), 'does not agree with its checksum'),
        (lambda text: text.replace('"format": 3', '"format": 2'), 'of format 3'),
        (lambda text: '[1, 2]', 'of format 3'),
        (lambda text: '', 'expected a calibration in JSON'),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, fitted, damage, message):
    calibration.save(tmp_path, fitted)
    path = tmp_path / calibration.CALIBRATION_FILE
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(ValueError, match=message) as caught:
        calibration.load(tmp_path)
    assert 'make it anew' in str(caught.value)


def test_the_fingerprint_is_of_what_it_was_fitted_on(record, fitted):
    assert fitted.report['fitted_on']['sha256'] == calibration.fingerprint(record)
    for name in ('confidence', 'error_crop', 'truth_image'):
        values = getattr(record.errors, name).copy()
        values.flat[5] += 1
        assert calibration.fingerprint(change(record, **{name: values})) != calibration.fingerprint(
            record
        )


def test_the_command_reads_an_evaluation_and_prints_what_it_found(tmp_path, record, capsys):
    metrics.write_evaluation(tmp_path / metrics.EVALUATION_FILE, record)
    calibration.main(['--workdir', str(tmp_path)])
    printed = capsys.readouterr().out
    found = calibration.load(tmp_path)
    assert f'| {found.report["held_out"]["after"]["ece"]:.4f} |' in printed
    assert len([line for line in printed.splitlines() if ' .. ' in line]) == 10


def test_pictures_without_a_hand_make_presence_and_change_nothing_else(record, fitted):
    assert fitted.presence is None
    assert fitted.apply_presence(np.zeros((2, 21))) is None
    assert 'too few pictures without a hand' in calibration.describe(fitted.report)
    both = with_empty_pictures(record)
    found = calibration.fit(both)
    np.testing.assert_array_equal(found.probability, fitted.probability)
    np.testing.assert_array_equal(found.std, fitted.std)
    assert found.report['held_out'] == fitted.report['held_out']
    assert found.report['fitted_on']['sha256'] != fitted.report['fitted_on']['sha256']
    told = found.report['presence']
    assert told['hands'] + told['held_out_hands'] == 600
    assert told['without'] + told['held_out_without'] == 300
    assert told['auroc'] > 0.9
    assert told['brier'] < 0.12
    assert f'AUROC {told["auroc"]:.4f}' in calibration.describe(found.report)
    # More confidence is never a sign of no hand, and nothing is ever certain.
    assert (np.diff(found.presence) >= 0).all()
    assert 0 < found.presence[0] < 0.1
    assert 0.9 < found.presence[-1] < 1
    unsure = np.full(21, np.nan)
    assert np.isnan(found.apply_presence(unsure))


def test_presence_does_not_depend_on_how_many_pictures_of_either_kind_there_are(record):
    few, many = (
        calibration.fit(with_empty_pictures(record, count)).presence for count in (300, 1800)
    )
    # Bins of 20 pictures: where the table is steep it moves by their standard error of 0.11.
    assert np.abs(few - many).mean() < 0.05
    assert np.abs(few - many).max() < 3.5 * 0.11


def test_presence_is_the_share_of_hands_among_as_many_of_either_kind():
    rng = np.random.default_rng(5)
    record = make_record(hands=3000)
    confidence = np.repeat(rng.beta(3, 2, (3000, 1)), 21, axis=1)
    both = with_empty_pictures(change(record, confidence=confidence), 1500)
    errors = both.errors
    score = np.where(errors.has_hand, errors.confidence.mean(axis=1), rng.beta(2, 3, 4500))
    errors = dataclasses.replace(errors, confidence=np.repeat(score[:, None], 21, axis=1))
    found = calibration.fit(metrics.EvaluationRecord(errors, both.image_id, both.meta))
    at = np.linspace(0.2, 0.8, 13)
    hands, others = at**2 * (1 - at), at * (1 - at) ** 2
    likely = found.apply_presence(np.repeat(at[:, None], 21, axis=1))
    # Bins of at most 100 pictures: a standard error of 0.05.
    np.testing.assert_allclose(likely, hands / (hands + others), atol=3.5 * 0.05)


def test_too_few_pictures_without_a_hand_say_nothing_of_presence(record):
    assert calibration.fit(with_empty_pictures(record, 30)).presence is None


@pytest.mark.parametrize('seed', range(4))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    # Whole numbers, so that there are ties.
    positive, negative = rng.integers(0, 9, 37) + 2.0, rng.integers(0, 9, 23) + 0.0
    pairs = positive[:, None] - negative[None]
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert calibration.auroc(positive, negative) == pytest.approx(expected, abs=1e-12)
    # And the area under the curve of true against false positives, by trapezoids.
    limits = np.r_[np.inf, np.unique(np.r_[positive, negative])[::-1]]
    true, false = (np.array([(of >= t).mean() for t in limits]) for of in (positive, negative))
    assert calibration.auroc(positive, negative) == pytest.approx(np.trapezoid(true, false))
    with pytest.raises(ValueError, match='scores of both kinds, got 37 and 0'):
        calibration.auroc(positive, negative[:0])


def test_the_command_says_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match='no evaluation to read'):
        calibration.main(['--workdir', str(tmp_path)])
