"""When a training ends early, and that an interruption does not change it."""

import json

import pytest

from handpose_jax.early_stopping import EarlyStopping


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
    stopping = EarlyStopping(patience=1, smallest=0.5)
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
