"""The masked loss against NumPy float64, its gradient against finite differences."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from handpose_jax import heatmaps, train
from handpose_jax.training import losses
from handpose_jax.training.losses import squared_error_loss
from handpose_jax.training.state import TrainState

SHAPE = (3, 4, 5, 6)


def example(seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, (SHAPE[0], SHAPE[3]))
    weights[0, 2] = weights[1] = 0
    return rng.normal(size=SHAPE), rng.uniform(size=SHAPE), weights


def reference(maps, targets, weights):
    total = 0.0
    for i in range(maps.shape[0]):
        for k in range(maps.shape[3]):
            total += 0.5 * weights[i, k] * ((maps[i, :, :, k] - targets[i, :, :, k]) ** 2).sum()
    return total / maps.shape[0]


@pytest.mark.parametrize('seed', range(3))
def test_it_is_half_the_weighted_sum_of_squares_of_a_mean_example(seed):
    arrays = example(seed)
    value = squared_error_loss(*(jnp.asarray(a, jnp.float32) for a in arrays))
    np.testing.assert_allclose(value, reference(*arrays), rtol=1e-5)


def test_a_wrong_pixel_costs_half_its_square():
    maps = np.zeros(SHAPE, np.float32)
    maps[1, 2, 3, 4] = 3
    weights = np.ones((SHAPE[0], SHAPE[3]), np.float32)
    value = squared_error_loss(jnp.asarray(maps), jnp.zeros(SHAPE), jnp.asarray(weights))
    assert value == pytest.approx(4.5 / SHAPE[0])


def test_a_batch_given_twice_costs_the_same():
    arrays = [jnp.asarray(a, jnp.float32) for a in example()]
    twice = [jnp.concatenate([a, a]) for a in arrays]
    np.testing.assert_allclose(squared_error_loss(*twice), squared_error_loss(*arrays), rtol=1e-6)


def test_maps_of_weight_zero_neither_cost_nor_teach():
    maps, targets, weights = (jnp.asarray(a, jnp.float32) for a in example())
    ignored = np.broadcast_to(np.asarray(weights == 0)[:, None, None, :], SHAPE)
    other = jnp.where(ignored, 1000.0, maps)
    assert squared_error_loss(other, targets, weights) == squared_error_loss(maps, targets, weights)
    gradient = np.asarray(jax.grad(squared_error_loss)(other, targets, weights))
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).all()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('where', ['maps', 'targets'])
def test_what_is_not_finite_in_a_map_of_weight_zero_does_not_spread(where, value):
    maps, targets, weights = (jnp.asarray(a, jnp.float32) for a in example())
    ignored = np.broadcast_to(np.asarray(weights == 0)[:, None, None, :], SHAPE)
    broken = {'maps': maps, 'targets': targets}
    broken[where] = jnp.where(ignored, value, broken[where])
    clean = jax.value_and_grad(squared_error_loss)(maps, targets, weights)
    found = jax.value_and_grad(squared_error_loss)(broken['maps'], broken['targets'], weights)
    assert np.isfinite(found[0])
    assert found[0] == clean[0]
    np.testing.assert_array_equal(found[1], clean[1])


def test_the_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        maps, targets, weights = (jnp.asarray(a) for a in example())
        gradient = jax.grad(squared_error_loss)(maps, targets, weights)
        assert gradient.dtype == jnp.float64
        rng = np.random.default_rng(1)
        for _ in range(5):
            direction = rng.normal(size=SHAPE)
            step = 1e-3 * direction
            difference = squared_error_loss(maps + step, targets, weights) - squared_error_loss(
                maps - step, targets, weights
            )
            # A quadratic has no third derivative: central differences are exact but for rounding.
            np.testing.assert_allclose(difference / 2e-3, (gradient * direction).sum(), rtol=1e-10)


@pytest.mark.parametrize(
    ('targets', 'weights'),
    [
        ((3, 4, 5, 1), (3, 6)),
        ((1, 4, 5, 6), (3, 6)),
        ((4, 5, 6), (3, 6)),
        (SHAPE, (3, 1)),
        (SHAPE, (6,)),
        (SHAPE, ()),
    ],
)
@pytest.mark.usefixtures('unchecked')
def test_shapes_that_would_broadcast_are_an_error(targets, weights):
    with pytest.raises(ValueError, match=r'squared_error_loss: targets must have the shape'):
        squared_error_loss(jnp.zeros(SHAPE), jnp.zeros(targets), jnp.zeros(weights))


def iou_in_float64(heatmaps, targets, weights):
    """The tutorial's formula, map by map, in NumPy float64."""
    total, counted = 0.0, 0.0
    for i, k in np.ndindex(weights.shape):
        y, p = targets[i, :, :, k].astype(np.float64), heatmaps[i, :, :, k].astype(np.float64)
        common = (y * p).sum()
        union = (y * y).sum() + (p * p).sum() - common
        total += weights[i, k] * (1 - (common + 1e-6) / (union + 1e-6))
        counted += weights[i, k]
    return total / counted


