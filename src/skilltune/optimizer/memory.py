"""The optimizer's memory between steps. It is never part of the skill."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from skilltune.edits import Edit, apply
from skilltune.skill import Skill
from skilltune.verdict import Rejected

MAX_REJECTED = 24  # entries kept; the oldest are dropped first
MAX_PATTERNS = 12  # entries kept; patterns with the fewest samples are dropped first


@dataclass(frozen=True, slots=True)
class Pattern:
    """A common cause of failures, in the optimizer's words, and the train samples that failed by it."""

    text: str
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """The optimizer's memory.

    `rejected`: edits that were rejected. `unfixed`: failure patterns that no edit has fixed. `notes`: the optimizer's
    own notes. `slow`: the skill's slow section. `lr`: the last learning rate. `judged`: hashes of the bodies that
    `select` has judged.
    """

    rejected: tuple[Rejected, ...] = ()
    unfixed: tuple[Pattern, ...] = ()
    notes: str = ""
    slow: str = ""
    lr: int | None = None
    judged: frozenset[str] = frozenset()

    def remember(
        self,
        rejected: Sequence[Rejected],
        body: str,
        candidate: Skill | None = None,
        *,
        grown: bool = False,
        shrunk: bool = False,
    ) -> Memory:
        """Add rejected edits and the judged `candidate`; `body` is the incumbent's.

        An earlier rejection expires if the body no longer contains its anchor, because it was measured on another text.
        A rejection without an anchor was measured at the end of the skill. It expires if the skill has `grown`. All
        earlier rejections expire if the skill has `shrunk`, because the line that has gone may have hidden their worth.
        """
        text = _squeeze(body)
        new = {entry.edit.key: entry for entry in rejected}

        def stands(edit: Edit) -> bool:
            if shrunk:
                return False
            anchor = edit.target or edit.after
            return not grown if anchor is None else _squeeze(anchor) in text

        still = [entry for entry in self.rejected if entry.edit.key not in new and stands(entry.edit)]
        judged = self.judged if candidate is None else self.judged | {_hash(candidate.body)}
        return replace(self, rejected=(*still, *new.values())[-MAX_REJECTED:], judged=judged)

    @property
    def protected(self) -> tuple[str, ...]:
        """Text that a step's edits must not touch: the slow section, which only the slow update changes."""
        return (self.slow,) if self.slow else ()

    def new_epoch(self) -> Memory:
        """The memory without rejected edits: SkillOpt's published buffer spans one epoch."""
        return replace(self, rejected=())


def outcome(body: str, edit: Edit) -> str:
    """The hash of the body after the edit; "" if the edit changes nothing or cannot be applied."""
    applied = apply(Skill(body), [edit])
    return _hash(applied.skill.body) if applied.changed else ""


def _hash(body: str) -> str:
    return Skill(body).hash


def still_unfixed(known: Sequence[Pattern], found: Sequence[Pattern], fixed: Container[str]) -> tuple[Pattern, ...]:
    """The patterns with their samples that are not in `fixed`; patterns without such a sample are dropped.

    A sample belongs to the newest pattern that names it, so a reworded pattern replaces the old one. Patterns of equal
    text are one pattern.
    """
    of_sample = {sample: pattern.text for pattern in (*known, *found) for sample in pattern.samples}
    samples: dict[str, list[str]] = {}
    for sample, text in of_sample.items():
        if sample not in fixed:
            samples.setdefault(text, []).append(sample)
    patterns = [Pattern(text, tuple(failing)) for text, failing in samples.items()]
    return tuple(sorted(patterns, key=lambda pattern: -len(pattern.samples))[:MAX_PATTERNS])


def _squeeze(text: str) -> str:
    return " ".join(text.split())
