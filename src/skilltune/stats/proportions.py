"""Shares of samples: the Wilson interval, McNemar's test, and an interval that agrees with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import fmean, pvariance

import numpy as np

from skilltune.stats.bounded import last_true
from skilltune.stats.mixture import normal_quantile

EDGE = 0.05  # gain at which both ends of a one-sided interval have the same error
AGAINST_OUTLIERS = 0.03  # part of a level that goes to each test of one number alone
POINTS, REACH = 81, 8.0  # values of that share that are tried, and up to how many standard errors away
TINY = 1e-300


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean. If all scores are equal, that of (successes + 1) / (n + 2). None without values."""
    n = len(values)
    if n == 0:
        return None
    p = (math.fsum(values) + 1) / (n + 2)
    spread = pvariance(values) or p * (1 - p)
    return math.sqrt(spread / n)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); `successes` may be fractional. (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile(0.5 + level / 2)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(fixed: int, broken: int) -> float:
    """Exact one-sided p of "better" (McNemar 1947, binomial form): P(X ≥ fixed), X ~ Binomial(fixed + broken, ½)."""
    n = fixed + broken
    return sum(math.comb(n, k) for k in range(fixed, n + 1)) / 2**n if n else 1.0  # integers: no overflow


@lru_cache(maxsize=4096)
def discordant_interval(fixed: int, broken: int, n: int, alpha: float, one_sided: bool = True) -> tuple[float, float]:
    """Interval, of level 1 − `alpha`, of the gain P(fixed) − P(broken), from `n` independent samples. If `one_sided`,
    its low end lies above 0 exactly if McNemar's test has p < `alpha`; otherwise both ends get the same error.

    The gain is ψ·r: ψ is the share of samples that change, (1 + r)/2 the share of these that turn right. Of n samples
    M ~ Binomial(n, ψ) change; given M = m, X ~ Binomial(m, (1 + r)/2) turn right. The interval holds each gain for
    which some (ψ, r) is not rejected by an exact test of both (`_rejected`); at r = 0 this test is McNemar's.

    If `one_sided`, the error is divided in another way for each gain: the low end gets all of it up to gain 0, and the
    high end a part that grows from there to a half at the gain EDGE. Therefore the high end is never below 0. McNemar's
    test excludes all r ≤ 0 at once. At r < 0 its level is at most alpha·(1 + r), because the binomial tail divided by
    its probability grows up to ½; what is left, alpha·|r|, goes to the other test.
    """
    m = fixed + broken
    if n == 0:
        return -1.0, 1.0
    if not one_sided:
        half = alpha / 2
        low, high = (
            last_true(lambda gain, wins=wins: _rejected(gain, wins, m, n, half, half, small=True), 0.0, 1.0)
            or -_high(m - wins, m, n, lambda gain: half)
            for wins in (fixed, broken)
        )
        return low, -high

    def upper(gain: float) -> float:
        return alpha / 2 * min(1.0, gain / EDGE)

    def too_small(gain: float) -> bool:
        return _rejected(gain, fixed, m, n, alpha - upper(gain), upper(gain), small=True)

    high = _high(fixed, m, n, upper)
    if mcnemar(fixed, broken) < alpha:
        return max(last_true(too_small, 0.0, 1.0), math.ulp(0.0)), high
    return -_high(broken, m, n, lambda gain: alpha, by_r=True), high


def _high(wins: int, m: int, n: int, level: Callable[[float], float], *, by_r: bool = False) -> float:
    """The smallest gain of [0, 1] from which on all are rejected as too large."""

    def too_large(rest: float) -> bool:
        return _rejected(1 - rest, wins, m, n, level(1 - rest), level(1 - rest), small=False, by_r=by_r)

    return 1 - last_true(too_large, 0.0, 1.0)


def _rejected(
    gain: float, wins: int, m: int, n: int, level: float, other: float, *, small: bool, by_r: bool = False
) -> bool:
    """True if every ψ is rejected beside this gain in [0, 1], as too small or as too large, at `level` (times r).

    The p-values of X given M and of M are combined by Stouffer's method, with weights in the ratio of the standard
    deviations that r and ψ add to the gain; the first p is uniform, or larger, whatever M is, so the combination is
    exact. Beside it, three tests of one number alone exclude what is far from the data in one of the two, because the
    weights may be poor there; each has AGAINST_OUTLIERS times the smaller of `level` and `other`.
    """
    rough = (m + 2) / (n + 4)
    reach = REACH * math.sqrt(rough * (1 - rough) / n)  # beyond it no ψ is in question
    psi = np.unique(np.clip(np.linspace(rough - reach, rough + reach, POINTS), max(gain, TINY), 1.0))
    r = np.minimum(gain / psi, 1.0)
    levels = np.maximum(level * (r if by_r else 1.0), TINY) + 0 * r
    part = AGAINST_OUTLIERS * np.minimum(levels, other)
    more, less = _tails(n, m, psi)
    known = (more >= part) & (less >= part)
    if not known.any():
        return not small  # no ψ that is in question is as large as the gain
    psi, more, less, r, levels, part = (of[known] for of in (psi, more, less, r, levels, part))
    right, wrong = _tails(m, wins, (1 + r) / 2)
    first, second = (right, more) if small else (wrong, less)
    weight, other_weight = np.sqrt(1 - r * r), r * np.sqrt(1 - psi)
    norm = np.hypot(weight, other_weight)
    combined = (weight * _z(first) + other_weight * _z(second)) / np.where(norm > 0, norm, 1.0)
    return bool(np.all((first < part) | (combined > _z(levels - 3 * part))))


def _z(p: np.ndarray) -> np.ndarray:
    """The normal quantile of 1 − p."""
    return np.array([-normal_quantile(min(max(x, TINY), 1 - 1e-16)) for x in p])


def _tails(n: int, k: int, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(X ≥ k) and P(X ≤ k), X ~ Binomial(n, p), for each p."""
    ks = np.arange(n + 1)
    q = np.clip(p, TINY, 1 - 1e-16)[:, None]
    mass = np.exp(_log_choose(n) + ks * np.log(q) + (n - ks) * np.log1p(-q))
    return np.minimum(1.0, mass[:, k:].sum(axis=1)), np.minimum(1.0, mass[:, : k + 1].sum(axis=1))


@lru_cache(maxsize=16)
def _log_choose(n: int) -> np.ndarray:
    """The logarithm of n over k, for k = 0 … n."""
    logs = np.array([math.lgamma(k + 1) for k in range(n + 1)])
    return logs[n] - logs - logs[::-1]


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing: no evidence is not a zero."""
    return fmean(values) if values else None
