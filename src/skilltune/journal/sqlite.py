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
"""  # schema 1 kept equal events once, so that of A, B, A the last was lost
PAGE_BYTES = 8192  # a rollout of the usual 1.5 kB then lies within its page; with SQLite's 4096 it spills over
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
    """What SQLite could not do, and the way out: of the disk's or the system's fault, or else of a damaged file."""
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
    """SQLite's primary result code; that of a general error for what Python's module found itself."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _create(path: Path) -> None:
    """Make sure that a database of the run is there, readable by its owner only, and can be written.

    SQLite gives the files beside a database its mode, and would take a lock on a read-only file for granted. A file
    that is there is not opened here: closing it would drop the locks that this process may hold on it.
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
    """What of a database this process may not write: the file, its folder, the log and the index beside it; or None."""
    effective = os.access in os.supports_effective_ids
    for part in (path, path.parent, _log(path), path.with_name(f"{path.name}-shm")):
        if part.exists() and not os.access(part, os.W_OK, effective_ids=effective):
            return part
    return None


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _connect(path: Path) -> sqlite3.Connection:
    """Open the journal, creating it where it is new; autocommit, so that what `once` returned is on disk."""
    _create(path)
    with ExitStack() as undo:
        try:
            db = undo.enter_context(closing(sqlite3.connect(path, isolation_level=None, timeout=10)))
            version = _version(db, path)
            if version == 0:
                _refuse_lost(path.parent)
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # survives a killed process; a power cut may lose the last ones
            if version == 0:
                db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            if version == 1:
                db.executescript(f"BEGIN IMMEDIATE; {_FROM_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise _refusal("write to", path, error) from error
        undo.pop_all()
    return db


def _connect_reader(path: Path) -> sqlite3.Connection:
    """Open a journal to look at it. SQLite writes beside it even for that; where this process may not, and there is no
    log of a writer that lives or was killed, the file is read as it stands."""
    log = _log(path)
    as_it_stands = _closed(path) is not None and not (log.exists() and log.stat().st_size)
    place = f"{path.absolute().as_uri()}{'?immutable=1' if as_it_stands else ''}"
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
    """The schema version of a journal, 0 for an empty file. Raises `RunError` for what this skilltune cannot read."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{path} was written by a newer skilltune (schema {version}, this one reads {SCHEMA_VERSION}): "
            "upgrade skilltune, or use another run folder."
        )
    if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise RunError(f"{path} is a database of another program: use another run folder.")
    return version


def _take_lock(folder: Path) -> sqlite3.Connection:
    """An exclusive SQLite transaction on `lock.db`: portable, and gone with the process however it dies."""
    path = folder / "lock.db"
    _create(path)
    with ExitStack() as undo:
        try:
            lock = undo.enter_context(closing(sqlite3.connect(path, isolation_level=None, timeout=0)))
            lock.execute("PRAGMA journal_mode = MEMORY")  # nothing is ever written, so there is nothing to roll back
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
    """Does a process hold the lock of a run? It is only read: nobody is kept out by asking."""
    path = folder / "lock.db"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=0, uri=True)) as lock:
            lock.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return _code(error) == sqlite3.SQLITE_BUSY
    return False


def _refuse_lost(folder: Path) -> None:
    """Raises `RunError` for the files of a run whose journal is gone: a new run would write over them."""
    if left := [name for name in RESULTS if (folder / name).exists()]:
        raise RunError(
            f"{folder / 'run.db'} holds nothing, but beside it stand files of a run that had begun "
            f"({', '.join(left)}): its journal is lost. Put run.db back from a copy, move the other files away to "
            "start afresh, or choose another folder with `--run DIR`."
        )


RESULTS = ("best_skill.md", "card.md", "versions/0000/verdict.json", "metrics.jsonl")  # files that only a run makes
