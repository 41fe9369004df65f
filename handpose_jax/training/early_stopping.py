"""Ends a training when validation has stopped getting better."""

import math
from collections.abc import Mapping
from typing import Any


class EarlyStopping:
    """Counts the evaluations since the best one.

    Attributes:
        finished: whether the training should end.
    """

    def __init__(self, *, patience: int = 0, metric: str = 'epe_mean_224', min_delta: float = 0.0):
        """Begins with no evaluation.

        Args:
            patience: evaluations in a row without a better one that end the training; 0: never.
            metric: of the evaluation's summary; smaller is better.
            min_delta: improvement that counts, in the metric's unit.

        Raises:
            ValueError: for a negative number.
        """
        if patience < 0 or min_delta < 0:
            raise ValueError(
                'early_stopping.patience and .min_delta must be 0 or more, '
                f'got {patience} and {min_delta}'
            )
        self._patience = patience
        self._metric = metric
        self._min_delta = min_delta
        self._best = math.inf
        self._since_best = 0

    @property
    def finished(self) -> bool:
        """Whether the training should end."""
        return 0 < self._patience <= self._since_best

    def update(self, summary: Mapping[str, Any]) -> None:
        """Counts one evaluation; one without a number (None, not finite) is no better one.

        Raises:
            ValueError: if the summary has no such metric.
        """
        if self._metric not in summary:
            names = sorted(name for name, value in summary.items() if isinstance(value, float))
            raise ValueError(
                f'early_stopping.metric: no {self._metric!r} in the evaluation; expected one of '
                f'{names}'
            )
        value = summary[self._metric]
        if value is not None and value < self._best - self._min_delta:
            self._best, self._since_best = float(value), 0
        else:
            self._since_best += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        best = self._best if math.isfinite(self._best) else None
        return {'best': best, 'since_best': self._since_best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._best = math.inf if state['best'] is None else float(state['best'])
        self._since_best = int(state['since_best'])
