"""Exact match after SQuAD normalisation. Its partial credit is token F1; SearchQA reports both in this way."""

from __future__ import annotations

from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.f1 import normalise, token_f1
from skilltune.scorers.reading import best_of, final_answer, verdict


def em(sample: Sample, answer: str) -> Score:
    """1 if the normalised answer equals a normalised accepted answer. `soft` is the best token F1.

    It reads the last `<answer>` tag, else the last non-empty line.
    """
    got = final_answer(answer, last_line=True)

    def compare(expected: str) -> Score:
        return verdict(normalise(got) == normalise(expected), expected, got, soft=token_f1(got, expected))

    return best_of(sample, compare)
