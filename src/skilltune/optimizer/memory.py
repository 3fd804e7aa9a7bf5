"""What the optimizer remembers between steps: state of the optimizer, never part of the skill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skilltune.edits import Edit

MAX_REJECTED = 24  # entries shown; the oldest go first


@dataclass(frozen=True, slots=True)
class Rejected:
    """An edit that was tried and not kept, and what the gate said of it."""

    edit: Edit
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Rejected edits, the optimizer's notes, the slow section that stands in the skill, the last learning rate."""

    rejected: tuple[Rejected, ...] = ()
    notes: str = ""
    slow: str = ""
    lr: int | None = None

    def remember(self, rejected: Sequence[Rejected], body: str) -> Memory:
        """Add what was tried and not kept. `body` is the incumbent's from now on: an earlier rejection whose anchor is
        no longer there has expired, because what was measured then says little of the text that stands there now."""
        text = _squeeze(body)
        new = {entry.edit.key: entry for entry in rejected}
        still = [
            entry
            for entry in self.rejected
            if entry.edit.key not in new
            and ((anchor := entry.edit.target or entry.edit.after) is None or _squeeze(anchor) in text)
        ]
        return replace(self, rejected=(*still, *new.values())[-MAX_REJECTED:])

    @property
    def protected(self) -> tuple[str, ...]:
        """Text that the edits of a step must not touch: the slow section has a road of its own."""
        return (self.slow,) if self.slow else ()

    def new_epoch(self) -> Memory:
        """The rejected-edit buffer spans one epoch."""
        return replace(self, rejected=())


def _squeeze(text: str) -> str:
    return " ".join(text.split())
