"""Training data in device memory: decoded once; cropped and augmented inside the step, in JAX.

For devices with few host cores beside them, or a slow disk: the host sends four bytes for a record
and four for its place in the stream, and every example is a function of (seed, place) alone. The
same program gives the same bits; that for another number of devices may round one otherwise.

**What is stored.** Of each record the square that any augmentation can reach, `reach` times the
side of its box, left hands mirrored. A square of no more pixels than the stored side (less a
margin for averaging) is kept pixel by pixel, and crops of it are those of transforms.warp_crop to
one grey level. A larger one is shrunk to it by warp_crop, and its crops are resampled twice. The
stored side follows from the settings alone, so that the stream is the same on every machine: by
default the closest crop (the largest scale) has 1.5 stored pixels for each of its own.
"""

import concurrent.futures
import functools
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from handpose_jax import geometry
from handpose_jax.data import pipeline
from handpose_jax.data.transforms import (
    AVERAGED_FROM,
    LUMA,
    MARGIN_BLOCKS,
    NOISE_SIGMA,
    NOISE_SLACK,
    PADDING,
    REFERENCE_SIZE,
    Augmentation,
    noise_tile,
    warp_crop,
)
from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.process import distributed
from handpose_jax.types import Sample, Source

_STORED_PER_CROP_PIXEL = 1.5

_SHARE = 0.8
"""Of the memory that is free; the rest is the network's."""

_RECORDS_AT_ONCE = 64

# float32 knows places in a stored square to so many pixels, so what is below counts as rounding.
_SLACK = 1e-3

_Array = jax.Array


class Stored(NamedTuple):
    """Records in device memory; the frame `square` is pixels of a stored square."""

    images: Any  # u8[n 3 s s], RGB; outside of the picture PADDING
    keypoints: Any  # f32[n 21 2], square
    visible: Any  # bool[n 21]
    hidden: Any  # bool[n 21]
    has_hand: Any  # bool[n]
    norm_size: Any  # f32[n], image pixels
    image_from_square: Any  # f32[n 2 3], with the mirroring of left hands
    centre: Any  # f32[n 2], of the box, square
    side: Any  # f32[n], of the box, square
    limits: Any  # i32[n 4], first column and row of the picture, and the ones behind its last


def reach(augmentation: Augmentation) -> float:
    """Side of the square that crops can reach, over the side of the box."""
    angle = math.radians(min(augmentation.rotation, 45.0))
    shifted = 1 + 2 * augmentation.translation / REFERENCE_SIZE
    return (math.cos(angle) + math.sin(angle)) * shifted / augmentation.scale[0]


def stored_side(size: int, augmentation: Augmentation) -> int:
    """The side of the stored squares where no other is asked for, pixels.

    Args:
        size: side of the crops, pixels.
        augmentation: of the training.
    """
    inner = math.ceil(_STORED_PER_CROP_PIXEL * augmentation.scale[1] * size * reach(augmentation))
    return inner + 2 * _margin(inner, size, augmentation)


def _largest_block(side: int, size: int, augmentation: Augmentation) -> int:
    """Stored pixels that are averaged, along each side, for a pixel of the widest crop."""
    return max(1, int(side / (reach(augmentation) * augmentation.scale[0] * size)))


def _margin(side: int, size: int, augmentation: Augmentation) -> int:
    """Stored pixels on each side beyond the reach, for the blocks that are averaged."""
    return MARGIN_BLOCKS * _largest_block(side, size, augmentation) + 2


