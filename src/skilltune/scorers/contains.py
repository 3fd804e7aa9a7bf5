"""The target occurs in the answer. This is lenient: an answer that names every option passes."""

from __future__ import annotations

from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import best_of, matched, quote


def contains(sample: Sample, answer: str, *, ignore_case: bool = False) -> Score:
    """1 if the trimmed target is a substring of the whole answer."""
    text = answer.casefold() if ignore_case else answer

    def compare(expected: str) -> Score:
        wanted = expected.strip()
        if (wanted.casefold() if ignore_case else wanted) in text:
            return Score(1.0, matched(expected))
        return Score(0.0, f"{quote(wanted)} does not occur in {quote(answer)}")

    return best_of(sample, compare)
