"""Answers that are none, as real endpoints give them: each is a typed failure with its cause, never a reply."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_server import Answer, Call, Server
from sending import send
from skilltune.errors import CallConfigError, CallError, InfraError, SampleError
from skilltune.metering.slots import Endpoint
from skilltune.models import Message, Model, Reply, Request, Schema, system, user
from skilltune.models.anthropic import AnthropicModel
from skilltune.models.openai import OpenAIModel
from skilltune.models.reading import ANSWER_CHARS, THINKING_CHARS, NoText, split_thinking
from skilltune.models.retry import RateLimited, RetryPolicy
from skilltune.models.structured import JSON_CHARS, ask, parse
from skilltune.models.wire import parsed, proxy_of
from skilltune.usage import Usage

pytestmark = pytest.mark.anyio

ASK = Request((system("Be brief."), user("2 + 2?")), max_tokens=16)
SCHEMA = Schema("merge", {"type": "object", "properties": {"edits": {"type": "array"}}})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def chat(content: Any = "4", finish: Any = "stop", usage: Any = None, choice: Any = None, **message: Any) -> Answer:
    usage = {"prompt_tokens": 9, "completion_tokens": 5} if usage is None else usage
    told = {"role": "assistant", "content": content, **message}
    return Answer({"choices": [{"message": told, "finish_reason": finish, **(choice or {})}], "usage": usage})


def responses(*output: dict[str, Any], status: str = "completed", **fields: Any) -> Answer:
    usage = {"input_tokens": 9, "output_tokens": 5}
    return Answer({"status": status, "output": list(output), "usage": usage, **fields})


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def blocks(*content: dict[str, Any], stop: str = "end_turn") -> Answer:
    return Answer({"content": list(content), "stop_reason": stop, "usage": {"input_tokens": 9, "output_tokens": 5}})


def refused(message: str, status: int = 400, **fields: Any) -> Answer:
    return Answer({"error": {"message": message, **fields}}, status=status)


def sse(*events: Any, done: bool = True, kind: str = "text/event-stream") -> Answer:
    lines = [
        f"data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n" for event in events
    ]
    return Answer("".join([*lines, *(["data: [DONE]\n\n"] if done else [])]), headers={"Content-Type": kind})


def chat_model(server: Server, timeout_s: float = 5) -> Model:
    return OpenAIModel(f"openai@{server.url}/v1/m", timeout_s=timeout_s)


def responses_model(server: Server) -> Model:
    return OpenAIModel(f"openai@{server.url}/v1/m", api="responses", timeout_s=5)


def messages_model(server: Server) -> Model:
    return AnthropicModel(f"anthropic@{server.url}/m", timeout_s=5)


async def outcome(answer: Answer, make: Callable[[Server], Model] = chat_model, request: Request = ASK) -> Any:
    """The reply, or the error."""
    async with Server(answer) as server:
        model = make(server)
        try:
            return await model.complete(request)
        except CallError as error:
            return error
        finally:
            await model.aclose()


# an answer without text


@pytest.mark.parametrize(
    ("make", "answer", "cause"),
    [
        (chat_model, chat(None, reasoning_content="so it is 4"), "reasoning_content"),
        (chat_model, chat("", reasoning="so it is 4"), "all text of the answers is in reasoning:"),
        (
            chat_model,
            chat(None, reasoning_details=[{"type": "reasoning.text", "text": "it is 4"}]),
            "reasoning_details",
        ),
        (chat_model, chat([{"type": "thinking", "thinking": [{"type": "text", "text": "4"}]}]), "in content: correct"),
        (chat_model, chat("<think>it is 4"), "an unclosed thinking tag"),
        (chat_model, chat("<think>it is 4</think>\n"), "thinking tags"),
        (responses_model, responses({"type": "reasoning", "summary": [{"text": "4"}]}), "its reasoning items"),
        (messages_model, blocks({"type": "thinking", "thinking": "it is 4"}), "its thinking blocks"),
        (chat_model, chat(None, "length"), "raise max_tokens"),
        (chat_model, chat("", "length", reasoning_content="let me"), "raise max_tokens"),
        (chat_model, chat("<think>let me", "length"), "raise max_tokens"),
        (responses_model, responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"}), "raise"),
        (messages_model, blocks(stop="max_tokens"), "raise max_tokens"),
        (chat_model, chat(None, "tool_calls", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]), "tools"),
        (responses_model, responses({"type": "function_call", "name": "f", "arguments": "{}"}), "tools"),
        (messages_model, blocks({"type": "tool_use", "name": "f", "input": {}}, stop="tool_use"), "tools"),
        (chat_model, chat(None), "no text at all"),
        (chat_model, chat(" \n"), "no text at all"),
        (chat_model, chat([]), "no text at all"),
        (responses_model, responses(), "no text at all"),
        (messages_model, blocks(), "no text at all"),
        (
            chat_model,
            refused("Could not finish the message because max_tokens or model output limit was reached."),
            "cut",
        ),
    ],
)
async def test_an_answer_without_text_is_a_failure_with_its_cause(make: Any, answer: Answer, cause: str) -> None:
    error = await outcome(answer, make)
    assert isinstance(error, NoText)
    assert cause in error.systemic
    assert error.systemic in str(error)
    assert error.attempts in (2, 3, 4)
    again = await outcome(answer, make)
    assert again.systemic == error.systemic  # equal for equal kinds, whatever the server's port


async def test_what_a_failed_answer_cost_is_known() -> None:
    error = await outcome(chat(None, "length"))
    assert error.usage == Usage(1, 9, 5, usd=0.0)


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (chat_model, chat("", "error", choice={"error": {"code": 502, "message": "closed"}})),
        (chat_model, chat("half an ans", "error")),
        (chat_model, chat("half an ans", None, choice={"error": {"code": 502, "message": "closed"}})),
        (chat_model, chat("half", "abort")),
        (chat_model, chat("half", "insufficient_system_resource")),
        (responses_model, responses(said("half"), status="failed")),
        (responses_model, responses(said("half"), status="incomplete")),
        (responses_model, responses(status="in_progress")),
        (messages_model, blocks({"type": "text", "text": "Let me look"}, stop="pause_turn")),
    ],
)
async def test_an_answer_that_was_broken_off_is_retried(make: Any, answer: Answer) -> None:
    error = await outcome(answer, make)
    assert isinstance(error, InfraError)
    assert error.attempts is None
    assert not error.systemic


async def test_an_error_inside_an_answer_is_typed_as_the_status_that_it_hides() -> None:
    limited = chat("", "error", choice={"error": {"code": 429, "message": "Rate limited upstream"}})
    assert isinstance(await outcome(limited), RateLimited)
    broke = Answer({"error": {"code": 402, "message": "Your credit balance is too low"}})
    assert isinstance(await outcome(broke), CallConfigError)
    answered = chat("moderation is a virtue", "error", choice={"error": {"code": 502, "message": "closed"}})
    assert type(await outcome(answered)) is InfraError  # the answer's own words say nothing of the error
    flagged = Answer({"error": {"code": 403, "message": "Your input was flagged"}})
    assert isinstance(await outcome(flagged), SampleError)


async def test_a_hopeless_failure_is_asked_for_fewer_times_than_the_policy_allows() -> None:
    async with Server(chat(None, reasoning_content="4")) as server:
        model = chat_model(server)
        with pytest.raises(NoText, match="gave up after 3 attempts") as caught:
            await send(Endpoint(2, RetryPolicy(base_s=0.001)), model, ASK)
        await model.aclose()
    assert len(server.calls) == 3
    assert caught.value.systemic


async def test_other_failures_in_between_do_not_shorten_the_retries() -> None:
    bad = [chat(None, "length"), Answer("", status=500), chat(None, "length"), Answer("", status=500)]
    async with Server(*bad, chat()) as server:
        model = chat_model(server)
        assert (await send(Endpoint(2, RetryPolicy(base_s=0.001)), model, ASK)).text == "4"
        await model.aclose()


# a filter, a context


@pytest.mark.parametrize(
    "answer",
    [
        refused("The response was filtered due to the prompt triggering our content management policy", code="x"),
        refused("bad", code="content_filter"),
        refused("Your request requires moderation and was flagged for violence", status=403),
        refused("Input data may contain inappropriate content.", code="data_inspection_failed"),
        refused("This model's maximum context length is 10 tokens"),
        refused("prompt is too long: 9 tokens > 8 maximum"),
        refused("Range of input length should be [1, 30720]"),
        Answer("Request Entity Too Large", status=413),
        chat("", "content_filter"),
        chat(None, "SAFETY"),
    ],
)
async def test_what_concerns_one_sample_is_that_samples_outcome(answer: Answer) -> None:
    error = await outcome(answer)
    assert isinstance(error, SampleError)
    assert error.outcome == "sample_error"
    assert "_API_KEY" not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        blocks(stop="refusal"),
        responses(status="incomplete", incomplete_details={"reason": "content_filter"}),
    ],
)
async def test_a_filter_that_withholds_the_whole_answer_is_the_samples_outcome(answer: Answer) -> None:
    make = messages_model if "content" in answer.body else responses_model
    assert isinstance(await outcome(answer, make), SampleError)


async def test_a_refusal_in_words_is_the_models_own_answer() -> None:
    assert (await outcome(chat(None, refusal="I will not."))).text == "I will not."
    assert (await outcome(blocks({"type": "text", "text": "No."}, stop="refusal"), messages_model)).finish == "refusal"


async def test_an_error_body_that_repeats_the_prompt_is_not_judged_by_the_prompts_words() -> None:
    prompt = "content_filter, moderation, context length, temperature not supported, try again"
    body = {"detail": [{"loc": ["body", "n"], "msg": "must be 1", "input": prompt}]}
    error = await outcome(Answer(body, status=422))
    assert type(error).__name__ == "Rejected"
    assert isinstance(error, CallConfigError)


# refusals that pass


@pytest.mark.parametrize(
    "message",
    ["Failed to generate JSON. Please adjust your prompt.", "The model is overloaded", "No capacity, try again later"],
)
async def test_a_refusal_that_passes_is_retried(message: str) -> None:
    async with Server(refused(message), refused(message), chat('{"edits": []}')) as server:
        model = chat_model(server)
        reply = await send(Endpoint(2, RetryPolicy(base_s=0.001)), model, replace(ASK, schema=SCHEMA))
        await model.aclose()
    assert reply.text == '{"edits": []}'
    assert all("response_format" in call.body for call in server.calls)


async def test_a_model_that_keeps_failing_to_make_json_gets_the_schema_in_the_prompt() -> None:
    def picky(call: Call) -> Answer:
        if "response_format" in call.body:
            return refused("failed", code="json_validate_failed", failed_generation="{ temperature unknown")
        return chat('{"edits": []}')

    async with Server(picky) as server:
        model = chat_model(server)
        reply = await send(Endpoint(2, RetryPolicy(base_s=0.001)), model, replace(ASK, schema=SCHEMA))
        await model.aclose()
    assert reply.text == '{"edits": []}'
    assert ["response_format" in call.body for call in server.calls] == [True, True, True, False]


# thinking inside the text


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\nhm\n</think>\n\nK1", "hm", "K1"),
        ("\n<Think>hm</THINK>K1", "hm", "K1"),
        ("<think></think>K1", "", "K1"),
        ("<think>a</think>\n<think>b</think>K1", "a\n\nb", "K1"),
        ("<think>a <think> b</think> c", "a <think> b", "c"),
        ("<think>a<think>b</think></think>c", "a<think>b", "c"),
        ("<thinking>hm</thinking>\nK1 <think>", "hm", "K1 <think>"),
        ("<reasoning>hm</reasoning>K1", "hm", "K1"),
        ("[THINK]hm[/THINK]K1", "hm", "K1"),
        ("◁think▷hm◁/think▷K1", "hm", "K1"),
        ("<seed:think>hm</seed:think>K1", "hm", "K1"),
        ("hm, so\n</think>\n\nK1", "hm, so", "K1"),
        ("hm, so</think>\nK1", "hm, so", "K1"),
        ("hm, so</think>K1", "hm, so", "K1"),
        ("```py\nx\n```\nso\n</think>\nK1", "```py\nx\n```\nso", "K1"),
        ("</think>\nK1", "", "K1"),
    ],
)
def test_thinking_at_the_start_is_taken_off(text: str, thinking: str, answer: str) -> None:
    split = split_thinking(text)
    assert (split.thinking, split.answer, split.open) == (thinking, answer, False)


@pytest.mark.parametrize(
    "text",
    [
        "K1",
        "",
        "Write <think> and </think> around it.",
        "Close it with `</think>`\nand go on",
        'Models end with "</think>"\nthen answer',
        "End the thought with </think> and then answer.",
        "End the thought with </think>",
        "```\nhm\n</think>\nK1\n```",
        "<thinker>hm</thinker>",
        "< think>hm</ think>",
        "I thought <think>hm</think> so",
    ],
)
def test_a_tag_that_is_only_mentioned_stays(text: str) -> None:
    assert split_thinking(text).answer == text


def test_tags_that_the_prompt_asks_for_are_the_answer() -> None:
    text = "<reasoning>2 and 2</reasoning><answer>4</answer>"
    assert split_thinking(text, "Write <reasoning> first.").answer == text
    assert split_thinking(text, "Write briefly.").answer == "<answer>4</answer>"
    assert split_thinking("<think>hm</think>4", "Do not write <think>.").answer == "4"


@given(st.text(st.sampled_from("<>/think[]THINK ▷◁`\nab")), st.text(st.sampled_from("<think> a")))
def test_an_answer_is_always_the_end_of_the_text(text: str, asked: str) -> None:
    split = split_thinking(text, asked)
    assert text.endswith(split.answer)
    assert not split.open or not split.answer


@pytest.mark.parametrize("piece", ["<think>", "<think></think>", "</think>", "<think>x</think>\n", " ", "</think>x\n"])
def test_taking_thinking_off_is_linear(piece: str) -> None:
    began = time.process_time()
    split_thinking(piece * (400_000 // len(piece)))
    assert time.process_time() - began < 2


async def test_thinking_is_kept_beside_the_answer() -> None:
    reply = await outcome(chat("<think>carry</think>\n4", reasoning_content="first"))
    assert (reply.text, reply.thinking) == ("4", "first\n\ncarry")
    reply = await outcome(blocks({"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}), messages_model)
    assert (reply.text, reply.thinking) == ("4", "hm")
    long = await outcome(chat("4", reasoning_content="a" * 100_000 + "z"))
    assert len(long.thinking) < THINKING_CHARS + 100
    assert long.thinking.endswith("z")


# a prompt that the server cut

WORDS = "the code of the ticket goes to the desk before the stamp and the letter "
LONG = Request((system(WORDS * 200), user("2 + 2?")))  # 3,000 words


@pytest.mark.parametrize(
    ("usage", "alarm"),
    [
        ({"prompt_tokens": 1026}, True),
        ({"prompt_tokens": 1900}, True),
        ({"prompt_tokens": 2900}, False),  # a tokenizer that joins words
        ({"prompt_tokens": 40}, False),  # no context is as small: a count that says nothing
        ({"prompt_tokens": 300, "prompt_tokens_details": {"cached_tokens": 2700}}, False),
        ({}, False),
    ],
)
async def test_a_prompt_that_the_server_cut_is_a_failure(usage: dict[str, Any], alarm: bool) -> None:
    error = await outcome(chat(usage={"completion_tokens": 5, **usage}), request=LONG)
    assert isinstance(error, InfraError) == alarm
    if alarm:
        assert f"the endpoint read {usage['prompt_tokens']:,} of about 3,602 prompt tokens" in str(error)
        assert "num_ctx" in error.systemic
        assert error.attempts == 1


async def test_a_cut_prompt_is_seen_on_every_api() -> None:
    told = {"input_tokens": 1026, "output_tokens": 5}
    assert isinstance(await outcome(replace(responses(said("4")), body={**responses(said("4")).body, "usage": told}),
                                    responses_model, LONG), InfraError)  # fmt: skip
    body = {**blocks({"type": "text", "text": "4"}).body, "usage": told}
    assert isinstance(await outcome(Answer(body), messages_model, LONG), InfraError)
    cached = {**told, "cache_read_input_tokens": 2600}
    assert isinstance(await outcome(Answer({**body, "usage": cached}), messages_model, LONG), Reply)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("订单的代码应当写在第一行。" * 300, 2000),  # 3,900 signs at two a token
        ("    \n" * 4000 + "x = 1\n" * 300, 700),  # white space packs well
        ("0123456789abcdef" * 1000, 5000),
        ("ภาษาไทยไม่มีช่องว่าง" * 300, 1500),
        ("-" * 20_000, 320),
    ],
)
async def test_a_dense_tokenizer_is_no_alarm(text: str, count: int) -> None:
    request = Request((system(text), user("2 + 2?")))
    reply = await outcome(chat(usage={"prompt_tokens": count, "completion_tokens": 1}), request=request)
    assert isinstance(reply, Reply)


async def test_a_server_that_leaves_cached_tokens_out_is_excused_once_it_read_a_whole_prompt() -> None:
    whole, rest = ({"prompt_tokens": n, "completion_tokens": 1} for n in (3100, 300))
    async with Server(chat(usage=whole), chat(usage=rest)) as server:
        model = chat_model(server)
        for _ in range(3):
            assert (await model.complete(LONG)).text == "4"
        await model.aclose()


# streams and other bodies


def chunk(finish: Any = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


MESSAGES = [
    {"type": "message_start", "message": {"role": "assistant", "content": [], "usage": {"input_tokens": 9}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "fo"}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "ur"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
COUNTED = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}
RESPONSE = {"type": "response.completed", "response": responses(said("four")).body}


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (chat_model, sse(chunk(role="assistant"), chunk(content="fo"), chunk("stop", content="ur"), COUNTED)),
        (chat_model, sse(chunk(content="fo"), chunk(content="ur"), kind="application/json")),
        (chat_model, sse(chunk(content="four"), chunk("stop"), done=False)),
        (chat_model, sse(": keep-alive", chunk(reasoning_content="hm"), chunk("stop", content="four"))),
        (responses_model, sse({"type": "response.created", "response": {}}, RESPONSE, done=False)),
        (messages_model, sse(*MESSAGES, done=False)),
    ],
)
async def test_a_stream_that_nobody_asked_for_is_read(make: Any, answer: Answer) -> None:
    answer = replace(answer, body=answer.body.replace("data: : keep-alive", ": keep-alive"))
    reply = await outcome(answer, make)
    assert reply.text == "four"
    assert reply.usage.input_tokens
    assert reply.usage.output_tokens


async def test_the_usage_of_a_stream_is_the_last_chunks() -> None:
    reply = await outcome(sse(chunk(content="four"), chunk("stop"), COUNTED))
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (9, 7)
    reply = await outcome(sse(*MESSAGES), messages_model)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.thinking) == (9, 7, "hm")


async def test_a_streamed_tool_answers_a_schema() -> None:
    start = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "name": "merge", "input": {}},
    }
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": part}}
        for part in ('{"edits"', ": [1]}")
    ]
    reply = await outcome(sse(MESSAGES[0], start, *deltas, MESSAGES[-2]), messages_model, replace(ASK, schema=SCHEMA))
    assert json.loads(reply.text) == {"edits": [1]}
    calls = [{"index": 0, "function": {"name": "merge", "arguments": part}} for part in ('{"edits"', ": [1]}")]
    chunks = [chunk(tool_calls=[call]) for call in calls]
    reply = await outcome(sse(*chunks, chunk("tool_calls")), request=replace(ASK, schema=SCHEMA))
    assert json.loads(reply.text) == {"edits": [1]}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (sse(chunk(content="fo"), done=False), "a stream that cannot be read"),
        (sse("{broken"), "a stream that cannot be read"),
        (Answer("data: nothing here\n\n"), "a stream that cannot be read"),
        (Answer(json.dumps(chat().body) * 2), "several JSON values"),
        (
            Answer("\n".join(json.dumps({"message": {"content": t}, "done": False}) for t in "ab")),
            "several JSON values",
        ),
        (Answer("<!DOCTYPE html><html>Sign in</html>"), "a web page"),
        (Answer("[" * 100_000), "nested too deeply"),
        (Answer({"hello": "world"}), "no known shape"),
        (Answer("[1]"), "not JSON objects"),
    ],
)
async def test_a_body_that_is_no_answer_says_why(answer: Answer, cause: str) -> None:
    error = await outcome(answer)
    assert isinstance(error, InfraError)
    assert cause in error.systemic
    assert cause in str(error)
    assert error.attempts == 3


@pytest.mark.parametrize("bad", [Answer({"choices": []}), Answer("<html>502</html>"), Answer("[1]")])
async def test_an_endpoint_that_has_answered_well_is_asked_again_as_often_as_the_policy_allows(bad: Answer) -> None:
    async with Server(chat("4"), *[bad] * 6, chat("5"), *[bad] * 8) as server:
        model, endpoint = chat_model(server), Endpoint(1, RetryPolicy(base_s=0.001))
        assert [(await send(endpoint, model, ASK)).text for _ in range(2)] == ["4", "5"]
        with pytest.raises(InfraError, match="gave up after 8 attempts") as caught:
            await send(endpoint, model, ASK)
        await model.aclose()
    assert caught.value.systemic


async def test_an_error_in_a_stream_is_an_error() -> None:
    error = await outcome(sse(chunk(content="fo"), {"error": {"code": 429, "message": "slow down"}}))
    assert isinstance(error, RateLimited)
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert isinstance(await outcome(sse(MESSAGES[0], overloaded), messages_model), InfraError)


async def test_an_endpoint_that_only_streams_is_asked_for_a_stream() -> None:
    def streaming(call: Call) -> Answer:
        if not call.body.get("stream"):
            return refused("This model only support stream mode, please enable the stream parameter")
        if "stream_options" in call.body:
            return refused("stream_options: Extra inputs are not permitted")
        return sse(chunk(content="4"), chunk("stop"))

    async with Server(streaming) as server:
        model = chat_model(server)
        for _ in range(2):
            assert (await model.complete(ASK)).text == "4"
        await model.aclose()
    assert [call.body["stream"] for call in server.calls] == [False, True, True, True]


@given(st.text(st.sampled_from('{}[]":,datendone \n<0-9e\\')))
def test_any_body_is_an_object_or_has_a_reason_or_is_broken(text: str) -> None:
    for kind in ("application/json", "text/event-stream"):
        body, cause = parsed(text, kind)
        assert body is None or (isinstance(body, dict) and not cause)


# what an endpoint does not know


@pytest.mark.parametrize(
    "complaint",
    [
        "System role not supported",
        "messages[0].role does not support 'system' with this model.",
        "Developer instruction is not enabled for models/gemma",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "messages.0.role: Input should be 'user' or 'assistant'",
    ],
)
@pytest.mark.parametrize("status", [400, 500])
async def test_a_model_without_a_system_role_gets_the_skill_in_the_users_message(complaint: str, status: int) -> None:
    def picky(call: Call) -> Answer:
        system = any(message["role"] == "system" for message in call.body["messages"])
        return refused(complaint, status) if system else chat()

    async with Server(picky) as server:
        model = OpenAIModel(f"openai@{server.url}/v1/m", timeout_s=5)
        for _ in range(2):
            assert (await model.complete(ASK)).text == "4"
        await model.aclose()
    assert len(server.calls) == 3
    assert server.calls[-1].body["messages"] == [{"role": "user", "content": "Be brief.\n\n2 + 2?"}]
    assert "no system role" in model.learned["system"]


async def test_a_servers_own_trouble_is_no_refusal_of_the_system_role() -> None:
    async with Server(refused("internal system error: unexpected message", 500), chat()) as server:
        model = OpenAIModel(f"openai@{server.url}/v1/m", timeout_s=5)
        with pytest.raises(InfraError):
            await model.complete(ASK)
        await model.aclose()
    assert not model.learned


@pytest.mark.parametrize(
    "complaint",
    [
        "invalid temperature: only 1 is allowed for this model",
        "temperature must be 1",
        "'temperature' does not support 0.5 with this model.",
        "`temperature` is deprecated for this model.",
        "`temperature` may only be set to 1 when thinking is enabled",
        "This model requires temperature=1",
    ],
)
@pytest.mark.parametrize("make", [chat_model, responses_model, messages_model])
async def test_a_temperature_that_is_refused_in_any_words_is_left_out(make: Any, complaint: str) -> None:
    good = {
        chat_model: chat(),
        responses_model: responses(said("4")),
        messages_model: blocks({"type": "text", "text": "4"}),
    }

    def picky(call: Call) -> Answer:
        return refused(complaint) if "temperature" in call.body else good[make]

    async with Server(picky) as server:
        model = make(server)
        assert (await model.complete(replace(ASK, temperature=0.0))).text == "4"
        await model.aclose()
    assert list(model.learned) == ["temperature"]


@pytest.mark.parametrize("complaint", ["temperature must be at most 2", "temperature: 3 is not in the range [0, 2]"])
async def test_a_temperature_out_of_range_is_the_users_to_mend(complaint: str) -> None:
    async with Server(refused(complaint)) as server:
        model = chat_model(server)
        with pytest.raises(CallConfigError):
            await model.complete(replace(ASK, temperature=3.0))
        await model.aclose()
    assert len(server.calls) == 1


async def test_an_endpoint_that_wants_a_limit_gets_one() -> None:
    def picky(call: Call) -> Answer:
        limited = "max_tokens" in call.body or "max_completion_tokens" in call.body
        return chat() if limited else refused("max_tokens: field required", 422)

    async with Server(picky) as server:
        model = chat_model(server)
        assert (await model.complete(replace(ASK, max_tokens=None))).text == "4"
        await model.aclose()
    assert server.calls[-1].body["max_tokens"] == 4096


async def test_several_refusals_are_learned_in_any_order() -> None:
    async def bodies(order: list[str]) -> dict[str, Any]:
        def picky(call: Call) -> Answer:
            system = call.body["messages"][0]["role"] == "system"
            for name in order:
                if name == "system" and system:
                    return refused("System role not supported")
                if name != "system" and name in call.body:
                    return refused(f"Unsupported parameter: '{name}'")
            return chat()

        async with Server(picky) as server:
            model = chat_model(server)
            await model.complete(replace(ASK, temperature=0.0, stop=("\n",)))
            await model.aclose()
        return server.calls[-1].body

    names = ["system", "temperature", "stop", "stream"]
    assert await bodies(names) == await bodies(names[::-1])


# figures, sizes, proxies


@pytest.mark.parametrize(
    "absurd", [-5, 9 * 10**18, 10**400, float("inf"), float("nan"), True, "12", [1], {"n": 1}, None]
)
async def test_absurd_usage_is_estimated(absurd: Any) -> None:
    usage = {"prompt_tokens": absurd, "completion_tokens": absurd, "prompt_tokens_details": {"cached_tokens": absurd}}
    reply = await outcome(chat("four", usage=usage))
    assert reply.usage == Usage(1, 4, 1, usd=0.0)


async def test_parts_of_the_usage_are_no_larger_than_their_wholes() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 999}, "completion_tokens_details": {"reasoning_tokens": 999}}
    reply = await outcome(chat(usage={"prompt_tokens": 10, "completion_tokens": 5, **details}))
    assert reply.usage.reasoning_tokens == 5
    assert (reply.usage.input_tokens, reply.usage.cached_tokens) == (1009, 999)  # a server that counts them apart


async def test_a_number_of_thousands_of_digits_is_no_crash() -> None:
    body = '{"choices": [{"message": {"content": "4"}}], "usage": {"prompt_tokens": ' + "9" * 5000 + "}}"
    assert (await outcome(Answer(body))).usage.input_tokens == 4


async def test_a_long_answer_is_cut_and_an_endless_one_is_an_error() -> None:
    reply = await outcome(chat("x" * (ANSWER_CHARS + 1)))
    assert (len(reply.text), reply.finish) == (ANSWER_CHARS, "length")
    error = await outcome(chat("x" * 9_000_000))
    assert isinstance(error, InfraError)
    assert "longer than 8 MB" in error.systemic


async def test_a_decompression_bomb_is_an_error() -> None:
    bomb = gzip.compress(json.dumps(chat("x" * 20_000_000).body).encode())
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    error = await outcome(Answer(raw=head + bomb))
    assert isinstance(error, InfraError)


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for host in ("127.0.0.1", "127.8.0.1:8000", "localhost:11434", "[::1]:8000", "model.localhost"):
        assert proxy_of(f"http://{host}/v1") is None
    assert proxy_of("http://model.invalid/v1") == "http://127.0.0.1:9"


async def test_a_proxy_in_the_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hunter22@127.0.0.1:9")
    model = OpenAIModel("openai@http://model.invalid/v1/m", timeout_s=5)
    with pytest.raises(
        InfraError, match=r"through the proxy http://127\.0\.0\.1:9.*model\.invalid.*NO_PROXY"
    ) as caught:
        await model.complete(ASK)
    assert "hunter22" not in str(caught.value)
    await model.aclose()


# answers in a schema


@pytest.mark.parametrize(
    "text",
    [
        '{"edits": ' + "[" * 100_000,
        "{" * 100_000,
        "```" + "\n" * 100_000 + "x",
        "```json\n" + "`" * 100_000,
        '{"edits": ["' + 'x", y" ' * 20_000,
        '{"a":"b" c" ' * 9000,
        "<think>" * 60_000,
        "x" * (JSON_CHARS + 1),
        '{"edits": [' + "[" * 63 + "]" * 63,
    ],
)
async def test_an_answer_that_cannot_be_parsed_is_asked_for_again_and_soon(text: str) -> None:
    asked: list[Request] = []

    async def call(request: Request) -> Reply:
        asked.append(request)
        return Reply(text if len(asked) == 1 else '{"edits": []}', Usage())

    began = time.process_time()
    assert await ask(call, replace(ASK, schema=SCHEMA), lambda data: data["edits"] == []) in (True, False)
    assert time.process_time() - began < 6
    assert all(len(message.text) <= 20_000 for message in asked[-1].messages)


async def test_a_validator_that_overflows_is_a_bad_answer() -> None:
    def deep(data: Any) -> Any:
        return deep(data)

    async def call(request: Request) -> Reply:
        return Reply("{}", Usage())

    with pytest.raises(InfraError, match="nested too deeply"):
        await ask(call, ASK, deep)


@given(st.text(st.sampled_from("{}[]\"`:,\\'a1 \n/*")))
def test_any_text_is_an_object_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(parse(Reply(text, Usage())), dict)
    except ValueError:
        pass


def test_a_fence_around_the_answer_is_taken_off_and_braces_in_strings_are_text() -> None:
    inner = json.dumps({"text": "```py\n{{[[\n```"})
    for text in (inner, f"```json\n{inner}\n```", f"```\n{inner}```", f"\n```JSON  \n{inner}\n\n```\n"):
        assert parse(Reply(text, Usage())) == json.loads(inner)


async def test_many_long_answers_at_once_stay_small() -> None:
    async with Server(chat("y " * 1_000_000)) as server:
        model = chat_model(server, timeout_s=30)
        replies = await asyncio.gather(*(model.complete(replace(ASK, draw=n)) for n in range(6)))
        await model.aclose()
    assert sum(len(reply.text) for reply in replies) == 6 * ANSWER_CHARS


def test_a_message_keeps_its_images_when_the_skill_goes_before_it() -> None:
    from skilltune.models.wire import fold_system

    folded = fold_system((system("S"), Message("assistant", "hi"), user("U"), system("T")))
    assert [(message.role, message.text) for message in folded] == [("assistant", "hi"), ("user", "S\n\nT\n\nU")]
    assert fold_system((system("S"),)) == (user("S"),)
    assert fold_system((user("U"),)) == (user("U"),)
