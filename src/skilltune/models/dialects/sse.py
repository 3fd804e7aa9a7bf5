"""Server-sent events: bytes in, whole events out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

EVENT_BYTES = 16_000_000  # most bytes of one event; more is not an event of a model
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE = re.compile(rb"\r\n|\n|\r")


class Splitter:
    """Cuts a stream into events. `boundary` is True if no event is half read."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def boundary(self) -> bool:
        return not self._size

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the bytes of every event that this chunk completes, with the empty line that ends it.

        Raises ValueError for an event that is too long.
        """
        tail = self._parts[-1][-3:] if self._parts else b""
        if not _END.search(tail + chunk):  # the usual case for a long event: do not join it again for every chunk
            self._keep(chunk)
            return
        data = b"".join([*self._parts, chunk])
        self._parts, self._size, at = [], 0, 0
        for end in _END.finditer(data):
            yield data[at : end.end()]
            at = end.end()
        if at < len(data):
            self._keep(data[at:])

    def _keep(self, chunk: bytes) -> None:
        if chunk:
            self._parts.append(chunk if len(chunk) > 3 or not self._parts else self._parts.pop() + chunk)
            self._size += len(chunk)
        if self._size > EVENT_BYTES:
            raise ValueError(f"an event of the stream is longer than {EVENT_BYTES // 10**6} MB")

    def rest(self) -> bytes:
        """The bytes after the last whole event, once the stream has ended."""
        return b"".join(self._parts)


def data_of(event: bytes) -> str:
    """The data of one event, "" if it has none (a comment, for example)."""
    begin = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    data = event[begin + 5 :].strip()
    if (begin or event.startswith(b"data:")) and b"\n" not in data and b"\r" not in data:  # the usual case: one line
        return data.decode("utf-8", "replace")
    lines = _LINE.split(event.removeprefix(b"\xef\xbb\xbf"))
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    return data.decode("utf-8", "replace").strip()


def object_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object of one event, or None for `[DONE]`, a comment or an empty event. Raises ValueError for anything
    else."""
    data = data_of(event)
    if not data or data == "[DONE]":
        return None
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("an event of the stream is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("an event of the stream is not an object")
    return value


def event(data: dict[str, Any], *, named: bool = True) -> bytes:
    """The bytes of one event. `named` adds the line `event:` with its type."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return b"event: %b\ndata: %b\n\n" % (str(data["type"]).encode(), text) if named else b"data: %b\n\n" % text


DONE = b"data: [DONE]\n\n"
