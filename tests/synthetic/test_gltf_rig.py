"""glTF rigs: a tiny one made here, in every handedness, file form and naming; and a real one."""

import base64
import itertools
import json
import os
import pathlib
import struct

import numpy as np
import pytest

from handpose_jax import hand
from handpose_jax.synthetic.body import gltf_rig, skeleton, types

FINGERS = {'Thumb': 0, 'Index': 1, 'Middle': 2, 'Ring': 3, 'Little': 4}


def godot_names():
    names = ['Wrist_R']
    for finger in FINGERS:
        middle = ['Metacarpal', 'Proximal'] if finger == 'Thumb' else ['Proximal', 'Intermediate']
        names += [f'{finger}_{part}_R' for part in (*middle, 'Distal', 'Tip')]
    return names


def webxr_names():
    names = ['wrist']
    for finger in ('thumb', 'index-finger', 'middle-finger', 'ring-finger', 'pinky-finger'):
        middle = ('phalanx-proximal', 'phalanx-intermediate', 'phalanx-distal', 'tip')
        if finger == 'thumb':
            middle = ('metacarpal', 'phalanx-proximal', 'phalanx-distal', 'tip')
        names += [f'{finger}-{part}' for part in middle]
    return names


def mixamo_names():
    fingers = ('Thumb', 'Index', 'Middle', 'Ring', 'Pinky')
    numbered = [f'mixamorig:RightHand{f}{n}' for f in fingers for n in (1, 2, 3, 4)]
    return ['mixamorig:RightHand', *numbered]


def gently_bent():
    angles = np.zeros((5, 4))
    # Not at the base: there, a bent finger would hollow the palm.
    angles[:, 2:] = np.radians([24, 16])
    return types.HandPose(angles, np.zeros(2))


def keypoints_at_rest():
    return skeleton.forward_kinematics(skeleton.AVERAGE, gently_bent()).keypoints


def tube(start, end, radius, around=6):
    """An open prism around a bone: vertices in two rings, and faces that look outwards."""
    axis = (end - start) / np.linalg.norm(end - start)
    side = np.cross(axis, [0.3, 0.2, 1.0])
    side /= np.linalg.norm(side)
    turn = np.linspace(0, 2 * np.pi, around, endpoint=False)[:, None]
    circle = radius * (np.cos(turn) * side + np.sin(turn) * np.cross(axis, side))
    vertices = np.concatenate([start + circle, end + circle])
    here, there = np.arange(around), (np.arange(around) + 1) % around
    faces = np.concatenate(
        [
            np.column_stack([here, there, there + around]),
            np.column_stack([here, there + around, here + around]),
        ]
    )
    return vertices, faces


