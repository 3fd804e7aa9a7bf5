"""Estimate how much each edit changes the chance that a sample is solved.

The model works on the logit scale: P(solved) = LAPSE + (1 − 2·LAPSE)·σ(sample + edits). Most edits do nothing. The few
that do something act either everywhere or only on the samples that they claim to answer. So each edit has two effects
with spike-and-slab priors (Mitchell & Beauchamp 1988): a *general* one, and an additional one on *claimed* samples. The
shares of edits with no, small and large effects are learned with them. The lapse (Wichmann & Hill 2001) keeps one odd
answer from ruling an edit out. Fractional scores enter as quasi-likelihood (Papke & Wooldridge 1996).

The posterior is drawn by Gibbs sampling (Geman & Geman 1984) over a grid of values. Every conditional is a short table,
so there is nothing to tune and nothing can diverge. An edit's two effects are drawn together, because a trial of a
claimed sample only sees their sum. Several chains run side by side in one array: they cost little more than one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

LAPSE = 0.05
UNIT = 0.125  # logits; all effects are whole numbers of it
REACH = 320  # units, 40 logits: sums beyond count as this many, because P(solved) is the same there to the last bit
# Effects in units with their prior weights, by class: the shares of the classes are learned.
SMALL = {-2: 1.0, -1: 1.0, 1: 1.0, 2: 1.0}
LARGE = {-32: 1.0, -16: 1.0, -8: 1.5, -4: 3.0, 4: 3.0, 8: 1.5, 16: 1.0}
CLAIMED = {8: 0.5, 16: 1.0, 32: 2.0, 48: 2.0}
BASES = tuple(range(-48, 49, 8))  # of a sample under the incumbent, units
CLASSES = (({0: 1.0}, SMALL, LARGE), ({0: 1.0}, CLAIMED))  # of general and of claimed effects
GRIDS = tuple(tuple(value for values in classes for value in values) for classes in CLASSES)
CLASS = tuple({value: c for c, values in enumerate(classes) for value in values} for classes in CLASSES)
BASE_SD = 16.0  # of samples around their common level, units
CHAINS = 10
BURN_IN, WARM, DRAWS = 40, 12, 100  # sweeps before the first draw (from nothing, from a former draw); draws
RAREST = 1e-3  # share of a class of effects, at least: an effect that was not met yet stays possible
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
    """Prior shares of the classes of effects, as Dirichlet counts: of general effects (none, small, large) and of
    claimed ones (none, some). By default the claims of edits are believed, and other effects are rare."""

    general: tuple[float, ...] = (18.0, 1.0, 1.0)
    claimed: tuple[float, ...] = (4.0, 4.0)


EVERYWHERE = Odds(general=(12.0, 6.0, 2.0))  # if claims are found to mean nothing: many edits do a little to all


_Ints = NDArray[np.intp]
_Floats = NDArray[np.floating]


@functools.cache
def solved(units: int) -> float:
    """P(solved) at a sum of effects."""
    return LAPSE + (1 - 2 * LAPSE) / (1 + math.exp(-UNIT * max(-REACH, min(units, REACH))))


def draw_effects(
    trials: Sequence[Trial],
    edits: int,
    odds: Odds,
    random: Random,
    *,
    draws: int = DRAWS,
    active: int | None = None,
    start: Sequence[Draw] = (),
    local: Collection[int] = (),
) -> list[Draw]:
    """Draw from the posterior of the effects of `edits` edits; the order of the trials does not matter.

    Each chain gives the same number of draws, so there may be a few more than `draws`. The last `CHAINS` of the result
    are the chains' last states; given as `start`, chains go on from there (samples that it does not hold begin at 0).
    The first `active` edits (all by default) are drawn in each sweep, the others now and then. The edits in `local`
    have no general effect.
    """
    chains = _Chains(sorted(trials, key=lambda t: (t.sample, t.edits, t.score)), edits, odds, random, start)
    chains.local = frozenset(local)
    warm, active = WARM if start else BURN_IN, edits if active is None else active
    result: list[Draw] = []
    for number in range(warm + math.ceil(draws / CHAINS)):
        chains.sweep(edits if (number - warm) % RESTING == 0 else active)
        if number >= warm:
            result += chains.draws()
    return result


_SOLVED = np.array([solved(units) for units in range(-REACH, REACH + 1)])
_GENERAL, _CLAIMED = (np.array(grid, dtype=np.intp) for grid in GRIDS)
_BASES = np.array(BASES, dtype=np.intp)
# The pairs of an edit's two effects: every general one beside the first claimed one, then beside the next.
_WIDTH = len(_GENERAL)
_BOTH = np.add.outer(_CLAIMED, _GENERAL).ravel()
_EDGE = REACH + int(abs(_BASES).max())  # a sum of other effects beyond it leaves no value of a grid within REACH
_CLASS = tuple(np.array([CLASS[kind][value] for value in grid]) for kind, grid in enumerate(GRIDS))
_WITHIN = tuple(
    np.log([weight / sum(values.values()) for values in classes for weight in values.values()]) for classes in CLASSES
)  # of each value of a grid, the logarithm of its prior within its class


class _Chains:
    """The state of the sampler, the chains along the last axis: a value for every sample and edit, and for every trial
    the sum of the values that act on it."""

    def __init__(self, trials: Sequence[Trial], edits: int, odds: Odds, random: Random, start: Sequence[Draw]) -> None:
        self.local = frozenset[int]()
        # RandomState promises the same stream in every version of numpy; Generator does not.
        self.random = np.random.RandomState(np.random.PCG64(random.getrandbits(128)))
        self.odds = tuple(np.array([counts] * CHAINS).T for counts in (odds.general, odds.claimed))
        self.samples = sorted({trial.sample for trial in trials})
        number = {sample: j for j, sample in enumerate(self.samples)}
        self.sample = np.array([number[trial.sample] for trial in trials], dtype=np.intp)  # of each trial
        self.first = np.searchsorted(self.sample, np.arange(len(self.samples)))  # trial of each sample
        scores = tuple(sorted({round(trial.score, 2) for trial in trials}))
        self.of_base, self.of_general = _tables(scores)
        place = {score: _EDGE + j * (2 * _EDGE + 1) for j, score in enumerate(scores)}
        self.row = np.array([[place[round(trial.score, 2)]] for trial in trials], dtype=np.intp).reshape(-1, 1)
        # The trials of each edit; those of samples that it claims come first, and there are `claims` of them.
        of: list[tuple[list[int], list[int]]] = [([], []) for _ in range(edits)]
        for t, trial in enumerate(trials):
            for i in trial.edits:
                of[i][i not in trial.claiming].append(t)
        self.trials = [np.array(claimed + others, dtype=np.intp) for claimed, others in of]
        self.claims = [len(claimed) for claimed, _ in of]

        states = [start[c % len(start)] if start else None for c in range(CHAINS)]
        self.bases = np.array(
            [[state.bases.get(s, 0) if state else 0 for state in states] for s in self.samples], dtype=np.intp
        ).reshape(-1, CHAINS)
        self.pairs = np.array(
            [[_pair(state.general[i], state.claimed[i]) if state else 0 for state in states] for i in range(edits)],
            dtype=np.intp,
        ).reshape(-1, CHAINS)
        self.sums = self.bases[self.sample]
        for i, (tried, claims) in enumerate(zip(self.trials, self.claims, strict=True)):
            self.sums[tried[:claims]] += _BOTH[self.pairs[i]]
            self.sums[tried[claims:]] += _GENERAL[self.pairs[i] % _WIDTH]
        self.level = self.bases.mean(axis=0) if trials else np.zeros(CHAINS)
        self.shares = [counts / counts.sum(axis=0) for counts in (self._counted() if start else self.odds)]

    def sweep(self, active: int) -> None:
        """Draw every value anew, given all others; of the edits the first `active`."""
        if self.samples:
            self._draw_bases()
        n = max(1, len(self.samples))
        self.level = self.random.normal(self.bases.sum(axis=0) / n, BASE_SD / math.sqrt(n))
        general, claimed = (
            np.log(np.maximum(shares, RAREST)).T[:, classes] + within
            for shares, classes, within in zip(self.shares, _CLASS, _WITHIN, strict=True)
        )
        prior = (claimed[:, :, None] + general[:, None, :]).reshape(CHAINS, -1)
        uniform = self.random.random_sample((active, CHAINS, 1))
        within_claims = np.where(np.tile(_GENERAL == 0, len(_CLAIMED)), prior, -np.inf) if self.local else prior
        for i in range(active):
            self._draw_edit(i, within_claims if i in self.local else prior, uniform[i])
        gammas = [self.random.standard_gamma(counts) for counts in self._counted()]
        self.shares = [gamma / gamma.sum(axis=0) for gamma in gammas]

    def _draw_bases(self) -> None:
        prior = -((_BASES - self.level[:, None]) ** 2) / (2 * BASE_SD**2)
        rest = self.sums - self.bases[self.sample]
        likely = np.add.reduceat(self.of_base.take(_rows(rest, self.row), axis=0), self.first, axis=0)
        self.bases = _BASES[_picked(prior + likely, self.random.random_sample((*self.bases.shape, 1)))]
        self.sums = rest + self.bases[self.sample]

    def _draw_edit(self, i: int, prior: _Floats, uniform: _Floats) -> None:
        """Draw both effects of an edit from their joint conditional; the sums of its trials follow."""
        tried, claims = self.trials[i], self.claims[i]
        rest = self.sums.take(tried, axis=0)
        rest[:claims] -= _BOTH[self.pairs[i]]
        rest[claims:] -= _GENERAL[self.pairs[i] % _WIDTH]
        row = self.row.take(tried, axis=0)
        both = _rows(rest[:claims, :, None] + _CLAIMED, row[:claims, :, None])
        likely = self.of_general.take(both, axis=0).sum(axis=0)  # (chains, claimed, general)
        likely += self.of_general.take(_rows(rest[claims:], row[claims:]), axis=0).sum(axis=0)[:, None]
        logs = prior + likely.reshape(prior.shape)
        self.pairs[i] = pairs = _picked(logs, uniform)
        rest[:claims] += _BOTH[pairs]
        rest[claims:] += _GENERAL[pairs % _WIDTH]
        self.sums[tried] = rest

    def _counted(self) -> list[_Floats]:
        """For each chain the prior counts of each class of effects with those that are in it now."""
        now = (self.pairs % _WIDTH, self.pairs // _WIDTH)
        return [
            counts + [(_CLASS[kind][now[kind]] == c).sum(axis=0) for c in range(len(counts))]
            for kind, counts in enumerate(self.odds)
        ]

    def draws(self) -> list[Draw]:
        """The present state of each chain."""
        values = (self.bases, _GENERAL[self.pairs % _WIDTH], _CLAIMED[self.pairs // _WIDTH])
        return [
            Draw(dict(zip(self.samples, bases, strict=True)), tuple(general), tuple(claimed))
            for bases, general, claimed in zip(*(array.T.tolist() for array in values), strict=True)
        ]


def _pair(general: int, claimed: int) -> int:
    return GRIDS[1].index(claimed) * _WIDTH + GRIDS[0].index(general)


def _rows(rest: _Ints, row: _Ints) -> _Ints:
    """The rows of the tables at sums of other effects, which are cut off at the edges of the tables."""
    return np.minimum(np.maximum(rest, -_EDGE), _EDGE) + row


def _picked(logs: _Floats, uniform: _Floats) -> _Ints:
    """One index per row of the last axis, drawn with the weights whose logarithms are given."""
    masses = np.exp(logs - logs.max(axis=-1, keepdims=True)).cumsum(axis=-1)
    return (masses[..., :-1] <= uniform * masses[..., -1:]).sum(axis=-1)


@functools.lru_cache(4)
def _tables(scores: tuple[float, ...]) -> tuple[_Floats, _Floats]:
    """Log-likelihoods of a score at each value of a base and of a general effect; the rows are the sums of all other
    effects from -_EDGE to _EDGE, for one score after the other."""
    sums = np.arange(-_EDGE, _EDGE + 1)[:, None]
    score = np.array(scores)[:, None]
    by_score = score * np.log(_SOLVED) + (1 - score) * np.log(1 - _SOLVED)
    bases, general = (np.clip(sums + values, -REACH, REACH) + REACH for values in (_BASES, _GENERAL))
    return by_score[:, bases].reshape(-1, len(_BASES)), by_score[:, general].reshape(-1, _WIDTH)
