"""Waits end: what servers say of how long to wait, in all its spellings, and what is done with it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_server import Answer, Server
from http_server import Call as HttpCall
from sending import send
from skilltune.errors import InfraError, InfraStopped
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.models import Reply, Request, user
from skilltune.models.build import build_model
from skilltune.models.retry import RateLimited, RetryPolicy, clock_time, is_daily, retry_after, span, stated_wait
from skilltune.usage import Usage
from training import prepare, small, train_at
from world import Faults

pytestmark = pytest.mark.anyio

ASK = Request((user("2 + 2?"),))
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
LEFT = "x-ratelimit-remaining-requests"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "90"}, 90),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "6m0s"}, 360),
        ({"Retry-After": "250ms"}, 0.25),
        ({"Retry-After": "Fri, 15 Jan 2027 09:00:00 GMT"}, 3600),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),  # has passed
        ({"Retry-After": "2027-01-15T08:01:00+00:00"}, 60),
        ({"Retry-After": "1800000030"}, 30),  # seconds since 1970
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"X-RateLimit-Reset": "1800032400000"}, 32400),  # milliseconds since 1970
        ({"X-RateLimit-Reset": "1800032400"}, 32400),
        ({"X-RateLimit-Reset": "1700000000"}, 0),
        ({"X-RateLimit-Reset": "45", "X-RateLimit-Remaining": "0"}, 45),
        ({"RateLimit-Reset": "45"}, 45),
        ({"X-Rate-Limit-Reset": "45"}, 45),
        ({"x-ratelimit-reset-requests": "17ms", LEFT: "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "1h2m3.5s", LEFT: "0"}, 3723.5),
        ({"x-ratelimit-reset-requests": "9h", LEFT: "7"}, None),  # some are left: not the limit that refused
        ({"anthropic-ratelimit-requests-reset": "2027-01-15T08:00:20Z"}, 20),
        ({"X-RateLimit-Reset": "9h", "Retry-After": "3"}, 3),
        *(({"Retry-After": text}, None) for text in ("", "soon", "-5", "nan", "1e9", "9" * 40, "500000000")),
        ({}, None),
    ],
)
def test_the_wait_that_headers_state(headers: dict[str, str], wait: float | None) -> None:
    assert stated_wait(headers, "", NOW) == (None if wait is None else pytest.approx(wait))


@pytest.mark.parametrize(
    ("body", "wait"),
    [
        ("Rate limit reached on tokens per min. Please try again in 7m12.5s. Visit …", 432.5),
        ("Please retry after 20 seconds.", 20),
        ("Too many requests, try again in 350ms", 0.35),
        ("Try again in 2 hours", 7200),
        ('{"error": {"details": [{"@type": "…RetryInfo", "retryDelay": "34s"}]}}', 34),
        (json.dumps({"error": {"metadata": {"headers": {"X-RateLimit-Reset": "1800032400000"}}}}), 32400),
        (json.dumps({"error": {"metadata": {"headers": {"Retry-After": "12"}}}}), 12),
        ("try again in a moment", None),
        ("[" * 5000, None),
        ('{"error": {"metadata": 3}}', None),
    ],
)
def test_the_wait_that_a_body_states(body: str, wait: float | None) -> None:
    assert stated_wait({}, body, NOW) == (None if wait is None else pytest.approx(wait))


@given(st.text(max_size=80), st.text(max_size=200))
def test_whatever_a_server_says_is_a_wait_of_at_most_a_year_or_none(header: str, body: str) -> None:
    for name in ("Retry-After", "X-RateLimit-Reset", "retry-after-ms"):
        wait = stated_wait({name: header}, f"try again in {body}", NOW)
        assert wait is None or wait >= 0
        assert retry_after({name.lower(): header}, NOW) is None or wait is not None


@given(st.floats(0, 86400 * 300))
def test_a_span_and_a_time_can_be_shown(seconds: float) -> None:
    assert re.fullmatch(r"\d+ (s|min|h)( \d+ min)?", span(seconds))
    shown = clock_time(seconds, NOW)
    assert datetime.strptime(shown, "%H:%M:%S" if "-" not in shown else "%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("text", "daily"),
    [
        ("Rate limit exceeded: free-models-per-day. Add 10 credits", True),
        ("on requests per day (RPD): Limit 200", True),
        ("quotaId: GenerateRequestsPerDayPerProject", True),
        ("You exceeded your daily request limit", True),
        ("on requests per min (RPM): Limit 3, Used 3", False),
        ("Have a nice day", False),
    ],
)
def test_a_quota_of_the_day_is_told_by_its_words(text: str, daily: bool) -> None:
    assert is_daily({}, text) is daily


# what an endpoint does with them


class Clock:
    """Time that passes only while somebody sleeps, one sleeper after the other."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


