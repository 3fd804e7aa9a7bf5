"""An optimizer that records its answers, and an optimizer that repeats recorded answers.

The answers go into the journal in the form in which the loop uses them. A verdict can therefore be recomputed without
the optimizer's model, its prompts and the samples.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from skilltune.edits import Edit
from skilltune.errors import Stopped
from skilltune.journal.keys import digest
from skilltune.journal.run import Run
from skilltune.optimizer import Memory, Optimizer, Pair, Proposal, Step
from skilltune.rollout import Rollout
from skilltune.skill import Skill


@dataclass(slots=True)
class Recording:
    """Passes calls on to an optimizer and records its answers. Implements `Optimizer`."""

    optimizer: Optimizer
    run: Run
    looks_back: bool = field(init=False)

    def __post_init__(self) -> None:
        self.looks_back = self.optimizer.looks_back

    async def propose(
        self, skill: Skill, rollouts: AsyncIterable[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        proposals = await self.optimizer.propose(skill, rollouts, memory, step, limit)
        self.run.decide(_key("proposals", step.index), lambda: [_to_json(proposal) for proposal in proposals])
        return proposals

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        rate = await self.optimizer.learning_rate(skill, proposals, memory, step, most)
        self.run.decide(_key("learning rate", step.index), lambda: rate)
        return rate

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        edit = await self.optimizer.slow_update(skill, pairs, memory, step)
        self.run.decide(_key("slow update", step.index), lambda: edit and edit.to_json())
        return edit

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        return await self.optimizer.notes(skill, pairs, memory, step)


@dataclass(slots=True)
class Recorded:
    """Repeats recorded answers. Raises `Stopped` if an answer was not recorded. Implements `Optimizer`."""

    run: Run
    looks_back: bool

    async def propose(
        self, skill: Skill, rollouts: AsyncIterable[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        return [
            Proposal(Edit.from_json(data["edit"]), tuple(data["support"]), data["among"])
            for data in self._recall("proposals", step.index)
        ]

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        return self._recall("learning rate", step.index)

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        data = self._recall("slow update", step.index)
        return Edit.from_json(data) if data else None

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        return memory.notes  # read by the optimizer alone

    def _recall(self, what: str, step: int) -> Any:
        known = self.run.recall(_key(what, step))
        if known is None:
            raise Stopped(f"the journal holds no {what} of step {step}")
        return known[0]


def _key(what: str, step: int) -> str:
    return digest("optimizer said", what, step)


def _to_json(proposal: Proposal) -> dict[str, Any]:
    return {"edit": proposal.edit.to_json(), "support": list(proposal.support), "among": proposal.among}
