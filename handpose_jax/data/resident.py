"""Training data in device memory: decoded once; cropped and augmented inside the step, in JAX.

For devices with few host cores beside them, or a slow disk: the host sends four bytes for a record
and four for its place in the stream, and every example is a function of (seed, place) alone.

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
from collections.abc import Callable, Mapping
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

    images: Any  # u8[n s 3s], RGB; outside of the picture PADDING
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
    inner = math.ceil(
        _STORED_PER_CROP_PIXEL * augmentation.scale[1] * size * reach(augmentation)
    )
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
    images = jnp.zeros(
        (len(source), side, 3 * side), jnp.uint8, device=distributed.replicated(mesh)
    )
    put = jax.jit(
        lambda images, part, start: jax.lax.dynamic_update_slice(images, part, (start, 0, 0)),
        donate_argnums=0,
        out_shardings=distributed.replicated(mesh),
    )
    others = []
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
        images=image.reshape(side, 3 * side),
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
    block = _largest_block(stored.images.shape[1], size, augmentation)

    def example(position: _Array, index: _Array) -> dict[str, _Array]:
        record = Stored(*(values[index] for values in stored))
        key, photometric = jax.random.split(jax.random.fold_in(root, position))
        scale, angle, shift = draw_geometry(key, size, augmentation)
        square_from_crop, crop_from_square = _maps(record, scale, angle, shift, size)
        image = _warp(record, square_from_crop, record.side / (scale * size), size, block)
        image = augment(image, photometric, augmentation)
        return {
            'image': image.astype(jnp.uint8),
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
        _uniform(keys[0], *augmentation.scale),
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
    """transforms.warp_crop out of a stored square; f32[size size 3], whole grey levels."""
    side = record.images.shape[0]
    # Padding is zero here, which is what weights of zero leave.
    values = record.images.astype(jnp.float32) - PADDING
    start, cell = jnp.zeros(2), jnp.ones(2)
    if largest_block > 1:
        block = jnp.where(step + 1e-5 >= AVERAGED_FROM, jnp.floor(step + 1e-5), 1)
        block = jnp.minimum(block, largest_block)
        axes = [
            _part(square_from_crop[axis], record.limits[axis::2], block, size, side)
            for axis in (0, 1)
        ]
        start, cell, count = (jnp.stack(numbers) for numbers in zip(*axes, strict=True))
        taps = math.ceil(1.5 * largest_block) + 1
        values = _average_rows(values, start[1], cell[1], count[1], taps)
        values = _swap(values, side)
        values = _average_rows(values, start[0], cell[0], count[0], taps)
        values = jnp.rint(_swap(values, side))
    x, y = jnp.meshgrid(jnp.arange(size), jnp.arange(size))
    points = _apply(square_from_crop, jnp.stack([x.ravel(), y.ravel()], axis=-1))
    points = (points - start + 0.5) / cell - 0.5
    corner = jnp.floor(points)
    fraction = points - corner
    corner = corner.astype(jnp.int32)
    pixels = values.reshape(side * side, 3)
    total = jnp.zeros((size * size, 3))
    for right in (0, 1):
        for down in (0, 1):
            place = corner + jnp.array([right, down])
            weight = jnp.where(jnp.array([right, down]) == 1, fraction, 1 - fraction).prod(axis=-1)
            inside = ((place >= 0) & (place < side)).all(axis=-1)
            place = jnp.clip(place, 0, side - 1)
            found = pixels[place[:, 1] * side + place[:, 0]]
            total += jnp.where(inside, weight, 0)[:, None] * found
    return jnp.rint(total).reshape(size, size, 3) + PADDING


def _part(
    row: _Array, limits: _Array, block: _Array, size: int, side: int
) -> tuple[_Array, _Array, _Array]:
    """What of an axis is averaged: its first pixel, the side of a mean's area, and their count."""
    middle = (row[0] + row[1]) * ((size - 1) / 2) + row[2]
    far = (jnp.abs(row[0]) + jnp.abs(row[1])) * (size / 2)
    margin = MARGIN_BLOCKS * block
    first = jnp.floor(middle - far + _SLACK) - margin
    end = jnp.ceil(middle + far - _SLACK) + margin + 1
    first, end = jnp.clip(first, *limits), jnp.clip(end, *limits)
    length = end - first
    count = jnp.where(length > 0, jnp.maximum(1, jnp.round(length / block)), 0)
    cell = jnp.where(count > 0, length / jnp.maximum(count, 1), 1)
    averaged = block > 1
    return (
        jnp.where(averaged, first, 0),
        jnp.where(averaged, cell, 1),
        jnp.where(averaged, count, side),
    )


