"""Steps that fail are skipped, counted, dumped and end the run; empty heatmaps raise an alarm."""

import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from test_kill import make_config

from handpose_jax import models, train
from handpose_jax.data.sources import SketchSource
from handpose_jax.data.transforms import crop_example
from handpose_jax.models import STRIDE
from handpose_jax.training import health, losses
from handpose_jax.training.state import TrainState


class OneScale(nn.Module):
    """Heatmaps that are one parameter everywhere, and a statistic that counts its calls."""

    stride: ClassVar[int] = STRIDE

    @nn.compact
    def __call__(self, images, train=False):
        b, h, w, _ = images.shape
        scale = self.param('scale', nn.initializers.ones, ())
        calls = self.variable('batch_stats', 'calls', jnp.zeros, ())
        if train and not self.is_initializing():
            calls.value = calls.value + 1
        return jnp.full((b, h // STRIDE, w // STRIDE, models.NUM_HEATMAPS), 0.5) * scale


def make_batch(first=0):
    source = SketchSource(count=20)
    examples = [crop_example(source[i], size=32, index=i) for i in range(first, first + 4)]
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def broken_loss(bad):
    """The squared error, times infinity for batches whose first record is in `bad`."""

    def loss(maps, targets, weights):
        # Record numbers do not reach the loss; its first visible weight is abused as a mark.
        mark = weights[0, 0] == 0
        factor = jnp.where(mark, bad, 1.0)
        return losses.squared_error_loss(maps, targets, weights) * factor

    return loss


def make_step(bad=jnp.inf):
    model = OneScale()
    tx = optax.with_extra_args_support(optax.adam(0.1))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))
    state = TrainState(
        step=jnp.int32(0),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=tx.init(variables['params']),
        ema=variables['params'],
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
    )
    step = train.make_train_step(model, tx, broken_loss(bad), sigma=7.0, ema=0.9)
    return state, jax.jit(step)


def marked(batch):
    visible = batch['visible'].copy()
    visible[0, 0] = False
    return {**batch, 'visible': visible}


@pytest.mark.parametrize('bad', [jnp.inf, jnp.nan])
def test_a_step_without_finite_numbers_changes_nothing_but_the_counts(bad):
    state, step = make_step(bad)
    batch = make_batch()
    before, metrics = step(state, batch)
    assert (int(metrics['skipped']), int(metrics['skipped_in_a_row'])) == (0, 0)
    after, metrics = step(before, marked(batch))
    assert not np.isfinite(metrics['loss'])
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (2, 1, 1)
    for name in ('params', 'batch_stats', 'opt_state', 'ema'):
        for a, b in zip(*(jax.tree.leaves(getattr(s, name)) for s in (before, after)), strict=True):
            np.testing.assert_array_equal(a, b)
    # The next good step is the one that would have come without the bad one.
    expected, _ = step(before, batch)
    found, metrics = step(after, batch)
    np.testing.assert_array_equal(found.params['scale'], expected.params['scale'])
    assert (int(metrics['skipped']), int(metrics['skipped_in_a_row'])) == (1, 0)


def test_the_peak_is_the_mean_of_the_highest_values_of_visible_keypoints():
    state, step = make_step()
    batch = make_batch()
    _, metrics = step(state, batch)
    assert float(metrics['peak']) == pytest.approx(0.5)
    nothing = {**batch, 'visible': np.zeros_like(batch['visible'])}
    _, metrics = make_step(bad=1.0)[1](state, nothing)
    assert float(metrics['peak']) == 0.0


def metrics_of(skipped_in_a_row=0, peak=0.9, loss=1.0):
    return {
        'loss': jnp.float32(loss),
        'gradient_norm': jnp.float32(2.0),
        'peak': jnp.float32(peak),
        'skipped': jnp.int32(skipped_in_a_row),
        'skipped_in_a_row': jnp.int32(skipped_in_a_row),
    }