def check_fits(count: int, *, size: int, augmentation: Augmentation, side: int = 0) -> None:
    """Refuses what this process's devices cannot hold, before anything is decoded.

    Args:
        count: of the records.
        size: side of the crops, pixels.
        augmentation: of the training.
        side: of the stored squares, pixels; 0 for stored_side.

    Raises:
        ValueError: with the bytes needed and those at hand.
    """
    side = side or stored_side(size, augmentation)
    needed = count * 3 * side**2
    free, where = _free_memory()
    if needed > _SHARE * free:
        fitting = int(math.sqrt(_SHARE * max(free, 0) / (3 * count)))
        raise ValueError(
            f"config.pipeline.place: 'device' needs {needed:,} bytes for {count:,} records of "
            f'{side} x {side} pixels, and of the {free:,} bytes free {where} at most '
            f'{_SHARE:.0%} may go to them; set config.pipeline.stored_side to {fitting} or less, '
            "which blurs crops of large pictures, or config.pipeline.place='host'"
        )


def _free_memory() -> tuple[int, str]:
    """Bytes free for the records on the fullest device of this process, and what they are of."""
    devices = jax.local_devices()
    statistics = [device.memory_stats() for device in devices]
    known = [one for one in statistics if one and 'bytes_limit' in one]
    if known:
        return min(one['bytes_limit'] - one['bytes_in_use'] for one in known), 'on a device'
    # Devices that are the host share its memory, and each holds all records.
    return _free_host_memory() // len(devices), f'on the host for each of {len(devices)} devices'


