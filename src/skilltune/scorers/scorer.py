"""The common shape of all scorers: built-in, from a file, or passed as a function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skilltune.errors import CallConfigError, CallError, JudgeError, MissingArtifact, NotGraded, SampleError, Stopped
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.apart import Raised, TookTooLong, call_apart
from skilltune.scorers.python import raised_in, source_file
from skilltune.scorers.reading import accepted, as_text, elided, quote

if TYPE_CHECKING:
    from skilltune.scorers.judge import Judge

LONGEST_ERROR = 1000  # characters of an exception's text
LONGEST_WHY = 4000  # characters of a reason for the optimizer
_VALUE, _WHY = ("score", "value"), ("feedback", "why", "reason", "explanation")  # keys of a score with feedback
_OURS = str(Path(__file__).parents[1])
ScoreFn = Callable[[Sample, Rollout], Score | float | bool | Awaitable[Score | float | bool]]
"""Type of a user's scorer: plain or async, with or without a reason in a Score."""


def first_target(sample: Sample) -> str:
    """The expected answer as text: the target, the first of several targets, or "" if there is none."""
    value = next((value for value in accepted(sample.target) if value is not None), None)
    return "" if value is None else as_text(value)


def one_line_or_tagged(sample: Sample) -> str:
    """The expected answer for scorers that read the last line: an answer of several lines goes into a tag."""
    text = first_target(sample)
    return f"<answer>{text}</answer>" if "\n" in text.strip() else text


def accept_any(sample: Sample) -> None:
    """The default of `check`: every sample can be scored."""


def by_itself(sample: Sample) -> list[str]:
    """The default of `describe`, for a user's function: nothing is known about its criteria."""
    return []


