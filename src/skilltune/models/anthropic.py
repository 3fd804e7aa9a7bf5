"""Anthropic-style endpoints: the Messages API.

Structured output is a forced tool that is named after the stage, because every compatible server supports tools. The
text of the reply is the tool's input as JSON, so callers see no difference between providers.
"""

from __future__ import annotations

import json
from dataclasses import replace

from skilltune.errors import UsageError
from skilltune.models import Message, Reply, Request, ToolCall
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
    wants_stream,
)
from skilltune.names import Name, parse_name
from skilltune.usage import Usage

OFFICIAL = "https://api.anthropic.com"
VERSION = "2023-06-01"  # later versions refuse `temperature` for every model; compatible servers know this one
MAX_TOKENS = 4096  # the API requires a limit; used if the request has none
LEARNED = {
    "system": "the endpoint has no system text: the skill is sent at the start of the user's message",
    "tools": "the endpoint takes no tools: the answer schema is written into the prompt",
    "temperature": "the endpoint takes no temperature: its own default is used",
    "stop_sequences": "the endpoint takes no stop sequences: answers are cut here",
    "stream": "the endpoint streams every answer: the stream is read to its end",
    "no_stream": "the endpoint does not know the parameter stream: it is left out",
}


class AnthropicModel:
    """A model behind an Anthropic-style endpoint; see `Model` for the contract.

    `price` is (dollars per million input tokens, dollars per million output tokens) and overrides the price list.
    `key_env` is the environment variable that holds the key. `same_as` is the model name under which its answers are
    journaled.
    """

    def __init__(
        self,
        name: Name | str,
        *,
        timeout_s: float = 120.0,
        price: tuple[float, float] | None = None,
        key_env: str | None = None,
        same_as: str | None = None,
    ) -> None:
        self._name = parse_name(name) if isinstance(name, str) else name
        if self._name.scheme != "anthropic":
            raise UsageError(
                f"`{self._name}` is not an Anthropic-style name; write anthropic/MODEL or anthropic@URL#MODEL"
            )
        self.name = self._name.text
        self._price = price
        self._known = parse_name(same_as).known if same_as else self._name.known
        self._wire = Wire(self._name, self._name.url or OFFICIAL, self._headers, timeout_s, key_env)
        self.learned = Learned(self.name, LEARNED)

    @property
    def fingerprint(self) -> str:
        return self._known

    async def complete(self, request: Request) -> Reply:
        return await self._wire.exchange("/v1/messages", request, self._payload, self._learn, self._read)

    async def aclose(self) -> None:
        await self._wire.aclose()

    def _headers(self, key: str) -> Json:
        """Anthropic reads `x-api-key`. Some compatible servers read only a bearer token."""
        headers = {"x-api-key": key, "anthropic-version": VERSION}
        return headers if self._name.url is None else headers | {"Authorization": f"Bearer {key}"}

    def _learn(self, sent: Json, said: str) -> None:
        """Remember a feature that the endpoint says it does not support."""
        if "tool_choice" in sent and ("tool" in said or "schema" in said):
            self.learned.note("tools")
        elif "temperature" in sent and refuses_temperature(said):
            self.learned.note("temperature")
        elif "stop_sequences" in sent and refuses(said, "stop_sequences"):
            self.learned.note("stop_sequences")
        elif "system" in sent and (refuses_system(said) or refuses(said, "system")):
            self.learned.note("system")
        elif sent.get("stream") is False and wants_stream(said):
            self.learned.note("stream")
        elif "stream" in sent and refuses(said, "stream"):
            self.learned.note("no_stream")

    def _payload(self, request: Request) -> Json:
        schema = request.schema
        messages = fold_system(request.messages) if "system" in self.learned else request.messages
        if schema is not None and "tools" in self.learned:
            messages, schema = inline_schema(messages, schema), None
        payload: Json = {
            "model": self._name.model,
            "max_tokens": request.max_tokens or MAX_TOKENS,
            "messages": [_message(message) for message in messages if message.role != "system"],
        }
        if instructions := [message.text for message in messages if message.role == "system"]:
            payload["system"] = "\n\n".join(instructions)
        if request.temperature is not None and "temperature" not in self.learned:
            payload["temperature"] = request.temperature
        if request.stop and "stop_sequences" not in self.learned:
            payload["stop_sequences"] = list(request.stop)
        if request.tools:
            payload["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
                for tool in request.tools
            ]
        if schema is not None:
            forced = {"name": schema.name, "input_schema": dict(schema.schema)}
            payload["tools"] = [*payload.get("tools", ()), forced]
            payload["tool_choice"] = {"type": "tool", "name": schema.name}
        if "no_stream" not in self.learned:
            payload["stream"] = "stream" in self.learned
        return payload

    def _read(self, request: Request, body: Json) -> Raw:
        blocks, schema = body["content"], request.schema
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thinking = "\n\n".join(filter(None, (texts_in(block) for block in blocks if block["type"] == "thinking")))
        calls = [block for block in blocks if block["type"] == "tool_use"]
        if used := [call for call in calls if schema is not None and call["name"] == schema.name]:
            text = json.dumps(used[-1]["input"], ensure_ascii=False)
        usage = self._usage(request, body, thinking + text)
        stop = request.stop if "stop_sequences" in self.learned and not used else ()
        ended, called = body.get("stop_reason"), bool(calls)
        offered = tuple(
            ToolCall(call["id"], call["name"], json.dumps(call["input"], ensure_ascii=False))
            for call in calls
            if request.tools and not used
        )
        return Raw(text, ended, usage, thinking, "its thinking blocks", called=called, calls=offered, stop=stop)

    def _usage(self, request: Request, body: Json, text: str) -> Usage:
        cached = count(body, "usage", "cache_read_input_tokens")  # not part of input_tokens in this API
        written = count(body, "usage", "cache_creation_input_tokens")
        tokens = count(body, "usage", "input_tokens") + cached + written, count(body, "usage", "output_tokens")
        if not any(tokens):
            tokens = estimate_tokens(request, text)
        usage = Usage(
            calls=1,
            input_tokens=tokens[0] or estimate_tokens(request, "")[0],
            output_tokens=tokens[1] or estimate_tokens(request, text)[1],
            cached_tokens=cached,
            reasoning_tokens=count(body, "usage", "output_tokens_details", "thinking_tokens"),
        )
        return replace(capped(usage), usd=price_of(self._name, capped(usage), override=self._price))


def _message(message: Message) -> Json:
    if not (message.images or message.tool_calls or message.tool_results):
        return {"role": message.role, "content": message.text}
    blocks: list[Json] = [
        {"type": "tool_result", "tool_use_id": result.id, "content": result.text, "is_error": result.error}
        for result in message.tool_results
    ]
    blocks += [{"type": "text", "text": message.text}] if message.text else []
    blocks += [
        {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.base64}}
        for image in message.images
    ]
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": blocks}


def _object(arguments: str) -> Json:
    """The arguments of a call as the API wants them. What is no JSON object was never run, and is sent as it came."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}