def _free_host_memory() -> int:
    try:
        # What the system would give up of its caches counts as free; sysconf leaves that out.
        with open('/proc/meminfo', encoding='ascii') as file:
            facts = dict(line.split(':') for line in file)
        return int(facts['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def load(
    source: Source,
    *,
    size: int,
    augmentation: Augmentation,
    mesh: Mesh,
    side: int = 0,
    num_threads: int = 2,
) -> Stored:
    """Decodes every record once, and puts what crops can reach of it on every device.

    Args:
        source: of the records.
        size: side of the crops, pixels.
        augmentation: of the training.
        mesh: of the run; each device holds all records.
        side: of the stored squares, pixels; 0 for stored_side.
        num_threads: that decode.

    Raises:
        ValueError: for a record that cannot be read, by its name.
    """
    side = side or stored_side(size, augmentation)
    inner = side - 2 * _margin(side, size, augmentation)
    cut = functools.partial(_cut, side=side, inner=inner, reached=reach(augmentation))
    images = jnp.zeros((len(source), 3, side, side), jnp.uint8, device=distributed.replicated(mesh))
    put = jax.jit(
        lambda images, part, start: jax.lax.dynamic_update_slice(images, part, (start, 0, 0, 0)),
        donate_argnums=0,
        out_shardings=distributed.replicated(mesh),
    )
    others: list[Stored] = []
    with concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
        # In parts, so that the host never holds all of them.
        for start in range(0, len(source), _RECORDS_AT_ONCE):
            indices = range(start, min(start + _RECORDS_AT_ONCE, len(source)))
            records = list(pool.map(lambda index: pipeline.made_of(source, index, cut), indices))
            part = np.stack([record.images for record in records])
            images = put(images, distributed.replicate(part, mesh), start)
            others.extend(record._replace(images=None) for record in records)
    stacked = jax.tree.map(lambda *values: np.stack(values), *others)
    return distributed.replicate(stacked, mesh)._replace(images=images)


def _cut(sample: Sample, *, side: int, inner: int, reached: float) -> Stored:
    """One record, as Stored but without the first dimension."""
    box = geometry.square_box(np.asarray(sample['box'], np.float64))
    middle = (box[:2] + box[2:]) / 2
    pitch = max(1.0, reached * geometry.longest_side(box) / inner)
    if pitch == 1:
        # Stored pixels are those of the picture only where the two grids fall together.
        corner = np.floor(middle - (side - 1) / 2 + 0.5) - 0.5
    else:
        corner = middle - pitch * side / 2
    window = np.concatenate([corner, corner + pitch * side])
    mirror = bool(sample['is_left'])
    square_from_image = geometry.crop_from_image(window, side, mirror=mirror)
    image_from_square = geometry.invert(square_from_image)
    image = warp_crop(sample['image'], image_from_square, side)

    def moved(points: np.ndarray) -> np.ndarray:
        return geometry.apply_affine(square_from_image, points.astype(np.float64))

    corners = moved(geometry.whole_image_box(*sample['image'].shape[:2]).reshape(2, 2)) + 0.5
    first, end = corners.min(axis=0).round(6), corners.max(axis=0).round(6)
    limits = np.clip(np.concatenate([np.floor(first), np.ceil(end)]), 0, side)
    return Stored(
        images=np.moveaxis(image, -1, 0),
        keypoints=moved(sample['keypoints']).astype(np.float32),
        visible=np.asarray(sample['visible'], bool),
        hidden=np.asarray(sample.get('hidden', np.zeros(NUM_KEYPOINTS)), bool),
        has_hand=np.bool_(not sample.get('no_hand', False)),
        norm_size=np.float32(sample['norm_size']),
        image_from_square=image_from_square.astype(np.float32),
        centre=moved(middle[None])[0].astype(np.float32),
        side=np.float32(geometry.longest_side(box) / pitch),
        limits=limits.astype(np.int32),
    )


def batch_of(
    stored: Stored,
    batch: Mapping[str, _Array],
    *,
    seed: int,
    size: int,
    augmentation: Augmentation,
) -> dict[str, _Array]:
    """Crops and augments a batch, in the step.

    Args:
        stored: from load.
        batch: of pipeline.train_positions. 'position' u32[b] and the seed decide everything random;
            'index' i32[b] says which records.
        seed: 0..2**32 - 1.
        size: side of the crops, pixels; static, as the others below.
        augmentation: as at load.

    Returns:
        types.Batch.
    """
    root = jax.random.key(np.uint32(seed), impl='threefry2x32')
    block = _largest_block(stored.images.shape[-1], size, augmentation)

    def example(position: _Array, index: _Array) -> dict[str, _Array]:
        record = Stored(*(values[index] for values in stored))
        key, photometric = jax.random.split(jax.random.fold_in(root, position))
        scale, angle, shift = draw_geometry(key, size, augmentation)
        square_from_crop, crop_from_square = _maps(record, scale, angle, shift, size)
        image = _warp(record, square_from_crop, record.side / (scale * size), size, block)
        image = augment(image, photometric, augmentation)
        return {
            'image': jnp.moveaxis(image, 0, -1).astype(jnp.uint8),
            'keypoints': _apply(crop_from_square, record.keypoints),
            'visible': record.visible,
            'norm_size': record.norm_size,
            'image_from_crop': _compose(record.image_from_square, square_from_crop),
            'valid': jnp.bool_(True),
            'index': index,
            'hidden': record.hidden,
            'has_hand': record.has_hand,
        }

    return jax.vmap(example)(batch['position'], batch['index'])


def draw_geometry(
    key: _Array, size: int, augmentation: Augmentation
) -> tuple[_Array, _Array, _Array]:
    """Draws what crop_example draws: scale f32[], rotation f32[] (radians), shift f32[2] (px)."""
    keys = jax.random.split(key, 3)
    turn = math.radians(augmentation.rotation)
    far = augmentation.translation * size / REFERENCE_SIZE
    return (
        _uniform(keys[0], augmentation.scale[0], augmentation.scale[1]),
        _uniform(keys[1], -turn, turn),
        _uniform(keys[2], -far, far, (2,)),
    )


def _maps(
    record: Stored, scale: _Array, angle: _Array, shift: _Array, size: int
) -> tuple[_Array, _Array]:
    """geometry.crop_from_image of the scaled box, shifted; its inverse comes first."""
    step = record.side / (scale * size)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, -sin], [sin, cos]])
    middle = (size - 1) / 2 + shift
    back = turn.T * step
    forth = turn / step
    return (
        jnp.column_stack([back, record.centre - _times(back, middle)]),
        jnp.column_stack([forth, middle - _times(forth, record.centre)]),
    )


