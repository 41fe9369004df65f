"""The data doctor: its model of hands, its checks on seeded faults, its report."""

import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import threadpoolctl
from scipy import stats

from handpose_jax import hand
from handpose_jax.data import previews, sources
from handpose_jax.data.doctor import (
    anatomy,
    anatomy_3d,
    duplicates,
    examine,
    findings,
    gaussians,
    hand_checks,
    record_checks,
    survey,
)
from handpose_jax.data.transforms import Augmentation
from handpose_jax.synthetic.body import poses, skeleton

COUNT = 120
ALL = np.ones(hand.NUM_KEYPOINTS, bool)


@pytest.fixture(scope='module', autouse=True)
def _smaller_models():
    """Fitted to fewer hands than the doctor's own, for speed."""
    made = {}

    def default(partial=False):
        if partial not in made:
            made[partial] = anatomy.Anatomy(partial=partial, poses=150, components=16)
        return made[partial]

    with pytest.MonkeyPatch.context() as patch, threadpoolctl.threadpool_limits(1):
        patch.setattr(anatomy, 'default', default)
        yield


def make_records(keypoints, **changes):
    """A survey of made-up records, without pictures."""
    count = len(keypoints)
    low, high = keypoints.min(axis=1), keypoints.max(axis=1)
    values = {
        'split': ['train'] * count,
        'name': [f'hand {number}' for number in range(count)],
        'keypoints': keypoints,
        'annotated': np.ones((count, 21), bool),
        'visible': np.ones((count, 21), bool),
        'is_left': np.zeros(count, bool),
        'no_hand': np.zeros(count, bool),
        'box': np.concatenate([low, high], axis=1),
        'size': np.full((count, 2), 1000),
        'contrast': np.full(count, 255),
        'digest': [bytes([number // 256, number % 256]) for number in range(count)],
        'damage': [''] * count,
        'bits': None,
        'thumbnails': None,
        'keypoints_3d': None,
        'camera': None,
    }
    return survey.Survey(**{**values, **changes})


@pytest.fixture(scope='module')
def keypoints():
    """Hands as seen from anywhere, 200 px large, in the middle of 1000 px."""
    hands = anatomy.sample_hands(np.random.default_rng(21), count=COUNT, views=1)
    size = np.ptp(hands, axis=1).max(axis=1)[:, None, None]
    return 500 + 200 * (hands - hands.mean(axis=1, keepdims=True)) / size


@pytest.fixture(scope='module')
def deep():
    """Records with 3D keypoints before a camera; every other hand is a left one."""
    rng = np.random.default_rng(22)
    points, is_left = [], np.arange(40) % 2 == 1
    for left in is_left:
        pose = skeleton.forward_kinematics(skeleton.sample_shape(rng), poses.sample_pose(rng))
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned = pose.keypoints * (-1 if left else 1, 1, 1) @ (q * np.linalg.det(q)).T
        points.append(turned - turned.mean(axis=0) + [0, 0, 0.6])
    camera = np.array([[900.0, 0, 500], [0, 900, 500], [0, 0, 1]])
    seen = np.stack(points) @ camera.T
    return make_records(
        seen[..., :2] / seen[..., 2:],
        is_left=is_left,
        keypoints_3d=np.stack(points),
        camera=np.tile(camera, (40, 1, 1)),
    )


def changed(records, row, **values):
    """Records with columns of one of them changed by functions or values."""
    columns = {}
    for name, value in values.items():
        column = getattr(records, name).copy()
        column[row] = value(column[row]) if callable(value) else value
        columns[name] = column
    return dataclasses.replace(records, **columns)


def test_densities_are_those_of_scipy():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(3, 4, 4))
    mixture = gaussians.Mixture(
        np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 4)), factors @ factors.transpose(0, 2, 1)
    )
    points = rng.normal(size=(50, 4))
    for kept in ([0, 1, 2, 3], [3, 1]):
        part = gaussians.marginal(mixture, kept)
        expected = sum(
            weight
            * stats.multivariate_normal(mean[kept], covariance[np.ix_(kept, kept)]).pdf(
                points[:, kept]
            )
            for weight, mean, covariance in zip(*mixture, strict=True)
        )
        np.testing.assert_allclose(
            gaussians.Density(part)(points[:, kept]), np.log(expected), rtol=1e-8
        )


