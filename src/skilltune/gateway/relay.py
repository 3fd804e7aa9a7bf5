"""The agent's side of an exchange: a stream or one JSON body, written as soon as there is something to write."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from skilltune.models import dialects
from skilltune.models.dialects import Dialect, Json
from skilltune.models.dialects.canonical import dumped

if TYPE_CHECKING:
    from aiohttp import web


class Relay:
    """Writes to one agent's request.

    `committed` is True once a part of an answer was written; from then on the exchange cannot be tried again. `gone` is
    True once the agent has closed the connection; what is written after that is dropped.
    """

    def __init__(self, request: web.BaseRequest, dialect: Dialect, *, streams: bool) -> None:
        self.dialect: Dialect = dialect
        self.streams = streams
        self.committed = self._lost = False
        self.response: web.StreamResponse | None = None
        self._request = request
        self._written = time.monotonic()

    @property
    def gone(self) -> bool:
        transport = self._request.transport
        return self._lost or transport is None or transport.is_closing()

    async def write(self, data: bytes) -> None:
        """Write events of an answer."""
        self.committed = True
        await self._send(data)

    async def ping(self, after_s: float) -> None:
        """Keep a waiting agent waiting, if it has heard nothing for so many seconds."""
        if self.streams and time.monotonic() - self._written >= after_s * 0.9:
            await self._send(dialects.ping(self.dialect))

    async def finish(self, body: Json, events: Iterable[bytes]) -> None:
        """Write a whole answer that was not written yet: as a stream or in one piece, as the agent asked for it."""
        if self.streams:
            await self.write(b"".join(events))
        else:
            self.respond(200, body)
            self.committed = True

    async def fail(self, status: int, message: str) -> None:
        """Write an error. Inside a stream that has begun it is an event."""
        if self.response is not None:
            await self._send(dialects.error_event(self.dialect, status, message))
        else:
            self.respond(status, dialects.error_body(self.dialect, status, message))

    def respond(self, status: int, body: Json) -> None:
        self.response = _json(status, body)

    async def _send(self, data: bytes) -> None:
        from aiohttp import web

        self._written = time.monotonic()
        if self.gone:
            return
        try:
            if self.response is None:
                headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
                self.response = web.StreamResponse(headers=headers)
                await self.response.prepare(self._request)
            await self.response.write(data)
        except (ConnectionError, RuntimeError):  # RuntimeError: the transport is closed
            self._lost = True


def _json(status: int, body: Json) -> web.Response:
    from aiohttp import web

    data = dumped(body).encode("utf-8", "replace")
    return web.Response(status=status, body=data, headers={"Content-Type": "application/json"})
