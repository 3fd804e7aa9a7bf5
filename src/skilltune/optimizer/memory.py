"""What the optimizer remembers between steps: state of the optimizer, never part of the skill."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from skilltune.edits import Edit, apply
from skilltune.skill import Skill
from skilltune.verdict import Rejected

MAX_REJECTED = 24  # entries shown; the oldest go first
MAX_PATTERNS = 12  # entries shown; those of the fewest samples go first


@dataclass(frozen=True, slots=True)
class Pattern:
    """What some failures have in common, in the optimizer's words, and the train samples that failed so."""

    text: str
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Rejected edits, failure patterns that nothing has fixed, the optimizer's notes, the slow section that stands in
    the skill, the last learning rate, the hashes of the bodies that were judged on `select`."""

    rejected: tuple[Rejected, ...] = ()
    unfixed: tuple[Pattern, ...] = ()
    notes: str = ""
    slow: str = ""
    lr: int | None = None
    judged: frozenset[str] = frozenset()

    def remember(
        self, rejected: Sequence[Rejected], body: str, candidate: Skill | None = None, *, grown: bool = False
    ) -> Memory:
        """Add what was tried and not kept, and the `candidate` that was judged. `body` is the incumbent's from now
        on: an earlier rejection whose anchor is no longer there has expired, because what was measured then says little
        of the text that stands there now. One without an anchor was measured at the end of the skill: it has expired
        once that has `grown`."""
        text = _squeeze(body)
        new = {entry.edit.key: entry for entry in rejected}

        def stands(edit: Edit) -> bool:
            anchor = edit.target or edit.after
            return not grown if anchor is None else _squeeze(anchor) in text

        still = [entry for entry in self.rejected if entry.edit.key not in new and stands(entry.edit)]
        judged = self.judged if candidate is None else self.judged | {_hash(candidate.body)}
        return replace(self, rejected=(*still, *new.values())[-MAX_REJECTED:], judged=judged)

    @property
    def protected(self) -> tuple[str, ...]:
        """Text that the edits of a step must not touch: the slow section has a road of its own."""
        return (self.slow,) if self.slow else ()

    def new_epoch(self) -> Memory:
        """The published rejected-edit buffer spans one epoch."""
        return replace(self, rejected=())


def outcome(body: str, edit: Edit) -> str:
    """The hash of the body that the edit makes of another one; "" where it cannot be applied."""
    applied = apply(Skill(body), [edit])
    return _hash(applied.skill.body) if applied.changed else ""


def _hash(body: str) -> str:
    return Skill(body).hash


def still_unfixed(known: Sequence[Pattern], found: Sequence[Pattern], fixed: Container[str]) -> tuple[Pattern, ...]:
    """The patterns with the samples that still fail so. A sample belongs to the newest pattern that names it, so that
    new words for an old pattern replace it; equal words are one pattern."""
    of_sample = {sample: pattern.text for pattern in (*known, *found) for sample in pattern.samples}
    samples: dict[str, list[str]] = {}
    for sample, text in of_sample.items():
        if sample not in fixed:
            samples.setdefault(text, []).append(sample)
    patterns = [Pattern(text, tuple(failing)) for text, failing in samples.items()]
    return tuple(sorted(patterns, key=lambda pattern: -len(pattern.samples))[:MAX_PATTERNS])


def _squeeze(text: str) -> str:
    return " ".join(text.split())
