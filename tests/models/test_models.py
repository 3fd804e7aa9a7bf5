"""Providers over real HTTP, structured answers, retries and prices."""

import asyncio
import base64
import json
import pickle
import shutil
import ssl
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_server import Answer, Call, Server
from sending import send
from skilltune.errors import CallConfigError, InfraError, InfraStopped, UnreachableError, UsageError
from skilltune.metering.slots import IN_A_ROW, Endpoint
from skilltune.models import Image, Message, Model, Reply, Request, Schema, system, user, wire
from skilltune.models.anthropic import AnthropicModel
from skilltune.models.build import build_model
from skilltune.models.openai import OpenAIModel
from skilltune.models.prices import price
from skilltune.models.retry import RateLimited, RetryPolicy, retry_after
from skilltune.models.structured import ask, inline_schema, parse
from skilltune.models.wire import cut, idempotency_key
from skilltune.usage import Usage

pytestmark = pytest.mark.anyio

KEY = "sk-secret-0123456789"
PIXEL = Image(b"\x89PNG\r\n\x1a\n pixel", "image/png")
SCHEMA = Schema(
    "reflect",
    {
        "type": "object",
        "properties": {"edits": {"type": "array", "items": {"type": "string"}}},
        "required": ["edits"],
        "additionalProperties": False,
    },
)
ASK = Request((system("Be brief."), user("2 + 2?")), temperature=0.5, max_tokens=16)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


def chat(content: Any = "4", finish: str = "stop", usage: Any = None, **message: Any) -> Answer:
    usage = usage if usage is not None else {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return Answer({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def response(text: str = "4", **fields: Any) -> Answer:
    usage = {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    output = [{"type": "reasoning", "summary": []}, message]
    return Answer({"id": "r", "status": "completed", "error": None, "output": output, "usage": usage} | fields)


def messages(*content: dict[str, Any], stop: str = "end_turn") -> Answer:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 1, "output_tokens": 2}
    return Answer({"type": "message", "role": "assistant", "content": content, "stop_reason": stop, "usage": usage})


def refused(message: str, status: int = 400, **fields: Any) -> Answer:
    return Answer({"error": {"message": message, "type": "invalid_request_error", **fields}}, status=status)


FOUR = messages({"type": "text", "text": "4"})

Build = Callable[[Server], Model]


def openai_chat(server: Server) -> Model:
    return OpenAIModel(f"openai@{server.url}/v1/m", timeout_s=5)


def openai_responses(server: Server) -> Model:
    return OpenAIModel(f"openai@{server.url}/v1/m", api="responses", timeout_s=5)


def anthropic(server: Server) -> Model:
    return AnthropicModel(f"anthropic@{server.url}/m", timeout_s=5)


every_model = pytest.mark.parametrize(
    ("build", "good"),
    [(openai_chat, chat()), (openai_responses, response()), (anthropic, FOUR)],
    ids=["chat", "responses", "anthropic"],
)


async def failure_of(model: Model) -> InfraError | CallConfigError:
    """The error of a call, after checking that neither it nor its traceback nor the model shows the key."""
    with pytest.raises((InfraError, CallConfigError)) as caught:
        await model.complete(ASK)
    await model.aclose()
    error = caught.value
    shown = [str(error), repr(error), "".join(traceback.format_exception(error)), repr(model), repr(vars(model))]
    assert not any(KEY in text for text in shown)
    assert error.__context__ is None  # aiohttp's exception holds the request with its headers
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return error


# what is sent, and what a good answer becomes


async def test_chat_request_and_reply() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 15},
    }
    async with Server(chat("four", usage=usage)) as server:
        model = OpenAIModel(f"openai@{server.url}/v1/m", key_env="OPENAI_API_KEY")
        reply = await model.complete(replace(ASK, stop=("\n",)))
        await model.aclose()
    assert reply == Reply("four", Usage(1, 100, 20, 64, 15, 0.0), "stop")
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
        "temperature": 0.5,
        "max_tokens": 16,
        "stop": ["\n"],
        "stream": False,
    }


