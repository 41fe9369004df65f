"""Optimizers against Keras and closed forms, the schedules' values, the first training state."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from handpose_jax.training import optimizers
from handpose_jax.training.state import init_state

# Keras 3.15 copies its variables the way NumPy 1 did.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def minimise(tx, params, gradient, steps):
    """The parameters after each step, float32."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    path, state = [], tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    return path


def test_adadelta_walks_as_keras_does():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 4)).astype(np.float32)
    curvature = 10.0 ** rng.uniform(-4, 2, start.shape).astype(np.float32)
    tx, _ = optimizers.build('adadelta', learning_rate=1.0, num_steps=20)
    ours = minimise(tx, jnp.asarray(start), lambda p: curvature * p, 20)

    variable = keras.Variable(start)
    optimizer = keras.optimizers.Adadelta(learning_rate=1.0)
    assert (optimizer.rho, optimizer.epsilon) == (0.95, 1e-7)
    for ours_now in ours:
        optimizer.apply([curvature * variable.value], [variable])
        np.testing.assert_allclose(ours_now - start, variable.value - start, rtol=1e-3, atol=1e-7)
    # It moved, and by far more than the tolerance.
    assert (np.abs(ours[-1] - start) > 1e-4).all()


def test_sgd_is_a_step_against_the_gradient_and_momentum_adds_to_it():
    start = jnp.array([1.0, -2.0])
    gradient = jnp.array([0.5, 3.0])
    plain, _ = optimizers.build('sgd', learning_rate=0.1, num_steps=9)
    path = minimise(plain, start, lambda _: gradient, 3)
    np.testing.assert_allclose(path[2], start - 3 * 0.1 * gradient, rtol=1e-6)
    heavy, _ = optimizers.build('sgd', learning_rate=0.1, num_steps=9, momentum=0.9)
    path = minimise(heavy, start, lambda _: gradient, 3)
    np.testing.assert_allclose(path[2], start - (1 + 1.9 + 2.71) * 0.1 * gradient, rtol=1e-6)


def test_adamw_decays_kernels_and_nothing_else():
    params = {
        'conv': {'kernel': jnp.full((1, 1, 2, 3), 2.0)},
        'depthwise': {'kernel': jnp.full((3, 3, 1, 2), 2.0)},
        'bn': {'scale': jnp.full(3, 2.0), 'bias': jnp.full(3, 2.0)},
        'heatmaps_bias': jnp.full(3, 2.0),
    }
    tx, _ = optimizers.build('adamw', learning_rate=0.5, num_steps=4, weight_decay=0.1)
    no_gradient = jax.tree.map(jnp.zeros_like, params)
    after = minimise(tx, params, lambda _: no_gradient, 2)[-1]
    expected = jax.tree.map(lambda p: p * (0.95**2 if p.ndim == 4 else 1.0), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected)


def test_adamw_without_decay_first_moves_by_the_rate_against_the_sign():
    tx, _ = optimizers.build('adamw', learning_rate=0.01, num_steps=4, weight_decay=0.0)
    gradient = jnp.array([[3.0, -0.2]])
    after = minimise(tx, jnp.zeros((1, 2)), lambda _: gradient, 1)[0]
    np.testing.assert_allclose(after, -0.01 * np.sign(gradient), rtol=1e-5)


def test_the_optimizer_follows_the_schedule_that_is_returned():
    tx, rate = optimizers.build(
        'sgd', learning_rate=0.3, num_steps=8, schedule_name='cosine', warmup_steps=3
    )
    path = minimise(tx, jnp.zeros(1), lambda _: jnp.ones(1), 8)
    steps = np.diff(np.concatenate([[np.zeros(1)], path]), axis=0)[:, 0]
    np.testing.assert_allclose(-steps, [rate(i) for i in range(8)], atol=1e-6)


@pytest.mark.parametrize('warmup', [0, 1, 5])
@pytest.mark.parametrize('name', ['constant', 'cosine'])
def test_a_schedule_rises_linearly_then_stays_or_falls_to_zero(name, warmup):
    rate = optimizers.schedule(name, learning_rate=0.2, num_steps=20, warmup_steps=warmup)
    for step in range(21):
        if step < warmup:
            expected = 0.2 * step / warmup
        elif name == 'constant':
            expected = 0.2
        else:
            expected = 0.1 * (1 + np.cos(np.pi * (step - warmup) / (20 - warmup)))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(('warmup', 'steps'), [(10, 10), (11, 10), (-1, 10), (1, 1), (1, 0)])
def test_a_warm_up_that_leaves_no_training_is_an_error(warmup, steps):
    with pytest.raises(ValueError, match=f'warmup_steps.*got {warmup}'):
        optimizers.schedule('constant', learning_rate=1.0, num_steps=steps, warmup_steps=warmup)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ValueError, match=r"name: expected one of \['adadelta'.*got 'adam'"):
        optimizers.build('adam', learning_rate=1.0, num_steps=2)
    with pytest.raises(ValueError, match=r"schedule_name: expected 'constant', .* got 'step'"):
        optimizers.build('sgd', learning_rate=1.0, num_steps=2, schedule_name='step')


