"""The few statistics that decide, exact where exact is possible, with their sources."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import NormalDist, fmean, pvariance

from skilltune.run import rng

_NORMAL = NormalDist()
RESAMPLES = 10_000


def normal_cdf(z: float) -> float:
    return _NORMAL.cdf(z)


def normal_quantile(p: float) -> float:
    return _NORMAL.inv_cdf(p)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A belief about a number: weighted normal components (weight, mean, sd)."""

    parts: tuple[tuple[float, float, float], ...]

    @property
    def mean(self) -> float:
        return math.fsum(w * m for w, m, _ in self.parts)

    @property
    def sd(self) -> float:
        return math.sqrt(math.fsum(w * (s * s + (m - self.mean) ** 2) for w, m, s in self.parts))

    def above(self, bar: float) -> float:
        """P(number > bar)."""
        return math.fsum(w * normal_cdf((m - bar) / s) for w, m, s in self.parts)

    def draws(self, n: int, random: Random) -> list[float]:
        """So many independent draws of it."""
        parts = random.choices(self.parts, [w for w, _, _ in self.parts], k=n)
        return [random.gauss(m, s) for _, m, s in parts]


def updated(prior: Sequence[tuple[float, float, float]], estimate: float, variance: float) -> Mixture:
    """Posterior of a number under a mixture of normals (weight, mean, sd) after a normal measurement. With a component
    at zero it is the spike and slab of Mitchell & Beauchamp (1988): most changes do nothing, a few do a lot."""
    parts = []
    for weight, middle, sd in prior:
        total = variance + sd * sd
        log_fit = -((estimate - middle) ** 2) / (2 * total) - 0.5 * math.log(total)
        mean = (middle * variance + estimate * sd * sd) / total
        parts.append((math.log(weight) + log_fit, mean, math.sqrt(variance * sd * sd / total)))
    top = max(log_fit for log_fit, _, _ in parts)
    evidence = math.fsum(math.exp(log_fit - top) for log_fit, _, _ in parts)
    return Mixture(tuple((math.exp(log_fit - top) / evidence, m, s) for log_fit, m, s in parts))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean; of scores that are all alike the one of (successes + 1) / (n + 2). None of nothing."""
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


def paired_difference_interval(
    both: int, fixed: int, broken: int, neither: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two paired proportions, after minus before (Newcombe 1998, method 10).

    The four counts are samples solved by both, only after, only before, by neither.
    """
    n = both + fixed + broken + neither
    if n == 0:
        return -1.0, 1.0
    after, before = (both + fixed) / n, (both + broken) / n
    low_a, high_a = wilson(both + fixed, n, level)
    low_b, high_b = wilson(both + broken, n, level)
    product = (both + fixed) * (broken + neither) * (both + broken) * (fixed + neither)
    phi = 0.0
    if product:
        cross = both * neither - fixed * broken
        phi = max(cross - n / 2, 0.0) if cross > 0 else cross  # continuity correction of method 10
        phi /= math.sqrt(product)
    down = (after - low_a) ** 2 - 2 * phi * (after - low_a) * (high_b - before) + (high_b - before) ** 2
    up = (high_a - after) ** 2 - 2 * phi * (high_a - after) * (before - low_b) + (before - low_b) ** 2
    return after - before - math.sqrt(max(down, 0.0)), after - before + math.sqrt(max(up, 0.0))


Units = Sequence[Sequence[float]]  # values, those that are not independent of each other in one sequence


def bootstrap_interval(
    units: Units, ends: tuple[float, float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean of all values (Efron 1979), seeded; whole units are drawn (Davison & Hinkley
    1997, 3.8). Two more of the mean size stand at the `ends`, as in the intervals of Agresti & Caffo (2000): without
    them few or skewed values give a range that is too narrow, or none at all."""
    size = fmean(map(len, units))
    sums = [(math.fsum(unit), float(len(unit))) for unit in units] + [(end * size, size) for end in ends]
    draw = rng(seed, "bootstrap", len(units))
    means = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(sums, k=len(sums))
        means.append(sum([total for total, _ in drawn]) / sum([n for _, n in drawn]))
    means.sort()
    tail = (1 - level) / 2
    return means[int(tail * RESAMPLES)], means[min(int((1 - tail) * RESAMPLES), RESAMPLES - 1)]


def mean_interval(units: Units, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of all scores: Wilson's where they are independent and 0 or 1, else the bootstrap's."""
    values = [value for unit in units for value in unit]
    if len(units) == len(values) and _binary(values):
        return wilson(math.fsum(values), len(values))
    return bootstrap_interval(units, (0.0, 1.0), seed=seed)


@dataclass(frozen=True, slots=True)
class Paired:
    """What pairs say of a difference: its 95 % interval, the one-sided p of "better", and by which method."""

    low: float
    high: float
    p: float
    method: str


def paired(before: Units, after: Units, seed: int = 0) -> Paired:
    """The mean difference of all pairs: exactly where they are independent and all scores 0 or 1, else by flipping
    and drawing whole units, with the largest change of one at the ends of the bootstrap."""
    pairs = [pair for old, new in zip(before, after, strict=True) for pair in zip(old, new, strict=True)]
    if len(before) == len(pairs) and _binary([score for pair in pairs for score in pair]):
        both, fixed, broken, neither = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
        low, high = paired_difference_interval(both, fixed, broken, neither)
        return Paired(low, high, mcnemar(fixed, broken), "exact McNemar test, Newcombe interval")
    moved = [[b - a for a, b in zip(old, new, strict=True)] for old, new in zip(before, after, strict=True)]
    most = max(abs(fmean(unit)) for unit in moved) or 1.0
    low, high = bootstrap_interval(moved, (-most, most), seed=seed)
    of = "" if len(before) == len(pairs) else " of whole groups"
    return Paired(
        low, high, sign_flip_test(list(map(math.fsum, moved)), seed), f"sign-flip test, bootstrap interval{of}"
    )


def _binary(values: Sequence[float]) -> bool:
    return all(value in (0.0, 1.0) for value in values)


def sign_flip_test(differences: Sequence[float], seed: int = 0) -> float:
    """One-sided p of "mean difference > 0" by sign flips (Fisher 1935): by all of them where these are no more than
    `RESAMPLES`, else by so many random ones (Phipson & Smyth 2010 for the + 1)."""
    moved = [d for d in differences if d]
    if not moved:
        return 1.0
    reached = math.fsum(moved) - 1e-12
    if 2 ** len(moved) <= RESAMPLES:
        flips = itertools.product((1, -1), repeat=len(moved))
        return sum(math.fsum(map(operator.mul, signs, moved)) >= reached for signs in flips) / 2 ** len(moved)
    draw = rng(seed, "sign flips", len(moved))
    hits = sum(math.fsum(d if draw.random() < 0.5 else -d for d in moved) >= reached for _ in range(RESAMPLES))
    return (hits + 1) / (RESAMPLES + 1)