async def test_responses_request_and_reply() -> None:
    async with Server(response("one\ntwo")) as server:
        model = openai_responses(server)
        reply = await model.complete(replace(ASK, stop=("\n",), schema=SCHEMA))
        await model.aclose()
    assert reply == Reply("one", Usage(1, 9, 3, 4, 2, 0.0), "stop")
    (call,) = server.calls
    assert call.path == "/v1/responses"
    assert call.body["input"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert call.body["max_output_tokens"] == 16
    assert call.body["text"]["format"] == {
        "type": "json_schema",
        "name": "reflect",
        "schema": SCHEMA.schema,
        "strict": True,
    }


async def test_anthropic_request_and_reply() -> None:
    request = replace(ASK, messages=(*ASK.messages, system("In English.")), max_tokens=None, stop=("\n",))
    async with Server(FOUR) as server:
        model = AnthropicModel(f"anthropic@{server.url}/m", key_env="ANTHROPIC_API_KEY")
        reply = await model.complete(request)
        await model.aclose()
    assert reply == Reply("4", Usage(1, 9, 2, 3, 0, 0.0), "stop")
    (call,) = server.calls
    assert call.path == "/v1/messages"
    assert call.headers["x-api-key"] == KEY
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.headers["anthropic-version"] == "2023-06-01"  # the one that knows `temperature`
    assert call.body == {
        "model": "m",
        "system": "Be brief.\n\nIn English.",
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "max_tokens": 4096,
        "temperature": 0.5,
        "stop_sequences": ["\n"],
        "stream": False,
    }


async def test_the_schema_arrives_under_the_name_of_its_stage() -> None:
    async with Server(chat('{"edits": []}')) as server:
        model = openai_chat(server)
        await model.complete(replace(ASK, schema=SCHEMA))
        await model.aclose()
    assert server.calls[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reflect", "schema": SCHEMA.schema, "strict": True},
    }


async def test_anthropic_answers_a_schema_through_a_forced_tool() -> None:
    tool = {"type": "tool_use", "id": "t", "name": "reflect", "input": {"edits": ["é"]}}
    async with Server(messages({"type": "text", "text": "Let me see."}, tool, stop="tool_use")) as server:
        model = anthropic(server)
        reply = await model.complete(replace(ASK, schema=SCHEMA))
        await model.aclose()
    assert (json.loads(reply.text), reply.finish) == ({"edits": ["é"]}, "stop")
    assert server.calls[0].body["tools"] == [{"name": "reflect", "input_schema": SCHEMA.schema}]
    assert server.calls[0].body["tool_choice"] == {"type": "tool", "name": "reflect"}


@every_model
async def test_images_arrive_byte_for_byte(build: Build, good: Answer) -> None:
    async with Server(good) as server:
        model = build(server)
        await model.complete(Request((user("What is this?", [PIXEL]),)))
        await model.aclose()
    sent = server.calls[0].body
    text, image = (sent.get("messages") or sent["input"])[0]["content"]
    assert text["text"] == "What is this?"
    if build is anthropic:
        data = image["source"]["data"]
        assert image["source"]["media_type"] == "image/png"
    else:
        uri = image["image_url"] if isinstance(image["image_url"], str) else image["image_url"]["url"]
        head, _, data = uri.partition(",")
        assert head == "data:image/png;base64"
    assert base64.b64decode(data) == PIXEL.data


@every_model
async def test_a_retry_has_the_same_idempotency_key_and_another_draw_has_not(build: Build, good: Answer) -> None:
    async with Server(good) as server:
        model = build(server)
        for request in (ASK, ASK, replace(ASK, draw=1), replace(ASK, temperature=0.6)):
            await model.complete(request)
        await model.aclose()
    first, again, drawn, other = (call.headers["idempotency-key"] for call in server.calls)
    assert first == again
    assert len({first, drawn, other}) == 3
    assert len(first) == 32


@pytest.mark.parametrize(
    ("answer", "text", "finish"),
    [
        (chat("cut", "length"), "cut", "length"),
        (chat(None, refusal="I will not."), "I will not.", "refusal"),
        (chat("so far", "content_filter"), "so far", "refusal"),
        (chat("Let me see.", "tool_calls", tool_calls=[{"function": {}}]), "Let me see.", "other"),
        (chat("4", "STOP"), "4", "stop"),
        (chat("cut", "MAX_TOKENS"), "cut", "length"),
        (chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", "stop"),
    ],
)
async def test_how_a_chat_answer_ended(answer: Answer, text: str, finish: str) -> None:
    async with Server(answer) as server:
        model = openai_chat(server)
        reply = await model.complete(ASK)
        await model.aclose()
    assert (reply.text, reply.finish) == (text, finish)


@pytest.mark.parametrize(
    ("answer", "text", "finish"),
    [
        (response("cut", status="incomplete", incomplete_details={"reason": "max_output_tokens"}), "cut", "length"),
        (response("so", status="incomplete", incomplete_details={"reason": "content_filter"}), "so", "refusal"),
        (
            response(output=[{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]),
            "No.",
            "refusal",
        ),
    ],
)
async def test_how_a_responses_answer_ended(answer: Answer, text: str, finish: str) -> None:
    async with Server(answer) as server:
        model = openai_responses(server)
        reply = await model.complete(ASK)
        await model.aclose()
    assert (reply.text, reply.finish) == (text, finish)


@pytest.mark.parametrize(
    ("stop", "finish"), [("max_tokens", "length"), ("refusal", "refusal"), ("stop_sequence", "stop"), ("new", "other")]
)
async def test_how_an_anthropic_answer_ended(stop: str, finish: str) -> None:
    async with Server(messages({"type": "text", "text": "4"}, stop=stop)) as server:
        model = anthropic(server)
        assert (await model.complete(ASK)).finish == finish
        await model.aclose()


@every_model
async def test_an_answer_can_always_be_sent_back(build: Build, good: Answer) -> None:
    broken = json.loads(json.dumps(good.body).replace('"4"', '"4 \\ud83d"'))
    async with Server(replace(good, body=broken), good) as server:
        model = build(server)
        first = await model.complete(ASK)
        assert first.text == "4 ?"
        await model.complete(
            replace(ASK, messages=(*ASK.messages, Message("assistant", first.text), user("Sure? \ud800")))
        )
        await model.aclose()
    assert "Sure? ?" in str(server.calls[1].body)


async def test_unreported_usage_is_estimated_and_never_zero() -> None:
    async with Server(chat("four" * 5, usage={"prompt_tokens": None})) as server:
        model = openai_chat(server)
        reply = await model.complete(Request((user("x" * 41),)))
        await model.aclose()
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (11, 5)


# dialects


async def test_an_endpoint_without_response_format_gets_the_schema_in_the_prompt_and_is_not_asked_again() -> None:
    def picky(call: Call) -> Answer:
        if "response_format" in call.body:
            return refused("'response_format.type' must be 'text'", status=422)
        return chat('{"edits": []}')

    async with Server(picky) as server:
        model = openai_chat(server)
        request = replace(ASK, schema=SCHEMA)
        for _ in range(2):
            assert json.loads((await model.complete(request)).text) == {"edits": []}
        await model.aclose()
    assert ["response_format" in call.body for call in server.calls] == [True, False, False]
    assert json.dumps(SCHEMA.schema) in server.calls[-1].body["messages"][-1]["content"]
    assert server.calls[0].headers["idempotency-key"] != server.calls[1].headers["idempotency-key"]


async def test_an_anthropic_endpoint_without_tools_gets_the_schema_in_the_prompt() -> None:
    def picky(call: Call) -> Answer:
        if "tools" in call.body:
            return refused("tools are not supported by this model")
        return messages({"type": "text", "text": '{"edits": []}'})

    async with Server(picky) as server:
        model = anthropic(server)
        assert json.loads((await model.complete(replace(ASK, schema=SCHEMA))).text) == {"edits": []}
        await model.aclose()
    assert json.dumps(SCHEMA.schema) in server.calls[-1].body["messages"][-1]["content"]


async def test_refused_parameters_are_left_out_or_renamed_one_by_one_and_remembered() -> None:
    def reasoning_model(call: Call) -> Answer:
        if "max_tokens" in call.body:
            return refused("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in call.body:
            return refused("'temperature' does not support 0.5 with this model.", code="unsupported_value")
        if "stop" in call.body:
            return refused("Unsupported parameter: 'stop'", code="unsupported_parameter")
        return chat("one\ntwo")

    async with Server(reasoning_model) as server:
        model = openai_chat(server)
        request = replace(ASK, stop=("\n",))
        replies = [await model.complete(request) for _ in range(2)]
        await model.aclose()
    assert [reply.text for reply in replies] == ["one", "one"]
    assert len(server.calls) == 5
    assert server.calls[-1].body == {
        "model": "m",
        "messages": server.calls[0].body["messages"],
        "max_completion_tokens": 16,
        "stream": False,
    }


async def test_concurrent_calls_learn_together() -> None:
    def picky(call: Call) -> Answer:
        return refused("temperature: Extra inputs are not permitted") if "temperature" in call.body else chat()

    async with Server(picky) as server:
        model = openai_chat(server)
        replies = await asyncio.gather(*(model.complete(replace(ASK, draw=n)) for n in range(8)))
        await model.aclose()
    assert [reply.text for reply in replies] == ["4"] * 8


@pytest.mark.parametrize(
    "complaint",
    [
        "temperature must be at most 2",
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "messages must alternate between user and assistant",
    ],
)
async def test_a_wrong_value_is_an_error_and_not_left_out(complaint: str) -> None:
    async with Server(refused(complaint)) as server:
        error = await failure_of(openai_chat(server))
    assert isinstance(error, CallConfigError)
    assert complaint in str(error)
    assert len(server.calls) == 1


# pitfall 15: what cannot be helped by trying again


@every_model
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (refused(f"Incorrect API key provided: {KEY}", status=401), ["401", "[key]", "_API_KEY"]),
        (refused("Your region is not served", status=403), ["403", "Your region", "_API_KEY"]),
        (refused("no such model", status=404), ["404", "`m`", "URL"]),
        (refused("The model `m` does not exist.", status=404), ["does not exist. Check"]),
        (refused("This key was revoked.", status=401), ["was revoked. "]),
        (refused("Your credit balance is too low."), ["is too low. The account"]),
        (Answer({"detail": "bad things"}, status=400), ["400", "bad things"]),
        (refused("You exceeded your quota", status=429, code="insufficient_quota"), ["no credit left"]),
        (refused("Your credit balance is too low"), ["no credit left"]),
    ],
)
async def test_pitfall_15_configuration_errors(build: Build, good: Answer, bad: Answer, words: list[str]) -> None:
    async with Server(bad, good) as server:
        model = build(server)
        error = await failure_of(model)
    assert isinstance(error, CallConfigError)
    assert [word for word in [*words, model.name] if word not in str(error)] == []
    assert len(server.calls) == 1


# pitfall 4: what the sample is not to blame for


@every_model
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Answer({"error": {"message": "slow down"}}, status=429), ["429", "slow down"]),
        (Answer("<html>bad gateway</html>", status=502), ["502", "bad gateway"]),
        (Answer({"error": {"message": "boom"}}, status=500), ["500", "boom"]),
        (
            Answer({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, status=529),
            ["529"],
        ),
        (Answer({"error": {"message": "overloaded", "code": 503}}), ["malformed", "overloaded"]),
        (Answer(drop=True), ["dropped"]),
        (Answer({"choices": "x" * 500}, cut=100), ["dropped"]),
        (Answer('{"choices": [{"mess', headers={"X-Note": "json cut, length right"}), ["malformed"]),
        (Answer(""), ["malformed", "(empty)"]),
        (Answer([]), ["malformed"]),
        (Answer({}), ["malformed"]),
        (Answer({"choices": [], "output": None, "content": None}), ["malformed"]),
        (Answer({"choices": [{"message": None}], "output": [None], "content": [None]}), ["malformed"]),
        (chat({"not": "text"}), ["malformed"]),
        (replace(chat(), headers={"Content-Length": "40"}), []),
        (replace(chat(), headers={"Content-Length": "4000"}, cut=4000), ["dropped"]),
        (replace(chat(), headers={"Content-Encoding": "gzip"}), ["dropped"]),
        (Answer(raw=b"220 mail.example ESMTP\r\n"), ["dropped"]),
        (response(status="failed", error={"message": "server boom"}, output=[]), ["malformed", "server boom"]),
    ],
)
async def test_pitfall_4_infrastructure_errors(build: Build, good: Answer, bad: Answer, words: list[str]) -> None:
    async with Server(bad, good) as server:
        model = build(server)
        error = await failure_of(model)
    assert isinstance(error, InfraError)
    assert [word for word in [*words, model.name] if word not in str(error)] == []


