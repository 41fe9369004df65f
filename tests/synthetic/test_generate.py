"""Scenes: the same bytes every time, and labels that agree with the picture."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from references import cast, looks_along, make_rig, winding

from handpose_jax import hand
from handpose_jax.synthetic.body import poses, skeleton
from handpose_jax.synthetic.generate import generate
from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene import (
    dressing,
    ingredients,
    labels,
    materials,
    props,
    shapes,
    staging,
)
from handpose_jax.synthetic.scene.options import SceneOptions
from handpose_jax.synthetic.scene.staging import stage

SIZE = 64


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    rig = make_rig(tmp_path_factory.mktemp('rig') / 'r.gltf')
    return SceneOptions(size=SIZE, samples=1, rigs=(str(rig),), resolution=(1.0, 1.0))


@pytest.fixture(scope='module')
def hands(options):
    return [generate(options, 3, index) for index in range(10)]


def digest(rendered):
    code = hashlib.sha256()
    for value in rendered:
        code.update(np.asarray(value).tobytes())
    return code.hexdigest()


def test_twice_the_same_bytes_here_and_in_another_process(options, hands):
    assert [digest(generate(options, 3, i)) for i in (0, 4)] == [digest(hands[i]) for i in (0, 4)]
    program = f"""
import sys; sys.path.insert(0, {__file__.rsplit('/', 1)[0]!r})
from test_generate import SceneOptions, digest, generate
from handpose_jax.synthetic.render import mitsuba_renderer
mitsuba_renderer.set_threads(2)
print(digest(generate({options!r}, 3, 4)))
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest(hands[4])


def test_every_index_and_seed_is_another_picture(options, hands):
    assert len({digest(h) for h in hands}) == len(hands)
    assert digest(generate(options, 4, 0)) != digest(hands[0])


def test_labels_fit_each_other_and_the_hand_is_in_the_picture(hands):
    for rendered in hands:
        points = rendered.keypoints_3d.astype(float)
        x = rendered.camera[0, 0] * points[:, 0] / points[:, 2] + rendered.camera[0, 2]
        y = rendered.camera[1, 1] * points[:, 1] / points[:, 2] + rendered.camera[1, 2]
        np.testing.assert_allclose(rendered.keypoints, np.column_stack([x, y]), atol=1e-3)
        assert rendered.image.shape == (SIZE, SIZE, 3)
        assert rendered.image.dtype == np.uint8
        assert rendered.mask.dtype == np.uint8
        assert rendered.keypoints.dtype == rendered.keypoints_3d.dtype == np.float32
        assert rendered.visible.dtype == bool
        assert rendered.camera.dtype == np.float64
        assert set(np.unique(rendered.mask)) <= {0, labels.HAND, labels.FOREARM}
        inside = ((rendered.keypoints > -0.5) & (rendered.keypoints < SIZE - 0.5)).all(axis=1)
        assert inside.mean() > 0.6
        low, high = rendered.keypoints.min(axis=0), rendered.keypoints.max(axis=0)
        assert 1.4 < SIZE / (high - low).max() < 3.0


def test_visibility_is_that_of_a_brute_force_ray_test(options, hands):
    hidden = 0
    for index, rendered in enumerate(hands):
        picture, about = stage(options, 3, index)
        meshes = [(surface.vertices, surface.faces) for surface in picture.scene.surfaces]
        depths, which = cast(meshes, about.keypoints_3d)
        own = np.isin(np.array([*about.parts, ''])[which], ['hand', 'worn'])
        before = about.keypoints_3d[:, 2] - depths
        inside = ((rendered.keypoints >= -0.5) & (rendered.keypoints <= SIZE - 0.5)).all(axis=1)
        expected = inside & (before <= np.where(own, about.flesh, 0))
        # A ray through an edge may go either way.
        unclear = np.abs(before - np.where(own, about.flesh, 0)) < 1e-5
        np.testing.assert_array_equal(rendered.visible[~unclear], expected[~unclear])
        hidden += int((inside & ~expected).sum())
    assert hidden > 10


def thing_of(vertices, faces, **more):
    white = mitsuba_renderer.Material(np.ones(3))
    return ingredients.Item(mitsuba_renderer.Surface(vertices, faces, white, **more), 'thing', 0)


