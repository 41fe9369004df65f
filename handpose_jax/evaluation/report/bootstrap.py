"""How far a metric may be off: the bootstrap, hands drawn again with replacement.

Hands are drawn, never single keypoints: the 21 errors of a hand rise and fall together, and drawing
them one by one would promise several times the precision that is there. Runs that were measured on
the same hands get the same draws, so that what makes a hand hard for both cancels in their
difference.

Source: Efron and Tibshirani 1993, sections 13.3 (percentile interval) and 8.3 (the unit drawn).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax.evaluation import metrics
from handpose_jax.evaluation.metrics import KeypointErrors
from handpose_jax.evaluation.protocols import Protocol

RESAMPLES = 2000
LEVEL = 0.95
FEWEST_HANDS = 20
"""Below it no interval is given: so few hands do not show how much hands differ."""

_CHUNK = 100

# From how often each hand was drawn, i[r n], to the metric of each draw, f[r].
_Metric = Callable[[np.ndarray], np.ndarray]


class Interval(NamedTuple):
    """The range that LEVEL of the draws fall in."""

    low: float
    high: float


def draw(
    runs: Sequence[KeypointErrors], protocol: Protocol, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Float[np.ndarray, 'r']]]:
    """Every metric of every run on hands drawn with replacement.

    Args:
        runs: measured on the same hands in the same order.
        protocol: decides which keypoints count, and how.
        resamples: how often all hands are drawn.
        seed: of the draws.

    Returns:
        For each run the values of each metric, by its key in metrics.KeypointErrors.summary; NaN
        or infinite where a metric does not exist.

    Raises:
        ValueError: for runs of different numbers of hands, or none.
    """
    numbers = {errors.num_hands for errors in runs}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(f'draw: expected runs of the same hands, got {sorted(numbers)} hands')
    hands = numbers.pop()
    rng = np.random.default_rng(seed)
    functions = [metrics_of_draws(errors, protocol) for errors in runs]
    parts: list[dict[str, list[np.ndarray]]] = [{name: [] for name in run} for run in functions]
    # In parts: the draws of many hands would not fit into memory together.
    for start in range(0, resamples, _CHUNK):
        times = rng.multinomial(hands, np.full(hands, 1 / hands), min(_CHUNK, resamples - start))
        for part, run in zip(parts, functions, strict=True):
            for name, function in run.items():
                part[name].append(function(times))
    return [{name: np.concatenate(values) for name, values in part.items()} for part in parts]


def interval(draws: Float[np.ndarray, 'r']) -> Interval | None:
    """The percentile interval of draws; None if any is NaN or infinite."""
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def metrics_of_draws(errors: KeypointErrors, protocol: Protocol) -> dict[str, _Metric]:
    """A function for each metric: from how often each hand was drawn, i[r n], to its values, f[r].

    Drawn hands are counted, not copied: a mean over them is a weighted mean over all hands.
    """
    measured = metrics.Measured(errors, protocol)
    weighted = {np.mean: _mean, np.median: _median}
    return {
        metric.name: weighted[metric.statistic](
            *metric.values(measured), by_keypoint=metric.separate(protocol)
        )
        for metric in metrics.metrics_of(protocol)
    }


def _mean(
    values: Float[np.ndarray, 'n k'], valid: Bool[np.ndarray, 'n k'], *, by_keypoint: bool
) -> _Metric:
    """The mean over all that is counted, or the mean over keypoints of their own means."""
    total, number = np.where(valid, values, 0.0), valid.astype(np.int64)
    if not by_keypoint:
        total, number = total.sum(axis=1, keepdims=True), number.sum(axis=1, keepdims=True)
    known = np.isfinite(total).all()

    def metric(times: np.ndarray) -> np.ndarray:
        if not known:
            return np.full(len(times), np.nan)
        drawn = times @ number
        means = np.divide(times @ total, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
        return _mean_of_known(means)

    return metric


def _median(
    values: Float[np.ndarray, 'n k'], valid: Bool[np.ndarray, 'n k'], *, by_keypoint: bool
) -> _Metric:
    """The median of all that is counted, or the mean over keypoints of their own medians."""
    every = list(range(values.shape[1]))
    ranked = []
    for column in [[k] for k in every] if by_keypoint else [every]:
        hands, _ = np.nonzero(valid[:, column])
        errors = values[:, column][valid[:, column]]
        order = np.argsort(errors, kind='stable')
        ranked.append((errors[order], hands[order]))

    def metric(times: np.ndarray) -> np.ndarray:
        medians = np.full((len(times), len(ranked)), np.nan)
        for k, (errors, hands) in enumerate(ranked):
            if len(errors):
                # The place of an ascending error, had each been written as often as it was drawn.
                upto = np.cumsum(times[:, hands], axis=1)
                total = upto[:, -1]
                some = total > 0
                # As np.median: the mean of the middle two.
                places = ((total - 1) // 2, total // 2)
                middle = [(upto <= place[:, None]).sum(axis=1) for place in places]
                medians[some, k] = np.mean([errors[place[some]] for place in middle], axis=0)
        return _mean_of_known(medians)

    return metric


def _mean_of_known(values: Float[np.ndarray, 'r k']) -> Float[np.ndarray, 'r']:
    known = ~np.isnan(values)
    number = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)
