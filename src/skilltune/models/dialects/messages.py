"""Anthropic's Messages API, as requests, responses and streams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from skilltune.models import Schema
from skilltune.models.dialects import sse
from skilltune.models.dialects.canonical import (
    Answer,
    Closed,
    Conversation,
    Delta,
    Ended,
    Finish,
    Grew,
    Json,
    Message,
    Opened,
    Other,
    Part,
    Picture,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    as_called,
    as_function,
    as_object,
    dumped,
    merged,
    number,
    require_known,
    require_plain,
    split_system,
    untranslatable,
    whole,
)
from skilltune.models.reading import capped, sane
from skilltune.usage import Usage

NAME = "anthropic-messages"
MAX_TOKENS = 32_000  # the API requires a limit; used if the client states none

_KNOWN = frozenset({
    "model", "messages", "system", "tools", "tool_choice", "max_tokens", "temperature", "top_p", "stop_sequences",
    "stream", "output_config", "output_format",
})  # fmt: skip
_HINTS = frozenset({
    "metadata", "thinking", "context_management", "service_tier", "cache_control", "betas", "speed",
    "inference_geo", "diagnostics", "user_profile_id",
})  # fmt: skip
_FINISH: dict[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tools",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}
_STOP_REASON: dict[Finish, str] = {
    "stop": "end_turn",
    "tools": "tool_use",
    "length": "max_tokens",
    "refusal": "refusal",
}
_ODD_ID = re.compile(r"[^a-zA-Z0-9_-]")


# -- requests


def check_request(body: Mapping[str, Any]) -> None:
    require_known(NAME, body, _KNOWN, _HINTS)


def parse_request(body: Mapping[str, Any]) -> Conversation:
    messages = [Message("system", tuple(_parts(body.get("system"))))] if body.get("system") else []
    for message in body.get("messages") or ():
        messages.append(Message(message["role"], tuple(_parts(message.get("content")))))
    system, rest = split_system(messages)
    choice = body.get("tool_choice") or {}
    return Conversation(
        model=str(body.get("model") or ""),
        messages=rest,
        system=system,
        tools=tuple(_tool(tool) for tool in body.get("tools") or ()),
        choice=f"tool:{choice['name']}" if choice.get("type") == "tool" else str(choice.get("type") or ""),
        parallel=False if choice.get("disable_parallel_tool_use") else None,
        max_tokens=whole(body.get("max_tokens")),
        temperature=number(body.get("temperature")),
        top_p=number(body.get("top_p")),
        stop=tuple(body.get("stop_sequences") or ()),
        schema=_schema(body),
        stream=body.get("stream") is True,
    )


def _parts(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        yield Text(content)
        return
    for block in content or ():
        match block.get("type"):
            case "text" | "image":
                yield _shown(block)
            case "tool_use":
                yield ToolCall(block["id"], block["name"], dumped(block.get("input") or {}))
            case "tool_result":
                given = block.get("content") or ()
                parts = (Text(given),) if isinstance(given, str) else tuple(_shown(part) for part in given)
                yield ToolResult(block["tool_use_id"], parts, error=block.get("is_error") is True)
            case "thinking":
                yield Reasoning(block.get("thinking") or "", block.get("signature") or "")
            case "redacted_thinking":
                yield Reasoning("", block.get("data") or "", hidden=True)
            case other:
                yield Other(NAME, str(other))


def _shown(block: Mapping[str, Any]) -> Text | Picture | Other:
    if block.get("type") == "text":
        return Text(block["text"])
    source = block.get("source") or {}
    if block.get("type") == "image" and source.get("type") == "base64":
        return Picture(f"data:{source['media_type']};base64,{source['data']}")
    if block.get("type") == "image" and source.get("type") == "url":
        return Picture(source["url"])
    what = block.get("type") if block.get("type") != "image" else f"image from {source.get('type')}"
    return Other(NAME, str(what))


def _tool(tool: Mapping[str, Any]) -> Tool:
    if tool.get("type") not in (None, "custom"):
        return Tool(str(tool.get("name")), "", {}, other=str(tool["type"]))
    return Tool(tool["name"], tool.get("description") or "", tool.get("input_schema") or {"type": "object"})


def _schema(body: Mapping[str, Any]) -> Schema | None:
    wanted = (body.get("output_config") or {}).get("format") or body.get("output_format")
    return Schema("answer", wanted["schema"]) if wanted else None


def render_request(conversation: Conversation) -> Json:
    body: Json = {
        "model": conversation.model,
        "max_tokens": conversation.max_tokens or MAX_TOKENS,
        "messages": _messages(conversation.messages),
    }
    if conversation.system:
        body["system"] = conversation.system
    if conversation.tools:
        body["tools"] = [_render_tool(tool) for tool in conversation.tools]
        choice = conversation.choice
        wanted: Json = {"type": "tool", "name": choice[5:]} if choice.startswith("tool:") else {"type": choice}
        if conversation.parallel is False:
            wanted = {"type": choice or "auto", **wanted, "disable_parallel_tool_use": True}
            wanted["type"] = wanted["type"] or "auto"
        if wanted["type"]:
            body["tool_choice"] = wanted
    if conversation.temperature is not None:
        body["temperature"] = conversation.temperature
    if conversation.top_p is not None:
        body["top_p"] = conversation.top_p
    if conversation.stop:
        body["stop_sequences"] = list(conversation.stop)
    if conversation.schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": dict(conversation.schema.schema)}}
    if conversation.stream:
        body["stream"] = True
    return body


def _messages(messages: tuple[Message, ...]) -> list[Json]:
    spoken = [Message("user" if message.role == "system" else message.role, message.parts) for message in messages]
    return [
        {"role": message.role, "content": blocks}
        for message in merged(spoken)
        if (blocks := [block for part in _results_first(message.parts) if (block := _block(part)) is not None])
    ]


def _results_first(parts: tuple[Part, ...]) -> list[Part]:
    """The API wants tool results before anything else in a message."""
    return sorted(parts, key=lambda part: not isinstance(part, ToolResult))


def _block(part: Part) -> Json | None:
    match part:
        case Text(text):
            return {"type": "text", "text": text} if text else None  # the API refuses empty texts
        case Picture(url):
            head, _, data = url.partition(";base64,")
            if head.startswith("data:") and data:
                source = {"type": "base64", "media_type": head[5:], "data": data}
            else:
                source = {"type": "url", "url": url}
            return {"type": "image", "source": source}
        case Reasoning(text, opaque, hidden):
            if not opaque:
                return None  # the API refuses thinking without its signature
            if hidden:
                return {"type": "redacted_thinking", "data": opaque}
            return {"type": "thinking", "thinking": text, "signature": opaque}
        case ToolCall():
            call = as_function(part)
            return {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": as_object(call.arguments)}
        case ToolResult():
            content = [block for shown in part.parts if (block := _block(shown)) is not None]
            result: Json = {"type": "tool_result", "tool_use_id": _id(part.id), "content": content}
            return result | {"is_error": True} if part.error else result
        case Other(dialect, kind):
            raise untranslatable(dialect, f"a part of type `{kind}`")


def _id(text: str) -> str:
    return _ODD_ID.sub("_", text)


def _render_tool(tool: Tool) -> Json:
    require_plain(tool)
    return {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}


# -- responses


def parse_response(body: Mapping[str, Any], tools: tuple[Tool, ...] = ()) -> Answer:
    parts = (as_called(part, tools) if isinstance(part, ToolCall) else part for part in _parts(body["content"]))
    return Answer(
        parts=tuple(parts),
        finish=_FINISH.get(str(body.get("stop_reason")), "stop"),
        usage=usage_of(body),
        id=str(body.get("id") or ""),
        model=str(body.get("model") or ""),
    )


def render_response(answer: Answer) -> Json:
    return {
        **_envelope(answer.id, answer.model),
        "content": [block for part in answer.parts if (block := _answered(part)) is not None],
        "stop_reason": _STOP_REASON[answer.finish],
        "stop_sequence": None,
        "usage": _usage(answer.usage),
    }


def _answered(part: Part) -> Json | None:
    if isinstance(part, Reasoning) and not part.hidden:
        return {"type": "thinking", "thinking": part.text, "signature": part.opaque}
    return _block(part)


def _envelope(id: str, model: str) -> Json:
    return {"id": id or "msg_0", "type": "message", "role": "assistant", "model": model}


def usage_of(body: Mapping[str, Any]) -> Usage:
    """Tokens of one call; cached ones are not part of `input_tokens` in this API."""
    given = body.get("usage") or {}
    cached, written = sane(given.get("cache_read_input_tokens")), cache_writes(body)
    details = given.get("output_tokens_details") or {}
    usage = Usage(
        calls=1,
        input_tokens=sane(given.get("input_tokens")) + cached + written,
        output_tokens=sane(given.get("output_tokens")),
        cached_tokens=cached,
        reasoning_tokens=sane(details.get("thinking_tokens")),
    )
    return capped(usage)


def cache_writes(body: Mapping[str, Any]) -> int:
    """Input tokens that were written to the cache, which cost more than others."""
    return sane((body.get("usage") or {}).get("cache_creation_input_tokens"))


def _usage(usage: Usage) -> Json:
    known: Json = {
        "input_tokens": usage.input_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        known["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return known


# -- streams


class Assembler:
    """Puts the events of a stream together. `body` is the response, None until the stream is complete; `failure` is an
    error that the stream reports; `content` is True as soon as there is a part of the answer."""

    def __init__(self) -> None:
        self.body: Json | None = None
        self.failure: Any = None
        self.content = False
        self._base: Json | None = None
        self._blocks: dict[int, Json] = {}
        self._grown: dict[tuple[int, str], list[str]] = {}

    def feed(self, event: Mapping[str, Any]) -> None:
        """Raises ValueError, LookupError or TypeError for an event of an unknown shape."""
        match event.get("type"):
            case "error":
                self.failure = event.get("error") or event
            case "message_start":
                self._base = dict(event["message"])
            case "content_block_start":
                self.content = True
                self._blocks[event["index"]] = dict(event["content_block"])
            case "content_block_delta":
                self._grow(event["index"], event["delta"])
            case "content_block_stop":
                self._close(event["index"])
            case "message_delta":
                if self._base is None:
                    raise ValueError("the stream has no message_start")
                usage = {**(self._base.get("usage") or {}), **_stated(event.get("usage"))}
                self._base = {**self._base, **event["delta"], "usage": usage}
            case "message_stop":
                if self._base is None:
                    raise ValueError("the stream has no message_start")
                for index in list(self._blocks):
                    self._close(index)
                self.body = self._base | {"content": [self._blocks[index] for index in sorted(self._blocks)]}
            case _:
                if event.get("error"):
                    self.failure = event["error"]

    def _grow(self, index: int, delta: Mapping[str, Any]) -> None:
        block, kind = self._blocks[index], delta.get("type")
        for name in ("text", "thinking", "partial_json", "signature"):
            if isinstance(delta.get(name), str):
                self._grown.setdefault((index, name), []).append(delta[name])
                return
        if kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta.get("citation")]

    def _close(self, index: int) -> None:
        block = self._blocks[index]
        for name in ("text", "thinking", "signature"):
            if pieces := self._grown.pop((index, name), None):
                block[name] = (block.get(name) or "") + "".join(pieces)
        if pieces := self._grown.pop((index, "partial_json"), None):
            block["input"] = as_object("".join(pieces))


def _stated(usage: Any) -> Json:
    """Counts of the last event; a null or a zero does not take back what the first event said."""
    return {name: value for name, value in (usage or {}).items() if value}


def events_of(body: Mapping[str, Any]) -> Iterator[bytes]:
    """The stream of a response that is complete already."""
    usage = body.get("usage") or {}
    start = {**body, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}
    yield sse.event({"type": "message_start", "message": start})
    for index, block in enumerate(body.get("content") or ()):
        yield from _block_events(index, block)
    delta = {"stop_reason": body.get("stop_reason"), "stop_sequence": body.get("stop_sequence")}
    yield sse.event({"type": "message_delta", "delta": delta, "usage": usage})
    yield sse.event({"type": "message_stop"})


def _block_events(index: int, block: Mapping[str, Any]) -> Iterator[bytes]:
    deltas: list[Json] = []
    match block.get("type"):
        case "text":
            start = {**block, "text": ""}
            deltas = [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            start = {**block, "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": block.get("thinking") or ""}]
            if block.get("signature"):
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use" | "server_tool_use":
            start = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": dumped(block.get("input") or {})}]
        case _:
            start = dict(block)
    yield sse.event({"type": "content_block_start", "index": index, "content_block": start})
    for delta in deltas:
        yield sse.event({"type": "content_block_delta", "index": index, "delta": delta})
    yield sse.event({"type": "content_block_stop", "index": index})


class Decoder:
    """Events of a stream → deltas, without the last one (`Ended`), which is read from the whole response. The arguments
    of a tool call come in one piece and in compact form, so that a replay shows the agent the same text."""

    def __init__(self, tools: tuple[Tool, ...] = ()) -> None:
        self._tools = tools
        self._open: Json = {}
        self._grown: list[str] = []
        self._opaque = ""

    def feed(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        match event.get("type"):
            case "content_block_start":
                self._open, self._grown, self._opaque = dict(event["content_block"]), [], ""
                yield Opened(_begun(self._open))
                for name in ("text", "thinking"):
                    if self._open.get(name):
                        yield from self._grow(self._open[name])
            case "content_block_delta":
                delta = event["delta"]
                self._opaque += delta.get("signature") or ""
                for name in ("text", "thinking"):
                    if delta.get(name):
                        yield from self._grow(delta[name])
                self._grown += filter(None, [delta.get("partial_json")])
            case "content_block_stop":
                part = _begun(self._open)
                text = "".join(self._grown)
                match part:
                    case Text():
                        part = Text(text)
                    case Reasoning(hidden=True):
                        part = Reasoning("", self._open.get("data") or "", hidden=True)
                    case Reasoning():
                        part = Reasoning(text, self._opaque)
                    case ToolCall(id, name):
                        arguments = dumped(as_object(text)) if text else dumped(self._open.get("input") or {})
                        part = as_called(ToolCall(id, name, arguments), self._tools)
                        yield Grew(part.arguments)
                yield Closed(part)

    def _grow(self, text: str) -> Iterator[Delta]:
        self._grown.append(text)
        yield Grew(text)


def _begun(block: Mapping[str, Any]) -> Text | Reasoning | ToolCall:
    match block.get("type"):
        case "text":
            return Text("")
        case "thinking":
            return Reasoning("")
        case "redacted_thinking":
            return Reasoning("", hidden=True)
        case "tool_use":
            return ToolCall(block["id"], block["name"], "")
        case other:
            raise untranslatable(NAME, f"an answer with a content block of type `{other}`")


class Encoder:
    """Deltas → events of a stream. A tool call is sent in one piece, because it may need a repair."""

    def __init__(self, model: str, id: str) -> None:
        self._model, self._id, self._index, self._begun = model, id, 0, False
        self._growing = ""  # the kind of the open block, if it is sent while it grows

    def feed(self, delta: Delta) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            usage = delta.answer.usage if isinstance(delta, Ended) else Usage()
            empty = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(usage)}
            yield sse.event({"type": "message_start", "message": _envelope(self._id, self._model) | empty})
        match delta:
            case Opened(Text()):
                self._growing = "text"
                yield self._start({"type": "text", "text": ""})
            case Opened(Reasoning(hidden=False)):
                self._growing = "thinking"
                yield self._start({"type": "thinking", "thinking": "", "signature": ""})
            case Grew(text) if text and self._growing:
                yield self._delta({"type": f"{self._growing}_delta", self._growing: text})
            case Closed(part):
                yield from self._close(part)
            case Ended(answer):
                reason = {"stop_reason": _STOP_REASON[answer.finish], "stop_sequence": None}
                yield sse.event({"type": "message_delta", "delta": reason, "usage": _usage(answer.usage)})
                yield sse.event({"type": "message_stop"})

    def _close(self, part: Text | Reasoning | ToolCall) -> Iterator[bytes]:
        match part:
            case ToolCall():
                call = as_function(part)
                yield self._start({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
                given = dumped(as_object(call.arguments))
                yield self._delta({"type": "input_json_delta", "partial_json": given})
            case Reasoning(hidden=True, opaque=opaque):
                yield self._start({"type": "redacted_thinking", "data": opaque})
            case Reasoning(opaque=opaque) if opaque:
                yield self._delta({"type": "signature_delta", "signature": opaque})
        yield sse.event({"type": "content_block_stop", "index": self._index})
        self._index, self._growing = self._index + 1, ""

    def _start(self, block: Json) -> bytes:
        return sse.event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: Json) -> bytes:
        return sse.event({"type": "content_block_delta", "index": self._index, "delta": delta})


PING = sse.event({"type": "ping"})


def error_body(status: int, message: str) -> Json:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kinds |= {404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}


def error_event(status: int, message: str) -> bytes:
    return sse.event(error_body(status, message))
