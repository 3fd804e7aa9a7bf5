"""Calibration: score the start skill twice on `select` (A/A), and simulate the chosen gate with the measured noise.

Two questions are answered: the rate at which this gate accepts an edit that does nothing, and the smallest gain that it
detects. The real gate judges simulated candidates; their success probabilities and their noise are those measured. Each
candidate is one edit without a screen, judged at the bar of a first accept. In a run, screened edits and edits after
the first accept are detected at smaller gains.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from statistics import fmean, pvariance
from typing import Any, cast

from skilltune.aio import run_all
from skilltune.edits import Edit
from skilltune.gate import Arena, build_gate, silent
from skilltune.journal.keys import rng
from skilltune.optimizer import Proposal
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.forward import repeats_itself
from skilltune.rollouts.roller import Roller
from skilltune.rollouts.scores import Scores, split_map
from skilltune.samples import Sample
from skilltune.skill import Skill

NULL_SIMULATIONS = 200  # simulated null edits
POWER = 0.8
SIMULATIONS = 60  # simulated candidates per gain
HALVINGS = 5  # steps of the bisection for the smallest detectable gain
KEY = "calibration"
INPUT, CHANGE = Skill("Do the task.\n"), Proposal(Edit("add", text="A line that may or may not help."))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The noise of `n` samples that were scored twice, and the behaviour of the gate `policy` under it.

    `differing`: share of samples whose two scores differ. `sd`: standard deviation of a repeat, in scores; it is
    assumed if no score differed although answers did. `same`: True if all answers and scores repeated.
    `false_accept`: rate at which the gate accepts an edit that does nothing. `detectable`: smallest true gain that it
    accepts with probability `POWER`; None if it does not reach that at any gain. Both hold for an edit without a
    screen, before the first accept.
    """

    n: int
    differing: float
    sd: float
    deterministic: bool
    policy: str
    false_accept: float
    detectable: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"simulations": NULL_SIMULATIONS, "reason": str(self)}

    def __str__(self) -> str:
        seen = f"4 times out of 5 if it gains {100 * (self.detectable or 0):.0f} points"
        if self.detectable is None:
            seen = "less than 4 times out of 5 whatever it gains"
        sd = f"sd {self.sd:.2f}" if self.differing else f"sd assumed, not measured: {self.sd:.2f}"
        repeat = f"{100 * self.differing:.0f} % of {self.n} select samples score differently when repeated ({sd})"
        if self.deterministic:
            repeat = f"a repeat of {self.n} select samples gave the same answers, so no sample is attempted twice"
        return (
            f"{repeat}; a change that no screen has measured, while nothing was accepted yet, is accepted by "
            f"{self.policy} in {100 * self.false_accept:.1f} % of cases if it does nothing, and {seen}"
        )


async def calibrate(arena: Arena, skill: Skill) -> Calibration | None:
    """Score the skill twice on `select`, store the noise in the arena, simulate the gate, and record the result.

    None if no sample was scored twice. The journal keeps the simulation's result, so it runs once per run.
    """
    draws = [arena.roll(skill, arena.select, attempt=attempt, purpose=KEY) for attempt in (0, 1)]
    pairs = [(a, b) for a, b in zip(*await run_all(draws), strict=True) if a.score and b.score]
    if not pairs:
        return None
    scores = [(arena.metric(a.score), arena.metric(b.score)) for a, b in pairs]
    same = repeats_itself([(a.answer, b.answer) for a, b in pairs]) and all(a == b for a, b in scores)
    noise = sum((a - b) ** 2 for a, b in scores) / (2 * len(scores))
    if not same:
        noise = noise or 1 / (2 * len(scores) + 4)  # no score differed: assume that one in n + 2 pairs would
    arena.noise = noise
    known = arena.roll.run.recall(KEY)
    figures = known[0] if known else await _figures(arena, scores)
    arena.roll.run.decide(KEY, lambda: figures)
    differing = sum(a != b for a, b in scores) / len(scores)
    found = Calibration(len(scores), differing, math.sqrt(noise), same, arena.cfg.policy, **figures)
    arena.roll.run.record(KEY, **found.to_json())
    return found


