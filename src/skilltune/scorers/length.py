"""Length of an answer in characters, for tasks with a limit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample

Bound = Annotated[int, Field(ge=0)]


def length(sample: Sample, answer: str, *, max_chars: Bound | None = None, min_chars: Bound | None = None) -> Score:
    """1 if the whole answer has `min_chars` to `max_chars` characters. The target is ignored."""
    if max_chars is None and min_chars is None:
        raise UsageError('scorer "length" needs a bound: max_chars, min_chars or both')
    n = len(answer)
    if max_chars is not None and n > max_chars:
        return Score(0.0, f"{n:,} characters, at most {max_chars:,} are wanted")
    if min_chars is not None and n < min_chars:
        return Score(0.0, f"{n:,} characters, at least {min_chars:,} are wanted")
    return Score(1.0, f"{n:,} characters")