# Products of two or three numbers are written as sums: a matrix product may be rounded more
# coarsely on accelerators, and another way for other sizes of batch.
def _times(linear: _Array, point: _Array) -> _Array:
    return (linear * point).sum(axis=-1)


def _apply(dst_from_src: _Array, points: _Array) -> _Array:
    return (dst_from_src[:, :2] * points[:, None]).sum(axis=-1) + dst_from_src[:, 2]


def _compose(c_from_b: _Array, b_from_a: _Array) -> _Array:
    linear = (c_from_b[:, :2, None] * b_from_a[None]).sum(axis=1)
    return linear.at[:, 2].add(c_from_b[:, 2])


def _warp(
    record: Stored, square_from_crop: _Array, step: _Array, size: int, largest_block: int
) -> _Array:
    """transforms.warp_crop out of a stored square; f32[3 size size], whole grey levels."""
    x, y = jnp.meshgrid(jnp.arange(size), jnp.arange(size))
    points = _apply(square_from_crop, jnp.stack([x.ravel(), y.ravel()], axis=-1))
    found = _sample(record.images, points)
    if largest_block > 1:
        block = jnp.where(step + 1e-5 >= AVERAGED_FROM, jnp.floor(step + 1e-5), 1)
        block = jnp.minimum(block, largest_block)
        axes = [
            _part(square_from_crop[axis], record.limits[axis::2], block, size) for axis in (0, 1)
        ]
        start, cell, count = (jnp.stack(numbers) for numbers in zip(*axes, strict=True))
        # A step is less than 1.5 blocks where there are blocks, and a crop may stand on its corner.
        most = math.ceil(1.5 * math.sqrt(2) * size) + 2 * MARGIN_BLOCKS + 3
        columns, rows = (
            _means(start[axis], cell[axis], count[axis], most, record.images.shape[-1])
            for axis in (0, 1)
        )
        small = jnp.rint(_along_axes(record.images.astype(jnp.float32) - PADDING, rows, columns))
        averaged = _sample(small + PADDING, (points - start + 0.5) / cell - 0.5)
        found = jnp.where(block > 1, averaged, found)
    return found.reshape(3, size, size)


def _sample(image: _Array, points: _Array) -> _Array:
    """Bilinearly, (x, y) of f32[p 2] in u8 or f32[3 h w]; f32[3 p], whole grey levels."""
    height, width = image.shape[1:]
    corner = jnp.floor(points)
    x, y = (points - corner).T
    corner = corner.astype(jnp.int32)
    pixels = image.reshape(3, -1)
    total = jnp.zeros((3, len(points)))
    for right, down, weight in (
        (0, 0, (1 - x) * (1 - y)),
        (1, 0, x * (1 - y)),
        (0, 1, (1 - x) * y),
        (1, 1, x * y),
    ):
        column, row = (corner + np.array([right, down])).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        total += jnp.where(inside, weight, 0) * (pixels[:, place].astype(jnp.float32) - PADDING)
    return jnp.rint(total) + PADDING


def _part(row: _Array, limits: _Array, block: _Array, size: int) -> tuple[_Array, _Array, _Array]:
    """What of an axis is averaged: its first pixel, the side of a mean's area, and their count."""
    middle = (row[0] + row[1]) * ((size - 1) / 2) + row[2]
    far = (jnp.abs(row[0]) + jnp.abs(row[1])) * (size / 2)
    margin = MARGIN_BLOCKS * block
    first = jnp.clip(jnp.floor(middle - far + _SLACK) - margin, *limits)
    end = jnp.clip(jnp.ceil(middle + far - _SLACK) + margin + 1, *limits)
    length = end - first
    count = jnp.where(length > 0, jnp.maximum(1, jnp.round(length / block)), 0)
    return first, jnp.where(count > 0, length / jnp.maximum(count, 1), 1), count


