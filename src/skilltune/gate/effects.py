"""What edits do to a score, on the logit scale: P(solved) = lapse + (1 − 2·lapse)·σ(sample + edits).

Most edits do nothing, and the few that do something do it either everywhere or on the samples that they claim to
answer. So each edit has two effects with spike-and-slab priors (Mitchell & Beauchamp 1988), a *general* one and an
additional one on *claimed* samples, and how often an effect is not zero is learned with them. The posterior is drawn by
Gibbs sampling (Geman & Geman 1984) over a grid of values: every conditional is a short table, so that there is
nothing to tune or to diverge. The lapse (Wichmann & Hill 2001) keeps one odd answer from ruling an edit out.
Fractional scores enter as quasi-likelihood (Papke & Wooldridge 1996).
"""

from __future__ import annotations

import functools
import math
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add
from random import Random

LAPSE = 0.05
UNIT = 0.25  # logits; all effects are whole numbers of it
REACH = 1000  # units; no sum of effects goes beyond
# Effects in units with their prior weights, given that there is an effect.
GENERAL = {-16: 1.0, -8: 1.0, -4: 1.5, -2: 3.0, -1: 3.0, 1: 3.0, 2: 3.0, 4: 1.5, 8: 1.0}
CLAIMED = {4: 0.5, 8: 1.0, 16: 2.0, 24: 2.0}
BASES = tuple(range(-24, 25, 4))  # of a sample under the incumbent, units
SLABS = (GENERAL, CLAIMED)
GRIDS = (BASES, *((0, *slab) for slab in SLABS))  # the values of a sample's base, of an edit's two effects
BASE_SD = 8.0  # of samples around their common level, units
BURN_IN, WARM, DRAWS = 40, 12, 100  # sweeps before the first draw (from nothing, from a former draw); draws
RESTING = 4  # sweeps from one redraw to the next of the effects of edits that are neither in use nor in question


@dataclass(frozen=True, slots=True)
class Trial:
    """One score in [0, 1] of a sample under the incumbent with some edits, and which of these claim the sample."""

    sample: str
    edits: tuple[int, ...]
    claiming: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of the posterior, in units: each sample under the incumbent, each edit's two effects."""

    bases: Mapping[str, int]
    general: tuple[int, ...]
    claimed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Odds:
    """How often an effect is not zero: Beta counts (has one, has none) of general and of claimed effects."""

    general: tuple[float, float] = (2.0, 18.0)
    claimed: tuple[float, float] = (4.0, 4.0)


def solved(units: int) -> float:
    """P(solved) at a sum of effects."""
    return LAPSE + (1 - 2 * LAPSE) / (1 + math.exp(-UNIT * units))


SOLVED = tuple(solved(units) for units in range(-REACH, REACH + 1))  # at units + REACH


def draw_effects(
    trials: Sequence[Trial],
    edits: int,
    odds: Odds,
    random: Random,
    *,
    draws: int = DRAWS,
    active: int | None = None,
    start: Draw | None = None,
) -> list[Draw]:
    """Draws of the posterior of the effects of `edits` edits; they do not depend on the order of the trials.

    The first `active` edits (all by default) are drawn in each sweep, the others now and then. `start` is a draw of an
    earlier posterior, of the same edits; samples that it does not hold begin at 0.
    """
    chain = Chain(sorted(trials, key=lambda t: (t.sample, t.edits, t.score)), edits, odds, random, start)
    active = edits if active is None else active
    for number in range(WARM if start else BURN_IN):
        chain.sweep(edits if number % RESTING == 0 else active)
    result = []
    for number in range(draws):
        chain.sweep(edits if number % RESTING == 0 else active)
        result.append(chain.draw())
    return result


