"""glTF rigs: a tiny one made here, in every handedness, file form and naming; and a real one."""

import itertools

import numpy as np
import pytest
from references import gently_bent, keypoints_at_rest, looks_along, make_rig, tube, winding

from handpose_jax import hand
from handpose_jax.synthetic.body import gltf_rig, meshes, skeleton, types

PARTS = ('phalanx-proximal', 'phalanx-intermediate', 'phalanx-distal', 'tip')
WEBXR_NAMES = [
    *('wrist', 'thumb-metacarpal', 'thumb-phalanx-proximal', 'thumb-phalanx-distal', 'thumb-tip'),
    *(f'{f}-finger-{part}' for f in ('index', 'middle', 'ring', 'pinky') for part in PARTS),
]
MIXAMO_NAMES = ['', *(f + n for f in ('Thumb', 'Index', 'Middle', 'Ring', 'Pinky') for n in '1234')]
MIXAMO_NAMES = [f'mixamorig:RightHand{name}' for name in MIXAMO_NAMES]


def some_pose(seed=0):
    rng = np.random.default_rng(seed)
    low, high = skeleton.JOINT_LIMITS
    share = rng.uniform(0.1, 0.8, (5, 4))
    return types.HandPose(
        low.fingers + share * (high.fingers - low.fingers), rng.uniform(low.wrist, high.wrist)
    )


@pytest.fixture(scope='module')
def body(tmp_path_factory):
    return gltf_rig.GltfRig(make_rig(tmp_path_factory.mktemp('rig') / 'r.gltf'))


def test_the_rest_pose_gives_back_the_rest_keypoints(body):
    keypoints = body.pose(skeleton.AVERAGE, gently_bent()).keypoints
    expected = keypoints_at_rest()
    length = np.linalg.norm(np.diff(expected[[0, 9, 10, 11, 12]], axis=0), axis=1).sum()
    scale = np.linalg.norm(keypoints[9]) / np.linalg.norm(expected[9])
    assert scale == pytest.approx(gltf_rig.ADULT_LENGTH / length, rel=0.1)
    # The tips are found in the mesh, which here ends at them.
    others = [k for k in range(21) if k not in hand.FINGERTIPS]
    np.testing.assert_allclose(keypoints[others], scale * expected[others], atol=1e-4)
    reach = np.linalg.norm(keypoints[8] - keypoints[7])
    last = scale * np.linalg.norm(expected[8] - expected[7])
    assert reach == pytest.approx(last - 0.003, abs=1e-4)


@pytest.mark.parametrize(
    'variant',
    [
        {'left': True},
        {'turn': 2.0},
        {'scale': 100.0},
        {'left': True, 'turn': -1.0, 'scale': 0.01},
        {'names': WEBXR_NAMES},
        {'names': MIXAMO_NAMES},
        {'form': 'glb'},
        {'form': 'beside'},
        {'extra': False},
    ],
    ids=lambda v: '-'.join(v),
)
def test_frame_unit_side_names_and_file_form_do_not_matter(body, tmp_path, variant):
    other = gltf_rig.GltfRig(make_rig(tmp_path / 'b.glb', **variant))
    posed, same = (r.pose(skeleton.AVERAGE, some_pose()) for r in (body, other))
    # Positions 3 m from the origin are stored as float32.
    atol = 3e-4 if 'scale' in variant else 2e-5
    np.testing.assert_allclose(posed.keypoints, same.keypoints, atol=atol)
    np.testing.assert_allclose(posed.vertices, same.vertices, atol=atol)
    np.testing.assert_array_equal(outward(posed), outward(same))


def outward(body):
    """Whether each face looks away from its nearest bone."""
    steps = np.linspace(0, 1, 9)[:, None]
    points = np.concatenate(
        [body.keypoints[a] * (1 - steps) + body.keypoints[b] * steps for a, b in hand.BONES]
    )
    centres = body.vertices[body.faces].astype(float).mean(axis=1)
    nearest = np.linalg.norm(centres[:, None] - points[None], axis=2).argmin(axis=1)
    return looks_along(body.vertices, body.faces, centres - points[nearest]) > 0