@every_model
async def test_pitfall_4_a_server_that_is_not_running(build: Build, good: Answer) -> None:
    async with Server(good) as server:
        pass
    error = await failure_of(build(server))
    assert isinstance(error, InfraError)
    assert f"cannot connect to {server.url}" in str(error)


@pytest.mark.parametrize("bad", [Answer(hang=True), replace(chat(), drip=0.05)], ids=["hangs", "drips"])
@pytest.mark.parametrize("make", [OpenAIModel, AnthropicModel])
async def test_pitfall_14_a_call_ends_at_its_time_limit(make: type, bad: Answer) -> None:
    async with Server(bad) as server:
        name = f"openai@{server.url}/v1/m" if make is OpenAIModel else f"anthropic@{server.url}/m"
        model = make(name, timeout_s=0.3)
        start = time.monotonic()
        error = await failure_of(model)
        assert time.monotonic() - start < 3
    assert isinstance(error, InfraError)
    assert "within 0.3 s" in str(error)


EMPTY = [
    (openai_chat, chat("", usage={"prompt_tokens": 9, "completion_tokens": 0})),
    (openai_chat, chat(None, usage={})),
    (openai_chat, chat([], usage={})),
    (openai_responses, response("", usage={"input_tokens": 9, "output_tokens": 0})),
    (openai_responses, response("", usage=None, output=[])),
    (anthropic, Answer({"content": [], "stop_reason": "end_turn", "usage": {"input_tokens": 5, "output_tokens": 0}})),
]


