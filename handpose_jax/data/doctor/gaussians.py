"""Mixtures of Gaussians: fitted to points, and asked how likely other points are (NumPy)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

_STARTING_ROUNDS = 8


class Mixture(NamedTuple):
    """Weighted Gaussians.

    Attributes:
        weights: sum to 1.
        means: of each Gaussian.
        covariances: of each Gaussian.
    """

    weights: Float[np.ndarray, 'k']
    means: Float[np.ndarray, 'k d']
    covariances: Float[np.ndarray, 'k d d']


def fit(
    rng: np.random.Generator,
    points: Float[np.ndarray, 'n d'],
    *,
    components: int,
    floor: float,
    rounds: int = 15,
) -> Mixture:
    """Fits a mixture by expectation maximisation, started by k-means.

    Args:
        rng: draws the first centres.
        points: what to fit.
        components: number of Gaussians.
        floor: standard deviation, in the points' unit, that every Gaussian is widened by.
        rounds: of expectation maximisation.

    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 9.2.2.
    """
    count, size = points.shape
    means = points[rng.choice(count, components, replace=False)]
    for _ in range(_STARTING_ROUNDS):
        nearest = _nearest(points, means)
        for k in range(components):
            mine = points[nearest == k]
            means[k] = mine.mean(axis=0) if len(mine) else points[rng.integers(count)]
    shares = np.eye(components)[_nearest(points, means)]
    for _ in range(rounds):
        mass = shares.sum(axis=0) + 1e-9
        means = shares.T @ points / mass[:, None]
        covariances = np.empty((components, size, size))
        for k in range(components):
            centred = points - means[k]
            covariances[k] = (centred * shares[:, k : k + 1]).T @ centred / mass[k]
        covariances += floor**2 * np.eye(size)
        mixture = Mixture(mass / mass.sum(), means, covariances)
        each = Density(mixture).of_each(points)
        shares = np.exp(each - each.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
    return mixture


def marginal(mixture: Mixture, kept: Sequence[int]) -> Mixture:
    """The distribution of some of the coordinates alone."""
    rows = np.asarray(kept, int)
    return Mixture(
        mixture.weights,
        mixture.means[:, rows],
        mixture.covariances[:, rows[:, None], rows[None, :]],
    )


class Density:
    """The logarithm of a mixture's density, with its matrices factored once.

    Args:
        mixture: its distribution.
        dtype: of the arithmetic.
    """

    def __init__(self, mixture: Mixture, dtype: Any = np.float64):
        size = mixture.means.shape[1]
        whiten = np.linalg.inv(np.linalg.cholesky(mixture.covariances))
        self._components = len(mixture.weights)
        # All Gaussians in one matrix product.
        self._matrix = whiten.reshape(-1, size).T.astype(dtype)
        self._offset = np.einsum('kij,kj->ki', whiten, mixture.means).reshape(-1).astype(dtype)
        constants = (
            np.log(mixture.weights + 1e-300)
            + np.log(np.diagonal(whiten, axis1=1, axis2=2)).sum(axis=1)
            - size / 2 * math.log(2 * math.pi)
        )
        self._constants = constants.astype(dtype)

    def of_each(self, points: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n k']:
        """Log of the weighted density of each Gaussian."""
        white = points @ self._matrix - self._offset
        squares = (white * white).reshape(len(points), self._components, -1).sum(axis=2)
        return self._constants - squares / 2

    def __call__(self, points: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n']:
        """Log of the density, natural logarithm."""
        each = self.of_each(points)
        highest = each.max(axis=1)
        return highest + np.log(np.exp(each - highest[:, None]).sum(axis=1))


def _nearest(
    points: Float[np.ndarray, 'n d'], means: Float[np.ndarray, 'k d']
) -> Int[np.ndarray, 'n']:
    return ((means**2).sum(axis=1) - 2 * points @ means.T).argmin(axis=1)
