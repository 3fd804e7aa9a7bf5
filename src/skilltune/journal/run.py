"""The journal of a run: every paid call is memoised under what it was, so that running again *is* resuming.

The loop has no checkpoint code. `once(key, …)` pays for an answer at most once, `fix(key, …)` makes a decision at
most once, and a loop whose only inputs are those two replays to where it was killed and goes on from there.
`run.db` is the only truth; every other file of the folder is derived and may be deleted.
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
from pathlib import Path
from typing import Any, TypeVar

from skilltune.aio import background
from skilltune.errors import RunError, SkilltuneError, Stopped
from skilltune.files import make_private
from skilltune.files import write_atomic as write_atomic
from skilltune.journal.keys import digest
from skilltune.journal.sqlite import _connect, _connect_reader, _create, _damaged, _is_locked, _refusal, _take_lock
from skilltune.usage import Usage

T = TypeVar("T")

# Kinds of memos that belong to one run's history; all others are paid answers, which another run may reuse.
DECISIONS = "fix"
FAILED = "failed attempt"
PROBE = "probe"  # shows that a model answers; a run that paid no more than this binds nobody
ELAPSED = "elapsed"  # kind and key of a memo that is rewritten: the seconds of all lives of the run
WRITER = "pid"  # kind and key of the other: the process that opened the run for writing last
REFRESH_S = 2.0  # a killed process forgets at most this much of its time, and what passed since its last answer
MILESTONES = frozenset({"start", "verdict"})  # events that every life of a run repeats in the same order
_OWN = f"kind IN ('{DECISIONS}', '{FAILED}', '{ELAPSED}', '{WRITER}')"  # not an answer that somebody paid for

_COST = tuple(field.name for field in fields(Usage))
_COUNTS = tuple(name for name in _COST if name != "usd")
_TOTALS = (
    "SELECT kind, max(t), max(json_type(usage, '$.usd') = 'null'), coalesce(sum(json_extract(usage, '$.usd')), 0.0), "
    + ", ".join(f"coalesce(sum(json_extract(usage, '$.{name}')), 0)" for name in _COUNTS)
    + " FROM memo GROUP BY kind"
)

_SANE = 10**15  # calls, tokens or seconds that a journal may state; sums of more would overflow


def _stated(name: str, types: str, nothing: str) -> str:
    """SQL: is a number of a memo's usage missing, or sane?"""
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


@dataclass(frozen=True, slots=True)
class Paid:
    """What a paid call gave: a JSON value, and what it cost."""

    value: Any
    usage: Usage


@dataclass(slots=True)
class _Flight:
    """A call under way and how many callers wait for it."""

    task: asyncio.Task[Any]
    waiters: int = 0


