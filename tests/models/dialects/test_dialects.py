"""Requests, answers and streams survive the way through each dialect, and from each to each other."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.errors import CallConfigError
from skilltune.models import Schema, dialects
from skilltune.models.dialects import (
    NAMES,
    Answer,
    Conversation,
    Dialect,
    Ended,
    Message,
    Picture,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    deltas_of,
    sse,
)
from skilltune.models.dialects.canonical import INPUT_SCHEMA, dumped
from skilltune.usage import Usage

PAIRS = [(above, below) for above, below in product(NAMES, NAMES) if above != below]

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
ids = st.text("abcdefgh_0123456789-", min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(words, values, max_size=3).map(dumped)
pictures = st.sampled_from(["data:image/png;base64,iVBORw0KGgo=", "https://host.example/a.png"]).map(Picture)
texts = words.map(Text)
calls = st.builds(ToolCall, id=ids, name=ids, arguments=arguments)
results = st.builds(ToolResult, id=ids, parts=st.tuples(texts))
tools = st.builds(Tool, name=ids, description=words, parameters=st.dictionaries(words, values, max_size=2).map(
    lambda extra: {**extra, "type": "object"}
))  # fmt: skip


@st.composite
def portable(draw: st.DrawFn) -> Conversation:
    """A conversation that all dialects can express."""
    messages: list[Message] = []
    for index in range(draw(st.integers(1, 5))):
        if index % 2:
            said = draw(st.lists(texts, max_size=1)) + draw(st.lists(calls, max_size=2))
            messages.append(Message("assistant", tuple(said or [Text("…")])))
        else:
            given = draw(st.lists(results, max_size=2 if index else 0))
            shown = draw(st.lists(texts, max_size=1).map(list) | st.tuples(texts, pictures, texts).map(list))
            messages.append(Message("user", tuple([*given, *shown] or [Text("…")])))
    offered = tuple(draw(st.lists(tools, max_size=3, unique_by=lambda tool: tool.name)))
    return Conversation(
        model=draw(ids),
        messages=tuple(messages),
        system=draw(st.just("") | words),
        tools=offered,
        choice=draw(st.sampled_from(["", "auto", "any", "none", f"tool:{offered[0].name}"])) if offered else "",
        parallel=draw(st.sampled_from([None, False])) if offered else None,
        max_tokens=draw(st.integers(1, 10**6)),
        temperature=draw(st.none() | st.floats(0, 2)),
        top_p=draw(st.none() | st.floats(0, 1)),
        schema=draw(st.none() | st.just(Schema("answer", {"type": "object"}))),
        stream=draw(st.booleans()),
    )


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """An answer that all dialects can express."""
    parts: list[Any] = draw(st.lists(words.map(Reasoning), max_size=1)) + draw(st.lists(texts, max_size=1))
    called = draw(st.lists(calls, max_size=3))
    tokens, output = draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))
    return Answer(
        parts=tuple(parts + called),
        finish=draw(st.sampled_from(["length", "refusal", "tools" if called else "stop"])),
        usage=Usage(1, tokens, output, draw(st.integers(0, tokens)), draw(st.integers(0, output))),
        id=draw(ids),
        model=draw(ids),
    )


def as_auto(conversation: Conversation) -> Conversation:
    """Anthropic's API switches parallel calls off within a tool choice, so that one is always stated."""
    stated = conversation.choice or ("auto" if conversation.parallel is False else "")
    return replace(conversation, choice=stated)


@pytest.mark.parametrize("dialect", NAMES)
@given(conversation=portable())
def test_a_request_survives_its_dialect(dialect: Dialect, conversation: Conversation):
    body = json.loads(json.dumps(dialects.render_request(dialect, conversation)))
    assert as_auto(dialects.translated_request(dialect, body)) == as_auto(conversation)


@pytest.mark.parametrize(("above", "below"), PAIRS)
@given(conversation=portable())
def test_a_request_survives_another_dialect(above: Dialect, below: Dialect, conversation: Conversation):
    body = dialects.render_request(below, conversation)
    there = dialects.render_request(above, dialects.translated_request(below, body))
    assert as_auto(dialects.translated_request(above, there)) == as_auto(conversation)


