"""What decoding.py, presence.py and robustness.py measure, on cases worked out by hand."""

import json

import decoding
import jax.numpy as jnp
import numpy as np
import presence
import pytest
import robustness
from PIL import Image

from handpose_jax.data.transforms import PADDING, crop_example
from handpose_jax.evaluation import metrics, protocols


def gaussians(points, size=28, sigma=1.5):
    yy, xx = np.mgrid[:size, :size][:, None, :, :, None]
    points = np.asarray(points, np.float32)[..., None, None, :]
    maps = np.exp(
        -((xx[..., 0] - points[..., 0]) ** 2 + (yy[..., 0] - points[..., 1]) ** 2) / (2 * sigma**2)
    )
    return np.moveaxis(maps, 1, -1).astype(np.float32)


def make_errors(offsets, confidence=0.5):
    """Hands whose predictions are off by `offsets` f[n 21 2], px of a 224 crop."""
    n = len(offsets)
    rng = np.random.default_rng(0)
    truth = rng.uniform(60, 160, (n, 21, 2)).astype(np.float32)
    batch = {
        'keypoints': truth,
        'visible': np.ones((n, 21), bool),
        'norm_size': np.full(n, 100, np.float32),
        'image_from_crop': np.tile(np.eye(2, 3, dtype=np.float32), (n, 1, 1)),
        'valid': np.ones(n, bool),
        'index': np.arange(n),
        'hidden': np.zeros((n, 21), bool),
        'has_hand': np.ones(n, bool),
    }
    return metrics.KeypointErrors.from_batch(
        truth.astype(np.float64) + offsets, np.full((n, 21), confidence), batch, 224
    )


def test_the_window_average_is_the_centre_of_mass_of_the_window():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 11, 9, 3)).astype(np.float32)
    maps[0, 0, 8, 1] = 9  # a peak in a corner, whose window is cut
    maps[1, :, :, 2] = -1 - rng.random((11, 9))  # no mass at all: the peak itself
    found = np.asarray(decoding.average_in_window(jnp.asarray(maps), radius=2))
    for b in range(2):
        for k in range(3):
            y, x = np.unravel_index(maps[b, :, :, k].argmax(), (11, 9))
            rows = range(max(y - 2, 0), min(y + 3, 11))
            columns = range(max(x - 2, 0), min(x + 3, 9))
            mass = {(i, j): max(float(maps[b, i, j, k]), 0.0) for i in rows for j in columns}
            total = sum(mass.values())
            expected = (
                [sum(m * p[axis] for p, m in mass.items()) / total for axis in (1, 0)]
                if total
                else [x, y]
            )
            np.testing.assert_allclose(found[b, k], expected, atol=1e-4)


def test_every_decoder_finds_a_gaussian():
    points = np.random.default_rng(1).uniform(9, 18, (1, 21, 2))
    maps = jnp.asarray(gaussians(points))
    tolerance = {'argmax': 0.5, 'average': 0.02, 'parabola': 0.01, 'dark': 0.01}
    for name, decoder in decoding.decoders(1.5).items():
        found = np.asarray(decoder(maps))
        # A window is not centred on the peak, so it leans towards the pixel.
        atol = tolerance.get(name, 0.25)
        np.testing.assert_allclose(found, points, atol=atol + 1e-4, err_msg=name)


def test_moved_keypoints_are_counted_as_better_or_worse():
    before = np.zeros((2, 21, 2))
    before[..., 0] = 10.0
    after = before.copy()
    after[0, 3] = [4, 3]  # 10 -> 5
    after[0, 4] = [0, 20]  # 10 -> 20
    after[1, 5] = [0, 30]  # 10 -> 30
    after[1, 6] = [0, 10]  # elsewhere, but as far
    found = decoding.changes(make_errors(before), make_errors(after))
    assert (found['changed'], found['better'], found['worse']) == (4, 1, 2)
    assert found['mean_before'] == pytest.approx(10, abs=1e-4)
    assert found['mean_after'] == pytest.approx((5 + 20 + 30 + 10) / 4, abs=1e-4)
    assert found['median_after'] == pytest.approx(15, abs=1e-4)
    nothing = decoding.changes(make_errors(before), make_errors(before))
    assert (nothing['changed'], nothing['mean_before']) == (0, None)


def test_differences_are_paired():
    """Hands differ a lot, the two decodings always by 0.5 px: the interval must show only that."""
    radius = np.random.default_rng(2).exponential(10, (40, 21))
    directions = np.array([1.0, 0.0])
    rows = decoding.compare(
        {
            'parabola': make_errors(radius[..., None] * directions),
            'other': make_errors((radius[..., None] + 0.5) * directions),
        },
        protocols.get_protocol('box'),
    )
    difference = rows['other']['epe_mean_224_difference']
    assert difference['value'] == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(difference['interval_95'], 0.5, atol=1e-4)
    assert rows['parabola']['epe_mean_224_difference']['value'] == 0


