"""From a sample to one example of a batch: crop, augmentation, mirroring of left hands.

The geometry is one affine map, applied once to the pixels and once to the keypoints, so the two
cannot drift apart. Photometric changes follow on the crop, in 8 bits.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax import geometry
from handpose_jax.data import resampling
from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.types import Sample

try:
    import cv2
except ModuleNotFoundError:
    # The core of the package is installed without it, and crops by means of `resampling`; whoever
    # augments has installed it.
    cv2 = None  # type: ignore[assignment]

PADDING = 127
"""Grey level outside the image: next to zero once the network has normalised x/127.5 - 1."""

AVERAGED_FROM = 2
"""Photograph pixels for each pixel of the crop, from which on they are averaged in blocks first."""

MARGIN_BLOCKS = 2
"""So many blocks beyond what the crop shows belong to the part that is averaged."""

CROP_RULE: dict[str, Any] = {
    'averaging': {
        'from_step': AVERAGED_FROM,
        'block': 'floor(step)',
        'margin_blocks': MARGIN_BLOCKS,
    },
    'sampling': 'bilinear',
    'outside_the_image': PADDING,
}
"""How warp_crop makes pixels, as exported networks tell it. The page docs/export.md has the
formulas; whoever changes warp_crop changes this and the page."""

_DIGITS = 6
"""Coordinates are rounded to that many decimals before their floor is taken: the last bits of a sum
would otherwise decide where blocks of pixels begin, and for two programs differently."""

REFERENCE_SIZE = 224
"""Side of the crop whose pixels augmentations are told in."""

# Source: ITU-R BT.601, section 2.5.1, the weights of red, green and blue in luminance.
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey of a picture that loses its colour."""