@pytest.mark.parametrize(
    ('name', 'option', 'message'),
    [
        ('sgd', 'momentun', r"optimizer\.momentun: 'sgd' .*'momentum'.*did you mean 'momentum'\?"),
        ('sgd', 'weight_decay', r"optimizer\.weight_decay: 'sgd' has no .*'warmup_steps'\]$"),
        ('adamw', 'rho', r"optimizer\.rho: 'adamw' has no .*'b1', 'b2', .*'learning_rate'"),
        ('adamw', 'warm_up_steps', r"did you mean 'warmup_steps'\?"),
        # The schedule itself, which is not the caller's to give.
        ('adadelta', 'rate', r"optimizer\.rate: 'adadelta' has no .*'eps', .*'rho'"),
    ],
)
def test_an_option_that_an_optimizer_does_not_have_is_named_with_those_it_has(
    name, option, message
):
    with pytest.raises(ValueError, match=message):
        optimizers.build(name, learning_rate=1.0, num_steps=2, **{option: 1})


class Tiny(nn.Module):
    """The least that has parameters and batch statistics."""

    @nn.compact
    def __call__(self, images, train=False):
        kernel = self.param('kernel', nn.initializers.normal(), (3, 4))
        mean = self.variable('batch_stats', 'mean', jnp.zeros, 4)
        return images.astype(jnp.float32) @ kernel - mean.value


@functools.cache
def tiny_state(seed=0, use_ema=True):
    tx, _ = optimizers.build('adadelta', learning_rate=1.0, num_steps=2)
    return init_state(Tiny(), tx, size=8, seed=seed, use_ema=use_ema)


def leaves_equal(one, other):
    return [bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)]


def test_a_state_begins_at_step_zero_and_its_average_at_the_parameters():
    state = tiny_state()
    assert (state.step, state.step.dtype) == (0, jnp.int32)
    assert all(leaves_equal(state.ema, state.params))
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_no_two_arrays_of_a_state_share_memory():
    addresses = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny_state())]
    assert len(set(addresses)) == len(addresses)


def test_a_state_depends_on_its_seed_only():
    again = tiny_state.__wrapped__()
    assert all(leaves_equal(again, tiny_state()))
    other = tiny_state(seed=1)
    assert not (other.params['kernel'] == again.params['kernel']).any()


def test_inference_takes_the_average_where_there_is_one():
    state = tiny_state()
    moved = state._replace(params=jax.tree.map(lambda p: p + 1, state.params))
    assert all(leaves_equal(moved.variables()['params'], state.params))
    assert moved.variables()['batch_stats'] is moved.batch_stats
    plain = tiny_state(use_ema=False)
    assert plain.ema is None
    assert plain.variables()['params'] is plain.params


def test_a_plateau_halves_the_rate_as_pytorch_would():
    """Against ReduceLROnPlateau's rule, in a loop of plain floats."""
    losses = [4.0, 3.0, 3.0, 3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1, 1.0, 1.0, 1.0, 1.0]
    tx, rate = optimizers.build(
        'sgd',
        learning_rate=0.1,
        num_steps=100,
        schedule_name='plateau',
        plateau_steps=2,
        plateau_patience=1,
        plateau_threshold=1e-6,
    )
    best, bad, expected = np.inf, 0, 0.1
    params = jnp.zeros(1)
    opt_state = tx.init(params)
    for step, epoch_loss in enumerate(losses):
        for part in (-0.25, 0.25):
            _, opt_state = tx.update(
                jnp.ones(1), opt_state, params, value=jnp.float32(epoch_loss + part)
            )
        bad = 0 if epoch_loss < best else bad + 1
        best = min(best, epoch_loss)
        if bad > 1:
            expected, bad = expected / 2, 0
        found = optimizers.current_rate(rate, opt_state, 2 * step + 1)
        assert found == pytest.approx(expected), step
        moved, _ = tx.update(jnp.ones(1), opt_state, params, value=jnp.float32(epoch_loss))
        assert float(moved[0]) == pytest.approx(-expected)
    assert expected < 0.1


def test_clipping_bounds_the_norm_of_all_gradients_together():
    tx, _ = optimizers.build('sgd', learning_rate=1.0, num_steps=10, clip_norm=2.0)
    params = {'a': jnp.zeros(3), 'b': jnp.zeros(4)}
    large = {'a': jnp.full(3, 30.0), 'b': jnp.full(4, -7.0)}
    moved, _ = tx.update(large, tx.init(params), params, value=jnp.float32(0))
    flat = np.concatenate([-moved['a'], -moved['b']])
    whole = np.concatenate([large['a'], large['b']])
    np.testing.assert_allclose(flat, whole * 2 / np.linalg.norm(whole), rtol=1e-6)
    small = jax.tree.map(lambda g: g / 1000, large)
    moved, _ = tx.update(small, tx.init(params), params, value=jnp.float32(0))
    np.testing.assert_allclose(-moved['a'], small['a'], rtol=1e-6)
    with pytest.raises(ValueError, match='clip_norm'):
        optimizers.build('sgd', learning_rate=1.0, num_steps=10, clip_norm=-1.0)


def test_plateau_options_belong_to_the_plateau_only():
    with pytest.raises(ValueError, match=r'optimizer\.plateau_steps'):
        optimizers.build('sgd', learning_rate=1.0, num_steps=2, plateau_steps=3)