def make_sample():
    rng = np.random.default_rng(3)
    return {
        'image': rng.integers(0, 256, (200, 260, 3), dtype=np.uint8),
        'keypoints': rng.uniform(80, 140, (21, 2)).astype(np.float32),
        'visible': np.ones(21, bool),
        'box': np.array([60, 40, 160, 140], np.float32),
        'is_left': False,
        'norm_size': 45.0,
        'image_id': 'noise',
    }


@pytest.mark.parametrize(
    ('name', 'severity', 'factor'),
    [('clean', 0, 1.0), ('noise', 3, 1.0), ('crop too large', 5, 2.0), ('crop too small', 5, 0.5)],
)
def test_errors_are_in_pixels_of_the_clean_crop(name, severity, factor):
    """A prediction 3 pixels off in the crop that the network saw."""
    sample = make_sample()
    clean = crop_example(sample, size=64, index=7)
    rng = robustness.generator(0, name, severity, 7)
    example = robustness.corrupted(sample, clean, name, severity, rng)
    batch = {key: np.asarray(value)[None] for key, value in example.items()}
    errors = metrics.KeypointErrors.from_batch(
        example['keypoints'][None] + np.array([3.0, 0.0]), np.ones((1, 21)), batch, 64
    )
    found = robustness.in_clean_pixels(errors, [sample])
    np.testing.assert_allclose(found.error_crop, 3 * factor * 224 / 64, rtol=1e-4)
    np.testing.assert_allclose(found.error_image, 3 * factor * 100 / 64, rtol=1e-4)


def test_a_hand_is_corrupted_alike_whichever_others_are_measured():
    sample = make_sample()
    clean = crop_example(sample, size=64)

    def picture(**changes):
        key = {'seed': 0, 'name': 'noise', 'severity': 2, 'index': 5} | changes
        rng = robustness.generator(**key)
        return robustness.corrupted(sample, clean, 'noise', 2, rng)['image']

    np.testing.assert_array_equal(picture(), picture())
    for change in ({'seed': 1}, {'index': 6}, {'severity': 3}, {'name': 'blur'}):
        assert (picture(**change) != picture()).any()


def red_square():
    """A sample whose hand is red, 40 px in the middle of a blue picture of 120 px."""
    image = np.zeros((120, 120, 3), np.uint8)
    image[..., 2] = 200
    image[40:80, 40:80] = (255, 0, 0)
    steps = np.linspace(40, 79, 21, dtype=np.float32)
    return {
        'image': image,
        # From all over the square, and so is either half of them.
        'keypoints': np.stack([steps, steps[np.arange(21) * 8 % 21]], axis=1),
        'visible': np.ones(21, bool),
        'box': np.float32([20, 20, 100, 100]),
        'is_left': False,
    }


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('kind', presence.KINDS)
def test_presence_cuts_off_and_covers_half_of_a_hand(kind, seed):
    crop = presence.hand_crop(red_square(), kind, np.random.default_rng(seed), 80)
    red = (crop[..., 0] > 200) & (crop[..., 1] < 50) & (crop[..., 2] < 50)
    if kind == 'cut off':
        # Half of the hand, twice as long as wide, at the scale that a hand has in its crop.
        assert red.any(axis=0).sum() + red.any(axis=1).sum() == pytest.approx(60, abs=8)
        assert (crop == PADDING).all(axis=2).mean() > 0.2
    else:
        expected = 1600 if kind == 'whole' else 800
        assert red.sum() == pytest.approx(expected, rel=0.1)


def test_presence_takes_records_without_a_hand_and_the_middle_of_photographs(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 8:52] = 90
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    (crop,) = presence.crops_without(str(tmp_path), 0, 20, 2.2)
    assert (crop[1:-1] == 90).all()
    assert presence.spread(10, 4).tolist() == [0, 3, 6, 9]
    assert presence.spread(3, 0).tolist() == [0, 1, 2]
    record = {'file': 'a.png', 'no_hand': True, 'box': [10, 0, 49, 39], 'split': 'val'}
    others = [{**record, 'split': 'train', 'id': 'b'}]
    (tmp_path / 'annotations.json').write_text(json.dumps([record, *others]))
    assert len(list(presence.crops_without(f'{tmp_path}:val', 0, 20, 2.2))) == 1
    assert len(list(presence.crops_without(str(tmp_path), 0, 20, 2.2))) == 2
    with pytest.raises(ValueError, match=r'annotations\.json or photographs, found neither'):
        next(presence.crops_without(str(tmp_path / 'nowhere'), 0, 20, 2.2))
