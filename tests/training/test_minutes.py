"""A length given as minutes, and weights written by the clock: the training is to the bit the one
with that number of steps.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handpose_jax
from handpose_jax import train
from handpose_jax.config import check, load
from handpose_jax.data.sources import SketchSource
from handpose_jax.process import distributed
from handpose_jax.training import minutes, optimizers, weight_files, workdirs

ROOT = Path(__file__).parents[2]


def smoke_config(**changes):
    config = load(ROOT / 'configs' / 'quickstart.py:smoke')
    config.update_from_flattened_dict(changes)
    return config


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(state, other):
    for a, b in zip(leaves(state), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_run_of_minutes_is_the_run_of_its_steps_and_goes_on_as_it_was_laid_out(
    tmp_path, monkeypatch, capsys
):
    given = smoke_config(minutes=3.0, num_steps=100)
    given.optimizer.warmup_steps = 4
    short, whole = tmp_path / 'short', tmp_path / 'whole'
    train.train(given, str(short), stop_at=1)
    assert 'steps fit into' in capsys.readouterr().err
    assert given.num_steps == 100
    steps = workdirs.load_config(str(short)).num_steps
    # Steps of this network take milliseconds, and of three minutes more than a second was left.
    assert steps > 40
    monkeypatch.setattr(minutes, 'step_seconds', lambda *_: pytest.fail('measured once more'))
    resumed = train.train(given, str(short), stop_at=3)
    plain = smoke_config(num_steps=steps)
    plain.optimizer.warmup_steps = 4
    assert_same(resumed, train.train(plain, str(whole), stop_at=3))
    assert (short / 'metrics.jsonl').read_text() == (whole / 'metrics.jsonl').read_text()
    other = smoke_config(minutes=4.0, num_steps=100)
    other.optimizer.warmup_steps = 4
    with pytest.raises(ValueError, match=r'another config:\n  minutes: 3\.0 -> 4\.0\ntake'):
        train.train(other, str(short))


@pytest.mark.slow
def test_a_run_that_fits_ends_with_its_schedule(tmp_path, monkeypatch):
    """Three steps: the warm-up of five is too long for them, and shortened."""
    monkeypatch.setattr(minutes, 'steps_within', lambda *_: 3)
    given = smoke_config(minutes=3.0, num_steps=100, weights_every_seconds=1e6)
    given.optimizer.warmup_steps = 5
    state = train.train(given, str(tmp_path))
    found = workdirs.load_config(str(tmp_path))
    assert (found.num_steps, found.optimizer.warmup_steps, int(state.step)) == (3, 0, 3)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    rates = [row['learning_rate'] for row in rows if row['split'] == 'train']
    highest = given.optimizer.learning_rate
    np.testing.assert_allclose(rates, highest * np.array([1, 0.75, 0.25]), rtol=1e-5)
    # The weights of the last step are those of the last checkpoint.
    weights = weight_files.load(tmp_path / 'weights.safetensors')
    assert weights.step == 3
    for a, b in zip(leaves(weights.variables), leaves(state.variables()), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-10, atol=1e-7)
    image = SketchSource(count=1)[0]['image']
    assert handpose_jax.load(tmp_path / 'weights.safetensors')(image).keypoints.shape == (21, 2)


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(ValueError, match=r'config\.minutes: expected minutes above 0'):
        check(smoke_config(minutes=-1.0))
    with pytest.raises(ValueError, match=r'config\.weights_every_seconds: expected'):
        check(smoke_config(weights_every_seconds=-1.0))


@pytest.mark.parametrize('seconds', [-3.0, 0.5, 7.0, 60.0, 1000.0])
@pytest.mark.parametrize('costs', [(1.0, 0.0, 0.0), (0.3, 2.5, 1.5), (0.01, 9.0, 0.2)])
def test_the_steps_that_fit_are_the_most_that_do(seconds, costs):
    """Counted one by one, as the loop of a training does it."""
    config = smoke_config(eval_every=7, checkpoint_every=5)
    found = minutes.steps_within(seconds, minutes.Costs(*costs), config)
    step, evaluation, checkpoint = costs
    counted, spent = 0, 0.0
    while True:
        counted += 1
        spent += step
        if spent + evaluation + checkpoint > 0.97 * seconds:
            break
        spent += evaluation * (counted % 7 == 0) + checkpoint * (counted % 5 == 0)
    # An evaluation that stands at the end counts once.
    assert abs(found - (counted - 1)) <= 1


def test_a_compiled_step_serves_any_length():
    options = {'learning_rate': 0.3, 'schedule_name': 'cosine', 'warmup_steps': 3}
    tx, _ = optimizers.build('sgd', num_steps=1000, **options)
    # Placed as a training places its state.
    mesh = distributed.data_mesh()
    update = jax.jit(tx.update, out_shardings=distributed.replicated(mesh))
    params, gradient, state = distributed.replicate(
        (jnp.zeros(1), jnp.ones(1), tx.init(jnp.zeros(1))), mesh
    )
    update(gradient, state, params, value=0.0)
    state = optimizers.with_length(state, 8, 2)
    _, rate = optimizers.build('sgd', num_steps=8, **{**options, 'warmup_steps': 2})
    for step in range(9):
        updates, state = update(gradient, state, params, value=0.0)
        assert float(updates[0]) == pytest.approx(-float(rate(step)), abs=1e-7)
    assert update._cache_size() == 1


def test_weights_are_written_when_it_is_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(weight_files.time, 'monotonic', lambda: now[0])
    written = []
    monkeypatch.setattr(weight_files, 'save', lambda *given: written.append(given[-1]))
    config = smoke_config(weights_every_seconds=60.0)
    regularly = weight_files.Regularly(str(tmp_path), config)
    silent = weight_files.Regularly(str(tmp_path), config, enabled=False)
    never = weight_files.Regularly(str(tmp_path), smoke_config())
    for step, time in enumerate((101, 159, 161, 220, 222, 400), start=1):
        now[0] = time
        for each in (regularly, silent, never):
            each.offer(dict, step, last=step == 6)
    assert written == [3, 5, 6]