class Chain:
    """The state of the sampler: a value for every sample and edit, and of each trial the sum of those it has."""

    def __init__(
        self, trials: Sequence[Trial], edits: int, odds: Odds, random: Random, start: Draw | None = None
    ) -> None:
        self.random = random
        self.counts = (odds.general, odds.claimed)
        self.samples = sorted({trial.sample for trial in trials})
        self.bases = [start.bases.get(sample, 0) if start else 0 for sample in self.samples]
        self.effects = (list(start.general), list(start.claimed)) if start else ([0] * edits, [0] * edits)
        self.level = math.fsum(self.bases) / (len(self.bases) or 1)
        self.rates = (
            [
                (a + sum(map(bool, effects))) / (a + b + edits)
                for (a, b), effects in zip(self.counts, self.effects, strict=True)
            ]
            if start
            else [a / (a + b) for a, b in self.counts]
        )
        scores = [round(trial.score, 2) for trial in trials]
        number = {sample: j for j, sample in enumerate(self.samples)}
        self.of_sample: list[list[int]] = [[] for _ in self.samples]
        of_edit: tuple[list[list[int]], ...] = ([[] for _ in range(edits)], [[] for _ in range(edits)])
        self.sums = []
        for t, trial in enumerate(trials):
            self.of_sample[number[trial.sample]].append(t)
            for i in trial.edits:
                of_edit[0][i].append(t)
            for i in trial.claiming:
                of_edit[1][i].append(t)
            self.sums.append(
                self.bases[number[trial.sample]]
                + sum([self.effects[0][i] for i in trial.edits])
                + sum([self.effects[1][i] for i in trial.claiming])
            )
        self.rows = [_rows(score, BASES) for score in scores]
        # The trials of an edit by their score: those of one score and one sum have one likelihood.
        self.of_edit = tuple(
            [_by_score(tried, scores, grid) for tried in of] for of, grid in zip(of_edit, GRIDS[1:], strict=True)
        )
        # A sample that only the incumbent was tried on, once, is drawn from a table that others of its score share.
        lone = [len(tried) == 1 and not trials[tried[0]].edits for tried in self.of_sample]
        self.lone = [scores[tried[0]] if alone else None for tried, alone in zip(self.of_sample, lone, strict=True)]

    def sweep(self, active: int) -> None:
        """Draw every value anew, given all others; of the edits the first `active`."""
        logs = [-((base - self.level) ** 2) / (2 * BASE_SD**2) for base in BASES]
        shared: dict[float, list[float]] = {}
        rows, sums = self.rows, self.sums
        for j, trials in enumerate(self.of_sample):
            score, old = self.lone[j], self.bases[j]
            if score in shared:
                masses = shared[score]
            else:
                likely = logs
                for t in trials:
                    likely = list(map(add, likely, rows[t][sums[t] - old, 1]))
                masses = _masses(likely)
                if score is not None:
                    shared[score] = masses
            self.bases[j] = self._drawn(BASES, masses)
            if (change := self.bases[j] - old) != 0:
                for t in trials:
                    sums[t] += change
        n = len(self.bases) or 1
        self.level = self.random.gauss(math.fsum(self.bases) / n, BASE_SD / math.sqrt(n))
        for kind, slab in enumerate(SLABS):
            effects, prior = self.effects[kind], _spike_and_slab(slab, self.rates[kind])
            for i, by_score in enumerate(self.of_edit[kind][:active]):
                effects[i] = self._redraw(kind, by_score, effects[i], prior)
            (a, b), some = self.counts[kind], sum(map(bool, effects))
            self.rates[kind] = self.random.betavariate(a + some, b + len(effects) - some)

    def _redraw(self, kind: int, by_score: Sequence[tuple[_Rows, list[int]]], old: int, logs: Sequence[float]) -> int:
        """An edit's effect drawn from its conditional, `logs` being its prior; the sums of its trials follow it."""
        sums = self.sums
        for rows, trials in by_score:
            for total, n in sorted(Counter(map(sums.__getitem__, trials)).items()):
                logs = list(map(add, logs, rows[total - old, n]))
        value = self._drawn(GRIDS[kind + 1], _masses(logs))
        if value != old:
            for _, trials in by_score:
                for t in trials:
                    sums[t] += value - old
        return value

    def _drawn(self, values: Sequence[int], masses: Sequence[float]) -> int:
        return values[bisect(masses, self.random.random() * masses[-1], 0, len(values) - 1)]

    def draw(self) -> Draw:
        return Draw(dict(zip(self.samples, self.bases, strict=True)), tuple(self.effects[0]), tuple(self.effects[1]))


def _masses(logs: Sequence[float]) -> list[float]:
    """The weights of a table, given by their logarithms, summed up."""
    top = max(logs)
    return list(accumulate([math.exp(log - top) for log in logs]))


def _by_score(trials: Sequence[int], scores: Sequence[float], grid: Sequence[int]) -> list[tuple[_Rows, list[int]]]:
    return [
        (_rows(score, grid), [t for t in trials if scores[t] == score]) for score in sorted({scores[t] for t in trials})
    ]


class _Rows(dict[tuple[int, int], tuple[float, ...]]):
    """Log-likelihoods of `n` trials of a score at each value of a grid, by the sum of the other effects and `n`; filled
    as they are met."""

    def __init__(self, score: float, grid: Sequence[int]) -> None:
        super().__init__()
        self.table, self.grid = log_likelihood(score), grid

    def __missing__(self, key: tuple[int, int]) -> tuple[float, ...]:
        rest, n = key
        self[key] = tuple(n * self.table[REACH + rest + value] for value in self.grid)
        return self[key]


_rows = functools.cache(_Rows)


def _spike_and_slab(slab: Mapping[int, float], rate: float) -> list[float]:
    """Logarithms of the weights of no effect and of the slab's; `rate` is the share of effects that are not zero."""
    rate, total = min(max(rate, 1e-3), 1 - 1e-3), sum(slab.values())
    return [math.log(1 - rate), *(math.log(rate * weight / total) for weight in slab.values())]


@functools.cache
def log_likelihood(score: float) -> tuple[float, ...]:
    """Of a score, by the sum of effects in units, from -REACH on."""
    return tuple(score * math.log(p) + (1 - score) * math.log(1 - p) for p in SOLVED)
