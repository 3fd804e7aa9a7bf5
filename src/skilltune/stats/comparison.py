"""The certificate's test: is the mean of `after` higher than that of `before`, on the same samples?

Two tests share the work. If all scores are 0 or 1 and all samples are independent, the exact test of McNemar decides.
Otherwise the differences are bounded numbers, and the betting test of `skilltune.stats.bounded` decides. Both hold
their level for every distribution of the differences. Neither draws random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from skilltune.stats.bounded import Units, mean_above, mean_interval, one_sided_interval
from skilltune.stats.proportions import discordant_interval, mcnemar, wilson

Scores = Sequence[float] | Sequence[Sequence[float]]
"""Scores in [0, 1]: one number for a sample that stands for itself, a sequence for samples that form a group."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference `gain`, the one-sided `p` of "it is not above 0", an interval of level 1 − `alpha`, and the
    name of the method. `low` lies above 0 exactly if p is below `alpha`; `high` is never below 0."""

    gain: float
    low: float
    high: float
    p: float
    alpha: float
    method: str


def paired(
    before: Scores,
    after: Scores,
    seed: int = 0,
    *,
    groups: Sequence[Hashable | None] | None = None,
    alpha: float = 0.05,
) -> Paired:
    """Test "the population's mean difference is at most 0". The probability of p < alpha is at most alpha if it is.

    `groups` names the group of each sample (None: the sample stands for itself); groups are independent of each other,
    the samples of one group need not be. Groups may be given as nested sequences instead. The population is the one
    that the samples, or groups of these sizes, were drawn from. `seed` changes nothing: the test draws no random
    numbers, and callers need not know that. Raises ValueError for scores outside [0, 1] and for unequal lengths.

    p is the same in any order of samples and groups, and never grows if a score of `after` grows.
    """
    pairs = _pairs(before, after, groups)
    flat = [pair for unit in pairs for pair in unit]
    gain = math.fsum(b - a for a, b in flat) / len(flat) if flat else 0.0
    if (table := _table(pairs)) is not None:
        fixed, broken, n = table
        low, high = discordant_interval(fixed, broken, n, alpha)
        return Paired(gain, low, high, mcnemar(fixed, broken), alpha, "exact McNemar test")
    units = _shifted(pairs)
    p = mean_above(units, 0.5)
    low, high = (2 * end - 1 for end in one_sided_interval(units, 0.5, alpha))
    if p < alpha:
        low = max(low, math.ulp(0.0))  # the search for it ends a little below
    of = "" if len(pairs) == len(flat) else " of whole groups"
    return Paired(gain, low, high, p, alpha, f"betting test for bounded means{of}")


def difference_interval(before: Scores, after: Scores, alpha: float = 0.05) -> tuple[float, float]:
    """The interval of the mean difference for a comparison that claims nothing: by the tests of `paired`, with equal
    errors at both ends."""
    pairs = _pairs(before, after, None)
    if (table := _table(pairs)) is not None:
        fixed, broken, n = table
        return discordant_interval(fixed, broken, n, alpha, one_sided=False)
    low, high = mean_interval(_shifted(pairs), alpha)
    return 2 * low - 1, 2 * high - 1


def score_interval(scores: Scores) -> tuple[float, float]:
    """95 % interval of a mean score: Wilson's if the samples are independent and all scores 0 or 1, otherwise that of
    the betting test."""
    units = [_unit(unit) for unit in scores]
    values = [value for unit in units for value in unit]
    if len(units) == len(values) and all(value in (0.0, 1.0) for value in values):
        return wilson(math.fsum(values), len(values))
    return mean_interval(units)


Pairs = list[list[tuple[float, float]]]


def _pairs(before: Scores, after: Scores, groups: Sequence[Hashable | None] | None) -> Pairs:
    """(before, after) of each sample, by unit."""
    pairs = [list(zip(_unit(a), _unit(b), strict=True)) for a, b in zip(before, after, strict=True)]
    if groups is not None:
        units: dict[Hashable, list[tuple[float, float]]] = {}
        for number, (unit, group) in enumerate(zip(pairs, groups, strict=True)):
            units.setdefault((False, number) if group is None else (True, group), []).extend(unit)
        pairs = list(units.values())
    for pair in (pair for unit in pairs for pair in unit):
        if not all(0.0 <= score <= 1.0 for score in pair):  # also refuses NaN
            raise ValueError(f"scores must lie in [0, 1], got {pair}")
    return pairs


def _unit(scores: float | Sequence[float]) -> Sequence[float]:
    return (scores,) if isinstance(scores, int | float) else scores


def _table(pairs: Pairs) -> tuple[int, int, int] | None:
    """(fixed, broken, all) if McNemar's test applies, otherwise None."""
    if any(len(unit) != 1 or not all(score in (0.0, 1.0) for score in unit[0]) for unit in pairs):
        return None
    flat = [unit[0] for unit in pairs]
    return flat.count((0.0, 1.0)), flat.count((1.0, 0.0)), len(flat)


def _shifted(pairs: Pairs) -> Units:
    """The differences, moved from [−1, 1] to [0, 1]."""
    return [[(1 + b - a) / 2 for a, b in unit] for unit in pairs]
