"""A small agent in the three dialects, as a client of the gateway: it asks, runs the tool, and asks again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from skilltune.models.dialects import Dialect, Json
from upstream import events

BODY = "Write the total as a plain number.\n\nNever add a currency sign."
DIALECTS: tuple[Dialect, ...] = ("anthropic-messages", "openai-responses", "openai-chat")
PATHS: Mapping[Dialect, str] = {
    "anthropic-messages": "/v1/messages?beta=true",
    "openai-responses": "/v1/responses",
    "openai-chat": "/v1/chat/completions",
}
SCHEMA: Json = {"type": "object", "properties": {"command": {"type": "string"}}}


@dataclass(frozen=True)
class Got:
    status: int
    raw: bytes
    type: str

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[dict[str, Any]]:
        return events(self.raw)


def first(dialect: Dialect, text: str = f"Do it.\n{BODY}", *, stream: bool = True, tools: bool = True) -> Json:
    """The first request of an agent."""
    body: Json = {"model": "asked-for", "stream": stream}
    if dialect == "anthropic-messages":
        body |= {"max_tokens": 100, "system": "You are an agent.", "metadata": {"user_id": "u1"}}
        body["messages"] = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        offered: Json = {"name": "Bash", "description": "Runs.", "input_schema": SCHEMA}
    elif dialect == "openai-responses":
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        body |= {"instructions": "You are an agent.", "input": [message], "store": False, "prompt_cache_key": "p1"}
        offered = {"type": "function", "name": "Bash", "description": "Runs.", "strict": False, "parameters": SCHEMA}
    else:
        body["messages"] = [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": text}]
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        offered = {"type": "function", "function": {"name": "Bash", "description": "Runs.", "parameters": SCHEMA}}
    return body | ({"tools": [offered]} if tools else {})


def following(dialect: Dialect, body: Json, got: Got, output: str = "42") -> Json:
    """The next request, after the tools of the answer were run."""
    if dialect == "anthropic-messages":
        answer = whole_message(got.events) if body["stream"] else got.json
        uses = [block["id"] for block in answer["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": use, "content": output} for use in uses]
        said = [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]
        return {**body, "messages": [*body["messages"], *said]}
    if dialect == "openai-responses":
        answer = got.events[-1]["response"] if body["stream"] else got.json
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": output} for call in calls]
        return {**body, "input": [*body["input"], *answer["output"], *outputs]}
    message = whole_chat(got.events) if body["stream"] else got.json["choices"][0]["message"]
    outputs = [
        {"role": "tool", "tool_call_id": call["id"], "content": output} for call in message.get("tool_calls") or ()
    ]
    return {**body, "messages": [*body["messages"], message, *outputs]}


def whole_message(found: list[Json]) -> Json:
    """The message of an Anthropic stream, put together as a client does it."""
    assert [event["type"] for event in found[-2:]] == ["message_delta", "message_stop"], found
    message = found[0]["message"]
    blocks: list[Json] = []
    for event in found:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "_json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            assert event["index"] == len(blocks) - 1
            for name in ("text", "thinking", "signature"):
                if delta["type"] == f"{name}_delta":
                    block[name] = block.get(name, "") + delta[name]
            block["_json"] += delta.get("partial_json", "")
    for block in blocks:
        if text := block.pop("_json"):
            block["input"] = json.loads(text)
    return {**message, **found[-2]["delta"], "content": blocks, "usage": {**message["usage"], **found[-2]["usage"]}}


def whole_chat(found: list[Json]) -> Json:
    message: Json = {"role": "assistant", "content": ""}
    calls: list[Json] = []
    for chunk in found:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                if call["index"] == len(calls):
                    calls.append({**call, "function": dict(call["function"])})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    for call in calls:
        del call["index"]
    return message | ({"tool_calls": calls} if calls else {})


async def post(url: str, dialect: Dialect, body: Json, **headers: str) -> Got:
    """One request to a lease's URL."""
    async with aiohttp.ClientSession() as session:
        sent = {"Content-Type": "application/json", "x-api-key": url.rpartition("/")[2], **headers}
        async with session.post(url + PATHS[dialect], data=json.dumps(body), headers=sent) as response:
            return Got(response.status, await response.read(), response.headers.get("Content-Type", ""))


async def work(url: str, dialect: Dialect, *, stream: bool = True, output: str = "42", most: int = 10) -> list[Got]:
    """The whole agent: ask until an answer has no tool call."""
    body, answers = first(dialect, stream=stream), list[Got]()
    while len(answers) < most:
        got = await post(url, dialect, body)
        answers.append(got)
        asked = body
        body = following(dialect, body, got, output) if got.status == 200 else body
        key = "input" if dialect == "openai-responses" else "messages"
        if got.status != 200 or not _called(body[key][len(asked[key]) :]):
            break
    return answers


def _called(added: list[Json]) -> bool:
    """True if a tool result was added."""
    return any(
        item.get("role") == "tool"
        or item.get("type") == "function_call_output"
        or (isinstance(item.get("content"), list) and any(b.get("type") == "tool_result" for b in item["content"]))
        for item in added
    )
