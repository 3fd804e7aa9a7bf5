"""Reads the shown runs again when they change, and sends them to every tab as server-sent events.

All tabs that show one thing share one reader. It looks for changes while somebody watches, and it rests at least as
long as it read, so a large run does not keep the machine busy. Reading happens in threads, because SQLite blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from skilltune.errors import SkilltuneError
from skilltune.history.page import page, summary
from skilltune.history.record import Rollouts
from skilltune.journal.run import Run
from skilltune.ui.guard import embeddable
from skilltune.ui.launch import reap
from skilltune.ui.runs import Runs, UnknownRun, signature

T = TypeVar("T")
EVERY_S = 1.0  # least time between two looks
PING_S = 10.0  # a silent stream says this often that it is there, which finds clients that have gone
MOST_PAGES = 8  # runs whose page is kept


@dataclass(eq=False)
class Watch(Generic[T]):
    """A value that is read again if its signature changed. `read` and `look` run in threads, one at a time."""

    look: Callable[[], Hashable]
    read: Callable[[], T]
    number: int = 0  # of the value: 1, 2, …
    value: T | None = None
    _seen: Hashable = None
    _took: float = 0.0
    _watchers: int = 0
    _polling: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def current(self) -> T:
        """The value now. Raises what `read` raises."""
        async with self._reading:
            seen = await asyncio.to_thread(self.look)
            if seen != self._seen or self.value is None:
                began = time.monotonic()
                value = await asyncio.to_thread(self.read)
                self._seen, self._took = seen, time.monotonic() - began
                if value != self.value:
                    self.value, self.number = value, self.number + 1
                    self._changed.set()
                    self._changed = asyncio.Event()
            assert self.value is not None
            return self.value

    async def values(self, closing: asyncio.Event) -> AsyncGenerator[T | None, None]:
        """Yield the value now and whenever it changed, and None if nothing changed for a while. Ends with `closing`."""
        value, sent = await self.current(), self.number
        yield value
        self._watchers += 1
        try:
            if self._polling is None:
                self._polling = asyncio.create_task(self._poll())
            while not closing.is_set():
                if self.number == sent:
                    await _first(self._changed, closing, self._polling, seconds=PING_S)
                if closing.is_set():
                    return
                if self._polling.done():
                    self._polling.result()  # raises: the run is gone or damaged
                if self.number == sent:
                    yield None
                elif self.value is not None:
                    sent = self.number
                    yield self.value
        finally:
            self._watchers -= 1
            if not self._watchers and self._polling is not None:
                self._polling.cancel()
                self._polling = None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(max(EVERY_S, self._took))
            await self.current()


async def _first(*events: asyncio.Event | asyncio.Task[None], seconds: float) -> None:
    """Wait until one of the events is set or one of the tasks has ended, at most so many seconds."""
    own = [asyncio.ensure_future(event.wait()) for event in events if isinstance(event, asyncio.Event)]
    try:
        tasks = [event for event in events if isinstance(event, asyncio.Task)]
        await asyncio.wait([*own, *tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Picture:
    """A run as it is shown. `text` is its page as JSON; `log` its lines with their times, the last ones only."""

    state: str
    text: str
    log: tuple[tuple[float, str], ...]


@dataclass(eq=False)
class _Reader:
    """Reads a run as it is shown. It keeps the rollouts that it has read, as long as the folder holds the same run."""

    runs: Runs
    id: str
    _began: float | None = None
    _known: Rollouts = field(default_factory=Rollouts)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # a cancelled reader may still be in its thread

    def __call__(self) -> Picture:
        with self._lock, Run.read(self.runs.folder(self.id)) as run:
            if run.began != self._began:
                self._began, self._known = run.began, Rollouts()
            shown = page(run, self._known)
        log = tuple((line["at"], embeddable({**line, "line": line["text"]})) for line in shown["log"])
        return Picture(shown["state"], embeddable({**shown, "id": self.id}), log)


@dataclass(eq=False)
class Feeds:
    """The streams of one server. `closing` ends all of them."""

    runs: Runs
    read_only: bool
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    _pages: dict[str, Watch[Picture]] = field(default_factory=dict)
    _summaries: dict[Path, tuple[Hashable, dict[str, Any]]] = field(default_factory=dict)
    _all: Watch[str] | None = None

    @property
    def all(self) -> Watch[str]:
        """The list of all runs, as JSON."""
        if self._all is None:
            self._all = Watch(self._looks, self._read_list)
        return self._all

    def run(self, id: str) -> Watch[Picture]:
        """A run. Raises `UnknownRun`."""
        if id not in self._pages:
            self.runs.folder(id)
            for idle in [key for key, watch in self._pages.items() if not watch._watchers]:
                if len(self._pages) >= MOST_PAGES:
                    del self._pages[idle]
            self._pages[id] = Watch(partial(self._look, id), _Reader(self.runs, id))
        return self._pages[id]

    def _look(self, id: str) -> Hashable:
        return signature(self.runs.folder(id))

    def _looks(self) -> Hashable:
        reap()
        return tuple((id, signature(folder)) for id, folder in self.runs.folders().items())

    def _read_list(self) -> str:
        folders = self.runs.folders()
        self._summaries = {folder: row for folder, row in self._summaries.items() if folder in folders.values()}
        return embeddable({"runs": [self._row(*each) for each in folders.items()], "read_only": self.read_only})

    def _row(self, id: str, folder: Path) -> dict[str, Any]:
        """The row of a run in the list. A run that cannot be read has an `error` in it."""
        seen = signature(folder)
        known = self._summaries.get(folder)
        if known is None or known[0] != seen:
            try:
                with Run.read(folder) as run:
                    row = summary(run)
            except SkilltuneError as error:
                row = {"name": folder.name, "state": "stopped", "error": str(error)}
            known = self._summaries[folder] = (seen, {**row, "id": id})
        return known[1]

    # -- server-sent events

    async def run_events(self, id: str, last: str) -> AsyncGenerator[str, None]:
        """The stream of a run: its state and its page at once and after each change, and each new line of its log.

        `last` is the id of the last event that the client has: it gets the lines since then.
        """
        state, logged, first = "", _float(last), True
        try:
            async with contextlib.aclosing(self.run(id).values(self.closing)) as values:
                async for picture in values:
                    if picture is None:
                        yield ": ping\n\n"
                        continue
                    if first and not last:
                        logged = max((at for at, _ in picture.log), default=0.0)  # the page holds these lines
                    for at, line in picture.log:
                        if at > logged:
                            logged = at
                            yield event("log", line, logged)
                    if picture.state != state:
                        state = picture.state
                        yield event("state", embeddable({"state": state, "read_only": self.read_only}), logged)
                    yield event("page", picture.text, logged)
                    first = False
        except UnknownRun as error:
            yield event("gone", embeddable({"error": str(error)}), logged)
        except SkilltuneError as error:
            yield event("problem", embeddable({"error": str(error)}), logged)
        if self.closing.is_set():
            yield event("end", embeddable({"why": "the server stops"}), logged)

    async def list_events(self) -> AsyncGenerator[str, None]:
        """The stream of the list."""
        async with contextlib.aclosing(self.all.values(self.closing)) as values:
            async for text in values:
                yield ": ping\n\n" if text is None else event("runs", text)
        if self.closing.is_set():
            yield event("end", embeddable({"why": "the server stops"}))


def event(type: str, data: str, id: float | None = None) -> str:
    """One server-sent event. `data` is one line."""
    return f"{'' if id is None else f'id: {id!r}{chr(10)}'}event: {type}\ndata: {data}\n\n"


def _float(text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    return 0.0
