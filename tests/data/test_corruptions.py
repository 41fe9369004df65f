"""Corruptions do what they say, by how much they say, and leave keypoints true."""

import math

import numpy as np
import pytest
from scipy import ndimage

from handpose_jax import geometry
from handpose_jax.data import corruptions

SIZE = 112


def make_picture(size=SIZE, seed=0):
    """Blobs of all scales around mid-grey, so that every corruption has something to spoil."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=(size, size, 3)), (s, s, 0)) for s in (1, 4)]
    picture = sum(layer / layer.std() for layer in layers)
    return np.clip(127 + 28 * picture, 0, 255).astype(np.uint8)


def make_sample(is_left=False):
    """A photograph with a white dot on each keypoint."""
    image = np.full((300, 400, 3), 40, np.uint8)
    xs, ys = np.meshgrid(np.arange(7), np.arange(3))
    points = np.stack([130 + 20 * xs.ravel(), 100 + 35 * ys.ravel()], axis=1)
    for x, y in points:
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
    return {
        'image': image,
        'keypoints': points.astype(np.float32),
        'visible': np.ones(21, bool),
        'box': np.array([90, 40, 290, 240], np.float32),
        'is_left': is_left,
        'norm_size': 120.0,
        'image_id': 'dots',
    }


def rng():
    return np.random.default_rng([1, 2])


@pytest.mark.parametrize('name', corruptions.PIXELS)
def test_a_corruption_is_repeatable_and_grows_with_severity(name):
    picture = make_picture()
    before = picture.copy()
    distances = []
    for severity in corruptions.SEVERITIES:
        found = corruptions.corrupt(picture, name, severity, rng())
        assert found.shape == picture.shape
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, corruptions.corrupt(picture, name, severity, rng()))
        distances.append(np.abs(found.astype(float) - picture).mean())
    np.testing.assert_array_equal(picture, before)
    assert distances[0] > 0.5
    assert (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize('name', ['blur', 'motion blur', 'JPEG', 'low resolution', 'low contrast'])
def test_things_stay_where_they_are(name):
    yy, xx = np.mgrid[:SIZE, :SIZE]
    x, y = 61.5, 46.5
    blob = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * 6.0**2))
    picture = np.repeat((40 + 200 * blob[:, :, None]).astype(np.uint8), 3, axis=2)
    for severity in corruptions.SEVERITIES:
        found = corruptions.corrupt(picture, name, severity, rng()).astype(float).sum(axis=2)
        mass = np.clip(found - (found.min() + 0.3 * np.ptp(found)), 0, None)
        centre = [(mass * xx).sum() / mass.sum(), (mass * yy).sum() / mass.sum()]
        np.testing.assert_allclose(centre, [x, y], atol=0.3)


@pytest.mark.parametrize('size', [112, 224])
def test_blur_is_a_gaussian_whose_width_follows_the_crop(size):
    picture = make_picture(size)
    for severity, sigma in ((1, 1.0), (5, 6.0)):
        found = corruptions.corrupt(picture, 'blur', severity, rng()).astype(float)
        width = sigma * size / 224
        expected = ndimage.gaussian_filter(picture.astype(float), (width, width, 0), mode='mirror')
        # OpenCV's weights for 8-bit pictures are rounded.
        assert np.abs(found - expected).max() < 2


def test_levels_are_those_of_the_benchmark():
    grey = np.full((224, 224, 3), 100, np.uint8)
    noisy = corruptions.corrupt(grey, 'noise', 1, rng()).astype(float)
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.01)
    assert noisy.mean() == pytest.approx(100, abs=0.3)
    brighter = corruptions.corrupt(grey, 'brighter', 2, rng())
    np.testing.assert_allclose(brighter, 100 + 0.2 * 255, atol=1)
    darker = corruptions.corrupt(grey, 'darker', 2, rng())
    np.testing.assert_allclose(darker, 100 - 0.2 * 255, atol=1)
    picture = make_picture().astype(float)
    flat = corruptions.corrupt(picture.astype(np.uint8), 'low contrast', 3, rng())
    mean = picture.mean(axis=(0, 1))
    np.testing.assert_allclose(flat, mean + 0.2 * (picture - mean), atol=1)


def test_an_occluder_is_a_square_of_one_colour_over_the_hand():
    picture = make_picture()
    for seed in range(5):
        found = corruptions.corrupt(picture, 'occlusion', 3, np.random.default_rng(seed))
        rows, columns = np.nonzero((found != picture).any(axis=2))
        part = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert part.shape[:2] == (round(0.2 * SIZE), round(0.2 * SIZE))
        assert (part == part[0, 0]).all()
        assert abs((rows.min() + rows.max()) / 2 - SIZE / 2) < SIZE / 4 + 1
        assert abs((columns.min() + columns.max()) / 2 - SIZE / 2) < SIZE / 4 + 1


@pytest.mark.parametrize('is_left', [False, True])
@pytest.mark.parametrize('name', corruptions.GEOMETRY)
def test_keypoints_of_a_wrong_crop_are_on_its_dots(name, is_left):
    sample = make_sample(is_left)
    for severity in corruptions.SEVERITIES:
        found = corruptions.crop_wrongly(sample, name, severity, rng(), size=SIZE)
        back = geometry.apply_affine(found['image_from_crop'], found['keypoints'])
        np.testing.assert_allclose(back, sample['keypoints'], atol=0.01)
        assert (np.linalg.det(found['image_from_crop'][:, :2]) < 0) == is_left
        grey = found['image'][:, :, 0].astype(float)
        inside = 0
        for x, y in found['keypoints']:
            if 2 <= x < SIZE - 2 and 2 <= y < SIZE - 2:
                inside += 1
                near = grey[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
                assert near.max() > 90
        assert inside >= 10


def test_crops_are_wrong_by_what_the_table_says():
    sample = make_sample()
    for severity, shift, larger, smaller, angle in (
        (1, 0.05, 1.15, 0.9, 15),
        (5, 0.25, 2.0, 0.5, 90),
    ):

        def wrong(name, severity=severity):
            found = corruptions.crop_wrongly(sample, name, severity, rng(), size=SIZE)
            linear, centre = (
                found['image_from_crop'][:, :2],
                found['image_from_crop'] @ [(SIZE - 1) / 2, (SIZE - 1) / 2, 1],
            )
            return linear * SIZE / 200, centre - [190, 140]

        linear, offset = wrong('crop shifted')
        np.testing.assert_allclose(linear, np.eye(2), atol=1e-5)
        assert np.linalg.norm(offset) == pytest.approx(200 * shift, rel=1e-4)
        for name, factor in (('crop too large', larger), ('crop too small', smaller)):
            linear, offset = wrong(name)
            np.testing.assert_allclose(linear, factor * np.eye(2), atol=1e-5)
            np.testing.assert_allclose(offset, 0, atol=1e-3)
        linear, offset = wrong('rotation')
        assert np.linalg.det(linear) == pytest.approx(1, abs=1e-4)
        found_angle = abs(math.degrees(math.atan2(linear[1, 0], linear[0, 0])))
        assert found_angle == pytest.approx(angle, abs=0.01)
        np.testing.assert_allclose(offset, 0, atol=1e-3)


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"expected one of noise, .* got 'fog'"):
        corruptions.corrupt(make_picture(), 'fog', 1, rng())
    with pytest.raises(ValueError, match='severity: expected 1 to 5, got 6'):
        corruptions.corrupt(make_picture(), 'blur', 6, rng())
    with pytest.raises(ValueError, match='expected one of crop shifted'):
        corruptions.crop_wrongly(make_sample(), 'blur', 1, rng(), size=SIZE)
