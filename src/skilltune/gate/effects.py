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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

LAPSE = 0.05
UNIT = 0.25  # logits; all effects are whole numbers of it
REACH = 1000  # units; no sum of effects goes beyond
# Effects in units with their prior weights, given that there is an effect.
GENERAL = {-16: 1.0, -8: 1.0, -4: 1.5, -2: 3.0, -1: 3.0, 1: 3.0, 2: 3.0, 4: 1.5, 8: 1.0}
CLAIMED = {4: 0.5, 8: 1.0, 16: 2.0, 24: 2.0}
BASES = tuple(range(-24, 25, 4))  # of a sample under the incumbent, units
BASE_SD = 8.0  # of samples around their common level, units
BURN_IN, DRAWS, THIN = 40, 100, 2
FORGET = 0.25  # share of the common prior in what is remembered of an edit

Prior = tuple[tuple[int, ...], tuple[float, ...]]  # values in units, logarithms of their weights
Belief = tuple[Mapping[int, float], Mapping[int, float]]  # weights of an edit's general and claimed effect, by value


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
    claimed: tuple[float, float] = (1.0, 1.0)


def solved(units: int) -> float:
    """P(solved) at a sum of effects."""
    return LAPSE + (1 - 2 * LAPSE) / (1 + math.exp(-UNIT * units))


SOLVED = tuple(solved(units) for units in range(-REACH, REACH + 1))  # at units + REACH


def draw_effects(
    trials: Sequence[Trial], edits: int, odds: Odds, known: Mapping[int, Belief], random: Random
) -> list[Draw]:
    """`DRAWS` draws of the posterior of the effects of `edits` edits.

    `known` holds what is believed of edits that were screened before, in place of the common prior. The result does
    not depend on the order of the trials.
    """
    chain = _Chain(sorted(trials, key=lambda t: (t.sample, t.edits, t.score)), edits, odds, known, random)
    for _ in range(BURN_IN):
        chain.sweep()
    draws = []
    for _ in range(DRAWS):
        for _ in range(THIN):
            chain.sweep()
        draws.append(chain.draw())
    return draws


def belief(draws: Sequence[Draw], edit: int) -> Belief:
    """What the draws say of an edit, to start from when it is screened again; some of the common prior remains."""
    kinds = ((GENERAL, [draw.general[edit] for draw in draws]), (CLAIMED, [draw.claimed[edit] for draw in draws]))
    general, claimed = (_mixed(slab, Counter(values), len(draws)) for slab, values in kinds)
    return general, claimed


def learned(draws: Sequence[Draw], fresh: Sequence[int], odds: Odds) -> Odds:
    """The odds after a screen of the edits `fresh`: each counts by the probability that it has the effect."""
    has = [sum(bool(effects[i]) for i in fresh) for d in draws for effects in (d.general, d.claimed)]
    general, claimed = (sum(has[kind::2]) / (len(draws) or 1) for kind in (0, 1))
    n = len(fresh)
    return Odds(
        (odds.general[0] + general, odds.general[1] + n - general),
        (odds.claimed[0] + claimed, odds.claimed[1] + n - claimed),
    )


class _Chain:
    """The state of the sampler: a value for every sample and edit, and of each trial the sum of those it has."""

    def __init__(
        self, trials: Sequence[Trial], edits: int, odds: Odds, known: Mapping[int, Belief], random: Random
    ) -> None:
        self.random, self.known = random, known
        self.counts = (odds.general, odds.claimed)
        self.rates = [a / (a + b) for a, b in self.counts]
        self.samples = sorted({trial.sample for trial in trials})
        self.level, self.bases = 0.0, [0] * len(self.samples)
        self.effects = ([0] * edits, [0] * edits)  # general, claimed
        self.sums = [0] * len(trials)
        self.tables = [_log_likelihood(round(trial.score, 2)) for trial in trials]
        number = {sample: j for j, sample in enumerate(self.samples)}
        self.of_sample: list[list[int]] = [[] for _ in self.samples]
        self.of_edit: tuple[list[list[int]], ...] = ([[] for _ in range(edits)], [[] for _ in range(edits)])
        for t, trial in enumerate(trials):
            self.of_sample[number[trial.sample]].append(t)
            for i in trial.edits:
                self.of_edit[0][i].append(t)
            for i in trial.claiming:
                self.of_edit[1][i].append(t)

    def sweep(self) -> None:
        """Draw every value anew, given all others."""
        bases = BASES, tuple(-((base - self.level) ** 2) / (2 * BASE_SD**2) for base in BASES)
        for j, trials in enumerate(self.of_sample):
            self.bases[j] = self._redraw(trials, self.bases[j], bases)
        n = len(self.bases) or 1
        self.level = self.random.gauss(math.fsum(self.bases) / n, BASE_SD / math.sqrt(n))
        for kind, slab in enumerate((GENERAL, CLAIMED)):
            effects, common = self.effects[kind], _spike_and_slab(slab, self.rates[kind])
            for i, trials in enumerate(self.of_edit[kind]):
                prior = _weights(self.known[i][kind]) if i in self.known else common
                effects[i] = self._redraw(trials, effects[i], prior)
            fresh = [value != 0 for i, value in enumerate(effects) if i not in self.known]
            a, b = self.counts[kind]
            self.rates[kind] = self.random.betavariate(a + sum(fresh), b + len(fresh) - sum(fresh))

    def _redraw(self, trials: Sequence[int], old: int, prior: Prior) -> int:
        """A value drawn from its conditional; the sums of its trials follow it."""
        values, logs = prior
        sums = self.sums
        for t in trials:
            table, rest = self.tables[t], sums[t] - old + REACH
            logs = [log + table[rest + value] for log, value in zip(logs, values, strict=True)]
        top = max(logs)
        masses = [math.exp(log - top) for log in logs]
        value = self.random.choices(values, masses)[0]
        if value != old:
            for t in trials:
                sums[t] += value - old
        return value

    def draw(self) -> Draw:
        return Draw(dict(zip(self.samples, self.bases, strict=True)), tuple(self.effects[0]), tuple(self.effects[1]))


def _spike_and_slab(slab: Mapping[int, float], rate: float) -> Prior:
    """`rate` is the share of effects that are not zero."""
    rate, total = min(max(rate, 1e-3), 1 - 1e-3), sum(slab.values())
    return (0, *slab), (math.log(1 - rate), *(math.log(rate * weight / total) for weight in slab.values()))


def _mixed(slab: Mapping[int, float], seen: Counter[int], n: int) -> dict[int, float]:
    total = 2 * sum(slab.values())
    common = {0: 0.5} | {value: weight / total for value, weight in slab.items()}
    return {value: FORGET * weight + (1 - FORGET) * seen[value] / n for value, weight in common.items()}


def _weights(weights: Mapping[int, float]) -> Prior:
    return tuple(weights), tuple(math.log(weight) for weight in weights.values())


@functools.cache
def _log_likelihood(score: float) -> tuple[float, ...]:
    """Of a score, by the sum of effects in units, from -REACH on."""
    return tuple(score * math.log(p) + (1 - score) * math.log(1 - p) for p in SOLVED)
