"""heatmaps.decode, written again with few operations, so that any runtime can run it.

Phones' runtimes have no argmax, no gather, no top-k and no boolean arrays that a GPU would take.
What they all have is arithmetic, maxima and sums over an axis, and pooling: a pixel is found as the
first row, then the first column, that reaches the maximum, and read as a sum over a map that is
multiplied by one row and one column of ones and zeros. Sums of zeros and one value are exact, so
the result is that of heatmaps.decode, ties and all; tests hold the two together.

Arrays stay four-dimensional, [b h w k] with sides of 1 where something was reduced.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from handpose_jax import heatmaps
from handpose_jax.hand import NUM_KEYPOINTS

_ROWS, _COLUMNS = 1, 2

_FAR = 1e4
"""Farther than any pixel, higher than any heatmap; small enough for the half floats of GPUs."""

_STEEP = 2.0**15
"""Three times this, and the smallest difference of two heatmap values is above 1."""

_LOG_FLOOR = 1e-6
"""As in heatmaps.refine_peaks."""


class _Pixel(NamedTuple):
    """One pixel of each map, with the row and the column of the map through it."""

    x: Array  # [b 1 1 k]
    y: Array  # [b 1 1 k]
    row: Array  # [b 1 w k]
    column: Array  # [b h 1 k]

    @property
    def value(self) -> Array:
        return _read(self.row, self.x, _COLUMNS)


def decode_graph(
    maps: Float[Array, 'b h w c'], *, stride: int, decode: Mapping[str, Any]
) -> Float[Array, 'b 21 3']:
    """Keypoints and confidences as heatmaps.decode finds them.

    Args:
        maps: raw maps, 21 keypoints first; a background map is ignored.
        stride: crop pixels per map pixel.
        decode: further keyword arguments of heatmaps.decode.

    Returns:
        f32[b 21 3]: x, y in crop pixels, confidence.

    Raises:
        ValueError: for a way of decoding that has no such formulation.
    """
    check_decode(decode)
    maps = maps[..., :NUM_KEYPOINTS]
    peak = _highest(maps)
    if decode.get('method', 'peak') == 'weighted_average':
        x, y = _weighted_average(maps, half_pixel_bias=decode.get('half_pixel_bias', False))
        confidence = peak.value
    else:
        if decode.get('fallback', True):
            peak = _choose_by_neighbours(
                maps,
                peak,
                threshold=decode.get('threshold', heatmaps.THRESHOLD),
                candidates=decode.get('candidates', 5),
            )
        confidence = peak.value
        x, y = peak.x, peak.y
        if decode.get('subpixel', True):
            x = x + _parabola(peak.row, peak.x, _COLUMNS)
            y = y + _parabola(peak.column, peak.y, _ROWS)
    found = [
        _crop_from_heatmap(x, stride),
        _crop_from_heatmap(y, stride),
        # Twice and half are exact; see is_positive for why.
        0.5 * jnp.minimum(2.0 * jnp.maximum(confidence, 0.0), 2.0),
    ]
    # [b 1 3 k], then one transposition: the keypoints are the rows of the result.
    table = jnp.concatenate(found, axis=2)
    return jnp.transpose(table, (0, 3, 2, 1)).reshape(-1, NUM_KEYPOINTS, 3)


def _crop_from_heatmap(place: Array, stride: int) -> Array:
    # heatmaps.crop_from_heatmap wants x and y as the last axis.
    return (place + 0.5) * stride - 0.5


def check_decode(decode: Mapping[str, Any]) -> None:
    """Raises ValueError for a way of decoding that decode_graph does not have."""
    known = {
        'method': ('peak', 'weighted_average'),
        'refinement': ('parabola',),
    }
    for name, values in known.items():
        if decode.get(name, values[0]) not in values:
            raise ValueError(
                f'decode.{name}: {decode[name]!r} cannot be exported, only {", ".join(values)}; '
                'set it so in the config.json of the workdir, and evaluate what that changes'
            )


@jax.jit
def is_positive(x: Array, high: Any) -> Array:
    """`high` where x > 0, else 0, for x that is not between 0 and 1e-13.

    A function of its own in what is traced: the writer of ONNX has less work with it.
    """
    # In this order: converters make of a clip to 0..1 an operation that GPUs lack.
    x = jnp.maximum(x, 0.0)
    for _ in range(3):
        x = jnp.minimum(x * _STEEP, 1.0)
    return x * high


def _grid(size: int, axis: int) -> Array:
    shape = [1, 1, 1, 1]
    shape[axis] = size
    return jnp.arange(size, dtype=jnp.float32).reshape(shape)


def _one_at(place: Array, size: int, axis: int) -> Array:
    """1 at a whole place along the axis, 0 elsewhere; nothing but 0 for a place beyond it."""
    return jnp.maximum(1.0 - jnp.abs(_grid(size, axis) - place), 0.0)


def _read(line: Array, place: Array, axis: int) -> Array:
    return jnp.sum(line * _one_at(place, line.shape[axis], axis), axis=axis, keepdims=True)


def _first_reaching(line: Array, value: Array, axis: int) -> Array:
    """The first place along the axis where a line is not below the value."""
    reaches = 1.0 - is_positive(value - line, 1.0)
    from_end = line.shape[axis] - _grid(line.shape[axis], axis)
    return line.shape[axis] - jnp.max(reaches * from_end, axis=axis, keepdims=True)


def _highest(maps: Array) -> _Pixel:
    """The highest pixel of each map, the first in reading order among equals."""
    of_rows = jnp.max(maps, axis=_COLUMNS, keepdims=True)
    value = jnp.max(of_rows, axis=_ROWS, keepdims=True)
    y = _first_reaching(of_rows, value, _ROWS)
    row = jnp.sum(maps * _one_at(y, maps.shape[1], _ROWS), axis=_ROWS, keepdims=True)
    x = _first_reaching(row, value, _COLUMNS)
    return _through(maps, x, y, row)


def _through(maps: Array, x: Array, y: Array, row: Array) -> _Pixel:
    column = jnp.sum(maps * _one_at(x, maps.shape[2], _COLUMNS), axis=_COLUMNS, keepdims=True)
    return _Pixel(x, y, row, column)


def _parabola(line: Array, place: Array, axis: int) -> Array:
    """How far the top of heatmaps.refine_peaks' parabola is from a place."""

    def log_at(shift: int) -> Array:
        return jnp.log(jnp.maximum(_read(line, place + shift, axis), _LOG_FLOOR))

    before, centre, after = log_at(-1), log_at(0), log_at(1)
    curvature = before - 2.0 * centre + after
    last = line.shape[axis] - 1.0
    # Products of whole numbers: 0 at both ends, else 1 and more.
    inside = jnp.minimum(place * (last - place), 1.0)
    usable = is_positive(-1e-6 - curvature, 1.0) * inside
    shift = 0.5 * (before - after) / jnp.minimum(curvature, -1e-6)
    return jnp.clip(shift, -0.5, 0.5) * usable


