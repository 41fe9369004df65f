"""Rendering and decoding against NumPy float64; round trips; built maps that prove the fallback."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.special

from handpose_jax import geometry, heatmaps
from handpose_jax.training import losses

STRIDE = 4
SIDE = 28  # of the maps that tests build by hand
SIGMA = 1.75  # of their peaks, map pixels

jitted_render = jax.jit(heatmaps.render, static_argnames=('height', 'width', 'stride', 'sigma'))
weighted_average = jax.jit(heatmaps.weighted_average, static_argnames='half_pixel_bias')


def random_maps(seed=0, shape=(1, SIDE, SIDE, 21)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference_maps(keypoints, height, width, stride, sigma):
    """Equation 1, pixel by pixel in the crop's frame."""
    x, y = ((np.arange(side) + 0.5) * stride - 0.5 for side in (width, height))
    dx = x[None, None, :, None] - keypoints[:, None, None, :, 0]
    dy = y[None, :, None, None] - keypoints[:, None, None, :, 1]
    return np.exp(-(dx**2 + dy**2) / (2 * sigma**2))


def bump(x, y, height=1.0):
    """One Gaussian on SIDE x SIDE, its peak at a pixel."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * SIGMA**2))


def a_hand(certain_at=(6, 6), height=0.9):
    """Maps of a hand whose keypoints all lie at one pixel, all sure of it: f32[1 SIDE SIDE 22]."""
    return np.repeat(bump(*certain_at, height)[None, :, :, None], 22, axis=3).astype(np.float32)


def render(keypoints, visible=None, *, width=16, height=16, stride=STRIDE, sigma=7.0):
    """Targets and weights; without `visible` every keypoint is annotated."""
    visible = np.ones(keypoints.shape[:2], bool) if visible is None else visible
    keypoints, visible = jnp.asarray(keypoints, jnp.float32), jnp.asarray(visible)
    return jitted_render(keypoints, visible, height=height, width=width, stride=stride, sigma=sigma)


def decode(maps, stride=STRIDE, **kwargs):
    return heatmaps.decode(jnp.asarray(maps), stride=stride, **kwargs)


def decoded_pixels(maps, **kwargs):
    """Where the keypoints of the first hand are, map pixels."""
    return np.asarray(decode(maps, stride=1, **kwargs).keypoints[0])


# --- rendering ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('height', 'width', 'stride', 'sigma'),
    [(56, 56, 4, 7.0), (28, 28, 4, 3.5), (24, 16, 8, 9.0), (9, 13, 1, 2.0)],
)
def test_targets_are_equations_1_and_2(height, width, stride, sigma):
    rng = np.random.default_rng(height + width)
    size = np.array([width, height]) * stride
    keypoints = rng.uniform(-0.2, 1.2, (3, 21, 2)) * size
    visible = rng.random((3, 21)) < 0.6
    visible[0] = True
    targets, _ = render(keypoints, visible, width=width, height=height, stride=stride, sigma=sigma)
    maps = reference_maps(keypoints.astype(np.float32), height, width, stride, sigma)
    assert targets.dtype == jnp.float32
    maps = np.where(visible[:, None, None, :], maps, 0)
    np.testing.assert_allclose(targets[..., :21], maps, rtol=0, atol=1e-5)
    background = 1 - maps.max(axis=-1)
    np.testing.assert_allclose(targets[..., 21], background, rtol=0, atol=1e-5)


def test_a_map_counts_only_where_its_keypoint_is_annotated_and_inside():
    keypoints = np.full((4, 21, 2), 20.0, np.float32)
    edges = [(-0.5, -0.5), (63.5, 47.5), (-0.51, 5), (5, -0.51), (63.51, 5), (5, 47.51)]
    keypoints[0, : len(edges)] = edges
    visible = np.ones((4, 21), bool)
    visible[1, 4] = False
    visible[2] = False
    keypoints[3, 7] = (1000, 1000)
    visible[3, 7] = False
    _, weights = render(keypoints, visible, height=12)
    expected = np.ones((4, 22))
    expected[0, 2:6] = 0  # beyond the outermost pixels' edges; the background's hole is known
    expected[1, [4, 21]] = 0  # the place of the background's hole is not known
    expected[2] = 0
    expected[3, [7, 21]] = 0
    np.testing.assert_array_equal(weights, expected)


def test_a_picture_without_a_hand_wants_empty_maps_and_a_full_background():
    keypoints = np.random.default_rng(0).uniform(0, 64, (3, 21, 2)).astype(np.float32)
    visible = np.zeros((3, 21), bool)
    visible[0] = True
    sizes = {'width': 16, 'height': 12, 'stride': STRIDE, 'sigma': 7.0}
    has_hand = np.array([True, False, True])
    targets, weights = jitted_render(keypoints, visible, has_hand, **sizes)
    assert not np.asarray(targets[1, ..., :21]).any()
    assert (np.asarray(targets[1, ..., 21]) == 1).all()
    assert (np.asarray(weights[1]) == 1).all()
    # Hands, labelled or not, are what they are without a word about hands.
    for found, without in zip(
        (targets, weights), jitted_render(keypoints, visible, **sizes), strict=True
    ):
        np.testing.assert_array_equal(found[::2], without[::2])
    assert not np.asarray(weights[2]).any()


def test_the_place_of_a_keypoint_that_is_not_annotated_shows_in_no_counted_map():
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 64, (2, 21, 2)).astype(np.float32)
    visible = rng.random((2, 21)) < 0.5
    moved = np.where(visible[..., None], keypoints, 30.0).astype(np.float32)

    def counted(points):
        targets, weights = render(points, visible)
        return np.asarray(targets[..., :21] * weights[:, None, None, :21]), targets[..., 21]

    for one, other in zip(counted(keypoints), counted(moved), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_coordinate_that_is_not_finite_spreads_nowhere_if_its_keypoint_is_not_annotated(value):
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 64, (2, 21, 2)).astype(np.float32)
    visible = np.ones((2, 21), bool)
    visible[0, 3:6] = False
    broken = keypoints.copy()
    broken[0, 3] = value
    broken[0, 4, 0] = -value
    predicted = jnp.asarray(random_maps(0, (2, 16, 16, 22)))

    def loss(points, predicted):
        return losses.squared_error_loss(predicted, *render(points, visible))

    clean = jax.value_and_grad(loss, (0, 1))(jnp.asarray(keypoints), predicted)
    found = jax.value_and_grad(loss, (0, 1))(jnp.asarray(broken), predicted)
    assert np.isfinite(found[0])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.asarray(found[1][0])[visible] != 0).any()


# --- round trips ----------------------------------------------------------------------------------


def test_map_and_crop_pixels_are_each_others_inverse():
    points = jnp.asarray(np.random.default_rng(0).uniform(-10, 70, (50, 2)), jnp.float32)
    there = heatmaps.heatmap_from_crop(points, STRIDE)
    np.testing.assert_allclose(heatmaps.crop_from_heatmap(there, STRIDE), points, atol=1e-5)
    # The rule of geometry.py, from which a map is a picture resized.
    np.testing.assert_allclose(
        there, geometry.apply_affine(geometry.scale_map(1 / STRIDE), np.asarray(points)), atol=1e-5
    )


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_keypoints_come_back_to_the_photograph_from_maps_at_stride_4(seed, mirror):
    rng = np.random.default_rng(seed)
    size = SIDE * STRIDE
    box, rotation = np.array([35.3, 20.1, 235.3, 220.1]), rng.uniform(-np.pi, np.pi)
    crop_from_image = geometry.crop_from_image(box, size, rotation=rotation, mirror=mirror)
    image_from_crop = geometry.invert(crop_from_image)
    # In the map's outermost pixels a peak has no neighbour on one side.
    in_image = geometry.apply_affine(image_from_crop, rng.uniform(4, size - 5, (21, 2)))
    in_crop = geometry.apply_affine(crop_from_image, in_image)
    sigma = heatmaps.SIGMA * size / 224
    targets, _ = render(in_crop[None], width=SIDE, height=SIDE, sigma=sigma)
    found = np.asarray(decode(targets).keypoints[0], np.float64)
    assert np.linalg.norm(found - in_crop, axis=-1).max() < 0.02
    back = geometry.apply_affine(image_from_crop, found)
    assert np.linalg.norm(back - in_image, axis=-1).max() < 0.02 * 200 / size
    # The map's pixels alone are far coarser.
    coarse = decode(targets, subpixel=False).keypoints[0]
    assert np.linalg.norm(coarse - in_crop, axis=-1).max() > 1


@pytest.mark.parametrize('border', ['top', 'bottom', 'left', 'right'])
def test_on_the_border_a_keypoint_is_found_to_half_a_map_pixel_and_exactly_along_it(border):
    size = SIDE * STRIDE
    across = np.linspace(-0.5, 3, 21)
    if border in ('bottom', 'right'):
        across = size - 1 - across
    along = np.linspace(10, 100, 21)
    axis = 0 if border in ('left', 'right') else 1
    keypoints = np.stack([across, along] if axis == 0 else [along, across], axis=-1)[None]
    targets, weights = render(keypoints, width=SIDE, height=SIDE)
    assert (np.asarray(weights) == 1).all()
    error = np.abs(decode(targets).keypoints - keypoints)[0]
    assert error[:, 1 - axis].max() < 0.02
    assert error[:, axis].max() <= 0.5 * STRIDE + 1e-4


@pytest.mark.parametrize('seed', range(3))
def test_refining_a_gaussian_is_exact_whatever_its_height_and_width(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(1, SIDE - 2, (1, 21, 2))
    height = rng.uniform(0.05, 3, (1, 1, 1, 21))
    maps = height * reference_maps(points, SIDE, SIDE, 1, sigma=rng.uniform(1, 3))
    pixels = np.rint(points).astype(np.int32)
    refined = heatmaps.refine_peaks(jnp.asarray(maps, jnp.float32), jnp.asarray(pixels))
    np.testing.assert_allclose(refined, points, atol=2e-3)


@pytest.mark.parametrize('seed', range(3))
def test_refining_moves_at_most_half_a_pixel_on_any_map(seed):
    maps = jnp.asarray(random_maps(seed))
    pixels = heatmaps.argmax(maps)
    refined = heatmaps.refine_peaks(maps, pixels)
    assert np.isfinite(refined).all()
    assert np.abs(refined - pixels).max() <= 0.5


# --- spatial softmax, peaks -----------------------------------------------------------------------


def dark_in_float64(maps, pixel, sigma):
    """Zhang et al. 2020, section 3.2, for one map: blur, logarithm, one Newton step."""
    maps = maps.astype(np.float64)
    blurred = scipy.ndimage.gaussian_filter(maps, sigma, mode='constant', truncate=20)
    log = np.log(np.maximum(blurred, 1e-6))
    x, y = pixel
    g = np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]]) / 2
    hxx = (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2]) / 4
    hyy = (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x]) / 4
    above, below = log[y - 1, [x - 1, x + 1]], log[y + 1, [x - 1, x + 1]]
    hxy = (below[1] - below[0] - above[1] + above[0]) / 4
    return np.array(pixel) - np.linalg.solve(np.array([[hxx, hxy], [hxy, hyy]]), g)


def test_dark_is_the_published_step():
    """On noisy bumps that lie askew, against NumPy and SciPy in float64."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    maps, expected, pixels = [], [], []
    for _ in range(21):
        x, y = rng.uniform(8, 20, 2)
        dx, dy = columns - x, rows - y
        askew = np.exp(-(dx**2 + 0.6 * dx * dy + 0.8 * dy**2) / 8)
        maps.append(askew + rng.uniform(0, 0.02, askew.shape))
        pixels.append(np.unravel_index(maps[-1].argmax(), askew.shape)[::-1])
        expected.append(dark_in_float64(maps[-1], pixels[-1], SIGMA))
    stacked = np.stack(maps, axis=-1)[None].astype(np.float32)
    found = heatmaps.refine_dark(jnp.asarray(stacked), jnp.asarray([pixels]), sigma_map=SIGMA)
    assert np.abs(np.array(expected) - pixels).max() < 1
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-4)