def make_rig(
    path, *, names=None, left=False, turn=None, scale=1.0, form='embedded', drop=(), extra=True
):
    """Writes a rig: one tube a bone, rigidly bound, with a palm bone that is no keypoint."""
    keypoints = keypoints_at_rest()
    names = list(names or godot_names())
    parents = [-1] + [0] * 20
    for parent, child in hand.BONES:
        parents[child] = parent
    vertices, faces, joints = [], [], []
    count = 0
    for parent, child in hand.BONES:
        v, f = tube(keypoints[parent], keypoints[child], 0.008 if parent else 0.012)
        vertices.append(v)
        faces.append(f + count)
        joints += [parent] * len(v)
        count += len(v)
    vertices, faces = np.concatenate(vertices), np.concatenate(faces)
    if left:
        vertices, keypoints = vertices * [-1, 1, 1], keypoints * [-1, 1, 1]
        faces = faces[:, ::-1]
    move = np.eye(3) if turn is None else skeleton.rotation(np.array([1.0, 2, 3]), turn)
    vertices = scale * vertices @ move.T + [3.0, 4, 5]
    heads = scale * keypoints @ move.T + [3.0, 4, 5]
    if extra:
        # A palm bone in a frame of its own that no keypoint needs.
        names.append('Palm_R')
        parents.append(0)
        heads = np.concatenate([heads, heads[:1]])
    inverse = np.tile(np.eye(4), (len(heads), 1, 1))
    inverse[:, :3, 3] = -heads
    nodes = [{'name': name} for name in names]
    for child, parent in enumerate(parents):
        if parent >= 0:
            nodes[parent].setdefault('children', []).append(child)
    nodes.append({'mesh': 0, 'skin': 0})
    kept = [n for n in range(len(names)) if names[n] not in drop]

    arrays = [
        (vertices.astype('<f4'), 'VEC3'),
        (np.tile(np.array([0.25, 0.125], '<f4'), (len(vertices), 1)), 'VEC2'),
        (np.pad(np.array(joints)[:, None], ((0, 0), (0, 3))).astype('u1'), 'VEC4'),
        (np.tile(np.array([255, 0, 0, 0], 'u1'), (len(joints), 1)), 'VEC4'),
        (faces.reshape(-1, 1).astype('<u2'), 'SCALAR'),
        (inverse[kept].transpose(0, 2, 1).reshape(-1, 16).astype('<f4'), 'MAT4'),
    ]
    blob, views, accessors = b'', [], []
    for values, kind in arrays:
        blob += b'\0' * (-len(blob) % 4)
        views.append({'buffer': 0, 'byteOffset': len(blob), 'byteLength': values.nbytes})
        accessors.append(
            {
                'bufferView': len(views) - 1,
                'componentType': {'f4': 5126, 'u1': 5121, 'u2': 5123}[values.dtype.str[1:]],
                'count': len(values),
                'type': kind,
                'normalized': len(views) == 4,
            }
        )
        blob += values.tobytes()
    attributes = {'POSITION': 0, 'TEXCOORD_0': 1, 'JOINTS_0': 2, 'WEIGHTS_0': 3}
    document = {
        'asset': {'version': '2.0'},
        'nodes': nodes,
        'meshes': [{'primitives': [{'attributes': attributes, 'indices': 4}]}],
        'skins': [{'joints': kept, 'inverseBindMatrices': 5}],
        'accessors': accessors,
        'bufferViews': views,
        'buffers': [{'byteLength': len(blob)}],
    }
    if form == 'embedded':
        uri = 'data:application/octet-stream;base64,' + base64.b64encode(blob).decode()
        document['buffers'][0]['uri'] = uri
    elif form == 'beside':
        document['buffers'][0]['uri'] = 'buffer.bin'
        (path.parent / 'buffer.bin').write_bytes(blob)
    text = json.dumps(document).encode()
    if form == 'glb':
        text += b' ' * (-len(text) % 4)
        blob += b'\0' * (-len(blob) % 4)
        chunks = struct.pack('<I4s', len(text), b'JSON') + text
        chunks += struct.pack('<I4s', len(blob), b'BIN\0') + blob
        text = struct.pack('<4sII', b'glTF', 2, 12 + len(chunks)) + chunks
    path.write_bytes(text)
    return path


def some_pose(seed=0):
    rng = np.random.default_rng(seed)
    low, high = skeleton.JOINT_LIMITS
    share = rng.uniform(0.1, 0.8, (5, 4))
    return types.HandPose(
        low.fingers + share * (high.fingers - low.fingers), rng.uniform(low.wrist, high.wrist)
    )


def assert_same_body(one, other, atol=2e-6):
    np.testing.assert_allclose(one.keypoints, other.keypoints, atol=atol)
    np.testing.assert_allclose(one.vertices, other.vertices, atol=atol)


def test_the_rest_pose_gives_back_the_rest_keypoints(tmp_path):
    body = gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf'))
    keypoints = body.pose(skeleton.AVERAGE, gently_bent()).keypoints
    expected = keypoints_at_rest()
    length = np.linalg.norm(np.diff(expected[[0, 9, 10, 11, 12]], axis=0), axis=1).sum()
    scale = np.linalg.norm(keypoints[9]) / np.linalg.norm(expected[9])
    assert scale == pytest.approx(gltf_rig.ADULT_LENGTH / length, rel=0.1)
    # The tips are found in the mesh, which here ends at them.
    others = [k for k in range(21) if k not in hand.FINGERTIPS]
    np.testing.assert_allclose(keypoints[others], scale * expected[others], atol=1e-4)
    reach = np.linalg.norm(keypoints[8] - keypoints[7])
    assert reach == pytest.approx(
        scale * np.linalg.norm(expected[8] - expected[7]) - 0.003, abs=1e-4
    )