class Run:
    """One run folder, opened by one process.

    `listeners` are called with every event (type, data) as it happens, also for events that a replay repeats;
    the journal keeps those once.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection, lock: sqlite3.Connection | None) -> None:
        self.folder = folder
        self.place = folder.absolute()  # the same place after a scorer has changed the working directory
        self.listeners: list[Listener] = []
        self._db, self._lock = db, lock
        self._flights: dict[str, _Flight] = {}
        self._usage: dict[str, Usage] = {}
        # The recorded events that this life has not repeated yet, by content; read when the first one is emitted.
        self._past: dict[str, deque[int]] | None = None
        self._floor = 0  # the last milestone of this life: what stands before it is over
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
        self.estimated: int = self._rows(counted, FAILED)[0][0]  # failed attempts whose cost nobody told
        with self.reading():
            before = self.recall(ELAPSED)
            self._elapsed_before = float(before[0]) if before else 0.0
        self._began = self._refreshed = time.monotonic()

    # -- opening and closing

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any] | None = None, *, may_differ: Iterable[str] = ()) -> Run:
        """Open or create a run folder for writing; `config` is the resolved configuration as nested JSON.

        An existing run whose config differs in other keys than `may_differ` (dotted prefixes) is refused with the
        differing keys. Raises `RunError` when another process writes to the folder, when nothing can be written there,
        or the database is damaged or newer. What is created is readable by its owner only.
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
            run._refresh_elapsed()  # what cannot be written to is found before anything is paid
            run._rewrite(WRITER, os.getpid())
            if config is not None:
                run._check_config(config, tuple(may_differ))
            undo.pop_all()
        return run

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Open an existing run to look at it, also while another process writes to it, also where nothing can be
        written."""
        path = Path(folder) / "run.db"
        if not path.is_file():
            raise RunError(f"no run in {folder}: it has no run.db. `skilltune train` creates one.")
        with ExitStack() as undo:
            db = undo.enter_context(closing(_connect_reader(path)))
            run = cls(Path(folder), db, None)
            undo.pop_all()
        return run

    def close(self) -> None:
        lock, self._elapsed_before, self._lock = self._lock, self.elapsed_s, None
        if lock is not None:
            with suppress(RunError):  # the disk is full, say: what ended the run is the better message
                self._refresh_elapsed()
        self._db.close()
        if lock is not None:
            lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close it; what ended the run too early is written down, for whoever looks at it later."""
        if kind is not None and self._lock is not None:
            why = str(error) if isinstance(error, Exception) else "interrupted"
            with suppress(RunError):
                data = {"reason": why or kind.__name__, "seconds": round(self.elapsed_s, 3)}
                if isinstance(error, Stopped) and error.larger:
                    data["larger"] = error.larger
                self._record("stopped", _json(data))
        self.close()

    # -- the two primitives of replay

    async def memo(self, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        """The value of `fn`, paid at most once per key, for ever.

        Callers that ask for a key that is under way wait for the same call (single flight). A failure is raised to
        all of them and stored for none, so that the next call tries again. Cancelling the last waiter cancels `fn`.
        """
        if (known := self.recall(key)) is not None:
            return known[0]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(background(self._pay(key, kind, fn)))
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._land(key, flight)  # who asks from now on makes a call of its own
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _land(self, key: str, flight: _Flight) -> None:
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, also where every waiter was cancelled before it could look
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _pay(self, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        paid = await fn()
        self.put(key, kind, paid)
        return paid.value

    def decide(self, key: str, make: Callable[[], T]) -> T:
        """The JSON value of `make()`, decided once per run: a replay gets the first answer."""
        if (known := self.recall(key)) is not None:
            return known[0]
        value = make()
        self.put(key, DECISIONS, Paid(value, Usage()))
        return value

    def recall(self, key: str) -> tuple[Any] | None:
        """The stored value in a 1-tuple (so that a stored null differs from nothing stored), or None."""
        rows = self._rows("SELECT value FROM memo WHERE key = ?", key)
        return (self._load(rows[0][0]),) if rows else None

    def put(self, key: str, kind: str, paid: Paid) -> None:
        """Store a value under its key; a value that is there already stays."""
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
        """Record a failed attempt at a call: it has no value, but it may have been billed. `estimated`: nobody told
        its cost."""
        key = digest("failed attempt", role, time.time_ns(), random.random())
        value = {"role": role, "why": why, **({"estimated": True} if estimated else {})}
        self.estimated += estimated
        self.put(key, FAILED, Paid(value, usage or Usage(calls=1)))

    def _next_t(self) -> float:
        """The time of day for a new memo or event, but later than that of all before it, whatever the clock did."""
        self._last_t = max(time.time(), math.nextafter(self._last_t, math.inf))
        return self._last_t

    # -- what it cost

    @property
    def usage(self) -> Mapping[str, Usage]:
        """What this run has paid so far, by kind of call, over all its lives."""
        return self._usage

    def paid(self, kind: str) -> tuple[int, Usage]:
        """How many answers of a kind this run has paid for, and what they cost together."""
        count = self._rows("SELECT count(*) FROM memo WHERE kind = ? AND usage != '{}'", kind)[0][0]
        return count, self._usage.get(kind, Usage())

    @property
    def spent(self) -> bool:
        """True if more was paid than a probe."""
        return bool(self.usage.keys() - {PROBE})

    @property
    def elapsed_s(self) -> float:
        """Seconds that this run was open for writing, over all its lives; a clock that is set changes nothing.
        A reader sees what was recorded when it opened the run."""
        return self._elapsed_before + (time.monotonic() - self._began if self._lock is not None else 0.0)

    def _refresh_elapsed(self) -> None:
        self._refreshed = time.monotonic()
        self._rewrite(ELAPSED, round(self.elapsed_s, 3))

    def _rewrite(self, key: str, value: Any) -> None:
        self._write(
            "INSERT INTO memo VALUES (?, ?, ?, '{}', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, key, _json(value), self._next_t()),
        )

    @property
    def writer(self) -> int | None:
        """The process that has the run open for writing, by its number; None where there is none."""
        known = self.recall(WRITER) if _is_locked(self.folder) else None
        return known[0] if known and isinstance(known[0], int) else None

    def payments(self) -> list[tuple[float, Usage]]:
        """(time, usage) of all that was paid, in order of time."""
        rows = self._each("SELECT t, usage FROM memo WHERE usage != '{}' ORDER BY t")
        return [(t, self._load_usage(usage)) for t, usage in rows]

    # -- events, texts, files

    def record(self, type: str, **data: Any) -> None:
        """Record an event (JSON data, no secrets) and tell the listeners. What a replay repeats is recorded once."""
        text = _json(data)
        if not self._is_repeated(type, text):
            self._record(type, text)
        self.notify(type, **data)

    def note(self, type: str, **data: Any) -> None:
        """Record an event that belongs to this life of the run and to no place in it, unless it says what the last one
        of its type said."""
        text = _json(data)
        if self._rows("SELECT json FROM event WHERE type = ? ORDER BY id DESC LIMIT 1", type) != [(text,)]:
            self._record(type, text)
        self.notify(type, **data)

    def _record(self, type: str, text: str) -> None:
        self._write("INSERT INTO event (t, type, json) VALUES (?, ?, ?)", (self._next_t(), type, text))
        if type in MILESTONES:
            (self._floor,) = self._rows("SELECT max(id) FROM event")[0]

    def _is_repeated(self, type: str, text: str) -> bool:
        """Does this life repeat a recorded event? Each recorded one can be repeated once in a life, and only after the
        milestone that this life has reached: what an earlier life said at its end may be said again at a later one.

        Between two milestones any order will do, because calls that are under way at once end in any order.
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
        """Tell the listeners only: for progress that is not worth keeping."""
        for listener in self.listeners:
            listener(type, data)

    def events(self, type: str | None = None) -> list[tuple[float, str, dict[str, Any]]]:
        """(time, type, data) of the recorded events in order, all or of one type."""
        where, values = ("WHERE type = ?", (type,)) if type else ("", ())
        rows = self._each(f"SELECT t, type, json FROM event {where} ORDER BY id", *values)
        return [(t, kind, self._load_event(data)) for t, kind, data in rows]

    def events_after(self, id: int) -> list[tuple[int, float, str, dict[str, Any]]]:
        """(id, time, type, data) of the events that were recorded after that one (0: all), in order."""
        rows = self._each("SELECT id, t, type, json FROM event WHERE id > ? ORDER BY id", id)
        return [(number, t, type, self._load_event(data)) for number, t, type, data in rows]

    def memos(self, kind: str) -> list[tuple[str, Any, Usage]]:
        """(key, value, usage) of every stored answer of one kind, in the order in which they were stored."""
        return list(self.each_memo(kind))

    def each_memo(self, kind: str) -> Iterator[tuple[str, Any, Usage]]:
        """The same one by one: answers may take more room than there is memory."""
        for (key,) in self._rows("SELECT key FROM memo WHERE kind = ? ORDER BY t, key", kind):
            for value, usage in self._rows("SELECT value, usage FROM memo WHERE key = ?", key):
                yield key, self._load(value), self._load_usage(usage)

    def answers(self, kind: str) -> Iterator[tuple[str, Any]]:
        """(key, value) of the stored answers of one kind, one at a time."""
        for key, value in self._each("SELECT key, value FROM memo WHERE kind = ?", kind):
            yield key, self._load(value)

    def put_blob(self, hash: str, data: bytes) -> None:
        """Keep a text or a file under its hash."""
        self._write("INSERT OR IGNORE INTO blob VALUES (?, ?)", (hash, data))

    def blob(self, hash: str) -> bytes | None:
        rows = self._rows("SELECT data FROM blob WHERE hash = ?", hash)
        if rows and not isinstance(rows[0][0], bytes):
            raise _damaged(self.folder / "run.db", TypeError(f"the blob {hash} holds no bytes"))
        return rows[0][0] if rows else None

    def write(self, name: str, data: str | bytes | Iterable[str]) -> Path:
        """Write a derived file of the run folder atomically; `data` may come in parts."""
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
        """Open a copy of this journal in another folder: what is done with it leaves this one as it is."""
        path = folder / "run.db"
        _create(path)
        try:
            with closing(sqlite3.connect(path)) as db:
                self._db.backup(db)
        except sqlite3.Error as error:
            raise _refusal("write to", path, error) from error
        return Run.open(folder)

    # -- a new run that reuses what an old one paid for

    def adopt(self, other: Run) -> int:
        """Copy the paid answers of another run as free ones; its decisions stay behind. Returns how many."""
        adopted = 0
        self._write("BEGIN IMMEDIATE")
        try:
            for row in other._each(f"SELECT key, kind, value FROM memo WHERE NOT {_OWN} ORDER BY t, key"):
                self._write("INSERT OR IGNORE INTO memo VALUES (?, ?, ?, '{}', ?)", (*row, self._next_t()))
                adopted += 1
            self._write("COMMIT")
        except BaseException:
            self._db.rollback()
            raise
        return adopted

    @property
    def began(self) -> float | None:
        """The time at which the run took its configuration, which no other run has; None without one."""
        rows = self._rows("SELECT t FROM memo WHERE key = 'config'")
        return rows[0][0] if rows else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved configuration that the run was started with."""
        known = self.recall("config")
        return known[0] if known else None

    def _check_config(self, config: Mapping[str, Any], may_differ: tuple[str, ...]) -> None:
        if not self._has_answers():
            self._write("DELETE FROM memo WHERE kind = ?", (DECISIONS,))  # a start that failed binds nobody
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
        """Around code that reads the journal's JSON: an error that another shape of it causes is a damaged journal
        (`RunError`), with the place where the code met it."""
        try:
            yield
        except SkilltuneError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            raise _damaged(self.folder / "run.db", error) from error

    def _refuse_odd(self) -> None:
        """Raises `RunError` for an answer whose columns hold something else than what was written there."""
        if odd := self._rows(_ODD):
            key = str(odd[0][0])
            remedy = f"DELETE FROM memo WHERE key = '{key[:80]}' has it paid for again"
            raise _damaged(self.folder / "run.db", ValueError(f"the answer {key[:80]!r} has odd columns; {remedy}"))

    def _load(self, text: str) -> Any:
        with self.reading():
            return json.loads(text)

    def _load_usage(self, text: str) -> Usage:
        with self.reading():
            return Usage(**json.loads(text))

    def _load_event(self, text: str) -> dict[str, Any]:
        if not isinstance(data := self._load(text), dict):
            raise _damaged(self.folder / "run.db", TypeError("an event is no object"))
        return data


MODELS = {"target": "target.model", "optimizer": "optimizer.model", "judge": "env.score.judge"}
"""By role, the key of the configuration that names its model."""


def differences(stored: Mapping[str, Any], config: Mapping[str, Any], may_differ: tuple[str, ...]) -> list[str]:
    """Each setting that differs, as "key: old → new", but for keys that begin like one of `may_differ`. A model that
    has moved (`same_as`) counts as the one that it was."""
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
    except UnicodeEncodeError:  # half a surrogate pair, as some models answer: what was paid for must be stored
        return json.dumps(value, separators=(",", ":"))
    return text


@contextmanager
def scratch_run(folder: str | Path | None) -> Iterator[Run]:
    """A run in the given folder, or in a temporary one that is deleted afterwards."""
    if folder is not None:
        with Run.open(Path(folder)) as run:
            yield run
        return
    with tempfile.TemporaryDirectory(prefix="skilltune-") as name, Run.open(Path(name)) as run:
        yield run
