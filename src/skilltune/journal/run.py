"""The journal of a run. It memoises every paid call, so running the same command again resumes the run.

The training loop needs no checkpoint code. `memo(key, …)` pays for an answer at most once, and `decide(key, …)` makes a
decision at most once. A loop whose only inputs are these two replays to the point where it stopped and continues from
there. `run.db` is the only source of truth; all other files of the folder are derived and may be deleted.

A killed process loses the calls under way, answers that are still being scored, and about two seconds of elapsed time.
The resumed run pays for these calls again. Every stored answer is paid once.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from skilltune.aio import background
from skilltune.errors import RunError, SkilltuneError, Stopped, UsageError
from skilltune.files import make_private, write_atomic
from skilltune.journal.keys import digest
from skilltune.journal.sqlite import _connect, _connect_reader, _create, _damaged, _is_locked, _refusal, _take_lock
from skilltune.journal.under_way import UnderWay
from skilltune.usage import Usage

T = TypeVar("T")

# Memos of these kinds belong to the history of one run. All others are paid answers, which another run may reuse.
DECISIONS = "fix"
FAILED = "failed attempt"
EXCHANGE = "target exchange"  # one answer of a model to an agent; the agent's rollouts then cost nothing themselves
PROBE = "probe"  # shows that a model answers; a run that paid for nothing else is not bound by its config
ELAPSED = "elapsed"  # kind and key of a rewritable memo: total seconds of all processes of the run
WRITER = "pid"  # kind and key of a rewritable memo: id of the process that opened the run for writing last
REFRESH_S = 2.0  # most time that a killed process loses, plus the time since its last answer
MILESTONES = frozenset({"start", "verdict"})  # events that every process of a run repeats in the same order
_OWN = f"kind IN ('{DECISIONS}', '{FAILED}', '{ELAPSED}', '{WRITER}')"  # not a paid answer

_COST = tuple(field.name for field in fields(Usage))
_COUNTS = tuple(name for name in _COST if name != "usd")
_TOTALS = (
    "SELECT kind, max(t), max(json_type(usage, '$.usd') = 'null'), coalesce(sum(json_extract(usage, '$.usd')), 0.0), "
    + ", ".join(f"coalesce(sum(json_extract(usage, '$.{name}')), 0)" for name in _COUNTS)
    + " FROM memo GROUP BY kind"
)

_SANE = 10**15  # limit of calls, tokens or seconds in a journal; sums of larger values would overflow


def by_work(spent: Mapping[str, Usage]) -> list[tuple[str, Usage]]:
    """The cost of each kind of work, sorted. The exchanges of agents are added to the work that they belong to."""
    rows: dict[str, Usage] = {}
    for kind, usage in spent.items():
        owner = owner_of(kind)
        rows[owner] = rows.get(owner, Usage()) + usage
    return sorted(rows.items())


def _stated(name: str, types: str, nothing: str) -> str:
    """SQL condition: a number of a memo's usage is missing, or has a plausible value."""
    kind, value = f"json_type(usage, '$.{name}')", f"json_extract(usage, '$.{name}')"
    return f"(coalesce({kind}, 'none') IN ({nothing}) OR {kind} IN ({types}) AND {value} BETWEEN 0 AND {_SANE})"


_NUMBERS = " AND ".join(
    [*(_stated(name, "'integer'", "'none'") for name in _COUNTS), _stated("usd", "'integer', 'real'", "'none', 'null'")]
)
_ODD = (
    "SELECT key FROM memo WHERE NOT (typeof(key) = 'text' AND typeof(kind) = 'text' AND typeof(value) = 'text' AND "
    f"typeof(t) IN ('real', 'integer') AND abs(t) < {_SANE} AND typeof(usage) = 'text' AND (usage = '{{}}' OR "
    f"CASE WHEN json_valid(usage) THEN json_type(usage) = 'object' AND {_NUMBERS} ELSE 0 END)) LIMIT 1"
)

Listener = Callable[[str, Mapping[str, Any]], None]


def exchange_kind(kind: str) -> str:
    """The kind of the exchanges of an agent that gives answers of a kind. The exchanges then hold the cost."""
    return EXCHANGE if kind == "rollout" else f"{kind} exchange"


