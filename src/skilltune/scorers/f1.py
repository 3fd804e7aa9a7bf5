"""Token F1 as defined by SQuAD (Rajpurkar et al., arXiv 1606.05250), with the normalisation that `em` shares."""

from __future__ import annotations

import re
import string
from collections import Counter

from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import best_of, final_answer, matched, missed

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def f1(sample: Sample, answer: str) -> Score:
    """Overlap of normalised tokens with the best accepted answer: the harmonic mean of precision and recall.

    It reads the last `<answer>` tag, else the last non-empty line.
    """
    got = final_answer(answer, last_line=True)

    def compare(expected: str) -> Score:
        value = token_f1(got, expected)
        return Score(value, matched(expected) if value == 1 else f"{missed(expected, got)} (token F1 {value:.2f})")

    return best_of(sample, compare)


def normalise(text: str) -> str:
    """Lower case, without punctuation ("co-op" = "coop") and a/an/the, with spaces collapsed.

    A text that would become empty ("The", "A", "?!") keeps its words, so that a grade "A" does not equal an empty
    answer.
    """
    lowered = text.lower()
    words = re.sub(r"\b(a|an|the)\b", " ", lowered.translate(_DROP_PUNCTUATION)).split()
    return " ".join(words or lowered.split())


def token_f1(got: str, expected: str) -> float:
    left, right = normalise(got).split(), normalise(expected).split()
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right)) if common else 0.0