def test_a_fitted_mixture_finds_the_clusters():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal([0, 0], 0.1, (300, 2)), rng.normal([3, 1], 0.3, (100, 2))])
    mixture = gaussians.fit(rng, points, components=2, floor=1e-3)
    order = np.argsort(mixture.means[:, 0])
    np.testing.assert_allclose(mixture.means[order], [[0, 0], [3, 1]], atol=0.1)
    np.testing.assert_allclose(mixture.weights[order], [0.75, 0.25], atol=0.01)


def test_place_size_turn_and_mirroring_of_a_hand_do_not_matter(keypoints):
    rng = np.random.default_rng(1)
    known = rng.random((COUNT, 21)) < 0.9
    angle = 0.7
    turn = 3.1 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    model = anatomy.default()
    expected = model.part_densities(keypoints, known)
    for linear in (turn, turn @ np.diag([-1, 1])):
        moved = keypoints @ linear.T + [40, -70]
        np.testing.assert_allclose(model.part_densities(moved, known), expected, atol=0.01)


def test_what_is_not_annotated_does_not_matter(keypoints):
    keypoints, model = keypoints[:12], anatomy.default(True)
    known = np.random.default_rng(1).random((12, 21)) < 0.8
    elsewhere = np.where(known[..., None], keypoints, -777.0)
    some = np.arange(len(anatomy.HYPOTHESES)) % 9 == 0
    given = model.gains(keypoints, known, some)
    assert np.isfinite(given[:, some]).any()
    np.testing.assert_allclose(model.gains(elsewhere, known, some), given, atol=1e-3)


@pytest.mark.parametrize('text', anatomy.known_orders())
def test_a_set_in_another_order_is_found_and_put_right(keypoints, text):
    order = np.array(anatomy.known_orders()[text])
    assert sorted(order) == list(range(21))
    given = make_records(keypoints[:60, np.argsort(order)])
    records, found = examine._put_in_order(given)
    assert [text in one.seen for one in found] == [True]
    assert str(order.tolist()) in found[0].expected
    np.testing.assert_array_equal(records.keypoints, keypoints[:60])


def test_hands_in_our_order_are_left_in_it(keypoints):
    for known in (ALL, ALL & (np.arange(21) != hand.WRIST)):
        annotated = np.tile(known, (COUNT, 1))
        given = make_records(keypoints, annotated=annotated, visible=annotated)
        records, found = examine._put_in_order(given)
        assert found == []
        np.testing.assert_array_equal(records.keypoints, keypoints)


def seed_exchange(keypoints, pairs_of, rng):
    """Exchanges keypoints in every tenth record; what the finding must say, by record."""
    given, expected = keypoints.copy(), {}
    for row in range(0, COUNT, 10):
        pairs, text = pairs_of(rng)
        for a, b in pairs:
            given[row, [a, b]] = given[row, [b, a]]
        expected[f'hand {row}'] = text
    return given, expected


def two_fingers(rng):
    fingers = list(hand.FINGERS)
    first = int(rng.integers(4))
    pairs = zip(hand.FINGERS[fingers[first]], hand.FINGERS[fingers[first + 1]], strict=True)
    return list(pairs), f'{fingers[first]} and {fingers[first + 1]} were exchanged'


def two_keypoints(rng):
    finger = list(hand.FINGERS.values())[rng.integers(5)]
    a, b = finger[rng.integers(2)], finger[rng.integers(2, 4)]
    return [(a, b)], f'{hand.KEYPOINT_NAMES[a]} and {hand.KEYPOINT_NAMES[b]} were exchanged'


def flip_permutation(rng):
    pairs = [(a, b) for a, b in zip(range(1, 9), [17, 18, 19, 20, 13, 14, 15, 16], strict=True)]
    return pairs, 'thumb and little finger, index and ring finger exchanged'


@pytest.mark.parametrize('pairs_of', [two_fingers, two_keypoints, flip_permutation])
def test_exchanged_keypoints_are_found_and_named(keypoints, pairs_of):
    given, expected = seed_exchange(keypoints, pairs_of, np.random.default_rng(2))
    found = hand_checks.check_anatomy(make_records(given))
    seen = {one.record: one.seen for one in found if one.check == 'order of a record'}
    named = [name for name, text in expected.items() if text in seen.get(name, '')]
    assert len(named) >= 0.9 * len(expected)
    assert len(seen.keys() - expected.keys()) <= 0.01 * COUNT
    # Ten in a hundred mirrored by such a permutation are a fault of the set.
    assert any(one.check == 'order' for one in found) == (pairs_of is flip_permutation)