def _average_rows(
    values: _Array, start: _Array, cell: _Array, count: _Array, taps: int
) -> _Array:
    """Row i is the mean of the old rows from start + i * cell on, over cell of them; 0 from count.

    Args:
        values: f32[rows columns].
        start: of the first mean.
        cell: rows, not whole.
        count: of the means.
        taps: no mean touches more rows than that.
    """
    numbers = jnp.arange(values.shape[0])
    edge = start + numbers * cell
    first = jnp.floor(edge + _SLACK)
    rows = first[:, None] + jnp.arange(taps)
    covered = jnp.minimum(edge[:, None] + cell, rows + 1) - jnp.maximum(edge[:, None], rows)
    weights = jnp.where((numbers < count)[:, None], jnp.clip(covered, 0, 1) / cell, 0)
    return _mix_rows(values, first.astype(jnp.int32), weights)


def _mix_rows(values: _Array, first: _Array, weights: _Array) -> _Array:
    """Row i is the weighted sum of the old rows from first[i] on: whole rows are quick to fetch."""
    last = values.shape[0] - 1
    return sum(
        weights[:, tap, None] * values[jnp.minimum(first + tap, last)]
        for tap in range(weights.shape[1])
    )


def _swap(values: _Array, side: int) -> _Array:
    """Rows of RGB pixels f32[r 3c] to columns."""
    return values.reshape(-1, side, 3).swapaxes(0, 1).reshape(side, -1)


def augment(image: _Array, key: _Array, augmentation: Augmentation) -> _Array:
    """The photometric changes of transforms.crop_example, in their order.

    Args:
        image: f32[size size 3], whole grey levels of 0..255.
        key: decides everything random.
        augmentation: the ranges; changes that cannot happen are not compiled.

    Returns:
        As image.
    """
    changes: list[tuple[bool | float, Callable[[_Array, _Array], _Array]]] = [
        (augmentation.occlusion, _occlude),
        (augmentation.low_resolution, _lose_resolution),
        (augmentation.blur, _blur),
        (augmentation.gamma > 0, functools.partial(_bend, spread=augmentation.gamma)),
        (
            max(
                *(augmentation.brightness, augmentation.contrast),
                *(augmentation.white_balance, augmentation.grey),
            )
            > 0,
            functools.partial(_colour, augmentation=augmentation),
        ),
        (augmentation.noise, functools.partial(_add_noise, largest=augmentation.noise_sigma)),
    ]
    for (probability, change), pair in zip(
        changes, jax.random.split(key, (len(changes), 2)), strict=True
    ):
        if probability:
            happens = jax.random.uniform(pair[0]) < probability
            image = jnp.where(happens, _levels(change(image, pair[1])), image)
    return image


def _levels(image: _Array) -> _Array:
    return jnp.clip(jnp.rint(image), 0, 255)


def _uniform(key: _Array, low: float, high: float, shape: tuple[int, ...] = ()) -> _Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _factors(key: _Array, spread: float, shape: tuple[int, ...] = ()) -> _Array:
    far = math.log1p(spread)
    return jnp.exp(_uniform(key, -far, far, shape))


def _occlude(image: _Array, key: _Array) -> _Array:
    size = image.shape[0]
    keys = jax.random.split(key, 3)
    sides = jnp.floor(_uniform(keys[0], 0.1, 0.4, (2,)) * size).astype(jnp.int32)
    first = jax.random.randint(keys[1], (2,), 0, size - sides + 1)
    colour = jax.random.randint(keys[2], (3,), 0, 256)
    place = jnp.arange(size)[:, None]
    rows, columns = ((place >= first) & (place < first + sides)).T
    return jnp.where((rows[:, None] & columns)[..., None], colour, image)


