"""OpenAI's Responses API, as requests, responses and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from skilltune.models import Schema
from skilltune.models.dialects import sse
from skilltune.models.dialects.canonical import (
    INPUT_SCHEMA,
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
    number,
    require_expressible,
    require_known,
    require_plain,
    split_system,
    untranslatable,
    whole,
)
from skilltune.models.reading import capped, sane, texts_in
from skilltune.usage import Usage

NAME = "openai-responses"

_KNOWN = frozenset({
    "model", "instructions", "input", "tools", "tool_choice", "parallel_tool_calls", "max_output_tokens",
    "temperature", "top_p", "stream", "text",
})  # fmt: skip
_HINTS = frozenset({
    "reasoning", "store", "include", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user",
    "metadata", "client_metadata", "service_tier", "truncation", "stream_options",
})  # fmt: skip


# -- requests


def check_request(body: Mapping[str, Any]) -> None:
    require_known(NAME, body, _KNOWN, _HINTS)


def parse_request(body: Mapping[str, Any]) -> Conversation:
    given = body.get("input") or ()
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = [Message("system", (Text(body["instructions"]),))] if body.get("instructions") else []
    messages += [_read(item) for item in items]
    system, rest = split_system(messages)
    return Conversation(
        model=str(body.get("model") or ""),
        messages=rest,
        system=system,
        tools=tuple(_tool(tool) for tool in body.get("tools") or ()),
        choice=_choice(body.get("tool_choice")),
        parallel=False if body.get("parallel_tool_calls") is False else None,
        max_tokens=whole(body.get("max_output_tokens")),
        temperature=number(body.get("temperature")),
        top_p=number(body.get("top_p")),
        schema=_schema((body.get("text") or {}).get("format")),
        stream=body.get("stream") is True,
    )


def _read(item: Mapping[str, Any]) -> Message:
    match item.get("type", "message"):
        case "message":
            role = item["role"]
            parts = tuple(_shown(item.get("content")))
            if role in ("system", "developer"):
                return Message("system", parts)
            if role in ("user", "assistant"):
                return Message(role, parts)
            return Message("user", (Other(NAME, f"message of the role {role}"),))
        case "function_call_output" | "custom_tool_call_output" as kind:
            shown = tuple(_shown(item.get("output")))
            return Message("user", (ToolResult(item["call_id"], shown, custom=kind.startswith("custom")),))
        case _:
            return Message("assistant", (_answered(item),))


def _shown(content: Any) -> Iterator[Text | Picture | Other]:
    if isinstance(content, str):
        yield Text(content)
        return
    for part in content or ():
        match part.get("type"):
            case "input_text" | "output_text" | "text":
                yield Text(part.get("text") or "")
            case "refusal":
                yield Text(part.get("refusal") or "")
            case "input_image" if part.get("image_url"):
                yield Picture(part["image_url"])
            case other:
                yield Other(NAME, str(other))


def _answered(item: Mapping[str, Any]) -> Text | Reasoning | ToolCall | Other:
    match item.get("type"):
        case "message":
            return Text("".join(part.text for part in _shown(item.get("content")) if isinstance(part, Text)))
        case "function_call" if not item.get("namespace"):
            return ToolCall(item["call_id"], item["name"], item.get("arguments") or "")
        case "custom_tool_call":
            return ToolCall(item["call_id"], item["name"], item.get("input") or "", custom=True)
        case "reasoning":
            shown = [texts_in(part) for part in item.get("summary") or item.get("content") or ()]
            return Reasoning("\n\n".join(filter(None, shown)), item.get("encrypted_content") or "")
        case other:
            return Other(NAME, str(other))


def _tool(tool: Mapping[str, Any]) -> Tool:
    match tool.get("type"):
        case "function":
            parameters = tool.get("parameters") or {"type": "object", "properties": {}}
            return Tool(tool["name"], tool.get("description") or "", parameters)
        case "custom":
            return Tool(
                tool["name"], tool.get("description") or "", INPUT_SCHEMA, custom=True, format=tool.get("format")
            )
        case other:
            return Tool(str(tool.get("name") or other), "", {}, other=str(other))


def _choice(choice: Any) -> str:
    if isinstance(choice, Mapping):
        if choice.get("type") not in ("function", "custom"):
            raise untranslatable(NAME, f"a tool_choice of type `{choice.get('type')}`")
        return f"tool:{choice['name']}"
    return "any" if choice == "required" else str(choice or "")


def _schema(wanted: Any) -> Schema | None:
    if not wanted or wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema":
        raise untranslatable(NAME, f"a text format of type `{wanted.get('type')}`")
    return Schema(wanted.get("name") or "answer", wanted["schema"])


def render_request(conversation: Conversation) -> Json:
    body: Json = {
        "model": conversation.model,
        "input": [item for message in conversation.messages for item in _items(message)],
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    if conversation.system:
        body["instructions"] = conversation.system
    if conversation.tools:
        body["tools"] = [_render_tool(tool) for tool in conversation.tools]
        if choice := conversation.choice:
            kinds = {tool.name: "custom" if tool.custom else "function" for tool in conversation.tools}
            name = choice[5:]
            named = {"type": kinds.get(name, "function"), "name": name} if choice.startswith("tool:") else choice
            body["tool_choice"] = "required" if named == "any" else named
        if conversation.parallel is False:
            body["parallel_tool_calls"] = False
    if conversation.stop:
        raise untranslatable("the agent's API", "stop sequences, which the Responses API has not,")
    if conversation.max_tokens is not None:
        body["max_output_tokens"] = conversation.max_tokens
    for name in ("temperature", "top_p"):
        if (value := getattr(conversation, name)) is not None:
            body[name] = value
    if (schema := conversation.schema) is not None:
        wanted = {"type": "json_schema", "name": schema.name, "schema": dict(schema.schema)}
        body["text"] = {"format": wanted}
    if conversation.stream:
        body["stream"] = True
    return body


def _items(message: Message) -> Iterator[Json]:
    """Items of a message, in order. Texts and images that follow each other form one item."""
    role = "developer" if message.role == "system" else message.role
    content: list[Json] = []
    for part in message.parts:
        if isinstance(part, Text | Picture):
            content += _content(part, "output_text" if role == "assistant" else "input_text")
            continue
        if content:
            yield {"type": "message", "role": role, "content": content}
            content = []
        match part:
            case ToolResult(id, shown, custom=custom):
                require_expressible(shown)
                output: Any = part.text
                if any(isinstance(each, Picture) for each in shown):
                    output = [item for each in shown for item in _content(each, "input_text")]
                kind = "custom_tool_call_output" if custom else "function_call_output"
                yield {"type": kind, "call_id": id, "output": output}
            case Reasoning(opaque=opaque):
                if opaque:  # an upstream takes only reasoning that it can read
                    yield _item(part, "")
            case _:
                yield _item(part, "")
    if content:
        yield {"type": "message", "role": role, "content": content}


def _content(part: Text | Picture | Other, kind: str) -> Iterator[Json]:
    require_expressible((part,))
    if isinstance(part, Picture):
        yield {"type": "input_image", "image_url": part.url}
    elif isinstance(part, Text) and part.text:
        yield {"type": kind, "text": part.text}


def _item(part: Part, id: str) -> Json:
    """A part of an answer as an item. `id` is left out if empty."""
    known: Json = {"id": id} if id else {}
    state: Json = {"status": "completed"} if id else {}
    match part:
        case Text(text):
            content = [{"type": "output_text", "text": text, "annotations": []}]
            return {"type": "message", **known, "role": "assistant", "content": content, **state}
        case Reasoning(text, opaque):
            summary = [{"type": "summary_text", "text": text}] if text else []
            return {"type": "reasoning", **known, "summary": summary, "encrypted_content": opaque or None}
        case ToolCall(call_id, name, text, custom=True):
            return {"type": "custom_tool_call", **known, "call_id": call_id, "name": name, "input": text, **state}
        case ToolCall(call_id, name, text):
            given = {"call_id": call_id, "name": name, "arguments": text or "{}"}
            return {"type": "function_call", **known, **given, **state}
    kind = part.kind if isinstance(part, Other) else type(part).__name__
    raise untranslatable(part.dialect if isinstance(part, Other) else NAME, f"a part of type `{kind}`")


def _render_tool(tool: Tool) -> Json:
    require_plain(tool)
    if tool.custom:
        given = {"type": "custom", "name": tool.name, "description": tool.description}
        return given | ({"format": dict(tool.format)} if tool.format else {})
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
        "strict": False,
    }


# -- responses


def parse_response(body: Mapping[str, Any], tools: tuple[Tool, ...] = ()) -> Answer:
    parts = tuple(
        as_called(part, tools) if isinstance(part, ToolCall) and not part.custom else part
        for part in (_answered(item) for item in body["output"])
    )
    finish: Finish = "tools" if any(isinstance(part, ToolCall) for part in parts) else "stop"
    if body.get("status") == "incomplete":
        why = (body.get("incomplete_details") or {}).get("reason")
        finish = "refusal" if why == "content_filter" else "length"
    return Answer(parts, finish, usage_of(body), str(body.get("id") or ""), str(body.get("model") or ""))


def render_response(answer: Answer) -> Json:
    id = answer.id or "resp_0"
    return _response(answer, [_item(part, _id(part, id, index)) for index, part in enumerate(answer.parts)])


def _id(part: Part, response: str, index: int) -> str:
    """The id of an item, unique in a conversation."""
    kind = "msg" if isinstance(part, Text) else "rs" if isinstance(part, Reasoning) else "fc"
    return f"{kind}_{response.removeprefix('resp_')}_{index}"


def _response(answer: Answer, output: list[Json]) -> Json:
    why = {"length": "max_output_tokens", "refusal": "content_filter"}.get(answer.finish)
    return {
        **_envelope(answer.id, answer.model, "incomplete" if why else "completed"),
        "incomplete_details": {"reason": why} if why else None,
        "output": output,
        "usage": _usage(answer.usage),
    }


def _envelope(id: str, model: str, status: str) -> Json:
    return {
        "id": id or "resp_0",
        "object": "response",
        "created_at": 0,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }


def usage_of(body: Mapping[str, Any]) -> Usage:
    given = body.get("usage") or {}
    usage = Usage(
        calls=1,
        input_tokens=sane(given.get("input_tokens")),
        output_tokens=sane(given.get("output_tokens")),
        cached_tokens=sane((given.get("input_tokens_details") or {}).get("cached_tokens")),
        reasoning_tokens=sane((given.get("output_tokens_details") or {}).get("reasoning_tokens")),
    )
    return capped(usage)


def cache_writes(body: Mapping[str, Any]) -> int:
    return 0


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.tokens,
    }


# -- streams


class Assembler:
    """Puts the events of a stream together; see `messages.Assembler`."""

    def __init__(self) -> None:
        self.body: Json | None = None
        self.failure: Any = None
        self.content = False
        self._items: list[Json] = []

    def feed(self, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "error":
                self.failure = event.get("error") or event
            case "response.failed":
                self.failure = event["response"].get("error") or event["response"]
            case "response.completed" | "response.incomplete":
                body = dict(event["response"])
                body["output"] = body.get("output") or self._items  # some servers leave it out
                self.body = body
            case "response.output_item.done":
                self.content = True
                self._items.append(event["item"])
            case "response.output_item.added":
                self.content = True
            case _:
                if event.get("error"):
                    self.failure = event["error"]


def events_of(body: Mapping[str, Any]) -> Iterator[bytes]:
    """The stream of a response that is complete already."""
    numbers = _Numbers()
    begun = {**body, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield numbers.event("response.created", response=begun)
    yield numbers.event("response.in_progress", response=begun)
    for index, item in enumerate(body.get("output") or ()):
        yield from _item_events(numbers, index, item)
    yield numbers.event(
        f"response.{'incomplete' if body.get('status') == 'incomplete' else 'completed'}", response=body
    )


def _item_events(numbers: _Numbers, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
    at = {"item_id": item.get("id") or f"item_{index}", "output_index": index}
    match item.get("type"):
        case "message":
            added = {**item, "status": "in_progress", "content": []}
            yield numbers.event("response.output_item.added", output_index=index, item=added)
            for place, part in enumerate(item.get("content") or ()):
                here = {**at, "content_index": place}
                if part.get("type") != "output_text":
                    yield numbers.event("response.content_part.added", **here, part=part)
                else:
                    yield numbers.event("response.content_part.added", **here, part={**part, "text": ""})
                    yield numbers.event("response.output_text.delta", **here, delta=part["text"], logprobs=[])
                    yield numbers.event("response.output_text.done", **here, text=part["text"], logprobs=[])
                yield numbers.event("response.content_part.done", **here, part=part)
        case "function_call":
            yield numbers.event("response.output_item.added", output_index=index, item={**item, "arguments": ""})
            yield numbers.event("response.function_call_arguments.delta", **at, delta=item["arguments"])
            yield numbers.event("response.function_call_arguments.done", **at, arguments=item["arguments"])
        case "custom_tool_call":
            yield numbers.event("response.output_item.added", output_index=index, item={**item, "input": ""})
            yield numbers.event("response.custom_tool_call_input.delta", **at, delta=item["input"])
            yield numbers.event("response.custom_tool_call_input.done", **at, input=item["input"])
        case _:
            yield numbers.event("response.output_item.added", output_index=index, item=dict(item))
    yield numbers.event("response.output_item.done", output_index=index, item=dict(item))


class _Numbers:
    """Makes events with their sequence numbers."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **data: Any) -> bytes:
        number, self._next = self._next, self._next + 1
        return sse.event({"type": kind, "sequence_number": number, **data})


