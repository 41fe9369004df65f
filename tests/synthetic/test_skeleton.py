"""The bones: constant lengths, joints that bend the right way, what hands can do and cannot."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from handpose_jax import hand
from handpose_jax.synthetic.body import skeleton
from handpose_jax.synthetic.body.types import HandPose

LOW, HIGH = skeleton.JOINT_LIMITS


def random_pose(rng):
    return HandPose(rng.uniform(LOW.fingers, HIGH.fingers), rng.uniform(LOW.wrist, HIGH.wrist))


def bent(finger, **angles):
    """A flat hand but for some angles of one finger."""
    columns = {'abduction': 0, 'first': 1, 'second': 2, 'third': 3}
    fingers = np.zeros((5, 4))
    for name, angle in angles.items():
        fingers[finger, columns[name]] = angle
    return HandPose(fingers, np.zeros(2))


def keypoints(pose, shape=skeleton.AVERAGE):
    return skeleton.forward_kinematics(shape, pose).keypoints


def test_bones_are_as_long_as_the_table_times_the_shape_in_every_pose():
    rng = np.random.default_rng(0)
    shape = skeleton.sample_shape(rng)
    table = shape.size * shape.lengths[:, None] * skeleton.BONE_LENGTHS
    flat = keypoints(skeleton.FLAT, shape)
    parents, children = np.transpose(hand.BONES)
    expected = np.linalg.norm(flat[children] - flat[parents], axis=1)
    for _ in range(50):
        posed = keypoints(random_pose(rng), shape)
        lengths = np.linalg.norm(posed[children] - posed[parents], axis=1)
        np.testing.assert_allclose(lengths, expected, rtol=1e-9)
        chains = posed[np.array(list(hand.FINGERS.values()))]
        steps = np.linalg.norm(np.diff(chains, axis=1), axis=2)
        np.testing.assert_allclose(steps, table, rtol=1e-9)


def test_frames_are_rotations_along_their_bones():
    posed = skeleton.forward_kinematics(skeleton.AVERAGE, random_pose(np.random.default_rng(2)))
    squares = posed.frames @ np.swapaxes(posed.frames, 1, 2)
    np.testing.assert_allclose(squares, np.tile(np.eye(3), (21, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(posed.frames), 1.0)
    parents, children = np.transpose([bone for bone in hand.BONES if bone[0] != hand.WRIST])
    bones = posed.keypoints[children] - posed.keypoints[parents]
    bones /= np.linalg.norm(bones, axis=1, keepdims=True)
    np.testing.assert_allclose(posed.frames[children, :, 1], bones, atol=1e-12)


def test_a_flat_hand_lies_along_y_and_is_as_long_as_stated():
    flat = keypoints(skeleton.FLAT)
    np.testing.assert_allclose(flat[0], 0.0)
    np.testing.assert_allclose(flat[9] / np.linalg.norm(flat[9]), [0, 1, 0], atol=1e-12)
    assert 0.180 < flat[12, 1] < 0.190
    assert np.all(np.diff(flat[[5, 9, 13, 17], 0]) > 0.015)  # index to little finger: +x
    assert flat[4, 0] < flat[5, 0]


@pytest.mark.parametrize('finger', range(1, 5))
@pytest.mark.parametrize('joint', ['first', 'second', 'third'])
def test_flexion_bends_to_the_palm(finger, joint):
    tip = hand.FINGERTIPS[finger]
    heights = [keypoints(bent(finger, **{joint: angle}))[tip, 2] for angle in (0.0, 0.5, 1.0)]
    assert heights[0] - 0.004 > heights[1] > heights[2] + 0.002


def test_thumb_flexion_carries_the_tip_in_front_of_the_palm():
    tips = [keypoints(bent(0, first=angle))[4] for angle in (-0.3, 0.2, 0.7)]
    assert tips[0][2] > tips[1][2] > tips[2][2]
    assert tips[0][0] < tips[1][0] < tips[2][0]


@pytest.mark.parametrize(('finger', 'side'), [(0, -1), (1, -1), (2, 1), (3, 1), (4, 1)])
def test_abduction_turns_away_from_the_middle_finger(finger, side):
    tip = hand.FINGERTIPS[finger]
    moved = keypoints(bent(finger, abduction=0.2))[tip] - keypoints(skeleton.FLAT)[tip]
    assert side * moved[0] > 0.005


@pytest.mark.parametrize('finger', range(1, 5))
def test_the_thumb_can_touch_every_fingertip(finger):
    def tips(which, *choices):
        angles = np.zeros((int(np.prod([len(choice) for choice in choices])), 5, 4))
        angles[:, which] = list(itertools.product(*choices))
        palm, frames = skeleton.finger_frames(angles)
        bones = skeleton.BONE_LENGTHS[which][:, None] * frames[:, which, :, :, 1]
        return palm[:, which] @ skeleton.FINGER_BASES[which] + bones.sum(axis=1)

    ranges = [np.linspace(LOW.fingers[0, k], HIGH.fingers[0, k], 6) for k in range(4)]
    bends = np.radians([[20, 40, 55, 70], [20, 40, 60, 80]])
    thumb = tips(0, *ranges)
    other = tips(finger, [0.0], *bends, np.radians([15, 35, 55]))
    gap = np.linalg.norm(thumb[:, None] - other, axis=-1).min()
    # Two fingertips that touch are about a finger's thickness apart.
    assert gap < 0.012


def test_bent_fingers_converge():
    fingers = np.zeros((5, 4))
    fingers[1:, 1:3] = np.radians(80)
    poses = skeleton.FLAT, HandPose(fingers, np.zeros(2))
    flat, bent_width = (np.ptp(keypoints(pose)[[8, 20], 0]) for pose in poses)
    assert bent_width < 0.75 * flat


def test_the_wrist_turns_the_forearm_against_the_hand():
    pose = HandPose(np.zeros((5, 4)), np.radians([40.0, 0.0]))
    posed = skeleton.forward_kinematics(skeleton.AVERAGE, pose)
    np.testing.assert_allclose(posed.keypoints, keypoints(skeleton.FLAT))
    elbow = -posed.frames[skeleton.WRIST_BONE][:, 1]
    np.testing.assert_allclose(elbow, [0, -np.cos(np.radians(40)), -np.sin(np.radians(40))])
    deviated = pose._replace(wrist=np.radians([0.0, 20.0]))
    elbow = -skeleton.forward_kinematics(skeleton.AVERAGE, deviated).frames[0][:, 1]
    assert elbow[0] > 0.3  # the hand points to the little finger's side, so the elbow lies there


def test_rotation_agrees_with_scipy():
    rng = np.random.default_rng(3)
    for _ in range(20):
        axis, angle = rng.normal(size=3), rng.uniform(-3, 3)
        expected = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        np.testing.assert_allclose(skeleton.rotation(axis, angle), expected, atol=1e-12)


def test_clamp_keeps_limits_and_changes_nothing_twice():
    rng = np.random.default_rng(4)
    for _ in range(200):
        wild = HandPose(rng.normal(0, 1.5, (5, 4)), rng.normal(0, 1.5, 2))
        once = skeleton.clamp(wild)
        assert np.all((LOW.fingers <= once.fingers) & (once.fingers <= HIGH.fingers))
        assert np.all((LOW.wrist <= once.wrist) & (once.wrist <= HIGH.wrist))
        twice = skeleton.clamp(once)
        np.testing.assert_allclose(twice.fingers, once.fingers, atol=1e-12)


def test_clamp_leaves_a_possible_pose_alone_and_its_argument_too():
    fingers = np.radians(
        [[0, 20, 20, 10], [5, 30, 40, 25], [0, 35, 45, 30], [5, 40, 45, 30], [8, 40, 40, 25]]
    )
    pose = HandPose(fingers.copy(), np.array([0.1, 0.1]))
    np.testing.assert_allclose(skeleton.clamp(pose).fingers, fingers)
    skeleton.clamp(HandPose(pose.fingers, pose.wrist * 100))
    np.testing.assert_array_equal(pose.fingers, fingers)


def test_the_last_joint_follows_the_middle_one():
    straight_tip = skeleton.clamp(bent(1, second=np.radians(100), third=0.0)).fingers[1, 3]
    assert straight_tip > np.radians(10)
    bent_tip = skeleton.clamp(bent(1, second=0.0, third=np.radians(70))).fingers[1, 3]
    assert bent_tip < np.radians(25)


def test_neighbours_are_dragged_along():
    ring = skeleton.clamp(bent(3, first=np.radians(90), second=np.radians(105))).fingers
    assert ring[2, 1] > np.radians(30)
    assert ring[4, 1] > np.radians(30)
    assert ring[1, 1] == 0.0  # the index finger is free


def test_a_bent_finger_cannot_be_spread():
    straight = skeleton.clamp(bent(1, abduction=1.0)).fingers[1, 0]
    fist = skeleton.clamp(bent(1, abduction=1.0, first=np.radians(88))).fingers[1, 0]
    assert fist < 0.3 * straight


def test_shapes_are_decided_by_the_seed_and_vary():
    one, same, other = (skeleton.sample_shape(np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.lengths, same.lengths)
    assert one.size == same.size != other.size
    sizes = [skeleton.sample_shape(np.random.default_rng(s)).size for s in range(200)]
    assert 0.75 <= min(sizes) < 0.85 < 1.1 < max(sizes) <= 1.2