def _means(start: _Array | float, cell: _Array, count: _Array, most: int, length: int) -> _Array:
    """The matrix f32[most length] of `count` means of `cell` pixels each, from `start` on."""
    numbers = jnp.arange(most)[:, None]
    first = start + numbers * cell
    pixels = jnp.arange(length)
    covered = jnp.minimum(first + cell, pixels + 1) - jnp.maximum(first, pixels)
    return jnp.where(numbers < count, jnp.clip(covered, 0, 1) / cell, 0)


# Accelerators round the factors of a product to bfloat16 or TF32 unless told.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _along_axes(image: _Array, rows: _Array, columns: _Array) -> _Array:
    """f32[3 h w] to f32[3 r c], by matrices f32[r h] and f32[c w].

    Products of matrices are quick everywhere, and no compiler computes their factors twice.
    """
    return _product(_product(rows, image), columns.T)


def augment(image: _Array, key: _Array, augmentation: Augmentation) -> _Array:
    """The photometric changes of transforms.crop_example, in their order.

    Args:
        image: f32[3 size size], whole grey levels of 0..255.
        key: decides everything random.
        augmentation: the ranges; changes that cannot happen are not compiled.

    Returns:
        As image.
    """
    size = image.shape[-1]
    keys = iter(jax.random.split(key, (6, 2)))

    def happens(key: _Array, probability: float) -> _Array:
        return jax.random.uniform(key) < probability

    (chance, values) = next(keys)
    if augmentation.occlusion:
        image = jnp.where(happens(chance, augmentation.occlusion), _occlude(image, values), image)
    # What does not happen is a product with the identity: products are stored, where compilers
    # would work out a choice between pictures again for every pixel of the next change.
    same = softened = jnp.eye(size)
    (chance, values) = next(keys)
    if augmentation.low_resolution:
        coarse = happens(chance, augmentation.low_resolution)
        fewer, softened = (jnp.where(coarse, one, same) for one in _coarse(values, size))
        image = jnp.rint(_along_axes(image, fewer, fewer))
    (chance, values) = next(keys)
    kind, values = jax.random.split(values)
    blurred = happens(chance, augmentation.blur)
    gaussian = happens(kind, 0.5)
    if augmentation.blur:
        out_of_focus = jnp.where(blurred & gaussian, _gaussian(values, size), same)
        softened = _product(out_of_focus, softened)
    if augmentation.low_resolution or augmentation.blur:
        image = _levels(_along_axes(image, softened, softened))
    if augmentation.blur:
        image = jnp.where(blurred & ~gaussian, _levels(_smear(image, values)), image)
    (_, values) = next(keys)
    if augmentation.gamma:
        image = _levels(255 * (image / 255) ** _factors(values, augmentation.gamma))
    (_, values) = next(keys)
    if max(
        *(augmentation.brightness, augmentation.contrast),
        *(augmentation.white_balance, augmentation.grey),
    ):
        image = _levels(_colour(image, values, augmentation))
    (chance, values) = next(keys)
    if augmentation.noise:
        noisy = _levels(_add_noise(image, values, augmentation.noise_sigma))
        image = jnp.where(happens(chance, augmentation.noise), noisy, image)
    return image


def _levels(image: _Array) -> _Array:
    return jnp.clip(jnp.rint(image), 0, 255)


def _uniform(key: _Array, low: float, high: float, shape: tuple[int, ...] = ()) -> _Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _factors(key: _Array, spread: float, shape: tuple[int, ...] = ()) -> _Array:
    far = math.log1p(spread)
    return jnp.exp(_uniform(key, -far, far, shape))


def _occlude(image: _Array, key: _Array) -> _Array:
    size = image.shape[-1]
    keys = jax.random.split(key, 3)
    sides = jnp.floor(_uniform(keys[0], 0.1, 0.4, (2,)) * size).astype(jnp.int32)
    first = jax.random.randint(keys[1], (2,), 0, size - sides + 1)
    colour = jax.random.randint(keys[2], (3, 1, 1), 0, 256)
    place = jnp.arange(size)[:, None]
    rows, columns = ((place >= first) & (place < first + sides)).T
    return jnp.where(rows[:, None] & columns, colour, image)