def _lose_resolution(image: _Array, key: _Array) -> _Array:
    size = image.shape[0]
    small = jnp.maximum(1, jnp.round(size / _uniform(key, 1.5, 4.0)))
    cell = size / small
    # The smallest that `small` can be decides how many rows a mean may touch.
    taps = math.ceil(size / max(1, round(size / 4))) + 1
    place = jnp.clip((jnp.arange(size) + 0.5) / cell - 0.5, 0, small - 1)
    first = jnp.floor(place)
    weights = jnp.stack([1 - (place - first), place - first], axis=-1)

    def both_axes(values: _Array, change: Callable[[_Array], _Array]) -> _Array:
        return _swap(change(_swap(change(values), size)), size)

    shrunk = both_axes(
        image.reshape(size, -1), lambda values: _average_rows(values, 0, cell, small, taps)
    )
    grown = both_axes(
        jnp.rint(shrunk), lambda values: _mix_rows(values, first.astype(jnp.int32), weights)
    )
    return grown.reshape(image.shape)


def _blur(image: _Array, key: _Array) -> _Array:
    kind, gaussian, motion = jax.random.split(key, 3)
    return jnp.where(
        jax.random.uniform(kind) < 0.5, _soften(image, gaussian), _smear(image, motion)
    )


def _soften(image: _Array, key: _Array) -> _Array:
    size, unit = image.shape[0], image.shape[0] / REFERENCE_SIZE
    sigma = unit * _uniform(key, 0.5, 2.0)
    most = math.ceil(4 * unit)
    offsets = np.arange(-most, most + 1)
    weights = jnp.exp(-(offsets**2) / (2 * sigma**2))
    weights = jnp.where(np.abs(offsets) <= jnp.ceil(2 * sigma), weights, 0)
    weights /= weights.sum()

    def along_rows(values: _Array) -> _Array:
        framed = jnp.pad(values, ((most, most), (0, 0), (0, 0)), mode='reflect')
        return sum(weights[n] * framed[n : n + size] for n in range(2 * most + 1))

    return along_rows(along_rows(image).swapaxes(0, 1)).swapaxes(0, 1)


def _smear(image: _Array, key: _Array) -> _Array:
    unit = image.shape[0] / REFERENCE_SIZE
    keys = jax.random.split(key)
    radius = jnp.maximum(1, jnp.round(unit * _uniform(keys[0], 1.0, 5.0)))
    angle = _uniform(keys[1], 0.0, math.pi)
    most = max(1, round(5 * unit))
    # Half a pixel apart along the line, and no pixel counts twice.
    steps = np.arange(-2 * most, 2 * most + 1)
    shifts = jnp.round(steps[:, None] / 2 * jnp.stack([jnp.sin(angle), jnp.cos(angle)]))
    within = np.abs(steps) <= 2 * radius
    before = jnp.roll(shifts, 1, axis=0)
    fresh = (shifts != before).any(axis=-1) | (steps == -2 * radius)
    weights = jnp.where(within & fresh, 1.0, 0.0)
    weights /= weights.sum()
    framed = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode='reflect')
    corners = (shifts + most).astype(jnp.int32)
    return sum(
        weight * jax.lax.dynamic_slice(framed, (corner[0], corner[1], 0), image.shape)
        for weight, corner in zip(weights, corners, strict=True)
    )


def _bend(image: _Array, key: _Array, *, spread: float) -> _Array:
    return 255 * (image / 255) ** _factors(key, spread)


def _colour(image: _Array, key: _Array, *, augmentation: Augmentation) -> _Array:
    keys = jax.random.split(key, 4)
    grey = jax.random.uniform(keys[0]) < augmentation.grey
    linear = jnp.where(grey, jnp.tile(jnp.array(LUMA), (3, 1)), jnp.eye(3))
    linear *= _factors(keys[1], augmentation.white_balance, (3,))[:, None]
    contrast = _factors(keys[2], augmentation.contrast)
    brightness = _uniform(keys[3], -augmentation.brightness, augmentation.brightness)
    mixed = (image[..., None, :] * (contrast * linear)).sum(axis=-1)
    return mixed + 127.5 * (1 - contrast) + 255 * brightness


def _add_noise(image: _Array, key: _Array, *, largest: float) -> _Array:
    keys = jax.random.split(key)
    weight = _uniform(keys[0], 0.0, largest) / NOISE_SIGMA
    first = jax.random.randint(keys[1], (2,), 0, NOISE_SLACK)
    tile = jnp.asarray(noise_tile(image.shape[0]))
    window = jax.lax.dynamic_slice(tile, (first[0], first[1], 0), image.shape)
    return image + weight * (window.astype(jnp.float32) - 128)
