"""The one shape that every scorer has, whether built in, read from a file or passed as a function."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from skilltune.errors import CallConfigError, JudgeError, Stopped
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.python import raised_in, source_file
from skilltune.scorers.reading import accepted, as_text, quote

if TYPE_CHECKING:
    from skilltune.scorers.judge import Judge

_OURS = str(Path(__file__).parents[1])
ScoreFn = Callable[[Sample, Rollout], Score | float | bool | Awaitable[Score | float | bool]]
"""What a user's scorer is: plain or async, with a reason in a Score or without."""


def first_target(sample: Sample) -> str:
    """The expected answer as text: the target, or the first of several; "" if there is none."""
    value = next((value for value in accepted(sample.target) if value is not None), None)
    return "" if value is None else as_text(value)


def one_line_or_tagged(sample: Sample) -> str:
    """The expected answer for scorers that read the last line: one of several lines has to stand in a tag."""
    text = first_target(sample)
    return f"<answer>{text}</answer>" if "\n" in text.strip() else text


def accept_any(sample: Sample) -> None:
    """A scorer that says nothing about the samples it can score."""


def by_itself(sample: Sample) -> list[str]:
    """A user's function, which decides by itself what it looks at."""
    return []


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named scorer. Calling it gives a Score, float or bool, or an awaitable of one: `evaluate` evens that out.

    `fingerprint` is everything that decides a score and becomes part of the journal's keys. `expected` gives an answer
    that must score 1, or "" if none is known. `check` raises UsageError for a sample that it could never score.
    `judge` is the model that reads for it, if one does. `blocking`: the function is a user's and not async, so it may
    take its time; it is called in a thread.
    """

    name: str
    fingerprint: str
    score: Callable[[Sample, Rollout], Any]
    expected: Callable[[Sample], str] = first_target
    check: Callable[[Sample], None] = accept_any
    blocking: bool = False
    judge: Judge | None = None
    describe: Callable[[Sample], list[str]] = by_itself
    custom: bool = False

    def __call__(self, sample: Sample, rollout: Rollout) -> Score | float | bool | Awaitable[Score | float | bool]:
        return self.score(sample, rollout)


async def evaluate(scorer: Scorer, sample: Sample, rollout: Rollout) -> Score:
    """Run a scorer and return a Score that has a reason.

    Whatever goes wrong inside is a JudgeError that names scorer, sample and cause: a broken scorer never gives a 0.
    A wrong key or model of a scorer's own (CallConfigError) and a stopped run (Stopped) pass through unchanged.
    """
    try:
        result = await _in_thread(scorer, sample, rollout) if scorer.blocking else scorer(sample, rollout)
        score = _as_score(await result if inspect.isawaitable(result) else result)
    except (CallConfigError, JudgeError, Stopped):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}{_place(scorer, error)}"
        raise JudgeError(
            f'scorer {scorer.name} failed on sample "{sample.id}": {what}',
            retry_after=getattr(error, "retry_after", None),
        ) from error
    if score.why:
        return score
    expected = scorer.expected(sample)
    why = f"{scorer.name} gave {score.value:g}; got {quote(rollout.answer)}"
    return Score(score.value, f"{why}, expected {quote(expected)}" if expected else why, score.soft, score.metrics)


def _place(scorer: Scorer, error: Exception) -> str:
    """Where it was raised in the user's own file."""
    file = source_file(scorer.score)
    place = raised_in(error, file) if not file.startswith(_OURS) else ""
    return f" ({place})" if place else ""


def _as_score(result: Any) -> Score:
    if isinstance(result, Score):
        return result
    if isinstance(result, str) or not hasattr(result, "__float__"):  # float("1") would hide a scorer's mistake
        raise TypeError(f"a scorer returns a Score, a float or a bool, not {type(result).__name__}")
    return Score(float(result))


async def _in_thread(scorer: Scorer, sample: Sample, rollout: Rollout) -> Any:
    """Call a scorer while the event loop goes on. All such calls share one thread and come one after another, as if
    there were no thread: a user's function need not be safe for threads. Where the wait is cancelled, a call that has
    not begun is not made; one that has begun ends by itself, and what it gives is dropped."""
    context = contextvars.copy_context()
    future: Future[Any] = Future()
    _queue().put((future, lambda: context.run(scorer, sample, rollout)))
    return await asyncio.wrap_future(future)


_Calls = SimpleQueue[tuple[Future[Any], Callable[[], Any]]]


@functools.cache
def _queue() -> _Calls:
    """The queue of the one thread. It is a daemon: a scorer that hangs does not keep the process from ending."""
    calls: _Calls = SimpleQueue()
    Thread(target=_work, args=(calls,), name="scorer", daemon=True).start()
    return calls


def _work(calls: _Calls) -> None:
    while True:
        future, call = calls.get()
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(call())
        except StopIteration as error:  # an event loop's future cannot carry it, and would wait for ever
            future.set_exception(RuntimeError(f"StopIteration: {error}"))
        except BaseException as error:  # also SystemExit: it would end the thread and leave all others waiting
            future.set_exception(error)
