"""Crops: pixels and keypoints move by the same map, whatever the augmentation."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from scipy import ndimage

from handpose_jax import geometry
from handpose_jax.data import transforms
from handpose_jax.data.transforms import Augmentation, crop_example, warp_crop

PHOTOMETRIC = Augmentation(
    rotation=0.0,
    translation=0.0,
    scale=(1.0, 1.0),
    brightness=0.2,
    contrast=0.4,
    gamma=0.4,
    white_balance=0.2,
    grey=0.3,
    blur=0.5,
    noise=0.5,
    low_resolution=0.5,
    occlusion=0.5,
)


def sample_of(image, *, box=None, keypoints=None, is_left=False):
    height, width = image.shape[:2]
    if box is None:
        box = geometry.whole_image_box(height, width)
    if keypoints is None:
        keypoints = np.random.default_rng(0).uniform(0, min(height, width), (21, 2))
    return {
        'image': image,
        'keypoints': np.asarray(keypoints, np.float32),
        'visible': np.arange(21) % 5 != 0,
        'box': np.asarray(box, np.float32),
        'is_left': is_left,
        'norm_size': 12.5,
        'image_id': 'a',
    }


def noise_image(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def dots(height, width, centres, sigma):
    """White Gaussian dots on black, drawn at sub-pixel places."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = np.zeros((height, width))
    for cx, cy in centres:
        image += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return np.repeat(np.round(255 * np.minimum(image, 1)).astype(np.uint8)[:, :, None], 3, axis=2)


def centroid(crop, near, radius):
    """Centre of brightness of a dot, in a window around the place where it is expected."""
    x0, y0 = np.floor(near).astype(int) - radius
    x1, y1 = x0 + 2 * radius + 2, y0 + 2 * radius + 2
    window = crop[y0:y1, x0:x1, 0].astype(np.float64)
    y, x = np.mgrid[y0:y1, x0:x1]
    return np.array([(window * x).sum(), (window * y).sum()]) / window.sum()


# The first enlarges, the second shrinks too little to be averaged first, the others are averaged.
@pytest.mark.parametrize(
    ('side', 'size', 'scale'),
    [(100, 224, 1.0), (300, 224, 0.8), (480, 112, 1.0), (640, 96, 0.7), (700, 53, 1.1)],
)
@pytest.mark.parametrize('is_left', [False, True])
def test_pixels_and_keypoints_move_together(side, size, scale, is_left):
    rng = np.random.default_rng(side + is_left)
    pixel = side / size / scale
    height, width = side + 31, side + 74
    middle = np.array([width / 2 + 3.3, height / 2 - 2.7])
    angles = np.arange(5) * 2 * math.pi / 5
    centres = middle + 0.28 * side * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    centres += rng.uniform(-0.5, 0.5, centres.shape)
    image = dots(height, width, centres, sigma=max(1.5, 1.5 * pixel))
    keypoints = np.tile(centres, (5, 1))[:21]
    box = np.concatenate([middle - side / 2, middle + side / 2])
    sample = sample_of(image, box=box, keypoints=keypoints, is_left=is_left)
    augmentation = Augmentation(rotation=180.0, translation=8.0, scale=(scale, scale))
    checked = 0
    for _ in range(6):
        example = crop_example(sample, size=size, augmentation=augmentation, rng=rng)
        # Padding would count as brightness.
        crop = example['image'].copy()
        outside = geometry.apply_affine(
            example['image_from_crop'].astype(np.float64),
            np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2) * 1.0,
        ).reshape(size, size, 2)
        margin = 2 * pixel
        crop[(outside < margin).any(-1) | (outside > [width - margin, height - margin]).any(-1)] = 0
        radius = math.ceil(4 * max(1.5, 1.5 * pixel) / pixel)
        for keypoint in example['keypoints'][:5]:
            if (keypoint > radius + 2).all() and (keypoint < size - radius - 3).all():
                found = centroid(crop, keypoint, radius)
                assert np.abs(found - keypoint).max() < 0.1
                checked += 1
    assert checked >= 15


def test_identity_crop_reproduces_the_image():
    image = noise_image()
    sample = sample_of(image)
    example = crop_example(sample, size=64, index=7)
    np.testing.assert_array_equal(example['image'], image)
    np.testing.assert_allclose(example['keypoints'], sample['keypoints'], atol=1e-4)
    np.testing.assert_allclose(example['image_from_crop'], np.eye(2, 3), atol=1e-6)
    np.testing.assert_array_equal(example['visible'], sample['visible'])
    assert example['norm_size'] == 12.5
    assert example['valid']
    assert example['index'] == 7
    assert not example['hidden'].any()
    hidden = np.arange(21) == 9
    example = crop_example({**sample, 'hidden': hidden}, size=64)
    np.testing.assert_array_equal(example['hidden'], hidden)
    assert example['has_hand']
    assert not crop_example({**sample, 'no_hand': True}, size=64)['has_hand']


