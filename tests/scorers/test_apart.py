"""A user's scorer runs apart from the run: whatever it does, the run goes on and says what happened."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest

from skilltune.errors import JudgeError
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.scorers import build, evaluate
from skilltune.scorers.apart import limit_s
from skilltune.scorers.scorer import LONGEST_ERROR, LONGEST_WHY, ScoreFn
from skilltune.streams import USERS_THREAD

pytestmark = pytest.mark.anyio
SAMPLE = Sample(id="s1", input="?", target="x")


def rollout(answer: str = "x") -> Rollout:
    return Rollout("s1", "", 0, Trajectory(answer), None)


async def test_the_event_loop_goes_on_while_a_scorer_waits() -> None:
    opened = threading.Event()

    def waits(sample: Sample, rollout: Rollout) -> bool:
        return opened.wait(30)  # only the event loop can open it

    task = asyncio.create_task(evaluate(build(waits), SAMPLE, rollout()))
    await asyncio.sleep(0.01)
    opened.set()
    assert (await task).value == 1


async def test_scorers_come_one_after_another_in_the_order_of_their_calls() -> None:
    order: list[str] = []
    inside = threading.Lock()

    def noted(sample: Sample, rollout: Rollout) -> float:
        assert inside.acquire(blocking=False), "two calls at once"
        order.append(rollout.answer)
        inside.release()
        return 1.0

    scorer, answers = build(noted), [str(i) for i in range(200)]
    await asyncio.gather(*(evaluate(scorer, SAMPLE, rollout(answer)) for answer in answers))
    assert order == answers


async def test_a_cancelled_call_that_has_not_begun_is_not_made() -> None:
    entered, leave, calls = threading.Event(), threading.Event(), []

    def slow(sample: Sample, rollout: Rollout) -> float:
        calls.append(rollout.answer)
        entered.set()
        leave.wait(30)
        return 1.0

    scorer = build(slow)
    tasks = [asyncio.create_task(evaluate(scorer, SAMPLE, rollout(answer))) for answer in "abc"]
    await asyncio.to_thread(entered.wait, 30)
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    leave.set()
    assert (await evaluate(scorer, SAMPLE, rollout("d"))).value == 1
    assert calls == ["a", "d"]


async def test_users_scorers_run_apart_and_our_own_on_the_event_loop() -> None:
    seen: list[threading.Thread] = []

    class Callable:
        async def __call__(self, sample: Sample, rollout: Rollout) -> float:
            seen.append(threading.current_thread())
            await asyncio.sleep(0)
            return 1.0

    await evaluate(build(Callable()), SAMPLE, rollout())
    await evaluate(build(Callable().__call__), SAMPLE, rollout())
    await evaluate(build(lambda sample, rollout: Callable()(sample, rollout)), SAMPLE, rollout())
    assert len(set(seen)) == 1  # one event loop for all
    assert {thread.name for thread in seen} == {USERS_THREAD}
    assert build(Callable()).apart
    assert not build("exact").apart


ERRORS = [
    StopIteration("next"),
    KeyError("colour"),
    SystemExit(0),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError("mine"),
    MemoryError(),
    RecursionError("too deep"),
    TimeoutError("the user's own"),
]


@pytest.mark.parametrize(
    ("error", "asynchronous"),
    [*((error, False) for error in ERRORS), *((error, True) for error in ERRORS[1:])],  # no coroutine raises the first
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_pitfall_36_whatever_a_scorer_raises_is_a_judge_error_with_its_line(
    error: BaseException, asynchronous: bool
) -> None:
    def broken(sample: Sample, rollout: Rollout) -> float:
        raise error

    async def broken_too(sample: Sample, rollout: Rollout) -> float:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(JudgeError, match=rf'on sample "s1": {type(error).__name__}.*test_apart.py:\d+') as told:
        await evaluate(build(broken_too if asynchronous else broken), SAMPLE, rollout())
    assert "broken" in str(told.value)
    assert (await evaluate(build(lambda sample, rollout: 1.0), SAMPLE, rollout())).value == 1  # the thread lives on


def ends_the_process(sample: Sample, rollout: Rollout) -> float:
    os._exit(0)


async def ends_the_process_later(sample: Sample, rollout: Rollout) -> float:
    await asyncio.sleep(0)
    os._exit(0)


def ends_a_process_of_its_own(sample: Sample, rollout: Rollout) -> float:
    child = os.fork()
    if child == 0:
        os._exit(7)
    return float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7)


@pytest.mark.parametrize("scorer", [ends_the_process, ends_the_process_later])
async def test_pitfall_36_a_scorer_cannot_end_the_process_with_an_exit_code(scorer: ScoreFn) -> None:
    with pytest.raises(JudgeError, match="SystemExit: 0"):
        await evaluate(build(scorer), SAMPLE, rollout())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_process_that_a_scorer_forked_ends_as_it_says() -> None:
    assert (await evaluate(build(ends_a_process_of_its_own), SAMPLE, rollout())).value == 1


async def test_an_async_scorer_that_cancels_itself_or_ends_its_loop_fails_alone() -> None:
    async def cancels(sample: Sample, rollout: Rollout) -> float:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return 1.0

    async def stops(sample: Sample, rollout: Rollout) -> float:
        asyncio.get_running_loop().call_soon(sys.exit, 0)
        await asyncio.sleep(0.01)
        return 1.0

    with pytest.raises(JudgeError, match="CancelledError"):
        await evaluate(build(cancels), SAMPLE, rollout())
    assert (await evaluate(build(stops), SAMPLE, rollout())).value == 1
    assert (await evaluate(build(stops), SAMPLE, rollout())).value == 1


# -- the time limit


@pytest.fixture
def short() -> Iterator[None]:
    token = limit_s.set(0.2)
    yield
    limit_s.reset(token)


@pytest.mark.usefixtures("short")
async def test_a_scorer_that_hangs_on_one_sample_is_named_and_the_others_go_on() -> None:
    opened = threading.Event()

    def hangs(sample: Sample, rollout: Rollout) -> float:
        if rollout.answer == "2":
            opened.wait(30)
        return 1.0

    ends = await asyncio.gather(
        *(evaluate(build(hangs), SAMPLE, rollout(str(i))) for i in range(5)), return_exceptions=True
    )
    opened.set()
    assert [isinstance(end, JudgeError) for end in ends] == [False, False, True, False, False]
    (error,) = (end for end in ends if isinstance(end, JudgeError))
    assert 'hangs failed on sample "s1": it did not end within 0.2 s' in str(error)
    assert "env.score_timeout_s" in str(error)
    assert "takes too long" in error.systemic


@pytest.mark.usefixtures("short")
async def test_an_async_scorer_that_blocks_its_loop_is_named_and_the_others_are_scored() -> None:
    opened = threading.Event()

    async def blocks(sample: Sample, rollout: Rollout) -> float:
        await asyncio.sleep(0.01)
        if rollout.answer == "2":
            opened.wait(30)
        await asyncio.sleep(0.02)
        return 1.0

    ends = await asyncio.gather(
        *(evaluate(build(blocks), SAMPLE, rollout(str(i))) for i in range(5)), return_exceptions=True
    )
    opened.set()
    assert [isinstance(end, JudgeError) for end in ends] == [False, False, True, False, False]
    assert "it blocked its event loop for more than 0.2 s" in str(ends[2])


@pytest.mark.slow
@pytest.mark.usefixtures("short")
async def test_a_scorer_that_only_waits_is_given_more_time_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.scorers.apart.AWAITED", 2)

    async def waits(sample: Sample, rollout: Rollout) -> float:
        await asyncio.sleep(float(rollout.answer))
        return 1.0

    assert (await evaluate(build(waits), SAMPLE, rollout("0.3"))).value == 1
    with pytest.raises(JudgeError, match="it did not end within"):
        await evaluate(build(waits), SAMPLE, rollout("30"))


# -- what it leaves behind


async def test_what_a_scorer_changes_does_not_outlast_its_call(tmp_path: Path) -> None:
    sample = Sample(id="s1", input="?", target=["x"], metadata={"want": ["a", "b"]})
    place = Path.cwd()

    def careless(sample: Sample, rollout: Rollout) -> float:
        os.chdir(tmp_path)
        sample.target.clear()
        return float(sample.metadata["want"].pop() == "b")

    assert [(await evaluate(build(careless), sample, rollout())).value for _ in range(3)] == [1, 1, 1]
    assert Path.cwd() == place


async def test_long_texts_of_a_scorer_are_cut() -> None:
    def raises(sample: Sample, rollout: Rollout) -> float:
        raise ValueError("x" * 5_000_000)

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def odd(sample: Sample, rollout: Rollout) -> float:
        raise Odd

    for scorer in (raises, odd):
        with pytest.raises(JudgeError) as told:
            await evaluate(build(scorer), SAMPLE, rollout())
        assert len(str(told.value)) < 2 * LONGEST_ERROR
    scored = await evaluate(build(lambda sample, rollout: Score(1.0, "y" * 3_000_000)), SAMPLE, rollout())
    assert len(scored.why) < 2 * LONGEST_WHY


# -- what it may return


class Prediction:
    """In the manner of DSPy."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> object:
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(name) from None

    def __float__(self) -> float:
        return float(str(self._fields["score"]))


