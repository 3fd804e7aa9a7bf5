"""Destinations for a run's metrics: metrics.jsonl always, and the sinks in `log.sinks`.

A sink never delays or ends the training. Each works in its own thread, and a sink that fails is turned off with one
warning. Nothing is lost, because rows come from the journal: running the same command again sends all rows once more,
and a sink adds those that it lacks.

Sinks are found by name: first the ones here, then installed plug-ins (entry points of the group `skilltune.sinks`).
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, runtime_checkable

from skilltune import plugins
from skilltune.api_keys import is_key_variable
from skilltune.config import Config
from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.sinks.live import Live
from skilltune.sinks.metrics import Metrics, Row, Rows

CLOSE_S = 60.0  # time at the end of a run to send what remains


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Constructor argument of a sink."""

    id: str  # eight hex digits: the same for all processes of the run, different in a fork
    name: str
    folder: Path
    project: str
    config: Mapping[str, Any]  # resolved; contains no secrets


@runtime_checkable
class Sink(Protocol):
    """A destination for metrics. Both members are called from one thread of its own, so they may block.

    `log` gets every row of the run in order, starting at row 0 in each process of the run. The first call has the rows
    in the journal, later calls have the new ones. A sink must not log rows again that it has from an earlier process.
    The file of the best skill exists before the `finish` row. `close` is called once, even if the run was broken off.
    An exception from either member turns the sink off for this process and does not fail the run.
    """

    def log(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


Maker = Callable[[RunInfo], Sink]

_SINKS = {  # name (also the name of the extra) → class, required packages
    "wandb": ("skilltune.sinks.wandb:Wandb", ("wandb",)),
    "mlflow": ("skilltune.sinks.mlflow:Mlflow", ("mlflow", "sqlalchemy", "alembic")),
}


def find_sink(name: str) -> Maker:
    """The maker of the sink with this name. Raises `UsageError` for an unknown name or a missing extra."""
    if name in _SINKS:
        place, packages = _SINKS[name]
        if missing := [package for package in packages if find_spec(package) is None]:
            raise UsageError(
                f'log.sinks: "{name}" needs {" and ".join(missing)}, which is not installed: '
                f"pip install 'skilltune[{name}]', or take it out of log.sinks"
            )
        module, _, attribute = place.partition(":")
        return getattr(import_module(module), attribute)
    if (plugin := plugins.find("sink", name)) is not None:
        return plugin.value
    known = ", ".join([*_SINKS, *plugins.names("sink")])
    raise UsageError(
        f'log.sinks: unknown sink "{name}"; known: {known} (plug-ins: entry point group {plugins.group("sink")})'
    )


def _make(name: str, maker: Maker, info: RunInfo) -> Sink:
    try:
        return maker(info)
    except Exception as error:  # a client library may raise anything; nothing is spent yet
        raise UsageError(
            f"log.sinks: {name} cannot start ({type(error).__name__}: {error}); fix it or take it out"
        ) from error


@asynccontextmanager
async def recording(cfg: Config, run: Run) -> AsyncIterator[Live]:
    """Send the run's rows to metrics.jsonl and to the configured sinks, and write live.json, while the block runs. The
    block gets the writer of live.json, to name the executor of the run.

    Raises `UsageError` before the block if a sink cannot be created. A sink that fails later is turned off, with one
    event `warning` {about, why}.
    """
    makers = [(name, find_sink(name)) for name in dict.fromkeys(cfg.log.sinks)]
    sinks: list[tuple[str, Sink]] = [("metrics.jsonl", Metrics(run.folder))]
    if makers:
        id = run.decide("log id", lambda: secrets.token_hex(4))
        info = RunInfo(id, run.folder.resolve().name, run.folder.resolve(), cfg.log.project, cfg.to_json())
        sinks += await asyncio.to_thread(lambda: [(name, _make(name, maker, info)) for name, maker in makers])
    rows = Rows(run)
    feeds = [_Feed(name, sink) for name, sink in sinks]

    def put(new: Sequence[Row]) -> None:
        for feed in feeds:
            feed.put(new)

    def warn() -> None:
        for feed in [feed for feed in feeds if feed.failure is not None]:
            feeds.remove(feed)
            error = feed.failure
            why = f"off until the same command runs again, which adds what is missing ({type(error).__name__}: {error})"
            run.record("warning", about=f"log to {feed.name}", why=why)

    def listen(type: str, data: Mapping[str, Any]) -> None:
        board.hear(type, data)
        if new := rows.hear(type):
            put(new)
        warn()

    if rows.past:
        put(rows.past)
    board = Live(run)
    run.listeners.append(listen)
    try:
        yield board
    finally:
        run.listeners.remove(listen)
        board.close()
        await asyncio.to_thread(_close, list(feeds))
        warn()


class _Feed:
    """A sink with a queue, and the thread that consumes it."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self.failure: Exception | None = None
        self._sink = sink
        self._queue: SimpleQueue[Sequence[Row] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"log to {name}", daemon=True)
        self._thread.start()

    def put(self, rows: Sequence[Row]) -> None:
        self._queue.put(rows)

    def end(self) -> None:
        self._queue.put(None)

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.failure = self.failure or TimeoutError(f"it was still busy {CLOSE_S:g} s after the run's end")

    def _work(self) -> None:
        try:
            while (rows := self._queue.get()) is not None:
                self._sink.log(rows)
        except Exception as error:  # a client library may raise anything, which must not stop the training
            self.failure = error
        try:
            self._sink.close()
        except Exception as error:
            self.failure = self.failure or error


def _close(feeds: Sequence[_Feed]) -> None:
    """Let all sinks finish in parallel."""
    until = time.monotonic() + CLOSE_S
    for feed in feeds:
        feed.end()
    for feed in feeds:
        feed.join(max(0.0, until - time.monotonic()))


_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)S?$", re.IGNORECASE)


@contextmanager
def only_secrets_of(prefix: str) -> Iterator[None]:
    """Remove secrets of other programs from the environment while a client library starts a process.

    Secrets are recognised by their names or by `key_env`. This changes the environment of the whole process, so other
    threads miss them in the meantime.
    """
    secret = {name: v for name, v in os.environ.items() if _SECRET.search(name) or is_key_variable(name)}
    hidden = {name: v for name, v in secret.items() if not name.startswith(prefix)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


__all__ = ["Metrics", "Row", "RunInfo", "Sink", "find_sink", "only_secrets_of", "recording"]