@pytest.mark.parametrize(("build", "nothing"), EMPTY)
async def test_pitfall_4_an_answer_of_no_text_and_no_tokens_is_none(build: Build, nothing: Answer) -> None:
    async with Server(nothing) as server:
        error = await failure_of(build(server))
    assert isinstance(error, InfraError)
    assert error.reached
    assert "empty answer" in str(error)


async def test_a_text_that_a_stop_sequence_ends_at_once_is_no_empty_answer() -> None:
    answers = [refused("Unsupported parameter: 'stop'"), chat("\nrest", usage={})]
    async with Server(*answers) as server:
        model = OpenAIModel(f"openai@{server.url}/v1/m", key_env="OPENAI_API_KEY")
        reply = await model.complete(replace(ASK, stop=("\n",)))
        await model.aclose()
    assert (reply.text, reply.finish, reply.usage.output_tokens) == ("", "stop", 2)  # all of it was billed


# the wire


@every_model
async def test_connections_are_kept_and_as_many_as_there_are_calls(build: Build, good: Answer) -> None:
    async with Server(good) as server:
        model = build(server)
        for _ in range(5):
            await model.complete(ASK)
        assert server.connections == 1
        await asyncio.gather(*(model.complete(ASK) for _ in range(150)))
        assert 100 < server.connections <= 150
        await model.aclose()
        assert (await model.complete(ASK)).text == "4"  # opened again
        await model.aclose()


async def test_a_server_that_closes_idle_connections_without_a_word_costs_no_attempt() -> None:
    async with Server(replace(chat(), cut=10**6)) as server:  # the whole answer, then the end of the connection
        model = openai_chat(server)
        for _ in range(20):
            assert (await model.complete(ASK)).text == "4"
        await model.aclose()
    assert len(server.calls) == server.connections == 20


async def test_only_an_attempt_of_which_something_was_sent_may_have_been_billed() -> None:
    async with Server(Answer(drop=True), Answer(hang=True)) as server:
        for model in (openai_chat(server), OpenAIModel(f"openai@{server.url}/v1/m", timeout_s=0.2)):
            error = await failure_of(model)
            assert isinstance(error, InfraError)
            assert error.reached
        silent = OpenAIModel(f"openai@https://127.0.0.1:{server.port}/v1/m", timeout_s=0.2)  # waits for a TLS hello
        error = await failure_of(silent)
        assert isinstance(error, UnreachableError)
        assert "within 0.2 s" in str(error)
        assert len(server.calls) == 2
    for name in (f"openai@{server.url}/v1/m", "openai@http://no-such-host.invalid/v1/m"):
        error = await failure_of(OpenAIModel(name, timeout_s=5))
        assert isinstance(error, UnreachableError)