def make_watch(tmp_path, **changes):
    said = []
    options = {'max_skipped': 3, 'empty_after': 4, **changes}
    watch = health.Watch(str(tmp_path), SketchSource(count=20), log=said.append, **options)
    return watch, said


def test_after_so_many_skipped_steps_the_run_ends_with_records_and_dump(tmp_path):
    watch, said = make_watch(tmp_path)
    nan = float('nan')
    watch.step(1, metrics_of(), make_batch(0))
    watch.step(2, metrics_of(1, loss=nan), make_batch(4))
    watch.step(3, metrics_of(2, loss=nan), make_batch(8))
    watch.step(4, metrics_of(3, loss=nan), make_batch(12))
    with pytest.raises(health.DivergedError, match='3 steps in a row') as caught:
        watch.finish()
    for text in ('step 4', 'sketch/train/12', 'sketch/train/15', 'clip_norm'):
        assert text in str(caught.value)
    assert len(said) == 2
    assert 'step 2 skipped: loss nan' in said[0]
    folder = tmp_path / health.DUMP_FOLDER
    # The first of the row and the last.
    assert sorted(path.name for path in folder.iterdir()) == [
        f'{step}.{suffix}' for step in (2, 4) for suffix in ('json', 'npz', 'png')
    ]
    facts = json.loads((folder / '2.json').read_text())
    assert facts['records'] == [f'sketch/train/{i}' for i in range(4, 8)]
    assert facts['loss'] == 'nan'
    with np.load(folder / '4.npz') as saved:
        for key, values in make_batch(12).items():
            np.testing.assert_array_equal(saved[key], values)


def test_a_batch_whose_pictures_are_in_device_memory_is_shown_for_the_dump(tmp_path):
    shown = []

    def show(batch):
        shown.append(batch)
        return make_batch(int(batch['index'][0]))

    watch, _ = make_watch(tmp_path, show=show)
    named = {'position': np.arange(4, dtype=np.uint32), 'index': np.arange(8, 12)}
    watch.step(1, metrics_of(), named)
    watch.step(2, metrics_of(1), named)
    watch.finish()
    assert shown == [named]
    with np.load(tmp_path / health.DUMP_FOLDER / '2.npz') as saved:
        for key, values in make_batch(8).items():
            np.testing.assert_array_equal(saved[key], values)


def test_a_good_step_between_ends_the_row(tmp_path):
    watch, said = make_watch(tmp_path)
    for number, in_a_row in enumerate((1, 2, 0, 1, 2, 0), start=1):
        watch.step(number, metrics_of(in_a_row), make_batch())
    watch.finish()
    assert len(said) == 4


def test_empty_heatmaps_for_long_raise_the_alarm_once(tmp_path):
    watch, said = make_watch(tmp_path)
    for number in range(1, 4):
        watch.step(number, metrics_of(peak=0.01), make_batch())
    watch.step(4, metrics_of(peak=0.5), make_batch())
    for number in range(5, 12):
        watch.step(number, metrics_of(peak=0.01), make_batch())
    watch.finish()
    assert len(said) == 1
    assert 'ALARM at step 8: the heatmaps have been empty for 4 steps' in said[0]


def test_the_alarm_can_be_turned_off(tmp_path):
    watch, said = make_watch(tmp_path, empty_after=0)
    for number in range(1, 12):
        watch.step(number, metrics_of(peak=0.0), make_batch())
    watch.finish()
    assert said == []
    with pytest.raises(ValueError, match='max_skipped'):
        make_watch(tmp_path, max_skipped=0)


@pytest.mark.slow
def test_a_training_that_diverges_ends_with_a_dump(tmp_path):
    config = make_config(
        **{'optimizer.learning_rate': 1e38, 'optimizer.warmup_steps': 0, 'max_skipped': 3}
    )
    with pytest.raises(health.DivergedError, match='3 steps in a row'):
        train.train(config, str(tmp_path))
    folder = tmp_path / health.DUMP_FOLDER
    assert len(list(folder.glob('*.png'))) == 2
    assert not (tmp_path / 'metrics.json').exists()
