"""What goes wrong between a hand and a network, at five strengths: for measuring robustness.

Two tables of names. PIXELS change a finished crop, and leave every point where it is; GEOMETRY
cuts another crop, through the same map as every crop, so that keypoints stay true. Severity 1 is
slight and 5 severe. Nothing here is used in training.

Noise, blur, brightness, contrast, JPEG and low resolution follow Hendrycks & Dietterich 2019,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ImageNet-C): their
five levels, for 224 px crops; lengths scale with the crop, noise is that of the network's own
pixels. The other levels are ours.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from handpose_jax import geometry
from handpose_jax.data.transforms import warp_crop
from handpose_jax.types import Sample

SEVERITIES = (1, 2, 3, 4, 5)

_REFERENCE_SIZE = 224

# Source, where it says H&D: Hendrycks & Dietterich 2019, their published generator.
_NOISE_STD = (0.08, 0.12, 0.18, 0.26, 0.38)  # of the range 0..1; H&D
_BLUR_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)  # px of 224; H&D
_MOTION_LENGTH = (7.0, 11.0, 15.0, 21.0, 29.0)  # px of 224; ours: theirs would move the picture
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to HSV's value; H&D
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # factor about the picture's mean; H&D
_JPEG_QUALITY = (25, 18, 15, 10, 7)  # H&D
_RESOLUTION = (0.6, 0.5, 0.4, 0.3, 0.25)  # share of the pixels along each side; H&D, pixelate
_OCCLUDER = (0.10, 0.15, 0.20, 0.25, 0.30)  # side, share of the crop's; a hand fills about 0.45
_SHIFT = (0.05, 0.10, 0.15, 0.20, 0.25)  # share of the crop's side
_LARGER = (1.15, 1.3, 1.5, 1.75, 2.0)  # the crop's side
_SMALLER = (0.9, 0.8, 0.7, 0.6, 0.5)
_ROTATION = (15.0, 30.0, 45.0, 60.0, 90.0)  # degrees

Crop = UInt8[np.ndarray, 's s 3']


def corrupt(image: Crop, name: str, severity: int, rng: np.random.Generator) -> Crop:
    """A crop as it would look if something had gone wrong.

    Args:
        image: RGB; stays as it is.
        name: one of PIXELS.
        severity: 1..5.
        rng: draws what the corruption leaves open (noise, direction, place).

    Raises:
        ValueError: for an unknown name or severity.
    """
    _check(name, severity, PIXELS)
    return PIXELS[name](image, severity - 1, rng)


def crop_wrongly(
    sample: Sample, name: str, severity: int, rng: np.random.Generator, *, size: int
) -> dict[str, Any]:
    """A sample's crop as it would be if the hand had been found badly.

    Args:
        sample: one hand, with the box of its proper crop.
        name: one of GEOMETRY.
        severity: 1..5.
        rng: draws the direction.
        size: side of the crop, pixels.

    Returns:
        image u8[size size 3], keypoints f32[21 2] in its pixels and image_from_crop f32[2 3], as
        transforms.crop_example has them.

    Raises:
        ValueError: for an unknown name or severity.
    """
    _check(name, severity, GEOMETRY)
    box = geometry.square_box(np.asarray(sample['box'], np.float64))
    box, rotation = GEOMETRY[name](box, severity - 1, rng)
    crop_from_image = geometry.crop_from_image(
        box, size, rotation=rotation, mirror=sample['is_left']
    )
    image_from_crop = geometry.invert(crop_from_image)
    keypoints = geometry.apply_affine(crop_from_image, sample['keypoints'].astype(np.float64))
    return {
        'image': warp_crop(sample['image'], image_from_crop, size),
        'keypoints': keypoints.astype(np.float32),
        'image_from_crop': image_from_crop.astype(np.float32),
    }


def _check(name: str, severity: int, known: dict[str, Any]) -> None:
    if name not in known:
        raise ValueError(f'corruption: expected one of {", ".join(known)}, got {name!r}')
    if severity not in SEVERITIES:
        raise ValueError(f'severity: expected 1 to 5, got {severity}')


def _noise(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    noise = rng.standard_normal(image.shape, np.float32) * (255 * _NOISE_STD[level])
    return _to_pixels(image + noise)


def _gaussian_blur(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    del rng
    sigma = _BLUR_SIGMA[level] * image.shape[0] / _REFERENCE_SIZE
    side = 2 * math.ceil(4 * sigma) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)


def _motion_blur(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    """Along a line centred on each pixel, in any direction."""
    half = _MOTION_LENGTH[level] * image.shape[0] / _REFERENCE_SIZE / 2
    angle = rng.uniform(0, math.pi)
    radius = math.ceil(half)
    # Points along the line share their weight among the four pixels around them.
    kernel = np.zeros((2 * radius + 3, 2 * radius + 3), np.float64)
    for offset in np.linspace(-half, half, 8 * radius + 1):
        x, y = radius + 1 + offset * math.cos(angle), radius + 1 + offset * math.sin(angle)
        column, row = math.floor(x), math.floor(y)
        right, down = x - column, y - row
        kernel[row : row + 2, column : column + 2] += np.outer([1 - down, down], [1 - right, right])
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _change_value(image: Crop, change: float) -> Crop:
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[:, :, 2] = np.clip(hsv[:, :, 2] + change, 0, 1)
    return _to_pixels(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _brighter(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    del rng
    return _change_value(image, _BRIGHTNESS[level])


def _darker(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    del rng
    return _change_value(image, -_BRIGHTNESS[level])


def _contrast(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    del rng
    mean = image.mean(axis=(0, 1), keepdims=True)
    return _to_pixels((image - mean) * _CONTRAST[level] + mean)


def _jpeg(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    del rng
    _, data = cv2.imencode(
        '.jpg', image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY[level]]
    )
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded[:, :, ::-1])


def _low_resolution(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    del rng
    size = image.shape[0]
    small = max(1, round(size * _RESOLUTION[level]))
    shrunk = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def _occlusion(image: Crop, level: int, rng: np.random.Generator) -> Crop:
    """A square of one colour, its centre in the middle half of the crop, where the hand is."""
    size = image.shape[0]
    side = max(1, round(_OCCLUDER[level] * size))
    x, y = np.round(rng.uniform(0.25, 0.75, 2) * size - side / 2).astype(int)
    occluded = image.copy()
    occluded[max(y, 0) : y + side, max(x, 0) : x + side] = rng.integers(0, 256, 3, dtype=np.uint8)
    return occluded


def _to_pixels(values: Any) -> Crop:
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)


_Recrop = Callable[[geometry.Box, int, np.random.Generator], tuple[geometry.Box, float]]


def _shifted(box: geometry.Box, level: int, rng: np.random.Generator) -> tuple[geometry.Box, float]:
    angle = rng.uniform(0, 2 * math.pi)
    reach = _SHIFT[level] * geometry.longest_side(box)
    shift = reach * np.array([math.cos(angle), math.sin(angle)])
    return box + np.tile(shift, 2), 0.0


def _scaled(factors: Sequence[float]) -> _Recrop:
    def recrop(
        box: geometry.Box, level: int, rng: np.random.Generator
    ) -> tuple[geometry.Box, float]:
        del rng
        return geometry.square_box(box, factors[level]), 0.0

    return recrop


def _rotated(box: geometry.Box, level: int, rng: np.random.Generator) -> tuple[geometry.Box, float]:
    side = 1.0 if rng.random() < 0.5 else -1.0
    return box, side * math.radians(_ROTATION[level])


PIXELS: dict[str, Callable[[Crop, int, np.random.Generator], Crop]] = {
    'noise': _noise,
    'blur': _gaussian_blur,
    'motion blur': _motion_blur,
    'brighter': _brighter,
    'darker': _darker,
    'low contrast': _contrast,
    'JPEG': _jpeg,
    'low resolution': _low_resolution,
    'occlusion': _occlusion,
}

GEOMETRY: dict[str, _Recrop] = {
    'crop shifted': _shifted,
    'crop too large': _scaled(_LARGER),
    'crop too small': _scaled(_SMALLER),
    'rotation': _rotated,
}