@every_model
async def test_a_short_content_length_does_not_spoil_the_next_call(build: Build, good: Answer) -> None:
    async with Server(replace(good, headers={"Content-Length": "40"}), good) as server:
        model = build(server)
        with pytest.raises(InfraError):
            await model.complete(ASK)
        assert (await model.complete(ASK)).text == "4"
        await model.aclose()


@every_model
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_pitfall_22_a_redirect_is_not_followed_but_named(build: Build, good: Answer, status: int) -> None:
    async with Server(good) as other:
        location = f"http://me:hunter22@127.0.0.1:{other.port}/v1/elsewhere?key=hunter22"
        async with Server(Answer(status=status, headers={"Location": location})) as server:
            error = await failure_of(build(server))
    assert isinstance(error, CallConfigError)
    assert f"redirects to {other.url}/v1/elsewhere" in str(error)
    assert "hunter22" not in str(error)
    assert other.calls == []


async def test_the_environments_proxy_is_used_and_its_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(chat()) as proxy:
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("http_proxy", f"http://me:hunter22@127.0.0.1:{proxy.port}")
        model = OpenAIModel("openai@http://model.invalid:8000/v1/m", timeout_s=5)
        assert (await model.complete(ASK)).text == "4"
        await model.aclose()
        (call,) = proxy.calls
        assert call.path == "http://model.invalid:8000/v1/chat/completions"
        assert call.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:hunter22").decode()
        assert KEY not in str(call)  # over plain http to another machine
        monkeypatch.setenv("NO_PROXY", "example.org,model.invalid")
        error = await failure_of(OpenAIModel("openai@http://model.invalid:8000/v1/m", timeout_s=5))
        assert isinstance(error, UnreachableError)
        assert len(proxy.calls) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_down_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    async with Server(chat()) as proxy:
        pass
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", f"http://me:hunter22@127.0.0.1:{proxy.port}")
    error = await failure_of(OpenAIModel(f"openai@{scheme}://model.invalid/v1/m", timeout_s=5))
    assert isinstance(error, UnreachableError)
    assert str(proxy.port) in str(error)
    assert "hunter22" not in "".join(traceback.format_exception(error))


def test_a_proxy_that_does_not_speak_http_is_found_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hunter22@127.0.0.1:1080")
    with pytest.raises(UsageError, match="socks5") as caught:
        build_model("openai@http://model.invalid/v1/m")
    assert "hunter22" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "127.0.0.1:1080")  # as curl takes it
    assert wire.proxy_of("http://model.invalid/v1") == "http://127.0.0.1:1080"


async def test_a_proxy_that_refuses_has_sent_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(Answer(raw=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")) as proxy:
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        error = await failure_of(OpenAIModel("openai@https://model.invalid/v1/m", timeout_s=5))
    assert isinstance(error, UnreachableError)
    assert "403" in str(error)
    assert KEY not in str(proxy.calls)


async def test_certificates_are_checked_against_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the command openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=t",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    made = subprocess.run([openssl, *request, "-keyout", key, "-out", certificate], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with Server(chat(), tls=tls) as server:
        name = f"openai@https://127.0.0.1:{server.port}/v1/m"
        error = await failure_of(OpenAIModel(name, timeout_s=5))
        assert isinstance(error, UnreachableError)
        assert "SSL_CERT_FILE" in str(error)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        wire.tls_context.cache_clear()
        try:
            model = OpenAIModel(name, timeout_s=5)
            assert (await model.complete(ASK)).text == "4"
            await model.aclose()
        finally:
            wire.tls_context.cache_clear()


async def test_retry_after_is_read_in_all_its_forms() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    forms = [{"Retry-After": "7"}, {"Retry-After": soon}, {"retry-after-ms": "1500"}, {"Retry-After": "soon"}, {}]
    waits = []
    for headers in forms:
        async with Server(Answer("", status=429, headers=headers)) as server:
            error = await failure_of(openai_chat(server))
            assert isinstance(error, RateLimited)
            waits.append(error.retry_after)
    assert waits[0] == 7
    assert waits[1] == pytest.approx(20, abs=2)
    assert waits[2:] == [1.5, None, None]
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


# pitfall 22: keys


async def test_pitfall_22_only_the_endpoints_own_key_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_ADMIN_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "another-secret")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password another-secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for build, good in ((openai_chat, chat()), (openai_responses, response()), (anthropic, FOUR)):
        async with Server(good) as server:
            model = build(server)
            await model.complete(ASK)
            await model.aclose()
        assert "another-secret" not in str(server.calls)
        assert KEY not in str(server.calls[0].body)
        assert KEY not in model.fingerprint


async def test_the_providers_own_endpoints_are_told_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    async with Server(chat(), FOUR) as server:
        monkeypatch.setattr("skilltune.models.openai.OFFICIAL", f"{server.url}/v1")
        monkeypatch.setattr("skilltune.models.anthropic.OFFICIAL", server.url)
        for model in (OpenAIModel("openai/gpt-4o"), AnthropicModel("anthropic/claude-opus-4-1")):
            assert (await model.complete(ASK)).text == "4"
            await model.aclose()
    by_openai, by_anthropic = (call.headers for call in server.calls)
    assert by_openai["authorization"] == f"Bearer {KEY}"
    assert (by_openai["openai-organization"], by_openai["openai-project"]) == ("org-1", "proj-1")
    assert by_anthropic["x-api-key"] == KEY
    assert by_anthropic["anthropic-version"] == "2023-06-01"
    assert "authorization" not in by_anthropic


async def test_an_endpoint_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name)
    for build, good in ((openai_chat, chat()), (anthropic, FOUR)):
        async with Server(good) as server:
            model = build(server)
            assert (await model.complete(ASK)).text == "4"
            await model.aclose()


