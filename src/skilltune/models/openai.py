"""OpenAI-style endpoints: Chat Completions everywhere, the Responses API where it is asked for.

"OpenAI-compatible" is a family of dialects. Instead of a table of servers, the model starts with the standard
request and leaves out or renames what an endpoint says it does not know (structured output, `temperature`,
`max_tokens`, `stop`), and remembers that for as long as it lives.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from typing import Literal

from skilltune.errors import UsageError
from skilltune.models import Message, Reply, Request, Usage
from skilltune.models.prices import price as price_of
from skilltune.models.structured import inline_schema
from skilltune.models.wire import Json, Wire, count, cut, estimate_tokens, refuses
from skilltune.names import Name, parse_name

logger = logging.getLogger(__name__)

OFFICIAL = "https://api.openai.com/v1"


class OpenAIModel:
    """A model behind an OpenAI-style endpoint; see `Model` for the contract.

    `price`: (dollars per million input tokens, per million output tokens), in place of the price list. `key_env`: the
    variable that holds the key. `same_as`: the name under which the answers of this model are kept.
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
            raise UsageError(f"`{self._name}` is no OpenAI-style name; write openai/MODEL or openai@URL#MODEL")
        if api not in ("chat", "responses"):
            raise UsageError(f"api must be 'chat' or 'responses', got {api!r}")
        self.name = self._name.text
        self._api, self._price = api, price
        self._known = parse_name(same_as).known if same_as else self._name.known
        self._wire = Wire(self._name, self._name.url or OFFICIAL, self._headers, timeout_s, key_env)
        self._unknown: set[str] = set()  # parameters that this endpoint refused
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
        """The key; at OpenAI's own endpoint also who pays, where OPENAI_ORG_ID or OPENAI_PROJECT_ID says so. Azure's
        older API (`?api-version=…`) reads the key from a header of its own."""
        if "?" in (self._name.url or ""):
            return {"api-key": key}
        headers = {"Authorization": f"Bearer {key}"}
        if self._name.url is None:
            payer = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
            headers |= {header: os.environ[name] for header, name in payer.items() if os.environ.get(name)}
        return headers

    def _learn(self, sent: Json, said: str) -> None:
        """Take note of what the endpoint says it does not know."""
        if ("response_format" in sent or "text" in sent) and re.search(r"response_format|text\.format|schema", said):
            self._unknown.add("schema")
            logger.warning("`%s` accepts no answer schema: it is written into the prompt", self.name)
        elif "max_tokens" in sent and ("max_completion_tokens" in said or refuses(said, "max_tokens")):
            self._limit = "max_completion_tokens"
        elif "temperature" in sent and refuses(said, "temperature"):
            self._unknown.add("temperature")
            logger.warning("`%s` accepts no temperature: its own default is used", self.name)
        elif "stop" in sent and refuses(said, "stop"):
            self._unknown.add("stop")

    def _schema_apart(self, request: Request) -> tuple[tuple[Message, ...], Json | None]:
        """The messages, and the schema as a parameter; or the messages with the schema inside, and None."""
        if request.schema is None:
            return request.messages, None
        if "schema" in self._unknown:
            return inline_schema(request.messages, request.schema), None
        return request.messages, {"name": request.schema.name, "schema": dict(request.schema.schema), "strict": True}

    def _chat_payload(self, request: Request) -> Json:
        messages, schema = self._schema_apart(request)
        payload: Json = {"model": self._name.model, "messages": [_chat_message(m) for m in messages]}
        if request.temperature is not None and "temperature" not in self._unknown:
            payload["temperature"] = request.temperature
        if request.max_tokens is not None:
            payload[self._limit] = request.max_tokens
        if request.stop and "stop" not in self._unknown:
            payload["stop"] = list(request.stop)
        if schema is not None:
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        return payload

    def _responses_payload(self, request: Request) -> Json:
        messages, schema = self._schema_apart(request)
        items = [_responses_message(message) for message in messages]
        payload: Json = {"model": self._name.model, "input": items, "store": False}
        if request.temperature is not None and "temperature" not in self._unknown:
            payload["temperature"] = request.temperature
        if request.max_tokens is not None:
            payload["max_output_tokens"] = request.max_tokens
        if schema is not None:
            payload["text"] = {"format": {"type": "json_schema", **schema}}
        return payload

    def _read_chat(self, request: Request, body: Json) -> Reply:
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(content, list):  # some servers answer in parts
            content = "".join(part.get("text") or "" for part in content)
        text = content or refusal or ""
        if not isinstance(text, str):
            raise TypeError("the content of a choice is no text")
        usage = self._usage(request, body, text, "prompt_tokens", "completion_tokens")
        finish = _CHAT_FINISH.get(choice.get("finish_reason"), "other")
        if finish == "stop" and not text and message.get("tool_calls"):
            finish = "other"
        elif refusal or (content is None and finish == "stop" and usage.output_tokens):
            finish = "refusal"
        if "stop" in self._unknown:
            text = cut(text, request.stop)
        return Reply(text, usage, finish)

    def _read_responses(self, request: Request, body: Json) -> Reply:
        parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
        refusals = [part["refusal"] for part in parts if part["type"] == "refusal"]
        text = "".join(part["text"] for part in parts if part["type"] == "output_text")
        usage = self._usage(request, body, text or "".join(refusals), "input_tokens", "output_tokens")
        why = (body.get("incomplete_details") or {}).get("reason")
        if refusals or why == "content_filter":
            finish = "refusal"
        elif why == "max_output_tokens":
            finish = "length"
        else:
            finish = "stop" if body["status"] == "completed" and (parts or not body["output"]) else "other"
        return Reply(cut(text, request.stop) or "".join(refusals), usage, finish)  # this API has no stop sequences

    def _usage(self, request: Request, body: Json, text: str, sent: str, received: str) -> Usage:
        tokens = count(body, "usage", sent), count(body, "usage", received)
        if not any(tokens):
            tokens = estimate_tokens(request, text)
        usage = Usage(
            calls=1,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_tokens=count(body, "usage", f"{sent}_details", "cached_tokens"),
            reasoning_tokens=count(body, "usage", f"{received}_details", "reasoning_tokens"),
        )
        return replace(usage, usd=price_of(self._name, usage, override=self._price))


_CHAT_FINISH: dict[str | None, Literal["stop", "length", "refusal", "other"]] = {
    "stop": "stop",
    None: "stop",
    "length": "length",
    "content_filter": "refusal",
}


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
