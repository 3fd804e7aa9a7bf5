"""Rolling as a stream and ahead of need: in order, as soon as possible, nothing left behind, nothing wasted unasked."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from skilltune.aio import run_all
from skilltune.build import build_parts, may_look_ahead
from skilltune.config import make_config
from skilltune.envs import Env, Task
from skilltune.errors import (
    BudgetExceeded,
    CallConfigError,
    CallError,
    InfraError,
    InfraStopped,
    JudgeError,
    RejectedError,
    SampleError,
)
from skilltune.journal.run import Run
from skilltune.parts import Parts
from skilltune.rollout import Rollout, Trajectory
from skilltune.rollouts.roller import ALIKE, REFUSED, SPECULATION_DELAY_S, Roller
from skilltune.samples import Sample
from skilltune.scorers.judge import Verdict
from skilltune.skill import Skill
from skilltune.usage import Usage
from training import prepare, small, train
from world import World

pytestmark = pytest.mark.anyio
SKILL, OTHER = Skill("Say yes."), Skill("Say no.")
ENV = Env([{"id": f"s{i}", "input": f"q{i}", "target": "yes"} for i in range(6)])


class Gated:
    """A target that answers (sample, attempt) when it is let, at once where it never is held."""

    fingerprint = "gated"

    def __init__(self, *held: str) -> None:
        self.gates = {name: asyncio.Event() for name in held}
        self.errors: dict[str, Exception] = {}
        self.asked = Counter[str]()
        self.cancelled = 0

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        self.asked[task.id] += 1
        try:
            if task.id in self.gates:
                await self.gates[task.id].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if task.id in self.errors:
            raise self.errors[task.id]
        return Trajectory(f"{task.id} {attempt}")

    def guess(self, skill: Skill, task: Task) -> Usage:
        return Usage(calls=1)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "journal") as run:
        yield run


async def idle() -> None:
    await asyncio.sleep(2 * SPECULATION_DELAY_S)
    for _ in range(30):
        await asyncio.sleep(0)


@contextmanager
def no_task_left() -> Iterator[None]:
    """Whatever the block begins must have ended with it."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before


async def answering(target: Gated, env: Env, run: Run, **settings: Any) -> Roller:
    """A roller whose target has answered once, so that a batch is sent at once."""
    roll = Roller(target, env, run, **settings)
    await roll(Skill("The first call."), [Sample(id="first", input="?", target="yes")])
    target.asked.clear()
    return roll


def answers(rollouts: list[Rollout]) -> list[str]:
    return [rollout.answer for rollout in rollouts]


async def consume(stream: AsyncIterator[Rollout], seen: list[Rollout]) -> None:
    async for rollout in stream:
        seen.append(rollout)


# -- the stream


async def test_a_rollout_is_there_as_soon_as_it_and_all_before_it_are(run: Run) -> None:
    target, seen = Gated("s1", "s5"), list[Rollout]()
    consumer = asyncio.create_task(consume(Roller(target, ENV, run).stream(SKILL, ENV.samples), seen))
    await idle()
    assert answers(seen) == ["s0 0"]  # s2 to s4 are done, too
    target.gates["s1"].set()
    await idle()
    assert answers(seen) == [f"s{i} 0" for i in range(5)]  # the slow last one holds nobody back
    assert not consumer.done()
    target.gates["s5"].set()
    await consumer
    assert answers(seen) == [f"s{i} 0" for i in range(6)]


async def test_several_draws_come_one_after_the_other_and_are_made_at_once(run: Run) -> None:
    target, seen = Gated("s0"), list[Rollout]()
    roll = await answering(target, ENV, run)
    consumer = asyncio.create_task(consume(roll.stream(SKILL, ENV.samples, attempts=3), seen))
    await idle()
    assert target.asked == dict.fromkeys((f"s{i}" for i in range(6)), 3)
    target.gates["s0"].set()
    await consumer
    assert answers(seen) == [f"s{i} {attempt}" for attempt in range(3) for i in range(6)]