@pytest.mark.parametrize('seed', range(3))
def test_directions_are_the_skeletons(body, seed):
    pose = some_pose(seed)
    keypoints = body.pose(skeleton.AVERAGE, pose).keypoints
    expected = skeleton.forward_kinematics(skeleton.AVERAGE, pose).keypoints

    for chain in hand.FINGERS.values():
        for one, other in itertools.pairwise(chain):
            bone, wanted = keypoints[other] - keypoints[one], expected[other] - expected[one]
            cosine = bone @ wanted / np.linalg.norm(bone) / np.linalg.norm(wanted)
            assert cosine == pytest.approx(1, abs=1e-9)


def test_the_skin_moves_with_its_bone(body):
    rest, bent = (body.pose(skeleton.AVERAGE, p) for p in (gently_bent(), some_pose()))
    # The tubes are rigidly bound: distances to both ends of a bone stay.
    for number, (parent, child) in enumerate(hand.BONES):
        if parent == hand.WRIST or child in hand.FINGERTIPS:
            continue
        own = slice(12 * number, 12 * number + 12)
        for end in (parent, child):
            before, after = (
                np.linalg.norm(b.vertices[own] - b.keypoints[end], axis=1) for b in (rest, bent)
            )
            np.testing.assert_allclose(before, after, atol=1e-5)


def test_shape_scales_what_it_says(body):
    plain = body.pose(skeleton.AVERAGE, some_pose())
    large = body.pose(skeleton.AVERAGE._replace(size=1.3), some_pose())
    np.testing.assert_allclose(large.keypoints, 1.3 * plain.keypoints, atol=1e-9)
    np.testing.assert_allclose(large.vertices, 1.3 * plain.vertices, atol=1e-6)

    lengths = np.array([1.0, 1.0, 1.25, 1.0, 1.0])
    long = body.pose(skeleton.AVERAGE._replace(lengths=lengths), some_pose())
    bones = np.array(hand.BONES)
    before, after = (
        np.linalg.norm(np.diff(b.keypoints[bones], axis=1), axis=2)[:, 0] for b in (plain, long)
    )
    expected = np.where(np.isin(bones[:, 1], [10, 11, 12]), 1.25, 1.0)
    np.testing.assert_allclose(after / before, expected, rtol=1e-9)

    thick = body.pose(skeleton.AVERAGE._replace(thickness=1.2), skeleton.FLAT)
    flat = body.pose(skeleton.AVERAGE, skeleton.FLAT)
    index = 12 * list(map(tuple, hand.BONES)).index((6, 7)) + np.arange(12)
    axis = flat.keypoints[7] - flat.keypoints[6]
    axis /= np.linalg.norm(axis)

    def distance(b):
        off = b.vertices[index] - b.keypoints[6]
        return np.linalg.norm(off - (off @ axis)[:, None] * axis, axis=1)

    np.testing.assert_allclose(distance(thick) / distance(flat), 1.2, rtol=1e-4)


def test_the_wrist_turns_the_forearm_and_nothing_else(body):
    straight = body.pose(skeleton.AVERAGE, gently_bent())
    turned = body.pose(skeleton.AVERAGE, gently_bent()._replace(wrist=np.array([0.6, 0.2])))
    np.testing.assert_array_equal(straight.keypoints, turned.keypoints)
    moved = np.linalg.norm(straight.vertices - turned.vertices, axis=1) > 1e-6
    assert moved.any()
    assert straight.vertices[moved, 1].max() < 0.015
    # Flexion and ulnar deviation bring the forearm's far end to the palm's and the little finger's
    # side of the hand.
    far = straight.vertices[:, 1] < straight.vertices[:, 1].min() + 0.02
    shift = (turned.vertices - straight.vertices)[far].mean(axis=0)
    assert shift[2] < -0.02
    assert shift[0] > 0.02