@pytest.mark.parametrize(
    'variant',
    [
        {'left': True},
        {'turn': 2.0},
        {'scale': 100.0},
        {'left': True, 'turn': -1.0, 'scale': 0.01},
        {'names': webxr_names()},
        {'names': mixamo_names()},
        {'form': 'glb'},
        {'form': 'beside'},
        {'extra': False},
    ],
    ids=lambda v: '-'.join(v),
)
def test_frame_unit_side_names_and_file_form_do_not_matter(tmp_path, variant):
    plain = gltf_rig.GltfRig(make_rig(tmp_path / 'a.gltf'))
    other = gltf_rig.GltfRig(make_rig(tmp_path / 'b.glb', **variant))
    posed, same = (r.pose(skeleton.AVERAGE, some_pose()) for r in (plain, other))
    # Positions 3 m from the origin are stored as float32.
    assert_same_body(posed, same, atol=3e-4 if 'scale' in variant else 2e-5)
    np.testing.assert_array_equal(outward(posed), outward(same))


def outward(body):
    """Whether each face looks away from its nearest bone."""
    corners = body.vertices[body.faces].astype(float)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    steps = np.linspace(0, 1, 9)[:, None]
    points = np.concatenate(
        [body.keypoints[a] * (1 - steps) + body.keypoints[b] * steps for a, b in hand.BONES]
    )
    centres = corners.mean(axis=1)
    nearest = np.linalg.norm(centres[:, None] - points[None], axis=2).argmin(axis=1)
    return (normals * (centres - points[nearest])).sum(axis=1) > 0


@pytest.mark.parametrize('seed', range(3))
def test_directions_are_the_skeletons(tmp_path, seed):
    body = gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf'))
    pose = some_pose(seed)
    keypoints = body.pose(skeleton.AVERAGE, pose).keypoints
    expected = skeleton.forward_kinematics(skeleton.AVERAGE, pose).keypoints

    for chain in hand.FINGERS.values():
        for one, other in itertools.pairwise(chain):
            bone, wanted = keypoints[other] - keypoints[one], expected[other] - expected[one]
            cosine = bone @ wanted / np.linalg.norm(bone) / np.linalg.norm(wanted)
            assert cosine == pytest.approx(1, abs=1e-9)


def test_the_skin_moves_with_its_bone(tmp_path):
    body = gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf'))
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


def test_shape_scales_what_it_says(tmp_path):
    body = gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf'))
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
    axis = (flat.keypoints[7] - flat.keypoints[6]) / np.linalg.norm(
        flat.keypoints[7] - flat.keypoints[6]
    )

    def distance(b):
        off = b.vertices[index] - b.keypoints[6]
        return np.linalg.norm(off - (off @ axis)[:, None] * axis, axis=1)

    np.testing.assert_allclose(distance(thick) / distance(flat), 1.2, rtol=1e-4)


def test_the_wrist_turns_the_forearm_and_nothing_else(tmp_path):
    body = gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf'))
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
    normals = gltf_rig.vertex_normals(vertices, faces)
    expected = vertices * [1, 0, 1] / 0.2
    assert ((normals * expected).sum(axis=1) > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)

    # The same tube with every face's corners doubled.
    split = vertices[faces].reshape(-1, 3)
    own = np.arange(len(split)).reshape(-1, 3)
    welded = faces.ravel()
    np.testing.assert_allclose(
        gltf_rig.vertex_normals(split, own, welded), normals[faces].reshape(-1, 3), atol=1e-6
    )


def test_texture_coordinates_count_v_upwards(tmp_path):
    body = gltf_rig.GltfRig(make_rig(tmp_path / 'r.gltf'))
    posed = body.pose(skeleton.AVERAGE, gently_bent())
    np.testing.assert_allclose(posed.uv, np.tile([[0.25, 0.875]], (len(posed.uv), 1)))


