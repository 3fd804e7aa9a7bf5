"""Average normalised Levenshtein similarity (Biten et al., arXiv 1905.13648): forgives only misread characters."""

from __future__ import annotations

from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import best_of, final_answer, matched, missed


def anls(sample: Sample, answer: str) -> Score:
    """1 − d for the best accepted answer, with d = edit distance / longer length; 0 if d ≥ 0.5.

    Case is ignored and spaces are collapsed. It reads the last `<answer>` tag, else the last non-empty line.
    """
    got = final_answer(answer, last_line=True)

    def compare(expected: str) -> Score:
        value = similarity(_fold(got), _fold(expected))
        return Score(value, matched(expected) if value == 1 else f"{missed(expected, got)} (ANLS {value:.2f})")

    return best_of(sample, compare)


def similarity(left: str, right: str) -> float:
    longer = max(len(left), len(right))
    if 2 * abs(len(left) - len(right)) >= longer:  # the distance is at least this difference
        return float(left == right)
    distance = levenshtein(left, right) / longer
    return 1 - distance if distance < 0.5 else 0.0


def levenshtein(left: str, right: str) -> int:
    """Edit distance, one column per step: the bit-parallel algorithm of Myers (1999) in Hyyrö's form (2001).

    Bit i of `up` / `down` is set if the distance grows / falls by one between rows i and i + 1 of the current column.
    """
    if not left:
        return len(right)
    places: dict[str, int] = {}
    for i, char in enumerate(left):
        places[char] = places.get(char, 0) | 1 << i
    everything, top = (1 << len(left)) - 1, 1 << (len(left) - 1)
    up, down, distance = everything, 0, len(left)
    for char in right:
        equal = places.get(char, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        rising, falling = down | ~(diagonal | up) & everything, up & diagonal
        distance += bool(rising & top) - bool(falling & top)
        rising, falling = rising << 1 | 1, falling << 1
        up, down = (falling | ~(diagonal | rising)) & everything, rising & diagonal & everything
    return distance


def _fold(text: str) -> str:
    return " ".join(text.lower().split())