def _coarse(key: _Array, size: int) -> tuple[_Array, _Array]:
    """The matrices f32[size size] that average along an axis to fewer pixels, and interpolate."""
    small = jnp.maximum(1, jnp.round(size / _uniform(key, 1.5, 4.0)))
    cell = size / small
    place = jnp.clip((jnp.arange(size)[:, None] + 0.5) / cell - 0.5, 0, small - 1)
    between = jnp.maximum(0, 1 - jnp.abs(place - jnp.arange(size)))
    return _means(0.0, cell, small, size, size), between


def _gaussian(key: _Array, size: int) -> _Array:
    """The matrix f32[size size] that blurs along an axis, mirrored at its ends."""
    unit = size / REFERENCE_SIZE
    sigma = unit * _uniform(key, 0.5, 2.0)
    most = math.ceil(4 * unit)
    offsets = np.arange(-most, most + 1)
    weights = jnp.exp(-(offsets**2) / (2 * sigma**2))
    weights = jnp.where(np.abs(offsets) <= jnp.ceil(2 * sigma), weights, 0)
    weights /= weights.sum()
    met = np.abs(np.arange(size)[:, None] + offsets)
    met = np.minimum(met, 2 * (size - 1) - met)
    return (weights[:, None] * (met[..., None] == np.arange(size))).sum(axis=1)


def _smear(image: _Array, key: _Array) -> _Array:
    """Motion blur: a line through the kernel's centre, as the host draws it."""
    unit = image.shape[-1] / REFERENCE_SIZE
    keys = jax.random.split(key)
    radius = jnp.maximum(1, jnp.round(unit * _uniform(keys[0], 1.0, 5.0)))
    angle = _uniform(keys[1], 0.0, math.pi)
    most = max(1, round(5 * unit))
    # Half a pixel apart along the line, and no pixel counts twice.
    steps = np.arange(-2 * most, 2 * most + 1)
    shifts = jnp.round(steps[:, None] / 2 * jnp.stack([jnp.sin(angle), jnp.cos(angle)]))
    fresh = (shifts != jnp.roll(shifts, 1, axis=0)).any(axis=-1) | (steps == -2 * radius)
    weights = jnp.where((np.abs(steps) <= 2 * radius) & fresh, 1.0, 0.0)
    weights /= weights.sum()
    framed = jnp.pad(image, ((0, 0), (most, most), (most, most)), mode='reflect')
    corners = (shifts + most).astype(jnp.int32)
    total = jnp.zeros_like(image)
    for weight, (row, column) in zip(weights, corners, strict=True):
        total += weight * jax.lax.dynamic_slice(framed, (0, row, column), image.shape)
    return total


def _colour(image: _Array, key: _Array, augmentation: Augmentation) -> _Array:
    keys = jax.random.split(key, 4)
    grey = jax.random.uniform(keys[0]) < augmentation.grey
    linear = jnp.where(grey, jnp.tile(jnp.array(LUMA), (3, 1)), jnp.eye(3))
    linear *= _factors(keys[1], augmentation.white_balance, (3,))[:, None]
    contrast = _factors(keys[2], augmentation.contrast)
    brightness = _uniform(keys[3], -augmentation.brightness, augmentation.brightness)
    mixed = _product(contrast * linear, image.reshape(3, -1)).reshape(image.shape)
    return mixed + 127.5 * (1 - contrast) + 255 * brightness


def _add_noise(image: _Array, key: _Array, largest: float) -> _Array:
    keys = jax.random.split(key)
    weight = _uniform(keys[0], 0.0, largest) / NOISE_SIGMA
    first = jax.random.randint(keys[1], (2,), 0, NOISE_SLACK)
    tile = jnp.asarray(np.moveaxis(noise_tile(image.shape[-1]), -1, 0))
    window = jax.lax.dynamic_slice(tile, (0, first[0], first[1]), image.shape)
    return image + weight * (window.astype(jnp.float32) - 128)
