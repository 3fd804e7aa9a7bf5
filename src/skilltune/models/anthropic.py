"""Anthropic-style endpoints: the Messages API.

Structured output is a forced tool named after the stage, because every compatible server knows tools; the answer's
text is then the tool's input as JSON, so that callers see no difference between providers.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Literal

from skilltune.errors import UsageError
from skilltune.models import Message, Reply, Request, Usage
from skilltune.models.prices import price as price_of
from skilltune.models.structured import inline_schema
from skilltune.models.wire import Json, Wire, count, cut, estimate_tokens, refuses
from skilltune.names import Name, parse_name

logger = logging.getLogger(__name__)

OFFICIAL = "https://api.anthropic.com"
VERSION = "2023-06-01"  # later versions refuse `temperature` for every model, and compatible servers know this one
MAX_TOKENS = 4096  # the API wants a limit; used where the request has none


class AnthropicModel:
    """A model behind an Anthropic-style endpoint; see `Model` for the contract.

    `price`: (dollars per million input tokens, per million output tokens), in place of the price list. `key_env`: the
    variable that holds the key. `same_as`: the name under which the answers of this model are kept.
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
            raise UsageError(f"`{self._name}` is no Anthropic-style name; write anthropic/MODEL or anthropic@URL#MODEL")
        self.name = self._name.text
        self._price = price
        self._known = parse_name(same_as).known if same_as else self._name.known
        self._wire = Wire(self._name, self._name.url or OFFICIAL, self._headers, timeout_s, key_env)
        self._unknown: set[str] = set()  # parameters that this endpoint refused

    @property
    def fingerprint(self) -> str:
        return self._known

    async def complete(self, request: Request) -> Reply:
        return await self._wire.exchange("/v1/messages", request, self._payload, self._learn, self._read)

    async def aclose(self) -> None:
        await self._wire.aclose()

    def _headers(self, key: str) -> Json:
        """Anthropic reads `x-api-key`; of the compatible servers many read that, and some only a bearer token."""
        headers = {"x-api-key": key, "anthropic-version": VERSION}
        return headers if self._name.url is None else headers | {"Authorization": f"Bearer {key}"}

    def _learn(self, sent: Json, said: str) -> None:
        """Take note of what the endpoint says it does not know."""
        if "tools" in sent and ("tool" in said or "schema" in said):
            self._unknown.add("tools")
        elif "temperature" in sent and refuses(said, "temperature"):
            self._unknown.add("temperature")
            logger.warning("`%s` accepts no temperature: its own default is used", self.name)
        elif "stop_sequences" in sent and refuses(said, "stop_sequences"):
            self._unknown.add("stop_sequences")

    def _payload(self, request: Request) -> Json:
        schema = request.schema
        messages = request.messages
        if schema is not None and "tools" in self._unknown:
            messages, schema = inline_schema(messages, schema), None
        payload: Json = {
            "model": self._name.model,
            "max_tokens": request.max_tokens or MAX_TOKENS,
            "messages": [_message(message) for message in messages if message.role != "system"],
        }
        if instructions := [message.text for message in messages if message.role == "system"]:
            payload["system"] = "\n\n".join(instructions)
        if request.temperature is not None and "temperature" not in self._unknown:
            payload["temperature"] = request.temperature
        if request.stop and "stop_sequences" not in self._unknown:
            payload["stop_sequences"] = list(request.stop)
        if schema is not None:
            payload["tools"] = [{"name": schema.name, "input_schema": dict(schema.schema)}]
            payload["tool_choice"] = {"type": "tool", "name": schema.name}
        return payload

    def _read(self, request: Request, body: Json) -> Reply:
        blocks, schema = body["content"], request.schema
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        used = [b for b in blocks if schema is not None and b["type"] == "tool_use" and b["name"] == schema.name]
        if used:
            text = json.dumps(used[-1]["input"], ensure_ascii=False)
        usage = self._usage(request, body, text)
        if "stop_sequences" in self._unknown and not used:
            text = cut(text, request.stop)
        return Reply(text, usage, _FINISH.get(body.get("stop_reason"), "other"))

    def _usage(self, request: Request, body: Json, text: str) -> Usage:
        cached = count(body, "usage", "cache_read_input_tokens")  # not part of input_tokens here
        written = count(body, "usage", "cache_creation_input_tokens")
        tokens = count(body, "usage", "input_tokens") + cached + written, count(body, "usage", "output_tokens")
        if not any(tokens):
            tokens = estimate_tokens(request, text)
        usage = Usage(
            calls=1,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_tokens=cached,
            reasoning_tokens=count(body, "usage", "output_tokens_details", "thinking_tokens"),
        )
        return replace(usage, usd=price_of(self._name, usage, override=self._price))


_FINISH: dict[str | None, Literal["stop", "length", "refusal", "other"]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


def _message(message: Message) -> Json:
    if not message.images:
        return {"role": message.role, "content": message.text}
    blocks: list[Json] = [{"type": "text", "text": message.text}] if message.text else []
    blocks += [
        {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.base64}}
        for image in message.images
    ]
    return {"role": message.role, "content": blocks}