def test_a_keypoint_off_the_hand_is_found_and_named(keypoints):
    rng = np.random.default_rng(3)
    given = keypoints.copy()
    expected = {}
    for row in range(0, COUNT, 10):
        keypoint, angle = int(rng.integers(1, 21)), rng.uniform(0, 2 * np.pi)
        given[row, keypoint] += 90 * np.array([np.cos(angle), np.sin(angle)])
        expected[f'hand {row}'] = hand.KEYPOINT_NAMES[keypoint]
    found = hand_checks.check_anatomy(make_records(given))
    seen = {one.record: one.seen for one in found if one.check == 'keypoint off the hand'}
    named = [name for name, keypoint in expected.items() if keypoint in seen.get(name, '')]
    assert len(named) >= 0.8 * len(expected)
    assert len(seen.keys() - expected.keys()) <= 0.02 * COUNT


def test_points_that_are_no_hand_are_found(keypoints):
    given = keypoints.copy()
    given[5] = np.random.default_rng(0).uniform(400, 600, (21, 2))
    found = hand_checks.check_anatomy(make_records(given))
    assert 'hand 5' in {one.record for one in found}


FAULTS = {
    'placeholder': {'keypoints': lambda p: np.where(np.arange(21)[:, None] == 4, 0.0, p)},
    'same place': {'keypoints': lambda p: p[[*range(20), 19]]},
    'outside': {'size': (1000, 560)},
    'far outside': {'keypoints': lambda p: p + 900, 'box': lambda b: b + 900},
    'box': {'box': lambda b: b + 300},
    'visibility': {'annotated': ALL & (np.arange(21) != 8)},
}


@pytest.mark.parametrize('check', FAULTS)
def test_a_fault_of_a_record_is_found_by_its_check_alone(keypoints, check):
    clean = make_records(keypoints[:15])
    assert examine_record(clean) == []
    found = examine_record(changed(clean, 3, **FAULTS[check]))
    assert {(one.check, one.record) for one in found} == {(check, 'hand 3')}


def examine_record(records):
    return record_checks.check_places(records) + record_checks.check_visibility(records)


def test_whole_pixels_may_bring_two_keypoints_together_but_not_three(keypoints):
    given = np.round(keypoints[:30])
    given[2, 7] = given[2, 8]
    assert record_checks.check_places(make_records(given)) == []
    given[2, 6] = given[2, 8]
    (found,) = record_checks.check_places(make_records(given))
    assert (found.check, found.record) == ('same place', 'hand 2')


def test_three_dimensions_in_order_raise_nothing(deep):
    assert hand_checks.check_three_dimensions(deep) == []
    side = anatomy_3d.palm_side(deep.keypoints_3d)
    np.testing.assert_array_equal(side < 0, deep.is_left)


@pytest.mark.parametrize(
    ('check', 'change'),
    [
        ('handedness', {'is_left': lambda flag: ~flag}),
        ('bones in 3D', {'keypoints_3d': lambda p: p + 0.05 * (np.arange(21) == 8)[:, None]}),
        ('projection', {'camera': lambda c: c * [[1.1, 1, 1], [1, 1.1, 1], [1, 1, 1]]}),
    ],
)
def test_a_fault_in_three_dimensions_is_found(deep, check, change):
    found = hand_checks.check_three_dimensions(changed(deep, 4, **change))
    assert [one.record for one in found if one.check == check] == ['hand 4']


@pytest.mark.parametrize(
    ('check', 'change'),
    [
        ('handedness', {'is_left': lambda flags: ~flags}),
        ('handedness', {'keypoints_3d': lambda points: points * [-1, 1, 1]}),
        ('unit', {'keypoints_3d': lambda points: points * 1000}),
    ],
)
def test_a_fault_of_a_whole_set_in_three_dimensions_is_found_once(deep, check, change):
    found = hand_checks.check_three_dimensions(changed(deep, slice(None), **change))
    assert [one.record for one in found if one.check == check] == ['']


