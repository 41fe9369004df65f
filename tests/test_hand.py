"""The table of keypoints is one consistent tree."""

import pytest

from handpose_jax import hand


def test_the_names_follow_the_order_of_the_data_sets():
    assert len(hand.KEYPOINT_NAMES) == hand.NUM_KEYPOINTS == 21
    assert len(set(hand.KEYPOINT_NAMES)) == 21
    assert hand.KEYPOINT_NAMES[hand.WRIST] == 'wrist'
    assert hand.KEYPOINT_NAMES[1:5] == ('thumb_cmc', 'thumb_mcp', 'thumb_ip', 'thumb_tip')
    assert hand.KEYPOINT_NAMES[5:9] == ('index_mcp', 'index_pip', 'index_dip', 'index_tip')
    assert hand.KEYPOINT_NAMES[20] == 'little_tip'


def test_the_fingers_and_the_wrist_are_all_keypoints_once():
    indices = [hand.WRIST, *(i for finger in hand.FINGERS.values() for i in finger)]
    assert indices == list(range(21))


def test_the_fingertips_are_named_tips():
    assert hand.FINGERTIPS == (4, 8, 12, 16, 20)
    assert all(hand.KEYPOINT_NAMES[tip].endswith('_tip') for tip in hand.FINGERTIPS)


def test_the_bones_are_a_tree_with_the_wrist_as_root():
    children = [child for _, child in hand.BONES]
    assert sorted(children) == list(range(1, 21))
    parent_of = {child: parent for parent, child in hand.BONES}
    for keypoint in range(1, 21):
        steps = 0
        while keypoint != hand.WRIST:
            keypoint = parent_of[keypoint]
            steps += 1
            assert steps <= 4


@pytest.mark.parametrize(('parent', 'child'), hand.BONES)
def test_a_bone_stays_in_its_finger(parent, child):
    finger = hand.KEYPOINT_NAMES[child].split('_')[0]
    assert parent == hand.WRIST or hand.KEYPOINT_NAMES[parent].startswith(finger)


def test_every_keypoint_has_its_fingers_colour():
    for finger, indices in hand.FINGERS.items():
        assert {hand.keypoint_colour(i) for i in indices} == {hand.FINGER_COLOURS[finger]}
    assert hand.keypoint_colour(0) == hand.WRIST_COLOUR
    colours = {hand.WRIST_COLOUR, *hand.FINGER_COLOURS.values()}
    assert len(colours) == 6
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


@pytest.mark.parametrize('keypoint', [-1, 21])
def test_a_colour_of_no_keypoint_is_an_error(keypoint):
    with pytest.raises(ValueError, match=rf'0\.\.20, got {keypoint}'):
        hand.keypoint_colour(keypoint)
