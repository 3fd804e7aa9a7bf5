"""The factorial screen: which edits of the pool help, measured on train samples a few edits at a time.

Every rollout uses the incumbent plus a random subset of the pool, so it informs every edit of its subset. An edit says
which samples it answers (its support), so an effect is split in two: on the samples that it claims, and on all others.
That is what lets a dozen rollouts find a rule that helps one task in twelve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skilltune.edits import apply, conflict
from skilltune.gate.crossed import Observation, Posterior, fit
from skilltune.optimizer import Proposal
from skilltune.run import rng
from skilltune.skill import Skill

PASSING_SHARE = 0.25  # of a text's rollouts go to samples that the incumbent solves: that is where harm shows
LEVEL = (0.5, 1.0)  # prior mean and sd of a version's level
GENERAL = (0.0, 0.10)  # of an edit's effect on samples that it does not claim
CLAIMED = (0.0, 0.40)  # of its additional effect on samples that it claims
DEVIATION = (0.0, 0.10)  # of an assembled candidate from the sum of its parts


@dataclass(frozen=True, slots=True)
class Pool:
    """The edits that may be applied to an incumbent now, best supported first, and which pairs exclude each other."""

    skill: Skill
    proposals: tuple[Proposal, ...]
    conflicts: frozenset[tuple[int, int]]
    protect: tuple[str, ...]
    max_tokens: int

    @classmethod
    def of(
        cls, skill: Skill, proposals: Sequence[Proposal], most: int, protect: Sequence[str], max_tokens: int
    ) -> Pool:
        """The first `most` proposals that can be applied alone."""
        usable = [
            proposal
            for proposal in proposals
            if apply(skill, [proposal.edit], protect=protect, max_tokens=max_tokens).changed
        ][:most]
        pairs = [(a, b) for b in range(len(usable)) for a in range(b)]
        excluded = {(a, b) for a, b in pairs if conflict(skill, usable[a].edit, usable[b].edit, protect)}
        return cls(skill, tuple(usable), frozenset(excluded), tuple(protect), max_tokens)

    def fits(self, chosen: Sequence[int], another: int) -> bool:
        return all((min(i, another), max(i, another)) not in self.conflicts for i in chosen)

    def text(self, chosen: Sequence[int]) -> Skill:
        """The incumbent with the chosen edits, applied in pool order."""
        edits = [self.proposals[i].edit for i in sorted(chosen)]
        return apply(self.skill, edits, protect=self.protect, max_tokens=self.max_tokens).skill


def subsets(pool: Pool, texts: int, size: int, seed: int, name: str) -> list[tuple[int, ...]]:
    """At most `texts` distinct conflict-free subsets of about `size` edits, each edit in nearly equally many."""
    draw = rng(seed, "screen", name)
    used = [0] * len(pool.proposals)
    chosen: dict[tuple[int, ...], None] = {}
    for _ in range(4 * texts):
        if len(chosen) == texts:
            break
        order = sorted(range(len(used)), key=lambda i: (used[i], draw.random()))
        subset: list[int] = []
        for i in order:
            if len(subset) < size and pool.fits(subset, i):
                subset.append(i)
        key = tuple(sorted(subset))
        if key not in chosen:
            chosen[key] = None
            for i in key:
                used[i] += 1
    return list(chosen)


def assign(
    pool: Pool, design: Sequence[tuple[int, ...]], known: Mapping[str, float], rollouts: int, seed: int, name: str
) -> list[list[str]]:
    """For each subset the train samples it is run on: failures that its edits claim in turn, and some passing ones.

    `known` maps the samples to choose from to the incumbent's score.
    """
    draw = rng(seed, "screen samples", name)
    passing = sorted(sample for sample, score in known.items() if score >= 1.0)
    failing = sorted(sample for sample, score in known.items() if score < 1.0)
    draw.shuffle(passing)
    draw.shuffle(failing)
    each = max(1, round(rollouts / len(design))) if design else 0
    guards = min(len(passing), max(1, round(PASSING_SHARE * each))) if passing else 0
    uses = dict.fromkeys(known, 0)
    plan = []
    for subset in design:
        chosen: list[str] = []
        claims = [[s for s in pool.proposals[i].support if known.get(s, 1.0) < 1.0] for i in subset]
        draw.shuffle(claims)
        for candidates in [*claims, *claims, failing] * each:
            free = [sample for sample in candidates if sample not in chosen]
            if len(chosen) < each - guards and free:
                chosen.append(min(free, key=lambda sample: uses[sample]))
                uses[chosen[-1]] += 1
        for sample in sorted(passing, key=lambda sample: uses[sample])[: each - len(chosen)]:
            chosen.append(sample)
            uses[sample] += 1
        plan.append(chosen)
    return plan


def edit_columns(pool: Pool, chosen: Sequence[int], sample: str | None, share: Mapping[int, float]) -> dict[str, float]:
    """The model's columns of a version that holds the chosen edits: on a train sample the claims are known, on any
    other (None) an edit claims the share of samples that it claimed on train."""
    columns: dict[str, float] = {}
    for i in chosen:
        columns[f"edit {i}"] = 1.0
        claim = share[i] if sample is None else float(sample in pool.proposals[i].support)
        if claim:
            columns[f"claim {i}"] = claim
    return columns


def fit_edits(pool: Pool, observations: Sequence[Observation], before: Mapping[str, tuple[float, float]]) -> Posterior:
    """Posterior of every edit's two effects; `before` holds prior effects by edit key from earlier screens."""
    prior = {"level": LEVEL, "select level": LEVEL}
    for i, proposal in enumerate(pool.proposals):
        prior[f"edit {i}"] = before.get(f"{proposal.edit.key} edit", GENERAL)
        prior[f"claim {i}"] = before.get(f"{proposal.edit.key} claim", CLAIMED)
    for observation in observations:
        prior.update({name: DEVIATION for name in observation.columns if name not in prior})
    return fit(observations, prior)
