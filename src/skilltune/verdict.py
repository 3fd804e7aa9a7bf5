"""The verdict of a gate, the interim analyses behind it, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skilltune.edits import Edit, Report
from skilltune.skill import Skill


@dataclass(frozen=True, slots=True)
class Rejected:
    """An edit that was tried and not kept, and what the gate said of it."""

    edit: Edit
    reason: str


@dataclass(frozen=True, slots=True)
class Interim:
    """The state of a race after `n` rollouts of the candidate: level and sd of the incumbent and of the candidate, the
    gain and its sd (all in scores), P(gain > price of its length) by all evidence. `harm` is P(it harms by more than
    the regression bound) by `select` alone: a screen on train must not outvote the samples that were held out."""

    n: int
    before: tuple[float, float]
    after: tuple[float, float]
    gain: float
    sd: float
    better: float
    harm: float


ACCEPTED, GIVEN_UP, UNDECIDED = "accepted", "given up", "undecided"  # how a race ends


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """All that a verdict rests on, as JSON data."""
    return {
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "score": verdict.score,
        "score_sd": verdict.score_sd,
        "skill": verdict.skill.hash,
        "candidate": verdict.candidate.hash if verdict.candidate else None,
        "before": verdict.before,
        "after": verdict.after,
        "differences": dict(verdict.differences),
        "edits": [
            {
                **report.edit.to_json(),
                "status": report.status,
                "match": report.match,
                "reason": report.reason,
                "removed": report.removed,
                "inserted": report.inserted,
                "overlaps": list(report.overlaps),
            }
            for report in verdict.reports
        ],
        "rejected": [{"edit": entry.edit.to_json(), "reason": entry.reason} for entry in verdict.rejected],
        "numbers": dict(verdict.numbers),
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate decided, and on what.

    `skill` is the incumbent from now on. `score` is its level on `select` as the policy estimates it, with its
    standard deviation (None: nothing measured); it was selected for being high and proves nothing.
    `before` and `after` are the means of incumbent and candidate over the same samples, `differences` the
    candidate's score minus the incumbent's per sample. `reports` say what became of each edit of the candidate,
    `rejected` are the edits that were judged and not kept (the optimizer is told), `numbers` the figures of the rule.
    """

    skill: Skill
    accepted: bool
    reason: str
    score: float | None
    score_sd: float | None = None
    candidate: Skill | None = None
    before: float | None = None
    after: float | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """The outcome in words: accepted, rejected, or the reason for which there was no candidate."""
        judged = "accepted" if self.accepted else "a candidate was rejected"
        return judged if self.candidate is not None else self.reason


# The optimizer is told no more than this of a candidate that was not accepted.
FAILED = "given up: not shown to be better"
