"""When a training ends early, and that an interruption does not change it."""

import json

import pytest
from test_kill import make_config

from handpose_jax import train
from handpose_jax.training.early_stopping import EarlyStopping
from handpose_jax.training.writers import read_metrics


def test_it_ends_after_so_many_evaluations_without_a_better_one():
    stopping = EarlyStopping(patience=2)
    finished = []
    for value in (9.0, 8.0, 8.0, 7.5, 7.5, None):
        stopping.update({'epe_mean_224': value})
        finished.append(stopping.finished)
    assert finished == [False, False, False, False, False, True]


def test_without_patience_it_never_ends():
    stopping = EarlyStopping()
    for _ in range(100):
        stopping.update({'epe_mean_224': 5.0})
    assert not stopping.finished


def test_an_improvement_must_be_large_enough():
    stopping = EarlyStopping(patience=1, min_delta=0.5)
    stopping.update({'epe_mean_224': 9.0})
    stopping.update({'epe_mean_224': 8.6})
    assert stopping.finished


@pytest.mark.parametrize('values', [[], [9.0], [9.0, 9.5], [None, float('nan')]])
def test_it_goes_on_from_its_state(values):
    stopping, other = EarlyStopping(patience=3), EarlyStopping(patience=3)
    for value in values:
        stopping.update({'epe_mean_224': value})
    other.restore(json.loads(json.dumps(stopping.state(), allow_nan=False)))
    for value in (9.2, 9.1, 9.0, 9.0):
        for one in (stopping, other):
            one.update({'epe_mean_224': value})
        assert stopping.finished == other.finished
        assert stopping.state() == other.state()


def test_an_unknown_metric_is_told_the_known_ones():
    stopping = EarlyStopping(patience=1, metric='epe')
    with pytest.raises(ValueError, match=r"no 'epe' .* \['auc', 'epe_mean_224'\]"):
        stopping.update({'auc': 0.5, 'epe_mean_224': 3.0, 'protocol': 'box'})
    with pytest.raises(ValueError, match='patience'):
        EarlyStopping(patience=-1)


@pytest.mark.slow
def test_a_training_ends_early_with_a_whole_result_and_does_not_go_on(tmp_path):
    # The quick start's network gets better than this by less than 1,000 px at any evaluation.
    config = make_config(
        **{'num_steps': 40, 'early_stopping.patience': 2, 'early_stopping.min_delta': 1000.0}
    )
    train.train(config, str(tmp_path))
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows if row['split'] == 'eval'] == [4, 8, 12]
    assert max(row['step'] for row in rows) == 12
    result = (tmp_path / 'metrics.json').read_bytes()
    assert json.loads(result)['step'] == 12
    # The same command again: nothing more to do, the same result.
    train.train(config, str(tmp_path))
    assert (tmp_path / 'metrics.json').read_bytes() == result
    assert read_metrics(tmp_path / 'metrics.jsonl') == rows
