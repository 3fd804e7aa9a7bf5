"""A scripted HTTP server on 127.0.0.1, for tests of what real endpoints do, misbehaviour on the wire included."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request that arrived. Header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """The response to send: `body` is JSON unless it is text; `headers` win over the default ones. `cut` sends only
    so many bytes of it, then drops the connection; `drop` sends nothing at all; `drip` sends one byte every so many
    seconds; `raw` is sent in place of all else; `hang` says nothing but `raw`, and keeps the connection open."""

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    drop: bool = False
    hang: bool = False
    drip: float | None = None
    raw: bytes | None = None


class Server:
    """`async with Server(answer, answer, …) as server`: one answer per request, the last one for all that follow.

    A callable in place of an answer is given the call and returns one.
    """

    def __init__(self, *answers: Answer | Callable[[Call], Answer], tls: ssl.SSLContext | None = None) -> None:
        self._answers, self._tls = list(answers), tls
        self.calls: list[Call] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self._open: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        sent = await reader.readexactly(int(headers.get("content-length", "0")))
        call = Call(head[0].split(" ")[1], headers, json.loads(sent) if sent else None)
        self.calls.append(call)
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if callable(answer):
            answer = answer(call)
        if answer.drop:
            return False
        if answer.raw is not None:
            writer.write(answer.raw)
        if answer.hang:
            await asyncio.sleep(3600)
        if answer.raw is not None:
            return False
        is_text = isinstance(answer.body, str)
        data = (answer.body if is_text else json.dumps(answer.body)).encode()
        sent_headers = {
            "Content-Type": "text/plain" if is_text else "application/json",
            "Content-Length": str(len(data)),
            **answer.headers,
        }
        lines = [f"HTTP/1.1 {answer.status} Scripted", *(f"{name}: {value}" for name, value in sent_headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if answer.drip is not None:
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(answer.drip)
            return True
        writer.write(data if answer.cut is None else data[: answer.cut])
        await writer.drain()
        return answer.cut is None