@pytest.mark.parametrize("dialect", NAMES)
@given(answer=answers())
def test_an_answer_survives_its_dialect(dialect: Dialect, answer: Answer):
    body = json.loads(json.dumps(dialects.render_response(dialect, answer)))
    assert dialects.parse_response(dialect, body) == answer
    assert dialects.usage_of(dialect, body) == answer.usage


def read(dialect: Dialect, stream: bytes, cuts: list[int]) -> dialects.Assembler:
    assembler, splitter = dialects.assembler(dialect), sse.Splitter()
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in pairwise(edges):
        for event in splitter.feed(stream[begin:end]):
            if (data := sse.object_of(event)) is not None:
                assembler.feed(data)
    assert splitter.rest() == b""
    return assembler


@pytest.mark.parametrize("dialect", NAMES)
@given(answer=answers(), cuts=st.lists(st.integers(0, 10**6), max_size=20))
def test_a_stored_answer_is_streamed_again(dialect: Dialect, answer: Answer, cuts: list[int]):
    body = dialects.render_response(dialect, answer)
    assembled = read(dialect, b"".join(dialects.events_of(dialect, body)), cuts)
    assert assembled.body is not None
    assert dialects.parse_response(dialect, assembled.body) == answer


@pytest.mark.parametrize(("above", "below"), [*PAIRS, *((name, name) for name in NAMES)])
@given(answer=answers(), cuts=st.lists(st.integers(0, 10**6), max_size=20))
def test_a_stream_is_translated_event_by_event(above: Dialect, below: Dialect, answer: Answer, cuts: list[int]):
    decoder, encoder = dialects.decoder(above), dialects.encoder(below, "asked-for", "x1")
    stream = b""
    for event in dialects.events_of(above, dialects.render_response(above, answer)):
        if (data := sse.object_of(event)) is not None:
            stream += b"".join(out for delta in decoder.feed(data) for out in encoder.feed(delta))
    stream += b"".join(encoder.feed(Ended(answer)))
    assembled = read(below, stream, cuts)
    assert assembled.body is not None
    got = dialects.parse_response(below, assembled.body)
    assert replace(got, id="", model="") == replace(answer, id="", model="")


@pytest.mark.parametrize("dialect", NAMES)
@given(answer=answers())
def test_a_whole_answer_is_encoded_like_its_stream(dialect: Dialect, answer: Answer):
    encoder = dialects.encoder(dialect, answer.model, "x1")
    stream = b"".join(event for delta in deltas_of(answer) for event in encoder.feed(delta))
    body = read(dialect, stream, []).body
    assert body is not None
    assert dialects.parse_response(dialect, body).parts == answer.parts


@given(
    pieces=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",))), max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    size=st.integers(1, 9),
)
def test_events_are_cut_at_empty_lines_only(pieces: list[str], end: str, size: int):
    texts = [json.dumps({"text": piece}, ensure_ascii=False) for piece in pieces]
    stream = "".join(f"event: a{end}data: {text}{end}{end}" for text in texts).encode()
    splitter = sse.Splitter()
    found = [
        sse.object_of(event) for at in range(0, len(stream), size) for event in splitter.feed(stream[at : at + size])
    ]
    assert [event["text"] for event in found if event is not None] == pieces


def test_an_event_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "EVENT_BYTES", 1000)
    splitter = sse.Splitter()
    with pytest.raises(ValueError, match="longer"):
        for _ in range(200):
            list(splitter.feed(b"data: xxx"))


@given(st.binary(max_size=60))
def test_any_event_is_an_object_or_nothing_or_a_value_error(data: bytes):
    try:
        found = sse.object_of(b"data: " + data)
    except ValueError:
        return
    assert found is None or isinstance(found, dict)


# -- what only some dialects have