def test_dark_is_exact_for_a_gaussian_and_leaves_borders_and_plains_alone():
    truth = np.array([11.3, 14.6])
    maps = np.stack([bump(*truth), bump(1, 14.4), np.ones((SIDE, SIDE))], axis=-1)
    maps = np.concatenate([maps, np.zeros((SIDE, SIDE, 18))], axis=-1)[None].astype(np.float32)
    pixels = jnp.asarray([[[11, 15], [1, 14], [9, 9]] + [[5, 5]] * 18])
    found = heatmaps.refine_dark(jnp.asarray(maps), pixels, sigma_map=SIGMA)[0]
    np.testing.assert_allclose(found[0], truth, rtol=0, atol=2e-3)
    np.testing.assert_array_equal(found[1:], pixels[0, 1:])


def test_decode_with_dark():
    points = decoded_pixels(a_hand((11.3, 14.6), 1.0), refinement='dark')
    np.testing.assert_allclose(points, np.tile([11.3, 14.6], (21, 1)), rtol=0, atol=5e-3)


def test_the_spatial_softmax_is_scipys_and_sums_to_one():
    maps = random_maps()
    probabilities = heatmaps.spatial_softmax(jnp.asarray(maps))
    expected = scipy.special.softmax(maps.astype(np.float64), axis=(1, 2))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=(1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize('scale', [1e-9, 1e-3, 1.0, 1e3])
def test_without_refinement_a_keypoint_is_the_argmax_of_the_spatial_softmax(scale):
    maps = random_maps(1) * np.float32(scale)
    # Equation 3; in exact arithmetic the softmax's scale does not matter.
    logits = maps.astype(np.float64) / scale
    probabilities = scipy.special.softmax(logits, axis=(1, 2)).reshape(1, -1, 21)
    y, x = np.divmod(probabilities.argmax(axis=1), SIDE)
    found = decode(maps, subpixel=False, fallback=False)
    np.testing.assert_allclose(found.keypoints, np.stack([x, y], -1) * 4 + 1.5, atol=1e-5)


def test_confidence_is_the_raw_value_clipped_and_no_probability():
    maps = a_hand()
    heights = np.linspace(-0.5, 2, 21, dtype=np.float32)
    maps[0, ..., :21] *= heights / maps[0].max()
    raw = maps[0, ..., :21].max(axis=(0, 1))
    prediction = decode(maps, fallback=False)
    np.testing.assert_allclose(prediction.confidence[0], np.clip(raw, 0, 1), rtol=1e-6)
    probability = heatmaps.spatial_softmax(jnp.asarray(maps))[0, 6, 6, 12]
    assert raw[12] == pytest.approx(1)
    assert probability < 0.01


def test_peaks_are_the_pixels_no_lower_than_their_neighbours_highest_first():
    maps = random_maps(2)
    pixels, values = (np.asarray(a) for a in heatmaps.find_peaks(jnp.asarray(maps), 5))
    for k in range(21):
        one = maps[0, :, :, k]
        padded = np.pad(one, 1, constant_values=-np.inf)
        neighbours = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        expected = np.sort(one[one == neighbours.max(axis=(2, 3))])[::-1][:5]
        np.testing.assert_array_equal(values[0, k], expected)
        x, y = pixels[0, k].T
        np.testing.assert_array_equal(one[y, x], expected)


def test_places_without_a_peak_are_marked():
    cone = -np.hypot(*np.mgrid[-3 : SIDE - 3, -3 : SIDE - 3]).astype(np.float32)
    maps = np.repeat(cone[None, :, :, None], 21, axis=3)
    _, values = heatmaps.find_peaks(jnp.asarray(maps), 5)
    np.testing.assert_array_equal(values[0], [[0] + 4 * [-np.inf]] * 21)


# --- the fallback of section 3.3 ------------------------------------------------------------------


def with_two_peaks(high, near=0.05):
    """A certain hand around (6, 6), but keypoint 9 has a peak far away and one near the hand."""
    maps = a_hand()
    maps[0, :, :, 9] = np.maximum(bump(23, 21, high), bump(8, 5, near))
    return maps


def test_an_uncertain_keypoint_takes_its_peak_nearest_to_the_certain_ones():
    prediction = decode(with_two_peaks(high=0.08), stride=1)
    np.testing.assert_allclose(prediction.keypoints[0, 9], [8, 5], atol=1e-3)
    assert float(prediction.confidence[0, 9]) == pytest.approx(0.05)
    others = np.delete(np.asarray(prediction.keypoints[0]), 9, axis=0)
    np.testing.assert_allclose(others, np.full((20, 2), 6.0), atol=1e-3)


@pytest.mark.parametrize(
    ('high', 'kwargs', 'expected'),
    [
        (0.08, {}, (8, 5)),
        (0.12, {}, (23, 21)),
        (0.1, {}, (23, 21)),  # at the threshold a keypoint is certain
        (0.12, {'threshold': 0.2}, (8, 5)),
        (0.08, {'threshold': 0.05}, (23, 21)),
        (0.08, {'fallback': False}, (23, 21)),
        (0.08, {'candidates': 1}, (23, 21)),
        (0.08, {'candidates': 2}, (8, 5)),
    ],
)
def test_the_fallback_applies_below_the_threshold_and_to_as_many_peaks_as_asked(
    high, kwargs, expected
):
    found = decoded_pixels(with_two_peaks(high), **kwargs)
    np.testing.assert_allclose(found[9], expected, atol=1e-3)


@pytest.mark.parametrize('near', [1e-3, 1e-6])
def test_a_candidate_may_be_as_low_as_it_likes_if_few_are_higher(near):
    # A narrow peak, not to drown in the far one's slope; the far map is cut off around it.
    maps = a_hand()
    maps[0, :, :, 9] = bump(23, 21, 0.08)
    maps[0, :14, :14, 9] = 0
    maps[0, 5, 8, 9] = near
    np.testing.assert_allclose(decoded_pixels(maps, subpixel=False)[9], [8, 5])


def test_without_any_certain_keypoint_nothing_moves():
    maps = with_two_peaks(high=0.08) * np.float32(0.1)
    np.testing.assert_array_equal(decoded_pixels(maps), decoded_pixels(maps, fallback=False))
    np.testing.assert_allclose(decoded_pixels(maps)[9], [23, 21], atol=1e-3)


def test_nearest_means_the_mean_distance_to_all_certain_keypoints():
    maps = a_hand(certain_at=(4, 4))
    maps[0, :, :, 16:21] = bump(24, 4, 0.9)[..., None]
    # Five certain keypoints lie right beside the first peak, fifteen nearer to the second.
    maps[0, :, :, 9] = np.maximum(bump(24, 8, 0.08), bump(8, 8, 0.05))
    np.testing.assert_allclose(decoded_pixels(maps)[9], [8, 8], atol=1e-3)
    # Uncertain keypoints have no say, however many they are.
    maps[0, :, :, :9] = bump(24, 4, 0.09)[..., None]
    maps[0, :, :, 10:16] = bump(24, 4, 0.09)[..., None]
    maps[0, :, :, 16:21] = bump(4, 4, 0.9)[..., None]
    np.testing.assert_allclose(decoded_pixels(maps)[9], [8, 8], atol=1e-3)


def test_of_two_peaks_equally_near_the_higher_is_taken_and_of_equals_the_first():
    maps = a_hand(certain_at=(14, 14))
    for keypoint, height in ((9, 0.04), (3, 0.03)):
        peaks = (bump(24, 24, 0.08), bump(9, 14, 0.03), bump(19, 14, height))
        maps[0, :, :, keypoint] = np.max(peaks, axis=0)
    found = decoded_pixels(maps)
    np.testing.assert_allclose(found[9], [19, 14], atol=1e-3)
    np.testing.assert_allclose(found[3], [9, 14], atol=1e-3)


def test_a_place_that_holds_no_peak_is_never_taken():
    maps = a_hand(certain_at=(1, 1))
    # A cone has one peak; places without one are filled from (0, 0), next to the certain ones.
    maps[0, :, :, 9] = 0.09 - 1e-3 * np.hypot(*np.mgrid[-20:8, -22:6])
    np.testing.assert_allclose(decoded_pixels(maps, subpixel=False)[9], [22, 20])


def test_a_plateau_is_no_peak():
    maps = a_hand(certain_at=(2, 2))
    # Exact zeros up to the corner beside the certain keypoints, as from a clipped or quantised map.
    peaks = np.maximum(bump(23, 21, 0.08), bump(12, 12, 0.05))
    maps[0, :, :, 9] = np.where(peaks < 1e-3, 0, peaks)
    np.testing.assert_allclose(decoded_pixels(maps)[9], [12, 12], atol=1e-3)


def test_without_any_peak_the_highest_pixel_stays():
    pixels = jnp.array([[[5, 6], [1, 1]]])
    chosen = jax.jit(functools.partial(heatmaps.choose_by_neighbours, threshold=0.1))(
        pixels,
        jnp.array([[0.05, 0.9]]),
        jnp.array([[[[2, 2], [3, 3]], [[1, 1], [0, 0]]]]),
        jnp.array([[[-jnp.inf, -jnp.inf], [0.9, -jnp.inf]]]),
    )
    np.testing.assert_array_equal(chosen, pixels)


@pytest.mark.parametrize('value', [0.0, 0.05, -1.0, 1.0])
@pytest.mark.parametrize('method', ['peak', 'weighted_average'])
def test_constant_maps_give_finite_keypoints_inside_the_crop(value, method):
    some = a_hand()
    some[..., 3:9] = value
    for maps in (some, np.full_like(some, value)):
        keypoints, confidence = decode(maps, method=method)
        assert np.isfinite(keypoints).all()
        assert heatmaps.inside_crop(keypoints, STRIDE * SIDE, STRIDE * SIDE).all()
        np.testing.assert_allclose(confidence[0, 3:9], np.clip(value, 0, 1), rtol=1e-6)


@pytest.mark.parametrize('method', ['peak', 'weighted_average'])
@pytest.mark.parametrize('where', [20, slice(None)], ids=['one pixel', 'the whole map'])
def test_a_map_with_nan_says_so_in_its_confidence_and_harms_no_other(method, where):
    maps = a_hand()
    clean = decode(maps, method=method)
    maps[0, where, where, 9] = np.nan
    broken = decode(maps, method=method)
    assert np.isnan(broken.confidence[0, 9])
    others = np.arange(21) != 9
    np.testing.assert_array_equal(broken.keypoints[0, others], clean.keypoints[0, others])
    np.testing.assert_array_equal(broken.confidence[0, others], clean.confidence[0, others])


# --- weighted average -----------------------------------------------------------------------------


def centre_of_mass(mass):
    """(x, y) of every map in float64, map pixels."""
    mass = mass.astype(np.float64)
    y, x = (grid[None, :, :, None] for grid in np.mgrid[: mass.shape[1], : mass.shape[2]])
    sums = [(mass * grid).sum(axis=(1, 2)) for grid in (x, y)]
    return np.stack(sums, axis=-1) / mass.sum(axis=(1, 2))[..., None]


def test_the_weighted_average_is_the_centre_of_the_positive_mass():
    maps = random_maps(4, (2, 14, 11, 21))
    expected = centre_of_mass(np.maximum(maps, 0))
    found = weighted_average(jnp.asarray(maps))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    biased = weighted_average(jnp.asarray(maps), half_pixel_bias=True)
    np.testing.assert_allclose(biased, expected - 0.5, rtol=1e-5)


def test_decoding_by_weighted_average_moves_it_to_the_crop_and_has_the_peaks_confidence():
    maps = jnp.asarray(random_maps(4))
    found = decode(maps, method='weighted_average')
    np.testing.assert_allclose(found.keypoints, weighted_average(maps) * 4 + 1.5, rtol=1e-5)
    np.testing.assert_allclose(found.confidence, np.clip(maps.max(axis=(1, 2)), 0, 1), rtol=1e-6)


@pytest.mark.parametrize('stride', [1, 4])
def test_decode_gives_the_tutorials_numbers_when_asked(stride):
    """Its code takes fractions of the side, sum(x p) / side, with pixels counted from 0."""
    maps = np.abs(random_maps(4))
    fractions = centre_of_mass(maps) / SIDE
    biased, corrected = (
        decode(maps, stride, method='weighted_average', half_pixel_bias=bias)
        for bias in (True, False)
    )
    # A fraction runs from the first pixel's edge, which is at -0.5.
    np.testing.assert_allclose(biased.keypoints, fractions * SIDE * stride - 0.5, rtol=1e-5)
    np.testing.assert_allclose(corrected.keypoints - biased.keypoints, 0.5 * stride, rtol=1e-4)
    np.testing.assert_array_equal(biased.confidence, corrected.confidence)


def test_a_map_without_positive_mass_averages_to_its_centre():
    maps = jnp.stack([jnp.zeros((1, 6, 9)), jnp.full((1, 6, 9), -2.0)], axis=-1)
    np.testing.assert_allclose(weighted_average(maps), [[[4, 2.5], [4, 2.5]]])


# --- decode as a whole ----------------------------------------------------------------------------


@pytest.mark.parametrize('method', ['peak', 'weighted_average'])
def test_a_jitted_batch_gives_what_each_hand_gives_alone(method):
    maps = np.concatenate([with_two_peaks(0.08), with_two_peaks(0.12), a_hand((20, 3), 0.05)])
    maps += 1e-3 * random_maps(5, maps.shape)

    together = jax.jit(functools.partial(decode, method=method))(maps)
    for i in range(len(maps)):
        alone = decode(maps[i : i + 1], method=method)
        np.testing.assert_allclose(together.keypoints[i], alone.keypoints[0], atol=1e-4)
        np.testing.assert_allclose(together.confidence[i], alone.confidence[0], rtol=1e-6)


def test_the_background_map_does_not_matter():
    maps = random_maps(6, (1, SIDE, SIDE, 22))
    for one, other in zip(decode(maps), decode(maps[..., :21]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('method', ['peak', 'weighted_average'])
def test_bfloat16_maps_are_decoded_in_float32(method):
    narrow = jnp.asarray(with_two_peaks(0.08)).astype(jnp.bfloat16)
    wide = narrow.astype(jnp.float32)
    for one, other in zip(decode(narrow, method=method), decode(wide, method=method), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'method': 'mean'}, r"decode\.method: expected .* got 'mean'"),
        ({'refinement': 'spline'}, "'parabola' or 'dark', got 'spline'"),
        ({'half_pixel_bias': True}, r"decode\.half_pixel_bias: only .*decode\.method is 'peak'"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        decode(np.zeros((1, 8, 8, 22), np.float32), **settings)