async def test_a_stream_is_the_same_batch_as_a_call(run: Run) -> None:
    roll = Roller(Gated(), ENV, run)
    streamed = [rollout async for rollout in roll.stream(SKILL, ENV.samples)]
    assert streamed == await roll(SKILL, ENV.samples)
    assert {key[1] for key in roll.seen} == {sample.id for sample in ENV.samples}
    assert [rollout async for rollout in roll.stream(SKILL, [])] == []


async def test_a_call_that_failed_for_good_stands_in_its_place_without_a_score(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    target = Gated("s4")
    target.errors["s2"] = InfraError("503")
    target.gates["s4"].set()
    rollouts = [rollout async for rollout in Roller(target, ENV, run).stream(SKILL, ENV.samples)]
    assert [rollout.sample for rollout in rollouts] == [sample.id for sample in ENV.samples]
    assert [rollout.sample for rollout in rollouts if not rollout.scored] == ["s2"]


@pytest.mark.parametrize(
    ("failed", "error", "raised"),
    [
        (["s3"], CallConfigError("401: no such key"), CallConfigError),
        (["s0"], BudgetExceeded("10 calls"), BudgetExceeded),
        (["s0", "s3"], InfraError("503"), InfraStopped),
    ],
)
async def test_errors_and_stops_end_the_stream_as_they_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, failed: list[str], error: Exception, raised: type[Exception]
) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    target, seen = Gated(), list[Rollout]()
    target.errors = dict.fromkeys(failed, error)
    with no_task_left(), pytest.raises(raised) as told:
        await consume(Roller(target, ENV, run).stream(SKILL, ENV.samples), seen)
    assert str(error) in str(told.value)
    assert all(rollout.sample not in failed for rollout in seen)
    if raised is BudgetExceeded:  # what was under way is paid for: it is in the journal
        target.errors.clear()
        await Roller(target, ENV, run)(SKILL, ENV.samples)
        assert target.asked == {**{f"s{i}": 1 for i in range(6)}, "s0": 2}


@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_who_goes_away_leaves_no_task_behind(run: Run, how: str) -> None:
    target, seen = Gated("s2", "s3", "s4"), list[Rollout]()
    with no_task_left():
        stream = Roller(target, ENV, run).stream(SKILL, ENV.samples)
        if how == "cancelled":
            consumer = asyncio.create_task(consume(stream, seen))
            await idle()
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
        else:
            async with aclosing(stream) as rollouts:
                async for rollout in rollouts:
                    seen.append(rollout)
                    if len(seen) == 2:
                        break
    assert answers(seen) == ["s0 0", "s1 0"]
    assert target.cancelled == 3


# -- gather


async def test_what_becomes_ready_one_after_the_other_is_begun_as_it_comes() -> None:
    gate, begun = asyncio.Event(), list[int]()

    async def work(i: int) -> int:
        begun.append(i)
        await asyncio.sleep(0)
        return 10 * i

    async def source() -> AsyncIterator[Any]:
        yield work(0)
        yield work(1)
        await gate.wait()
        yield work(2)

    gathered = asyncio.create_task(run_all(source()))
    await idle()
    assert begun == [0, 1]
    gate.set()
    assert await gathered == [0, 10, 20]


async def test_a_stop_of_the_source_lets_what_was_begun_finish_and_an_error_does_not() -> None:
    ended = Counter[str]()

    async def work() -> None:
        try:
            await asyncio.sleep(0.02)
            ended["finished"] += 1
        except asyncio.CancelledError:
            ended["cancelled"] += 1
            raise

    async def source(error: Exception) -> AsyncIterator[Any]:
        yield work()
        await asyncio.sleep(0)
        raise error

    for error, outcome in ((BudgetExceeded("no money"), "finished"), (InfraError("503"), "cancelled")):
        with no_task_left(), pytest.raises(type(error), match=str(error)):
            await run_all(source(error))
        assert ended[outcome] == 1
    assert ended.total() == 2