_PROBABILITIES = ('grey', 'blur', 'noise', 'low_resolution', 'occlusion')
_SPREADS = ('contrast', 'gamma', 'white_balance')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges of the random changes to a crop. The default is the paper's geometry, no photometry.

    Source: Gouidis et al. 2019 for rotating, translating and scaling; the paper's ranges are not
    known, the defaults here are ours.

    Attributes:
        rotation: largest angle, degrees, either way; 180 means any orientation.
        translation: largest shift along x and along y, either way, in pixels of a 224 crop; other
            crop sizes scale it.
        scale: (smallest, largest) factor on the hand's size in the crop; 0.5 shows it half as
            large.
        brightness: largest shift, either way, as a fraction of the grey range.
        contrast: c draws a factor between 1/(1+c) and 1+c, about mid-grey.
        gamma: g draws an exponent between 1/(1+g) and 1+g.
        white_balance: w draws a gain for each colour channel between 1/(1+w) and 1+w: a colour
            cast.
        grey: probability of losing the colour.
        blur: probability of a Gaussian (sigma 0.5 to 2 px of a 224 crop) or motion (3 to 11 px)
            blur.
        noise: probability of Gaussian noise, of a sigma between 0 and noise_sigma.
        noise_sigma: grey levels, at most 32.
        low_resolution: probability of losing detail as if the crop had been 1.5 to 4 times smaller.
        occlusion: probability of a plain rectangle, sides 10% to 40% of the crop; keypoints under
            it stay visible, the network is to guess them.

    Raises:
        ValueError: naming the field that is out of range.
    """

    rotation: float = 40.0
    translation: float = 40.0
    scale: Sequence[float] = (0.5, 1.1)
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    white_balance: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    noise_sigma: float = 12.0
    low_resolution: float = 0.0
    occlusion: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(
                f'Augmentation.scale must be (smallest, largest), both positive, got {self.scale}'
            )
        # Configs read from JSON bring a list.
        object.__setattr__(self, 'scale', (float(self.scale[0]), float(self.scale[1])))
        limits = {
            'rotation': 180.0,
            'translation': math.inf,
            'brightness': 1.0,
            'noise_sigma': 32.0,
        }
        limits |= dict.fromkeys(_PROBABILITIES, 1.0) | dict.fromkeys(_SPREADS, 10.0)
        for field, limit in limits.items():
            value = getattr(self, field)
            if not (math.isfinite(value) and 0 <= value <= limit):
                raise ValueError(f'Augmentation.{field} must be in 0..{limit:g}, got {value}')


def crop_image(
    image: UInt8[np.ndarray, 'h w 3'],
    box: Float[np.ndarray, '4'],
    size: int,
    *,
    rotation: float = 0.0,
    mirror: bool = False,
) -> tuple[UInt8[np.ndarray, 's s 3'], Float[np.ndarray, '2 3']]:
    """Cuts a square out of an image; training, evaluation and prediction all crop by this rule.

    Args:
        image: RGB.
        box: x0, y0, x1, y1, image pixels; one that is not square is widened to the square around
            it.
        size: side of the crop, pixels.
        rotation: of the hand in the crop, radians, see geometry.crop_from_image.
        mirror: exchanges left and right, as the network, which knows right hands, needs of a left.

    Returns:
        The crop, and f64[2 3] image_from_crop, which maps its pixels back.
    """
    square = geometry.square_box(np.asarray(box, np.float64), 1.0)
    crop_from_image = geometry.crop_from_image(square, size, rotation=rotation, mirror=mirror)
    return _cut(image, crop_from_image, size)


def _cut(
    image: UInt8[np.ndarray, 'h w 3'], crop_from_image: Float[np.ndarray, '2 3'], size: int
) -> tuple[UInt8[np.ndarray, 's s 3'], Float[np.ndarray, '2 3']]:
    image_from_crop = geometry.invert(crop_from_image)
    return warp_crop(image, image_from_crop, size), image_from_crop


def crop_example(
    sample: Sample,
    *,
    size: int,
    augmentation: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    index: int = 0,
) -> dict[str, Any]:
    """Cuts a sample's hand out and makes it one example of a types.Batch.

    A left hand is mirrored. A keypoint that ends up outside the crop stays visible: whoever
    computes a loss masks it there, and evaluation maps it back to the image.

    Args:
        sample: one hand; a box that is not square is widened to the square around it.
        size: side of the crop, pixels.
        augmentation: None for the plain crop of evaluation.
        rng: draws the augmentation; required with one.
        index: the record's position in its source.

    Returns:
        image u8[size size 3]; keypoints f32[21 2], crop pixels; visible bool[21]; norm_size f32;
        image_from_crop f32[2 3]; valid, True; index i32; hidden bool[21], False where the sample
        does not tell; has_hand, True but where the sample says no_hand.
    """
    scale, rotation, shift = 1.0, 0.0, np.zeros(2)
    if augmentation is not None:
        if rng is None:
            raise ValueError('crop_example: an augmentation needs an rng')
        scale = rng.uniform(augmentation.scale[0], augmentation.scale[1])
        rotation = math.radians(rng.uniform(-augmentation.rotation, augmentation.rotation))
        reach = augmentation.translation * size / REFERENCE_SIZE
        shift = rng.uniform(-reach, reach, 2)
    box = geometry.square_box(np.asarray(sample['box'], np.float64), 1 / scale)
    crop_from_image = geometry.crop_from_image(
        box, size, rotation=rotation, mirror=sample['is_left']
    )
    crop_from_image[:, 2] += shift

    image, image_from_crop = _cut(sample['image'], crop_from_image, size)
    if augmentation is not None and rng is not None:
        image = _photometric(image, augmentation, rng)
    keypoints = geometry.apply_affine(crop_from_image, sample['keypoints'].astype(np.float64))
    return {
        'image': image,
        'keypoints': keypoints.astype(np.float32),
        'visible': np.asarray(sample['visible'], bool),
        'norm_size': np.float32(sample['norm_size']),
        'image_from_crop': image_from_crop.astype(np.float32),
        'valid': np.bool_(True),
        'index': np.int32(index),
        'hidden': np.asarray(sample.get('hidden', np.zeros(NUM_KEYPOINTS)), bool),
        'has_hand': np.bool_(not sample.get('no_hand', False)),
    }


def warp_crop(
    image: UInt8[np.ndarray, 'h w 3'], image_from_crop: Float[np.ndarray, '2 3'], size: int
) -> UInt8[np.ndarray, 's s 3']:
    """Cuts a crop out of an image by an affine map, bilinearly, padded with the grey level PADDING.

    A map that shrinks to half or less averages blocks of pixels first, so that fine texture does
    not alias. CROP_RULE has the numbers, docs/export.md the formulas: other programs follow them.

    Args:
        image: RGB.
        image_from_crop: the map, the inverse of what geometry.crop_from_image gives.
        size: side of the crop, pixels.
    """
    (a, b), (c, d) = image_from_crop[:, :2].tolist()
    step = round(math.sqrt(abs(a * d - b * c)), _DIGITS)
    block = int(step) if step >= AVERAGED_FROM else 1

    # Only the part of the image that the crop shows, and a margin that keeps its borders out of
    # sight: averaging a whole photograph for a small hand would be wasteful, and OpenCV refuses to
    # warp images with a side of 32,768 pixels or more.
    x0, x1 = _reached(image_from_crop[0].tolist(), size, MARGIN_BLOCKS * block, image.shape[1])
    y0, y1 = _reached(image_from_crop[1].tolist(), size, MARGIN_BLOCKS * block, image.shape[0])
    if x0 >= x1 or y0 >= y1:
        return np.full((size, size, 3), PADDING, np.uint8)
    part = image[y0:y1, x0:x1]
    part_from_crop = image_from_crop - np.array([[0.0, 0.0, x0], [0.0, 0.0, y0]])

    if block > 1:
        part_width, part_height = x1 - x0, y1 - y0
        width, height = max(1, round(part_width / block)), max(1, round(part_height / block))
        if cv2 is None:
            part = resampling.average(part, width, height)
        else:
            part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        # Rounding makes the two factors differ a little; each maps exactly, under the pixel-centre
        # rule.
        sx, sy = width / part_width, height / part_height
        small_from_part = np.array([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5]])
        part_from_crop = geometry.compose(small_from_part, part_from_crop)

    if cv2 is None:
        return resampling.warp(part, part_from_crop, size, PADDING)
    # OpenCV warps four channels faster than three, the two conversions included.
    warped = cv2.warpAffine(
        cv2.cvtColor(part, cv2.COLOR_RGB2RGBA),
        part_from_crop,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PADDING,) * 4,
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def _reached(row: Sequence[float], size: int, margin: int, limit: int) -> tuple[int, int]:
    """The range of columns (or rows) of the image that a row of image_from_crop reaches."""
    a, b, offset = row
    middle = a * (size - 1) / 2 + b * (size - 1) / 2 + offset
    reach = (abs(a) + abs(b)) * size / 2
    first = math.floor(round(middle - reach, _DIGITS)) - margin
    last = math.ceil(round(middle + reach, _DIGITS)) + margin + 1
    return min(max(first, 0), limit), min(max(last, 0), limit)


def _photometric(
    image: UInt8[np.ndarray, 's s 3'], augmentation: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, 's s 3']:
    # In the order in which a camera does it: the scene, the lens, the colours, the sensor's noise.
    if rng.random() < augmentation.occlusion:
        _occlude(image, rng)
    if rng.random() < augmentation.low_resolution:
        image = _lose_resolution(image, rng)
    if rng.random() < augmentation.blur:
        image = _blur(image, rng)
    if augmentation.gamma:
        levels = (np.arange(256) / 255) ** _factors(augmentation.gamma, 1, rng)
        image = cv2.LUT(image, np.round(255 * levels).astype(np.uint8))
    if _changes_colour(augmentation):
        image = cv2.transform(image, _colour_matrix(augmentation, rng))
    if rng.random() < augmentation.noise:
        image = _add_noise(image, rng.uniform(0, augmentation.noise_sigma), rng)
    return image


def _factors(spread: float, count: int, rng: np.random.Generator) -> Float[np.ndarray, 'count']:
    reach = math.log1p(spread)
    return np.exp(rng.uniform(-reach, reach, count))


def _changes_colour(augmentation: Augmentation) -> bool:
    return (
        max(
            augmentation.brightness,
            augmentation.contrast,
            augmentation.white_balance,
            augmentation.grey,
        )
        > 0
    )


def _colour_matrix(
    augmentation: Augmentation, rng: np.random.Generator
) -> Float[np.ndarray, '3 4']:
    # Brightness, contrast, colour cast and loss of colour are one linear map of (R, G, B, 1), so
    # that the pixels are touched once.
    grey = rng.random() < augmentation.grey
    linear = np.tile(LUMA, (3, 1)) if grey else np.eye(3)
    linear = linear * _factors(augmentation.white_balance, 3, rng)[:, None]
    contrast = _factors(augmentation.contrast, 1, rng)
    shift = 255 * rng.uniform(-augmentation.brightness, augmentation.brightness)
    offset = np.full(3, 127.5 * (1 - contrast[0]) + shift)
    return np.column_stack([contrast * linear, offset])


def _occlude(image: UInt8[np.ndarray, 's s 3'], rng: np.random.Generator) -> None:
    size = image.shape[0]
    width, height = (rng.uniform(0.1, 0.4, 2) * size).astype(int)
    x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
    image[y : y + height, x : x + width] = rng.integers(0, 256, 3, dtype=np.uint8)


def _lose_resolution(
    image: UInt8[np.ndarray, 's s 3'], rng: np.random.Generator
) -> UInt8[np.ndarray, 's s 3']:
    size = image.shape[0]
    small = max(1, round(size / rng.uniform(1.5, 4)))
    shrunk = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_LINEAR)


def _blur(
    image: UInt8[np.ndarray, 's s 3'], rng: np.random.Generator
) -> UInt8[np.ndarray, 's s 3']:
    unit = image.shape[0] / REFERENCE_SIZE
    if rng.random() < 0.5:
        sigma = unit * rng.uniform(0.5, 2)
        side = 2 * math.ceil(2 * sigma) + 1
        return cv2.GaussianBlur(image, (side, side), sigma)
    # A line through the kernel's centre: symmetric, so that blurred features stay where they were.
    radius = max(1, round(unit * rng.uniform(1, 5)))
    angle = rng.uniform(0, math.pi)
    offsets = np.linspace(-radius, radius, 4 * radius + 1)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    columns = np.round(radius + offsets * math.cos(angle)).astype(int)
    rows = np.round(radius + offsets * math.sin(angle)).astype(int)
    kernel[rows, columns] = 1
    return cv2.filter2D(image, -1, kernel / kernel.sum())


NOISE_SIGMA = 32.0
"""Grey levels, of noise_tile."""

NOISE_SLACK = 64
"""So many positions along each side has a window of noise_tile."""


@functools.lru_cache(maxsize=4)
def noise_tile(size: int) -> UInt8[np.ndarray, 't t 3']:
    """Gaussian noise about 128, of which each crop adds a window, weighted.

    Args:
        size: side of the crop; the tile is NOISE_SLACK wider.
    """
    # Drawing fresh noise for every crop would cost several times all the rest; windows of one tile,
    # at 4,096 positions, do as well.
    shape = (size + NOISE_SLACK, size + NOISE_SLACK, 3)
    noise = np.random.default_rng(0).normal(128, NOISE_SIGMA, shape)
    return np.round(np.clip(noise, 0, 255)).astype(np.uint8)


def _add_noise(
    image: UInt8[np.ndarray, 's s 3'], sigma: float, rng: np.random.Generator
) -> UInt8[np.ndarray, 's s 3']:
    size = image.shape[0]
    x, y = rng.integers(0, NOISE_SLACK, 2)
    window = noise_tile(size)[y : y + size, x : x + size]
    weight = sigma / NOISE_SIGMA
    return cv2.addWeighted(image, 1.0, window, weight, -128 * weight)
