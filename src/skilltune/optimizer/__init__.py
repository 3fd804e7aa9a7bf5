"""The optimizer turns scored rollouts into proposed edits. A new kind is one class with the members of `Optimizer`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from skilltune.edits import Edit
from skilltune.optimizer.memory import Memory
from skilltune.optimizer.schedule import Step
from skilltune.rollout import Rollout
from skilltune.skill import Skill


@dataclass(frozen=True, slots=True)
class Proposal:
    """An edit with its evidence.

    `support` names the train samples that the edit cites correctly; skilltune checks the citations, the optimizer does
    not. `among` is the number of samples that the optimizer was shown; 0 means unknown.
    """

    edit: Edit
    support: tuple[str, ...] = ()
    among: int = 0


def join(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Join equal edits into one with the union of their support. Best supported first; ties keep their order."""
    joined: dict[str, Proposal] = {}
    for proposal in proposals:
        old = joined.get(proposal.edit.key)
        samples = dict.fromkeys((*old.support, *proposal.support) if old else proposal.support)
        among = proposal.among + (old.among if old else 0)
        joined[proposal.edit.key] = Proposal(old.edit if old else proposal.edit, tuple(samples), among)
    return sorted(joined.values(), key=lambda proposal: -len(proposal.support))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rollouts of one train sample: under the skill at the epoch's start, and under the current skill."""

    before: Rollout
    after: Rollout

    @property
    def kind(self) -> str:
        """improved, regressed, still passing or still failing; unknown if a side has no score."""
        if self.before.score is None or self.after.score is None:
            return "unknown"
        change = self.after.score.value - self.before.score.value
        if change:
            return "improved" if change > 0 else "regressed"
        return "still passing" if self.after.score.hard else "still failing"


@runtime_checkable
class Optimizer(Protocol):
    """Proposes edits and never judges them. It sees rollouts of train samples only.

    `propose` returns the edits of one step, best supported first: either a patch of at most `limit` edits, or a larger
    pool that the gate measures. The rollouts arrive in the order of the batch. `propose` may use the first ones before
    the last are done, and it may stop reading early.
    `learning_rate` returns the number of proposals that a step applies under the autonomous schedule, at most `most`.
    `slow_update` returns the epoch's guidance as an edit, or None.
    `notes` returns the optimizer's own notes.
    If `looks_back` is False, `slow_update` and `notes` are not called, and no rollouts are paid for them.
    A class that derives from this one must define `propose` only.
    """

    looks_back: bool = False

    async def propose(
        self, skill: Skill, rollouts: AsyncIterable[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]: ...

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        return most

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        return None

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        return memory.notes


__all__ = ["Memory", "Optimizer", "Pair", "Proposal", "Step", "join"]
