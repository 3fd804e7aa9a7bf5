"""The journal's SQLite files: schema, open, lock, and errors that say how to go on."""

from __future__ import annotations

import json
import os
import sqlite3
import traceback
from contextlib import ExitStack, closing
from pathlib import Path

from skilltune.errors import RunError

SCHEMA_VERSION = 2
_TABLES = """
CREATE TABLE memo (key TEXT PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL, usage TEXT NOT NULL, t REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE event (id INTEGER PRIMARY KEY, t REAL NOT NULL, type TEXT NOT NULL, json TEXT NOT NULL);
CREATE TABLE blob (hash TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
"""  # noqa: E501
_FROM_1 = """
ALTER TABLE event RENAME TO event_1;
CREATE TABLE event (id INTEGER PRIMARY KEY, t REAL NOT NULL, type TEXT NOT NULL, json TEXT NOT NULL);
INSERT INTO event SELECT id, t, type, json FROM event_1;
DROP TABLE event_1;
"""  # schema 1 stored equal events once, so it lost the second A of A, B, A
PAGE_BYTES = 8192  # fits a typical rollout (1.5 kB) into one page; with SQLite's default of 4096 it overflows
LOCK_S = 0.5  # wait for the lock of a run: whoever looks if it is taken holds it for an instant
_ACCESS = "restore write access to the folder and the files in it"
_REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space on the disk",
    sqlite3.SQLITE_IOERR: "see that the disk is neither full nor failing",
    sqlite3.SQLITE_READONLY: _ACCESS,
    sqlite3.SQLITE_CANTOPEN: _ACCESS,
    sqlite3.SQLITE_PERM: _ACCESS,
    sqlite3.SQLITE_BUSY: "end the other program that has the file open",
}


def _refusal(verb: str, path: Path, error: sqlite3.Error) -> RunError:
    """The error for a failed SQLite operation, with the remedy if it is known, else as a damaged file."""
    remedy = _REMEDIES.get(_code(error))
    if remedy is None:
        return _damaged(path, error)
    return RunError(
        f"cannot {verb} {path}: {error}. Nothing that was stored is lost: {remedy}, then run the same command again."
    )


