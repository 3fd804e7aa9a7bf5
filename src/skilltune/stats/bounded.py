"""Means of bounded numbers: a test and an interval that hold for every distribution, at every sample size.

The test bets. A gambler begins with 1 and stakes the same share c of the wealth on every number x in [0, 1]: the wealth
becomes ∏ (1 − c + c·x/m). If the mean of x is at most m, the expected wealth is at most 1, so a wealth of 1/α or more
has a probability of at most α (Markov), and 1/wealth is a p-value (Waudby-Smith & Ramdas, "Estimating means of bounded
random variables by betting", JRSS-B 86, 2024, section 4). One share does not fit all distributions, so the gambler
divides the 1 among many shares, as Cover's universal portfolio does (1991); the average wealth keeps the property.

A share that stays the same makes the wealth independent of the order of the numbers, so no seed has a part in it. It
also allows independent numbers with different means: by the inequality of arithmetic and geometric means the expected
wealth is largest if all means are equal, so the test is about the average of the means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

BETS = 24  # shares, evenly spaced on a logarithmic scale
TUNED_FOR = 0.05  # the level at which the shares are good; the test holds at every level
SMALLEST = 1.5  # smallest share, in units of the best one for numbers that are all 0 or 1
SLIDE = 0.05  # the low end gives up half of its error to the high end over this range above zero
STEPS = 32  # halvings of an interval: to a part in 4·10^9

Units = Sequence[Sequence[float]]  # numbers in [0, 1]; those that depend on each other are in one sequence


def mean_above(units: Units, mean: float) -> float:
    """p-value of "the mean of all numbers is at most `mean`". Small if the numbers are larger.

    One unit is one observation: its sum divided by the size of the largest unit. The sizes count as given, so the mean
    is that of a population with units of these sizes. Grows with `mean`, falls when a number grows.
    """
    return _p(*_sums(units), mean)


def mean_interval(units: Units, alpha: float = 0.05) -> tuple[float, float]:
    """The means that the test does not reject, with an error of `alpha`/2 at each end. (0, 1) without numbers."""
    return _interval(units, lambda mean: (alpha / 2, alpha / 2))


def one_sided_interval(units: Units, zero: float, alpha: float = 0.05) -> tuple[float, float]:
    """An interval with error `alpha` whose low end lies above `zero` exactly if the p of `mean_above` is below `alpha`.

    It excludes each mean by the same test, but divides the error between "the mean is larger" and "it is smaller" in
    another way for each mean: up to `zero` the first gets all of it, from there on the second gets a growing part,
    until at `zero` + SLIDE both have half. (Benjamini, Hochberg & Stark 1998 divide it likewise, to determine a sign.)
    Therefore the high end is never below `zero`.
    """

    def levels(mean: float) -> tuple[float, float]:
        upper = alpha / 2 * min(1.0, max(0.0, mean - zero) / SLIDE)
        return alpha - upper, upper

    return _interval(units, levels)


def last_true(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The last number of [low, high] up to which `holds` is true, from below; `low` if it is true nowhere."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _interval(units: Units, levels: Callable[[float], tuple[float, float]]) -> tuple[float, float]:
    """`levels` gives for each mean the levels at which it is excluded as too small and as too large."""
    sums, sizes = _sums(units)
    if not len(sizes):
        return 0.0, 1.0
    low = last_true(lambda mean: _p(sums, sizes, mean) < levels(mean)[0], 0.0, 1.0)
    high = last_true(lambda rest: _p(sizes - sums, sizes, rest) < levels(1 - rest)[1], 0.0, 1.0)
    return low, 1 - high


def _sums(units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each unit, divided by the largest size."""
    largest = max(map(len, units), default=1)
    sums, sizes = [math.fsum(unit) for unit in units], [float(len(unit)) for unit in units]
    return np.array(sums) / largest, np.array(sizes) / largest


def _p(sums: np.ndarray, sizes: np.ndarray, mean: float) -> float:
    """One over the average wealth of all bets against "the mean is at most `mean`"."""
    if mean <= 0:
        return 0.0 if sums.any() else 1.0
    if mean >= 1 or not len(sizes):
        return 1.0
    smallest = min(1.0, SMALLEST * math.sqrt(2 * math.log(1 / TUNED_FOR) / float(sizes @ sizes)))
    shares = np.geomspace(smallest, 1.0, BETS) * math.sqrt(mean / (1 - mean))  # in units of the numbers' largest spread
    shares = np.minimum(1.0, shares)[:, None]
    with np.errstate(divide="ignore"):  # a share of 1 loses all to a number of 0
        wealth = np.log1p(shares * (sums / mean - sizes)).sum(axis=1)
    top = float(wealth.max())
    if top == -math.inf:
        return 1.0
    return min(1.0, math.exp(-top) / fmean(np.exp(wealth - top)))
