"""The body of a request: read once, sent on byte for byte but for the model, and known again after a kill."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from skilltune.journal.keys import digest

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

_VOLATILE = frozenset(
    {"metadata", "client_metadata", "prompt_cache_key", "safety_identifier", "user", "stream_options"}
)
"""Fields that differ between two equal requests: ids of sessions, devices and caches."""
_MASKS = (  # a literal that the text must contain, and the part that differs in two equal runs
    ("Chunk ID: ", re.compile(r"(?<=Chunk ID: )[0-9a-f]{4,16}\b")),
    ("Wall time: ", re.compile(r"(?<=Wall time: )[0-9.]+(?= seconds)")),
    ("Today's date", re.compile(r"(?<=Today's date)(?: is)?:? [\w ,./-]{6,40}")),
    ("<current_date>", re.compile(r"(?<=<current_date>)[^<]{6,40}")),
)


@dataclass(frozen=True, slots=True)
class Body:
    """A request's JSON. `spans` are the places of the fields' values in the text."""

    text: str
    data: Mapping[str, Any]
    spans: Mapping[str, tuple[int, int]]

    def for_model(self, model: str) -> bytes:
        """The same bytes with another model."""
        if self.data.get("model") == model:
            return self.text.encode("utf-8", "surrogatepass")
        if "model" not in self.spans:
            return json.dumps({**self.data, "model": model}, ensure_ascii=False).encode("utf-8", "replace")
        begin, end = self.spans["model"]
        changed = self.text[:begin] + json.dumps(model) + self.text[end:]
        return changed.encode("utf-8", "surrogatepass")


def read_body(raw: bytes) -> Body:
    """Raises ValueError if this is not one JSON object."""
    text = raw.decode("utf-8")
    data: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    try:
        at = _skip(text, 0)
        if text[at : at + 1] != "{":
            raise ValueError("the body is not a JSON object")
        at = _skip(text, at + 1)
        while text[at : at + 1] != "}":
            if text[at : at + 1] != '"':
                raise ValueError("a name is expected")
            name, at = scanstring(text, at + 1, True)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise ValueError("a colon is expected")
            begin = _skip(text, at + 1)
            data[name], at = _DECODER.raw_decode(text, begin)
            spans[name] = begin, at
            at = _skip(text, at)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
            elif text[at : at + 1] != "}":
                raise ValueError("a comma is expected")
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    if _skip(text, at + 1) != len(text):
        raise ValueError("something follows the object")
    return Body(text, data, spans)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def request_key(rollout_key: str, upstream: str, dialect: str, body: Body) -> str:
    """Key of a question: equal for the same question of the same rollout, also in another process.

    Left out is what differs between two runs of an agent on the same paths: ids of sessions and items, cache keys, the
    date, and the ids and times that Codex writes into the outputs of its tools.
    """
    known = {name: body.text[begin:end] for name, (begin, end) in body.spans.items() if name not in _VOLATILE}
    if isinstance(items := body.data.get("input"), list):
        known["input"] = json.dumps([_without_id(item) for item in items], ensure_ascii=False)
    content = hashlib.sha256()
    for name in sorted(known):
        content.update(f"{name}\0{_masked(known[name])}\0".encode("utf-8", "surrogatepass"))
    return digest("exchange", rollout_key, upstream, dialect, content.hexdigest())


def _masked(text: str) -> str:
    for literal, pattern in _MASKS:
        if literal in text:
            text = pattern.sub("…", text)
    return text


def _without_id(item: Any) -> Any:
    if not isinstance(item, dict) or item.get("type") == "item_reference":
        return item
    return {name: value for name, value in item.items() if name != "id"}


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_of(each)
