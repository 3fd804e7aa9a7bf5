"""What edits do to a score, on the logit scale: P(solved) = lapse + (1 − 2·lapse)·σ(sample + edits).

Most edits do nothing, and the few that do something do it either everywhere or on the samples that they claim to
answer. So each edit has two effects with spike-and-slab priors (Mitchell & Beauchamp 1988), a *general* one and an
additional one on *claimed* samples, and how common none, small and large ones are is learned with them. The posterior
is drawn by Gibbs sampling (Geman & Geman 1984) over a grid of values: every conditional is a short table, so that there
is nothing to tune or to diverge. The lapse (Wichmann & Hill 2001) keeps one odd answer from ruling an edit out.
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
from operator import mul
from random import Random

LAPSE = 0.05
UNIT = 0.125  # logits; all effects are whole numbers of it
REACH = 2000  # units; no sum of effects goes beyond
# Effects in units with their prior weights, by class: how common small and large ones are is learned apart.
SMALL = {-2: 1.0, -1: 1.0, 1: 1.0, 2: 1.0}
LARGE = {-32: 1.0, -16: 1.0, -8: 1.5, -4: 3.0, 4: 3.0, 8: 1.5, 16: 1.0}
CLAIMED = {8: 0.5, 16: 1.0, 32: 2.0, 48: 2.0}
BASES = tuple(range(-48, 49, 8))  # of a sample under the incumbent, units
CLASSES = (({0: 1.0}, SMALL, LARGE), ({0: 1.0}, CLAIMED))  # of general and of claimed effects
GRIDS = tuple(tuple(value for values in classes for value in values) for classes in CLASSES)
CLASS = tuple({value: c for c, values in enumerate(classes) for value in values} for classes in CLASSES)
BASE_SD = 16.0  # of samples around their common level, units
BURN_IN, WARM, DRAWS = 40, 12, 100  # sweeps before the first draw (from nothing, from a former draw); draws
RAREST = 1e-3  # share of a class of effects, at least: what was not met yet may come
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
    """How common each class of effects is: Dirichlet counts of general effects (none, small, large) and of claimed ones
    (none, some). By default the claims of edits are believed, and what they do besides is rare."""

    general: tuple[float, ...] = (18.0, 1.0, 1.0)
    claimed: tuple[float, ...] = (4.0, 4.0)


EVERYWHERE = Odds(general=(12.0, 6.0, 2.0))  # where claims are found to mean nothing: many edits do a little to all


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
        self.rates = [_shares(self._counted(kind) if start else counts) for kind, counts in enumerate(self.counts)]
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
        # Of each sample the likelihood of its bases, until the effect of an edit that it was tried with changes.
        self.likely: list[list[float] | None] = [None] * len(self.samples)
        self.sample_of = [number[trial.sample] for trial in trials]
        # The trials of an edit by their score: those of one score and one sum have one likelihood.
        self.of_edit = tuple(
            [_by_score(tried, scores, grid) for tried in of] for of, grid in zip(of_edit, GRIDS, strict=True)
        )
        # A sample that only the incumbent was tried on, once, is drawn from a table that others of its score share.
        lone = [len(tried) == 1 and not trials[tried[0]].edits for tried in self.of_sample]
        self.lone = [scores[tried[0]] if alone else None for tried, alone in zip(self.of_sample, lone, strict=True)]

    def sweep(self, active: int) -> None:
        """Draw every value anew, given all others; of the edits the first `active`."""
        prior = [math.exp(-((base - self.level) ** 2) / (2 * BASE_SD**2)) for base in BASES]
        shared: dict[float, list[float]] = {}
        sums = self.sums
        for j, trials in enumerate(self.of_sample):
            score, old = self.lone[j], self.bases[j]
            if score in shared:
                masses = shared[score]
            else:
                likely = self.likely[j]
                if likely is None:
                    likely = self.likely[j] = _weights([self.rows[t][sums[t] - old, 1] for t in trials])
                masses = list(accumulate(map(mul, prior, likely)))
                if score is not None:
                    shared[score] = masses
            self.bases[j] = self._drawn(BASES, masses)
            if (change := self.bases[j] - old) != 0:
                for t in trials:
                    sums[t] += change
        n = len(self.bases) or 1
        self.level = self.random.gauss(math.fsum(self.bases) / n, BASE_SD / math.sqrt(n))
        for kind, rates in enumerate(self.rates):
            effects, prior = self.effects[kind], _spike_and_slab(kind, rates)
            for i, by_score in enumerate(self.of_edit[kind][:active]):
                effects[i] = self._redraw(kind, by_score, effects[i], prior)
            self.rates[kind] = _shares([self.random.gammavariate(n, 1.0) for n in self._counted(kind)])

    def _counted(self, kind: int) -> list[float]:
        """The prior counts of each class of effects with those that are in it now."""
        found = Counter(map(CLASS[kind].__getitem__, self.effects[kind]))
        return [n + found[c] for c, n in enumerate(self.counts[kind])]

    def _redraw(self, kind: int, by_score: Sequence[tuple[_Rows, list[int]]], old: int, logs: Sequence[float]) -> int:
        """An edit's effect drawn from its conditional, `logs` being its prior; the sums of its trials follow it."""
        sums = self.sums
        tables = [logs]
        for rows, trials in by_score:
            tables += [rows[total - old, n] for total, n in Counter(map(sums.__getitem__, trials)).items()]
        value = self._drawn(GRIDS[kind], list(accumulate(_weights(tables))))
        if value != old:
            for _, trials in by_score:
                for t in trials:
                    sums[t] += value - old
                    self.likely[self.sample_of[t]] = None
        return value

    def _drawn(self, values: Sequence[int], masses: Sequence[float]) -> int:
        return values[bisect(masses, self.random.random() * masses[-1], 0, len(values) - 1)]

    def draw(self) -> Draw:
        return Draw(dict(zip(self.samples, self.bases, strict=True)), tuple(self.effects[0]), tuple(self.effects[1]))


def _weights(tables: Sequence[Sequence[float]]) -> list[float]:
    """The product of tables of weights, given by their logarithms; the largest weight is 1."""
    logs = list(map(sum, zip(*tables, strict=True)))
    top = max(logs)
    return [math.exp(log - top) for log in logs]


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


def _shares(counts: Sequence[float]) -> list[float]:
    return [n / sum(counts) for n in counts]


def _spike_and_slab(kind: int, rates: Sequence[float]) -> list[float]:
    """Logarithms of the weights of the values of a grid; `rates` are the shares of its classes."""
    return [
        math.log(max(rate, RAREST) * (weight / sum(values.values())))
        for values, rate in zip(CLASSES[kind], rates, strict=True)
        for weight in values.values()
    ]


@functools.cache
def log_likelihood(score: float) -> tuple[float, ...]:
    """Of a score, by the sum of effects in units, from -REACH on."""
    return tuple(score * math.log(p) + (1 - score) * math.log(1 - p) for p in SOLVED)
