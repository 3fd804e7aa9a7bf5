"""The one shape that every scorer has, whether built in, read from a file or passed as a function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from skilltune.errors import CallConfigError, JudgeError, Stopped
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.reading import as_text, quote


def first_target(sample: Sample) -> str:
    """The expected answer as text: the target, or the first of several; "" if there is none."""
    value = sample.target
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return "" if value is None else as_text(value)


def one_line_or_tagged(sample: Sample) -> str:
    """The expected answer for scorers that read the last line: one of several lines has to stand in a tag."""
    text = first_target(sample)
    return f"<answer>{text}</answer>" if "\n" in text.strip() else text


def accept_any(sample: Sample) -> None:
    """A scorer that says nothing about the samples it can score."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named scorer. Calling it gives a Score, float or bool, or an awaitable of one: `evaluate` evens that out.

    `fingerprint` is everything that decides a score and becomes part of the journal's keys. `expected` gives an answer
    that must score 1, or "" if none is known. `check` raises UsageError for a sample that it could never score.
    """

    name: str
    fingerprint: str
    score: Callable[[Sample, Rollout], Any]
    expected: Callable[[Sample], str] = first_target
    check: Callable[[Sample], None] = accept_any

    def __call__(self, sample: Sample, rollout: Rollout) -> Score | float | bool | Awaitable[Score | float | bool]:
        return self.score(sample, rollout)


async def evaluate(scorer: Scorer, sample: Sample, rollout: Rollout) -> Score:
    """Run a scorer and return a Score that has a reason.

    Whatever goes wrong inside is a JudgeError that names scorer, sample and cause: a broken scorer never gives a 0.
    A wrong key or model of a scorer's own (CallConfigError) and a stopped run (Stopped) pass through unchanged.
    """
    try:
        result = scorer(sample, rollout)
        score = _as_score(await result if inspect.isawaitable(result) else result)
    except (CallConfigError, JudgeError, Stopped):
        raise
    except Exception as error:
        raise JudgeError(
            f'scorer {scorer.name} failed on sample "{sample.id}": {type(error).__name__}: {error}',
            retry_after=getattr(error, "retry_after", None),
        ) from error
    if score.why:
        return score
    expected = scorer.expected(sample)
    why = f"{scorer.name} gave {score.value:g}; got {quote(rollout.answer)}"
    return Score(score.value, f"{why}, expected {quote(expected)}" if expected else why, score.soft, score.metrics)


def _as_score(result: Any) -> Score:
    if isinstance(result, Score):
        return result
    if isinstance(result, str) or not hasattr(result, "__float__"):  # float("1") would hide a scorer's mistake
        raise TypeError(f"a scorer returns a Score, a float or a bool, not {type(result).__name__}")
    return Score(float(result))