# -- looking ahead


async def test_what_is_asked_for_goes_before_what_may_be_needed(run: Run) -> None:
    target = Gated()
    roll = await answering(target, ENV, run, lookahead=True)
    roll.prefetch(SKILL, ENV.samples[:3])
    await roll(SKILL, ENV.samples[3:])
    await idle()
    assert list(target.asked) == ["s3", "s4", "s5", "s0", "s1", "s2"]


@contextmanager
def session_at(world: World, folder: Path, **target: Any) -> Iterator[Parts]:
    prepare(world, folder)
    cfg = make_config(
        {
            "skill": "SKILL.md",
            "env": {"samples": "samples.jsonl"},
            "target": {"model": f"openai@{world.url}/target", "workers": 2, **target},
            "optimizer": {"workers": 2},
        }
    )
    with Run.open(folder / "run") as run:
        yield build_parts(cfg, run, folder)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_what_was_sent_ahead_is_let_finish_and_what_was_not_is_dropped(tmp_path: Path) -> None:
    with small(latency=0.1) as world, session_at(world, tmp_path) as session:
        roll, samples, before = session.roll, session.splits.train, asyncio.all_tasks()
        await roll(session.skill, samples[:1])
        roll.prefetch(SKILL, samples[:8])
        await until(lambda: world.calls["target"] == 3)
        roll.cancel_prefetch(OTHER)
        await until(lambda: asyncio.all_tasks() <= before)
        assert world.answered["target"] == 3
        await roll(SKILL, samples[:2])
        assert world.calls["target"] == 3  # the two that were sent are in the journal
        await session.aclose()


async def test_what_is_expected_of_the_new_incumbent_is_kept(tmp_path: Path) -> None:
    with small(latency=0.01) as world, session_at(world, tmp_path) as session:
        roll, samples = session.roll, session.splits.train
        await roll(session.skill, samples[:1])
        roll.prefetch(SKILL, samples[:4])
        roll.prefetch(SKILL, samples[:4])  # once is enough
        roll.cancel_prefetch(SKILL)
        await roll(SKILL, samples[:4])
        assert world.calls["target"] == 5
        await session.aclose()


async def test_the_end_of_a_session_ends_what_still_runs_ahead(tmp_path: Path) -> None:
    with small(latency=5.0) as world, session_at(world, tmp_path) as session, no_task_left():
        session.roll.answered = True
        session.roll.prefetch(SKILL, session.splits.train)
        await until(lambda: world.calls["target"] > 0)
        await session.aclose()


