"""The gateway over real HTTP: a scripted model server above it, a small agent below it."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from skilltune.errors import CallConfigError, InfraError, SampleError, UsageError
from skilltune.gateway import Activation, Gateway, Lease, RolloutLimits, upstream, upstream_of
from skilltune.gateway import Upstream as Model
from skilltune.gateway.trajectory import turns_of
from skilltune.journal.run import Run
from skilltune.metering.slots import Endpoint
from skilltune.models.dialects import Conversation, Dialect, Message, Text
from skilltune.models.retry import RetryPolicy
from skilltune.rollout import Turn as Shown
from skilltune.usage import Usage
from small_agent import BODY, DIALECTS, PATHS, first, following, post, work
from upstream import BODIES, STREAMS, Asked, Call, Fault, Script, Turn, Upstream, turns

pytestmark = pytest.mark.anyio

KEY = "sk-upstream-secret-0123456789"
TASK = turns(Turn("I look.", (Call("Bash", {"command": "ls"}),)), Turn("The total is 42."))
FORCED = Activation("forced", "totals", "Writes totals.", BODY)


def model(server: Upstream, dialect: Dialect, name: str = "real-model", **more: Any) -> Model:
    base = server.url if dialect == "anthropic-messages" else f"{server.url}/v1"
    scheme = "anthropic" if dialect == "anthropic-messages" else "openai"
    return Model(dialect, base, name, KEY, name=f"{scheme}@{base}#{name}", **more)


@asynccontextmanager
async def gateway(script: Script = TASK, *faults: Fault | None, delay: float = 0.0, **more: Any) -> AsyncIterator[Any]:
    async with Upstream(script, *faults, delay=delay) as server, Gateway(**more) as door:
        yield server, door


def quick() -> Endpoint:
    return Endpoint(4, RetryPolicy(attempts=3, base_s=0.01))


def lease(door: Gateway, upstream: Model, **more: Any) -> Lease:
    given: dict[str, Any] = {"rollout_key": "r1", "run": None, "slots": quick(), "limits": RolloutLimits()}
    given |= {"activation": FORCED} | more
    return door.lease(upstream, given.pop("activation"), given.pop("limits"), **given)


# -- the same dialect above and below


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_agent_works_through_the_gateway(dialect: Dialect, stream: bool):
    async with gateway() as (server, door):
        one = lease(door, model(server, dialect))
        answers = await work(one.url, dialect, stream=stream)
    assert [got.status for got in answers] == [200, 200]
    assert (one.exchanges, one.replayed, one.limit, one.fault) == (2, 0, "", None)
    assert (one.usage.calls, one.usage.input_tokens, one.usage.cached_tokens, one.usage.usd) == (2, 200, 80, 0.0)
    assert one.usage.output_tokens == 20
    assert one.answer() == "The total is 42."
    assert one.offered
    assert one.loaded
    assert list(one.turns()) == [
        Shown("user", "Do it.\n[the skill `totals`]"),
        Shown("assistant", "I look."),
        Shown("tool call", "Bash\ncommand: ls"),
        Shown("tool", "42"),
        Shown("assistant", "The total is 42."),
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_body_passes_byte_for_byte_but_for_model_and_key(dialect: Dialect):
    async with gateway() as (server, door):
        one = lease(door, model(server, dialect))
        body = first(dialect) | {"odd": {"z": 1.0, "a": 'é\u2028 "model": "asked-for"', "n": 10**25}}
        got = await post(one.url, dialect, body, **{"anthropic-beta": "b1", "X-Secret": "no"})
    (asked,) = server.asked
    assert asked.raw == json.dumps(body).replace('"asked-for"', '"real-model"', 1).encode()
    assert asked.query == ("beta=true" if dialect == "anthropic-messages" else "")
    assert KEY in (asked.headers.get("x-api-key", ""), asked.headers.get("authorization", "").removeprefix("Bearer "))
    assert asked.headers.get("anthropic-beta") == "b1"
    assert "x-secret" not in asked.headers
    assert one.token not in str(asked.headers)
    async with (
        Upstream(TASK) as direct,
        aiohttp.ClientSession() as session,
        session.post(f"{direct.url}{PATHS[dialect]}", data=asked.raw) as response,
    ):
        assert await response.read() == got.raw  # the stream too


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_stream_is_relayed_as_it_comes(dialect: Dialect):
    async with gateway(turns(Turn("one two")), delay=0.05) as (server, door):
        one = lease(door, model(server, dialect), activation=None)
        async with (
            aiohttp.ClientSession() as session,
            session.post(one.url + PATHS[dialect], json=first(dialect)) as response,
        ):
            times = [asyncio.get_running_loop().time() async for _ in response.content.iter_any()]
    assert times[-1] - times[0] > 0.1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"Base directory for this skill: /w/1\n\n{BODY}\n\nARGUMENTS: add 1 and 2",
            "[the skill `totals`]\n\nARGUMENTS: add 1 and 2",
        ),
        (f"{BODY}\n\nTicket 7: add 1 and 2", "[the skill `totals`]\n\nTicket 7: add 1 and 2"),
        (f"Ticket 7.\n{' '.join(BODY.split())}", "Ticket 7.\n[the skill `totals`]"),
        (f"<skill>\n<name>totals</name>\n{BODY}\n</skill>", "[the skill `totals`]"),
        ("1\t" + BODY.replace("\n", "\n2\t"), "[the skill `totals`]"),
        ("<system-reminder>be nice</system-reminder>", ""),
        ("Never add a currency sign.", "Never add a currency sign."),
    ],
)
def test_the_trajectory_keeps_the_task_that_stands_beside_the_skill(text: str, shown: str):
    """The optimizer learns from the trajectory, so it must see the task."""
    found = turns_of(Conversation("m", (Message("user", (Text(text),)),)), None, FORCED)
    assert [turn.text for turn in found] == ([shown] if shown else [])


# -- another dialect above

PAIRS = [(below, above) for below in DIALECTS for above in DIALECTS if below != above]


@pytest.mark.parametrize(("below", "above"), PAIRS)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_agent_works_with_a_model_of_another_dialect(below: Dialect, above: Dialect, stream: bool):
    script = turns(
        Turn("I look.", (Call("Bash", {"command": "ls"}), Call("Bash", {"command": "pwd"})), thinking="Let me see."),
        Turn("The total is 42.", cut=True),
    )
    async with gateway(script) as (server, door):
        one = lease(door, model(server, above))
        answers = await work(one.url, below, stream=stream)
    assert [got.status for got in answers] == [200, 200]
    assert [asked.body.get("stream", False) for asked in server.asked] == [stream, stream]
    assert [asked.body["model"] for asked in server.asked] == ["real-model"] * 2
    assert [asked.results for asked in server.asked] == [0, 2]
    assert "You are an agent." in str(server.asked[0].body)
    assert "Never add a currency sign." in str(server.asked[0].body)
    assert "u1" not in str(server.asked[0].body)
    assert (one.exchanges, one.usage.input_tokens, one.usage.cached_tokens, one.usage.output_tokens) == (2, 200, 80, 20)
    assert one.answer() == "The total is 42."
    shown = [(turn.role, turn.text) for turn in one.turns() if turn.role != "thinking"]
    assert shown[1:] == [
        ("assistant", "I look."),
        ("tool call", "Bash\ncommand: ls"),
        ("tool call", "Bash\ncommand: pwd"),
        ("tool", "42"),
        ("tool", "42"),
        ("assistant", "The total is 42."),
    ]


@pytest.mark.parametrize(("below", "above"), PAIRS)
async def test_a_translated_stream_is_relayed_as_it_comes(below: Dialect, above: Dialect):
    async with gateway(turns(Turn("one two")), delay=0.05) as (server, door):
        one = lease(door, model(server, above), activation=None)
        async with (
            aiohttp.ClientSession() as session,
            session.post(one.url + PATHS[below], json=first(below)) as response,
        ):
            times = [asyncio.get_running_loop().time() async for _ in response.content.iter_any()]
    assert times[-1] - times[0] > 0.1


@pytest.mark.parametrize(("below", "above"), PAIRS)
async def test_a_translated_exchange_is_replayed(below: Dialect, above: Dialect, tmp_path: Path):
    script = turns(Turn("I look.", (Call("Bash", {"command": "ls"}),), thinking="Hm."), Turn("Done."))
    with Run.open(tmp_path / "run") as run:
        async with gateway(script) as (server, door):
            leases = [lease(door, model(server, above), run=run) for _ in range(3)]
            for one, stream in zip(leases, (True, True, False), strict=True):
                await work(one.url, below, stream=stream)
    assert [one.paid.calls for one in leases] == [2, 0, 2]  # the last one asks for a whole answer: another question
    assert [one.answer() for one in leases] == ["Done."] * 3
    assert leases[1].turns() == leases[0].turns()


@pytest.mark.parametrize(("below", "above"), PAIRS)
async def test_what_cannot_be_translated_is_named_before_anything_is_sent(below: Dialect, above: Dialect):
    async with gateway() as (server, door):
        one = lease(door, model(server, above))
        odd = first(below) | {"background": True, "mcp_servers": [{"name": "x"}], "logprobs": True}
        got = await post(one.url, below, odd)
    assert got.status == 400
    assert server.asked == []
    assert isinstance(one.fault, CallConfigError)
    assert "background" in str(one.fault)


async def test_a_custom_tool_works_with_a_model_that_has_functions_only():
    script = turns(Turn("", (Call("apply_patch", text="*** Begin Patch\n+x"),)), Turn("Done."))
    async with gateway(script) as (server, door):
        one = lease(door, model(server, "openai-chat"))
        body = first("openai-responses")
        body["tools"] += [
            {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": {"type": "text"}}
        ]
        for stream in (True, False):
            got = await post(one.url, "openai-responses", body | {"stream": stream})
            (item,) = got.events[-1]["response"]["output"] if stream else got.json["output"]
            assert (item["type"], item["input"]) == ("custom_tool_call", "*** Begin Patch\n+x")
        output = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "ok"}
        await post(one.url, "openai-responses", body | {"input": [*body["input"], item, output]})
        assert one.answer() == "Done."
        assert [turn.text for turn in one.turns()[1:3]] == ["apply_patch\n*** Begin Patch\n+x", "ok"]
        assert server.asked[-1].body["messages"][-1] == {"role": "tool", "tool_call_id": "call_0_0", "content": "ok"}


# -- who may ask


async def test_an_unknown_token_a_wrong_host_and_a_closed_lease_are_refused():
    async with gateway() as (server, door):
        one = lease(door, model(server, "openai-chat"))
        url = one.url
        assert (await post(f"{door.url}/{'x' * 32}", "openai-chat", first("openai-chat"))).status == 401
        assert (await post(door.url, "anthropic-messages", first("anthropic-messages"))).json["type"] == "error"
        assert (await post(url, "openai-chat", first("openai-chat"), Host="evil.example")).status == 403
        assert server.asked == []
        assert (await post(url, "openai-chat", first("openai-chat"))).status == 200
        one.close()
        assert (await post(url, "openai-chat", first("openai-chat"))).status == 401


async def test_other_paths_and_bodies():
    async with gateway() as (server, door), aiohttp.ClientSession() as session:
        one = lease(door, model(server, "openai-chat"))
        async with session.get(f"{one.url}/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "real-model"
        for path, sent, status in [
            ("/v1/embeddings", b"{}", 404),
            ("/v1/messages", b"{", 400),
            ("/v1/messages", b"[]", 400),
            ("/v1/messages", b'{"a": 1} x', 400),
            ("/v1/messages", b"\xff", 400),
            ("/v1/messages", b'{"a":' + b"[" * 100_000, 400),
        ]:
            async with session.post(f"{one.url}{path}", data=sent) as response:
                assert response.status == status, path
                assert "error" in await response.json()
        counted = first("anthropic-messages")
        async with session.post(f"{one.url}/v1/messages/count_tokens", json=counted) as response:
            assert (await response.json())["input_tokens"] > 10
        assert server.asked == []


async def test_no_key_and_no_token_is_shown(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    caplog.set_level(logging.DEBUG)
    said = Fault(401, {"error": {"message": f"bad key {KEY}"}})
    with Run.open(tmp_path / "run") as run:
        async with gateway(TASK, None, None, said) as (server, door):
            one = lease(door, model(server, "openai-chat"), run=run)
            await work(one.url, "openai-chat")
            two = lease(door, model(server, "openai-chat"), run=run, rollout_key="r2")
            got = await post(two.url, "openai-chat", first("openai-chat"))
    shown = caplog.text + got.raw.decode() + repr(two.fault) + repr(one.upstream)
    shown += "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert isinstance(two.fault, CallConfigError)
    for secret in (KEY, one.token, two.token):
        assert secret not in shown


# -- limits


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_limit_of_turns_ends_the_agent_with_an_answer(dialect: Dialect, stream: bool):
    endless = turns(Turn("Again.", (Call("Bash", {"command": "ls"}),)))
    async with gateway(endless) as (server, door):
        one = lease(door, model(server, dialect), limits=RolloutLimits(max_turns=3))
        answers = await work(one.url, dialect, stream=stream)
    assert len(answers) == 4
    assert len(server.asked) == 3
    assert b"reached its limit" in answers[-1].raw
    assert one.limit == "max_turns = 3"
    assert one.fault is None
    assert one.answer() == "Again."


async def test_the_limit_of_dollars():
    endless = turns(Turn("Again.", (Call("Bash"),), input_tokens=1000, output_tokens=100))
    async with gateway(endless) as (server, door):
        one = lease(door, model(server, "openai-chat", rate=(10.0, 20.0)), limits=RolloutLimits(max_usd=0.03))
        await work(one.url, "openai-chat")
    assert one.limit == "max_usd = 0.03"
    assert len(server.asked) == 3  # 0.012 dollars each
    assert one.usage.usd == pytest.approx(0.036)


async def test_dollars_without_a_price_are_refused_before_anything_is_spent():
    async with gateway() as (_, door):
        unpriced = Model("openai-chat", "https://models.example/v1", "own", KEY)
        with pytest.raises(UsageError, match="max_usd"):
            lease(door, unpriced, limits=RolloutLimits(max_usd=1.0))


# -- the proof


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_without_the_skill_nothing_is_sent(dialect: Dialect):
    async with gateway() as (server, door):
        one = lease(door, model(server, dialect))
        got = await post(one.url, dialect, first(dialect, "Do it."))
        again = await post(one.url, dialect, first(dialect))
    assert (got.status, again.status) == (400, 400)
    assert server.asked == []
    assert isinstance(one.fault, CallConfigError)
    assert "totals" in str(one.fault)
    assert not one.offered


INTRO = "The following skills are available for use with the Skill tool:"
LISTINGS = {
    "claude": f"<system-reminder>\n{INTRO}\n\n{{}}</system-reminder>",
    "codex": "## Skills\nA skill is…\n### Available skills\n{}### How to use skills\n- Discovery: x\n",
    "opencode": "<available_skills>{}</available_skills>",
}


def listing(agent: str, **skills: str) -> str:
    form = (
        "<skill>\n<name>{}</name>\n<description>{}</description>\n</skill>\n" if agent == "opencode" else "- {}: {}\n"
    )
    return LISTINGS[agent].format("".join(form.format(name, text) for name, text in skills.items()))


@pytest.mark.parametrize("agent", LISTINGS)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_native_skill_is_proven_by_its_listing(agent: str, dialect: Dialect):
    native = Activation("native", "totals", "Writes  totals.", BODY)
    async with gateway() as (server, door):
        one = lease(door, model(server, dialect), activation=native)
        body = first(dialect, listing(agent, totals="Writes totals. (file: /x/SKILL.md)"))
        got = await post(one.url, dialect, body)
        assert one.offered
        assert not one.loaded
        read = "".join(f"{number:6}→{line}\n" for number, line in enumerate(BODY.split("\n"), 1))
        await post(one.url, dialect, following(dialect, body, got, read))
        assert one.loaded
        for text in (
            listing(agent, totals="Other."),
            listing(agent, other="Writes totals."),
            listing(agent, totals="Writes totals.", foreign="Mine."),
        ):
            two = lease(door, model(server, dialect), activation=native)
            assert (await post(two.url, dialect, first(dialect, text))).status == 400
            assert isinstance(two.fault, CallConfigError)
    assert len(server.asked) == 2


async def test_a_request_without_tools_waits_for_the_proof():
    async with gateway() as (server, door):
        one = lease(door, model(server, "openai-chat"))
        title = asyncio.create_task(post(one.url, "openai-chat", first("openai-chat", "Title?", tools=False)))
        await asyncio.sleep(0.05)
        assert server.asked == []
        assert (await post(one.url, "openai-chat", first("openai-chat"))).status == 200
        assert (await title).status == 200
        assert one.answer() == "I look."  # the trajectory is that of the requests with tools
        two = lease(door, model(server, "openai-chat"))
        title = asyncio.create_task(post(two.url, "openai-chat", first("openai-chat", "Title?", tools=False)))
        await asyncio.sleep(0.05)
        assert (await post(two.url, "openai-chat", first("openai-chat", "Do it."))).status == 400
        assert (await title).status == 400
    assert len(server.asked) == 2


# -- the journal


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_rollout_that_starts_again_is_answered_from_the_journal(dialect: Dialect, tmp_path: Path):
    async with gateway(TASK, None, Fault(drop=True), Fault(drop=True), Fault(drop=True)) as (server, door):
        upstream = model(server, dialect)
        with Run.open(tmp_path / "run") as run:
            one = lease(door, upstream, run=run)
            killed = await work(one.url, dialect)
            assert [got.status for got in killed] == [200, 400]
            assert isinstance(one.fault, InfraError)
            assert run.usage["target exchange"].calls == 1
        with Run.open(tmp_path / "run") as run:
            two = lease(door, upstream, run=run)
            await work(two.url, dialect)
            assert (two.exchanges, two.replayed, two.usage.calls, two.paid.calls) == (2, 1, 2, 1)
            asked = len(server.asked)
            three = lease(door, upstream, run=run)
            await work(three.url, dialect)
            assert (three.exchanges, three.replayed, three.paid.calls) == (2, 2, 0)
            assert three.usage == two.usage
            assert three.turns() == two.turns()
            assert len(server.asked) == asked
            other = lease(door, upstream, run=run, rollout_key="r2")
            await work(other.url, dialect)
            assert other.replayed == 0
            assert run.usage["target exchange"].calls == 4


async def test_the_same_question_of_one_rollout_gets_a_new_answer_once_it_had_one(tmp_path: Path):
    with Run.open(tmp_path / "run") as run:
        async with gateway(turns(Turn("Hm."))) as (server, door):
            for paid in (2, 0):
                one = lease(door, model(server, "openai-chat"), run=run)
                for _ in range(2):
                    await post(one.url, "openai-chat", first("openai-chat"))
                assert one.paid.calls == paid
    assert len(server.asked) == 2


# -- what goes wrong upstream


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        Fault(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        Fault(500, {"error": {"message": "oops"}}),
        Fault(drop=True),
        Fault(after=0, drop=True),
        Fault(200, {"error": {"message": "upstream overloaded", "code": 502}}),
        Fault(200, raw=b"<html>busy</html>"),
        Fault(after=0, raw=b'data: {"error": {"message": "overloaded", "code": 503}}\n\n'),
        Fault(after=0, raw=b"data: {not json}\n\n"),
        Fault(after=0, raw=b"data: [1, 2]\n\n"),
        Fault(after=0, raw=b'data: {"type": "content_block_delta", "index": 7, "delta": {}}\n\n'),
    ],
)
async def test_a_failure_before_the_answer_is_tried_again(dialect: Dialect, fault: Fault):
    async with gateway(TASK, fault) as (server, door):
        one = lease(door, model(server, dialect))
        answers = await work(one.url, dialect)
    assert [got.status for got in answers] == [200, 200]
    assert len(server.asked) == 3
    assert (one.exchanges, one.fault) == (2, None)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_answer_that_breaks_off_is_an_error_event_and_the_agent_may_ask_again(dialect: Dialect):
    after = {"anthropic-messages": 5, "openai-responses": 5, "openai-chat": 3}[dialect]
    async with gateway(turns(Turn("A long answer")), Fault(after=after, drop=True)) as (server, door):
        one = lease(door, model(server, dialect), activation=None)
        got = await post(one.url, dialect, first(dialect))
        assert got.status == 200
        assert "error" in str(got.events[-1])
        assert isinstance(one.fault, InfraError)
        again = await post(one.url, dialect, first(dialect))
    assert b"A long" in again.raw
    assert (one.fault, one.exchanges, one.answer()) == (None, 1, "A long answer")


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_a_refusal_ends_the_rollout(status: int):
    async with gateway(TASK, Fault(status, {"error": {"message": "no such thing"}})) as (server, door):
        one = lease(door, model(server, "anthropic-messages"))
        got = await post(one.url, "anthropic-messages", first("anthropic-messages"))
        await post(one.url, "anthropic-messages", first("anthropic-messages"))
    assert got.status == 400
    assert got.json["error"]["type"] == "invalid_request_error"
    assert isinstance(one.fault, CallConfigError)
    assert len(server.asked) == 1


async def test_a_prompt_that_is_too_long_is_for_the_agent_to_shorten():
    long = Fault(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}})
    async with gateway(TASK, long) as (server, door):
        one = lease(door, model(server, "anthropic-messages"))
        got = await post(one.url, "anthropic-messages", first("anthropic-messages"))
        assert got.status == 400
        assert "prompt is too long" in got.json["error"]["message"]
        assert isinstance(one.fault, SampleError)
        await post(one.url, "anthropic-messages", first("anthropic-messages"))
    assert one.fault is None


LONG = Fault(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}})
BROKEN = Fault(after=3, drop=True)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("failure", [LONG, BROKEN], ids=["refused", "broken off"])
async def test_another_conversation_does_not_hide_a_failed_exchange(dialect: Dialect, failure: Fault):
    """Sub-agents of one rollout ask in parallel. One that gave up is no success, whatever the others do."""
    if failure is BROKEN and dialect != "openai-chat":
        failure = Fault(after=5, drop=True)
    async with gateway(turns(Turn("I look for it.", (Call("Bash", {"command": "ls"}),))), failure) as (server, door):
        one = lease(door, model(server, dialect), activation=None)
        broken = first(dialect, "Read the first half.")
        await post(one.url, dialect, broken)
        assert isinstance(one.fault, SampleError | InfraError)
        other = first(dialect, "Read the second half.")
        got = await post(one.url, dialect, other)
        await post(one.url, dialect, following(dialect, other, got))
        assert one.fault is not None, "the other conversation went on, and this one did not"
        again = await post(one.url, dialect, broken)
        assert (again.status, one.fault) == (200, None)


async def test_a_conversation_that_goes_on_with_more_text_makes_up_for_a_failed_exchange():
    async with gateway(TASK, LONG) as (server, door):
        one = lease(door, model(server, "openai-chat"), activation=None)
        body = first("openai-chat", "Do it.")
        await post(one.url, "openai-chat", body)
        shorter = {**body, "messages": [*body["messages"], {"role": "user", "content": "Summarise."}]}
        await post(one.url, "openai-chat", shorter)
    assert one.fault is None


async def test_a_title_that_was_refused_does_not_spoil_the_rollout():
    async with gateway(TASK, LONG) as (server, door):
        one = lease(door, model(server, "openai-chat"), activation=None)
        await post(one.url, "openai-chat", first("openai-chat", "A title?", tools=False))
        assert isinstance(one.fault, SampleError)
        await post(one.url, "openai-chat", first("openai-chat", "Do it."))
    assert one.fault is None


async def test_an_exchange_that_is_tried_again_stays_in_trouble_while_others_succeed():
    busy = Fault(503, {"error": {"message": "busy"}}, {"Retry-After": "20"})
    script = lambda asked: busy if "second" in str(asked.body) else Turn("Done.")  # noqa: E731
    async with gateway(script) as (server, door):
        slots = Endpoint(4, RetryPolicy(attempts=3, base_s=20))
        one = lease(door, model(server, "openai-chat"), activation=None, slots=slots)
        waiting = asyncio.create_task(post(one.url, "openai-chat", first("openai-chat", "the second half")))
        while one.trouble is None:
            await asyncio.sleep(0.01)
        assert (await post(one.url, "openai-chat", first("openai-chat", "the first half"))).status == 200
        await one.end()
        assert "busy" in str(one.trouble), "the time of the rollout ended meanwhile"
        await waiting


@pytest.mark.parametrize(("below", "above"), PAIRS)
async def test_an_answer_whose_delivery_is_cut_off_is_journaled(
    below: Dialect, above: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The agent reads slowly, and its rollout ends before the end of the stream is written."""
    reached = asyncio.Event()

    async def stuck(self: Any, answer: Any) -> None:
        reached.set()
        await asyncio.sleep(60)

    monkeypatch.setattr("skilltune.gateway.lease._Translation.end", stuck)
    with Run.open(tmp_path / "run") as run:
        async with gateway(turns(Turn("A long answer"))) as (server, door):
            one = lease(door, model(server, above), activation=None, run=run)
            asking = asyncio.create_task(post(one.url, below, first(below)))
            await reached.wait()
            await one.end()
            await asking
        assert (one.paid.calls, one.usage.calls, one.exchanges) == (1, 1, 1)
        assert {kind: usage.calls for kind, usage in run.usage.items()} == {"target exchange": 1}


