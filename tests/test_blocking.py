"""A user's scorer that is not async runs in a thread: the run goes on meanwhile, and nothing else changes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from skilltune.errors import JudgeError
from skilltune.rollout import Rollout, Trajectory
from skilltune.samples import Sample
from skilltune.scorers import build, evaluate

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


async def test_async_scorers_and_our_own_stay_on_the_event_loop() -> None:
    seen: list[threading.Thread] = []

    class Callable:
        async def __call__(self, sample: Sample, rollout: Rollout) -> float:
            seen.append(threading.current_thread())
            return 1.0

    await evaluate(build(Callable()), SAMPLE, rollout())
    await evaluate(build(Callable().__call__), SAMPLE, rollout())
    assert set(seen) == {threading.current_thread()}
    assert not build("exact").blocking


@pytest.mark.parametrize("error", [StopIteration("next"), KeyError("colour"), SystemExit(3)])
async def test_whatever_a_scorer_raises_arrives(error: BaseException) -> None:
    def broken(sample: Sample, rollout: Rollout) -> float:
        raise error

    with pytest.raises((JudgeError, SystemExit)):
        await evaluate(build(broken), SAMPLE, rollout())
    assert (await evaluate(build(lambda sample, rollout: 1.0), SAMPLE, rollout())).value == 1  # the thread lives on


def test_a_scorer_that_hangs_does_not_keep_the_process() -> None:
    code = """
        import asyncio, time
        from test_blocking import SAMPLE, build, evaluate, rollout
        async def main():
            hangs = build(lambda sample, rollout: time.sleep(600))
            task = asyncio.create_task(evaluate(hangs, SAMPLE, rollout()))
            await asyncio.sleep(0.05)
            task.cancel()
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=__file__.rpartition("/")[0], check=True, timeout=60)