_TEXT_DELTAS = frozenset({
    "response.output_text.delta", "response.refusal.delta",
    "response.reasoning_summary_text.delta", "response.reasoning_text.delta",
})  # fmt: skip


class Decoder:
    """Events of a stream → deltas; see `messages.Decoder`."""

    def __init__(self, tools: tuple[Tool, ...] = ()) -> None:
        self._tools = tools
        self._at: Any = None
        self._texts = 0

    def feed(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        kind = event.get("type")
        if kind == "response.output_item.added":
            self._at, self._texts = event.get("output_index"), 0
            yield Opened(_begun(event["item"], self._tools))
        elif kind == "response.output_item.done":
            if event.get("output_index") != self._at:  # it was never announced
                yield Opened(_begun(event["item"], self._tools))
            part = _answered(event["item"])
            if isinstance(part, Other):
                raise untranslatable(NAME, f"an answer with an item of type `{part.kind}`")
            if isinstance(part, ToolCall) and not part.custom:
                part = as_called(part, self._tools)
            shown = part.arguments if isinstance(part, ToolCall) else part.text
            if len(shown) > self._texts and (isinstance(part, ToolCall) or not self._texts):
                yield Grew(shown[self._texts :])
            self._at = None
            yield Closed(part)
        elif kind in _TEXT_DELTAS:
            yield from self._grow(event)

    def _grow(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        """Arguments of tool calls come with the complete item. A further paragraph of the summary begins after an empty
        line."""
        if event.get("output_index") == self._at and event.get("delta"):
            self._texts += len(event["delta"])
            yield Grew(event["delta"])


def _begun(item: Mapping[str, Any], tools: tuple[Tool, ...]) -> Text | Reasoning | ToolCall:
    match item.get("type"):
        case "message":
            return Text("")
        case "reasoning":
            return Reasoning("")
        case "function_call" | "custom_tool_call" as kind:
            custom = kind.startswith("custom") or any(tool.custom and tool.name == item["name"] for tool in tools)
            return ToolCall(item["call_id"], item["name"], "", custom=custom)
        case other:
            raise untranslatable(NAME, f"an answer with an item of type `{other}`")


class Encoder:
    """Deltas → events of a stream."""

    def __init__(self, model: str, id: str) -> None:
        self._numbers, self._model, self._id = _Numbers(), model, id
        self._output: list[Json] = []
        self._begun = False

    def feed(self, delta: Delta) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            begun = _envelope(self._id, self._model, "in_progress") | {"usage": None}
            yield self._numbers.event("response.created", response=begun)
            yield self._numbers.event("response.in_progress", response=begun)
        match delta:
            case Opened(part):
                yield from self._open(part)
            case Grew(text) if text:
                yield self._grow(text)
            case Closed(part):
                yield from self._close(part)
            case Ended(answer):
                response = _response(replace(answer, id=self._id, model=self._model), self._output)
                kind = "incomplete" if response["status"] == "incomplete" else "completed"
                yield self._numbers.event(f"response.{kind}", response=response)

    def _open(self, part: Text | Reasoning | ToolCall) -> Iterator[bytes]:
        index = len(self._output)
        id = _id(part, self._id, index)
        self._part, self._at = part, {"item_id": id, "output_index": index}
        item = _item(part, id)
        if isinstance(part, Text):
            item |= {"content": [], "status": "in_progress"}
        elif isinstance(part, ToolCall):
            item |= {"input" if part.custom else "arguments": "", "status": "in_progress"}
        yield self._numbers.event("response.output_item.added", output_index=index, item=item)
        if isinstance(part, Text):
            empty = {"type": "output_text", "text": "", "annotations": []}
            yield self._numbers.event("response.content_part.added", **self._at, content_index=0, part=empty)
        elif isinstance(part, Reasoning):
            empty = {"type": "summary_text", "text": ""}
            yield self._numbers.event("response.reasoning_summary_part.added", **self._at, summary_index=0, part=empty)

    def _grow(self, text: str) -> bytes:
        match self._part:
            case Text():
                kind, more = "response.output_text.delta", {"content_index": 0, "logprobs": []}
            case Reasoning():
                kind, more = "response.reasoning_summary_text.delta", {"summary_index": 0}
            case ToolCall(custom=True):
                kind, more = "response.custom_tool_call_input.delta", {}
            case _:
                kind, more = "response.function_call_arguments.delta", {}
        return self._numbers.event(kind, **self._at, **more, delta=text)

    def _close(self, part: Text | Reasoning | ToolCall) -> Iterator[bytes]:
        index = self._at["output_index"]
        item = _item(part, self._at["item_id"])
        match part:
            case Text(text):
                here = {**self._at, "content_index": 0}
                yield self._numbers.event("response.output_text.done", **here, text=text, logprobs=[])
                yield self._numbers.event("response.content_part.done", **here, part=item["content"][0])
            case Reasoning(text):
                here = {**self._at, "summary_index": 0}
                yield self._numbers.event("response.reasoning_summary_text.done", **here, text=text)
                done = {"type": "summary_text", "text": text}
                yield self._numbers.event("response.reasoning_summary_part.done", **here, part=done)
            case ToolCall(custom=True):
                yield self._numbers.event("response.custom_tool_call_input.done", **self._at, input=part.arguments)
            case ToolCall():
                done = item["arguments"]
                yield self._numbers.event("response.function_call_arguments.done", **self._at, arguments=done)
        self._output.append(item)
        yield self._numbers.event("response.output_item.done", output_index=index, item=item)


PING = sse.event({"type": "keepalive", "sequence_number": 0})


def error_body(status: int, message: str) -> Json:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error_event(status: int, message: str) -> bytes:
    """A failure inside a stream. Codex tries again unless the code says that the request is at fault."""
    code = "server_error" if status >= 500 else "invalid_prompt"
    failed = _envelope("", "", "failed") | {"error": {"code": code, "message": message}, "usage": None}
    return sse.event({"type": "response.failed", "sequence_number": 0, "response": failed})
