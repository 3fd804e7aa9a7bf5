"""Tool calls of chat models, in the three dialects over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from http_server import Answer, Server
from skilltune.errors import InfraError
from skilltune.models import Message, Request, Tool, ToolCall, ToolResult, user
from skilltune.models.anthropic import AnthropicModel
from skilltune.models.openai import OpenAIModel

pytestmark = pytest.mark.anyio

BASH = Tool("bash", "Run a command.", {"type": "object", "properties": {"command": {"type": "string"}}})
CALL = ToolCall("call_1", "bash", '{"command": "ls"}')
TALK = (user("list"), Message("assistant", "I look.", tool_calls=(CALL,)))
DONE = Message("user", "", tool_results=(ToolResult("call_1", "a.txt", error=True),))

ASKED = Request((*TALK, DONE), tools=(BASH,))


def chat(message: dict[str, Any], ended: str = "tool_calls") -> Answer:
    return Answer({"choices": [{"message": message, "finish_reason": ended}], "usage": {"prompt_tokens": 9}})


def called(**function: Any) -> dict[str, Any]:
    return {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


async def ask(kind: str, *answers: Answer, request: Request = ASKED) -> Any:
    async with Server(*answers) as server:
        if kind == "anthropic":
            model: Any = AnthropicModel(f"anthropic@{server.url}/m")
        else:
            model = OpenAIModel(f"openai@{server.url}/v1/m", api="responses" if kind == "responses" else "chat")
        try:
            return await model.complete(request), [call.body for call in server.calls]
        finally:
            await model.aclose()


@pytest.mark.parametrize("arguments", ['{"command": "ls"}', {"command": "ls"}])
async def test_a_chat_model_calls_a_tool(arguments: Any) -> None:
    reply, (sent,) = await ask("chat", chat(called(name="bash", arguments=arguments)))
    assert reply.tool_calls == (CALL,)
    assert reply.text == ""
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {"name": "bash", "description": BASH.description, "parameters": {**BASH.parameters}},
        }
    ]
    assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "tool"]
    assert sent["messages"][1]["tool_calls"][0]["function"] == {"name": "bash", "arguments": '{"command": "ls"}'}
    assert sent["messages"][2] == {"role": "tool", "tool_call_id": "call_1", "content": "a.txt"}


async def test_a_streamed_chat_answer_keeps_the_ids_of_its_calls() -> None:
    parts = [
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "bash", "arguments": '{"comm'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'and": "ls"}'}}]},
    ]
    events = [{"choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    reply, _ = await ask("chat", Answer(body, headers={"Content-Type": "text/event-stream"}))
    assert reply.tool_calls == (CALL,)


async def test_the_responses_api_calls_a_tool() -> None:
    item = {"type": "function_call", "id": "fc", "call_id": "call_1", "name": "bash", "arguments": CALL.arguments}
    reply, (sent,) = await ask("responses", Answer({"output": [item], "status": "completed"}))
    assert reply.tool_calls == (CALL,)
    assert [i.get("type", i.get("role")) for i in sent["input"]] == [
        "user",
        "assistant",
        "function_call",
        "function_call_output",
    ]
    assert sent["tools"][0]["name"] == "bash"


async def test_an_anthropic_model_calls_a_tool() -> None:
    blocks = [
        {"type": "text", "text": "Again."},
        {"type": "tool_use", "id": "call_1", "name": "bash", "input": {"command": "ls"}},
    ]
    reply, (sent,) = await ask("anthropic", Answer({"content": blocks, "stop_reason": "tool_use", "usage": {}}))
    assert (reply.text, reply.tool_calls) == ("Again.", (CALL,))
    assert sent["messages"][1]["content"][1] == {
        "type": "tool_use",
        "id": "call_1",
        "name": "bash",
        "input": {"command": "ls"},
    }
    assert sent["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "a.txt", "is_error": True}
    ]
    assert "tool_choice" not in sent


async def test_a_call_with_broken_arguments_goes_back_to_anthropic_as_it_came() -> None:
    broken = (user("x"), Message("assistant", "", tool_calls=(ToolCall("call_1", "bash", "{oops"),)), DONE)
    answer = Answer({"content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn", "usage": {}})
    _, (sent,) = await ask("anthropic", answer, request=Request(broken, tools=(BASH,)))
    assert sent["messages"][1]["content"][0]["input"] == {"arguments": "{oops"}


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_a_call_that_nobody_offered_is_still_no_answer(kind: str) -> None:
    item = {"type": "function_call", "call_id": "call_1", "name": "bash", "arguments": "{}"}
    answers = {
        "chat": chat(called(name="bash", arguments="{}")),
        "responses": Answer({"output": [item], "status": "completed"}),
    }
    with pytest.raises(InfraError, match="tool call"):
        await ask(kind, answers[kind], request=Request((user("x"),)))


async def test_a_call_that_was_cut_is_not_made() -> None:
    with pytest.raises(InfraError, match="cut before any text"):
        await ask("chat", chat(called(name="bash", arguments='{"comm'), "length"))
