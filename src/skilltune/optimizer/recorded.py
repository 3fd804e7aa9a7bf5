"""Record an optimizer's answers in the journal, and replay them.

A verdict can then be recomputed without the optimizer's model, its prompts and the samples. Each answer is recorded
once, in the form that the loop uses.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skilltune.edits import Citation, Edit
from skilltune.errors import Stopped
from skilltune.journal.keys import digest
from skilltune.journal.run import Run
from skilltune.optimizer import Memory, Optimizer, Pair, Proposal, Step
from skilltune.rollout import Rollout
from skilltune.skill import Skill


@dataclass(slots=True)
class Recording:
    """Implements `Optimizer` by another one, and records its answers in the journal."""

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
    """Implements `Optimizer` from recorded answers. Raises `Stopped` for an answer that was not recorded."""

    run: Run
    looks_back: bool

    async def propose(
        self, skill: Skill, rollouts: AsyncIterable[Rollout], memory: Memory, step: Step, limit: int
    ) -> list[Proposal]:
        return [
            Proposal(edit_of(data["edit"]), tuple(data["support"]), data["among"])
            for data in self._recall("proposals", step.index)
        ]

    async def learning_rate(
        self, skill: Skill, proposals: Sequence[Proposal], memory: Memory, step: Step, most: int
    ) -> int:
        return self._recall("learning rate", step.index)

    async def slow_update(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> Edit | None:
        data = self._recall("slow update", step.index)
        return edit_of(data) if data else None

    async def notes(self, skill: Skill, pairs: Sequence[Pair], memory: Memory, step: Step) -> str:
        return memory.notes  # only the optimizer reads them, and none is asked here

    def _recall(self, what: str, step: int) -> Any:
        known = self.run.recall(_key(what, step))
        if known is None:
            raise Stopped(f"the journal holds no {what} of step {step}")
        return known[0]


def _key(what: str, step: int) -> str:
    return digest("optimizer said", what, step)


def _to_json(proposal: Proposal) -> dict[str, Any]:
    return {"edit": proposal.edit.to_json(), "support": list(proposal.support), "among": proposal.among}


def edit_of(data: Mapping[str, Any]) -> Edit:
    """The inverse of `Edit.to_json`; unknown keys are ignored."""
    evidence = tuple(Citation(item["sample"], item["quote"]) for item in data["evidence"])
    return Edit(data["op"], data["after"], data["target"], data["text"], data["why"], evidence)