@pytest.mark.parametrize(("below", "above"), [*((one, one) for one in DIALECTS), *PAIRS[:2]])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_secret_that_a_model_repeats_reaches_the_agent_and_not_the_journal(
    below: Dialect, above: Dialect, stream: bool, tmp_path: Path
):
    script = turns(Turn("The key is sk-PLANTED-1.", (Call("Bash", {"command": "curl -u sk-PLANTED-1"}),)))
    with Run.open(tmp_path / "run") as run:
        async with gateway(script) as (server, door):
            one = lease(door, model(server, above), activation=None, run=run, secrets=("sk-PLANTED-1",), sample="s1")
            got = await post(one.url, below, first(below, stream=stream))
            again = lease(door, model(server, above), activation=None, run=run, secrets=("sk-PLANTED-1",))
            replayed = await post(again.url, below, first(below, stream=stream))
        assert "PLANTED" in got.raw.decode() + "".join(turn.text for turn in one.turns())
        assert (again.replayed, "PLANTED" in replayed.raw.decode()) == (1, False)
        ((_, value, _),) = run.memos("target exchange")
    assert value["sample"] == "s1"
    assert "PLANTED" not in (tmp_path / "run" / "run.db").read_bytes().decode("latin-1")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_agent_that_waits_hears_pings(dialect: Dialect):
    busy = Fault(429, {"error": {"message": "slow"}}, {"Retry-After": "0.3"})
    async with gateway(TASK, busy, ping_s=0.05) as (server, door):
        one = lease(door, model(server, dialect))
        got = await post(one.url, dialect, first(dialect))
        assert got.raw.count(b"ping") + got.raw.count(b"keepalive") >= 3
        assert got.events[-1]
        two = lease(door, model(server, dialect), rollout_key="r2")
        refusal = Fault(401, {"error": {"message": "no"}})
        server._faults += [busy, refusal]
        got = await post(two.url, dialect, first(dialect))
    assert got.status == 200
    assert "error" in str(got.events[-1])
    assert isinstance(two.fault, CallConfigError)