def test_a_thing_before_the_hand_hides_it_and_only_where_it_is(options, monkeypatch):
    plain = replace(options, occlusion=False, skin_variety=False)
    before = generate(plain, 3, 1)
    shield = {}

    def add_table(items, rng, opts, view):
        point = view.keypoints[8]
        thing = shapes.moved(shapes.ball(0.012), np.eye(3), point * (1 - 0.05 / point[2]))
        shield['centre'] = thing.vertices.mean(axis=0)
        items.append(thing_of(thing.vertices, thing.faces, normals=thing.normals))

    monkeypatch.setattr(ingredients, 'add_table', add_table)
    monkeypatch.setattr(staging, '_window', lambda items, camera, size: (0, 0, size, size))
    monkeypatch.setattr(staging, '_TABLE_SHARE', 1.0)
    after = generate(plain, 3, 1)

    np.testing.assert_array_equal(before.keypoints, after.keypoints)
    assert not after.visible[8]
    angle = after.keypoints_3d / np.linalg.norm(after.keypoints_3d, axis=1, keepdims=True)
    towards = shield['centre'] / np.linalg.norm(shield['centre'])
    away = np.arccos(np.clip(angle @ towards, -1, 1)) > 0.013 / np.linalg.norm(shield['centre'])
    np.testing.assert_array_equal(before.visible[away], after.visible[away])


