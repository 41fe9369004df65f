"""Boxes and affine maps: invariants, and agreement with OpenCV, PIL and complex arithmetic."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from handpose_jax import geometry

SEEDS = range(8)


def random_box(rng):
    centre = rng.uniform(-50, 400, 2)
    half = rng.uniform(5, 200)
    return np.concatenate([centre - half, centre + half])


def random_crop(rng, size=64):
    return geometry.crop_from_image(
        random_box(rng),
        size,
        rotation=rng.uniform(-math.pi, math.pi),
        mirror=bool(rng.integers(2)),
    )


def blob(height, width, point, sigma=2.0):
    y, x = np.mgrid[:height, :width]
    distance = (x - point[0]) ** 2 + (y - point[1]) ** 2
    return np.exp(-distance / (2 * sigma**2)).astype(np.float32)


def centroid(image):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * image).sum(), (y * image).sum()]) / image.sum()


def test_the_whole_image_box_has_the_images_size_and_centre():
    box = geometry.whole_image_box(30, 50)
    np.testing.assert_array_equal(box[2:] - box[:2], [50, 30])
    np.testing.assert_array_equal((box[2:] + box[:2]) / 2, [24.5, 14.5])


def test_cropping_a_whole_square_image_to_its_own_size_moves_nothing():
    identity = geometry.crop_from_image(geometry.whole_image_box(40, 40), 40)
    np.testing.assert_allclose(identity, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_the_keypoint_box_is_tight_around_the_counted_points_only():
    keypoints = np.array([[3.0, 8.0], [-2.0, 5.0], [100.0, 100.0]])
    box = geometry.keypoint_box(keypoints, np.array([True, True, False]))
    np.testing.assert_array_equal(box, [-2, 5, 3, 8])
    assert geometry.longest_side(box) == 5


def test_a_box_around_nothing_is_an_error():
    with pytest.raises(ValueError, match='no keypoint is counted'):
        geometry.keypoint_box(np.zeros((3, 2)), np.zeros(3, bool))


@pytest.mark.parametrize('seed', SEEDS)
def test_a_square_box_keeps_the_centre_and_scales_the_longest_side(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-100, 100, 2)
    box = np.concatenate([low, low + rng.uniform(1, 80, 2)])
    square = geometry.square_box(box, 2.2)
    np.testing.assert_allclose((square[:2] + square[2:]) / 2, (box[:2] + box[2:]) / 2)
    np.testing.assert_allclose(square[2:] - square[:2], 2.2 * geometry.longest_side(box))


@pytest.mark.parametrize('seed', SEEDS)
def test_a_crop_shows_the_boxs_corners_at_its_own_corners(seed):
    rng = np.random.default_rng(seed)
    box, size = random_box(rng), int(rng.integers(8, 300))
    corners = np.array([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]])
    moved = geometry.apply_affine(geometry.crop_from_image(box, size), corners)
    edge = size - 0.5
    expected = [[-0.5, -0.5], [edge, -0.5], [edge, edge], [-0.5, edge]]
    np.testing.assert_allclose(moved, expected, atol=1e-9)


@pytest.mark.parametrize('seed', SEEDS)
def test_a_crop_is_a_rotation_about_the_boxs_centre(seed):
    # The reference is complex arithmetic: with y down, exp(i angle) turns clockwise on the screen.
    rng = np.random.default_rng(seed)
    box, size, angle = random_box(rng), 96, rng.uniform(-math.pi, math.pi)
    points = rng.uniform(-100, 500, (5, 2))
    centre = complex((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    turned = (points @ [1, 1j] - centre) * np.exp(1j * angle) * size / (box[2] - box[0])
    turned += complex(47.5, 47.5)
    moved = geometry.apply_affine(geometry.crop_from_image(box, size, rotation=angle), points)
    np.testing.assert_allclose(moved, np.column_stack([turned.real, turned.imag]), atol=1e-8)


def test_a_positive_rotation_is_clockwise_on_the_screen():
    box = geometry.whole_image_box(21, 21)
    above_the_centre = np.array([[10.0, 2.0]])
    moved = geometry.apply_affine(
        geometry.crop_from_image(box, 21, rotation=math.pi / 2), above_the_centre
    )
    right_of_the_centre = [[18.0, 10.0]]
    np.testing.assert_allclose(moved, right_of_the_centre, atol=1e-12)


@pytest.mark.parametrize('seed', SEEDS)
def test_a_mirrored_crop_is_the_crop_flipped(seed):
    rng = np.random.default_rng(seed)
    box, angle = random_box(rng), rng.uniform(-3, 3)
    points = rng.uniform(0, 300, (6, 2))
    plain = geometry.apply_affine(geometry.crop_from_image(box, 64, rotation=angle), points)
    mirrored = geometry.apply_affine(
        geometry.crop_from_image(box, 64, rotation=angle, mirror=True), points
    )
    np.testing.assert_allclose(mirrored[:, 0], 63 - plain[:, 0], atol=1e-9)
    np.testing.assert_allclose(mirrored[:, 1], plain[:, 1], atol=1e-9)


def test_the_mirror_map_agrees_with_a_flipped_array_and_undoes_itself():
    image = np.random.default_rng(0).random((5, 7))
    mirror = geometry.mirror_map(7)
    for x in range(7):
        moved = geometry.apply_affine(mirror, np.array([[x, 2.0]]))[0]
        assert image[2, x] == image[:, ::-1][round(moved[1]), round(moved[0])]
    np.testing.assert_array_equal(geometry.compose(mirror, mirror), [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize('factor', [2, 4])
def test_the_scale_map_agrees_with_pil_shrinking_by_whole_blocks(factor):
    point = np.array([[21.25, 14.5]])
    image = Image.fromarray(blob(32, 48, point[0], sigma=3.0))
    small = np.asarray(image.resize((48 // factor, 32 // factor), Image.Resampling.BOX))
    moved = geometry.apply_affine(geometry.scale_map(1 / factor), point)[0]
    np.testing.assert_allclose(centroid(small), moved, atol=0.01)


@pytest.mark.parametrize('seed', SEEDS)
def test_inverting_and_composing_come_back(seed):
    rng = np.random.default_rng(seed)
    affine = random_crop(rng)
    points = rng.uniform(-500, 500, (9, 2))
    inverse = geometry.invert(affine)
    back = geometry.apply_affine(inverse, geometry.apply_affine(affine, points))
    np.testing.assert_allclose(back, points, atol=1e-8)
    identity = geometry.compose(inverse, affine)
    np.testing.assert_allclose(identity, [[1, 0, 0], [0, 1, 0]], atol=1e-8)


@pytest.mark.parametrize('seed', SEEDS)
def test_composing_is_applying_one_after_the_other(seed):
    rng = np.random.default_rng(seed)
    first, second = random_crop(rng), rng.normal(size=(2, 3))
    points = rng.uniform(0, 100, (4, 2))
    at_once = geometry.apply_affine(geometry.compose(second, first), points)
    in_turn = geometry.apply_affine(second, geometry.apply_affine(first, points))
    np.testing.assert_allclose(at_once, in_turn, atol=1e-8)
    # Homogeneous 3 x 3 matrices are the independent reference.
    square = [np.vstack([affine, [0, 0, 1]]) for affine in (second, first)]
    expected = (square[0] @ square[1])[:2]
    np.testing.assert_allclose(geometry.compose(second, first), expected, atol=1e-9)


def test_a_batch_of_maps_moves_each_entry_by_its_own():
    rng = np.random.default_rng(3)
    maps = np.stack([random_crop(rng) for _ in range(4)])
    points = rng.uniform(0, 300, (4, 21, 2))
    moved = geometry.apply_affine(maps, points)
    for i in range(4):
        np.testing.assert_allclose(moved[i], geometry.apply_affine(maps[i], points[i]))
        expected = [maps[i][:, :2] @ point + maps[i][:, 2] for point in points[i]]
        np.testing.assert_allclose(moved[i], expected)


def test_moving_float32_points_by_a_float64_map_gives_float64():
    moved = geometry.apply_affine(geometry.scale_map(0.25), np.ones((3, 2), np.float32))
    assert moved.dtype == np.float64


@pytest.mark.parametrize('seed', SEEDS)
def test_a_dot_lands_where_the_map_says_when_opencv_warps_the_image(seed):
    rng = np.random.default_rng(seed)
    point = np.array([60.0, 45.0]) + rng.uniform(-0.5, 0.5, 2)
    box = geometry.square_box(np.concatenate([point - 20, point + 20]) + rng.uniform(-8, 8, 4))
    affine = geometry.crop_from_image(
        box, 64, rotation=rng.uniform(-math.pi, math.pi), mirror=bool(rng.integers(2))
    )
    crop = cv2.warpAffine(blob(90, 120, point), affine, (64, 64), flags=cv2.INTER_LINEAR)
    expected = geometry.apply_affine(affine, point[None])[0]
    # OpenCV rounds source coordinates to 1/32 px.
    np.testing.assert_allclose(centroid(crop), expected, atol=0.05)


@pytest.mark.parametrize(
    'box',
    [
        [0, 0, 0, 0],
        [10, 10, 5, 5],
        [0, 0, math.nan, math.nan],
        [0, 0, math.inf, math.inf],
    ],
)
def test_an_empty_or_endless_crop_is_an_error(box):
    with pytest.raises(ValueError, match='finite and not empty'):
        geometry.crop_from_image(np.array(box, float), 32)


def test_a_crop_that_would_squash_is_an_error():
    with pytest.raises(ValueError, match=r'square, got 20\.0 x 10\.0'):
        geometry.crop_from_image(np.array([0.0, 0.0, 20.0, 10.0]), 32)


def test_a_map_that_collapses_the_plane_has_no_inverse():
    with pytest.raises(ValueError, match='singular'):
        geometry.invert(np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0]]))