def test_a_missing_or_garbled_key_is_found_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in (("openai/gpt-4o", "OPENAI_API_KEY"), ("anthropic/claude-opus-4-1", "ANTHROPIC_API_KEY")):
        assert isinstance(build_model(name), Model)
        monkeypatch.setenv(variable, f"{KEY}\nsecond line")
        with pytest.raises(UsageError, match=variable) as caught:
            build_model(name)
        assert KEY not in str(caught.value)
        monkeypatch.delenv(variable)
        with pytest.raises(UsageError, match=variable):
            build_model(name)


# building


def test_build_model_knows_which_names_are_chat_models() -> None:
    chat_model = build_model("openai@http://127.0.0.1:1/v1/m")
    responses_model = build_model("openai@http://127.0.0.1:1/v1/m", api="responses")
    assert isinstance(chat_model, OpenAIModel)
    assert chat_model.name == responses_model.name == "openai@http://127.0.0.1:1/v1/m"
    assert chat_model.fingerprint != responses_model.fingerprint
    assert isinstance(build_model("anthropic@http://127.0.0.1:1/m"), AnthropicModel)
    for name in ("claude-code/sonnet", "command:./agent.sh", "examples", "handoff:dir"):
        with pytest.raises(UsageError, match="not a chat model"):
            build_model(name)
    with pytest.raises(UsageError, match="responses"):
        build_model("anthropic/claude-opus-4-1", api="responses")
    with pytest.raises(UsageError, match="price"):
        build_model("local/smollm2-135m", price=(1, 1))