def test_iou_loss_is_the_formula_and_ignores_what_has_no_weight():
    rng = np.random.default_rng(0)
    maps, targets = rng.uniform(size=(2, 3, 6, 5, 4)).astype(np.float32)
    weights = np.array([[1, 0, 1, 1], [0.5, 1, 0, 1], [1, 1, 1, 0]], np.float32)
    expected = iou_in_float64(maps, targets, weights)
    maps[0, :, :, 1] = np.nan
    value, gradient = jax.value_and_grad(losses.iou_loss)(
        jnp.asarray(maps), jnp.asarray(targets), jnp.asarray(weights)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[0, :, :, 1].any()


def test_iou_loss_of_equal_maps_is_0_and_of_disjoint_ones_1():
    one = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(1)
    other = jnp.roll(one, 2, axis=1)
    weights = jnp.ones((1, 1))
    np.testing.assert_allclose(losses.iou_loss(one, one, weights), 0, atol=1e-6)
    np.testing.assert_allclose(losses.iou_loss(one, other, weights), 1, atol=1e-6)
    np.testing.assert_allclose(losses.iou_loss(0 * one, 0 * one, weights), 0, atol=1e-6)


def test_iou_loss_without_any_weight_is_0():
    maps = jnp.ones((1, 4, 4, 2))
    assert losses.iou_loss(maps, maps, jnp.zeros((1, 2))) == 0


@pytest.mark.usefixtures('unchecked')
def test_iou_loss_refuses_shapes_that_would_broadcast():
    maps = jnp.ones((1, 4, 4, 2))
    with pytest.raises(ValueError, match='iou_loss: targets must have the shape'):
        losses.iou_loss(maps, maps[..., :1], jnp.ones((1, 2)))


def peak_maps(size, heights):
    """One peak of the usual width in the middle of each map, f32[1 size size k]; stride 4."""
    middle = jnp.full((1, 21, 2), 2.0 * size)
    maps, _ = heatmaps.render(
        middle, jnp.ones((1, 21), bool), height=size, width=size, stride=4, sigma=7 * size / 56
    )
    return maps[..., : len(heights)] * jnp.asarray(heights)


@pytest.mark.parametrize('size', [28, 56])
def test_iou_loss_of_a_peak_where_there_is_none_is_one_half_and_slopes(size):
    maps = peak_maps(size, [1.0, 0.5, 0.1])
    weights = jnp.eye(3)
    for k, height in enumerate((1.0, 0.5, 0.1)):
        value, gradient = jax.value_and_grad(losses.iou_loss)(maps, 0 * maps, weights[k : k + 1])
        # S / (S + A), where S = height^2 A but for what the sums over pixels are coarse.
        assert value == pytest.approx(height**2 / (height**2 + 1), rel=2e-3)
        # About as steep as where a whole peak is missing.
        whole = peak_maps(size, [1.0, 1.0, 1.0])
        missing = jax.grad(losses.iou_loss)(0.01 * whole, whole, weights[k : k + 1])
        ratio = np.abs(gradient).max() / np.abs(missing).max()
        assert 0.1 < ratio < 2, (height, ratio)


def test_iou_loss_of_targets_that_are_not_empty_is_the_tutorials_to_the_last_bit():
    def tutorial(heatmaps, targets, weights):
        counted = weights[:, None, None, :] != 0
        predicted, wanted = jnp.where(counted, heatmaps, 0), jnp.where(counted, targets, 0)
        common = (wanted * predicted).sum(axis=(1, 2))
        union = (wanted**2).sum(axis=(1, 2)) + (predicted**2).sum(axis=(1, 2)) - common
        overlap = (common + losses.IOU_SMOOTHING) / (union + losses.IOU_SMOOTHING)
        return ((1 - overlap) * weights).sum() / jnp.maximum(weights.sum(), 1e-12)

    maps, targets, weights = (jnp.asarray(a, jnp.float32) for a in example())
    found = jax.jit(jax.value_and_grad(losses.iou_loss))(maps, targets, weights)
    for one, other in zip(
        found, jax.jit(jax.value_and_grad(tutorial))(maps, targets, weights), strict=True
    ):
        np.testing.assert_array_equal(one, other)


class SeesHands(nn.Module):
    """A peak in each map of a keypoint, high where a picture is bright, and a flat background."""

    stride: ClassVar[int] = 4

    @nn.compact
    def __call__(self, images, train=False):
        height = self.param('height', nn.initializers.constant(0.8), (21,))
        level = self.param('level', nn.initializers.constant(0.2), ())
        bright = images.astype(jnp.float32).mean(axis=(1, 2, 3), keepdims=True) / 255
        peaks = peak_maps(images.shape[1] // self.stride, [1.0]) * height * bright
        background = jnp.broadcast_to(level, (*peaks.shape[:3], 1))
        return jnp.concatenate([peaks, background], axis=-1)


# Plain descent: Adam would make steps of one size of the flattest slope. The squared error is a sum
# over pixels, the overlap a mean over maps.
@pytest.mark.parametrize(('loss', 'rate'), [('squared_error', 5e-3), ('iou', 2.0)])
def test_training_on_pictures_without_a_hand_lowers_the_peaks(loss, rate):
    model, tx = SeesHands(), optax.with_extra_args_support(optax.sgd(rate))
    image = jnp.full((4, 64, 64, 3), 255, jnp.uint8)
    params = model.init(jax.random.key(0), image)['params']
    nothing = jnp.int32(0)
    state = TrainState(nothing, params, {}, tx.init(params), None, nothing, nothing)
    step = jax.jit(train.make_train_step(model, tx, train.LOSSES[loss], sigma=7.0))
    batch = {
        'image': image,
        'keypoints': jnp.zeros((4, 21, 2)),
        'visible': jnp.zeros((4, 21), bool),
        'has_hand': jnp.zeros(4, bool),
    }
    # Hands without labels teach nothing; before this, nor did pictures without hands.
    with_hands = {**batch, 'has_hand': jnp.ones(4, bool)}
    unlabelled, _ = step(state, with_hands)
    np.testing.assert_array_equal(unlabelled.params['height'], params['height'])
    for _ in range(300):
        state, metrics = step(state, batch)
    before, after = (model.apply({'params': p}, image)[0] for p in (params, state.params))
    assert float(metrics['skipped']) == 0
    assert float(after[..., :21].max()) < 0.6 * float(before[..., :21].max())
    assert float(after[..., 21].mean()) > float(before[..., 21].mean()) + 0.2
