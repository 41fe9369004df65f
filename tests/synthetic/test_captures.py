"""Captured poses: fitted angles, and files that are not what they should be."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handpose_jax.synthetic.body import captures, poses, skeleton


def webxr_record(keypoints, handedness='right'):
    joints = np.zeros((25, 3))
    joints[[0, 1, 2, 3, 4]] = keypoints[:5]
    for finger in range(1, 5):
        at = 5 * finger
        joints[at : at + 5] = keypoints[[0, *range(4 * finger + 1, 4 * finger + 5)]]
    return {'names': ['made'], 'handedness': handedness, 'joints_mm': (1000 * joints).tolist()}


@pytest.fixture
def read(tmp_path):
    """Reads records through a file."""

    def read(*records):
        path = tmp_path / 'a.json'
        path.write_text(json.dumps({'poses': list(records)}))
        return captures.read_webxr(str(path))

    return read


@pytest.fixture(scope='module')
def ok():
    return skeleton.forward_kinematics(skeleton.AVERAGE, poses.library()['ok']).keypoints


@pytest.fixture(scope='module')
def captured(assets):
    return captures.read_webxr(str(assets / 'hands' / 'poses_webxr.json'))


@pytest.mark.parametrize('name', ['ok', 'fist', 'spread', 'asl_y', 'claw'])
def test_a_known_pose_is_found_from_its_keypoints(name):
    pose = poses.library()[name]
    posed = skeleton.forward_kinematics(skeleton.AVERAGE, pose).keypoints
    rng = np.random.default_rng(0)
    turn = Rotation.random(random_state=1).as_matrix()
    # A fist hollows the palm by millimetres, so that it does not lie on a flat one exactly.
    moved = 1.2 * posed @ turn.T + rng.normal(size=3)
    found, residual = captures.fit(moved)
    np.testing.assert_allclose(found.fingers[1:], pose.fingers[1:], atol=np.radians(4))
    np.testing.assert_allclose(found.fingers[0], pose.fingers[0], atol=np.radians(8))
    assert residual < (0.0035 if name == 'fist' else 0.0015)


def test_a_left_hand_is_read_as_its_mirror_image(read, ok):
    got = read(webxr_record(ok), webxr_record(ok * (-1, 1, 1), 'left'))
    np.testing.assert_allclose(got.poses[0].fingers, got.poses[1].fingers, atol=1e-6)
    np.testing.assert_array_equal(got.is_left, [False, True])
    assert got.names == ('made', 'made')


def test_partial_records_are_left_out_by_name(read, ok):
    partial = webxr_record(ok) | {'names': ['thumb only']}
    partial['joints_mm'] = partial['joints_mm'][:10]
    got = read(webxr_record(ok), partial)
    assert len(got.poses) == 1
    assert got.partial == ('thumb only',)


def test_faults_name_file_record_and_field(read, ok, tmp_path):
    good = webxr_record(ok)
    faults = {
        'field joints_mm: expected 25 lists': good | {'joints_mm': [[1, 2]]},
        'field joints_mm: expected finite': good
        | {'joints_mm': [[float('nan')] * 3, *good['joints_mm'][1:]]},
        "field handedness: expected one of .* got 'both'": good | {'handedness': 'both'},
        'field names: expected': good | {'names': []},
        'field handedness is missing': {k: v for k, v in good.items() if k != 'handedness'},
        'field joints_mm: the palm is .* order of the joints': good
        | {'joints_mm': good['joints_mm'][::-1]},
        'field joints_mm: wrist and finger bases coincide': good | {'joints_mm': [[0, 0, 0]] * 25},
        'expected an object, got list': [1],
    }
    for message, record in faults.items():
        with pytest.raises(ValueError, match=rf'a\.json, pose 1.*{message}'):
            read(good, record)
    with pytest.raises(ValueError, match=r'a\.json: expected an object with a list "poses"'):
        read()
    (tmp_path / 'a.json').write_text('{')
    with pytest.raises(ValueError, match=r'a\.json: expected a json file'):
        captures.read_webxr(str(tmp_path / 'a.json'))


def test_real_captures_are_reached(captured):
    assert len(captured.poses) == 110
    assert captured.residuals.mean() < 0.0025
    assert captured.residuals.max() < 0.0060
    low, high = skeleton.JOINT_LIMITS
    fingers = np.stack([pose.fingers for pose in captured.poses])
    assert np.all((low.fingers <= fingers) & (fingers <= high.fingers))


def test_both_hands_of_a_real_pose_agree(captured):
    hands = {True: {}, False: {}}
    for name, pose, is_left in zip(captured.names, captured.poses, captured.is_left, strict=True):
        hands[bool(is_left)][name] = pose.fingers
    shared = sorted(set(hands[True]) & set(hands[False]))
    assert len(shared) > 45
    left, right = (np.stack([hands[side][name] for name in shared]) for side in (True, False))
    same, crossed = (np.abs(left - r).mean(axis=(1, 2)) for r in (right, np.roll(right, -1, 0)))
    # The two were captured apart: alike, not equal.
    assert np.median(same) < np.radians(8)
    assert np.median(same) < 0.5 * np.median(crossed)