def test_reasoning_with_its_signature_goes_through_both_ways():
    thought = Reasoning("Hm.", "c2lnbmVk")
    asked = Conversation(
        "m",
        (
            Message("user", (Text("Go"),)),
            Message("assistant", (thought, Text("So"))),
        ),
        max_tokens=9,
    )
    for dialect in ("anthropic-messages", "openai-responses"):
        assert dialects.parse_request(dialect, dialects.render_request(dialect, asked)) == asked
    chat = dialects.render_request("openai-chat", asked)
    assert chat["messages"][1] == {"role": "assistant", "content": "So", "reasoning_content": "Hm."}
    hidden = Answer((Reasoning("", "c2VjcmV0", hidden=True), Text("So")), usage=Usage(1), id="msg_1")
    body = dialects.render_response("anthropic-messages", hidden)
    assert dialects.parse_response("anthropic-messages", body) == hidden


def test_reasoning_without_a_signature_is_not_sent_to_an_api_that_would_refuse_it():
    asked = Conversation("m", (Message("user", (Text("Go"),)), Message("assistant", (Reasoning("Hm."), Text("So")))))
    for dialect in ("anthropic-messages", "openai-responses"):
        assert "Hm." not in str(dialects.render_request(dialect, asked))


PATCH = Tool("apply_patch", "Patches.", INPUT_SCHEMA, custom=True, format={"type": "grammar", "syntax": "lark"})