@pytest.mark.parametrize("below", DIALECTS)
@pytest.mark.parametrize("above", DIALECTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_streams_when_it_should_not(below: Dialect, above: Dialect, stream: bool):
    """And one that does not stream although it should."""
    kind = {"anthropic-messages": "messages", "openai-responses": "responses", "openai-chat": "completions"}[above]
    asked = {"model": "m", "messages": [], "stream_options": {"include_usage": True}}
    turn = Turn("Whole.")
    if stream:
        fault = Fault(raw=json.dumps(BODIES[kind](turn, asked)).encode(), headers={"Content-Type": "application/json"})
    else:
        fault = Fault(raw=b"".join(STREAMS[kind](turn, asked)), headers={"Content-Type": "text/event-stream"})
    async with gateway(TASK, fault) as (server, door):
        one = lease(door, model(server, above))
        got = await post(one.url, below, first(below, stream=stream))
    assert got.status == 200
    assert "Whole." in got.raw.decode() if stream else "Whole." in json.dumps(got.json)
    assert one.answer() == "Whole."
    assert (one.usage.input_tokens, one.usage.output_tokens) == (100, 10)


async def test_failed_attempts_are_counted_but_are_no_turns(tmp_path: Path):
    faults = [Fault(500, {"error": "x"}), Fault(after=2, drop=True)]
    with Run.open(tmp_path / "run") as run:
        async with gateway(TASK, *faults) as (server, door):
            one = lease(door, model(server, "openai-chat", rate=(1e6, 1e6)), run=run, limits=RolloutLimits(max_turns=2))
            await post(one.url, "openai-chat", first("openai-chat"))
            await work(one.url, "openai-chat")
        assert run.usage["failed attempt"].calls == 2
    assert one.limit == ""
    assert (one.turns_taken, one.usage.calls, one.paid.calls) == (2, 2, 4)
    assert one.usage.usd is not None
    assert one.paid.usd is not None
    assert one.paid.usd > one.usage.usd + 100  # the request of the answer that broke off, estimated


async def test_a_compressed_request_is_read():
    async with gateway() as (server, door):
        one = lease(door, model(server, "openai-chat"))
        data, headers = gzip.compress(json.dumps(first("openai-chat")).encode()), {"Content-Encoding": "gzip"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(one.url + PATHS["openai-chat"], data=data, headers=headers) as response,
        ):
            assert response.status == 200
    assert server.asked[0].body["model"] == "real-model"


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from small_agent import work
from skilltune.gateway import Gateway, RolloutLimits, Upstream
from skilltune.journal.run import Run

async def main(url, dialect, folder):
    base = url if dialect == "anthropic-messages" else url + "/v1"
    with Run.open(Path(folder)) as run:
        async with Gateway() as door:
            limits = RolloutLimits()
            one = door.lease(Upstream(dialect, base, "m"), None, limits, rollout_key="r", run=run, slots=None)
            await work(one.url, dialect)
            print(one.exchanges, one.replayed, one.answer(), flush=True)

asyncio.run(main(*sys.argv[1:4]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_process_that_is_killed_pays_for_no_answered_exchange_again(dialect: Dialect, tmp_path: Path):
    script = turns(*(Turn("I look.", (Call("Bash", {"command": f"ls {number}"}),)) for number in range(3)), Turn("42"))
    folders = [str(Path(__file__).parent.parent)]

    async def process() -> asyncio.subprocess.Process:
        command = [sys.executable, "-c", KILLED, server.url, dialect, str(tmp_path / "run"), *folders]
        return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)

    async with Upstream(script, None, None, Fault(hang=True)) as server:
        killed = await process()
        while len(server.asked) < 3:
            await asyncio.sleep(0.01)
        killed.kill()
        await killed.wait()
        again = await process()
        out, _ = await again.communicate()
        assert out == b"4 2 42\n"
        assert len(server.asked) == 5
        out, _ = await (await process()).communicate()
        assert out == b"4 4 42\n"
        assert len(server.asked) == 5


async def test_an_event_of_a_megabyte():
    text = "x" * 1_000_000
    async with gateway(turns(Turn(text, (Call("Bash", {"command": text}),)), Turn("Done."))) as (server, door):
        for dialect in DIALECTS:
            one = lease(door, model(server, dialect))
            answers = await work(one.url, dialect)
            assert len(answers) == 2
            assert one.answer() == "Done."


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_agent_that_disconnects_loses_nothing_that_is_paid(dialect: Dialect, tmp_path: Path):
    with Run.open(tmp_path / "run") as run:
        async with gateway(turns(Turn("one two")), delay=0.03) as (server, door):
            one = lease(door, model(server, dialect), run=run)
            async with (
                aiohttp.ClientSession() as session,
                session.post(one.url + PATHS[dialect], json=first(dialect)) as response,
            ):
                await response.content.readany()
            for _ in range(100):
                await asyncio.sleep(0.02)
                if run.usage:
                    break
            got = await post(one.url, dialect, first(dialect))
    assert b"one" in got.raw
    assert len(server.asked) == 1
    assert one.replayed == 1


async def test_a_lease_that_closes_ends_its_calls():
    async with gateway(TASK, Fault(hang=True)) as (server, door):
        one = lease(door, model(server, "openai-chat"))
        asking = asyncio.create_task(post(one.url, "openai-chat", first("openai-chat")))
        while not server.asked:
            await asyncio.sleep(0.01)
        one.close()
        assert (await asking).status == 400


async def test_two_rollouts_at_once_do_not_mix():
    def said(asked: Asked) -> Turn:
        name = "one" if "ONE" in str(asked.body) else "two"
        return Turn(name, (Call("Bash", {"command": name}),)) if asked.results < 5 else Turn(f"end of {name}")

    async with gateway(said, delay=0.001) as (server, door):
        leases = [lease(door, model(server, each), activation=None) for each in DIALECTS for _ in range(2)]

        async def agent(one: Lease, dialect: Dialect, name: str) -> None:
            body = first(dialect, name)
            for _ in range(6):
                body = following(dialect, body, await post(one.url, dialect, body))

        names = ["ONE", "TWO"] * 3
        spoken: list[Dialect] = [each for each in DIALECTS for _ in range(2)]
        work = zip(leases, spoken, names, strict=True)
        await asyncio.gather(*(agent(*each) for each in work))
    assert [one.answer() for one in leases] == ["end of one", "end of two"] * 3
    assert {one.exchanges for one in leases} == {6}


async def test_a_server_that_keeps_the_connection_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upstream, "LAST_S", 0.05)
    for dialect, events in zip(DIALECTS, (8, 10, 5), strict=True):
        async with gateway(TASK, Fault(after=events, hang=True), Fault(500, {})) as (server, door):
            one = lease(door, model(server, dialect), activation=None)
            got = await asyncio.wait_for(post(one.url, dialect, first(dialect)), 30)
        assert got.status == 200
        assert one.answer() == "never finished"


def test_input_that_is_written_to_a_cache_costs_more():
    own = Model(
        "anthropic-messages", "https://api.anthropic.com", "claude-sonnet-4-5", name="anthropic/claude-sonnet-4-5"
    )
    plain, written = own.priced(Usage(1, 10_000, 10)), own.priced(Usage(1, 10_000, 10), 8_000)
    assert plain.usd is not None
    assert written.usd is not None
    assert written.usd == pytest.approx(plain.usd + 8_000 * 3e-6 * 0.25)


def test_upstreams_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    local = upstream_of("openai@http://127.0.0.1:8000/v1/qwen3")
    assert (local.dialect, local.base_url, local.model, local.key) == (
        "openai-chat",
        "http://127.0.0.1:8000/v1",
        "qwen3",
        "",
    )
    own = upstream_of("openai/gpt-5.5")
    assert (own.dialect, own.base_url, own.key) == ("openai-responses", "https://api.openai.com/v1", KEY)
    assert upstream_of("anthropic@http://127.0.0.1:8000/m").dialect == "anthropic-messages"
    assert KEY not in repr(own)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(CallConfigError, match="OPENAI_API_KEY"):
        upstream_of("openai/gpt-5.5")
    with pytest.raises(CallConfigError, match="local"):
        upstream_of("local/smollm2-135m")