async def _figures(arena: Arena, scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Simulate the rate of false accepts and the smallest gain that is accepted with probability `POWER`."""
    mean = fmean(value for pair in scores for value in pair)

    async def accepted(gain: float, runs: int) -> float:
        """The share of accepted candidates among `runs` simulated ones with this true gain."""
        hits = 0
        for number in range(runs):
            hits += await _trial(arena, scores, gain / (1 - mean) if gain else 0.0, rng(arena.seed, KEY, number))
            await asyncio.sleep(0)  # lets an interrupt cancel the simulation
        return hits / runs

    null, low, high = await accepted(0.0, NULL_SIMULATIONS), 0.0, 1.0 - mean
    if high <= 0 or await accepted(high, SIMULATIONS) < POWER:
        return {"false_accept": null, "detectable": None}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if await accepted(middle, SIMULATIONS) >= POWER else (middle, high)
    return {"false_accept": null, "detectable": high}


async def _trial(arena: Arena, scores: Sequence[tuple[float, float]], share: float, draw: Random) -> bool:
    """True if the gate accepts a simulated candidate that solves this share of the input's failures."""
    samples = [Sample(id=f"s{i:06d}", input="") for i in range(len(scores))]
    before = _solving(scores, draw)
    after = [p + share * (1 - p) for p in before]
    noise = None if _binary(scores) else math.sqrt(arena.noise or 0.0)

    def score(skill: Skill, index: int) -> float:
        p = (before if skill.hash == INPUT.hash else after)[index]
        if noise is None:
            return float(draw.random() < p)
        return min(1.0, max(0.0, draw.gauss(p, noise)))

    roll = cast(Roller, Simulated(score, samples, arena.metric))
    place = replace(arena, roll=roll, train=(), select=samples, upcoming=(), notify=silent)
    gate = build_gate(place)
    await gate.baseline(INPUT)
    return (await gate.judge(INPUT, [CHANGE], limit=1, name=KEY)).accepted


def _solving(scores: Sequence[tuple[float, float]], draw: Random) -> list[float]:
    """A success probability for each sample, given its two scores; the mean score if scores are fractions.

    For binary scores it is drawn from the posterior of a beta-binomial model with the pairs' intraclass correlation.
    """
    if not _binary(scores):
        return [fmean(pair) for pair in scores]
    values = [value for pair in scores for value in pair]
    mean, differing = fmean(values), fmean((a - b) ** 2 for a, b in scores)
    if not differing:
        return [fmean(pair) for pair in scores]
    agreement = max(1 - differing / (2 * pvariance(values)), 0.05)
    weight = (1 - agreement) / agreement
    return [draw.betavariate(mean * weight + (a + b), (1 - mean) * weight + (2 - a - b)) for a, b in scores]


def _binary(scores: Sequence[tuple[float, float]]) -> bool:
    return all(value in (0.0, 1.0) for pair in scores for value in pair)


class Simulated:
    """Replaces the roller in a simulated gate; `score` draws every score."""

    def __init__(
        self, score: Callable[[Skill, int], float], select: Sequence[Sample], metric: Callable[[Score], float]
    ) -> None:
        self.score = score
        self.scores = Scores(split_map(select=select), metric)

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = ""
    ) -> list[Rollout]:
        rolled = []
        for sample in samples:
            key = skill.hash, sample.id, attempt
            if key not in self.scores.held:
                value = self.score(skill, int(sample.id[1:]))
                self.scores.add(Rollout(sample.id, skill.hash, attempt, Trajectory(""), Score(value)))
            rolled.append(self.scores.held[key])
        return rolled

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        """Does nothing: simulated rollouts are free."""
