"""OpenAI's Chat Completions API, as requests, responses and streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    as_function,
    merged,
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

NAME = "openai-chat"

_KNOWN = frozenset({
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "stop", "stream", "response_format", "n", "modalities",
})  # fmt: skip
_HINTS = frozenset({
    "user", "metadata", "store", "reasoning_effort", "reasoning", "stream_options", "service_tier", "verbosity",
    "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "enable_thinking", "thinking",
    "chat_template_kwargs", "vl_high_resolution_images", "cache_prompt", "tool_stream",
})  # fmt: skip
_FINISH: dict[str, Finish] = {
    "length": "length",
    "tool_calls": "tools",
    "function_call": "tools",
    "content_filter": "refusal",
}
_FINISH_REASON: dict[Finish, str] = {
    "stop": "stop",
    "tools": "tool_calls",
    "length": "length",
    "refusal": "content_filter",
}
_THINKING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")


# -- requests


def check_request(body: Mapping[str, Any]) -> None:
    require_known(NAME, body, _KNOWN, _HINTS)
    if (body.get("n") or 1) != 1:
        raise untranslatable(NAME, "`n` above 1")
    if (body.get("modalities") or ["text"]) != ["text"]:
        raise untranslatable(NAME, "`modalities` other than text")


def parse_request(body: Mapping[str, Any]) -> Conversation:
    system, rest = split_system(_read(message) for message in body.get("messages") or ())
    stop = body.get("stop") or ()
    return Conversation(
        model=str(body.get("model") or ""),
        messages=rest,
        system=system,
        tools=tuple(_tool(tool) for tool in body.get("tools") or ()),
        choice=_choice(body.get("tool_choice")),
        parallel=False if body.get("parallel_tool_calls") is False else None,
        max_tokens=whole(body.get("max_completion_tokens")) or whole(body.get("max_tokens")),
        temperature=number(body.get("temperature")),
        top_p=number(body.get("top_p")),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        schema=_schema(body.get("response_format")),
        stream=body.get("stream") is True,
    )


def _read(message: Mapping[str, Any]) -> Message:
    role, content = message["role"], message.get("content")
    match role:
        case "system" | "developer":
            return Message("system", tuple(_shown(content)))
        case "user":
            return Message("user", tuple(_shown(content)))
        case "tool":
            return Message("user", (ToolResult(message["tool_call_id"], tuple(_shown(content))),))
        case "assistant":
            return Message("assistant", _answered(message))
    raise untranslatable(NAME, f"a message of the role `{role}`")


def _shown(content: Any) -> Iterator[Text | Picture | Other]:
    if isinstance(content, str):
        yield Text(content)
        return
    for part in content or ():
        match part.get("type"):
            case "text" | "refusal":
                yield Text(part.get("text") or part.get("refusal") or "")
            case "image_url":
                yield Picture(part["image_url"]["url"])
            case other:
                yield Other(NAME, str(other))


def _answered(message: Mapping[str, Any], id: object = "") -> tuple[Part, ...]:
    """Parts of an assistant's message, in the order in which a model writes them. `id` is that of the response; some
    servers give no ids to calls."""
    content, thought = message.get("content"), ""
    if isinstance(content, list):
        kinds = ("thinking", "reasoning")
        thought = "".join(texts_in(part) for part in content if part.get("type") in kinds)
        content = [part for part in content if part.get("type") not in kinds]
    thought = next((text for name in _THINKING if (text := texts_in(message.get(name)))), thought)
    parts: list[Part] = [Reasoning(thought)] if thought else []
    parts += [part for part in _shown(content) if not isinstance(part, Text) or part.text]
    if message.get("refusal"):
        parts.append(Text(message["refusal"]))
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or call.get("custom") or {}
        arguments = function.get("arguments") or function.get("input") or ""
        named = call.get("id") or f"call_{id}_{index}"
        parts.append(ToolCall(named, function["name"], arguments, custom=call.get("type") == "custom"))
    return tuple(parts)


def _tool(tool: Mapping[str, Any]) -> Tool:
    if tool.get("type") != "function":
        return Tool(str(tool.get("name")), "", {}, other=str(tool.get("type")))
    function = tool["function"]
    return Tool(function["name"], function.get("description") or "", function.get("parameters") or {"type": "object"})


def _choice(choice: Any) -> str:
    if isinstance(choice, Mapping):
        if choice.get("type") != "function":
            raise untranslatable(NAME, f"a tool_choice of type `{choice.get('type')}`")
        return f"tool:{choice['function']['name']}"
    return "any" if choice == "required" else str(choice or "")


def _schema(wanted: Any) -> Schema | None:
    if not wanted or wanted.get("type") == "text":
        return None
    if wanted.get("type") != "json_schema":
        raise untranslatable(NAME, f"a response_format of type `{wanted.get('type')}`")
    return Schema(wanted["json_schema"].get("name") or "answer", wanted["json_schema"]["schema"])


def render_request(conversation: Conversation) -> Json:
    messages: list[Json] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    spoken = [Message("user" if each.role == "system" else each.role, each.parts) for each in conversation.messages]
    for message in merged(spoken):
        messages += _assistant(message.parts) if message.role == "assistant" else _user(message.parts)
    body: Json = {"model": conversation.model, "messages": messages}
    if conversation.tools:
        body["tools"] = [_render_tool(tool) for tool in conversation.tools]
        if choice := conversation.choice:
            named = {"type": "function", "function": {"name": choice[5:]}} if choice.startswith("tool:") else choice
            body["tool_choice"] = "required" if named == "any" else named
        if conversation.parallel is False:
            body["parallel_tool_calls"] = False
    for name in ("max_tokens", "temperature", "top_p"):
        if (value := getattr(conversation, name)) is not None:
            body[name] = value
    if conversation.stop:
        body["stop"] = list(conversation.stop)
    if (schema := conversation.schema) is not None:
        wanted = {"name": schema.name, "schema": dict(schema.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    if conversation.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _user(parts: tuple[Part, ...]) -> Iterator[Json]:
    """Tool results are messages of their own. They hold text only, so their images follow as the user's."""
    shown: list[Part] = []
    require_expressible(parts)
    for part in parts:
        if isinstance(part, ToolResult):
            yield {"role": "tool", "tool_call_id": part.id, "content": part.text}
            shown += [picture for picture in part.parts if isinstance(picture, Picture)]
            require_expressible(part.parts)
        else:
            shown.append(part)
    if shown:
        yield {"role": "user", "content": _content(shown)}