def test_left_hands_that_were_mirrored_already_are_noticed(keypoints):
    # Right hands that show their palms; half of them called left.
    a, b = (keypoints[:, k] - keypoints[:, 0] for k in (5, 17))
    clockwise = a[:, 0] * b[:, 1] > a[:, 1] * b[:, 0]
    palms = np.where(clockwise[:, None, None], keypoints, keypoints * [-1, 1] + [1000, 0])
    is_left = np.arange(COUNT) % 2 == 0
    (found,) = hand_checks.check_winding(make_records(palms, is_left=is_left))
    assert found.severity == 'warning'
    seen = np.where(is_left[:, None, None], palms * [-1, 1] + [1000, 0], palms)
    (found,) = hand_checks.check_winding(make_records(seen, is_left=is_left))
    assert found.severity == 'note'


class Pictures:
    """A source of given images, or of what they raise."""

    def __init__(self, entries):
        self._entries = entries
        self.groups = ('',) * len(entries)

    def __len__(self):
        return len(self._entries)

    def image_id(self, index, /):
        return f'picture {index}'

    def fingerprint(self):
        return ''

    def __getitem__(self, index, /):
        image, keypoints = self._entries[index]
        if image is None:
            raise ValueError(f'picture {index}: truncated')
        return {
            'image': image,
            'keypoints': keypoints.astype(np.float32),
            'visible': ALL,
            'box': np.array([300, 300, 700, 700], np.float32),
            'is_left': False,
            'norm_size': 200.0,
            'image_id': self.image_id(index),
        }


def make_picture(number):
    rng = np.random.default_rng([7, number])
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (120, 100), interpolation=cv2.INTER_CUBIC)


def test_pictures_that_appear_twice_or_are_damaged(keypoints):
    pictures = [make_picture(number) for number in range(8)]
    again = cv2.imdecode(cv2.imencode('.jpg', pictures[2])[1], cv2.IMREAD_COLOR)
    train = [*zip(pictures[:5], keypoints, strict=False), (pictures[0], keypoints[50])]
    train += [(pictures[1], keypoints[1]), (None, None), (np.full((9, 9, 3), 7, np.uint8), ALL)]
    train[-1] = (train[-1][0], keypoints[9])
    test = [(pictures[5], keypoints[20]), (pictures[3], keypoints[21]), (again, keypoints[22])]
    records = survey.take({'train': Pictures(train), 'test': Pictures(test)})
    assert len(records) == 12
    found = [one for one in examine.examine(records) if one.severity != 'note']
    told = {(one.check, one.split, one.record) for one in found}
    wanted = {
        ('leak', 'test', 'picture 1'),
        ('near leak', 'test', 'picture 2'),
        ('repeated record', 'train', 'picture 6'),
        ('image', 'train', 'picture 7'),
        ('image', 'train', 'picture 8'),
    }
    # Picture 5 shows another hand of picture 0's image, which is no fault.
    about_pictures = {'leak', 'near leak', 'repeated record', 'contradiction', 'image'}
    assert {one for one in told if one[0] in about_pictures} == wanted
    (leak,) = (one for one in found if one.check == 'leak')
    assert 'train picture 3' in leak.seen


def test_pictures_without_a_hand_are_counted_and_not_taken_for_bad_hands(keypoints):
    first, rest = make_records(keypoints[:40]), keypoints[:40].copy()
    no_hand = np.arange(40) % 4 == 0
    rest[no_hand] = 0
    box = first.box.copy()
    box[no_hand] = [[10, 10, 90, 90 + number] for number in range(10)]
    # Two regions of one photograph are no repetition; the same one is.
    digest = list(first.digest)
    digest[4] = digest[8] = digest[0]
    box[8] = box[0]
    known = ~np.repeat(no_hand[:, None], 21, axis=1)
    changes = {'annotated': known, 'visible': known, 'box': box, 'digest': digest}
    found = examine.examine(make_records(rest, no_hand=no_hand, **changes))
    told = {(one.check, one.record) for one in found if one.severity != 'note'}
    usual = examine.examine(make_records(keypoints[:40][~no_hand]))
    hands = {one.check for one in usual if one.severity != 'note'}
    assert {check for check, _ in told} - hands == {'repeated record'}
    assert ('repeated record', 'hand 8') in told
    assert [one.seen for one in found if one.check == 'no hand'] == [
        '10 of 40 records say that their picture shows no hand'
    ]
    nothing = np.ones(40, bool)
    examine.examine(make_records(0 * rest, annotated=~known & known, no_hand=nothing))


