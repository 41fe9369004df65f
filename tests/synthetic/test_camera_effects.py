"""Camera effects: nothing moves, noise has the strength it says, the same every time."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from handpose_jax.synthetic.render.camera_effects import CameraEffects, develop, sample


def flat(value=0.3, size=64):
    return np.full((size, size, 3), value, np.float32)


def spot(size=65, width=2.0, at=None):
    y, x = np.mgrid[:size, :size] - np.reshape(
        [(size - 1) / 2] * 2 if at is None else at, (2, 1, 1)
    )
    return np.repeat(np.exp(-(x**2 + y**2) / (2 * width**2))[..., None], 3, 2).astype(np.float32)


def centre_of(image):
    weight = image.astype(float).sum(axis=2)
    weight -= weight.min()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def take(light, size=None, **effects):
    """The photograph with these effects alone; the noise is of one seed."""
    return develop(light, CameraEffects(**effects), np.random.default_rng(0), size=size)


def decoded(image):
    """Linear light of sRGB bytes."""
    encoded = image / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def test_without_effects_only_the_srgb_curve_is_applied():
    bytes_in = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(take(decoded(bytes_in).astype(np.float32)), bytes_in)


@pytest.mark.parametrize(
    'effects',
    [
        {'motion': (7.0, 3.0)},
        {'motion': (0.0, -9.3)},
        {'defocus': 3.7},
        {'sharpening': 0.8},
        {'contrast': 0.8},
    ],
    ids=str,
)
def test_nothing_moves(effects):
    light = spot(at=[36.0, 29.0], width=4.0)
    developed, before = take(light, **effects), take(light)
    np.testing.assert_allclose(centre_of(developed), centre_of(before), atol=0.12)
    assert (developed != before).any()


@pytest.mark.parametrize('small', [24, 37, 50])
def test_enlarging_moves_nothing_either(small):
    picture = spot(size=small, at=[8.0, 15.0])
    before, large = centre_of(take(picture)), take(picture, size=65)
    assert large.shape == (65, 65, 3)
    # The pixel-centre rule.
    expected = (before + 0.5) * 65 / small - 0.5
    np.testing.assert_allclose(centre_of(large), expected, atol=0.15)


@pytest.mark.parametrize('effects', [{'motion': (7.0, 3.0)}, {'defocus': 3.0}], ids=str)
def test_blur_keeps_the_light(effects):
    blurred, before = (decoded(take(spot(width=6.0), **e)).sum() for e in (effects, {}))
    assert blurred == pytest.approx(before, rel=0.03)


def test_motion_blurs_along_its_own_direction_only():
    weight = take(spot(), motion=(12.0, 0.0)).astype(float).sum(axis=2)
    y, x = np.mgrid[:65, :65] - 32.0
    spread_x, spread_y = (weight * x**2).sum(), (weight * y**2).sum()
    assert spread_x > 3 * spread_y


def test_noise_grows_with_the_light_as_its_square_root():
    spreads = [decoded(take(flat(value, 256), shot_noise=0.04)).std() for value in (0.1, 0.4)]
    np.testing.assert_allclose(spreads, 0.04 * np.sqrt([0.1, 0.4]), rtol=0.05)


def test_read_noise_is_there_in_the_dark_and_grain_keeps_its_strength():
    sharp, soft = (
        take(flat(0.2, 128), read_noise=0.03, grain=grain).astype(float) for grain in (0.0, 0.9)
    )
    assert sharp.std() == pytest.approx(soft.std(), rel=0.1)

    def neighbours(image):
        image = image[..., 0] - image[..., 0].mean()
        return (image[:, 1:] * image[:, :-1]).mean() / image.var()

    assert neighbours(sharp) == pytest.approx(0, abs=0.05)
    assert neighbours(soft) > 0.4


def test_white_balance_is_a_factor_on_the_light():
    expected = take(flat(0.2) * np.array([1.5, 1.0, 0.5], np.float32))
    np.testing.assert_array_equal(take(flat(0.2), white_balance=(1.5, 1.0, 0.5)), expected)


def test_vignetting_darkens_corners_and_not_the_middle():
    developed, plain = take(flat(size=65), vignetting=0.4), take(flat(size=65))
    assert (developed[32, 32] == plain[32, 32]).all()
    assert (developed[0, 0] < plain[0, 0]).all()


def test_no_saturation_is_grey():
    light = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    developed = take(light, saturation=0.0)
    assert (developed.max(axis=2) == developed.min(axis=2)).all()


def test_jpeg_is_a_real_jpeg(tmp_path):
    developed, plain = take(spot(), jpeg_quality=30), take(spot())
    Image.fromarray(plain).save(tmp_path / 'a.jpg', quality=30)
    with Image.open(tmp_path / 'a.jpg') as reference:
        expected = np.asarray(reference.convert('RGB')).astype(int)
    # Two libraries may round differently; the artefacts are the same.
    assert np.abs(developed - expected).mean() < 1.5
    assert np.abs(developed.astype(int) - plain).mean() > 0.1


def test_sampled_effects_are_reproducible_and_varied():
    drawn = [sample(np.random.default_rng(seed), 224) for seed in range(50)]
    again = [sample(np.random.default_rng(seed), 224) for seed in range(50)]
    assert drawn == again
    for field in dataclasses.fields(CameraEffects):
        assert len({getattr(effects, field.name) for effects in drawn}) > 1, field.name
    light = spot()
    one, same, other = (develop(light, drawn[3], np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    # The picture that was given is as it was.
    np.testing.assert_array_equal(light, spot())
