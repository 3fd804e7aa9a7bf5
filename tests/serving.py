"""A live page over real HTTP: the server in a thread, and a client that sets every header itself."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skilltune.ui.server import Server, make_server

PATIENCE_S = 60.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Event:
    type: str
    data: Any
    id: str


@dataclass
class Client:
    """Asks a server as a browser with its cookie does. A header that is None is left out."""

    server: Server
    cookie: str
    stop: Callable[[], None] = lambda: None  # ends the server, as Ctrl-C does

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)
        try:
            self._send(connection, method, path, body, headers)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str | None] | None = None) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, data: Any = None, headers: Mapping[str, str | None] | None = None) -> Reply:
        own: dict[str, str | None] = {
            "Origin": self.origin,
            "X-Skilltune": "page",
            "Content-Type": "application/json",
        }
        return self.ask("POST", path, json.dumps({} if data is None else data).encode(), {**own, **(headers or {})})

    @contextmanager
    def events(self, path: str, last: str | None = None) -> Iterator[Iterator[Event]]:
        """The events of a stream until it ends. Comments are left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)
        try:
            self._send(connection, "GET", path, None, {"Last-Event-ID": last})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield _events(response)
        finally:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str | None] | None,
    ) -> None:
        every = {"Host": f"127.0.0.1:{self.server.port}", "Cookie": self.cookie, **(headers or {})}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in every.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    fields: dict[str, str] = {}
    until = time.monotonic() + PATIENCE_S
    while line := response.readline():
        assert time.monotonic() < until, "the stream did not bring what the test waits for"
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id", ""))
            fields = {}
        else:
            fields = {}


def until(events: Iterator[Event], state: str) -> list[Event]:
    """The events up to the page that shows the state."""
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if event.type == "page" and event.data["state"] == state:
            return seen
    raise AssertionError(f"the stream ended before {state}: {[event.type for event in seen]}")


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Client]:
    """A server of the runs in a folder on a free port, and a client that has opened its link."""
    server = make_server(folder, **{"port": 0, **options})
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    task: list[asyncio.Task[None]] = []

    def work() -> None:
        task.append(loop.create_task(server.serve(ready.set)))
        loop.run_until_complete(task[0])
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        entered = Client(server, "").get(f"/?token={server.session.token}")
        assert entered.status == 303, entered
        cookie = entered.headers["set-cookie"].partition(";")[0]
        yield Client(server, cookie, lambda: _cancel(loop, task[0]))
    finally:
        _cancel(loop, task[0])
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)