class Row(dict[str, object]):
    __getattr__ = dict.__getitem__

    def __float__(self) -> float:
        return float(str(self["score"]))


class Pair(NamedTuple):
    score: float
    feedback: str


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Prediction(score=0.5, feedback="too long"), Score(0.5, "too long")),
        (Row(score=1, feedback="right"), Score(1.0, "right")),
        (Pair(0.25, "late"), Score(0.25, "late")),
        ({"score": 0.5, "feedback": "too long", "recall": 0.75}, Score(0.5, "too long", metrics={"recall": 0.75})),
        ({"value": True, "reason": "right", "soft": 0.5}, Score(1.0, "right", 0.5)),
        ((0.0, "no total"), Score(0.0, "no total")),
        ([1, "right"], Score(1.0, "right")),
        (Prediction(score=1.0), Score(1.0, 'metric gave 1; got "x", expected "x"')),
        (Decimal(1), Score(1.0, 'metric gave 1; got "x", expected "x"')),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_feedback_of_a_metric_is_its_reason(given: object, expected: Score) -> None:
    def metric(sample: Sample, rollout: Rollout) -> object:
        return given

    scorer = build(metric)
    scored = await evaluate(replace(scorer, name="metric"), SAMPLE, rollout())
    assert scored == expected
    assert scored.metrics == expected.metrics


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "not NoneType; with feedback: return st.Score"),
        ("1.0", "not str"),
        ({"feedback": "good"}, "not NoneType"),
        ({"score": "1", "why": "good"}, "not str"),
        ((1.0, "good", "really"), "not tuple"),
        (float("nan"), "must lie in"),
        (float("inf"), "must lie in"),
        (2.0, "must lie in"),
        ((-0.1, "negative"), "must lie in"),
    ],
    ids=str,
)
async def test_what_is_no_score_is_said_and_never_a_0(given: object, said: str) -> None:
    with pytest.raises(JudgeError, match=said):
        await evaluate(build(lambda sample, rollout: given), SAMPLE, rollout())


def test_a_scorer_that_hangs_does_not_keep_the_process() -> None:
    code = """
        import asyncio, time
        from test_apart import SAMPLE, build, evaluate, rollout
        async def main():
            hangs = build(lambda sample, rollout: time.sleep(600))
            task = asyncio.create_task(evaluate(hangs, SAMPLE, rollout()))
            await asyncio.sleep(0.05)
            task.cancel()
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=__file__.rpartition("/")[0], check=True, timeout=60)
