"""Crops made without OpenCV are those made with it, to one grey level."""

import cv2
import numpy as np
import pytest

from handpose_jax.data import transforms


def crop_both_ways(monkeypatch, *args, **settings):
    with_opencv, _ = transforms.crop_image(*args, **settings)
    monkeypatch.setattr(transforms, 'cv2', None)
    return with_opencv.astype(int), transforms.crop_image(*args, **settings)[0].astype(int)


@pytest.mark.parametrize('seed', range(20))
def test_a_crop_is_that_of_opencv(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 700, 2)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    if seed % 2:
        image = cv2.GaussianBlur(image, (0, 0), 3)
    side, middle = rng.uniform(2, 1500), rng.uniform(-20, [width + 20, height + 20])
    box = np.concatenate([middle - side / 2, middle + side / 2])
    expected, found = crop_both_ways(
        monkeypatch,
        image,
        box,
        int(rng.integers(8, 225)),
        rotation=rng.uniform(-3, 3) * (seed % 3 == 0),
        mirror=seed % 5 < 2,
    )
    assert np.abs(expected - found).max() <= 1
    # Only what lies between two grey levels is rounded otherwise.
    assert (expected != found).mean() < 0.2


@pytest.mark.parametrize('box', [(-50, -50, -10, -10), (10.25, 3.5, 10.75, 4), (0, 0, 40, 40)])
def test_a_crop_beside_in_and_around_a_pixel(monkeypatch, box):
    image = np.random.default_rng(0).integers(0, 256, (7, 12, 3), np.uint8)
    expected, found = crop_both_ways(monkeypatch, image, np.array(box, float), 16)
    assert np.abs(expected - found).max() <= 1
