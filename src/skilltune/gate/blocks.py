"""The blocks in which `select` is rolled, and the harm that pairs of scores show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from skilltune.samples import Sample
from skilltune.stats import normal_cdf


def in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """The samples in this order, but one of each group before a second one of any: a look at few samples then rests on
    as many witnesses as there can be."""
    spoken, turns = Counter[str](), dict[str, int]()
    for sample in samples:
        turns[sample.id] = 0 if sample.group is None else spoken[sample.group]
        spoken[sample.group or ""] += 1
    return sorted(samples, key=lambda sample: turns[sample.id])


def harmful(differences: Sequence[float], bound: float) -> float:
    """P(a change breaks more than it mends, by more than `bound` a sample), by the differences of pairs alone.

    The share of what is broken has a Beta posterior: a uniform prior, what was broken on one side, what was mended and
    the bound on the other. It is read as a normal distribution. No variance is estimated from the pairs, so one more
    that is broken never lowers it and one more that is mended never raises it.
    """
    broken = 1 - math.fsum(d for d in differences if d < 0)
    mended = 1 + math.fsum(d for d in differences if d > 0) + bound * len(differences)
    return normal_cdf((broken - mended) / 2 * math.sqrt((broken + mended + 1) / (broken * mended)))


def doubling(samples: Sequence[Sample], first: int) -> list[Sequence[Sample]]:
    """The samples cut into blocks so that each look sees about twice as much as the one before: few looks, hence little
    waiting and few chances for luck, and still an early end for what is plainly good or bad."""
    blocks, start = [], 0
    while start < len(samples):
        end = max(first, 2 * start)
        if len(samples) - end < first:
            end = len(samples)
        blocks.append(samples[start:end])
        start = end
    return blocks
