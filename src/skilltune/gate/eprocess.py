"""The gate for unattended merges: a candidate is kept only if betting on it, against fair odds, has paid off.

Each `select` sample is one bet on the paired difference d in [-1, 1] of candidate and incumbent. Under "no gain" (mean
difference at most 0) the wealth Π(1 + stake·d) of any gambler, and so the mean over gamblers with different stakes, is
expected never to grow (Waudby-Smith & Ramdas 2024); then it ever reaches 1/level with probability at most level (Ville
1939), however often one looks and whenever one stops. Candidates come as they do under `race`, from a screen on train.

`gate.alpha` bounds the whole run: P(any accept of a candidate without gain) ≤ alpha. The k-th candidate that is raced
has the level 6·alpha/(π²k²), which sum up to alpha, and what a candidate was accepted with goes on to its successor
(online fallback, Tian & Ramdas 2021). For the levels to hold, candidates must not be made to fit `select`: so
everybody but the user learns no more of it than "accepted" or not. One dependence is left: an incumbent that was
accepted on these samples is the bar for its successors on the same samples, so its luck there works against them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from skilltune.aio import run_all
from skilltune.gate.also import check_elsewhere
from skilltune.gate.blocks import doubling
from skilltune.gate.priors import HOPE, PATHS, STAKES
from skilltune.gate.race import Race
from skilltune.gate.screen import Pool, Screened
from skilltune.journal.keys import rng
from skilltune.rollouts.roller import MAX_UNSCORED, comparable
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats import standard_error
from skilltune.stats.proportions import mean
from skilltune.verdict import ACCEPTED, FAILED, GIVEN_UP, VETOED, BettingInterim, EProcessFigures, Verdict


@dataclass(slots=True)
class EProcess(Race):
    """Implements `Gate`; a race with another rule."""

    raced: int = 0  # candidates so far
    inherited: float = 0.0  # level of the last candidate, if it was accepted

    async def _race(self, pool: Pool, chosen: tuple[int, ...], screened: Screened | None, name: str) -> Verdict:
        cfg = self.arena.cfg
        applied = pool.apply(chosen)
        incumbent, candidate = pool.skill, applied.skill
        self.raced += 1
        level = share(self.raced) * cfg.alpha + self.inherited
        bar = math.log(self.arena.draws(cfg.passes) / level)  # the passes share the level: each is a game of its own
        looks, won, left = await self._play(incumbent, candidate, bar, name)
        elsewhere = await check_elsewhere(self.arena, incumbent, candidate, name) if won else ()
        accepted = won and not any(check.vetoed for check in elsewhere)
        self.inherited = level if accepted else 0.0
        kept = candidate if accepted else incumbent
        scores = list(self._select_draws(kept.hash).values())
        self.level = (mean(scores), standard_error(scores))
        decision = ACCEPTED if accepted else VETOED if won else GIVEN_UP
        figures = EProcessFigures(decision, self.raced, level, _exp(bar), tuple(looks))
        return self._verdict(incumbent, applied, accepted, _why(looks[-1], bar, won, left), figures, elsewhere)

    async def _play(
        self, incumbent: Skill, candidate: Skill, bar: float, name: str
    ) -> tuple[list[BettingInterim], bool, bool]:
        """Roll both skills in blocks until the logarithm of the wealth reached the bar, or nothing is to be hoped.

        Returns the looks, whether the candidate is accepted, and whether there were bets left.
        """
        cfg, arena = self.arena.cfg, self.arena
        arena.notify("phase", name="race")
        units = self._units(name)
        order = [sample for unit in units for sample in unit]
        blocks = [(draw, block) for draw in range(arena.draws(cfg.passes)) for block in doubling(order, cfg.block)]
        looks: list[BettingInterim] = []
        accepted, asked, end = False, 0, 0
        for number, (draw, block) in enumerate(blocks):
            for ahead, samples in blocks[number + 1 : number + 2]:
                for skill in (candidate, incumbent):
                    arena.roll.prefetch(skill, samples, ahead)
            purpose = f"{name} bets {candidate.hash} {block[0].id} {draw}"
            sides = candidate, incumbent
            done = await run_all([arena.roll(skill, block, attempt=draw, purpose=purpose) for skill in sides])
            asked = asked * (end < len(order)) + comparable(zip(*done, strict=True))
            end = end % len(order) + len(block)
            made, room = self._bets(incumbent, candidate, units, order[:end], draw)
            path, trend = log_wealth(made), made
            if end == len(order) and number + 1 < len(blocks):  # the next pass is a new game
                made, room = self._bets(incumbent, candidate, units, [], draw + 1)
            hope = chance(made, trend, room, bar, rng(arena.seed, "hope", name, number))
            scored, gain = self._compared(incumbent, candidate, order[:end], draw)
            n, most = len(self._select_draws(candidate.hash)), max(path, default=0.0)
            looks.append(BettingInterim(n, draw, len(path), gain, _exp(path[-1] if path else 0.0), _exp(most), hope))
            wealth = looks[-1].wealth
            arena.notify(
                "interim", look=len(looks), n=n, p_better=None, gain=gain, sd=None, wealth=wealth, bar=_exp(bar)
            )
            accepted = most >= bar and scored >= (1 - MAX_UNSCORED) * asked
            if accepted or hope < HOPE:
                break
        return looks, accepted, len(looks) < len(blocks)

    def _units(self, name: str) -> list[list[Sample]]:
        """The units of the bets, in seeded order: a sample, or a whole group, because its samples are not
        independent."""
        units: dict[tuple[str, str], list[Sample]] = {}
        for sample in sorted(self.arena.select, key=lambda sample: sample.id):
            key = ("sample", sample.id) if sample.group is None else ("group", sample.group)
            units.setdefault(key, []).append(sample)
        order = list(units.values())
        rng(self.arena.seed, "bets", name).shuffle(order)
        return order

    def _bets(
        self,
        incumbent: Skill,
        candidate: Skill,
        units: Sequence[Sequence[Sample]],
        rolled: Sequence[Sample],
        draw: int,
    ) -> tuple[list[float], list[float]]:
        """The differences of the units that are wholly rolled in this draw, as means over the draws up to it, and the
        most that each of the other units can still bring, as the incumbent's scores are known.

        A unit's difference is the sum over its samples by the size of the largest unit, so that it stays in [-1, 1] and
        every sample has the same weight. A sample that could not be scored is a bet on nothing.
        """
        largest, draws = max(map(len, units)), range(draw + 1)
        complete = len(list(itertools.takewhile(lambda end: end <= len(rolled), itertools.accumulate(map(len, units)))))

        def difference(sample: Sample) -> float:
            return math.fsum(self._difference(incumbent, candidate, sample, i) or 0.0 for i in draws) / len(draws)

        def room(sample: Sample) -> float:
            return 1 - math.fsum(self._score(incumbent, sample, i) or 0.0 for i in draws) / len(draws)

        made = [math.fsum(map(difference, unit)) / largest for unit in units[:complete]]
        return made, [math.fsum(map(room, unit)) / largest for unit in units[complete:]]

    def _compared(self, incumbent: Skill, candidate: Skill, rolled: Sequence[Sample], draw: int) -> tuple[int, float]:
        """The number of samples of a pass that are scored on both sides, and their mean difference."""
        known = [self._difference(incumbent, candidate, sample, draw) for sample in rolled]
        scored = [difference for difference in known if difference is not None]
        return len(scored), fmean(scored) if scored else 0.0

    def _difference(self, incumbent: Skill, candidate: Skill, sample: Sample, draw: int) -> float | None:
        old, new = (self._score(skill, sample, draw) for skill in (incumbent, candidate))
        return None if old is None or new is None else new - old

    def _score(self, skill: Skill, sample: Sample, draw: int) -> float | None:
        return self.arena.scores.one("select", skill.hash, sample.id, draw)


def _why(look: BettingInterim, bar: float, accepted: bool, left: bool) -> str:
    """The decision in terms of luck: without a gain, a wealth of x is ever reached with probability at most 1/x, and
    the bar states how much luck this candidate is allowed."""
    seen = f"{100 * look.gain:+.1f} points in {look.bets} comparisons on select"
    luck = f"luck alone does as well in up to {_share(1 / look.most)} of cases, allowed: {_share(_exp(-bar))}"
    if accepted:
        return f"{seen}; {luck}: accepted"
    if look.most >= _exp(bar):
        return f"{seen}; too many samples could not be scored: {FAILED}"
    end = "the samples left can hardly change that" if left else "no samples are left"
    return f"{seen}; {luck}; {end}: {FAILED}"


def _share(value: float) -> str:
    return f"{100 * min(1.0, value):.3g} %"


def share(k: int) -> float:
    """The share of the run's error for its k-th candidate, k ≥ 1; the shares sum up to 1 (Euler)."""
    return 6 / (math.pi * k) ** 2


