"""OpenAI-style endpoints: Chat Completions by default, the Responses API on request.

"OpenAI-compatible" is a family of dialects. There is no table of servers. Instead the model starts with the standard
request and adapts it to the complaints of the endpoint: it drops or renames unsupported parameters (structured output,
`temperature`, `max_tokens`, `stop`, the system role, answers in one piece). It remembers these adaptations for its
lifetime.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from typing import Any, Literal

from skilltune.errors import UsageError
from skilltune.models import Message, Reply, Request, Tool, ToolCall
from skilltune.models.prices import price as price_of
from skilltune.models.reading import Raw, capped, texts_in
from skilltune.models.structured import inline_schema
from skilltune.models.wire import (
    Json,
    Learned,
    Wire,
    count,
    estimate_tokens,
    fold_system,
    refuses,
    refuses_system,
    refuses_temperature,
    slipped,
    wants,
    wants_stream,
)
from skilltune.names import Name, parse_name
from skilltune.usage import Usage

OFFICIAL = "https://api.openai.com/v1"
MAX_TOKENS = 4096  # limit of an answer if the endpoint wants one and the request has none
SLIPS = 3  # failures in a row to produce JSON, after which the schema goes into the prompt
LEARNED = {
    "system": "the endpoint has no system role: the skill is sent at the start of the user's message",
    "schema": "the endpoint takes no answer schema: it is written into the prompt",
    "temperature": "the endpoint takes no temperature: its own default is used",
    "stop": "the endpoint takes no stop sequences: answers are cut here",
    "limit": f"the endpoint wants a limit for every answer: {MAX_TOKENS} tokens if none is set",
    "stream": "the endpoint streams every answer: the stream is read to its end",
    "stream_options": "the endpoint does not count the tokens of a stream: they are estimated",
    "no_stream": "the endpoint does not know the parameter stream: it is left out",
}


class OpenAIModel:
    """A model behind an OpenAI-style endpoint; see `Model` for the contract.

    `price` is (dollars per million input tokens, dollars per million output tokens) and overrides the price list.
    `key_env` is the environment variable that holds the key. `same_as` is the model name under which its answers are
    journaled.
    """

    def __init__(
        self,
        name: Name | str,
        *,
        api: Literal["chat", "responses"] = "chat",
        timeout_s: float = 120.0,
        price: tuple[float, float] | None = None,
        key_env: str | None = None,
        same_as: str | None = None,
    ) -> None:
        self._name = parse_name(name) if isinstance(name, str) else name
        if self._name.scheme != "openai":
            raise UsageError(f"`{self._name}` is not an OpenAI-style name; write openai/MODEL or openai@URL#MODEL")
        if api not in ("chat", "responses"):
            raise UsageError(f"api must be 'chat' or 'responses', got {api!r}")
        self.name = self._name.text
        self._api, self._price = api, price
        self._known = parse_name(same_as).known if same_as else self._name.known
        self._wire = Wire(self._name, self._name.url or OFFICIAL, self._headers, timeout_s, key_env)
        self.learned = Learned(self.name, LEARNED)
        self._slips = 0
        self._limit = "max_tokens" if self._name.url else "max_completion_tokens"

    @property
    def fingerprint(self) -> str:
        return f"{self._known} ({self._api})"

    async def complete(self, request: Request) -> Reply:
        if self._api == "chat":
            steps = self._chat_payload, self._learn, self._read_chat
            return await self._wire.exchange("/chat/completions", request, *steps)
        steps = self._responses_payload, self._learn, self._read_responses
        return await self._wire.exchange("/responses", request, *steps)

    async def aclose(self) -> None:
        await self._wire.aclose()

    def _headers(self, key: str) -> Json:
        """Authentication headers. OpenAI's own endpoint also gets OPENAI_ORG_ID and OPENAI_PROJECT_ID, if they are set.
        Azure's older API (`?api-version=…`) reads the key from its own header."""
        if "?" in (self._name.url or ""):
            return {"api-key": key}
        headers = {"Authorization": f"Bearer {key}"}
        if self._name.url is None:
            payer = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
            headers |= {header: os.environ[name] for header, name in payer.items() if os.environ.get(name)}
        return headers

    def _learn(self, sent: Json, said: str) -> None:
        """Remember a feature that the endpoint says it does not support."""
        schema = "response_format" in sent or "text" in sent
        if slipped(said):
            self._slips += 1
            if schema and self._slips >= SLIPS:
                self.learned.note("schema")
        elif schema and re.search(r"response_format|text\.format|schema|structured[ _]output|json mode", said):
            self.learned.note("schema")
        elif "max_tokens" in sent and ("max_completion_tokens" in said or refuses(said, "max_tokens")):
            self._limit = "max_completion_tokens"
        elif self._limit in sent and self._limit != "max_tokens" and refuses(said, self._limit):
            self._limit = "max_tokens"
        elif not {"max_tokens", "max_completion_tokens", "max_output_tokens"} & sent.keys() and (
            wants(said, "max_tokens") or wants(said, "max_completion_tokens") or wants(said, "max_output_tokens")
        ):
            self.learned.note("limit")
        elif _has_system(sent) and refuses_system(said):
            self.learned.note("system")
        elif "temperature" in sent and refuses_temperature(said):
            self.learned.note("temperature")
        elif "stop" in sent and refuses(said, "stop"):
            self.learned.note("stop")
        elif "stream_options" in sent and refuses(said, "stream_options"):
            self.learned.note("stream_options")
        elif sent.get("stream") is False and wants_stream(said):
            self.learned.note("stream")
        elif "stream" in sent and refuses(said, "stream"):
            self.learned.note("no_stream")

    def _schema_apart(self, request: Request) -> tuple[tuple[Message, ...], Json | None]:
        """(messages, schema parameter). If the endpoint takes no schema, it is in the messages, and None."""
        messages = fold_system(request.messages) if "system" in self.learned else request.messages
        if request.schema is None:
            return messages, None
        if "schema" in self.learned:
            return inline_schema(messages, request.schema), None
        return messages, {"name": request.schema.name, "schema": dict(request.schema.schema), "strict": True}

    def _chat_payload(self, request: Request) -> Json:
        messages, schema = self._schema_apart(request)
        payload: Json = {"model": self._name.model, "messages": [each for m in messages for each in _chat_messages(m)]}
        if request.temperature is not None and "temperature" not in self.learned:
            payload["temperature"] = request.temperature
        if (limit := self._most(request)) is not None:
            payload[self._limit] = limit
        if request.stop and "stop" not in self.learned:
            payload["stop"] = list(request.stop)
        if schema is not None:
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.tools:
            payload["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
        if "stream" in self.learned and "stream_options" not in self.learned:
            payload["stream_options"] = {"include_usage": True}
        return payload | self._stream()

    def _responses_payload(self, request: Request) -> Json:
        messages, schema = self._schema_apart(request)
        items = [item for message in messages for item in _responses_items(message)]
        payload: Json = {"model": self._name.model, "input": items, "store": False}
        if request.temperature is not None and "temperature" not in self.learned:
            payload["temperature"] = request.temperature
        if (limit := self._most(request)) is not None:
            payload["max_output_tokens"] = limit
        if schema is not None:
            payload["text"] = {"format": {"type": "json_schema", **schema}}
        if request.tools:
            payload["tools"] = [{"type": "function", **_function(tool)} for tool in request.tools]
        return payload | self._stream()

    def _most(self, request: Request) -> int | None:
        """The token limit of the answer, or None."""
        return MAX_TOKENS if request.max_tokens is None and "limit" in self.learned else request.max_tokens

    def _stream(self) -> Json:
        """Always stated, because some gateways stream by default."""
        return {} if "no_stream" in self.learned else {"stream": "stream" in self.learned}

    def _read_chat(self, request: Request, body: Json) -> Raw:
        choice = body["choices"][0]
        message = choice.get("message") or {}
        if not message and not choice.get("error"):
            raise TypeError("a choice without a message")
        text, thought = _parts_of(message.get("content"))
        field = next((key for key in THINKING if texts_in(message.get(key))), "")
        thinking = texts_in(message[field]) if field else thought
        refusal = message.get("refusal") or ""
        if not isinstance(refusal, str):
            raise TypeError("the refusal of a choice is not a text")
        calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
        if not text and request.schema is not None:
            text = _arguments(calls, request.schema.name)
        usage = self._usage(request, body, thinking + text + refusal, "prompt_tokens", "completion_tokens")
        self._slips = 0
        stop = request.stop if "stop" in self.learned else ()
        ended, error = choice.get("finish_reason"), choice.get("error")
        called = bool(calls)
        offered = _calls(request, [(call.get("id"), call.get("function") or call) for call in calls])
        return Raw(text, ended, usage, thinking, field or "content", refusal, called, offered, error, stop)

    def _read_responses(self, request: Request, body: Json) -> Raw:
        items = body["output"]
        parts = [part for item in items if item["type"] == "message" for part in item["content"]]
        refusal = "".join(part["refusal"] for part in parts if part["type"] == "refusal")
        text = "".join(part["text"] for part in parts if part["type"] == "output_text")
        thinking = "\n\n".join(filter(None, (texts_in(item) for item in items if item["type"] == "reasoning")))
        usage = self._usage(request, body, thinking + text + refusal, "input_tokens", "output_tokens")
        ended = body.get("status") or "completed"
        if ended == "incomplete":
            ended = (body.get("incomplete_details") or {}).get("reason") or ended
        called = any(item["type"].endswith("_call") for item in items)
        calls = _calls(request, [(item.get("call_id"), item) for item in items if item["type"] == "function_call"])
        stop = request.stop  # this API has no stop sequences
        return Raw(text, ended, usage, thinking, "its reasoning items", refusal, called, calls, stop=stop)

    def _usage(self, request: Request, body: Json, text: str, sent: str, received: str) -> Usage:
        tokens = count(body, "usage", sent), count(body, "usage", received)
        if not any(tokens):
            tokens = estimate_tokens(request, text)
        usage = Usage(
            calls=1,
            input_tokens=tokens[0] or estimate_tokens(request, "")[0],
            output_tokens=tokens[1] or estimate_tokens(request, text)[1],
            cached_tokens=count(body, "usage", f"{sent}_details", "cached_tokens"),
            reasoning_tokens=count(body, "usage", f"{received}_details", "reasoning_tokens"),
        )
        return replace(capped(usage), usd=price_of(self._name, capped(usage), override=self._price))


THINKING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")


def _parts_of(content: Any) -> tuple[str, str]:
    """Split a message's content into (text, thinking). The content is a string, None or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError("the content of a choice is not a text")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    thought = [part for part in parts if part.get("type") in ("thinking", "reasoning")]
    text = "".join(part.get("text") or "" for part in parts if part not in thought)
    return text, "".join(map(texts_in, thought))


def _arguments(calls: Any, name: str) -> str:
    """The arguments of the last call of function `name`. A few servers answer a schema in this way."""
    found = [call["function"]["arguments"] for call in calls if call.get("function", {}).get("name") == name]
    return found[-1] if found and isinstance(found[-1], str) else ""


def _has_system(sent: Json) -> bool:
    return any(item.get("role") == "system" for item in sent.get("messages") or sent.get("input") or ())


def _function(tool: Tool) -> Json:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _calls(request: Request, found: list[tuple[Any, Any]]) -> tuple[ToolCall, ...]:
    """The calls of offered tools, from (id, {"name", "arguments"}). Some servers give no ids, or arguments as an
    object."""
    if not request.tools:
        return ()
    made = []
    for number, (id, function) in enumerate(found):
        arguments = function.get("arguments") or "{}"
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        made.append(ToolCall(str(id or f"call_{number}"), str(function["name"]), text))
    return tuple(made)


def _chat_messages(message: Message) -> list[Json]:
    """One message as those of Chat Completions: each tool result is a message of its own."""
    results: list[Json] = [
        {"role": "tool", "tool_call_id": result.id, "content": result.text} for result in message.tool_results
    ]
    if results and not message.text and not message.images:
        return results
    made = _chat_message(message)
    if message.tool_calls:
        made["content"] = made["content"] or None
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return [*results, made]


def _responses_items(message: Message) -> list[Json]:
    """One message as items of the Responses API: calls and their outputs are items of their own."""
    items: list[Json] = [
        {"type": "function_call_output", "call_id": result.id, "output": result.text} for result in message.tool_results
    ]
    if message.text or message.images or not (message.tool_calls or message.tool_results):
        items.append(_responses_message(message))
    items += [
        {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return items


def _chat_message(message: Message) -> Json:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts: list[Json] = [{"type": "text", "text": message.text}] if message.text else []
    parts += [{"type": "image_url", "image_url": {"url": image.data_uri}} for image in message.images]
    return {"role": message.role, "content": parts}


def _responses_message(message: Message) -> Json:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts: list[Json] = [{"type": "input_text", "text": message.text}] if message.text else []
    parts += [{"type": "input_image", "image_url": image.data_uri} for image in message.images]
    return {"role": message.role, "content": parts}