def test_a_rig_that_lacks_bones_names_them(tmp_path):
    path = make_rig(tmp_path / 'r.gltf', drop=('Ring_Tip_R', 'Thumb_Metacarpal_R'))
    with pytest.raises(ValueError, match='lacks 2 of 21 bones') as error:
        gltf_rig.GltfRig(path)
    message = str(error.value)
    assert 'ring_tip' in message
    assert 'thumb_cmc' in message
    assert 'index_tip' not in message
    assert 'Ring_Distal_R' in message
    assert str(path) in message


def test_a_map_of_bones_can_be_given(tmp_path):
    strange = [f'bone {number}' for number in range(21)]
    path = make_rig(tmp_path / 'r.gltf', names=strange)
    with pytest.raises(ValueError, match='lacks 21 of 21 bones'):
        gltf_rig.GltfRig(path)
    bones = dict(zip(hand.KEYPOINT_NAMES, strange, strict=True))
    body = gltf_rig.GltfRig(path, bones=bones)
    plain = gltf_rig.GltfRig(make_rig(tmp_path / 'p.gltf'))
    assert_same_body(*(r.pose(skeleton.AVERAGE, some_pose()) for r in (body, plain)))
    with pytest.raises(ValueError, match=r'lacks 1 of 21.*index_tip \(no such bone\)'):
        gltf_rig.GltfRig(path, bones=bones | {'index_tip': 'no such bone'})
    with pytest.raises(ValueError, match='no keypoints'):
        gltf_rig.GltfRig(path, bones=bones | {'sixth_tip': 'bone 1'})


def test_a_flat_rig_needs_to_be_told_its_side(tmp_path, monkeypatch):
    flat = skeleton.forward_kinematics(skeleton.AVERAGE, skeleton.FLAT).keypoints * [1, 1, 0]
    monkeypatch.setitem(globals(), 'keypoints_at_rest', lambda: flat)
    path = make_rig(tmp_path / 'r.gltf')
    with pytest.raises(ValueError, match='pass is_left'):
        gltf_rig.GltfRig(path)
    posed = gltf_rig.GltfRig(path, is_left=False).pose(skeleton.AVERAGE, skeleton.FLAT)
    assert posed.keypoints[17, 0] > posed.keypoints[5, 0]


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


ASSETS = os.environ.get('HANDPOSE_ASSETS')


@pytest.mark.skipif(not ASSETS, reason='HANDPOSE_ASSETS is not set')
class TestTheCc0Rig:
    @pytest.fixture
    def folder(self):
        return pathlib.Path(str(ASSETS)) / 'hands' / 'rig_cc0'

    def test_left_is_right_mirrored(self, folder):
        left, right = (gltf_rig.GltfRig(folder / f'Hand_Nails_{side}.gltf') for side in 'LR')
        for seed in range(3):
            posed = [r.pose(skeleton.AVERAGE, some_pose(seed)) for r in (left, right)]
            np.testing.assert_allclose(posed[0].keypoints, posed[1].keypoints, atol=5e-4)

    @pytest.mark.parametrize('name', ['hand_r', 'Hand_Nails_R', 'Hand_Glove_R'])
    def test_keypoints_are_inside_the_flesh(self, folder, name):
        body = gltf_rig.GltfRig(folder / f'{name}.gltf')
        for seed in range(4):
            posed = body.pose(skeleton.AVERAGE, some_pose(seed))
            assert all(winding_number(posed, point) > 0.5 for point in posed.keypoints)

    def test_the_hand_is_an_adults(self, folder):
        posed = gltf_rig.GltfRig(folder / 'hand_r.gltf').pose(skeleton.AVERAGE, skeleton.FLAT)
        assert posed.keypoints[12, 1] == pytest.approx(0.182, abs=0.006)
        assert posed.vertices[:, 1].min() < -0.3


def winding_number(body, point):
    """How often the surface surrounds a point: 1 inside, 0 outside (Van Oosterom and Strackee)."""
    a, b, c = np.moveaxis(body.vertices[body.faces].astype(float) - point, 1, 0)
    la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
    top = (a * np.cross(b, c)).sum(axis=1)
    bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return 2 * np.arctan2(top, bottom).sum() / (4 * np.pi)