class Refusing:
    """A model that refuses as it is told, then answers; without an end where the last refusal is repeated."""

    name = fingerprint = "openai@http://127.0.0.1:9/v1/m"

    def __init__(self, *refusals: InfraError, for_ever: bool = False) -> None:
        self.refusals, self.for_ever, self.asked = list(refusals), for_ever, 0

    async def complete(self, request: Request) -> Reply:
        self.asked += 1
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals[0] if self.for_ever and len(self.refusals) == 1 else self.refusals.pop(0)
        return Reply("4", Usage(1, 5, 1, usd=0.0))

    async def aclose(self) -> None: ...


def daily(wait: float | None = None) -> RateLimited:
    refusal = RateLimited("429 requests per day", retry_after=wait)
    refusal.daily = True
    return refusal


def limited(clock: Clock, workers: int = 1, max_wait_s: float = 600.0) -> Endpoint:
    return Endpoint(workers, max_wait_s=max_wait_s, draw=lambda: 0.0, sleep=clock.sleep, clock=clock)


async def test_a_wait_of_minutes_is_kept_in_full_and_said_once(tmp_path: Path) -> None:
    clock, said = Clock(), list[tuple[str, dict[str, object]]]()
    with Run.open(tmp_path) as run:
        run.listeners.append(lambda type, data: said.append((type, dict(data))))
        client = Client(
            Refusing(*[RateLimited("429 slow down", retry_after=90) for _ in range(4)]),
            Meter(limited(clock, 4), Budget(Limits(), Usage()), run, "target"),
        )
        replies = await asyncio.gather(*(client(ASK) for _ in range(4)))
    assert [reply.text for reply in replies] == ["4"] * 4
    assert 90 <= clock.now < 95
    ((type, data),) = said
    assert (type, data["purpose"], data["seconds"]) == ("waiting", "target", 90)
    assert "429 slow down" in str(data["why"])
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d(:\d\d)?", str(data["until"]))


async def test_pitfall_33_a_wait_beyond_the_maximum_ends_all_calls_at_once() -> None:
    clock, model = Clock(), Refusing(RateLimited("429", retry_after=9 * 3600), for_ever=True)
    endpoint = limited(clock, workers=3)
    ends = await asyncio.gather(*(send(endpoint, model, ASK) for _ in range(40)), return_exceptions=True)
    assert {type(end) for end in ends} == {InfraStopped}
    assert model.asked <= 3  # those that were under way; nobody in the line is sent
    assert clock.now == 0
    assert "a wait of 9 h, longer than the limit (target.max_wait_s = 600)" in str(ends[0])
    assert "run the same command again after" in str(ends[0])
    with pytest.raises(InfraStopped):
        await send(endpoint, model, ASK)
    assert model.asked <= 3


async def test_who_waits_for_another_try_is_woken_when_the_endpoint_is_closed() -> None:
    model = Refusing(RateLimited("429", retry_after=60), RateLimited("429", retry_after=9000))
    endpoint = Endpoint(1)
    first = asyncio.create_task(send(endpoint, model, ASK))
    await asyncio.sleep(0.02)
    with pytest.raises(InfraStopped):
        await send(endpoint, model, ASK)
    with pytest.raises(InfraStopped):
        await asyncio.wait_for(first, 20)