def _content(parts: Iterable[Part]) -> str | list[Json]:
    """Text alone is one string, because the templates of many models know nothing else."""
    shown = [part for part in parts if isinstance(part, Picture) or (isinstance(part, Text) and part.text)]
    if all(isinstance(part, Text) for part in shown):
        return "\n\n".join(part.text for part in shown if isinstance(part, Text))
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image_url", "image_url": {"url": part.url}}
        for part in shown
    ]


def _assistant(parts: tuple[Part, ...]) -> Iterator[Json]:
    yield {"role": "assistant", **_spoken(parts)}


def _spoken(parts: tuple[Part, ...]) -> Json:
    require_expressible(parts)
    message: Json = {
        "content": "\n\n".join(part.text for part in parts if isinstance(part, Text) and part.text) or None
    }
    if thought := "\n\n".join(part.text for part in parts if isinstance(part, Reasoning) and part.text):
        message["reasoning_content"] = thought
    if calls := [as_function(part) for part in parts if isinstance(part, ToolCall)]:
        message["tool_calls"] = [_render_call(call) for call in calls]
    elif message["content"] is None:
        message["content"] = ""
    return message


def _render_call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}


def _render_tool(tool: Tool) -> Json:
    require_plain(tool)
    parameters = INPUT_SCHEMA if tool.custom else dict(tool.parameters)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


# -- responses


def parse_response(body: Mapping[str, Any], tools: tuple[Tool, ...] = ()) -> Answer:
    choice = body["choices"][0]
    parts = _answered(choice["message"], body.get("id"))
    parts = tuple(as_called(part, tools) if isinstance(part, ToolCall) else part for part in parts)
    finish = _FINISH.get(str(choice.get("finish_reason")), "stop")
    if finish == "stop" and any(isinstance(part, ToolCall) for part in parts):
        finish = "tools"  # some servers say "stop"
    return Answer(parts, finish, usage_of(body), str(body.get("id") or ""), str(body.get("model") or ""))


