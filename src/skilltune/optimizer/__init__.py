"""The optimizer: turns scored rollouts into proposed edits. A new kind is one class with the members of `Optimizer`."""

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
    """An edit and the train samples that it answers (`support`, counted by us from citations that hold) of the `among`
    samples that the optimizer was shown (0: unknown)."""

    edit: Edit
    support: tuple[str, ...] = ()
    among: int = 0


def join(proposals: Iterable[Proposal]) -> list[Proposal]:
    """The same edit from several minibatches becomes one with their joint support; best supported first, stable."""
    joined: dict[str, Proposal] = {}
    for proposal in proposals:
        old = joined.get(proposal.edit.key)
        samples = dict.fromkeys((*old.support, *proposal.support) if old else proposal.support)
        among = proposal.among + (old.among if old else 0)
        joined[proposal.edit.key] = Proposal(old.edit if old else proposal.edit, tuple(samples), among)
    return sorted(joined.values(), key=lambda proposal: -len(proposal.support))


@dataclass(frozen=True, slots=True)
class Pair:
    """One train sample under the skill of the epoch's start and under the current one."""

    before: Rollout
    after: Rollout

    @property
    def kind(self) -> str:
        """improved, regressed, still passing, still failing; or unknown where a side has no score."""
        if self.before.score is None or self.after.score is None:
            return "unknown"
        change = self.after.score.value - self.before.score.value
        if change:
            return "improved" if change > 0 else "regressed"
        return "still passing" if self.after.score.hard else "still failing"


@runtime_checkable
class Optimizer(Protocol):
    """Proposes; never judges. It sees rollouts of train samples only.

    `propose` returns the edits of one step, best supported first: a patch of at most `limit` edits, or a pool to be
    measured. The rollouts come one by one in the order of the batch, so that it need not wait for the last of them,
    nor read them all.
    `learning_rate` names how many of the proposals a step applies under the autonomous schedule.
    `slow_update` returns the epoch's guidance as an edit, or None; `notes` the optimizer's own notes. These two are
    not asked, and the rollouts that they would compare are not paid for, where `looks_back` is False.
    Whoever derives from this class need not write more than `propose`.
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