def owner_of(kind: str) -> str:
    """The kind of the answers that exchanges of a kind belong to; a kind of its own for everything else."""
    return "rollout" if kind == EXCHANGE else kind.removesuffix(" exchange")


@dataclass(frozen=True, slots=True)
class Paid:
    """Result of a paid call: a JSON value and its cost."""

    value: Any
    usage: Usage


@dataclass(slots=True)
class _Flight:
    """A call under way, with the number of callers that wait for it."""

    task: asyncio.Task[Any]
    waiters: int = 0


class Run:
    """One run folder, opened by one process.

    `listeners` are called with every event (type, data) when it happens. A replay calls them again, but the journal
    stores each event once. `under_way` are the calls that this process waits for.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection, lock: sqlite3.Connection | None) -> None:
        self.folder = folder
        self.place = folder.absolute()  # stays the same if a scorer changes the working directory
        self.listeners: list[Listener] = []
        self.under_way = UnderWay()
        self._db, self._lock = db, lock
        self._flights: dict[str, _Flight] = {}
        self._usage: dict[str, Usage] = {}
        # Recorded events that this process has not repeated yet, by content. They are read with the first event.
        self._past: dict[str, deque[int]] | None = None
        self._floor = 0  # the last milestone of this process; earlier events cannot be repeated
        self._refuse_odd()
        with self.reading():
            self._last_t = float(self._rows("SELECT coalesce(max(t), 0.0) FROM event")[0][0])
            if not self._last_t < _SANE:
                raise ValueError(f"an event happened at {self._last_t}")
        for kind, t, unpriced, usd, *counts in self._rows(_TOTALS):
            usage = Usage(**dict(zip(_COUNTS, counts, strict=True)), usd=None if unpriced else usd)
            if usage != Usage():
                self._usage[kind] = usage
            self._last_t = max(self._last_t, t)
        counted = "SELECT count(*) FROM memo WHERE kind = ? AND json_extract(value, '$.estimated')"
        self.estimated: int = self._rows(counted, FAILED)[0][0]  # failed attempts with estimated cost
        with self.reading():
            before = self.recall(ELAPSED)
            self._elapsed_before = float(before[0]) if before else 0.0
        self._began = self._refreshed = time.monotonic()

    # -- opening and closing

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any] | None = None, *, may_differ: Iterable[str] = ()) -> Run:
        """Open or create a run folder for writing. `config` is the resolved configuration as nested JSON.

        Raises `RunError` with the differing keys if an existing run has another config, apart from keys that start with
        one of `may_differ` (dotted prefixes). Raises it as well if another process writes to the folder, if the folder
        is not writable, or if the database is damaged or newer. New files are readable by their owner only.
        """
        folder = Path(folder)
        try:
            make_private(folder)
        except OSError as error:
            raise RunError(
                f"cannot use the run folder {folder}: {error.strerror or error}. Choose another with `--run DIR`."
            ) from error
        with ExitStack() as undo:
            lock = undo.enter_context(closing(_take_lock(folder)))
            db = undo.enter_context(closing(_connect(folder / "run.db")))
            run = cls(folder, db, lock)
            run._refresh_elapsed()  # finds an unwritable database before anything is paid
            if config is not None:
                run._check_config(config, tuple(may_differ))
            run._rewrite(WRITER, os.getpid())
            undo.pop_all()
        return run

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Open an existing run for reading. Another process may write to it at the same time, and the folder may be
        read-only."""
        path = Path(folder) / "run.db"
        if not path.is_file():
            raise RunError(f"no run in {folder}: it has no run.db. `skilltune train` creates one and names its folder.")
        with ExitStack() as undo:
            db = undo.enter_context(closing(_connect_reader(path)))
            run = cls(Path(folder), db, None)
            undo.pop_all()
        return run

    def close(self) -> None:
        lock, self._elapsed_before, self._lock = self._lock, self.elapsed_s, None
        if lock is not None:
            with suppress(RunError):  # for example a full disk; the error that ended the run is the better message
                self._refresh_elapsed()
            with suppress(sqlite3.Error):  # readers that have the file open would keep the log from being moved in
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        if lock is not None:
            lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the run. If an exception ended it, journal the reason."""
        if kind is not None and self._lock is not None:
            why = str(error) if isinstance(error, Exception) else "interrupted"
            with suppress(RunError):
                data = {"reason": why or kind.__name__, "seconds": round(self.elapsed_s, 3)}
                if isinstance(error, Stopped) and error.larger:
                    data["larger"] = error.larger
                self._record("stopped", _json(data))
        self.close()

    # -- the primitives of replay: memo and decide

    async def memo(self, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        """The value of `fn`, paid at most once per key for the whole life of the run.

        Callers that ask for the same key at the same time share one call (single flight). If the call fails, all of
        them get the error and nothing is stored, so the next call tries again. Cancelling the last waiter cancels `fn`.
        """
        if (known := self.recall(key)) is not None:
            return known[0]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(background(self._pay(key, kind, fn)))
            flight.task.add_done_callback(lambda _: self._finish_flight(key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._finish_flight(key, flight)  # later callers make a call of their own
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _finish_flight(self, key: str, flight: _Flight) -> None:
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # mark the exception as retrieved, because every waiter may have been cancelled
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _pay(self, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        paid = await fn()
        self.put(key, kind, paid)
        return paid.value

    def decide(self, key: str, make: Callable[[], T]) -> T:
        """The JSON value of `make()`, decided once per run. A replay returns the first decision."""
        if (known := self.recall(key)) is not None:
            return known[0]
        value = make()
        self.put(key, DECISIONS, Paid(value, Usage()))
        return value

    def recall(self, key: str) -> tuple[Any] | None:
        """The stored value in a 1-tuple, or None. The tuple distinguishes a stored null from a missing value."""
        rows = self._rows("SELECT value FROM memo WHERE key = ?", key)
        return (self._load(rows[0][0]),) if rows else None

    def put(self, key: str, kind: str, paid: Paid) -> None:
        """Store a value under its key. An existing value is not changed."""
        cost = {name: number for name in _COST if (number := getattr(paid.usage, name)) != 0}
        self._write(
            "INSERT OR IGNORE INTO memo VALUES (?, ?, ?, ?, ?)",
            (key, kind, _json(paid.value), _json(cost), self._next_t()),
        )
        if cost:
            self._usage[kind] = self._usage.get(kind, Usage()) + paid.usage
        if time.monotonic() - self._refreshed >= REFRESH_S:
            self._refresh_elapsed()

    def record_failure(self, role: str, why: str, usage: Usage | None = None, *, estimated: bool = False) -> None:
        """Record a failed attempt at a call. It has no value but may have been billed. `estimated` marks an unknown
        cost."""
        key = digest("failed attempt", role, time.time_ns(), random.random())
        value = {"role": role, "why": why, **({"estimated": True} if estimated else {})}
        self.estimated += estimated
        self.put(key, FAILED, Paid(value, usage or Usage(calls=1)))

    def _next_t(self) -> float:
        """The current time for a new memo or event. It always increases, even if the clock is set back."""
        self._last_t = max(time.time(), math.nextafter(self._last_t, math.inf))
        return self._last_t

    # -- costs

    @property
    def usage(self) -> Mapping[str, Usage]:
        """Costs of this run so far, by kind of call, over all its processes."""
        return self._usage

    def paid(self, kind: str) -> tuple[int, Usage]:
        """(number of paid answers of a kind, their total cost). An agent's answers are paid exchange by exchange."""
        exchanges = self._usage.get(exchange_kind(kind))
        condition = "kind = ?" if exchanges else "kind = ? AND usage != '{}'"
        count = self._rows(f"SELECT count(*) FROM memo WHERE {condition}", kind)[0][0]
        return count, self._usage.get(kind, Usage()) + (exchanges or Usage())

    @property
    def spent(self) -> bool:
        """True if the run paid for more than a probe."""
        return bool(self.usage.keys() - {PROBE})

    @property
    def elapsed_s(self) -> float:
        """Seconds that this run was open for writing, over all its processes, measured by a monotonic clock.

        A reader gets the value recorded when it opened the run.
        """
        return self._elapsed_before + (time.monotonic() - self._began if self._lock is not None else 0.0)

    def _refresh_elapsed(self) -> None:
        self._refreshed = time.monotonic()
        self._rewrite(ELAPSED, round(self.elapsed_s, 3))

    def _rewrite(self, key: str, value: Any) -> None:
        self._write(
            "INSERT INTO memo VALUES (?, ?, ?, '{}', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value, "
            "t = excluded.t",
            (key, key, _json(value), self._next_t()),
        )

    @property
    def writer(self) -> int | None:
        """Id of the process that has the run open for writing, or None."""
        known = self.recall(WRITER) if _is_locked(self.folder) else None
        return known[0] if known and isinstance(known[0], int) else None

    def payments(self) -> list[tuple[float, Usage]]:
        """(time, usage) of all payments, ordered by time."""
        rows = self._each("SELECT t, usage FROM memo WHERE usage != '{}' ORDER BY t")
        return [(t, self._load_usage(usage)) for t, usage in rows]

    # -- events, texts, files

    def record(self, type: str, **data: Any) -> None:
        """Record an event (JSON data, no secrets) and notify the listeners. An event that a replay repeats is stored
        once."""
        text = _json(data)
        if not self._is_repeated(type, text):
            self._record(type, text)
        self.notify(type, **data)

    def note(self, type: str, **data: Any) -> None:
        """Record an event about this process, outside the replayed sequence. An event equal to the last one of its type
        is not stored again."""
        text = _json(data)
        if self._rows("SELECT json FROM event WHERE type = ? ORDER BY id DESC LIMIT 1", type) != [(text,)]:
            self._record(type, text)
        self.notify(type, **data)

    def _record(self, type: str, text: str) -> None:
        self._write("INSERT INTO event (t, type, json) VALUES (?, ?, ?)", (self._next_t(), type, text))
        if type in MILESTONES:
            (self._floor,) = self._rows("SELECT max(id) FROM event")[0]

    def _is_repeated(self, type: str, text: str) -> bool:
        """True if this process repeats a recorded event.

        Each recorded event can be repeated once per process, and only after the milestone that this process has
        reached. So an event that ended an earlier process is recorded again if it ends this one later. Between two
        milestones the order is free, because concurrent calls end in any order.
        """
        if self._past is None:
            self._past = {}
            for id, *event in self._each("SELECT id, type, json FROM event ORDER BY id"):
                self._past.setdefault(digest(*event), deque()).append(id)
        left = self._past.get(digest(type, text), deque())
        while left and left[0] <= self._floor:
            left.popleft()
        if not left:
            return False
        id = left.popleft()
        if type in MILESTONES:
            self._floor = id
        return True

    def notify(self, type: str, **data: Any) -> None:
        """Notify the listeners without recording the event: for progress that need not be stored."""
        for listener in self.listeners:
            listener(type, data)

    def events(self, type: str | None = None) -> list[tuple[float, str, dict[str, Any]]]:
        """(time, type, data) of the recorded events in order, of all types or of one."""
        where, values = ("WHERE type = ?", (type,)) if type else ("", ())
        rows = self._each(f"SELECT t, type, json FROM event {where} ORDER BY id", *values)
        return [(t, kind, self._load_event(data)) for t, kind, data in rows]

    def events_after(self, id: int) -> list[tuple[int, float, str, dict[str, Any]]]:
        """(id, time, type, data) of the events recorded after this id (0: all), in order."""
        rows = self._each("SELECT id, t, type, json FROM event WHERE id > ? ORDER BY id", id)
        return [(number, t, type, self._load_event(data)) for number, t, type, data in rows]

    def memos(self, kind: str) -> list[tuple[str, Any, Usage]]:
        """(key, value, usage) of every stored answer of one kind, in the order in which they were stored."""
        return list(self.each_memo(kind))

    def each_memo(self, kind: str) -> Iterator[tuple[str, Any, Usage]]:
        """Like `memos`, but yields one answer at a time, because all answers may not fit into memory."""
        for (key,) in self._rows("SELECT key FROM memo WHERE kind = ? ORDER BY t, key", kind):
            for value, usage in self._rows("SELECT value, usage FROM memo WHERE key = ?", key):
                yield key, self._load(value), self._load_usage(usage)

    def parts(self, kind: str, *paths: str, after: float = -math.inf) -> Iterator[tuple[float, str, Usage, list[Any]]]:
        """Yield (time, key, usage, values at two or more JSON paths) of every answer of one kind that was stored after
        a time, in the order of storing. A missing value is None.

        SQLite reads the values, so long answers are not decoded.
        """
        values = f"json_extract(value{', ?' * len(paths)})"
        sql = f"SELECT t, key, usage, {values} FROM memo WHERE kind = ? AND t > ? ORDER BY t, key"
        for t, key, usage, found in self._each(sql, *paths, kind, after):
            yield t, key, self._load_usage(usage), self._load(found)

    def answers(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield (key, value) of the stored answers of one kind."""
        for key, value in self._each("SELECT key, value FROM memo WHERE kind = ?", kind):
            yield key, self._load(value)

    def put_blob(self, hash: str, data: bytes) -> None:
        """Store a text or a file under its hash."""
        self._write("INSERT OR IGNORE INTO blob VALUES (?, ?)", (hash, data))

    def blob(self, hash: str) -> bytes | None:
        rows = self._rows("SELECT data FROM blob WHERE hash = ?", hash)
        if rows and not isinstance(rows[0][0], bytes):
            raise _damaged(self.folder / "run.db", TypeError(f"the blob {hash} holds no bytes"))
        return rows[0][0] if rows else None

    def stored_file(self, hash: str) -> bytes:
        """The content of a file of a rollout, by its hash or the first characters of it.

        Raises `UsageError` if no file, or more than one, begins so.
        """
        known = [key.partition(":")[2] for (key,) in self._rows("SELECT hash FROM blob WHERE hash LIKE 'artifact:%'")]
        found = [name for name in known if hash and name.startswith(hash.lower())]
        if len(found) != 1:
            what = (
                f"{len(found):,} files have a hash that begins"
                if found
                else f"none of {len(known):,} files has a hash that begins"
            )
            more = "name more characters of it" if found else "rollouts.jsonl and report.html name the hashes"
            raise UsageError(f'the run in {self.folder}: {what} with "{hash}"; {more}')
        return self.blob(f"artifact:{found[0]}") or b""

    def write(self, name: str, data: str | bytes | Iterable[str]) -> Path:
        """Write a derived file of the run folder atomically. `data` may come in parts."""
        path = self.place / name
        try:
            write_atomic(path, data)
        except OSError as error:
            raise RunError(
                f"cannot write {path}: {error.strerror or error}. Nothing that was paid is lost: free some space or "
                "restore write access, then run the same command again."
            ) from error
        return path

    def copy_to(self, folder: Path) -> Run:
        """Open a copy of this journal in another folder. Changes to the copy leave this run unchanged."""
        path = folder / "run.db"
        _create(path)
        try:
            with closing(sqlite3.connect(path)) as db:
                self._db.backup(db)
        except sqlite3.Error as error:
            raise _refusal("write to", path, error) from error
        return Run.open(folder)

    # -- a new run that reuses the answers of an old one

    def adopt(self, other: Run) -> int:
        """Copy the paid answers of another run at no cost, without its decisions, and the files that targets left.
        Returns the number of answers."""
        adopted = 0
        self._write("BEGIN IMMEDIATE")
        try:
            for row in other._each(f"SELECT key, kind, value FROM memo WHERE NOT {_OWN} ORDER BY t, key"):
                self._write("INSERT OR IGNORE INTO memo VALUES (?, ?, ?, '{}', ?)", (*row, self._next_t()))
                adopted += 1
            for row in other._each("SELECT hash, data FROM blob WHERE hash LIKE 'artifact:%'"):
                self._write("INSERT OR IGNORE INTO blob VALUES (?, ?)", row)
            self._write("COMMIT")
        except BaseException:
            self._db.rollback()
            raise
        return adopted

    @property
    def began(self) -> float | None:
        """The time at which the configuration was stored, or None. It is unique to this run."""
        rows = self._rows("SELECT t FROM memo WHERE key = 'config'")
        return rows[0][0] if rows else None

    @property
    def opened(self) -> float | None:
        """The time at which a process began to write to the run last, or None."""
        rows = self._rows("SELECT t FROM memo WHERE key = ?", WRITER)
        return rows[0][0] if rows else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved configuration that the run was started with."""
        known = self.recall("config")
        return known[0] if known else None

    def _check_config(self, config: Mapping[str, Any], may_differ: tuple[str, ...]) -> None:
        if not self._has_answers():
            self._write("DELETE FROM memo WHERE kind = ?", (DECISIONS,))  # a start that failed is not binding
            self._write("DELETE FROM event")
        stored = self.decide("config", lambda: dict(config))
        with self.reading():
            differing = differences(stored, config, may_differ)
        if differing:
            raise RunError(
                f"the run in {self.folder} was started with another configuration:\n"
                + "\n".join(f"  {difference}" for difference in differing)
                + "\nUse the same settings to go on with it, `train --fork` to start a new run that reuses every "
                "rollout that still applies, or `--run DIR` for a fresh one."
            )

    def _has_answers(self) -> bool:
        return bool(self._rows(f"SELECT 1 FROM memo WHERE NOT {_OWN} AND kind != ? LIMIT 1", PROBE))

    def _each(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            for row in self._db.execute(sql, values):  # noqa: UP028  `yield from` would close the cursor of a closed run
                yield row
        except sqlite3.Error as error:
            raise _refusal("read", self.folder / "run.db", error) from error

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return list(self._each(sql, *values))

    def _write(self, sql: str, values: tuple[Any, ...] = ()) -> None:
        try:
            self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise _refusal("write to", self.folder / "run.db", error) from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wrap code that reads the journal's JSON. Errors caused by an unexpected shape become `RunError` (damaged
        journal), with the file and line that raised them."""
        try:
            yield
        except SkilltuneError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            raise _damaged(self.folder / "run.db", error) from error

    def _refuse_odd(self) -> None:
        """Raise `RunError` if the columns of an answer hold values of an unexpected type."""
        if odd := self._rows(_ODD):
            key = str(odd[0][0])
            remedy = f"DELETE FROM memo WHERE key = '{key[:80]}' removes it, and the next run pays for it again"
            raise _damaged(self.folder / "run.db", ValueError(f"the answer {key[:80]!r} has odd columns; {remedy}"))

    def _load(self, text: str) -> Any:
        with self.reading():
            return json.loads(text)

    def _load_usage(self, text: str) -> Usage:
        with self.reading():
            return _usage(text)

    def _load_event(self, text: str) -> dict[str, Any]:
        if not isinstance(data := self._load(text), dict):
            raise _damaged(self.folder / "run.db", TypeError("an event is not an object"))
        return data


@lru_cache(maxsize=4096)  # many calls cost the same
def _usage(text: str) -> Usage:
    return Usage(**json.loads(text))


MODELS = {"target": "target.model", "optimizer": "optimizer.model", "judge": "env.score.judge"}
"""Maps each role to the config key that names its model."""


def differences(stored: Mapping[str, Any], config: Mapping[str, Any], may_differ: tuple[str, ...]) -> list[str]:
    """List the settings that differ as "key: old → new", without keys that start with one of `may_differ`.

    A model that moved (`same_as`) counts as the original model.
    """
    old, new = flatten(stored), flatten(json.loads(_json(config)))
    for tree in (old, new):
        for role, key in MODELS.items():
            if known := tree.pop(f"{role}.same_as", None):
                tree[key] = known
    found = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key.startswith(may_differ):
            continue
        elsewhere = all("@" in str(tree.get(key)) for tree in (old, new))
        role = next((role for role, model in MODELS.items() if model == key and elsewhere), "")
        moved = f" (the same model at another address? then add {role}.same_as={old[key]})" if role else ""
        found.append(f"{key}: {_json(old.get(key))} → {_json(new.get(key))}{moved}")
    return found


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _json(value: Any) -> str:
    text = _encode(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which some models return: a paid answer must be stored
        return json.dumps(value, separators=(",", ":"))
    return text


@contextmanager
def scratch_run(folder: str | Path | None) -> Iterator[Run]:
    """A run in the given folder, or in a temporary folder that is deleted afterwards."""
    if folder is not None:
        with Run.open(Path(folder)) as run:
            yield run
        return
    with tempfile.TemporaryDirectory(prefix="skilltune-") as name, Run.open(Path(name)) as run:
        yield run