def render_response(answer: Answer) -> Json:
    choice = {
        "index": 0,
        "message": {"role": "assistant", **_spoken(answer.parts)},
        "logprobs": None,
        "finish_reason": _FINISH_REASON[answer.finish],
    }
    return {
        **_envelope(answer.id, answer.model, "chat.completion"),
        "choices": [choice],
        "usage": _usage(answer.usage),
    }


def _envelope(id: str, model: str, kind: str) -> Json:
    return {"id": id or "chatcmpl-0", "object": kind, "created": 0, "model": model}


def usage_of(body: Mapping[str, Any]) -> Usage:
    given = body.get("usage") or {}
    usage = Usage(
        calls=1,
        input_tokens=sane(given.get("prompt_tokens")),
        output_tokens=sane(given.get("completion_tokens")),
        cached_tokens=sane((given.get("prompt_tokens_details") or {}).get("cached_tokens")),
        reasoning_tokens=sane((given.get("completion_tokens_details") or {}).get("reasoning_tokens")),
    )
    return capped(usage)


def cache_writes(body: Mapping[str, Any]) -> int:
    return 0


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


# -- streams


class Assembler:
    """Puts the chunks of a stream together; see `messages.Assembler`. The end of the stream completes the response if a
    finish reason came before it, because the usage comes after that."""

    def __init__(self) -> None:
        self.failure: Any = None
        self.content = False
        self._top: Json = {}
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}
        self._calls: dict[int, Json] = {}
        self._finish: Any = None
        self._usage: Any = None

    @property
    def body(self) -> Json | None:
        if not self._finish:
            return None
        message: Json = {"role": "assistant", "content": None}
        message |= {name: "".join(texts) for name, texts in self._texts.items()} | self._lists
        if self._calls:
            calls = (self._calls[index] for index in sorted(self._calls))
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": "".join(call["function"]["arguments"])}}
                for call in calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return {**self._top, "object": "chat.completion", "choices": [choice], "usage": self._usage}

    def feed(self, event: Mapping[str, Any]) -> None:
        if event.get("error"):
            self.failure = event["error"]
            return
        self._top = self._top or {name: event.get(name) for name in ("id", "created", "model") if name in event}
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or ():
            if choice.get("index") not in (0, None):
                continue
            if choice.get("error"):
                self.failure = choice["error"]
            self._finish = choice.get("finish_reason") or self._finish
            for name, value in (choice.get("delta") or choice.get("message") or {}).items():
                self._grow(name, value)

    def _grow(self, name: str, value: Any) -> None:
        if name == "role" or not value:
            return
        self.content = True
        if name == "tool_calls":
            for call in value:
                self._call(call)
        elif isinstance(value, str):
            self._texts.setdefault(name, []).append(value)
        elif isinstance(value, list):
            self._lists.setdefault(name, []).extend(value)

    def _call(self, call: Mapping[str, Any]) -> None:
        index, function = _index(call, len(self._calls)), call.get("function") or {}
        known = self._calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": []}})
        known["id"] = call.get("id") or known["id"]
        known["function"]["name"] = function.get("name") or known["function"]["name"]
        known["function"]["arguments"].append(function.get("arguments") or "")


def _index(call: Mapping[str, Any], known: int) -> int:
    """The index of a call. Servers that leave it out send each call in one piece."""
    given = call.get("index")
    return given if isinstance(given, int) else known if call.get("id") else max(known - 1, 0)


