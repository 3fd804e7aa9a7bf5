"""Assembles a streamed answer into the shape of one that was not streamed.

Some gateways always stream, and some endpoints only stream. The events identify which of the three dialects they belong
to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def is_stream(content_type: str, text: str) -> bool:
    """True if this body is a stream of server-sent events."""
    start = text[:64].lstrip("\ufeff \t\r\n")
    return "event-stream" in content_type.lower() or start.startswith(("data:", "event:", ": "))


def assembled(text: str) -> Json:
    """The answer in the shape of one that was not streamed, or the error that the stream reports.

    Raises ValueError for unreadable events, and for a stream that ends before its answer is complete.
    """
    base: Json | None = None
    blocks: dict[int, Json] = {}
    chat = _Chat()
    done = False
    for data in _events(text):
        if data == "[DONE]":
            done = True
            continue
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event of the stream is not an object")
        kind = event.get("type")
        if kind == "error" or event.get("error"):
            return {"error": event.get("error") or event}
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            return event["response"]
        if kind == "message_start":
            base = dict(event["message"])
        elif kind == "content_block_start":
            blocks[int(event["index"])] = dict(event["content_block"])
        elif kind == "content_block_delta":
            _add_to_block(blocks[int(event["index"])], event["delta"])
        elif kind == "message_delta" and base is not None:
            usage = {**(base.get("usage") or {}), **(event.get("usage") or {})}
            base = {**base, **event["delta"], "usage": usage}
            done = done or bool(base.get("stop_reason"))
        elif "choices" in event:
            chat.add(event)
    if base is not None and done:
        return base | {"content": [_closed_block(blocks[index]) for index in sorted(blocks)]}
    if chat.seen and (done or chat.ended):
        return chat.body()
    raise ValueError("the stream ends before its answer is complete")


def _events(text: str) -> Iterator[str]:
    """Yield the data of each event. Lines of one event are joined; comments and other fields are skipped."""
    lines: list[str] = []
    for line in re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")):  # not at U+2028, which JSON may contain
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line.strip() and lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


class _Chat:
    """The part of a chat stream's first choice that has arrived so far."""

    def __init__(self) -> None:
        self.seen = False
        self.ended: Any = None
        self._usage: Any = None
        self._error: Any = None
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, Json] = {}

    def add(self, chunk: Json) -> None:
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            if choice.get("index") not in (0, None):
                continue
            self.seen = True
            self.ended = choice.get("finish_reason") or self.ended
            self._error = choice.get("error") or self._error
            for key, value in (choice.get("delta") or choice.get("message") or {}).items():
                if key == "tool_calls":
                    self._call(value or [])
                elif isinstance(value, str) and key not in ("role", "id"):
                    self._texts.setdefault(key, []).append(value)
                elif isinstance(value, list):
                    texts = (part["text"] for part in value if isinstance(part, dict) and part.get("text"))
                    self._texts.setdefault(key, []).extend(texts)

    def _call(self, calls: list[Json]) -> None:
        for call in calls:
            known = self._calls.setdefault(int(call.get("index") or 0), {"function": {"name": "", "arguments": []}})
            function = call.get("function") or {}
            known["id"] = call.get("id") or known.get("id")
            known["function"]["name"] = function.get("name") or known["function"]["name"]
            known["function"]["arguments"].append(function.get("arguments") or "")

    def body(self) -> Json:
        message: Json = {key: "".join(texts) for key, texts in self._texts.items()}
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call.get("id"),
                    "function": {"name": call["function"]["name"], "arguments": "".join(call["function"]["arguments"])},
                }
                for call in self._calls.values()
            ]
        choice = {"index": 0, "message": message, "finish_reason": self.ended, "error": self._error}
        return {"choices": [choice], "usage": self._usage}


_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def _add_to_block(block: Json, delta: Json) -> None:
    field = _DELTAS.get(delta.get("type", ""))
    if field is not None:
        block.setdefault("_parts", {}).setdefault(field, []).append(delta[field])


def _closed_block(block: Json) -> Json:
    """A content block completed with its deltas."""
    parts = {field: "".join(texts) for field, texts in block.pop("_parts", {}).items()}
    if partial := parts.pop("partial_json", ""):
        block["input"] = json.loads(partial)
    return block | {field: (block.get(field) or "") + text for field, text in parts.items()}