def no_files(sample: Sample) -> Iterable[Path]:
    """The default of `reads`."""
    return ()


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named scorer. A call returns a Score, float or bool, or an awaitable of one; `evaluate` makes a Score of all of
    these.

    `fingerprint` covers everything that decides a score and becomes part of the journal's keys. `expected` returns an
    answer that must score 1, or "" if none is known. `check` raises UsageError for a sample that can never be scored.
    `judge` is the model that reads answers, or None. `apart` is True for a user's function, which may do anything: it
    runs in its own thread, see `scorers.apart`. `reads` names the files with the expected content of a sample; their
    content becomes part of the journal's keys.
    """

    name: str
    fingerprint: str
    score: Callable[[Sample, Rollout], Any]
    expected: Callable[[Sample], str] = first_target
    check: Callable[[Sample], None] = accept_any
    apart: bool = False
    judge: Judge | None = None
    describe: Callable[[Sample], list[str]] = by_itself
    custom: bool = False
    reads: Callable[[Sample], Iterable[Path]] = no_files

    def __call__(self, sample: Sample, rollout: Rollout) -> Score | float | bool | Awaitable[Score | float | bool]:
        return self.score(sample, rollout)


async def evaluate(scorer: Scorer, sample: Sample, rollout: Rollout) -> Score:
    """Run a scorer and return a Score with a reason.

    Failures of the scorer become a JudgeError that names scorer, sample and cause, and never a 0. These errors pass
    through unchanged: SampleError and NotGraded (the sample cannot be graded), CallConfigError (wrong key or model of a
    scorer's own) and Stopped. A file that the target did not write (MissingArtifact) scores 0.
    """
    result = await _result(scorer, sample, rollout)
    if isinstance(result, Raised) and isinstance(result.error, MissingArtifact):
        return Score(0.0, str(result.error), soft=0.0)
    if isinstance(result, Raised):
        raise _failure(scorer, sample, result.error) from result.error
    try:
        score = as_score(result) if scorer.apart or not isinstance(result, Score) else result
    except Exception as error:
        raise _failure(scorer, sample, error) from error
    if score.why:
        return score
    expected = scorer.expected(sample)
    why = f"{scorer.name} gave {score.value:g}; got {quote(rollout.answer)}"
    return Score(score.value, f"{why}, expected {quote(expected)}" if expected else why, score.soft, score.metrics)


async def _result(scorer: Scorer, sample: Sample, rollout: Rollout) -> Any:
    """The awaited result of the scorer, or `Raised` if it failed."""
    if scorer.apart:
        return await call_apart(lambda: scorer(_copied(sample), rollout))
    try:
        given = scorer(sample, rollout)
        return await given if inspect.isawaitable(given) else given
    except Exception as error:
        return Raised(error)


def _copied(sample: Sample) -> Sample:
    """A copy that a user's function may change, so that the next scoring sees the original sample."""
    with suppress(Exception):  # metadata made in Python may contain objects that cannot be copied
        return sample.model_copy(deep=True)
    return sample


def _failure(scorer: Scorer, sample: Sample, error: BaseException) -> CallError | Stopped:
    """Convert a scorer's exception to an error of the rollout."""
    if isinstance(error, CallConfigError | JudgeError | NotGraded | SampleError | Stopped):
        return error
    where = f'scorer {scorer.name} failed on sample "{sample.id}": '
    if isinstance(error, TookTooLong):
        way = "fix the scorer, or allow more time with env.score_timeout_s"
        return JudgeError(f"{where}{error}; {way}", systemic=f"the scorer {scorer.name} takes too long: {way}")
    try:
        text = elided(str(error), LONGEST_ERROR)
    except Exception:
        text = "its text cannot be read"
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return JudgeError(
        f"{where}{what}{_place(scorer, error)}",
        retry_after=getattr(error, "retry_after", None),
        systemic=getattr(error, "systemic", ""),
    )


def _place(scorer: Scorer, error: BaseException) -> str:
    """The line of the user's own file that raised the error."""
    file = source_file(scorer.score)
    place = raised_in(error, file) if not file.startswith(_OURS) else ""
    return f" ({place})" if place else ""


def as_score(result: Any) -> Score:
    """Convert a user's result (a number, a bool, or one of them with feedback, see `_parts`) to a Score.

    Raises TypeError or ValueError for anything else.
    """
    if isinstance(result, Score):
        return _sound(result.value, result.why, result.soft, result.metrics)
    parts = _parts(result)
    if parts is None:
        return _sound(result)
    value = next((parts[name] for name in _VALUE if name in parts), None)
    why = next((parts[name] for name in _WHY if parts.get(name)), "")
    known = {*_VALUE, *_WHY, "soft"}
    numbers = {name: x for name, x in parts.items() if name not in known and isinstance(x, int | float)}
    return _sound(value, why, parts.get("soft"), numbers)


def _parts(result: Any) -> Mapping[str, Any] | None:
    """The named parts of a score with feedback. It is a mapping, an object with such attributes (a Prediction of DSPy)
    or a pair (score, why). None for a bare value."""
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    found: dict[str, Any] = {}
    for name in (*_VALUE, *_WHY):
        with suppress(Exception):  # an object's __getattr__ may raise anything
            found[name] = getattr(result, name)
    if found.keys() & set(_VALUE) and found.keys() & set(_WHY):
        return found
    if isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], str):
        return {"score": result[0], "why": result[1]}
    return None


def _sound(value: Any, why: Any = "", soft: Any = None, metrics: Mapping[str, Any] | None = None) -> Score:
    """A Score of plain numbers, with a reason of limited length."""
    numbers = {"value": value} if soft is None else {"value": value, "soft": soft}
    for number in numbers.values():
        if isinstance(number, str) or not hasattr(number, "__float__"):  # float("1") would hide a scorer's mistake
            raise TypeError(
                f"a scorer returns a Score, a float or a bool, not {type(number).__name__}; with feedback: "
                "return st.Score(score, why=feedback)"
            )
    metrics = metrics or {}
    for name, number in metrics.items():
        if isinstance(number, str) or not hasattr(number, "__float__"):
            raise TypeError(f'the metric "{name}" of a score must be a number, not {type(number).__name__}')
    plain = {name: float(number) for name, number in numbers.items()}
    text = elided("" if why is None else str(why), LONGEST_WHY)
    return Score(plain["value"], text, plain.get("soft"), {str(k): float(v) for k, v in metrics.items()})
