"""Calibration: the start skill twice on `select` (A/A), and what its noise means for the gate that was chosen.

How often would this gate accept an edit that does nothing? What gain would it see? The gate itself is asked: it judges
simulated candidates whose samples are solved with the probabilities, and repeat with the noise, that were measured.
Each is one edit that no screen has measured, judged under the bar of a first accept; what a run screens, and what comes
after its first accept, is found with smaller gains.
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
from skilltune.gate import Arena, build_gate
from skilltune.journal.keys import rng
from skilltune.optimizer import Proposal
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.forward import repeats_itself
from skilltune.rollouts.roller import Roller
from skilltune.samples import Sample
from skilltune.skill import Skill

RUNS = 200  # simulated null edits
POWER = 0.8
TRIES = 60  # simulated candidates for each gain that is tried
HALVINGS = 5  # of the range in which the smallest detectable gain lies
KEY = "calibration"
INPUT, CHANGE = Skill("Do the task.\n"), Proposal(Edit("add", text="A line that may or may not help."))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `n` samples showed that were scored twice: the share whose score differs, the standard deviation of a repeat
    in scores (assumed if no score differed, but the target may not be deterministic), whether it is deterministic; and
    of the gate `policy`, for an edit that no screen has measured, while nothing was accepted yet: how often it accepts
    one that does nothing, and the smallest true gain that it accepts 4 times out of 5 (None: no gain at all)."""

    n: int
    differing: float
    sd: float
    deterministic: bool
    policy: str
    false_accept: float
    detectable: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"simulations": RUNS, "reason": str(self)}

    def __str__(self) -> str:
        seen = f"4 times out of 5 if it gains {100 * (self.detectable or 0):.0f} points"
        if self.detectable is None:
            seen = "less than 4 times out of 5 whatever it gains"
        sd = f"sd {self.sd:.2f}" if self.differing else f"sd assumed, not measured: {self.sd:.2f}"
        repeat = f"{100 * self.differing:.0f} % of {self.n} select samples score differently when repeated ({sd})"
        if self.deterministic:
            repeat = f"a repeat of {self.n} select samples gave the same answers: no draw of a sample is paid for twice"
        return (
            f"{repeat}; a change that no screen has measured, while nothing was accepted yet, is accepted by "
            f"{self.policy} in {100 * self.false_accept:.1f} % of cases if it does nothing, and {seen}"
        )


async def calibrate(arena: Arena, skill: Skill) -> Calibration | None:
    """Roll the skill twice on `select`, tell the arena the noise, and ask the gate. None where nothing was scored
    twice. The simulation is made once per run."""
    draws = [arena.roll(skill, arena.select, attempt=attempt, purpose=KEY) for attempt in (0, 1)]
    pairs = [(a, b) for a, b in zip(*await run_all(draws), strict=True) if a.score and b.score]
    if not pairs:
        return None
    scores = [(arena.metric(a.score), arena.metric(b.score)) for a, b in pairs]
    same = repeats_itself([(a.answer, b.answer) for a, b in pairs]) and all(a == b for a, b in scores)
    noise = sum((a - b) ** 2 for a, b in scores) / (2 * len(scores))
    if not same:
        noise = noise or 1 / (2 * len(scores) + 4)  # no score differed: as if the next two were to differ
    arena.noise = noise
    known = arena.roll.run.recall(KEY)
    figures = known[0] if known else await _figures(arena, scores)
    arena.roll.run.decide(KEY, lambda: figures)
    differing = sum(a != b for a, b in scores) / len(scores)
    return Calibration(len(scores), differing, math.sqrt(noise), same, arena.cfg.policy, **figures)


async def _figures(arena: Arena, scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The rate of false accepts and the smallest gain that is seen with `POWER`, by simulation."""
    mean = fmean(value for pair in scores for value in pair)

    async def accepted(gain: float, runs: int) -> float:
        """The share of simulated candidates with that true gain that the gate accepts."""
        hits = 0
        for number in range(runs):
            hits += await _trial(arena, scores, gain / (1 - mean) if gain else 0.0, rng(arena.seed, KEY, number))
            await asyncio.sleep(0)  # so that an interrupt is heard
        return hits / runs

    null, low, high = await accepted(0.0, RUNS), 0.0, 1.0 - mean
    if high <= 0 or await accepted(high, TRIES) < POWER:
        return {"false_accept": null, "detectable": None}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if await accepted(middle, TRIES) >= POWER else (middle, high)
    return {"false_accept": null, "detectable": high}


async def _trial(arena: Arena, scores: Sequence[tuple[float, float]], share: float, draw: Random) -> bool:
    """Does the gate accept a candidate that solves this share of what the input does not?"""
    samples = [Sample(id=f"s{i:06d}", input="") for i in range(len(scores))]
    before = _solving(scores, draw)
    after = [p + share * (1 - p) for p in before]
    noise = None if _binary(scores) else math.sqrt(arena.noise or 0.0)

    def score(skill: Skill, index: int) -> float:
        p = (before if skill.hash == INPUT.hash else after)[index]
        if noise is None:
            return float(draw.random() < p)
        return min(1.0, max(0.0, draw.gauss(p, noise)))

    place = replace(arena, roll=cast(Roller, Simulated(score)), train=(), select=samples, upcoming=())
    gate = build_gate(place)
    await gate.baseline(INPUT)
    return (await gate.judge(INPUT, [CHANGE], limit=1, name=KEY)).accepted


def _solving(scores: Sequence[tuple[float, float]], draw: Random) -> list[float]:
    """A probability for each sample, or a mean score where scores are fractions, drawn from what two scores leave open.

    Binary scores: the posterior of a beta-binomial model whose intraclass correlation is that of the pairs.
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
    """Stands for the roller of a gate under test: every score is drawn."""

    def __init__(self, score: Callable[[Skill, int], float]) -> None:
        self.score = score
        self.seen: dict[tuple[str, str, int], Rollout] = {}

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = ""
    ) -> list[Rollout]:
        rolled = []
        for sample in samples:
            key = skill.hash, sample.id, attempt
            if key not in self.seen:
                value = self.score(skill, int(sample.id[1:]))
                self.seen[key] = Rollout(sample.id, skill.hash, attempt, Trajectory(""), Score(value))
            rolled.append(self.seen[key])
        return rolled

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        """Nothing is made ahead of its need."""
