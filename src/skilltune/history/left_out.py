"""The samples that a run could not score, in one line, with outcome and cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from skilltune.journal.run import Run
from skilltune.rollouts.inputs import DROPPED, dropped
from skilltune.rollouts.roller import LEFT_OUT
from skilltune.scorers.reading import elided

NAMED = 5  # samples of one cause that are named
LONGEST = 160  # characters of a cause
WORDS = {
    "sample_error": "refused",
    "not_graded": "not graded",
    "judge_error": "not scored",
    "infra_error": "failed",
}


def left_out(run: Run) -> dict[str, Mapping[str, Any]]:
    """Outcome and cause of each sample that was left out of a batch, by the last event that names it."""
    found: dict[str, Mapping[str, Any]] = {}
    for _, _, event in run.events(LEFT_OUT):
        found |= summed(event["samples"])
    for sample in dropped(run):
        found[sample] = {"outcome": DROPPED, "why": "by --drop"}
    return found


def summed(failures: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Outcome and reason of the failures in one event, by sample."""
    return {
        sample: {
            "outcome": failure["outcome"],
            "why": one_line(failure["why"] if "…" in failure["cause"] else failure["cause"]),
        }
        for sample, failure in failures.items()
    }


def one_line(text: str) -> str:
    return elided(" ".join(text.split()), LONGEST)


def describe(found: Mapping[str, Mapping[str, Any]]) -> str:
    """For example: 3 samples (t112, t131: refused: the content filter; t9: failed: 503). "" if nothing was left out."""
    if not found:
        return ""
    groups: dict[tuple[str, str], list[str]] = {}
    for sample, failure in found.items():
        groups.setdefault((failure["outcome"], failure["why"]), []).append(sample)
    parts = [
        f"{_named(samples)}: {WORDS.get(outcome, outcome)}: {why}"
        for (outcome, why), samples in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    ]
    return f"{len(found)} sample{'s' * (len(found) != 1)} ({'; '.join(parts)})"


def _named(samples: Iterable[str]) -> str:
    names = sorted(samples)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