def _pool_highest(maps: Array, size: int, stride: int) -> Array:
    return jax.lax.reduce_window(
        maps, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), 'SAME'
    )


def _nth_highest(maps: Array, n: int) -> Array:
    """Finds each map's n-th highest value, which may be equal to those before it: [b 1 1 k]."""

    # A function of its own in what is traced: ONNX has an operation for it.
    @jax.jit
    def nth_highest(left: Array, n_as_array: Any) -> Array:
        found = jnp.max(left, axis=(1, 2), keepdims=True)
        count: Any = 0.0
        for _ in range(n - 1):
            below = is_positive(found - left, 1.0)
            size = left.shape[1] * left.shape[2]
            count = count + (size - jnp.sum(below, axis=(1, 2), keepdims=True))
            enough = 1.0 - is_positive(n_as_array - 0.5 - count, 1.0)
            left = jnp.minimum(left, 3.0 * _FAR * below - 2.0 * _FAR)
            following = jnp.maximum(jnp.max(left, axis=(1, 2), keepdims=True), -0.5 * _FAR)
            found = jnp.minimum(found, following + _FAR * enough)
        return found

    return nth_highest(maps, float(n))


def _choose_by_neighbours(
    maps: Array, peak: _Pixel, *, threshold: float, candidates: int
) -> _Pixel:
    """See heatmaps.choose_by_neighbours.

    Where several peaks are equal to the last candidate, all of them are candidates; equal peaks in
    one square of four pixels count as one. Maps that are not quantised hardly ever have such peaks.
    """
    _, h, w, _ = maps.shape
    not_highest = is_positive(_pool_highest(maps, 3, 1) - maps, 2.0 * _FAR)
    higher_than_one = is_positive(maps + _pool_highest(-maps, 3, 1), 2.0 * _FAR)
    peaks = jnp.minimum(maps, higher_than_one - not_highest - _FAR)
    highest_of_squares = _pool_highest(peaks, 2, 2)
    has_peak = is_positive(
        jnp.max(highest_of_squares, axis=(1, 2), keepdims=True) + 0.5 * _FAR, 1.0
    )
    lowest = jnp.maximum(_nth_highest(highest_of_squares, candidates), -0.5 * _FAR)
    not_candidate = is_positive(lowest - peaks, _FAR)

    certain = 1.0 - is_positive(threshold - peak.value, 1.0)
    number = jnp.sum(certain, axis=3, keepdims=True)
    squared = (_grid(h, _ROWS) - peak.y) ** 2 + (_grid(w, _COLUMNS) - peak.x) ** 2
    total = jnp.sum(jnp.sqrt(squared) * certain, axis=3, keepdims=True)
    distance = total / jnp.maximum(number, 1.0)
    distance = distance + not_candidate
    least = -jnp.max(-distance, axis=(1, 2), keepdims=True)
    is_near = is_positive(least + heatmaps.SAME_DISTANCE - distance, 2.0 * _FAR)
    nearest = _highest(jnp.minimum(peaks, is_near - _FAR))

    replace = (1.0 - certain) * jnp.minimum(number, 1.0) * has_peak
    x = peak.x + replace * (nearest.x - peak.x)
    y = peak.y + replace * (nearest.y - peak.y)
    row = jnp.sum(maps * _one_at(y, h, _ROWS), axis=_ROWS, keepdims=True)
    return _through(maps, x, y, row)


def _weighted_average(maps: Array, *, half_pixel_bias: bool) -> tuple[Array, Array]:
    """See heatmaps.weighted_average."""
    _, h, w, _ = maps.shape
    mass = jnp.maximum(maps, 0.0)
    of_rows = jnp.sum(mass, axis=_COLUMNS, keepdims=True)
    of_columns = jnp.sum(mass, axis=_ROWS, keepdims=True)
    total = jnp.sum(of_rows, axis=_ROWS, keepdims=True)
    some = is_positive(total - 1e-12, 1.0)
    safe = jnp.maximum(total, 1e-12)
    bias = 0.5 if half_pixel_bias else 0.0

    def centre(line: Array, size: int, axis: int) -> Array:
        found = jnp.sum(line * _grid(size, axis), axis=axis, keepdims=True) / safe
        middle = 0.5 * (size - 1)
        return middle + some * (found - middle) - bias

    return centre(of_columns, w, _COLUMNS), centre(of_rows, h, _ROWS)