@pytest.mark.parametrize(
    ("error", "said"),
    [(CallConfigError("400: too long"), "sample s1: 400"), (RuntimeError("a plug-in's defect"), "a plug-in's defect")],
)
async def test_a_failure_ahead_is_nobodys_until_it_is_asked_for(
    run: Run, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = Gated()
    target.errors["s1"] = error
    roll = Roller(target, ENV, run, lookahead=True)
    await roll(SKILL, ENV.samples[:1])
    with no_task_left():
        roll.prefetch(SKILL, ENV.samples)
        await idle()
    gc.collect()
    assert not caplog.records  # such as that of a task whose exception nobody saw
    with pytest.raises(type(error), match=said):
        await roll(SKILL, ENV.samples)
    assert target.asked == {**dict.fromkeys((f"s{i}" for i in range(6)), 1), "s1": 2}


async def test_nothing_is_rolled_ahead_before_the_target_answered(run: Run) -> None:
    """A dead target is not hammered, and the replay of a finished run, samples that were left out included, is free."""
    target = Gated()
    roll = Roller(target, ENV, run, lookahead=True)
    roll.prefetch(SKILL, ENV.samples)
    await idle()
    assert not target.asked


FREE = "openai@http://127.0.0.1:8000/v1/m"


@pytest.mark.parametrize(
    ("model", "usd", "settings", "may"),
    [
        (FREE, 0.0, {}, True),
        (FREE, 0.0, {"budget": {"usd": 1.0}}, True),  # costs no dollars
        (FREE, 0.0, {"budget": {"minutes": 5.0}}, True),  # saves minutes
        (FREE, 0.0, {"budget": {"calls": 1_000}}, False),
        (FREE, 0.0, {"budget": {"tokens": 1_000_000}}, False),
        (FREE, 0.0, {"budget": {"calls": 1_000, "usd": 1.0}}, False),
        (FREE, 0.0001, {}, False),
        (FREE, None, {}, False),  # unknown is not free
        ("local/smollm2-135m", 0.0, {}, False),
        (FREE, 0.0, {"target": {"lookahead": False}}, False),
        (FREE, 0.01, {"target": {"lookahead": True}, "budget": {"calls": 1_000}}, True),  # as told
    ],
)
def test_pitfall_21_a_limited_budget_is_not_spent_on_what_may_not_be_needed(
    model: str, usd: float | None, settings: dict[str, Any], may: bool
) -> None:
    cfg = make_config({**settings, "target": {"model": model, **settings.get("target", {})}})
    assert may_look_ahead(cfg, Usage(calls=1, usd=usd), None) == may


@pytest.mark.parametrize(("price", "may"), [(None, True), ((1.0, 2.0), False)])
def test_pitfall_21_a_judge_that_costs_money_reads_no_answer_that_may_not_be_needed(
    tmp_path: Path, price: tuple[float, float] | None, may: bool
) -> None:
    with small() as world:
        prepare(world, tmp_path)
    judged = {"checks": [{"type": "judge", "text": "Is polite"}]}
    rows = [json.loads(line) | judged for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    cfg = make_config(
        {
            "skill": str(tmp_path / "SKILL.md"),
            "env": {"samples": str(tmp_path / "samples.jsonl")},
            "target": {"model": FREE},
            "judge": {"price": price},
        }
    )
    with Run.open(tmp_path / "run") as run:
        session = build_parts(cfg, run, tmp_path, env=Env(rows, {"judge": f"{FREE}-judge"}))
        assert session.judge is not None
        assert session.roll.lookahead == may


def test_a_target_on_ones_own_endpoint_is_free(tmp_path: Path) -> None:
    with small() as world, session_at(world, tmp_path) as session:
        assert session.roll.lookahead
    (tmp_path / "priced").mkdir()
    with session_at(world, tmp_path / "priced", price=(1.0, 2.0)) as session:
        assert not session.roll.lookahead


@pytest.mark.parametrize("settings", [{"target.lookahead": False}, {"budget.calls": 5_000}])
@pytest.mark.parametrize("preset", ["default", "paper"])
async def test_pitfall_19_without_looking_ahead_no_call_is_wasted(
    tmp_path: Path, preset: str, settings: dict[str, Any]
) -> None:
    with small(p=0.1, q=0.6) as world:
        trained = await train(world, tmp_path, {"train.epochs": 1, **settings}, preset=preset)
        assert world.calls["target"] == len(trained.rows("rollouts.jsonl"))


async def test_a_call_made_ahead_is_no_longer_behind_all_others_once_it_is_asked_for(tmp_path: Path) -> None:
    with small(latency=0.05) as world, session_at(world, tmp_path, workers=1) as session:
        roll, samples = session.roll, session.splits.train
        await roll(session.skill, samples[:1])
        roll.prefetch(SKILL, samples[:6])
        await until(lambda: world.calls["target"] >= 2)
        others = asyncio.create_task(roll(session.skill, samples[1:9]))
        await idle()
        await roll(SKILL, samples[5:6])
        await until(lambda: (samples[2].id, SKILL.body) in [(seen.sample, seen.system) for seen in world.requests])
        await others
        order = [(seen.sample, seen.system) for seen in sorted(world.requests, key=lambda seen: seen.began)]
        guesses = [sample for sample, system in order if system == SKILL.body]
        assert guesses[-2:] == [samples[5].id, samples[2].id]  # not behind the other guesses
        last = max(order.index((seen.sample, seen.system)) for seen in world.requests if seen.sample == samples[8].id)
        assert order.index((samples[5].id, SKILL.body)) == last + 1
        await session.aclose()


# -- what fails


async def test_a_batch_waits_for_its_last_sample_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample left out of a batch changes what is decided; one that never answers is not waited for each time."""
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0, 0.0))

    class Mends(Gated):
        async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
            if self.asked["s2"] == 1:
                self.errors.pop("s2", None)
            return await super().run(skill, task, attempt)

    target = Mends()
    target.errors["s2"], target.errors["s4"] = InfraError("503"), InfraError("504")
    many = Env([{"id": f"s{i}", "input": f"q{i}", "target": "yes"} for i in range(30)])
    roll = Roller(target, many, run)
    rollouts = await roll(SKILL, many.samples)
    assert [rollout.sample for rollout in rollouts if not rollout.scored] == ["s4"]
    assert target.asked["s4"] == 3
    await roll(OTHER, many.samples)
    assert target.asked["s4"] == 4
    assert target.asked["s2"] == 3


async def test_no_more_samples_are_begun_at_once_than_allowed_and_all_come_in_order(run: Run) -> None:
    target = Gated("s0", "s1")
    roll = await answering(target, ENV, run, under_way=2)
    task = asyncio.create_task(roll(SKILL, ENV.samples))
    await idle()
    assert target.asked.total() == 2
    target.gates["s1"].set()
    await idle()
    assert target.asked.total() == 6
    target.gates["s0"].set()
    assert answers(await task) == [f"s{i} 0" for i in range(6)]


async def test_what_was_said_is_not_held_in_memory(run: Run) -> None:
    roll = Roller(Gated(), ENV, run)
    rollouts = await roll(SKILL, ENV.samples)
    assert answers(rollouts) == [f"s{i} 0" for i in range(6)]
    assert [held.score for held in roll.seen.values()] == [rollout.score for rollout in rollouts]
    assert not any(held.answer or held.trajectory.turns for held in roll.seen.values())


# -- nothing is said of tasks that were left behind


@contextmanager
def nothing_unseen() -> Iterator[None]:
    """No task fails without anybody having asked how it ended: asyncio would write a traceback to stderr."""
    unseen: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unseen.append(context["message"]))
    try:
        yield
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert not unseen


@pytest.mark.parametrize("error", [CallConfigError, BudgetExceeded, InfraStopped])
async def test_a_batch_that_fails_while_its_reader_turns_away_leaves_no_traceback(
    run: Run, error: type[Exception]
) -> None:
    """As when a key expires: the first rollout has come, its reader turns away, and the refusal of another arrives in
    the moment in which that is cancelled."""

    class Refused(Gated):
        async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
            try:
                return await super().run(skill, task, attempt)
            except asyncio.CancelledError:
                raise error("401") from None

    async def read_one() -> None:
        async with aclosing(Roller(Refused("s1"), ENV, run).stream(SKILL, ENV.samples)) as rollouts:
            async for _ in rollouts:
                break

    with nothing_unseen():
        await read_one()


async def test_a_payment_whose_last_waiter_is_cancelled_while_it_fails_leaves_no_traceback(run: Run) -> None:
    async def pay() -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise CallConfigError("failed while it was cancelled") from None

    async def cancelled() -> None:
        waiter = asyncio.ensure_future(run.memo("key", "rollout", pay))
        await asyncio.sleep(0.01)
        waiter.cancel()
        await asyncio.wait([waiter])

    with nothing_unseen():
        await cancelled()


# -- what no waiting can change

MANY = Env([{"id": f"s{i}", "input": f"q{i}", "target": "yes"} for i in range(40)])
FILTERED = SampleError("400: the content filter refused the prompt", systemic="refused by the content filter")


def left_out(rollouts: list[Rollout]) -> dict[str, str]:
    return {rollout.sample: rollout.outcome for rollout in rollouts if not rollout.scored}


async def test_pitfall_32_a_refused_sample_is_left_out_at_once_and_asked_no_more(run: Run) -> None:
    target = Gated()
    refused = ["s3", "s17", "s18", "s19", "s39"]  # more than the tenth that may fail
    target.errors = dict.fromkeys(refused, FILTERED)
    roll = Roller(target, MANY, run)
    rollouts = await roll(SKILL, MANY.samples)
    assert left_out(rollouts) == dict.fromkeys(refused, "sample_error")
    await roll(SKILL, MANY.samples, purpose="again")
    assert set(target.asked.values()) == {1}
    (event,) = [data for _, _, data in run.events("left out") if data["purpose"] == "train"]
    assert {sample: told["cause"] for sample, told in event["samples"].items()} == dict.fromkeys(
        refused, "refused by the content filter"
    )


async def test_what_was_refused_is_not_asked_by_a_resumed_run_either(run: Run) -> None:
    target = Gated()
    target.errors["s3"] = FILTERED
    await Roller(target, MANY, run)(SKILL, MANY.samples)
    target.errors.clear()
    resumed = Roller(target, MANY, run)
    assert left_out(await resumed(SKILL, MANY.samples)) == {"s3": "sample_error"}
    assert left_out(await resumed(SKILL, MANY.samples, purpose="later")) == {"s3": "sample_error"}
    assert target.asked["s3"] == 1


async def test_a_filter_that_refuses_nearly_all_stops_the_batch_with_its_cause(run: Run) -> None:
    target = Gated()
    target.errors = {sample.id: FILTERED for sample in MANY.samples[:38]}
    with pytest.raises(InfraStopped, match="38 of 40 calls of the batch 'train' failed: 400: the content filter"):
        await Roller(target, MANY, run)(SKILL, MANY.samples)
    assert set(target.asked.values()) == {1}


async def test_a_candidate_that_is_refused_everywhere_is_no_reason_to_stop(run: Run) -> None:
    target = Gated()
    roll = Roller(target, MANY, run)
    await roll(SKILL, MANY.samples)
    target.errors = {sample.id: SampleError("413: too long for the context") for sample in MANY.samples}
    assert not any(rollout.scored for rollout in await roll(OTHER, MANY.samples))
    assert [rollout.scored for rollout in await roll(SKILL, MANY.samples)] == [True] * 40
    with pytest.raises(InfraStopped, match="too long for the context"):  # the incumbent itself is refused now
        await roll(SKILL, MANY.samples, attempt=1)


async def test_a_small_batch_of_refused_samples_does_not_stop_a_run(run: Run) -> None:
    target = Gated()
    refused = {"s1", "s2", "s3"}
    target.errors = dict.fromkeys(refused, FILTERED)
    roll = Roller(target, MANY, run)
    await roll(SKILL, MANY.samples)
    rollouts = await roll(SKILL, MANY.samples[:4], attempt=1)
    assert set(left_out(rollouts)) == refused


@pytest.mark.parametrize(
    "errors",
    [
        [InfraError("the endpoint streams")] * 2 + [InfraError("the endpoint streams")],
        [InfraError(f"answer {i}: <html>", systemic="the endpoint answers with a web page") for i in range(3)],
        [InfraError(f'malformed answer: "{i}{{"') for i in (1, 22, 333)],
    ],
)
async def test_pitfall_33_three_equal_failures_at_the_start_stop_the_batch(
    run: Run, errors: list[CallError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (30.0,))
    target = Gated()
    target.errors = {sample.id: errors[i % 3] for i, sample in enumerate(MANY.samples)}
    with pytest.raises(InfraStopped, match="3 of 3 samples failed in the same way") as told:
        await Roller(target, MANY, run)(SKILL, MANY.samples)
    assert target.asked.total() == ALIKE
    assert str(errors[-1]) in str(told.value)
    assert errors[-1].systemic in str(told.value)


async def test_one_call_goes_ahead_of_the_first_batch_and_no_other(run: Run) -> None:
    target = Gated("s0", "s7")
    roll = Roller(target, MANY, run)
    batches = asyncio.gather(roll(SKILL, MANY.samples), roll(OTHER, MANY.samples))
    await idle()
    assert target.asked == {"s0": 1}
    target.gates["s0"].set()
    await idle()
    assert target.asked.total() == 80
    target.gates["s7"].set()
    assert [answers(rollouts) for rollouts in await batches] == [[f"s{i} 0" for i in range(40)]] * 2


async def test_a_wrong_key_is_seen_by_the_call_that_goes_ahead(run: Run) -> None:
    target = Gated()
    target.errors = {sample.id: CallConfigError("401: no such key") for sample in MANY.samples}
    with pytest.raises(CallConfigError, match=r"sample s0: 401: no such key$"):
        await Roller(target, MANY, run)(SKILL, MANY.samples)
    assert target.asked == {"s0": 1}


async def test_the_first_sample_may_fail_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    target = Gated()
    target.errors = {"s0": InfraError("500: no such glyph"), "s1": FILTERED}
    roll = Roller(target, MANY, run)
    assert left_out(await roll(SKILL, MANY.samples)) == {"s0": "infra_error", "s1": "sample_error"}


async def test_equal_failures_after_a_success_stop_no_batch_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    target = Gated()
    roll = Roller(target, MANY, run)
    await roll(SKILL, MANY.samples)
    target.errors = dict.fromkeys(("s0", "s1", "s2"), InfraError("503"))
    assert set(left_out(await roll(OTHER, MANY.samples))) == {"s0", "s1", "s2"}


async def test_nobody_waits_for_what_names_its_own_cause(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (30.0,))
    target = Gated()
    roll = Roller(target, MANY, run)
    await roll(SKILL, MANY.samples)
    cut = InfraError("cut at 16 tokens before any text", systemic="raise target.max_tokens")
    target.errors = {sample.id: cut for sample in MANY.samples[:27]}
    async with asyncio.timeout(5):
        with pytest.raises(InfraStopped, match=r"27 of 40 calls .* failed: cut at 16 tokens") as told:
            await roll(OTHER, MANY.samples[::-1])
    assert set(target.asked.values()) == {2}
    assert "--fork" in str(told.value)


@pytest.mark.parametrize("succeeds", [False, True])
async def test_later_too_a_batch_ends_once_it_cannot_be_mended(
    run: Run, succeeds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a score in it, and with more equal failures than a batch may have. One score shows that there is hope."""
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    target = Gated()
    roll = Roller(target, MANY, run, under_way=1)
    await roll(SKILL, MANY.samples)
    errors = {sample.id: JudgeError(f'sample "{sample.id}": no verdict') for sample in MANY.samples}
    target.errors = {id: error for id, error in errors.items() if not (succeeds and id == "s1")}
    with pytest.raises(InfraStopped, match="39 of 40" if succeeds else "5 of 5 scores .* no verdict"):
        await roll(OTHER, MANY.samples)


async def test_a_stop_names_each_cause_and_the_way_to_go_on_without_few_samples(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    target = Gated()
    target.errors = {"s2": InfraError("500: glyph"), "s4": InfraError("504: slow")}
    with pytest.raises(InfraStopped) as told:
        await Roller(target, ENV, run)(SKILL, ENV.samples)
    assert "1 × 500: glyph (s2); 1 × 504: slow (s4)" in str(told.value)
    assert "add --drop s2 --drop s4" in str(told.value)


async def test_a_dropped_sample_is_replayed_and_not_asked(run: Run) -> None:
    target = Gated()
    roll = Roller(target, MANY, run)
    first = await roll(SKILL, MANY.samples)
    dropping = Roller(target, MANY, run, dropped=frozenset({"s5"}))
    assert await dropping(SKILL, MANY.samples) == first
    assert left_out(await dropping(OTHER, MANY.samples)) == {"s5": "not_graded"}
    assert target.asked["s5"] == 1
    assert set(REFUSED) == {"sample_error", "not_graded"}


async def test_the_key_of_a_rollout_holds_the_content_of_its_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("one")
    rows = [{"id": "s0", "input": "?", "files": {"notes.txt": "notes.txt"}}, {"id": "s1", "input": "!"}]
    env = Env(rows, lambda sample, rollout: 1.0, root=tmp_path)
    before = [Roller(Gated(), env, run).key(SKILL, sample, 0) for sample in env.samples]
    (tmp_path / "notes.txt").write_text("two")
    after = [Roller(Gated(), env, run).key(SKILL, sample, 0) for sample in env.samples]
    assert before[0] != after[0]
    assert before[1] == after[1]


# -- a request that is refused as it is

UNREAD = RejectedError("400: the request could not be processed")


@pytest.mark.parametrize("refused", [["s0"], ["s5"], ["s0", "s5"]])
async def test_a_rejected_sample_is_named_with_the_way_to_go_on_without_it(run: Run, refused: list[str]) -> None:
    target = Gated()
    target.errors = dict.fromkeys(refused, UNREAD)
    with pytest.raises(CallConfigError, match=rf"^sample {refused[0]}: 400: .*\nIf only .* add --drop {refused[0]} to"):
        await Roller(target, MANY, run)(SKILL, MANY.samples)
    assert target.asked["s1"] == 1


@pytest.mark.parametrize("second", [UNREAD, FILTERED, CallConfigError("404: no such model"), InfraError("500: oops")])
async def test_the_first_rejection_stands_if_the_second_sample_is_not_answered_either(
    run: Run, second: CallError
) -> None:
    target = Gated()
    target.errors = {sample.id: second for sample in MANY.samples}
    target.errors["s0"] = UNREAD
    with pytest.raises(CallConfigError, match=r"^sample s0: 400: the request could not be processed$"):
        await Roller(target, MANY, run)(SKILL, MANY.samples)
    assert target.asked == {"s0": 1, "s1": 1}


async def test_a_key_that_expires_is_no_samples_fault(run: Run) -> None:
    target = Gated()
    target.errors["s7"] = CallConfigError("401: the token has expired")
    with pytest.raises(CallConfigError, match=r"^sample s7: 401: the token has expired$"):
        await Roller(target, MANY, run)(SKILL, MANY.samples)


# -- another judge

JUDGED = Env(
    [{"id": f"s{i}", "input": f"q{i}", "checks": [{"type": "judge", "text": "Is short"}]} for i in range(40)],
    {"judge": "openai/judge"},
)


@pytest.mark.parametrize("silent", [range(0, 40), range(10, 40), range(20, 25)])
async def test_another_judge_reads_the_answers_that_are_there(
    run: Run, silent: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skilltune.rollouts.roller.WAITS_S", (0.0,))
    mute = {f"s{i}" for i in silent}

    async def one(sample: Sample, answer: str, lines: Sequence[str]) -> list[Verdict]:
        if sample.id in mute:
            raise JudgeError("no verdict: it passes without a quote")
        return [Verdict(line, False, "") for line in lines]

    async def other(sample: Sample, answer: str, lines: Sequence[str]) -> list[Verdict]:
        return [Verdict(line, True, answer) for line in lines]

    target = Gated()
    with pytest.raises(InfraStopped, match="name another with --fork"):
        await Roller(target, JUDGED.bound(one, "one"), run)(SKILL, JUDGED.samples)
    asked = set(target.asked)
    rollouts = await Roller(target, JUDGED.bound(other, "other"), run)(SKILL, JUDGED.samples)
    assert [rollout.score.value for rollout in rollouts if rollout.score] == [1.0] * 40
    assert asked
    assert set(target.asked.values()) == {1}
