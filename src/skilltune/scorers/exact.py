"""Equality of trimmed text: the strictest scorer, and therefore the one that teaches a format."""

from __future__ import annotations

from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import best_of, final_answer, verdict


def exact(sample: Sample, answer: str, *, ignore_case: bool = False) -> Score:
    """1 if the trimmed answer (the last `<answer>` tag if there is one, else all of it) equals the trimmed target."""
    got = final_answer(answer)

    def compare(expected: str) -> Score:
        left, right = got, expected.strip()
        if ignore_case:
            left, right = left.casefold(), right.casefold()
        return verdict(left == right, expected, got)

    return best_of(sample, compare)
