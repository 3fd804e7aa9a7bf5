"""A scripted model server that speaks three APIs, in the forms in which real servers send them.

It is stateless: the turn is the number of tool results in the request. So a client that is killed and started again
gets the same answers. Nothing here uses the code under test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Call:
    """A call of a tool by the model. A custom tool gets `text` in place of arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True)
class Turn:
    """An answer of the model. `cut` ends the answer at its length limit."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    thinking: str = ""
    cut: bool = False
    input_tokens: int = 100
    output_tokens: int = 10
    cached_tokens: int = 40


@dataclass(frozen=True)
class Fault:
    """A failure in place of an answer. `after` sends so many events of the stream first; None sends none. `raw` is
    sent as it is; `drop` cuts the connection; `hang` sends nothing more."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""
    after: int | None = None
    drop: bool = False
    hang: bool = False


@dataclass(frozen=True)
class Asked:
    """One request that arrived. `results` is the number of tool results in it."""

    path: str
    query: str
    headers: Mapping[str, str]
    raw: bytes
    body: Any
    results: int


Script = Callable[[Asked], Turn | Fault]


def turns(*script: Turn) -> Script:
    """The turn is the number of tool results; the last one is repeated."""
    return lambda asked: script[min(asked.results, len(script) - 1)]


class Upstream:
    """`async with Upstream(script) as server`. `asked` holds every request. `delay` seconds pass between two events."""

    def __init__(self, script: Script, *faults: Fault | None, delay: float = 0.0) -> None:
        self._script, self._faults, self._delay = script, list(faults), delay
        self.asked: list[Asked] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Upstream:
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = [part async for part in request.content.iter_any()]
        raw = b"".join(parts)
        body = json.loads(raw)
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.path, request.query_string, headers, raw, body, _results(body))
        self.asked.append(asked)
        fault = self._faults.pop(0) if self._faults else None
        given = fault or self._script(asked)
        fault = given if isinstance(given, Fault) else None
        turn = given if isinstance(given, Turn) else Turn(text="never finished")
        kind = request.path.rpartition("/")[2]
        if fault is not None and fault.after is None:
            return await self._fail(request, fault)
        if not body.get("stream"):
            return web.json_response(BODIES[kind](turn, body))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, event in enumerate(STREAMS[kind](turn, body)):
            if fault is not None and number == fault.after:
                if fault.raw:
                    await response.write(fault.raw)
                if fault.drop:
                    assert request.transport is not None
                    request.transport.abort()
                if fault.hang:
                    await asyncio.sleep(3600)
                return response
            await response.write(event)
            if self._delay:
                await asyncio.sleep(self._delay)
        return response

    async def _fail(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        if fault.hang:
            await asyncio.sleep(3600)
        if fault.drop:
            assert request.transport is not None
            request.transport.abort()
        if fault.raw:
            return web.Response(status=fault.status, body=fault.raw, headers=fault.headers)
        return web.json_response(fault.body, status=fault.status, headers=fault.headers)


def _results(body: Mapping[str, Any]) -> int:
    """Tool results in a request of any of the three APIs."""
    found = 0
    for item in [*(body.get("messages") or ()), *(body["input"] if isinstance(body.get("input"), list) else ())]:
        found += item.get("role") == "tool" or str(item.get("type", "")).endswith("call_output")
        if isinstance(item.get("content"), list):
            found += sum(block.get("type") == "tool_result" for block in item["content"])
    return found


def _event(data: Mapping[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def _pieces(text: str) -> list[str]:
    middle = max(1, len(text) // 2)
    return [piece for piece in (text[:middle], text[middle:]) if piece]


# -- Anthropic Messages


def _blocks(turn: Turn, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if turn.thinking:
        blocks.append({"type": "thinking", "thinking": turn.thinking, "signature": "c2lnbmVk"})
    if turn.text:
        blocks.append({"type": "text", "text": turn.text})
    for index, call in enumerate(turn.calls):
        id = f"toolu_{_results(body)}_{index}"
        blocks.append({"type": "tool_use", "id": id, "name": call.name, "input": dict(call.arguments)})
    return blocks


def _anthropic_usage(turn: Turn) -> dict[str, Any]:
    return {
        "input_tokens": turn.input_tokens - turn.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": turn.cached_tokens,
        "output_tokens": turn.output_tokens,
        "service_tier": "standard",
    }


def _anthropic_body(turn: Turn, body: Mapping[str, Any]) -> dict[str, Any]:
    reason = "max_tokens" if turn.cut else "tool_use" if turn.calls else "end_turn"
    return {
        "id": f"msg_{_results(body)}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": _blocks(turn, body),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": _anthropic_usage(turn),
    }


def _anthropic_stream(turn: Turn, body: Mapping[str, Any]) -> Iterator[bytes]:
    whole = _anthropic_body(turn, body)
    usage = {**whole["usage"], "output_tokens": 1}
    start = {**whole, "content": [], "stop_reason": None, "usage": usage}
    yield _event({"type": "message_start", "message": start})
    for index, block in enumerate(whole["content"]):
        deltas: list[dict[str, Any]]
        if block["type"] == "text":
            empty = {**block, "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
        elif block["type"] == "thinking":
            empty = {**block, "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        else:
            empty = {**block, "input": {}}
            pieces = ["", *_pieces(json.dumps(block["input"]))]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        yield _event({"type": "content_block_start", "index": index, "content_block": empty})
        if index == 0:
            yield _event({"type": "ping"})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": turn.output_tokens}})
    yield _event({"type": "message_stop"})


# -- OpenAI Responses


def _items(turn: Turn, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if turn.thinking:
        summary = [{"type": "summary_text", "text": turn.thinking}]
        items.append({"id": "rs_0", "type": "reasoning", "summary": summary, "encrypted_content": "c2VhbGVk"})
    if turn.text:
        content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": turn.text}]
        items.append({"id": "msg_0", "type": "message", "status": "completed", "role": "assistant", "content": content})
    for index, call in enumerate(turn.calls):
        at = {"id": f"fc_{index}", "call_id": f"call_{_results(body)}_{index}", "status": "completed"}
        if call.text is not None:
            items.append({**at, "type": "custom_tool_call", "name": call.name, "input": call.text})
        else:
            text = json.dumps(call.arguments)
            items.append({**at, "type": "function_call", "name": call.name, "arguments": text})
    return items


def _response_body(turn: Turn, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"resp_{_results(body)}",
        "object": "response",
        "created_at": 1764000000,
        "status": "incomplete" if turn.cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if turn.cut else None,
        "model": body["model"],
        "output": _items(turn, body),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "usage": {
            "input_tokens": turn.input_tokens,
            "input_tokens_details": {"cached_tokens": turn.cached_tokens},
            "output_tokens": turn.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": turn.input_tokens + turn.output_tokens,
        },
    }


def _response_stream(turn: Turn, body: Mapping[str, Any]) -> Iterator[bytes]:
    number = 0

    def event(kind: str, **data: Any) -> bytes:
        nonlocal number
        number += 1
        return _event({"type": kind, "sequence_number": number - 1, **data})

    whole = _response_body(turn, body)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(whole["output"]):
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            empty = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            here = {**at, "content_index": 0}
            added = {**item, "status": "in_progress", "content": []}
            yield event("response.output_item.added", output_index=index, item=added)
            yield event("response.content_part.added", **here, part=empty)
            for piece in _pieces(turn.text):
                yield event("response.output_text.delta", **here, delta=piece, logprobs=[], obfuscation="x7")
            yield event("response.output_text.done", **here, text=turn.text, logprobs=[])
            yield event("response.content_part.done", **here, part=item["content"][0])
        elif item["type"] == "reasoning":
            here = {**at, "summary_index": 0}
            part = {"type": "summary_text", "text": ""}
            yield event("response.output_item.added", output_index=index, item={**item, "summary": []})
            yield event("response.reasoning_summary_part.added", **here, part=part)
            for piece in _pieces(turn.thinking):
                yield event("response.reasoning_summary_text.delta", **here, delta=piece)
            yield event("response.reasoning_summary_text.done", **here, text=turn.thinking)
            yield event("response.reasoning_summary_part.done", **here, part={**part, "text": turn.thinking})
        else:
            custom = item["type"] == "custom_tool_call"
            name = "input" if custom else "arguments"
            kind = "custom_tool_call_input" if custom else "function_call_arguments"
            added = {**item, name: "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=index, item=added)
            for piece in _pieces(item[name]):
                yield event(f"response.{kind}.delta", **at, delta=piece, obfuscation="q")
            yield event(f"response.{kind}.done", **at, **{name: item[name]})
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{whole['status']}", response=whole)


# -- Chat Completions


def _chat_usage(turn: Turn) -> dict[str, Any]:
    return {
        "prompt_tokens": turn.input_tokens,
        "completion_tokens": turn.output_tokens,
        "total_tokens": turn.input_tokens + turn.output_tokens,
        "prompt_tokens_details": {"cached_tokens": turn.cached_tokens},
    }


def _chat_message(turn: Turn, body: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if turn.thinking:
        message["reasoning_content"] = turn.thinking
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{_results(body)}_{index}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps({"input": call.text} if call.text is not None else call.arguments),
                },
            }
            for index, call in enumerate(turn.calls)
        ]
    return message


def _chat_reason(turn: Turn) -> str:
    return "length" if turn.cut else "tool_calls" if turn.calls else "stop"


def _chat_body(turn: Turn, body: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": _chat_message(turn, body), "logprobs": None, "finish_reason": _chat_reason(turn)}
    return {
        "id": f"chatcmpl-{_results(body)}",
        "object": "chat.completion",
        "created": 1764000000,
        "model": body["model"],
        "choices": [choice],
        "usage": _chat_usage(turn),
    }


def _chat_stream(turn: Turn, body: Mapping[str, Any]) -> Iterator[bytes]:
    top = {"id": f"chatcmpl-{_results(body)}", "object": "chat.completion.chunk", "created": 1764000000}
    top["model"] = body["model"]

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return f"data: {json.dumps({**top, 'choices': [choice]})}\n\n".encode()

    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(turn.thinking):
        yield chunk({"reasoning_content": piece})
    for piece in _pieces(turn.text):
        yield chunk({"content": piece})
    for index, call in enumerate(_chat_message(turn, body).get("tool_calls") or ()):
        function = call["function"]
        begun = {"index": index, **call, "function": {"name": function["name"], "arguments": ""}}
        yield chunk({"tool_calls": [begun]})
        for piece in _pieces(function["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, _chat_reason(turn))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield f"data: {json.dumps({**top, 'choices': [], 'usage': _chat_usage(turn)})}\n\n".encode()
    yield b"data: [DONE]\n\n"


BODIES: Mapping[str, Callable[[Turn, Mapping[str, Any]], dict[str, Any]]] = {
    "messages": _anthropic_body,
    "responses": _response_body,
    "completions": _chat_body,
}
STREAMS: Mapping[str, Callable[[Turn, Mapping[str, Any]], Iterator[bytes]]] = {
    "messages": _anthropic_stream,
    "responses": _response_stream,
    "completions": _chat_stream,
}


def events(raw: bytes) -> list[dict[str, Any]]:
    """The objects in a stream, pings and comments left out."""
    found: list[dict[str, Any]] = []
    for event in raw.decode().split("\n\n"):
        lines: Sequence[str] = [line for line in event.split("\n") if line.startswith("data:")]
        if lines and lines[0] != "data: [DONE]":
            found.append(json.loads("\n".join(line[5:] for line in lines)))
    return [event for event in found if event.get("type") not in ("ping", "keepalive")]
