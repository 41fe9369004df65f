"""What lies behind a hand, and patterns for the things around it: drawn, or cut out of photographs.

Pictures are f32[h w 3], linear RGB, about 0..1.
"""

import functools
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Picture = Float[np.ndarray, 'h w 3']

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')

# Source: IEC 61966-2-1 (sRGB), the inverse of the transfer function.
_BYTES = np.arange(256) / 255
_LINEAR = np.where(_BYTES <= 0.04045, _BYTES / 12.92, ((_BYTES + 0.055) / 1.055) ** 2.4)
_LINEAR = _LINEAR.astype(np.float32)


def linear(image: UInt8[np.ndarray, '*size']) -> Float[np.ndarray, '*size']:
    """Linear light of sRGB bytes, f32 in 0..1."""
    return _LINEAR[image]


@functools.cache
def photographs(folder: str) -> tuple[str, ...]:
    """The pictures in a folder and below it, sorted by path.

    Raises:
        ValueError: if there are none.
    """
    found = tuple(sorted(str(p) for p in Path(folder).rglob('*') if p.suffix.lower() in _SUFFIXES))
    if not found:
        raise ValueError(f'{folder}: no photographs ({", ".join(_SUFFIXES)}) in this folder')
    return found


def read(path: str) -> UInt8[np.ndarray, 'h w 3']:
    """Reads a picture as sRGB.

    Raises:
        ValueError: if it cannot be read.
    """
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path}: not a picture that can be read')
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def photograph(rng: np.random.Generator, folder: str, size: int) -> Picture:
    """A random square part of a random photograph (see photographs), `size` pixels a side."""
    paths = photographs(folder)
    image = linear(read(paths[rng.integers(len(paths))]))
    side = round(min(image.shape[:2]) * rng.uniform(0.45, 1.0))
    y = rng.integers(image.shape[0] - side + 1)
    x = rng.integers(image.shape[1] - side + 1)
    part = image[y : y + side, x : x + side]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    shrink = side > size
    method = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    part = cv2.resize(np.ascontiguousarray(part), (size, size), interpolation=method)
    return np.clip(part, 0, 1)


def drawn(rng: np.random.Generator, size: int) -> Picture:
    """A wall, a gradient, clutter out of focus, or a pattern, `size` pixels a side."""
    kinds = (_gradient, _clutter, _clutter, pattern, _room)
    picture = kinds[rng.integers(len(kinds))](rng, size)
    if rng.random() < 0.6:
        sigma = float(rng.uniform(0.3, 6.0)) * size / 224
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    grain = _noise(rng, size) - 0.5
    return np.clip(picture * (1 + rng.uniform(0, 0.5) * grain[..., None]), 0, 4).astype(np.float32)


def colour(rng: np.random.Generator) -> Float[np.ndarray, '3']:
    """A random colour as things have, linear RGB: mostly dull, some vivid, many dark."""
    value = rng.uniform(0.02, 0.95) ** 1.4
    hue = rng.uniform(0, 1, 3)
    saturation = rng.beta(1.2, 2.5)
    return (value * ((1 - saturation) + saturation * hue / hue.max())).astype(np.float32)


def _noise(rng: np.random.Generator, size: int) -> Float[np.ndarray, 's s']:
    """Cloudy noise in 0..1, in four octaves."""
    total = np.zeros((size, size), np.float32)
    strength, cells = 1.0, int(rng.integers(2, 6))
    for _ in range(4):
        coarse = rng.random((min(cells, size), min(cells, size)), dtype=np.float32)
        total += strength * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        strength *= 0.6
        cells *= 2
    low, high = total.min(), total.max()
    return (total - low) / max(float(high - low), 1e-6)