def test_dtypes_and_shapes():
    example = crop_example(sample_of(noise_image()), size=48)
    found = {
        name: (np.asarray(value).dtype.name, np.shape(value)) for name, value in example.items()
    }
    assert found == {
        'image': ('uint8', (48, 48, 3)),
        'keypoints': ('float32', (21, 2)),
        'visible': ('bool', (21,)),
        'norm_size': ('float32', ()),
        'image_from_crop': ('float32', (2, 3)),
        'valid': ('bool', ()),
        'index': ('int32', ()),
        'hidden': ('bool', (21,)),
        'has_hand': ('bool', ()),
    }


@pytest.mark.parametrize('side', [40.0, 64.0, 300.0])
def test_a_left_hand_is_the_mirrored_right_hand(side):
    """The same hand seen in a mirror gives the same example."""
    image = noise_image(90, 120)
    right = sample_of(image, box=[20.3, 10.2, 20.3 + side, 10.2 + side])
    mirror = geometry.mirror_map(120)
    left = sample_of(
        np.ascontiguousarray(image[:, ::-1]),
        box=[119 - 20.3 - side, 10.2, 119 - 20.3, 10.2 + side],
        keypoints=geometry.apply_affine(mirror, right['keypoints'].astype(np.float64)),
        is_left=True,
    )
    expected, actual = crop_example(right, size=64), crop_example(left, size=64)
    np.testing.assert_allclose(actual['keypoints'], expected['keypoints'], atol=1e-3)
    np.testing.assert_allclose(actual['image'].astype(int), expected['image'], atol=1)
    # But it knows which photograph it came from.
    np.testing.assert_allclose(
        geometry.apply_affine(actual['image_from_crop'], actual['keypoints']),
        left['keypoints'],
        atol=1e-3,
    )


@pytest.mark.parametrize('is_left', [False, True])
def test_image_from_crop_undoes_everything(is_left):
    sample = sample_of(noise_image(200, 300), box=[30, 20, 150, 140], is_left=is_left)
    rng = np.random.default_rng(3)
    for _ in range(20):
        example = crop_example(sample, size=96, augmentation=Augmentation(), rng=rng)
        back = geometry.apply_affine(example['image_from_crop'], example['keypoints'])
        np.testing.assert_allclose(back, sample['keypoints'], atol=2e-3)


def test_bilinear_against_scipy():
    image = ndimage.gaussian_filter(noise_image(80, 80).astype(float), (1, 1, 0)).astype(np.uint8)
    affine = geometry.invert(
        geometry.crop_from_image(np.array([20.3, 18.1, 60.3, 58.1]), 50, rotation=0.4)
    )
    crop = warp_crop(image, affine, 50)
    grid = np.stack(np.meshgrid(np.arange(50.0), np.arange(50.0)), axis=-1).reshape(-1, 2)
    points = geometry.apply_affine(affine, grid)
    for channel in range(3):
        expected = ndimage.map_coordinates(
            image[:, :, channel].astype(float), points.T[::-1], order=1
        ).reshape(50, 50)
        # OpenCV may round coordinates to 1/32 px.
        assert np.abs(crop[:, :, channel] - expected).max() < 3


def test_shrinking_does_not_alias():
    """A pattern of single black and white pixels becomes its mean, not moire."""
    image = np.zeros((400, 400, 3), np.uint8)
    image[::2, ::2] = image[1::2, 1::2] = 255
    crop = crop_example(sample_of(image), size=50)['image']
    assert np.abs(crop[1:-1, 1:-1].astype(float) - 127.5).max() < 2


def test_outside_is_padded():
    image = np.full((40, 40, 3), 255, np.uint8)
    sample = sample_of(image, box=[-20.5, -0.5, 19.5, 39.5])
    crop = crop_example(sample, size=40)['image']
    assert (crop[:, :20] == transforms.PADDING).all()
    assert (crop[:, 20:] == 255).all()


@pytest.mark.parametrize('place', [-500.0, 500.0])
def test_a_crop_beside_the_image_is_all_padding(place):
    sample = sample_of(noise_image(), box=[place, place, place + 50, place + 50])
    example = crop_example(sample, size=32)
    assert (example['image'] == transforms.PADDING).all()
    assert example['visible'].sum() == sample['visible'].sum()


def test_an_image_longer_than_opencv_can_warp():
    image = np.zeros((4, 40_000, 3), np.uint8)
    image[:, 39_000:] = 200
    crop = crop_example(sample_of(image, box=[38_989.5, -8.5, 39_009.5, 11.5]), size=20)['image']
    assert (crop[8:12, :10] == 0).all()
    assert (crop[8:12, 10:] == 200).all()