def test_the_mask_is_the_silhouette_of_the_projected_mesh(options):
    bare, fine = replace(options, occlusion=False, skin_variety=False), 8
    for index in range(4):
        picture, about = stage(bare, 3, index)
        rendered = generate(bare, 3, index)
        canvas = np.zeros((SIZE * fine, SIZE * fine), np.uint8)
        for surface, value in zip(picture.scene.surfaces, about.mask_values, strict=True):
            if value:
                seen = surface.vertices @ picture.scene.camera.T
                points = (seen[:, :2] / seen[:, 2:] + 0.5) * fine - 0.5
                for face in points[surface.faces]:
                    cv2.fillConvexPoly(canvas, np.round(face).astype(np.int32), 1)
        drawn = canvas[fine // 2 :: fine, fine // 2 :: fine] > 0
        differs = drawn != (rendered.mask > 0)
        # OpenCV draws whole pixels of the fine canvas: only the outline may differ.
        outline = cv2.morphologyEx(
            drawn.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
        assert not (differs & (outline == 0)).any()
        assert differs.sum() < 0.25 * outline.sum()


def test_resolution_changes_the_sharpness_and_no_label(options):
    sharp = replace(options, size=128)
    coarse = replace(sharp, resolution=(0.4, 0.4))
    for index in range(3):
        one, other = generate(sharp, 3, index), generate(coarse, 3, index)
        for field in ('keypoints', 'visible', 'camera'):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        assert one.image.shape == other.image.shape
        # The masks cover the same place, to within the coarser picture's pixels.
        covered, near = (one.mask > 0).astype(np.uint8), np.ones((7, 7), np.uint8)
        assert ((other.mask > 0) <= cv2.dilate(covered, near)).all()
        assert ((other.mask > 0) >= cv2.erode(covered, near)).all()


def test_without_a_hand_there_are_things_and_nothing_of_a_hand(options, hands):
    none = replace(options, without_hand=1.0)
    for index in range(3):
        rendered = generate(none, 3, index)
        assert not rendered.has_hand
        assert not rendered.visible.any()
        assert not rendered.mask.any()
        assert np.ptp(rendered.image) > 10
        _, staged = stage(none, 3, index)
        assert set(staged.parts) == {'thing'}
        # What is drawn for the hand stays as it was: the place, the light and what is behind.
        np.testing.assert_array_equal(rendered.keypoints, hands[index].keypoints)
        np.testing.assert_array_equal(rendered.camera, hands[index].camera)
        assert digest(generate(none, 3, index)) == digest(rendered)


def test_a_share_of_the_pictures_is_without_a_hand_and_the_others_are_as_they_were(options, hands):
    some = replace(options, without_hand=0.3)
    found = [generate(some, 3, index) for index in range(10)]
    assert 1 <= sum(not one.has_hand for one in found) <= 6
    for one, other in zip(found, hands, strict=True):
        if one.has_hand:
            assert digest(one) == digest(other)
    assert all(one.has_hand for one in hands)


def test_left_is_right_mirrored(options):
    for index in range(6):
        sides = [stage(replace(options, left_share=share), 3, index) for share in (0.0, 1.0)]
        right, left = (about for _, about in sides)
        assert (left.is_left, right.is_left) == (True, False)
        # The best proper motion does not bring one onto the other, a mirrored one does.
        a, b = (s.keypoints_3d - s.keypoints_3d.mean(axis=0) for s in (right, left))
        u, _, vt = np.linalg.svd(a.T @ b)
        motion = u @ vt
        assert np.linalg.det(motion) < 0
        np.testing.assert_allclose(a @ motion, b, atol=1e-9)
        # The meshes still look outwards.
        for picture, _ in sides:
            surface = picture.scene.surfaces[0]
            normals = surface.normals[surface.faces].mean(axis=1)
            assert (looks_along(surface.vertices, surface.faces, normals) > 0).mean() > 0.98


def test_a_hand_that_is_all_hidden_is_uncovered(options, monkeypatch):
    def wall(items, rng, posed, shape, view):
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.1
        vertices = np.column_stack([corners, np.full(4, 0.06)])
        items.append(thing_of(vertices, np.array([[0, 2, 1], [0, 3, 2]])))

    monkeypatch.setattr(ingredients, 'add_things', wall)
    picture, about = stage(options, 3, 0)
    assert 'thing' not in about.parts
    assert labels.find_visible(picture, about, SIZE).sum() >= 6


def test_half_of_the_hands_are_left(options):
    share = np.mean([stage(options, 5, index)[1].is_left for index in range(40)])
    assert 0.25 < share < 0.75


@pytest.mark.parametrize(
    'change',
    [{'lighting': 'flat'}, {'occlusion': False}, {'skin_variety': False}, {'backgrounds': 'plain'}],
    ids=str,
)
def test_switches_leave_pose_and_view_alone(options, change):
    for index in range(3):
        full, less = (stage(o, 3, index)[1] for o in (options, replace(options, **change)))
        np.testing.assert_array_equal(full.keypoints_3d, less.keypoints_3d)


def test_switches_do_what_they_say(options):
    for index in range(12):
        flat = stage(replace(options, lighting='flat'), 3, index)[0].scene
        assert len(flat.lights) == 0
        assert np.ptp(flat.environment) == 0
        _, free = stage(replace(options, occlusion=False, backgrounds='plain'), 3, index)
        assert 'thing' not in free.parts
        plain = stage(replace(options, skin_variety=False), 3, index)[0].scene
        expected = materials.skin_colour(materials.AVERAGE_TONE)
        np.testing.assert_allclose(plain.surfaces[0].material.colour, expected)


def test_photographs_and_textures_are_used(options, tmp_path):
    photos, textures = tmp_path / 'photos', tmp_path / 'textures'
    photos.mkdir()
    textures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        cv2.imwrite(str(photos / f'{number}.png'), cv2.GaussianBlur(pixels, (0, 0), 3))
    for name in ('light_baseColor', 'dark_baseColor', 'work_glove', 'skin_normal', 'roughness'):
        pixels = rng.integers(90, 200, (32, 32, 3), dtype=np.uint8)
        if 'normal' in name:
            pixels[:] = (255, 128, 128)
        cv2.imwrite(str(textures / f'{name}.png'), pixels)
    assert len(materials.read_textures(str(textures)).skins) == 2
    changed = replace(options, backgrounds='photos', photos=str(photos), textures=str(textures))
    kinds = set()
    for index in range(25):
        picture, about = stage(changed, 3, index)
        material = picture.scene.surfaces[0].material
        kinds.add((np.ndim(material.colour), material.bumps is not None))
        assert about.backdrop.shape == (SIZE, SIZE, 3)
    assert (3, True) in kinds
    generate(changed, 3, 0)


def test_gloves_rings_sleeves_things_and_tables_all_render(options, monkeypatch):
    monkeypatch.setattr(dressing, '_GLOVE_SHARE', 0.5)
    monkeypatch.setattr(staging, '_TABLE_SHARE', 0.5)
    for name in ('_OTHER_HAND_SHARE', '_IN_FRONT_SHARE', '_RING_SHARE'):
        monkeypatch.setattr(ingredients, name, 0.7)
    for index in range(8):
        rendered = generate(options, 6, index)
        assert np.isfinite(rendered.keypoints_3d).all()
        assert rendered.image.std() > 0


def test_gloves_that_leave_fingers_bare_are_not_used(tmp_path, monkeypatch):
    # The rig of these tests has no texture coordinates that tell a fingertip from the back.
    back, tips = np.array([[0.25, 0.25]]), np.array([[0.75, 0.75]])
    monkeypatch.setattr(dressing, '_sides', lambda source: (back, back, tips))
    for name, tip in (('skin', 150), ('whole_glove', 45), ('fingerless_glove', 200)):
        pixels = np.full((materials.TEXTURE_SIZE, materials.TEXTURE_SIZE, 3), 40, np.uint8)
        pixels[: materials.TEXTURE_SIZE // 2, materials.TEXTURE_SIZE // 2 :] = tip
        cv2.imwrite(str(tmp_path / f'{name}.png'), pixels)

    assert len(materials.read_textures(str(tmp_path)).gloves) == 2
    (glove,) = dressing._gloves(str(tmp_path), staging._bundled(None))
    assert np.ptp(glove) < 0.01


def test_a_sleeve_changes_neither_view_nor_pose(monkeypatch):
    plain = SceneOptions(size=SIZE, occlusion=False)
    sides = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(staging, '_SLEEVE_SHARE', share)
        sides.append([stage(plain, 3, index) for index in range(4)])
    for (_, bare), (_, clothed) in zip(*sides, strict=True):
        np.testing.assert_array_equal(bare.keypoints_3d, clothed.keypoints_3d)
        np.testing.assert_array_equal(bare.camera, clothed.camera)
    materials_of = [
        {id(surface.material) for picture, _ in side for surface in picture.scene.surfaces}
        for side in sides
    ]
    assert len(materials_of[1]) > len(materials_of[0])


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'lighting': 'dim'}, 'lighting'),
        ({'backgrounds': 'beach'}, 'backgrounds'),
        ({'backgrounds': 'photos'}, 'set photos'),
        ({'size': 8}, 'size'),
        ({'samples': 0}, 'samples'),
        ({'left_share': 1.5}, 'left_share'),
        ({'without_hand': -0.1}, 'without_hand'),
        ({'resolution': (0.5, 1.1)}, 'resolution'),
        ({'resolution': (0.9, 0.5)}, 'resolution'),
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SceneOptions(**values)


def test_missing_files_are_named(options, tmp_path):
    empty = replace(options, backgrounds='photos', photos=str(tmp_path))
    with pytest.raises(ValueError, match=str(tmp_path)):
        [generate(empty, 0, index) for index in range(5)]
    with pytest.raises(ValueError, match=str(tmp_path)):
        generate(replace(options, textures=str(tmp_path)), 0, 0)


def test_skin_runs_from_light_to_dark():
    tones = [materials.SkinTone(m, 0.5) for m in np.linspace(0.02, 2.3, 20)]
    colours = np.array([materials.skin_colour(tone) for tone in tones])
    assert (np.diff(colours, axis=0) < 0).all()
    assert (colours[:, 0] > colours[:, 1]).all()
    assert (colours[:, 1] > colours[:, 2]).all()
    assert colours[0].mean() > 0.55
    assert colours[-1].mean() < 0.08
    rng = np.random.default_rng(0)
    drawn = np.array([materials.sample_tone(rng).melanin for _ in range(500)])
    assert np.quantile(drawn, 0.1) < 0.4
    assert np.quantile(drawn, 0.9) > 1.6


@pytest.mark.parametrize(
    'shape',
    [
        shapes.ball(0.5),
        shapes.box(np.array([1.0, 1.2, 0.8])),
        shapes.cylinder(0.5, 1.5),
        shapes.bottle(0.5, 1.5),
    ],
    ids=['ball', 'box', 'cylinder', 'bottle'],
)
def test_shapes_are_closed_and_look_outwards(shape):
    turns = winding(shape.vertices, shape.faces, [[0.01, 0.02, 0.03], [2.0, 0, 0]])
    np.testing.assert_allclose(turns, [1, 0], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(shape.normals, axis=1), 1, atol=1e-6)
    agree = looks_along(shape.vertices, shape.faces, shape.normals[shape.faces].mean(axis=1))
    assert (agree > -1e-9).mean() > 0.98


def test_a_ring_surrounds_its_axis_and_not_its_hole():
    ring = shapes.ring(1.0, 0.2, flat=1.0)
    turns = winding(ring.vertices, ring.faces, [[1.0, 0.0, 0.02], [0.0, 0.01, 0.0]])
    np.testing.assert_allclose(turns, [1, 0], atol=1e-3)


@pytest.mark.parametrize('seed', range(12))
def test_held_things_run_through_no_bone(seed):
    rng = np.random.default_rng(seed)
    pose = poses.sample_pose(rng)
    keypoints = skeleton.forward_kinematics(skeleton.AVERAGE, pose).keypoints
    thing = props.held(rng, keypoints, 1.0)
    if thing is None:
        return
    steps = np.linspace(0, 1, 11)[:, None]
    for parent, child in hand.BONES:
        points = keypoints[parent] * (1 - steps) + keypoints[child] * steps
        assert np.abs(winding(thing.vertices, thing.faces, points)).max() < 0.5