def test_a_custom_tool_is_a_function_where_there_are_only_functions():
    call = ToolCall("c1", "apply_patch", "*** Begin\n+x", custom=True)
    result = ToolResult("c1", (Text("done"),), custom=True)
    said = (Message("user", (Text("Go"),)), Message("assistant", (call,)), Message("user", (result,)))
    asked = Conversation("m", said, tools=(PATCH,))
    assert dialects.parse_request("openai-responses", dialects.render_request("openai-responses", asked)) == asked
    chat = dialects.render_request("openai-chat", asked)
    assert json.loads(chat["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"input": "*** Begin\n+x"}
    assert chat["tools"][0]["function"]["parameters"] == INPUT_SCHEMA
    answer = Answer((call,), "tools", Usage(1, 1, 1))
    body = dialects.render_response("openai-chat", answer)
    assert dialects.parse_response("openai-chat", body, (PATCH,)) == replace(answer, id="chatcmpl-0")
    decoder, encoder = dialects.decoder("openai-chat", (PATCH,)), dialects.encoder("openai-responses", "m", "x1")
    stream = b""
    for event in dialects.events_of("openai-chat", body):
        if (data := sse.object_of(event)) is not None:
            stream += b"".join(out for delta in decoder.feed(data) for out in encoder.feed(delta))
    got = read("openai-responses", stream + b"".join(encoder.feed(Ended(answer))), []).body
    assert got is not None
    assert got["output"][0]["type"] == "custom_tool_call"
    assert got["output"][0]["input"] == "*** Begin\n+x"


def test_system_text_within_a_conversation_keeps_its_place():
    items = [
        {"role": "developer", "content": "First."},
        {"role": "user", "content": "Go"},
        {"role": "developer", "content": "Then."},
    ]
    asked = dialects.parse_request("openai-responses", {"model": "m", "instructions": "Be.", "input": items})
    assert asked.system == "Be.\n\nFirst."
    assert dialects.render_request("openai-responses", asked)["input"][1]["role"] == "developer"
    chat = dialects.render_request("openai-chat", asked)["messages"]
    assert [message["role"] for message in chat] == ["system", "user"]
    assert chat[1]["content"] == "Go\n\nThen."


def test_images_of_a_tool_follow_as_the_users():
    shown = ToolResult("c1", (Text("see"), Picture("https://host.example/a.png")))
    asked = Conversation("m", (Message("user", (shown,)),))
    chat = dialects.render_request("openai-chat", asked)["messages"]
    assert chat[0] == {"role": "tool", "tool_call_id": "c1", "content": "see"}
    assert chat[1]["content"] == [{"type": "image_url", "image_url": {"url": "https://host.example/a.png"}}]
    for dialect in ("anthropic-messages", "openai-responses"):
        assert dialects.parse_request(dialect, dialects.render_request(dialect, asked)).messages == asked.messages


def test_tool_results_come_first_for_anthropic_and_empty_texts_are_left_out():
    mixed = (Text("and"), Text(""), ToolResult("a:b.0", (Text("ok"),), error=True))
    asked = Conversation("m", (Message("user", mixed),))
    (message,) = dialects.render_request("anthropic-messages", asked)["messages"]
    assert [block["type"] for block in message["content"]] == ["tool_result", "text"]
    assert message["content"][0]["tool_use_id"] == "a_b_0"
    assert message["content"][0]["is_error"] is True


@pytest.mark.parametrize("arguments", ['{"a": 1', "{'a': 1}", '{"a": 1,}', '{"a": 1}'])
def test_broken_arguments_of_a_small_model_are_repaired_for_anthropic(arguments: str):
    answer = Answer((ToolCall("c", "Bash", arguments),), "tools", Usage(1, 1, 1))
    assert dialects.render_response("anthropic-messages", answer)["content"][0]["input"] == {"a": 1}
    encoder = dialects.encoder("anthropic-messages", "m", "x1")
    stream = b"".join(event for delta in deltas_of(answer) for event in encoder.feed(delta))
    assert b'"partial_json":"{\\"a\\":1}"' in stream


def said(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("dialect", "body", "named"),
    [
        ("anthropic-messages", {"tools": [{"type": "web_search_20250305", "name": "web"}]}, "web_search_20250305"),
        ("anthropic-messages", {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ("anthropic-messages", said({"type": "document"}), "document"),
        ("anthropic-messages", said({"type": "image", "source": {"type": "file"}}), "file"),
        ("openai-responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("openai-responses", {"tools": [{"type": "web_search"}]}, "web_search"),
        ("openai-responses", {"input": [{"type": "local_shell_call"}]}, "local_shell_call"),
        ("openai-responses", {"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input_file"),
        ("openai-chat", {"n": 2}, "n"),
        ("openai-chat", {"logprobs": True}, "logprobs"),
        ("openai-chat", said({"type": "input_audio"}), "input_audio"),
        ("openai-chat", {"tools": [{"type": "custom", "name": "x"}]}, "custom"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_named(dialect: Dialect, body: dict[str, Any], named: str):
    for other in NAMES:
        if other != dialect:
            with pytest.raises(CallConfigError, match=named):
                dialects.render_request(other, dialects.translated_request(dialect, body))
    if "tools" in body or "messages" in body or "input" in body:
        dialects.parse_request(dialect, body)  # it can be read for the trajectory


def test_stop_sequences_have_no_place_in_responses():
    asked = Conversation("m", (Message("user", (Text("Go"),)),), stop=("END",))
    with pytest.raises(CallConfigError, match="stop sequences"):
        dialects.render_request("openai-responses", asked)
    assert dialects.parse_request("openai-chat", dialects.render_request("openai-chat", asked)).stop == ("END",)


@pytest.mark.parametrize("dialect", NAMES)
@given(body=st.dictionaries(st.sampled_from(["messages", "input", "tools", "system", "tool_choice"]), values))
def test_a_request_of_any_shape_is_read_or_a_config_error(dialect: Dialect, body: dict[str, Any]):
    try:
        dialects.translated_request(dialect, body)
    except CallConfigError:
        pass


def test_chunks_that_real_servers_send():
    """Servers leave the index of a call out, name the reasoning differently, or finish a call with "stop"."""
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "reasoning": "Hm."}}]},
        {
            "choices": [
                {"index": 0, "delta": {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}}
            ]
        },
        {
            "choices": [
                {"index": 0, "delta": {"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": "{}"}}]}}
            ]
        },
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    assembler, decoder, encoder = dialects.assembler("openai-chat"), dialects.decoder("openai-chat"), None
    encoder = dialects.encoder("anthropic-messages", "m", "x1")
    stream = b""
    for chunk in chunks:
        assembler.feed(chunk)
        stream += b"".join(out for delta in decoder.feed(chunk) for out in encoder.feed(delta))
    assert assembler.body is not None
    answer = dialects.parse_response("openai-chat", assembler.body)
    assert answer.parts == (Reasoning("Hm."), ToolCall("a", "f", "{}"), ToolCall("b", "g", "{}"))
    assert answer.finish == "tools"
    body = read("anthropic-messages", stream + b"".join(encoder.feed(Ended(answer))), []).body
    assert body is not None
    assert dialects.parse_response("anthropic-messages", body).parts == answer.parts