@pytest.mark.parametrize('shape', [(1, 1), (2, 300), (300, 2)])
def test_tiny_images(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    crop = crop_example(sample_of(image, box=[-90, -90, 90, 90]), size=32)['image']
    assert crop.shape == (32, 32, 3)


def test_a_box_that_is_not_square_is_widened_not_squashed():
    example = crop_example(sample_of(noise_image(), box=[10, 20, 50, 30]), size=40)
    np.testing.assert_allclose(example['image_from_crop'][:, :2], np.eye(2), atol=1e-6)
    np.testing.assert_allclose(example['image_from_crop'][:, 2], [10.5, 5.5], atol=1e-5)


def decompose(example, size):
    """(hand's size factor, degrees, shift of the image's centre in crop pixels)."""
    crop_from_image = geometry.invert(example['image_from_crop'].astype(np.float64))
    scale = math.sqrt(np.linalg.det(crop_from_image[:, :2]))
    angle = math.degrees(math.atan2(crop_from_image[1, 0], crop_from_image[0, 0]))
    centre = geometry.apply_affine(crop_from_image, np.full((1, 2), (size - 1) / 2))[0]
    return scale, angle, *(centre - (size - 1) / 2)


def test_the_ranges_are_kept_and_used():
    size = 112
    sample = sample_of(noise_image(size, size))
    augmentation = Augmentation(rotation=30.0, translation=20.0, scale=(0.5, 1.5))
    rng = np.random.default_rng(0)
    drawn = np.array(
        [
            decompose(crop_example(sample, size=size, augmentation=augmentation, rng=rng), size)
            for _ in range(400)
        ]
    )
    # Translation is in pixels of a 224 crop: half of it here.
    lows, highs = np.array([0.5, -30, -10, -10]), np.array([1.5, 30, 10, 10])
    assert (drawn.min(axis=0) > lows - 1e-3).all()
    assert (drawn.max(axis=0) < highs + 1e-3).all()
    slack = 0.03 * (highs - lows)
    assert (drawn.min(axis=0) < lows + slack).all()
    assert (drawn.max(axis=0) > highs - slack).all()
    np.testing.assert_allclose(drawn.mean(axis=0), (lows + highs) / 2, atol=2)


@pytest.mark.parametrize('augmentation', [Augmentation(), PHOTOMETRIC])
def test_the_rng_decides_everything(augmentation):
    sample = sample_of(noise_image())

    def draw(seed):
        rng = np.random.default_rng(seed)
        return [crop_example(sample, size=48, augmentation=augmentation, rng=rng) for _ in range(8)]

    for first, again in zip(draw(5), draw(5), strict=True):
        for name, value in first.items():
            np.testing.assert_array_equal(value, again[name])
    pairs = zip(draw(5), draw(6), strict=True)
    assert sum((a['image'] == b['image']).all() for a, b in pairs) <= 1


def test_an_augmentation_needs_an_rng():
    with pytest.raises(ValueError, match='rng'):
        crop_example(sample_of(noise_image()), size=32, augmentation=Augmentation())


def test_photometry_leaves_keypoints_and_the_sample_alone():
    image = noise_image()
    sample = sample_of(image.copy())
    plain = crop_example(sample, size=64)
    rng = np.random.default_rng(0)
    for _ in range(20):
        example = crop_example(sample, size=64, augmentation=PHOTOMETRIC, rng=rng)
        np.testing.assert_array_equal(example['keypoints'], plain['keypoints'])
        np.testing.assert_array_equal(example['visible'], plain['visible'])
    np.testing.assert_array_equal(sample['image'], image)


def photometric_draws(image, count=60, **fields):
    """What one kind of photometric change alone does to an image that fills the crop."""
    still = {'rotation': 0.0, 'translation': 0.0, 'scale': (1.0, 1.0)}
    augmentation = Augmentation(**still, **fields)
    rng = np.random.default_rng(1)
    sample = sample_of(image)
    size = image.shape[0]
    return [
        crop_example(sample, size=size, augmentation=augmentation, rng=rng)['image'].astype(float)
        for _ in range(count)
    ]


def plain(level, size=32):
    return np.full((size, size, 3), level, np.uint8)


def test_brightness():
    levels = np.array([image.mean() for image in photometric_draws(plain(120), brightness=0.2)])
    assert levels.min() == pytest.approx(120 - 51, abs=6)
    assert levels.max() == pytest.approx(120 + 51, abs=6)


def test_contrast_spreads_about_mid_grey():
    image = plain(127)
    image[:, :16], image[:, 16:] = 107, 148
    drawn = photometric_draws(image, contrast=1.0)
    spreads = np.array([d[0, -1, 0] - d[0, 0, 0] for d in drawn]) / 41
    assert spreads.min() == pytest.approx(0.5, abs=0.05)
    assert spreads.max() == pytest.approx(2.0, abs=0.15)
    assert max(abs(d.mean() - 127.5) for d in drawn) < 1.1


def test_gamma_keeps_black_and_white():
    image = plain(64)
    image[0], image[1] = 0, 255
    drawn = photometric_draws(image, gamma=1.0)
    assert all((d[0] == 0).all() and (d[1] == 255).all() for d in drawn)
    levels = [d[5, 5, 0] for d in drawn]
    assert min(levels) == pytest.approx(255 * (64 / 255) ** 2, abs=4)
    assert max(levels) == pytest.approx(255 * (64 / 255) ** 0.5, abs=4)


def test_white_balance_casts_a_colour():
    drawn = np.array([d[0, 0] for d in photometric_draws(plain(100), white_balance=0.25)])
    assert drawn.min() == pytest.approx(80, abs=1.5)
    assert drawn.max() == pytest.approx(125, abs=1.5)
    assert np.std(drawn, axis=1).mean() > 4


def test_grey_keeps_luminance():
    image = np.full((32, 32, 3), (200, 100, 20), np.uint8)
    drawn = photometric_draws(image, grey=0.5)
    levels = {tuple(d[3, 3]) for d in drawn}
    luminance = round(0.299 * 200 + 0.587 * 100 + 0.114 * 20)
    assert levels == {(200, 100, 20), (luminance,) * 3}
    assert 15 < sum(d[3, 3, 0] == 200 for d in drawn) < 45


def test_blur_and_low_resolution_soften_without_shifting():
    image = dots(224, 224, [(101.3, 120.8)], 3.0)
    for fields in ({'blur': 1.0}, {'low_resolution': 1.0}):
        drawn = photometric_draws(image, **fields)
        assert all(d.max() < 252 for d in drawn)
        for crop in drawn:
            found = centroid(crop, np.array([101.3, 120.8]), 30)
            np.testing.assert_allclose(found, [101.3, 120.8], atol=0.1)


def test_noise_has_no_bias_and_the_sigma_asked_for():
    drawn = np.array(photometric_draws(plain(120, 96), noise=1.0, noise_sigma=20.0))
    noise = drawn - 120
    sigmas = noise.std(axis=(1, 2, 3))
    assert np.abs(noise.mean(axis=(1, 2, 3))).max() < 0.6
    assert sigmas.min() < 2
    assert sigmas.max() == pytest.approx(20, abs=1.5)
    # Neighbouring draws look at different windows of the noise.
    strong = noise[sigmas > 10]
    assert abs(np.corrcoef(strong[0].ravel(), strong[1].ravel())[0, 1]) < 0.05


def test_occlusion_is_one_plain_rectangle():
    image = noise_image(100, 100)
    areas = []
    for crop in photometric_draws(image, occlusion=1.0):
        rows, columns = np.nonzero((crop != image).any(axis=-1))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        areas.append(height * width)
        inside = crop[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (inside == inside[0, 0]).all()
        assert 9 <= min(height, width) <= max(height, width) <= 40
    assert np.ptp(areas) > 500


@pytest.mark.parametrize('probability', ['blur', 'noise', 'low_resolution', 'occlusion'])
def test_probabilities(probability):
    image = noise_image(32, 32)
    changed = [(d != image).any() for d in photometric_draws(image, **{probability: 0.5})]
    assert 15 < sum(changed) < 45


@pytest.mark.parametrize(
    'fields',
    [
        {'rotation': 181.0},
        {'rotation': -1.0},
        {'translation': math.inf},
        {'translation': math.nan},
        {'scale': (0.0, 1.0)},
        {'scale': (1.2, 1.0)},
        {'scale': (0.5, 1.0, 2.0)},
        {'scale': (0.5, math.nan)},
        {'brightness': 1.5},
        {'contrast': -0.1},
        {'gamma': math.nan},
        {'white_balance': -1.0},
        {'grey': 1.1},
        {'blur': -0.1},
        {'noise': 2.0},
        {'noise_sigma': 33.0},
        {'low_resolution': math.nan},
        {'occlusion': 1.01},
    ],
)
def test_ranges_are_checked(fields):
    with pytest.raises(ValueError, match=rf'Augmentation\.{next(iter(fields))} must be'):
        Augmentation(**fields)


def test_augmentation_is_a_value():
    assert pickle.loads(pickle.dumps(PHOTOMETRIC)) == PHOTOMETRIC
    assert Augmentation(scale=[0.5, 1.0]) == Augmentation(scale=(0.5, 1.0))
    hash(Augmentation(scale=[0.5, 1.0]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        PHOTOMETRIC.rotation = 3.0
