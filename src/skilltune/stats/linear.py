"""One linear model of crossed effects: score(sample, version) = effects of the version + effect of the sample + noise.

Gaussian priors make the posterior a ridge regression (Lindley & Smith 1972). Samples are many and versions few, so the
sample effects are eliminated first (their block is diagonal: a Schur complement). What remains is a dense system of a
few dozen columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skilltune.stats.mixture import Mixture, updated

NOISE_FLOOR = 0.02  # variance; a deterministic target still has interactions, which the noise term stands for
ROUNDS = 4  # of re-estimating the two variances
PLACES = 12  # decimals of the result: equal effects stay equal, whatever the last bits of this machine's LAPACK


@dataclass(frozen=True, slots=True)
class Observation:
    """One score of a sample, and the columns that were active with their weights (versions, edits)."""

    sample: str
    columns: Mapping[str, float]
    score: float


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and covariance of the column effects, with the variances that were estimated on the way."""

    names: tuple[str, ...]
    mean: Mapping[str, float]
    covariance: tuple[tuple[float, ...], ...]
    noise: float
    sample: float

    def contrast(self, weights: Mapping[str, float]) -> tuple[float, float]:
        """Mean and standard deviation of a weighted sum of columns; unknown columns are refused by KeyError."""
        index = {name: i for i, name in enumerate(self.names)}
        picked = [(index[name], weight) for name, weight in weights.items()]
        middle = sum(weight * self.mean[self.names[i]] for i, weight in picked)
        variance = sum(a * b * self.covariance[i][j] for i, a in picked for j, b in picked)
        return middle, math.sqrt(max(variance, 0.0))

    def shrunk(self, name: str, wide: float, prior: Sequence[tuple[float, float, float]]) -> Mixture:
        """The posterior of a column under another prior, a mixture of normals (weight, mean, sd).

        The column was fitted under a normal prior with mean 0 and the standard deviation `wide`. That prior is taken
        out again: the precision of the data alone is 1/sd² − 1/wide².
        """
        middle, sd = self.contrast({name: 1.0})
        precision = max(1 / sd**2 - 1 / wide**2, 1e-6)
        return updated(prior, middle / sd**2 / precision, 1 / precision)


def fit(
    observations: Sequence[Observation], prior: Mapping[str, tuple[float, float]], repeat: float | None = None
) -> Posterior:
    """Posterior of the columns named in `prior` (name → prior mean and standard deviation).

    Scores are in [0, 1]. `repeat` is the measured variance of a repeated score, if there is one: the noise is at least
    that, and interactions come on top. The variances of sample effects and noise are estimated by a few EM rounds
    (Dempster, Laird & Rubin 1977) from starting values that suit scores in [0, 1]. The result does not depend on the
    order of the observations, which are sorted first.
    """
    names = tuple(sorted(prior))
    data = _Data.of(observations, names)
    middle, deviation = np.array([prior[name] for name in names], dtype=float).reshape(-1, 2).T
    floor = max(repeat or 0.0, NOISE_FLOOR)
    noise, spread = 0.08 if repeat is None else floor, 0.10
    for _ in range(ROUNDS if observations else 0):
        next_noise, next_spread = data.variances(*data.solve(middle, deviation, noise, spread), noise, spread)
        noise, spread = max(next_noise, floor), max(next_spread, NOISE_FLOOR)
    effects, covariance = data.solve(middle, deviation, noise, spread)
    rows = tuple(tuple(row) for row in covariance.round(PLACES).tolist())
    return Posterior(names, dict(zip(names, effects.round(PLACES).tolist(), strict=True)), rows, noise, spread)


_Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class _Data:
    """The observations as arrays, in a fixed order. Sums over them use einsum, which never runs in BLAS's threads, so
    the result is the same on any number of cores."""

    x: _Floats  # (observations, columns)
    y: _Floats
    xx: _Floats  # Σxxᵀ over observations
    xy: _Floats  # Σxy
    sample: NDArray[np.intp]  # of each observation
    n: _Floats  # of each sample: observations, Σx, Σy
    sum_x: _Floats
    sum_y: _Floats

    @classmethod
    def of(cls, observations: Sequence[Observation], names: Sequence[str]) -> _Data:
        rows = sorted((o.sample, sorted(o.columns.items()), o.score) for o in observations)
        column = {name: j for j, name in enumerate(names)}
        x, y = np.zeros((len(rows), len(names))), np.array([score for *_, score in rows])
        for row, (_, columns, _) in zip(x, rows, strict=True):
            for name, weight in columns:
                row[column[name]] = weight
        samples, sample = np.unique([sample for sample, *_ in rows], return_inverse=True)
        sum_x = np.zeros((len(samples), len(names)))
        np.add.at(sum_x, sample, x)
        n = np.bincount(sample, minlength=len(samples)).astype(float)
        sum_y = np.bincount(sample, y, len(samples)).astype(float)
        return cls(x, y, _gram(x, x), _gram(x, y), sample, n, sum_x, sum_y)

    def solve(self, middle: _Floats, deviation: _Floats, noise: float, spread: float) -> tuple[_Floats, _Floats]:
        """The β that minimises Σ(y − xβ − u)²/noise + Σu²/spread + Σ((β − middle)/deviation)² over β (columns) and u
        (samples), and its covariance."""
        taken = 1 / (self.n / noise + 1 / spread) / noise**2
        normal = self.xx / noise - _gram(taken[:, None] * self.sum_x, self.sum_x)
        right = self.xy / noise - _gram(self.sum_x, taken * self.sum_y)
        covariance = np.linalg.inv(normal + np.diag(1 / deviation**2))
        return np.einsum("ij,j->i", covariance, right + middle / deviation**2), covariance

    def variances(self, effects: _Floats, covariance: _Floats, noise: float, spread: float) -> tuple[float, float]:
        """Expected variances of noise and samples: squares at the posterior mean, plus the posterior's own spread."""
        own = 1 / (self.n / noise + 1 / spread)  # variance of each u, given β
        couple = own / noise
        left = self.y - np.einsum("ij,j->i", self.x, effects)
        u = couple * np.bincount(self.sample, left, minlength=len(self.n))
        through = np.einsum("si,ij,sj->s", self.sum_x, covariance, self.sum_x)  # variance of each sample's Σxβ
        squares = ((left - u[self.sample]) ** 2).sum() + (covariance * self.xx).sum()
        squares += (self.n * own + (self.n * couple - 2) * couple * through).sum()
        return float(squares / len(self.y)), float((u**2 + own + couple**2 * through).mean())


def _gram(a: _Floats, b: _Floats) -> _Floats:
    """aᵀb, over observations or samples."""
    return np.einsum("ni,n...->i...", a, b)
