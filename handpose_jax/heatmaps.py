"""Heatmaps: rendering targets from keypoints, and reading keypoints out of maps (jnp, batched).

Maps are [b h w c] at `stride` crop pixels per map pixel, c = 21 keypoints, and the background last
where there is one. Points are (x, y) under geometry.py's pixel-centre rule, so

    x_heatmap = (x_crop + 0.5) / stride - 0.5

Two numbers per keypoint must not be mixed up. `confidence` is the map's raw value at the peak,
clipped to 0..1; `probability` is the share of the spatial softmax there, which depends on the map's
scale and size and is small (about 1/(h w)) even for a perfect map.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.types import Prediction

SIGMA = 7.0
"""Standard deviation of a target peak, in pixels of a 224 crop.

Source: fitted on the heatmaps that the authors published (paper notes, confidence B).
"""

THRESHOLD = 0.1
"""Raw map value below which a keypoint is uncertain. Source: the authors' released code."""

SAME_DISTANCE = 1e-3
"""Candidates of the fallback that differ by no more count as equally near, in map pixels."""

_LOG_FLOOR = 1e-6


def crop_from_heatmap(points: Float[Array, '*n 2'], stride: int) -> Float[Array, '*n 2']:
    """Moves points from map pixels to crop pixels."""
    return (points + 0.5) * stride - 0.5


def heatmap_from_crop(points: Float[Array, '*n 2'], stride: int) -> Float[Array, '*n 2']:
    """Moves points from crop pixels to map pixels."""
    return (points + 0.5) / stride - 0.5


def inside_crop(keypoints: Float[Array, '*n 2'], height: int, width: int) -> Bool[Array, '*n']:
    """Whether points (crop pixels) lie on the crop's pixels."""
    x, y = keypoints[..., 0], keypoints[..., 1]
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def render(
    keypoints: Float[Array, 'b 21 2'],
    visible: Bool[Array, 'b 21'],
    has_hand: Bool[Array, 'b'] | bool = True,
    *,
    height: int,
    width: int,
    stride: int,
    sigma: float,
) -> tuple[Float[Array, 'b h w 22'], Float[Array, 'b 22']]:
    """Target maps and the weight of each map in the loss.

    Map k is exp(-|p - x_k|^2 / (2 sigma^2)); the background is 1 - max_k of the annotated ones.
    A keypoint that is not annotated, or lies outside the crop, has weight 0; if it is not
    annotated, its map is 0 everywhere. The background has weight 0 where some keypoint is not
    annotated, because its place, a hole in the background, is not known. Where there is no hand,
    nothing is unknown: all maps count, 21 empty ones and a full background.

    Args:
        keypoints: (x, y), crop pixels; anything, even NaN, where not visible.
        visible: annotated; no keypoint of a picture without a hand may be.
        has_hand: False for a picture that shows no hand.
        height: of the maps.
        width: of the maps.
        stride: crop pixels per map pixel.
        sigma: of the peaks, crop pixels.

    Returns:
        targets f32[b height width 22] and weights f32[b 22].

    Source: Gouidis et al. 2019, equations 1 and 2. The weights are our choice (confidence C).
    """
    # Masked before the arithmetic: 0 times NaN is NaN, in the gradient too.
    keypoints = jnp.where(visible[..., None], keypoints.astype(jnp.float32), 0.0)
    points = heatmap_from_crop(keypoints, stride)
    precision = 0.5 * (stride / sigma) ** 2
    # The Gaussian is separable: two vectors for each keypoint instead of a map of distances.
    x = jnp.exp(-precision * (jnp.arange(width) - points[..., 0:1]) ** 2)
    y = jnp.exp(-precision * (jnp.arange(height) - points[..., 1:2]) ** 2)
    maps = jnp.einsum('bkh,bkw->bhwk', y, x, precision=jax.lax.Precision.HIGHEST)
    annotated = visible.astype(jnp.float32)
    maps = maps * annotated[:, None, None, :]
    background = 1.0 - maps.max(axis=-1, keepdims=True)
    inside = inside_crop(keypoints, height * stride, width * stride)
    weights = jnp.concatenate(
        [annotated * inside, visible.all(axis=-1, keepdims=True).astype(jnp.float32)], axis=-1
    )
    weights = jnp.where(jnp.asarray(has_hand)[..., None], weights, 1.0)
    return jnp.concatenate([maps, background], axis=-1), weights


