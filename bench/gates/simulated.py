"""A world of edits without a model: a skill is the set of rules that it holds, a score is a toss of a coin.

P(solved) = σ(difficulty of the sample + effects of the rules + what their combination adds). The last is one draw for
each set of rules (the sum of many small interactions; drawn for each pair of rules instead, it would outgrow the
effects with the skill's length). Effects are the same for all samples, so which samples an edit claims to answer
carries no information. The gate under test is the real one: it sees a roller, samples and edits as in training, and
pays for each (skill, sample, attempt) once.

`FamilyEdits` is the same for a family of `tests/worlds`: its optimizer proposes, its truth decides, and no server runs.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from skilltune.edits import Edit
from skilltune.errors import Stopped
from skilltune.journal.keys import rng
from skilltune.optimizer import Memory, Proposal, join
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.scores import Scores
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import Verdict
from world import Prompt, Ticket, uniform
from worlds import Family, FamilyWorld

SAMPLE_SD = 2.0  # of sample difficulties on the logit, mean 0: the empty skill solves half
TRAIN, TEST = 160, 80  # samples; an epoch is four batches
POOL, BATCH = 12, 40
CLAIMS = 2  # samples that an edit names, drawn from the failures of its batch
START = Skill("# Rules\n\n")
MINIBATCH = 8  # failures that the optimizer of a family is shown at once


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


class Edits(Protocol):
    """A world of edits, as the simulation needs it. `u` is uniform in [0, 1); scores and truths are in [0, 1]."""

    seed: int
    start: Skill

    def split(self, name: str, size: int) -> list[Sample]: ...
    def propose(self, step: int, failing: Sequence[str], skill: Skill) -> list[Proposal]: ...
    def remember(self, verdict: Verdict) -> None: ...
    def score(self, skill: Skill, sample: Sample, u: float) -> float: ...
    def truth(self, skill: Skill) -> float: ...
    def lines(self, skill: Skill) -> list[str]: ...
    def hurts(self, line: str) -> bool: ...


@dataclass(slots=True)
class World:
    """One draw of samples and of everything that an optimizer will ever propose."""

    prior: Prior
    interactions: float  # sd of a combination's deviation from the sum of its effects, on the logit
    select_size: int
    seed: int
    effects: dict[int, float] = field(default_factory=dict)
    difficulty: dict[str, float] = field(default_factory=dict)
    start: Skill = START
    _levels: dict[str, float] = field(default_factory=dict)

    def split(self, name: str, size: int) -> list[Sample]:
        draw = rng(self.seed, "samples", name)
        samples = [Sample(id=f"{name}{i:03d}", input="?") for i in range(size)]
        self.difficulty |= {sample.id: draw.gauss(0, SAMPLE_SD) for sample in samples}
        return samples

    def propose(self, step: int, failing: Sequence[str], skill: Skill = START) -> list[Proposal]:
        """The edits of a step, the same for every policy; only what they claim depends on the batch."""
        draw, claim = rng(self.seed, "edits", step), rng(self.seed, "claims", step)
        proposals = []
        for number in range(step * POOL, (step + 1) * POOL):
            self.effects[number] = self.prior.draw(draw)
            support = tuple(claim.sample(failing, min(CLAIMS, len(failing))))
            proposals.append(Proposal(Edit("add", text=f"- rule {number}"), support, among=BATCH))
        return proposals

    def remember(self, verdict: Verdict) -> None:
        """No edit is proposed twice here, so there is nothing to remember."""

    def score(self, skill: Skill, sample: Sample, u: float) -> float:
        return float(u < 1 / (1 + math.exp(-self.level(skill) - self.difficulty[sample.id])))

    def lines(self, skill: Skill) -> list[str]:
        return [f"- rule {rule}" for rule in rules(skill)]

    def hurts(self, line: str) -> bool:
        return self.effects[int(line.removeprefix("- rule "))] < 0

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


class FamilyEdits:
    """A family of `tests/worlds` without its server: its optimizer, its truth and its noise."""

    def __init__(self, family: Family, select_size: int, seed: int) -> None:
        self.world = FamilyWorld(replace(family, train=TRAIN, select=select_size, test=TEST), seed)
        self.seed, self.start, self.memory = seed, Skill(self.world.start or "# Rules\n\n"), Memory()
        self._truths: dict[str, float] = {}

    def split(self, name: str, size: int) -> list[Sample]:
        samples = [Sample.model_validate(data) for data in self.world.samples() if data["split"] == name]
        assert len(samples) == size
        return samples

    def propose(self, step: int, failing: Sequence[str], skill: Skill) -> list[Proposal]:
        """The edits of all minibatches of failures, each edit once, best supported first, as in training."""
        tickets = self.world.tickets
        rejected = "\n".join(entry.edit.text or entry.edit.target or "" for entry in self.memory.rejected)
        head = f"<skill>\n{skill.body}\n</skill>\n<edit_budget>4</edit_budget>\n<rejected>{rejected}</rejected>\n"
        proposals = []
        for start in range(0, len(failing), MINIBATCH):
            shown = [tickets[name] for name in failing[start : start + MINIBATCH]]
            body = "\n".join(f'<trajectory sample="{t.id}" score="0.00">\n{t.input}\n</trajectory>' for t in shown)
            answer = self.world.optimizer.reflect(
                Prompt.read(head + body), lambda *what, at=(step, start): uniform(self.seed, "idea", *at, *what)
            )
            for data in answer["edits"]:
                cited = [c["sample"] for c in data["evidence"] if c["quote"] in tickets[c["sample"]].input]
                if cited:  # training refuses an edit without a citation that holds
                    proposals.append(Proposal(Edit.from_json(data), tuple(dict.fromkeys(cited)), among=BATCH))
        return join(proposals)

    def remember(self, verdict: Verdict) -> None:
        self.memory = self.memory.remember(verdict.rejected, verdict.skill.body, verdict.candidate)

    def score(self, skill: Skill, sample: Sample, u: float) -> float:
        ticket = self.world.tickets[sample.id]
        value = self.world.value(skill.body, ticket)
        return 1 - value if u < self.world.flip_rate(ticket, value >= 0.5) else value

    def truth(self, skill: Skill) -> float:
        """The expected score on the test split, noise included, because the gate and the certificate see no other."""
        if skill.hash not in self._truths:
            tickets = [ticket for ticket in self.world.tickets.values() if ticket.split == "test"]
            self._truths[skill.hash] = math.fsum(self._expected(skill, ticket) for ticket in tickets) / len(tickets)
        return self._truths[skill.hash]

    def _expected(self, skill: Skill, ticket: Ticket) -> float:
        value = self.world.value(skill.body, ticket)
        flips = self.world.flip_rate(ticket, value >= 0.5)
        return value * (1 - flips) + (1 - value) * flips

    def lines(self, skill: Skill) -> list[str]:
        return [line for line in skill.text.splitlines() if self.world.knows(line)]

    def hurts(self, line: str) -> bool:
        return self.world.harms(line)


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

    world: Edits
    budget: int
    scores: Scores
    spent: int = 0

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = "train"
    ) -> list[Rollout]:
        fresh = [sample for sample in samples if (skill.hash, sample.id, attempt) not in self.scores.held]
        if purpose != "test":
            self.pay(len(fresh))
        for sample in fresh:
            score = Score(self.world.score(skill, sample, self._toss(skill.hash, sample.id, attempt)))
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