def _damaged(path: Path, error: Exception) -> RunError:
    said = str(error)[:300]
    if not isinstance(error, sqlite3.Error | json.JSONDecodeError) and error.__traceback__ is not None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {said}, met in {Path(last.filename).name}:{last.lineno}"
    return RunError(
        f"{path} is damaged, or not the journal of a run ({said}). Move the folder away to start afresh, or recover "
        f"the answers in it: `sqlite3 run.db .recover | sqlite3 new.db`, and put new.db in its place."
    )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; SQLITE_ERROR for errors that Python's module raises itself."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _create(path: Path) -> None:
    """Create the database file if it is missing, readable by its owner only, and check that it is writable.

    SQLite copies the mode of a database to the files beside it, and it accepts a lock on a read-only file without an
    error. An existing file is not opened here, because closing it would release locks that this process may hold on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise RunError(
            f"cannot create {path}: {error.strerror or error}. Free some space or make the folder writable, or choose "
            "another one with `--run DIR`."
        ) from error
    if (closed := _closed(path)) is not None:
        raise RunError(
            f"cannot write to {closed}: permission denied. Nothing that was stored is lost: {_ACCESS}, then run the "
            "same command again."
        )


def _closed(path: Path) -> Path | None:
    """The first part of a database that this process may not write: file, folder, log or index. None if all are
    writable."""
    effective = os.access in os.supports_effective_ids
    for part in (path, path.parent, _log(path), path.with_name(f"{path.name}-shm")):
        if part.exists() and not os.access(part, os.W_OK, effective_ids=effective):
            return part
    return None


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _connect(path: Path) -> sqlite3.Connection:
    """Open the journal and create it if it is new. Autocommit: when `memo` returns, the answer is on disk."""
    _create(path)
    with ExitStack() as undo:
        try:
            db = undo.enter_context(closing(sqlite3.connect(path, isolation_level=None, timeout=10)))
            version = _version(db, path)
            if version == 0:
                _refuse_lost(path.parent)
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # survives a killed process; a power cut may lose the last writes
            if version == 0:
                db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            if version == 1:
                db.executescript(f"BEGIN IMMEDIATE; {_FROM_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise _refusal("write to", path, error) from error
        undo.pop_all()
    return db


def _connect_reader(path: Path) -> sqlite3.Connection:
    """Open a journal for reading. Neither the database nor its log is changed.

    SQLite writes files beside a database even to read it. If this process may not, and no writer has left a log, the
    file is opened as immutable. A log belongs to a writer that runs or was killed. It is read without write access,
    because the last connection that may write would move the log into the database when it closes.
    """
    log = _log(path)
    logged = log.exists() and log.stat().st_size > 0
    mode = "?mode=ro" if logged else "?immutable=1" if _closed(path) is not None else ""
    place = f"{path.absolute().as_uri()}{mode}"
    with ExitStack() as undo:
        try:
            db = undo.enter_context(closing(sqlite3.connect(place, isolation_level=None, timeout=10, uri=True)))
            version = _version(db, path)
        except sqlite3.Error as error:
            raise _refusal("read", path, error) from error
        if version == 0:
            _refuse_lost(path.parent)
            raise RunError(f"the run in {path.parent} has not begun yet: its run.db is empty.")
        undo.pop_all()
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The schema version of a journal, or 0 for an empty file. Raises `RunError` for an unreadable schema."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{path} was written by a newer skilltune (schema {version}, this one reads {SCHEMA_VERSION}): "
            "upgrade skilltune, or use another run folder."
        )
    foreign = "" if version == 0 else "WHERE type = 'view'"  # reading a view can take forever
    if db.execute(f"SELECT 1 FROM sqlite_master {foreign}").fetchone():
        raise RunError(f"{path} is a database of another program: use another run folder.")
    return version


def _take_lock(folder: Path) -> sqlite3.Connection:
    """Take an exclusive SQLite transaction on `lock.db`. It is portable, and it ends with the process in any case."""
    path = folder / "lock.db"
    _create(path)
    with ExitStack() as undo:
        try:
            lock = undo.enter_context(closing(sqlite3.connect(path, isolation_level=None, timeout=LOCK_S)))
            lock.execute("PRAGMA journal_mode = MEMORY")  # nothing is ever written, so no rollback journal is needed
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_BUSY:
                raise RunError(
                    f"cannot lock the run in {folder}: another skilltune is writing to it. Wait for it, stop it, or "
                    "choose another folder with `--run DIR`."
                ) from error
            if _code(error) in _REMEDIES:
                raise _refusal("write to", path, error) from error
            raise RunError(f"cannot lock the run: {path} is damaged ({error}); delete it.") from error
        undo.pop_all()
    return lock


def _is_locked(folder: Path) -> bool:
    """True if a process holds the lock of the run. The check itself reads, which a writer that begins waits for."""
    path = folder / "lock.db"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0, uri=True)) as lock:
            lock.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return _code(error) == sqlite3.SQLITE_BUSY
    return False


def _refuse_lost(folder: Path) -> None:
    """Raise `RunError` if result files exist without a journal, because a new run would overwrite them."""
    if left := [name for name in RESULTS if (folder / name).exists()]:
        raise RunError(
            f"{folder / 'run.db'} is empty, but there are result files of a run beside it "
            f"({', '.join(left)}): its journal is lost. Put run.db back from a copy, move the other files away to "
            "start afresh, or choose another folder with `--run DIR`."
        )


RESULTS = ("best_skill.md", "card.md", "versions/0000/verdict.json", "metrics.jsonl")  # files that only a run creates
