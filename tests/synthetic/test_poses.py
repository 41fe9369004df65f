"""Sampled and library poses: possible ones, of hands that do not run through themselves."""

import numpy as np
import pytest

from handpose_jax.synthetic.body import poses, skeleton
from handpose_jax.synthetic.body.types import HandPose

LOW, HIGH = skeleton.JOINT_LIMITS


def depth(pose):
    return poses.penetration(skeleton.forward_kinematics(skeleton.AVERAGE, pose).keypoints)


@pytest.fixture(scope='module')
def sampled():
    rng = np.random.default_rng(0)
    return [poses.sample_pose(rng) for _ in range(1000)]


def test_sampled_poses_are_possible(sampled):
    fingers = np.stack([pose.fingers for pose in sampled])
    wrists = np.stack([pose.wrist for pose in sampled])
    assert np.all((LOW.fingers <= fingers) & (fingers <= HIGH.fingers))
    assert np.all((LOW.wrist <= wrists) & (wrists <= HIGH.wrist))
    for pose in sampled[:100]:
        np.testing.assert_allclose(skeleton.clamp(pose).fingers, pose.fingers, atol=1e-12)
    assert max(depth(pose) for pose in sampled[:300]) <= poses.MAX_PENETRATION


def test_sampled_poses_cover_what_fingers_can_do(sampled):
    fingers = np.stack([pose.fingers for pose in sampled])
    low, high = np.quantile(fingers, [0.02, 0.98], axis=0)
    reach = (high - low) / (HIGH.fingers - LOW.fingers)
    assert reach[:, 1:3].min() > 0.6
    assert reach.min() > 0.4


def test_a_seed_decides_the_poses():
    one, same = (poses.sample_pose(np.random.default_rng(7)) for _ in range(2))
    other = poses.sample_pose(np.random.default_rng(8))
    np.testing.assert_array_equal(one.fingers, same.fingers)
    np.testing.assert_array_equal(one.wrist, same.wrist)
    assert np.abs(one.fingers - other.fingers).max() > 0.01


def test_a_given_library_is_used():
    rng = np.random.default_rng(1)
    rock = poses.library()['rock']
    drawn = [poses.sample_pose(rng, library=[rock]) for _ in range(30)]
    off = [np.abs(pose.fingers - rock.fingers).mean() for pose in drawn]
    assert np.mean(np.array(off) < np.radians(8)) > 0.4
    with pytest.raises(ValueError, match='library is empty'):
        poses.sample_pose(rng, library=[])


@pytest.mark.parametrize('name', sorted(poses.LIBRARY_DEGREES))
def test_library_poses_are_possible(name):
    pose = poses.library()[name]
    assert depth(pose) <= poses.MAX_PENETRATION
    # Clamping changed little of what was written down.
    written = np.radians(np.array(poses.LIBRARY_DEGREES[name]))
    assert np.abs(pose.fingers - written).max() < np.radians(40)
    assert np.abs(pose.fingers - written).mean() < np.radians(3)


def test_pinching_poses_touch():
    for name in ('pinch', 'ok', 'asl_f'):
        at = skeleton.forward_kinematics(skeleton.AVERAGE, poses.library()[name]).keypoints
        gap = poses.segment_distances(at[[3, 7]][:, None], at[[4, 8]][:, None])[0]
        assert 0.010 < gap < 0.017  # about the radii of the two fingertips


def test_segment_distances_agree_with_a_dense_search():
    rng = np.random.default_rng(2)
    starts, ends = rng.normal(size=(2, 2, 40, 3))
    ends[1, 0] = starts[1, 0] + 2 * (ends[0, 0] - starts[0, 0])  # parallel
    t = np.linspace(0, 1, 201)[:, None, None]
    first, second = (starts[k] + t * (ends[k] - starts[k]) for k in (0, 1))
    dense = np.linalg.norm(first[:, None] - second[None], axis=-1).min(axis=(0, 1))
    exact = poses.segment_distances(starts, ends)
    assert np.all(exact <= dense + 1e-12)
    np.testing.assert_allclose(exact, dense, atol=0.03)


def test_penetration_sees_a_finger_pushed_through_another():
    keypoints = skeleton.forward_kinematics(skeleton.AVERAGE, skeleton.FLAT).keypoints
    assert poses.penetration(keypoints) < 0
    crossed = keypoints.copy()
    crossed[6:9] = keypoints[10:13]
    assert poses.penetration(crossed) > 0.012


def test_untangle_opens_only_what_collides():
    free = poses.library()['claw']
    np.testing.assert_array_equal(poses.untangle(free).fingers, free.fingers)
    fingers = np.radians([[-30, 50, 60, 70], *[[0, 85, 100, 65]] * 4])
    tangled = skeleton.clamp(HandPose(fingers, np.zeros(2)))
    assert depth(tangled) > poses.MAX_PENETRATION
    opened = poses.untangle(tangled)
    assert depth(opened) <= poses.MAX_PENETRATION
    np.testing.assert_array_equal(opened.fingers[1:], tangled.fingers[1:])
