"""The anytime curve: budgets at which skills are compared, and intervals of means over families."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import fmean

BUDGETS = (400, 700, 1000, 1400)  # target calls
RESAMPLES = 1000


def bootstrap(cells: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The mean over cells of their means, and its 95 % interval; seeds are drawn again within each cell."""
    random = Random(0)
    means = sorted(fmean(fmean(random.choices(cell, k=len(cell))) for cell in cells) for _ in range(RESAMPLES))
    tail = RESAMPLES // 40
    return fmean(fmean(cell) for cell in cells), means[tail], means[-1 - tail]