def test_normals_are_those_of_the_faces_and_seams_are_smooth():
    vertices, faces = tube(np.zeros(3), np.array([0, 1.0, 0]), 0.2, around=24)
    normals = meshes.vertex_normals(vertices, faces)
    expected = vertices * [1, 0, 1] / 0.2
    assert ((normals * expected).sum(axis=1) > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)

    # The same tube with every face's corners doubled.
    split = vertices[faces].reshape(-1, 3)
    own = np.arange(len(split)).reshape(-1, 3)
    welded = faces.ravel()
    again = meshes.vertex_normals(split, own, welded)
    np.testing.assert_allclose(again, normals[faces].reshape(-1, 3), atol=1e-6)


def test_texture_coordinates_count_v_upwards(body):
    posed = body.pose(skeleton.AVERAGE, gently_bent())
    np.testing.assert_allclose(posed.uv, np.tile([[0.25, 0.875]], (len(posed.uv), 1)))


def test_a_rig_that_lacks_bones_names_them(tmp_path):
    path = make_rig(tmp_path / 'r.gltf', drop=('Ring_Tip_R', 'Thumb_Metacarpal_R'))
    with pytest.raises(ValueError, match='lacks 2 of 21 bones') as error:
        gltf_rig.GltfRig(path)
    message = str(error.value)
    for part in ('ring_tip', 'thumb_cmc', 'Ring_Distal_R', str(path)):
        assert part in message
    assert 'index_tip' not in message


def test_a_flat_rig_does_not_tell_its_side_and_is_refused(tmp_path):
    flat = skeleton.forward_kinematics(skeleton.AVERAGE, skeleton.FLAT).keypoints * [1, 1, 0]
    with pytest.raises(ValueError, match='fingers are straight at rest'):
        gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf', keypoints=flat))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'no json', 'not a glTF 2.0 file'),
        (b'{"asset": {}}', 'not a glTF 2.0 file'),
        (b'{"buffers": [], "nodes": []}', 'no mesh with a skin'),
        (b'[1]', 'not a glTF 2.0 file'),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / 'x.gltf'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        gltf_rig.GltfRig(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ('bone', 'plain'),
    [
        ('Index_Proximal_R', 'indexproximal'),
        ('index-finger-phalanx-proximal', 'indexfingerphalanxproximal'),
        ('mixamorig:LeftHandRing4', 'handring4'),
        ('L_Wrist', 'wrist'),
        ('LeftIndexDistal', 'indexdistal'),
        ('wrist.R', 'wrist'),
    ],
)
def test_plain_names(bone, plain):
    assert gltf_rig.plain_name(bone) == plain


def test_no_name_means_two_keypoints():
    names = [name for aliases in gltf_rig.BONE_NAMES.values() for name in set(aliases)]
    assert len(names) == len(set(names))


@pytest.fixture
def real_rig(assets):
    return lambda name: gltf_rig.GltfRig(assets / 'hands' / 'rig_cc0' / f'{name}.gltf')


def test_a_real_left_rig_is_the_right_one_mirrored(real_rig):
    left, right = (real_rig(f'Hand_Nails_{side}') for side in 'LR')
    for seed in range(3):
        posed = [r.pose(skeleton.AVERAGE, some_pose(seed)) for r in (left, right)]
        np.testing.assert_allclose(posed[0].keypoints, posed[1].keypoints, atol=5e-4)


@pytest.mark.parametrize('name', ['hand_r', 'Hand_Nails_R', 'Hand_Glove_R'])
def test_keypoints_of_a_real_rig_are_inside_the_flesh(real_rig, name):
    body = real_rig(name)
    for seed in range(4):
        posed = body.pose(skeleton.AVERAGE, some_pose(seed))
        assert winding(posed.vertices, posed.faces, posed.keypoints).min() > 0.5


def test_a_real_hand_is_an_adults(real_rig):
    posed = real_rig('hand_r').pose(skeleton.AVERAGE, skeleton.FLAT)
    assert posed.keypoints[12, 1] == pytest.approx(0.182, abs=0.006)
    assert posed.vertices[:, 1].min() < -0.3