def test_without_hashes_near_duplicates_are_said_to_be_unknown(keypoints):
    picture = make_picture(0)
    records = survey.take({'train': Pictures([(picture, keypoints[0])])}, looks=False)
    (note,) = (one for one in examine.examine(records) if one.check == 'near duplicates')
    assert 'imagehash' in note.seen


def test_the_nearest_duplicate_is_that_of_all_pairs():
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2**63, 40, dtype=np.uint64)
    bits[30:] = bits[:10] ^ np.uint64(0b1011)
    thumbnails = duplicates.normalise(rng.integers(0, 256, (40, 16, 16), dtype=np.uint8))
    thumbnails[30:35] = thumbnails[:5]
    found, alike = duplicates.nearest(bits, thumbnails, bits, thumbnails, skip_same=True)
    expected = np.full(40, -1)
    expected[:5], expected[30:35] = range(30, 35), range(5)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(alike[:5], 1, atol=1e-6)


def test_the_report_counts_all_and_shows_the_worst_first():
    many = [
        findings.Finding('b', 'warning', 'train', f'r{k}', 'x', 'y', float(k)) for k in range(15)
    ]
    worst = findings.Finding('a', 'error', 'train', '', '', 'all of it')
    text = findings.to_text([*many, worst], {'train': 1200}, shown=10)
    lines = text.splitlines()
    assert lines[0] == 'Records: 1,200 in train. Found: 1 error, 15 warnings.'
    assert lines.index('ERROR a: 1') < lines.index('WARNING b: 15')
    assert lines[lines.index('WARNING b: 15') + 1] == '  train r14: y (expected: x)'
    assert lines[-1] == '  ... and 5 more'
    values = json.loads(json.dumps(findings.to_json([*many, worst], {'train': 1200})))
    assert list(values['checks']) == ['a', 'b']
    assert len(values['checks']['b']['findings']) == values['checks']['b']['count'] == 15


def test_a_preview_shows_each_heatmap_in_its_keypoints_colour():
    sample = dict(sources.SketchSource(count=1)[0])
    views = previews.preview(
        {**sample, 'is_left': True},
        size=64,
        augmentation=Augmentation(rotation=0.0, translation=0.0, scale=(1.0, 1.0)),
        rng=np.random.default_rng(0),
        sigma=7.0,
    )
    # Only mirrored: with nothing else drawn, the two crops are each other's reflections.
    np.testing.assert_allclose(
        views.augmented_keypoints[:, 0], 63 - views.keypoints[:, 0], atol=0.01
    )
    np.testing.assert_array_equal(views.crop[:, ::-1], views.augmented)
    maps = np.zeros((16, 16, 21), np.float32)
    maps[4, 4, 8], maps[12, 12, 20] = 1, 0.5
    shown = previews.lay_over(np.full((16, 16, 3), 100, np.uint8), maps)
    np.testing.assert_array_equal(shown[4, 4], hand.keypoint_colour(8))
    half = (np.array(hand.keypoint_colour(20)) + 100) // 2
    np.testing.assert_array_equal(shown[12, 12], half)
    np.testing.assert_array_equal(shown[8, 8], 100)


@pytest.mark.skipif('HANDPOSE_ASSETS' not in os.environ, reason='needs HANDPOSE_ASSETS')
@pytest.mark.parametrize('name', ['rhd', 'freihand', 'panoptic'])
def test_the_order_of_real_samples(name):
    path = Path(os.environ['HANDPOSE_ASSETS']) / 'hands' / 'samples' / name / f'test_{name}.json'
    annotations = json.loads(path.read_text())['annotations']
    points = np.array([a['keypoints'] for a in annotations], float).reshape(-1, 21, 3)
    gains = anatomy.default().gains(points[..., :2], points[..., 2] > 0)
    chosen, gain = anatomy.best(gains, ~anatomy.IS_PLACE)
    texts = {anatomy.HYPOTHESES[k].text for k in chosen[gain > hand_checks.ORDER_GAIN]}
    # The samples of RHD are in its own order.
    assert texts == ({'every finger runs from tip to base (as in RHD)'} if name == 'rhd' else set())
