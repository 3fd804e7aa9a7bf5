"""Policies for comparison only: the default gate with a part taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from statistics import fmean, pvariance
from typing import Any
from unittest.mock import patch

from skilltune.gate import trials as tried
from skilltune.gate.race import Race
from skilltune.gate.screen import Pool
from skilltune.gate.trials import Trials
from skilltune.optimizer import Proposal
from skilltune.skill import Skill
from skilltune.stats import standard_error
from skilltune.stats.effects import DRAWS, UNIT, Draw, Odds, Trial
from skilltune.stats.linear import Posterior
from skilltune.verdict import Verdict

SLOPE = 0.25 * UNIT  # of a score per unit of effect, for a sample that is solved half of the time


class Forgetful(Race):
    """`race` that keeps no edit that it did not take, and nothing that it learned."""

    __slots__ = ()

    async def judge(self, skill: Skill, proposals: Sequence[Proposal], **options: Any) -> Verdict:
        self.leftover, self.waiting, self.evidence = [], [], Trials()
        return await Race.judge(self, skill, proposals, **options)


def draw_means(
    trials: Sequence[Trial], edits: int, odds: Odds, random: Random, *, draws: int = DRAWS, **_: Any
) -> list[Draw]:
    """What plain means say of edits: of each the mean change over the incumbent's score on the same samples, over the
    rollouts that held it, with its standard error. The others of its subset are noise to it."""
    base: dict[str, float] = {}
    for trial in sorted(trials, key=lambda trial: -len(trial.edits)):  # at last the score of the barest version
        base[trial.sample] = trial.score
    changes: list[list[float]] = [[] for _ in range(edits)]
    for trial in trials:
        for i in trial.edits:
            changes[i].append(trial.score - base[trial.sample])
    means = [fmean(values) if values else 0.0 for values in changes]
    errors = [math.sqrt((pvariance(v) or 0.25) / len(v)) if v else 0.5 for v in changes]
    bases = dict.fromkeys(base, 0)
    return [
        Draw(bases, tuple(round(random.gauss(m, s) / SLOPE) for m, s in zip(means, errors, strict=True)), (0,) * edits)
        for _ in range(draws)
    ]


class Means(Race):
    """`race` with plain means: the screen's, and in the race of the paired differences (before its prior)."""

    __slots__ = ()

    async def _screen(self, pool: Pool, limit: int, name: str) -> Any:
        with patch.object(tried, "draw_effects", draw_means):
            return await Race._screen(self, pool, limit, name)

    def _fit_race(self, incumbent: Skill, candidate: Skill, gain: tuple[float, float]) -> Posterior:
        old, new = self._select_draws(incumbent.hash), self._select_draws(candidate.hash)
        differences = [score - old[draw] for draw, score in new.items()]
        noise = (pvariance(differences) or 0.25) / len(differences)
        precision = 1 / noise + 1 / gain[1] ** 2
        middle = (fmean(differences) / noise + gain[0] / gain[1] ** 2) / precision
        level, spread = fmean(old.values()), (standard_error(list(old.values())) or 0.5) ** 2
        covariance = ((1 / precision, 0.0), (0.0, spread))
        return Posterior(("gain", "level"), {"gain": middle, "level": level}, covariance, noise, spread)
