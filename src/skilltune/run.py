"""The journal of a run: every paid call is memoised under what it was, so that running again *is* resuming.

The loop has no checkpoint code. `once(key, …)` pays for an answer at most once, `fix(key, …)` makes a decision at
most once, and a loop whose only inputs are those two replays to where it was killed and goes on from there.
`run.db` is the only truth; every other file of the folder is derived and may be deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from skilltune.errors import RunError
from skilltune.models import Usage

T = TypeVar("T")

SCHEMA_VERSION = 1
_TABLES = """
CREATE TABLE memo (key TEXT PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL, usage TEXT NOT NULL, t REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE event (id INTEGER PRIMARY KEY, t REAL NOT NULL, type TEXT NOT NULL, json TEXT NOT NULL, UNIQUE (type, json));
CREATE TABLE blob (hash TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
"""  # noqa: E501
# Kinds of memos that belong to one run's history; all others are paid answers, which another run may reuse.
DECISIONS = "fix"
FAILED = "failed attempt"

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


def digest(*parts: object) -> str:
    """A key made of content: 32 hex digits over the canonical JSON of the parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def rng(seed: int, *purpose: object) -> random.Random:
    """The only source of randomness: independent of call order, worker count and Python's hash seed."""
    return random.Random(digest("rng", seed, *purpose))


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write under a temporary name in the same folder, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data  # half a surrogate pair: \\ud800
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Run:
    """One run folder, opened by one process.

    `listeners` are called with every event (type, data) as it happens, also for events that a replay repeats;
    the journal keeps each distinct event once.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection, lock: sqlite3.Connection | None) -> None:
        self.folder = folder
        self.listeners: list[Listener] = []
        self._db, self._lock = db, lock
        self._flights: dict[str, _Flight] = {}
        self._usage: dict[str, Usage] = {}
        for kind, usage in self._rows("SELECT kind, usage FROM memo WHERE usage != '{}'"):
            self._spend(kind, Usage(**json.loads(usage)))

    # -- opening and closing

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any] | None = None, *, may_differ: Iterable[str] = ()) -> Run:
        """Open or create a run folder for writing; `config` is the resolved configuration as nested JSON.

        An existing run whose config differs in other keys than `may_differ` (dotted prefixes) is refused with the
        differing keys. Raises `RunError` when another process writes to the folder, the database is damaged or newer.
        """
        folder = Path(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot use the run folder {folder}: {error.strerror or error}") from error
        with ExitStack() as undo:
            lock = undo.enter_context(closing(_take_lock(folder)))
            db = undo.enter_context(closing(_connect(folder / "run.db")))
            run = cls(folder, db, lock)
            if config is not None:
                run._check_config(config, tuple(may_differ))
            undo.pop_all()
        return run

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Open an existing run to look at it, also while another process writes to it."""
        path = Path(folder) / "run.db"
        if not path.is_file():
            raise RunError(f"no run in {folder}: it has no run.db. `skilltune train` creates one.")
        with ExitStack() as undo:
            db = undo.enter_context(closing(_connect(path, create=False)))
            run = cls(Path(folder), db, None)
            undo.pop_all()
        return run

    def close(self) -> None:
        self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the two primitives of replay

    async def once(self, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        """The value of `fn`, paid at most once per key, for ever.

        Callers that ask for a key that is under way wait for the same call (single flight). A failure is raised to
        all of them and stored for none, so that the next call tries again. Cancelling the last waiter cancels `fn`.
        """
        if (known := self.recall(key)) is not None:
            return known[0]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._pay(key, kind, fn)))
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
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _pay(self, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        paid = await fn()
        self.put(key, kind, paid)
        return paid.value

    def fix(self, key: str, make: Callable[[], T]) -> T:
        """The JSON value of `make()`, decided once per run: a replay gets the first answer."""
        if (known := self.recall(key)) is not None:
            return known[0]
        value = make()
        self.put(key, DECISIONS, Paid(value, Usage()))
        return value

    def recall(self, key: str) -> tuple[Any] | None:
        """The stored value in a 1-tuple (so that a stored null differs from nothing stored), or None."""
        rows = self._rows("SELECT value FROM memo WHERE key = ?", key)
        if not rows:
            return None
        return (json.loads(rows[0][0]),)

    def put(self, key: str, kind: str, paid: Paid) -> None:
        """Store a value under its key; a value that is there already stays."""
        cost = {name: number for name, number in asdict(paid.usage).items() if number != 0}
        self._write(
            "INSERT OR IGNORE INTO memo VALUES (?, ?, ?, ?, ?)",
            (key, kind, _json(paid.value), _json(cost), time.time()),
        )
        if cost:
            self._spend(kind, paid.usage)

    def fail(self, role: str, why: str) -> None:
        """Record a failed attempt at a call: it has no value, but it may have been billed."""
        key = digest("failed attempt", role, time.time_ns(), random.random())
        self.put(key, FAILED, Paid({"role": role, "why": why}, Usage(calls=1)))

    # -- what it cost

    def _spend(self, kind: str, usage: Usage) -> None:
        self._usage[kind] = self._usage.get(kind, Usage()) + usage

    @property
    def usage(self) -> Mapping[str, Usage]:
        """What this run has paid so far, by kind of call, over all its lives."""
        return self._usage

    # -- events, texts, files

    def emit(self, type: str, **data: Any) -> None:
        """Record an event (JSON data, no secrets) and tell the listeners. The journal keeps equal events once."""
        self._write("INSERT OR IGNORE INTO event (t, type, json) VALUES (?, ?, ?)", (time.time(), type, _json(data)))
        self.tell(type, **data)

    def tell(self, type: str, **data: Any) -> None:
        """Tell the listeners only: for progress that is not worth keeping."""
        for listener in self.listeners:
            listener(type, data)

    def events(self, type: str | None = None) -> list[tuple[float, str, dict[str, Any]]]:
        """(time, type, data) of the recorded events in order, all or of one type."""
        where, values = ("WHERE type = ?", (type,)) if type else ("", ())
        rows = self._rows(f"SELECT t, type, json FROM event {where} ORDER BY id", *values)
        return [(t, kind, json.loads(data)) for t, kind, data in rows]

    def memos(self, kind: str) -> list[tuple[str, Any, Usage]]:
        """(key, value, usage) of every stored answer of one kind, in order of time."""
        rows = self._rows("SELECT key, value, usage FROM memo WHERE kind = ? ORDER BY t, key", kind)
        return [(key, json.loads(value), Usage(**json.loads(usage))) for key, value, usage in rows]

    def keep(self, hash: str, data: bytes) -> None:
        """Keep a text or a file under its hash."""
        self._write("INSERT OR IGNORE INTO blob VALUES (?, ?)", (hash, data))

    def kept(self, hash: str) -> bytes | None:
        rows = self._rows("SELECT data FROM blob WHERE hash = ?", hash)
        return rows[0][0] if rows else None

    def write(self, name: str, data: str | bytes) -> Path:
        """Write a derived file of the run folder atomically."""
        path = self.folder / name
        try:
            write_atomic(path, data)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    # -- a new run that reuses what an old one paid for

    def adopt(self, other: Run) -> int:
        """Copy the paid answers of another run as free ones; its decisions stay behind. Returns how many."""
        paid = "SELECT key, kind, value, '{}', t FROM memo WHERE kind NOT IN (?, ?)"
        rows = other._rows(paid, DECISIONS, FAILED)
        for row in rows:
            self._write("INSERT OR IGNORE INTO memo VALUES (?, ?, ?, ?, ?)", row)
        return len(rows)

    @property
    def config(self) -> dict[str, Any] | None:
        """The resolved configuration that the run was started with."""
        known = self.recall("config")
        return known[0] if known else None

    def _check_config(self, config: Mapping[str, Any], may_differ: tuple[str, ...]) -> None:
        if not self._has_answers():
            self._write("DELETE FROM memo WHERE kind = ?", (DECISIONS,))  # a start that failed binds nobody
            self._write("DELETE FROM event", ())
        stored = self.fix("config", lambda: dict(config))
        old, new = flatten(stored), flatten(json.loads(_json(config)))
        differing = [
            f"  {key}: {_json(old.get(key))} → {_json(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not key.startswith(may_differ)
        ]
        if differing:
            raise RunError(
                f"the run in {self.folder} was started with another configuration:\n"
                + "\n".join(differing)
                + "\nUse the same settings to resume it, `--fork` to start a new run that reuses every rollout that "
                "still applies, or `--run DIR` for a fresh one."
            )

    def _has_answers(self) -> bool:
        return bool(self._rows("SELECT 1 FROM memo WHERE kind NOT IN (?, ?) LIMIT 1", DECISIONS, FAILED))

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _unreadable(self.folder / "run.db", error) from error

    def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        try:
            self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise RunError(
                f"cannot write to {self.folder / 'run.db'}: {error}. Nothing that was stored is lost; "
                "free some space or restore write access, then run the same command again."
            ) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, as some models answer: what was paid for must be stored
        return json.dumps(value, separators=(",", ":"))
    return text


def _unreadable(path: Path, error: sqlite3.Error) -> RunError:
    return RunError(
        f"{path} cannot be read ({error}). Move the folder away to start afresh, or recover the answers in it "
        "with `sqlite3 run.db .recover`."
    )


def _connect(path: Path, *, create: bool = True) -> sqlite3.Connection:
    """Open the journal, creating it where it is new; autocommit, so that what `once` returned is on disk."""
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise RunError(
                f"{path} was written by a newer skilltune (schema {version}, this one reads {SCHEMA_VERSION}): "
                "upgrade skilltune, or use another run folder."
            )
        if version == 0 and not create:
            raise RunError(f"the run in {path.parent} has not begun yet: its run.db is empty.")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # survives a killed process; a power cut may lose the last answers
        if version == 0:
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    except sqlite3.DatabaseError as error:
        db.close()
        raise _unreadable(path, error) from error
    except RunError:
        db.close()
        raise
    return db


def _take_lock(folder: Path) -> sqlite3.Connection:
    """An exclusive SQLite transaction on `lock.db`: portable, and gone with the process however it dies."""
    with ExitStack() as undo:
        try:
            lock = undo.enter_context(closing(sqlite3.connect(folder / "lock.db", isolation_level=None, timeout=0)))
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise RunError(
                f"cannot lock the run in {folder} ({error}): another skilltune is writing to it, or the folder is not "
                "writable. Wait for it, stop it, or choose another folder with `--run DIR`."
            ) from error
        except sqlite3.DatabaseError as error:
            raise RunError(f"cannot lock the run: {folder / 'lock.db'} is damaged ({error}); delete it.") from error
        undo.pop_all()
    return lock
