"""The server of the live page: one process on this machine, until it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from skilltune.errors import UsageError
from skilltune.ui.actions import Actions
from skilltune.ui.app import make_app
from skilltune.ui.feed import Feeds
from skilltune.ui.guard import Guard, Hosts, Session
from skilltune.ui.runs import Runs

PORT = 8377  # a fixed port, so that the address is the same tomorrow; another one if it is taken
CLOSE_S = 1.0  # time for answers under way when the server stops
LOCAL = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Server:
    """A server whose port is bound. `session` has the secrets of its links."""

    socket: socket.socket
    host: str
    session: Session
    feeds: Feeds
    guard: Guard

    @property
    def port(self) -> int:
        return self.session.port

    def link(self, token: str, path: str = "/") -> str:
        """An address with a token. Opening it gives the browser its cookie."""
        host = "127.0.0.1" if self.host in ANY else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{path}?token={token}"

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled, then end all streams and return."""
        config = uvicorn.Config(
            self.guard,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(CLOSE_S),
        )
        server = _Uvicorn(config)
        serving = asyncio.create_task(server.serve(sockets=[self.socket]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            ready()
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            pass
        finally:
            self.feeds.closing.set()
            server.should_exit = True
            while not serving.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([serving])


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are handled by whoever runs the server


def make_server(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    read_only: bool = False,
    expose: bool = False,
    project: Path | None = None,
    may_miss: bool = False,
) -> Server:
    """Bind a server for the runs in a folder. `project` is the folder of skills and tasks, by default the current one.

    Without a port, `PORT` is used, or a free one if it is taken. `may_miss`: the folder need not exist yet. Raises
    `UsageError` if the folder is missing, if the port is taken, and for a host that other machines can reach, unless
    `expose` is True.
    """
    runs = Runs.of(folder)
    if not runs.root.is_dir() and not (may_miss and not runs.root.exists()):
        raise UsageError(f"there is no folder {folder}: name the folder of your runs, or one run")
    if host not in LOCAL and not expose:
        raise UsageError(
            f"--host {host} lets other machines reach the page, over plain HTTP: whoever reads the traffic can start "
            "runs with your keys. Use an SSH tunnel to 127.0.0.1 instead, or add --expose if you mean it"
        )
    bound = _bind(host, port)
    session = Session(bound.getsockname()[1])
    feeds = Feeds(runs, read_only)
    actions = Actions(runs, (project or Path.cwd()).resolve(), read_only)
    names = {*LOCAL, host.lower()} if host in LOCAL else {host.lower()}
    if host in ANY:
        names = {*LOCAL, socket.gethostname().lower(), socket.getfqdn().lower()}
    hosts = Hosts(session.port, frozenset(names), addresses=host in ANY)
    return Server(bound, host, session, feeds, Guard(make_app(feeds, actions), session, hosts))


def _bind(host: str, port: int | None) -> socket.socket:
    for wanted in [port] if port is not None else [PORT, 0]:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, wanted), family=family, backlog=128)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                if port is None:
                    continue
                raise UsageError(
                    f"port {port} is in use, perhaps by another `skilltune ui`: choose another with --port, or leave "
                    "--port out for a free one"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise UsageError(f"port {wanted} may not be used by you: choose one above 1023") from error
            raise UsageError(f"cannot listen on {host}: {error.strerror or error}") from error
    raise UsageError(f"cannot listen on {host}: no port is free")