@pytest.mark.parametrize(
    ("refusals", "asked"),
    [
        ([daily()], 1),  # it does not say when: nothing to wait for
        ([daily(34), daily(34)], 2),  # it said 34 seconds, and they were in vain
    ],
)
async def test_a_quota_of_the_day_is_not_waited_for(refusals: list[RateLimited], asked: int) -> None:
    model = Refusing(*refusals, for_ever=True)
    with pytest.raises(InfraStopped, match="daily quota is used up"):
        await send(limited(Clock()), model, ASK)
    assert model.asked == asked


async def test_refusals_without_end_are_not_waited_for_longer_than_the_maximum() -> None:
    clock, model = Clock(), Refusing(RateLimited("429", retry_after=50), for_ever=True)
    endpoint = limited(clock, max_wait_s=120)
    with pytest.raises(InfraStopped, match="No good answer has come for 100 s"):
        await send(endpoint, model, ASK, role="judge")
    assert (clock.now, model.asked) == (100, 3)
    model = Refusing(*[RateLimited("429", retry_after=50), RateLimited("429", retry_after=50)])
    endpoint = limited(clock, max_wait_s=120)
    for _ in range(2):  # a good answer starts the count anew
        await send(endpoint, model, ASK)
        model.refusals += [RateLimited("429", retry_after=50), RateLimited("429", retry_after=50)]


async def test_short_waits_are_not_worth_a_line() -> None:
    said = []
    model = Refusing(InfraError("500"), RateLimited("429", retry_after=1))
    await send(limited(Clock()), model, ASK, on_wait=lambda seconds, why: said.append(seconds))
    assert said == []


async def test_over_http_a_spent_quota_stops_a_run_with_the_time_to_run_again(tmp_path: Path) -> None:
    """The first 40 answers are good, then a router says that the day's quota opens in nine hours."""
    reset = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int((time.time() + 9 * 3600) * 1000))}

    def answer(call: HttpCall) -> Answer:
        if len(server.calls) > 40:
            return Answer({"error": {"message": "limit of free models per day"}}, status=429, headers=reset)
        usage = {"prompt_tokens": 5, "completion_tokens": 1}
        return Answer({"choices": [{"message": {"content": "K0"}, "finish_reason": "stop"}], "usage": usage})

    with small() as world:
        prepare(world, tmp_path)
    async with Server(answer) as server:
        with pytest.raises(InfraStopped, match=r"a wait of (9 h|8 h 59 min|9 h 1 min)") as stopped:
            await train_at(f"{server.url}/v1", tmp_path, {"optimizer.model": "examples", "target.workers": 4})
    assert stopped.value.exit_code == 3
    assert len(server.calls) <= 44
    run = Run.read(tmp_path / "run")
    assert run.usage["rollout"].calls == 40
    run.close()


async def test_a_maximum_can_be_set_for_each_role(tmp_path: Path) -> None:
    with small(faults={"target": Faults(limit=1.0, retry_after=30)}) as world:
        prepare(world, tmp_path)
        with pytest.raises(InfraStopped, match=r"target\.max_wait_s = 20"):
            await train_at(world.url, tmp_path, {"target.max_wait_s": 20, "optimizer.max_wait_s": 10})


async def test_a_refusal_costs_nothing_and_a_reply_that_never_came_costs_its_estimate(tmp_path: Path) -> None:
    price = (1.0, 10.0)
    async with Server(Answer(status=429), Answer(drop=True), Answer(hang=True), Answer(status=500)) as server:
        model = build_model(f"openai@{server.url}/v1/m", price=price, timeout_s=0.2)
        with Run.open(tmp_path) as run:
            budget = Budget(Limits(usd=1), Usage())
            client = Client(model, Meter(Endpoint(1, RetryPolicy(4, base_s=0.001)), budget, run, "target"), price)
            with pytest.raises(InfraError):
                await client(Request((user("x" * 400),), max_tokens=50))
        await model.aclose()
        assert replace(budget.spent, usd=0.0) == Usage(4, 200, 100)
        assert budget.spent.usd == pytest.approx(2 * (100 * 1 + 50 * 10) / 1e6)
    with Run.open(tmp_path) as run:
        assert run.usage["failed attempt"] == budget.spent
        assert run.estimated == 2
