"""A world of edits without a model: a skill is the set of rules that it holds, a score is a toss of a coin.

P(solved) = σ(difficulty of the sample + effects of the rules + what their combination adds). The last is one draw for
each set of rules (the sum of many small interactions; drawn for each pair of rules instead, it would outgrow the
effects with the skill's length). Effects are the same for all samples, so which samples an edit claims to answer
carries no information. The gate under test is the real one: it sees a roller, samples and edits as in training, and
pays for each (skill, sample, attempt) once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from operator import itemgetter
from random import Random
from typing import Any

from skilltune.edits import Edit
from skilltune.errors import Stopped
from skilltune.journal.keys import rng
from skilltune.optimizer import Proposal
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.scores import Scores
from skilltune.samples import Sample
from skilltune.skill import Skill

SAMPLE_SD = 2.0  # of sample difficulties on the logit, mean 0: the empty skill solves half
TRAIN, TEST = 160, 80  # samples; an epoch is four batches
POOL, BATCH = 12, 40
CLAIMS = 2  # samples that an edit names, drawn from the failures of its batch
START = Skill("# Rules\n\n")


@dataclass(frozen=True, slots=True)
class Prior:
    """Share and range of the effects (on the logit) of right and of harmful edits; the rest have none."""

    good: float
    helps: tuple[float, float]
    harmful: float
    hurts: tuple[float, float] = (-0.5, -0.05)

    def draw(self, random: Random) -> float:
        kind = random.random()
        if kind < self.good:
            return random.uniform(*self.helps)
        return random.uniform(*self.hurts) if kind < self.good + self.harmful else 0.0


PRIORS = {
    "base": Prior(0.15, (0.15, 0.5), 0.25),
    "nulls": Prior(0.08, (0.15, 0.5), 0.07),
    "harm": Prior(0.15, (0.15, 0.5), 0.45),
    "large": Prior(0.05, (0.6, 1.5), 0.25),
    "small": Prior(0.30, (0.05, 0.2), 0.25, (-0.2, -0.05)),
    "useless": Prior(0.0, (0.0, 0.0), 0.0),
    "harmful": Prior(0.0, (0.0, 0.0), 1.0),
}
NEVER_RIGHT = ("useless", "harmful")  # these have no interactions, by which a useless edit could become right


@dataclass(slots=True)
class World:
    """One draw of samples and of everything that an optimizer will ever propose."""

    prior: Prior
    interactions: float  # sd of a combination's deviation from the sum of its effects, on the logit
    select_size: int
    seed: int
    effects: dict[int, float] = field(default_factory=dict)
    difficulty: dict[str, float] = field(default_factory=dict)
    _levels: dict[str, float] = field(default_factory=dict)

    def split(self, name: str, size: int) -> list[Sample]:
        draw = rng(self.seed, "samples", name)
        samples = [Sample(id=f"{name}{i:03d}", input="?") for i in range(size)]
        self.difficulty |= {sample.id: draw.gauss(0, SAMPLE_SD) for sample in samples}
        return samples

    def propose(self, step: int, failing: Sequence[str]) -> list[Proposal]:
        """The edits of a step, the same for every policy; only what they claim depends on the batch."""
        draw, claim = rng(self.seed, "edits", step), rng(self.seed, "claims", step)
        proposals = []
        for number in range(step * POOL, (step + 1) * POOL):
            self.effects[number] = self.prior.draw(draw)
            support = tuple(claim.sample(failing, min(CLAIMS, len(failing))))
            proposals.append(Proposal(Edit("add", text=f"- rule {number}"), support, among=BATCH))
        return proposals

    def level(self, skill: Skill) -> float:
        """The skill's effect on the logit."""
        if skill.hash not in self._levels:
            held = rules(skill)
            own = Random(f"{self.seed} {held}").gauss(0, self.interactions) if held else 0.0
            self._levels[skill.hash] = math.fsum(self.effects[rule] for rule in held) + own
        return self._levels[skill.hash]

    def truth(self, skill: Skill) -> float:
        """Expected score over all samples that could be drawn, without noise."""
        return expected(self.level(skill))


def rules(skill: Skill) -> list[int]:
    return sorted(int(number) for number in re.findall(r"^- rule (\d+)$", skill.text, re.MULTILINE))


@cache
def expected(level: float) -> float:
    """E[σ(level + N(0, SAMPLE_SD²))], by the trapezoid rule."""
    grid = [x / 16 for x in range(-128, 129)]
    density = 1 / 16 / math.sqrt(2 * math.pi)
    return density * sum(math.exp(-x * x / 2) / (1 + math.exp(-level - SAMPLE_SD * x)) for x in grid)


class Seen(dict[tuple[str, str, int], Rollout]):
    """Rollouts by (skill, sample, attempt). `items` is nearly in order, so that the gate's sorting costs little."""

    def __init__(self) -> None:
        super().__init__()
        self._items: list[tuple[tuple[str, str, int], Rollout]] = []

    def __setitem__(self, key: tuple[str, str, int], rollout: Rollout) -> None:
        super().__setitem__(key, rollout)
        self._items.append((key, rollout))

    def items(self) -> Any:
        self._items.sort(key=itemgetter(0))
        return self._items


@dataclass(slots=True)
class Rolls:
    """The roller that a gate is given. Raises `Stopped` before a call that the budget does not hold; test is free."""

    world: World
    budget: int
    scores: Scores
    spent: int = 0

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = "train"
    ) -> list[Rollout]:
        fresh = [sample for sample in samples if (skill.hash, sample.id, attempt) not in self.scores.held]
        if purpose != "test":
            self.pay(len(fresh))
        level = self.world.level(skill)
        for sample in fresh:
            p = 1 / (1 + math.exp(-level - self.world.difficulty[sample.id]))
            score = Score(float(self._toss(skill.hash, sample.id, attempt) < p))
            self.scores.add(Rollout(sample.id, skill.hash, attempt, Trajectory(""), score))
        return [self.scores.held[skill.hash, sample.id, attempt] for sample in samples]

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        """Nothing is waited for here, so nothing is made ahead."""

    def pay(self, rollouts: int) -> None:
        if self.spent + rollouts > self.budget:
            raise Stopped("the rollouts are used up")
        self.spent += rollouts

    def _toss(self, *what: object) -> float:
        key = f"{self.world.seed} {what}".encode()
        return int.from_bytes(blake2b(key, digest_size=7).digest()) / 2**56