def spatial_softmax(heatmaps: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    """Each map as a probability over its pixels. Source: Gouidis et al. 2019, equation 3."""
    return jax.nn.softmax(heatmaps, axis=(1, 2))


def find_peaks(
    heatmaps: Float[Array, 'b h w k'], count: int
) -> tuple[Int[Array, 'b k count 2'], Float[Array, 'b k count']]:
    """The highest local maxima of each map, the highest first.

    A local maximum is a pixel not lower than its eight neighbours and higher than one of them: the
    inside of a plateau is none. A map with fewer than `count` of them fills the rest with value
    -inf.

    Args:
        heatmaps: any scale.
        count: how many to return.

    Returns:
        (x, y) in map pixels, and the maps' values there.
    """
    highest = _over_neighbours(heatmaps, jnp.maximum, -jnp.inf)
    lowest = _over_neighbours(heatmaps, jnp.minimum, jnp.inf)
    is_peak = (heatmaps >= highest) & (heatmaps > lowest)
    peaks = jnp.where(is_peak, heatmaps, -jnp.inf)
    b, h, w, k = heatmaps.shape
    values, flat = jax.lax.top_k(jnp.moveaxis(peaks.reshape(b, h * w, k), 1, 2), count)
    return jnp.stack([flat % w, flat // w], axis=-1), values


def _over_neighbours(
    heatmaps: Float[Array, 'b h w k'], extreme: Callable[[Array, Array], Array], beyond: float
) -> Float[Array, 'b h w k']:
    # Rows, then columns: XLA's reduce_window takes three times as long on a CPU.
    for axis in (1, 2):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(heatmaps, padding, constant_values=beyond)
        size = heatmaps.shape[axis]
        before, after = (
            jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2)
        )
        heatmaps = extreme(extreme(before, heatmaps), after)
    return heatmaps


def argmax(heatmaps: Float[Array, 'b h w k']) -> Int[Array, 'b k 2']:
    """The highest pixel (x, y) of each map; the first in reading order among equals."""
    b, h, w, k = heatmaps.shape
    flat = jnp.argmax(heatmaps.reshape(b, h * w, k), axis=1)
    return jnp.stack([flat % w, flat // w], axis=-1)


def _take_pixels(
    heatmaps: Float[Array, 'b h w k'], pixels: Int[Array, 'b k 2']
) -> Float[Array, 'b k']:
    """Each map's value at its own pixel (x, y); pixels beyond the border read the border."""
    b, h, w, k = heatmaps.shape
    x, y = jnp.clip(pixels[..., 0], 0, w - 1), jnp.clip(pixels[..., 1], 0, h - 1)
    return heatmaps[jnp.arange(b)[:, None], y, x, jnp.arange(k)[None, :]]


def refine_peaks(
    heatmaps: Float[Array, 'b h w k'], pixels: Int[Array, 'b k 2']
) -> Float[Array, 'b k 2']:
    """Sub-pixel peaks: a parabola through the logarithms of the peak and its two neighbours.

    Exact for a Gaussian. On the border, and where the three values are no peak, the pixel stays.

    Args:
        heatmaps: raw maps; values below a small floor count as the floor.
        pixels: (x, y) of the peaks, map pixels.

    Returns:
        (x, y) in map pixels, at most half a pixel from `pixels`.
    """
    _, h, w, _ = heatmaps.shape

    def log_at(dx: int, dy: int) -> Float[Array, 'b k']:
        values = _take_pixels(heatmaps, pixels + jnp.array([dx, dy]))
        return jnp.log(jnp.maximum(values, _LOG_FLOOR))

    centre = log_at(0, 0)

    def offset(before: Array, after: Array, on_border: Array) -> Array:
        curvature = before - 2 * centre + after
        usable = (curvature < -1e-6) & ~on_border
        shift = 0.5 * (before - after) / jnp.where(usable, curvature, -1.0)
        return jnp.where(usable, jnp.clip(shift, -0.5, 0.5), 0.0)

    x, y = pixels[..., 0], pixels[..., 1]
    dx = offset(log_at(-1, 0), log_at(1, 0), (x == 0) | (x == w - 1))
    dy = offset(log_at(0, -1), log_at(0, 1), (y == 0) | (y == h - 1))
    return pixels + jnp.stack([dx, dy], axis=-1)


def refine_dark(
    heatmaps: Float[Array, 'b h w k'], pixels: Int[Array, 'b k 2'], *, sigma_map: float
) -> Float[Array, 'b k 2']:
    """Sub-pixel peaks by DARK: smooths the map, then one Newton step on its logarithm.

    Within two pixels of the border, and where the logarithm has no maximum nearby, the pixel stays.

    Args:
        heatmaps: raw maps; values below a small floor count as the floor.
        pixels: (x, y) of the peaks, map pixels.
        sigma_map: of the smoothing, map pixels: that of the targets.

    Returns:
        (x, y) in map pixels, at most a pixel from `pixels` in x and in y.

    Source: Zhang et al. 2020, "Distribution-Aware Coordinate Representation for Human Pose
    Estimation", section 3.2. The limit of a pixel is ours.
    """
    _, h, w, _ = heatmaps.shape
    smooth = jnp.einsum(
        'bhwk,yh,xw->byxk',
        jnp.maximum(heatmaps, 0),
        _gaussian_matrix(h, sigma_map),
        _gaussian_matrix(w, sigma_map),
        precision=jax.lax.Precision.HIGHEST,
    )

    def at(dx: int, dy: int) -> Float[Array, 'b k']:
        values = _take_pixels(smooth, pixels + jnp.array([dx, dy]))
        return jnp.log(jnp.maximum(values, _LOG_FLOOR))

    gx, gy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    hxx = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
    hyy = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    hxy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    determinant = hxx * hyy - hxy**2
    x, y = pixels[..., 0], pixels[..., 1]
    inside = (x >= 2) & (x < w - 2) & (y >= 2) & (y < h - 2)
    usable = inside & (hxx < 0) & (determinant > 1e-6)
    safe = jnp.where(usable, determinant, 1.0)
    step = jnp.stack([(hxy * gy - hyy * gx) / safe, (hxy * gx - hxx * gy) / safe], axis=-1)
    return pixels + jnp.where(usable[..., None], jnp.clip(step, -1, 1), 0.0)


def _gaussian_matrix(size: int, sigma: float) -> Float[Array, 's s']:
    """Row i holds the weights of a Gaussian around pixel i, of sum 1 where it is whole."""
    distance = jnp.arange(size)[:, None] - jnp.arange(size)
    return jnp.exp(-0.5 * (distance / sigma) ** 2) / (sigma * (2 * jnp.pi) ** 0.5)


def choose_by_neighbours(
    pixels: Int[Array, 'b k 2'],
    confidence: Float[Array, 'b k'],
    candidates: Int[Array, 'b k n 2'],
    candidate_values: Float[Array, 'b k n'],
    *,
    threshold: float,
) -> Int[Array, 'b k 2']:
    """The paper's fallback: an uncertain keypoint takes its peak nearest to the certain keypoints.

    "Nearest" is read as the smallest mean distance to all keypoints at or above the threshold
    (confidence C: the paper does not say which distance); of several that are equally near, the
    highest. A hand without any certain keypoint keeps its highest pixels, and so does a map without
    any peak.

    A candidate needs no least value. The paper asks for the peaks with the highest probabilities,
    which ranks them and sets no floor; all peaks of an uncertain map are below the threshold
    anyway. How many candidates there are is the only limit on how low one may be.

    Args:
        pixels: the highest pixel of each map.
        confidence: raw value there.
        candidates: the highest peaks of each map, find_peaks.
        candidate_values: their values; -inf marks a place that holds no peak.
        threshold: below it a keypoint is uncertain.

    Returns:
        (x, y) in map pixels.

    Source: Gouidis et al. 2019, section 3.3.
    """
    certain = confidence >= threshold
    distances = jnp.linalg.norm(
        candidates[:, :, :, None, :].astype(jnp.float32)
        - pixels[:, None, None, :, :].astype(jnp.float32),
        axis=-1,
    )
    number = certain.sum(axis=-1)
    mean_distance = (distances * certain[:, None, None, :]).sum(axis=-1) / jnp.maximum(number, 1)[
        :, None, None
    ]
    is_peak = jnp.isfinite(candidate_values)
    mean_distance = jnp.where(is_peak, mean_distance, jnp.inf)
    # Distances between whole pixels are often equal but for rounding; then the highest peak wins.
    least = mean_distance.min(axis=-1, keepdims=True)
    best = jnp.argmax(mean_distance <= least + SAME_DISTANCE, axis=-1)
    nearest = jnp.take_along_axis(candidates, best[:, :, None, None], axis=2)[:, :, 0]
    # Not `~certain`: a map with NaN keeps its NaN, so that its confidence says so.
    uncertain = confidence < threshold
    replace = uncertain & (number > 0)[:, None] & is_peak.any(axis=-1)
    return jnp.where(replace[..., None], nearest, pixels)


def weighted_average(
    heatmaps: Float[Array, 'b h w k'], *, half_pixel_bias: bool = False
) -> Float[Array, 'b k 2']:
    """The tutorial's decoding: each map's centre of mass, negative values counted as zero.

    Args:
        heatmaps: raw maps.
        half_pixel_bias: return what the tutorial's code returns when its fractions of the side are
            multiplied by the side: half a map pixel (half a crop pixel at the tutorial's stride 1)
            less than the pixel-centre rule would have, which only matters for parity with its
            published numbers.

    Returns:
        (x, y) in map pixels; the centre of a map without positive values.

    Source: Chernytska 2021, section on inference.
    """
    _, h, w, _ = heatmaps.shape
    mass = jnp.maximum(heatmaps, 0)
    total = mass.sum(axis=(1, 2))
    safe = jnp.maximum(total, 1e-12)
    columns, rows = jnp.arange(w, dtype=mass.dtype), jnp.arange(h, dtype=mass.dtype)
    x = jnp.einsum('bhwk,w->bk', mass, columns, precision=jax.lax.Precision.HIGHEST) / safe
    y = jnp.einsum('bhwk,h->bk', mass, rows, precision=jax.lax.Precision.HIGHEST) / safe
    centre = jnp.array([(w - 1) / 2, (h - 1) / 2])
    points = jnp.where((total > 1e-12)[..., None], jnp.stack([x, y], axis=-1), centre)
    return points - 0.5 if half_pixel_bias else points


def decode(
    heatmaps: Float[Array, 'b h w c'],
    *,
    stride: int,
    method: Literal['peak', 'weighted_average'] = 'peak',
    subpixel: bool = True,
    refinement: Literal['parabola', 'dark'] = 'parabola',
    fallback: bool = True,
    threshold: float = THRESHOLD,
    candidates: int = 5,
    half_pixel_bias: bool = False,
) -> Prediction:
    """Keypoints and confidences from a network's maps.

    Args:
        heatmaps: raw maps, 21 keypoints first; a background map is ignored.
        stride: crop pixels per map pixel.
        method: 'peak' is the paper's (spatial softmax, its highest pixel, fallback);
            'weighted_average' the tutorial's.
        subpixel: refine the peak between pixels (ours; the paper takes the pixel).
        refinement: how: 'parabola', see refine_peaks, or 'dark', see refine_dark, with the default
            width of the targets.
        fallback: apply the rule of section 3.3 to keypoints below the threshold.
        threshold: raw map value below which a keypoint is uncertain.
        candidates: how many peaks, the highest of a map, the fallback may choose from (confidence
            C); their values do not matter.
        half_pixel_bias: for 'weighted_average' only: the tutorial's numbers as its code gives them,
            half a map pixel less in x and y, see weighted_average. Only for parity with it.

    Returns:
        Prediction: keypoints f32[b 21 2] in crop pixels, confidence f32[b 21], the raw value at the
        chosen peak clipped to 0..1.

    Raises:
        ValueError: for an unknown method, or a bias asked of another than 'weighted_average'.

    Source: Gouidis et al. 2019, section 3.3; Chernytska 2021.
    """
    if method not in ('peak', 'weighted_average'):
        raise ValueError(f"decode.method: expected 'peak' or 'weighted_average', got {method!r}")
    if refinement not in ('parabola', 'dark'):
        raise ValueError(f"decode.refinement: expected 'parabola' or 'dark', got {refinement!r}")
    if half_pixel_bias and method != 'weighted_average':
        raise ValueError(
            "decode.half_pixel_bias: only 'weighted_average' has one, but decode.method is "
            f'{method!r}; leave it out, or take that method'
        )
    maps = heatmaps[..., :NUM_KEYPOINTS].astype(jnp.float32)
    # The spatial softmax has the same highest pixel, but in float32 it may not tell it from others
    # where a map is nearly flat, and a single NaN fills it.
    pixels = argmax(maps)
    if method == 'weighted_average':
        confidence = _take_pixels(maps, pixels)
        points = weighted_average(maps, half_pixel_bias=half_pixel_bias)
        return Prediction(crop_from_heatmap(points, stride), jnp.clip(confidence, 0, 1))
    if fallback:
        peaks, values = find_peaks(maps, candidates)
        pixels = choose_by_neighbours(
            pixels, _take_pixels(maps, pixels), peaks, values, threshold=threshold
        )
    confidence = _take_pixels(maps, pixels)
    if subpixel and refinement == 'dark':
        points = refine_dark(maps, pixels, sigma_map=SIGMA * maps.shape[2] / 224)
    elif subpixel:
        points = refine_peaks(maps, pixels)
    else:
        points = pixels.astype(jnp.float32)
    return Prediction(crop_from_heatmap(points, stride), jnp.clip(confidence, 0, 1))
