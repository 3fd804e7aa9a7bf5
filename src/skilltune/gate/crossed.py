"""One linear model of crossed effects: score(sample, version) = effects of the version + effect of the sample + noise.

Gaussian priors make the posterior a ridge regression (Lindley & Smith 1972). Samples are many and versions few, so the
sample effects are eliminated first (their block is diagonal: a Schur complement), and what remains is a dense system
of a few dozen columns, solved by Cholesky in plain Python within milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOISE_FLOOR = 0.02  # variance; a deterministic target still has interactions, which the noise term stands for
ROUNDS = 4  # of re-estimating the two variances


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


def fit(
    observations: Sequence[Observation], prior: Mapping[str, tuple[float, float]], repeat: float | None = None
) -> Posterior:
    """Posterior of the columns named in `prior` (name → prior mean and standard deviation).

    Scores are in [0, 1]. `repeat` is the measured variance of a repeated score, if it was: the noise is at least that,
    and interactions beside it. The variances of sample effects and noise are estimated by a few EM rounds (Dempster,
    Laird & Rubin 1977) from starting values that suit scores in [0, 1]. The result does not depend on the order of the
    observations, which are sorted first.
    """
    rows = sorted(observations, key=lambda o: (o.sample, sorted(o.columns.items()), o.score))
    names = tuple(sorted(prior))
    floor = max(repeat or 0.0, NOISE_FLOOR)
    noise, spread = 0.08 if repeat is None else floor, 0.10
    for _ in range(ROUNDS):
        solution = _solve(rows, names, prior, noise, spread)
        if not rows:
            break
        noise, spread = max(solution.next_noise, floor), max(solution.next_spread, NOISE_FLOOR)
    solution = _solve(rows, names, prior, noise, spread)
    return Posterior(names, dict(zip(names, solution.effects, strict=True)), solution.covariance, noise, spread)


@dataclass(frozen=True, slots=True)
class _Solution:
    effects: list[float]
    covariance: tuple[tuple[float, ...], ...]
    next_noise: float
    next_spread: float


def _solve(
    rows: Sequence[Observation],
    names: tuple[str, ...],
    prior: Mapping[str, tuple[float, float]],
    noise: float,
    spread: float,
) -> _Solution:
    """Minimise Σ(y − xβ − u)²/noise + Σu²/spread + Σ((β − m)/s)² over β (columns) and u (samples)."""
    k = len(names)
    index = {name: i for i, name in enumerate(names)}
    normal = [[0.0] * k for _ in range(k)]
    right = [0.0] * k
    for i, name in enumerate(names):
        middle, deviation = prior[name]
        normal[i][i] = 1 / deviation**2
        right[i] = middle / deviation**2

    by_sample: dict[str, list[tuple[list[tuple[int, float]], float]]] = {}
    for row in rows:
        sparse = [(index[name], weight) for name, weight in row.columns.items()]
        by_sample.setdefault(row.sample, []).append((sparse, row.score))
    sums: dict[str, tuple[float, dict[int, float], float]] = {}  # of each sample: n, Σx, Σy
    for sample, seen in by_sample.items():
        total: dict[int, float] = {}
        score = 0.0
        for sparse, y in seen:
            score += y
            for i, a in sparse:
                total[i] = total.get(i, 0.0) + a
                right[i] += a * y / noise
                for j, b in sparse:
                    normal[i][j] += a * b / noise
        shrink = 1 / (len(seen) / noise + 1 / spread)
        for i, a in total.items():
            right[i] -= a * score * shrink / noise**2
            for j, b in total.items():
                normal[i][j] -= a * b * shrink / noise**2
        sums[sample] = (float(len(seen)), total, score)

    covariance = _inverse(normal)
    effects = [math.fsum(c * r for c, r in zip(line, right, strict=True)) for line in covariance]

    squares = trace = sample_squares = 0.0
    for sample, seen in by_sample.items():
        n, total, score = sums[sample]
        shrink = 1 / (n / noise + 1 / spread)
        u = shrink / noise * (score - sum(a * effects[i] for i, a in total.items()))
        couple = shrink / noise
        through = couple**2 * sum(a * b * covariance[i][j] for i, a in total.items() for j, b in total.items())
        sample_squares += u * u + shrink + through
        for sparse, y in seen:
            fitted = u + sum(a * effects[i] for i, a in sparse)
            squares += (y - fitted) ** 2
            own = sum(a * b * covariance[i][j] for i, a in sparse for j, b in sparse)
            cross = couple * sum(a * b * covariance[i][j] for i, a in sparse for j, b in total.items())
            trace += own - 2 * cross + shrink + through
    count = len(rows) or 1
    return _Solution(effects, covariance, (squares + trace) / count, sample_squares / (len(by_sample) or 1))


def cholesky(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Lower factor L of a symmetric positive definite matrix, L·Lᵀ = matrix."""
    k = len(matrix)
    lower = [[0.0] * k for _ in range(k)]
    for i in range(k):
        for j in range(i + 1):
            value = matrix[i][j] - sum(lower[i][m] * lower[j][m] for m in range(j))
            lower[i][j] = math.sqrt(value) if i == j else value / lower[j][j]
    return lower


def lower_inverse(lower: Sequence[Sequence[float]]) -> list[list[float]]:
    """Inverse of a lower triangular matrix."""
    k = len(lower)
    inverse = [[0.0] * k for _ in range(k)]
    for i in range(k):
        inverse[i][i] = 1 / lower[i][i]
        for j in range(i):
            inverse[i][j] = -sum(lower[i][m] * inverse[m][j] for m in range(j, i)) / lower[i][i]
    return inverse


def _inverse(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Inverse of a symmetric positive definite matrix by its Cholesky factor."""
    half = lower_inverse(cholesky(matrix))
    k = len(half)
    return tuple(tuple(sum(half[m][i] * half[m][j] for m in range(max(i, j), k)) for j in range(k)) for i in range(k))