def _gradient(rng: np.random.Generator, size: int) -> Picture:
    corners = np.stack([colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    if rng.random() < 0.6:
        # A plain wall, unevenly lit.
        corners = corners[:1, :1] * rng.uniform(0.6, 1.2, (2, 2, 1)).astype(np.float32)
    return cv2.resize(np.ascontiguousarray(corners, np.float32), (size, size))


def _clutter(rng: np.random.Generator, size: int) -> Picture:
    """Things, from far and blurred to near and sharper."""
    picture = _gradient(rng, size)
    for layer in range(3):
        for _ in range(int(rng.integers(2, 9))):
            _draw_thing(rng, picture, size)
        sigma = float(rng.uniform(0.2, 3.0)) * (3 - layer) * size / 224
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    return picture


def _draw_thing(rng: np.random.Generator, picture: Picture, size: int) -> None:
    tone = [float(c) for c in colour(rng)]
    centre = rng.uniform(0, size, 2)
    extent = size * rng.uniform(0.03, 0.35, 2)
    angle = float(rng.uniform(0, 360))
    kind = rng.integers(4)
    if kind == 0:
        axes = (max(1, round(extent[0])), max(1, round(extent[1])))
        at = (round(centre[0]), round(centre[1]))
        cv2.ellipse(picture, at, axes, angle, 0, 360, tone, -1, cv2.LINE_AA)
    elif kind == 1:
        corners = cv2.boxPoints((tuple(centre.tolist()), tuple((2 * extent).tolist()), angle))
        cv2.fillPoly(picture, [np.round(corners).astype(np.int32)], tone, cv2.LINE_AA)
    elif kind == 2:
        points = centre + rng.normal(0, 1, (int(rng.integers(3, 8)), 2)) * extent
        cv2.fillPoly(picture, [np.round(points).astype(np.int32)], tone, cv2.LINE_AA)
    else:
        ends = np.round(centre + np.outer([-3, 3], rng.normal(0, 1, 2) * extent)).astype(int)
        width = max(1, round(float(extent.min()) / 3))
        cv2.line(picture, ends[0].tolist(), ends[1].tolist(), tone, width, cv2.LINE_AA)


def _room(rng: np.random.Generator, size: int) -> Picture:
    """A wall over a floor or table edge, with clutter on it."""
    wall, floor = colour(rng), colour(rng)
    picture = np.empty((size, size, 3), np.float32)
    slope, level = rng.normal(0, 0.15), rng.uniform(0.2, 0.8)
    y, x = np.mgrid[:size, :size] / size
    picture[:] = np.where((y > level + slope * (x - 0.5))[..., None], floor, wall)
    for _ in range(int(rng.integers(1, 6))):
        _draw_thing(rng, picture, size)
    return cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 4)) * size / 224)


def pattern(rng: np.random.Generator, size: int) -> Picture:
    """Wood, stripes, checks, weave, speckle or plain paint from above, `size` pixels a side."""
    kind = rng.integers(6)
    light, dark = colour(rng), colour(rng)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    angle = rng.uniform(0, np.pi)
    u = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    v = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
    cloud = _noise(rng, size)
    mix: np.ndarray
    if kind == 0:
        # Wood: rings, drawn out along the grain, cut into boards.
        boards = rng.uniform(1.5, 6)
        rings = 6 * u + 0.6 * cloud + 0.1 * np.sin(9 * v) + np.floor(u * boards) * 1.7
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * rings * rng.uniform(2, 6))
        light = rng.uniform(0.15, 0.6) * np.array([1.0, 0.68, 0.42], np.float32)
        dark = light * np.array([0.6, 0.5, 0.42], np.float32)
        mix = mix * (0.6 + 0.4 * cloud)
        gap = (np.modf(u * boards + 20)[0] < 0.012).astype(np.float32)
        mix = np.minimum(mix + gap, 1.2)
    elif kind == 1:
        mix = np.sin(2 * np.pi * u * rng.uniform(2, 14)) > rng.uniform(-0.8, 0.8)
    elif kind == 2:
        cells = rng.uniform(2, 12)
        mix = (np.floor(u * cells) + np.floor(v * cells)) % 2
    elif kind == 3:
        threads = rng.uniform(40, 110)
        weave = np.sin(2 * np.pi * u * threads) * np.sin(2 * np.pi * v * threads)
        mix = 0.5 + 0.3 * weave + 0.4 * (cloud - 0.5)
    elif kind == 4:
        fine = rng.random((size, size), dtype=np.float32)
        speckle = cv2.GaussianBlur(fine, (0, 0), float(rng.uniform(0.5, 2.5))) > 0.53
        mix = speckle * 0.6 + 0.3 * cloud
    else:
        mix = 0.35 * cloud
    mix = mix[..., None].astype(np.float32)
    return np.clip(light * (1 - mix) + dark * mix, 0, 1.5).astype(np.float32)


_WHITENESS = 0.6


def surroundings(picture: Float[np.ndarray, 's s 3']) -> Float[np.ndarray, '16 32 3']:
    """Light from everywhere that goes with a backdrop: rough, and brighter from above.

    Returns:
        Latitudes, from above to below, by longitudes.
    """
    coarse = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)
    around = np.concatenate([coarse, coarse[:, ::-1]], axis=1)
    # What is not in the picture is guessed: mostly the average of what is.
    around = 0.5 * around + 0.5 * coarse.mean(axis=(0, 1))
    # Most light comes from lamps and sky and is whiter than the things that it falls on.
    around = (1 - _WHITENESS) * around + _WHITENESS * around.mean(axis=2, keepdims=True)
    above = np.linspace(1.6, 0.5, 16, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray(around * above, np.float32)


def out_of_focus(rng: np.random.Generator, picture: Picture) -> Picture:
    """A picture blurred as a backdrop behind something in focus is."""
    sigma = float(rng.uniform(0.5, 5.0)) * len(picture) / 224
    return cv2.GaussianBlur(picture, (0, 0), sigma)