def events_of(body: Mapping[str, Any]) -> Iterator[bytes]:
    """The stream of a response that is complete already. The usage comes last, as `include_usage` asks for it."""
    choice = body["choices"][0]
    message = dict(choice["message"])
    if message.get("tool_calls"):
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
    top = {**body, "object": "chat.completion.chunk"}
    top.pop("usage", None)
    for delta, finish in ((message, None), ({}, choice.get("finish_reason") or "stop")):
        yield sse.event({**top, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, named=False)
    if body.get("usage"):
        yield sse.event({**top, "choices": [], "usage": body["usage"]}, named=False)
    yield sse.DONE


class Decoder:
    """Chunks of a stream → deltas; see `messages.Decoder`. Tool calls wait for the end of the answer, because a server
    may send several of them at once."""

    def __init__(self, tools: tuple[Tool, ...] = ()) -> None:
        self._tools = tools
        self._open: Text | Reasoning | None = None
        self._grown: list[str] = []
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._id: Any = None

    def feed(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        self._id = self._id or event.get("id")
        for choice in event.get("choices") or ():
            if choice.get("index") not in (0, None):
                continue
            delta = choice.get("delta") or choice.get("message") or {}
            thought = next((text for name in _THINKING if (text := texts_in(delta.get(name)))), "")
            if thought:
                yield from self._add(Reasoning(""), thought)
            content = delta.get("content") or delta.get("refusal")
            for part in _shown(content) if content else ():
                if isinstance(part, Text) and part.text:
                    yield from self._add(Text(""), part.text)
            for call in delta.get("tool_calls") or ():
                self._call(call)
            if choice.get("finish_reason"):
                yield from self._finish()

    def _add(self, part: Text | Reasoning, text: str) -> Iterator[Delta]:
        if type(self._open) is not type(part):
            yield from self._close()
            self._open = part
            yield Opened(part)
        self._grown.append(text)
        yield Grew(text)

    def _call(self, call: Mapping[str, Any]) -> None:
        index, function = _index(call, len(self._calls)), call.get("function") or {}
        id, name, arguments = self._calls.get(index) or ("", "", [])
        arguments.append(function.get("arguments") or "")
        self._calls[index] = (call.get("id") or id, function.get("name") or name, arguments)

    def _close(self) -> Iterator[Delta]:
        if self._open is not None:
            part, self._open = replace(self._open, text="".join(self._grown)), None
            self._grown.clear()
            yield Closed(part)

    def _finish(self) -> Iterator[Delta]:
        yield from self._close()
        for place, index in enumerate(sorted(self._calls)):
            id, name, arguments = self._calls[index]
            named = id or f"call_{self._id}_{place}"
            call = as_called(ToolCall(named, name, "".join(arguments)), self._tools)
            yield Opened(replace(call, arguments=""))
            yield Grew(call.arguments)
            yield Closed(call)
        self._calls.clear()


class Encoder:
    """Deltas → chunks of a stream."""

    def __init__(self, model: str, id: str) -> None:
        self._top = _envelope(id, model, "chat.completion.chunk")
        self._role: Json = {"role": "assistant", "content": ""}
        self._kind = ""
        self._seen: dict[str, bool] = {}
        self._calls = 0
        self._custom = False

    def feed(self, delta: Delta) -> Iterator[bytes]:
        match delta:
            case Opened(ToolCall(id, name, custom=custom)):
                self._kind, self._custom = "call", custom
                function = {"name": name, "arguments": ""}
                yield self._chunk(
                    {"tool_calls": [{"index": self._calls, "id": id, "type": "function", "function": function}]}
                )
            case Opened(part):
                self._kind = "content" if isinstance(part, Text) else "reasoning_content"
                if self._seen.get(self._kind):
                    yield self._chunk({self._kind: "\n\n"})
            case Grew(text) if text and self._kind == "call" and not self._custom:
                yield self._arguments(text)
            case Grew(text) if text and self._kind != "call":
                self._seen[self._kind] = True
                yield self._chunk({self._kind: text})
            case Closed(ToolCall() as call):
                if call.custom or not call.arguments:
                    yield self._arguments(as_function(call).arguments or "{}")
                self._calls += 1
            case Ended(answer):
                yield self._chunk({}, _FINISH_REASON[answer.finish])
                yield sse.event({**self._top, "choices": [], "usage": _usage(answer.usage)}, named=False)
                yield sse.DONE

    def _arguments(self, text: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls, "function": {"arguments": text}}]})

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        delta, self._role = {**self._role, **delta}, {}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return sse.event({**self._top, "choices": [choice]}, named=False)


PING = b": ping\n\n"


def error_body(status: int, message: str) -> Json:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error_event(status: int, message: str) -> bytes:
    return sse.event(error_body(status, message), named=False)
