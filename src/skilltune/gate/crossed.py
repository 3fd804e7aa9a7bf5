"""One linear model of crossed effects: score(sample, version) = effects of the version + effect of the sample + noise.

Gaussian priors make the posterior a ridge regression (Lindley & Smith 1972). Samples are many and versions few, so the
sample effects are eliminated first (their block is diagonal: a Schur complement), and what remains is a dense system
of a few dozen columns, solved by Cholesky in plain Python within milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

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
    names = tuple(sorted(prior))
    sums = _Sums.of(observations, names)
    floor = max(repeat or 0.0, NOISE_FLOOR)
    noise, spread = 0.08 if repeat is None else floor, 0.10
    for _ in range(ROUNDS):
        solution = _solve(sums, [prior[name] for name in names], noise, spread)
        if not observations:
            break
        noise, spread = max(solution.next_noise, floor), max(solution.next_spread, NOISE_FLOOR)
    solution = _solve(sums, [prior[name] for name in names], noise, spread)
    return Posterior(names, dict(zip(names, solution.effects, strict=True)), solution.covariance, noise, spread)


_Matrix = list[list[float]]


@dataclass(slots=True)
class _Alike:
    """The samples that were seen equally often: how many they are, and of their own sums Σx and Σy the summed products
    (Σx)(Σx)ᵀ and (Σx)(Σy)."""

    samples: int
    xx: _Matrix
    xy: list[float]


@dataclass(slots=True)
class _Sums:
    """All that the model needs of the observations, whatever the variances: one pass over them serves every round."""

    xx: _Matrix  # Σxxᵀ over observations
    xy: list[float]  # Σxy
    versions: list[tuple[list[tuple[int, float]], int, float, float]]  # equal x: (column, weight)s, n, Σy, Σy²
    samples: list[tuple[int, dict[int, float], float]]  # of each: n, Σx, Σy
    alike: dict[int, _Alike]  # by n

    @classmethod
    def of(cls, observations: Sequence[Observation], names: Sequence[str]) -> _Sums:
        index = {name: i for i, name in enumerate(names)}
        rows = sorted((o.sample, tuple(sorted(o.columns.items())), o.score) for o in observations)
        versions: dict[tuple[tuple[str, float], ...], list[float]] = {}
        by_sample: dict[str, list[tuple[tuple[tuple[str, float], ...], float]]] = {}
        for sample, columns, score in rows:
            versions.setdefault(columns, []).append(score)
            by_sample.setdefault(sample, []).append((columns, score))
        k = len(names)
        sums = cls(_zeros(k), [0.0] * k, [], [], {})
        for columns, scores in versions.items():
            x, total = [(index[name], weight) for name, weight in columns], math.fsum(scores)
            sums.versions.append((x, len(scores), total, math.fsum([y * y for y in scores])))
            _add(sums.xx, sums.xy, x, len(scores), total)
        for seen in by_sample.values():
            x, n, total = dict[int, float](), len(seen), math.fsum([score for _, score in seen])
            for columns, _ in seen:
                for name, weight in columns:
                    x[index[name]] = x.get(index[name], 0.0) + weight
            sums.samples.append((n, x, total))
            alike = sums.alike.setdefault(n, _Alike(0, _zeros(k), [0.0] * k))
            alike.samples += 1
            _add(alike.xx, alike.xy, [*x.items()], 1.0, total)
        return sums


def _zeros(k: int) -> _Matrix:
    return [[0.0] * k for _ in range(k)]


def _add(xx: _Matrix, xy: list[float], x: Sequence[tuple[int, float]], n: float, y: float) -> None:
    """Add n·xxᵀ and y·x, of which `x` holds what is not 0."""
    for i, a in x:
        xy[i] += y * a
        for j, b in x:
            xx[i][j] += n * a * b


@dataclass(frozen=True, slots=True)
class _Solution:
    effects: list[float]
    covariance: tuple[tuple[float, ...], ...]
    next_noise: float
    next_spread: float


def _solve(sums: _Sums, prior: Sequence[tuple[float, float]], noise: float, spread: float) -> _Solution:
    """Minimise Σ(y − xβ − u)²/noise + Σu²/spread + Σ((β − m)/s)² over β (columns) and u (samples)."""
    k = len(prior)
    shrink = {n: 1 / (n / noise + 1 / spread) for n in sums.alike}  # variance of u, given β
    normal = [[value / noise for value in line] for line in sums.xx]
    right = [value / noise for value in sums.xy]
    for n, alike in sums.alike.items():
        taken = shrink[n] / noise**2
        for i in range(k):
            right[i] -= taken * alike.xy[i]
            for j in range(k):
                normal[i][j] -= taken * alike.xx[i][j]
    for i, (middle, deviation) in enumerate(prior):
        normal[i][i] += 1 / deviation**2
        right[i] += middle / deviation**2

    covariance = _inverse(normal)
    effects = [math.fsum(c * r for c, r in zip(line, right, strict=True)) for line in covariance]

    # What the two variances are in expectation: squares at the posterior mean, and how far the posterior spreads.
    squares = sample_squares = 0.0
    for x, n, y, yy in sums.versions:
        fitted = sum([a * effects[i] for i, a in x])
        squares += yy - 2 * fitted * y + n * fitted**2
    for n, x, y in sums.samples:
        left = y - sum([a * effects[i] for i, a in x.items()])
        u = shrink[n] / noise * left
        squares += n * u * u - 2 * u * left
        sample_squares += u * u
    trace = _product(covariance, sums.xx)
    for n, alike in sums.alike.items():
        couple, through = shrink[n] / noise, _product(covariance, alike.xx)
        trace += n * alike.samples * shrink[n] + (n * couple - 2) * couple * through
        sample_squares += alike.samples * shrink[n] + couple**2 * through
    count = sum([n for n, _, _ in sums.samples]) or 1
    return _Solution(effects, covariance, (squares + trace) / count, sample_squares / (len(sums.samples) or 1))


def _product(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Σ aᵢⱼ bᵢⱼ."""
    return sum([sum(map(mul, x, y)) for x, y in zip(a, b, strict=True)])


def cholesky(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Lower factor L of a symmetric positive definite matrix, L·Lᵀ = matrix."""
    k = len(matrix)
    lower = [[0.0] * k for _ in range(k)]
    for i in range(k):
        for j in range(i + 1):
            value = matrix[i][j] - sum(map(mul, lower[i][:j], lower[j][:j]))
            lower[i][j] = math.sqrt(value) if i == j else value / lower[j][j]
    return lower


def lower_inverse(lower: Sequence[Sequence[float]]) -> list[list[float]]:
    """Inverse of a lower triangular matrix."""
    k = len(lower)
    columns = [[0.0] * k for _ in range(k)]  # of the inverse
    for j, column in enumerate(columns):
        column[j] = 1 / lower[j][j]
        for i in range(j + 1, k):
            column[i] = -sum(map(mul, lower[i][j:i], column[j:i])) / lower[i][i]
    return [list(row) for row in zip(*columns, strict=True)]


def _inverse(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Inverse of a symmetric positive definite matrix by its Cholesky factor."""
    columns = list(zip(*lower_inverse(cholesky(matrix)), strict=True))
    return tuple(
        [
            tuple([sum(map(mul, a[max(i, j) :], b[max(i, j) :])) for j, b in enumerate(columns)])
            for i, a in enumerate(columns)
        ]
    )