def reachable(units: Sequence[int], alpha: float, passes: int = 1) -> int:
    """The number of the last candidate that can be accepted if none was before it: with a win in every bet, on units of
    these sizes, its wealth still reaches the bar. 0 if no candidate can ever be accepted."""
    most = log_wealth([size / max(units) for size in units])[-1] if units else 0.0
    return math.isqrt(math.floor(_exp(most) * share(1) * alpha / passes))


def log_wealth(differences: Iterable[float]) -> list[float]:
    """Logarithm of the gamblers' mean wealth after each bet, from 1 at the start. Differences are in [-1, 1]."""
    logs = (0.0,) * len(STAKES)
    path = []
    for difference in differences:
        logs = tuple(map(float.__add__, logs, _growth(difference)))
        path.append(_log_mean(logs))
    return path


def chance(made: Sequence[float], trend: Sequence[float], room: Sequence[float], bar: float, draw: Random) -> float:
    """Share of drawn continuations of the bets `made` whose wealth reaches the bar: stochastic curtailment (Lan, Simon
    & Halperin 1982).

    Each bet to come repeats one of the `trend`, or an imagined full win, as far as it has `room`. Nothing of it touches
    the error of the rule: giving up accepts nothing.
    """
    start = [math.fsum(growth) for growth in zip(*map(_growth, made), strict=True)] or [0.0] * len(STAKES)
    reached = 0
    for _ in range(PATHS):
        drawn = Counter(map(min, draw.choices([*trend, 1.0], k=len(room)), room))
        logs = start
        for difference, times in drawn.items():
            logs = [log + times * growth for log, growth in zip(logs, _growth(difference), strict=True)]
        reached += _log_mean(logs) >= bar
    return reached / PATHS


@functools.lru_cache(maxsize=4096)
def _growth(difference: float) -> tuple[float, ...]:
    """The change of the logarithm of each gambler's wealth by a bet."""
    return tuple(math.log1p(stake * difference) for stake in STAKES)


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(fmean(math.exp(log - top) for log in logs))


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))