def test_help_stays_fast_because_what_is_heavy_is_imported_on_first_use() -> None:
    program = """
import sys
import skilltune.names, skilltune.models, skilltune.models.build, skilltune.metering.slots, skilltune.models.structured
import skilltune.models.openai, skilltune.models.anthropic
skilltune.models.build.build_model("openai@http://127.0.0.1:1/v1/m")
skilltune.models.build.build_model("anthropic@http://127.0.0.1:1/m")
print(sorted({"aiohttp", "certifi", "genai_prices", "json_repair", "xllamacpp"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# structured answers


def scripted(*answers: str | Reply) -> tuple[Callable[[Request], Awaitable[Reply]], list[Request]]:
    requests: list[Request] = []

    async def call(request: Request) -> Reply:
        requests.append(request)
        answer = answers[len(requests) - 1]
        return answer if isinstance(answer, Reply) else Reply(answer, Usage(calls=1))

    return call, requests


def edits(value: Any) -> list[str]:
    if not isinstance(value.get("edits"), list):
        raise ValueError("`edits` must be a list")
    return value["edits"]


@pytest.mark.parametrize(
    "text",
    [
        '{"edits": ["a"]}',
        '```json\n{"edits": ["a"]}\n```',
        '```\n{"edits": ["a"]}```',
        '<think>{"edits": ["wrong"]}</think>\n{"edits": ["a"]}',
        "{'edits': ['a',],}",
        '{"edits": ["a"]',
        'Here it is:\n\n```json\n{"edits": ["a"]}\n```\nHope this helps!',
    ],
)
async def test_pitfall_7_a_slightly_wrong_answer_is_repaired(text: str) -> None:
    call, requests = scripted(text)
    answer = await ask(call, replace(ASK, schema=SCHEMA), edits)
    assert answer == ["a"]
    assert len(requests) == 1


@pytest.mark.parametrize("bad", ['{"edits": 3}', "I would rather not.", "", "[1, 2]", "null"])
async def test_pitfall_7_an_unusable_answer_is_asked_for_again_with_its_error(bad: str) -> None:
    call, requests = scripted(bad, '{"edits": ["a"]}')
    answer = await ask(call, replace(ASK, schema=SCHEMA), edits)
    assert answer == ["a"]
    first, second = requests
    assert second.messages[:2] == first.messages
    assert second.messages[2] == Message("assistant", bad or "{}")
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - whatever it says, the model must be told
        edits(parse(Reply(bad, Usage())))
    assert str(refused.value) in second.messages[3].text
    assert second.schema == SCHEMA


async def test_pitfall_7_two_bad_answers_are_an_infrastructure_error_and_never_a_default() -> None:
    call, requests = scripted("no", "no")
    with pytest.raises(InfraError, match="did not answer in the schema of reflect twice"):
        await ask(call, replace(ASK, schema=SCHEMA), edits)
    assert len(requests) == 2


async def test_an_answer_cut_by_the_limit_is_not_repaired_into_half_an_edit() -> None:
    call, requests = scripted(Reply('{"edits": ["always write am', Usage(), "length"), '{"edits": ["a"]}')
    assert await ask(call, replace(ASK, schema=SCHEMA), edits) == ["a"]
    assert "cut off" in requests[1].messages[-1].text


async def test_a_refusal_is_not_parsed() -> None:
    call, requests = scripted(Reply('{"edits": ["no"]}', Usage(), "refusal"), '{"edits": ["a"]}')
    assert await ask(call, replace(ASK, schema=SCHEMA), edits) == ["a"]
    assert "refused" in requests[1].messages[-1].text


async def test_pitfall_18_braces_in_a_skill_survive_the_inlined_schema() -> None:
    request = (system("S"), user("Write {amount} as {0} and {}"))
    first, last = inline_schema(request, SCHEMA)
    assert first == request[0]
    assert last.text.startswith(request[1].text)
    assert json.loads(last.text.splitlines()[-1]) == SCHEMA.schema


@given(st.text())
def test_any_text_parses_to_an_object_or_a_value_error(text: str) -> None:
    try:
        value = parse(Reply(text, Usage()))
    except ValueError:
        return
    assert isinstance(value, dict)


@given(st.text(alphabet="ab\n"), st.lists(st.text(alphabet="ab\n", min_size=1), max_size=3))
def test_cut_leaves_no_stop_sequence(text: str, stop: list[str]) -> None:
    kept = cut(text, tuple(stop))
    assert text.startswith(kept)
    assert not any(s in kept for s in stop)
    assert kept == text or any(text[len(kept) :].startswith(s) for s in stop)


def test_an_idempotency_key_does_not_depend_on_the_order_of_fields() -> None:
    assert idempotency_key({"a": 1, "b": 2}, 0) == idempotency_key({"b": 2, "a": 1}, 0)
    assert idempotency_key({"a": 1}, 0) != idempotency_key({"a": 1}, 1)


# retries


class Scripted:
    """A model that fails as told, then answers; it counts how many calls run at once."""

    name = fingerprint = "fake:scripted"

    def __init__(self, *failures: Exception, takes_s: float = 0.0) -> None:
        self.failures = list(failures)
        self.calls = self.running = self.most = 0
        self.takes_s = takes_s

    async def complete(self, request: Request) -> Reply:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.takes_s)
            if self.failures:
                raise self.failures.pop(0)
        finally:
            self.running -= 1
        return Reply("4", Usage(calls=1))

    async def aclose(self) -> None: ...


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now = max(self.now, self.now + seconds)
        await asyncio.sleep(0)


def endpoint(clock: Clock, workers: int = 4, draw: float = 0.5, **policy: Any) -> Endpoint:
    return Endpoint(workers, RetryPolicy(**policy), draw=lambda: draw, sleep=clock.sleep, clock=clock)


async def test_infrastructure_errors_are_retried_with_growing_waits_up_to_the_cap() -> None:
    clock, model = Clock(), Scripted(*[InfraError("boom")] * 4)
    assert (await send(endpoint(clock, draw=1.0, base_s=1, cap_s=3), model, ASK)).text == "4"
    assert clock.slept == [1, 2, 3, 3]
    assert model.calls == 5


async def test_pitfall_15_configuration_errors_are_never_retried() -> None:
    model = Scripted(CallConfigError("401"))
    with pytest.raises(CallConfigError):
        await send(endpoint(Clock()), model, ASK)
    assert model.calls == 1


async def test_the_last_error_is_raised_with_the_number_of_attempts() -> None:
    model = Scripted(*[InfraError("boom")] * 9)
    with pytest.raises(InfraError, match=r"boom \(gave up after 3 attempts\)"):
        await send(endpoint(Clock(), attempts=3), model, ASK)
    assert model.calls == 3


async def test_pitfall_15_retry_after_makes_all_callers_wait() -> None:
    clock = Clock()
    shared = endpoint(clock, workers=1)
    with pytest.raises(InfraError):
        await send(Endpoint(1, RetryPolicy(attempts=1)), Scripted(InfraError("not shared", retry_after=99)), ASK)
    limited = endpoint(clock, workers=1, attempts=1)
    for _ in range(IN_A_ROW):
        assert not clock.now  # a refusal now and then concerns the call that is refused
        with pytest.raises(RateLimited):
            await send(limited, Scripted(RateLimited("429", retry_after=20)), ASK)
    await send(limited, Scripted(), ASK)
    assert clock.now == pytest.approx(20 * (1 + 0.5 / 4) + 0.5 * 0.1)  # the stated wait, then jitter
    before = clock.now
    await send(shared, Scripted(), ASK)  # another endpoint is not concerned
    assert clock.now == before


@pytest.mark.slow
async def test_pitfall_15_sixty_workers_do_not_hammer_an_endpoint_that_said_wait() -> None:
    arrivals: list[float] = []
    start = time.monotonic()

    def limited(call: Call) -> Answer:
        arrivals.append(time.monotonic() - start)
        return Answer("", status=429, headers={"retry-after-ms": "400"}) if len(arrivals) <= 8 else chat()

    async with Server(limited) as server:
        model = openai_chat(server)
        window = Endpoint(4, RetryPolicy(base_s=0.05))
        replies = await asyncio.gather(*(send(window, model, replace(ASK, draw=n)) for n in range(60)))
        await model.aclose()
    assert len(replies) == 60
    assert len(arrivals) == 68
    assert not [t for t in arrivals[8:] if t < arrivals[0] + 0.35]


async def test_a_rate_limit_without_a_stated_wait_concerns_all_callers_too() -> None:
    limited, other = Scripted(*[RateLimited("429")] * IN_A_ROW), Scripted()
    window = Endpoint(IN_A_ROW, RetryPolicy(base_s=0.02), draw=lambda: 1.0)
    tasks = [asyncio.create_task(send(window, limited, ASK)) for _ in range(IN_A_ROW)]
    await asyncio.sleep(0.02)
    assert limited.calls == IN_A_ROW
    start = time.monotonic()
    await send(window, other, ASK)
    assert time.monotonic() - start > 0.06
    await asyncio.gather(*tasks)
    assert limited.calls == 2 * IN_A_ROW


def test_how_long_a_call_waits_before_it_is_sent_again() -> None:
    policy = RetryPolicy(base_s=0.1, cap_s=1.0)
    broken, refused, told = InfraError("500"), RateLimited("429"), RateLimited("429", retry_after=0.3)
    assert [policy.delay(k, 1.0, broken) for k in range(5)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
    assert [policy.delay(k, 1.0, refused) for k in range(3)] == pytest.approx([0.5, 1.0, 1.0])
    assert [policy.delay(k, 0.0, told) for k in range(3)] == [0.3, 0.3, 0.3]  # never sooner than told
    assert [policy.delay(k, 1.0, told) for k in range(4)] == pytest.approx([0.375, 0.375, 0.4, 0.8])


async def test_an_absurd_retry_after_is_not_waited_for() -> None:
    clock = Clock()
    with pytest.raises(InfraStopped, match=r"a wait of 24 h, longer than the limit \(target\.max_wait_s = 600\)"):
        await send(endpoint(clock), Scripted(InfraError("429", retry_after=86400)), ASK)
    assert clock.now == 0


async def test_at_most_workers_calls_run_at_once() -> None:
    model = Scripted(takes_s=0.005)
    window = Endpoint(3)
    await asyncio.gather(*(send(window, model, ASK) for _ in range(12)))
    assert model.most == 3


async def test_every_attempt_is_announced_and_may_be_forbidden() -> None:
    seen: list[tuple[int, str | None]] = []

    def budget(attempt: int, failure: InfraError | None) -> None:
        seen.append((attempt, failure and str(failure)))
        if attempt == 2:
            raise UsageError("the budget is spent")

    model = Scripted(*[InfraError("boom")] * 5)
    with pytest.raises(UsageError):
        await send(endpoint(Clock()), model, ASK, on_attempt=budget)
    assert seen == [(0, None), (1, "boom"), (2, "boom")]
    assert model.calls == 2  # pitfall 21: the third call was not made


@pytest.mark.parametrize("model", [Scripted(takes_s=60), Scripted(InfraError("boom", retry_after=60))])
async def test_pitfall_14_cancelling_ends_a_call_or_a_wait_at_once_and_frees_its_place(model: Scripted) -> None:
    window = Endpoint(1, RetryPolicy(base_s=60))
    task = asyncio.create_task(send(window, model, ASK))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert model.running == 0
    if not model.takes_s:
        return
    assert (await asyncio.wait_for(send(window, Scripted(), ASK), 20)).text == "4"


@every_model
async def test_a_bad_moment_of_a_server_is_overcome(build: Build, good: Answer) -> None:
    bad = [Answer("", status=500), Answer(drop=True), Answer("{"), Answer({"choices": []})]
    async with Server(*bad, good) as server:
        model = build(server)
        reply = await send(Endpoint(2, RetryPolicy(base_s=0.001)), model, ASK)
        await model.aclose()
    assert reply.text == "4"
    assert len({call.headers["idempotency-key"] for call in server.calls}) == 1


# prices


def test_prices_of_known_models_count_cached_tokens_at_their_own_rate() -> None:
    million = Usage(1, 1_000_000, 0)
    full, cached = price("openai/gpt-4o", million), price("openai/gpt-4o", replace(million, cached_tokens=1_000_000))
    assert full == pytest.approx(2.5)
    assert cached == pytest.approx(1.25)
    assert price("anthropic/claude-sonnet-4-5", Usage(1, 0, 1_000_000)) == pytest.approx(15)
    assert price("openai@https://openrouter.ai/api/v1/openai/gpt-4o", million) == pytest.approx(2.5)


def test_pitfall_21_an_unknown_price_is_none_and_never_free() -> None:
    usage = Usage(1, 1000, 1000)
    for name in ("openai/no-such-model", "openai@https://my.host/v1/gpt-4o", "command:./agent.sh", "handoff:dir"):
        assert price(name, usage) is None
    assert price("openai/no-such-model", usage, override=(2, 10)) == pytest.approx(0.012)


def test_own_hardware_is_free_unless_a_price_is_given() -> None:
    usage = Usage(1, 1000, 1000)
    for host in ("127.0.0.1", "127.8.0.1", "localhost", "[::1]"):
        assert price(f"openai@http://{host}:80/v1/m", usage) == 0.0
    assert price("local/smollm2-135m", usage) == 0.0
    assert price("openai@http://localhost:4000/v1/gpt-4o", usage, override=(1, 1)) == pytest.approx(0.002)


async def test_a_reply_carries_its_price() -> None:
    async with Server(chat(usage={"prompt_tokens": 1000, "completion_tokens": 100})) as server:
        model = build_model(f"openai@{server.url}/v1/m", price=(2.0, 10.0))
        reply = await model.complete(ASK)
        await model.aclose()
    assert reply.usage.usd == pytest.approx(0.003)
