"""The runs below one folder, by id.

No path is ever made of an id: an id is looked up among the folders that were found. Links are not followed, so nothing
outside of the folder can be named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skilltune.errors import UsageError
from skilltune.journal.sqlite import _is_locked

JOURNAL = "run.db"
FILES = tuple(f"{name}{end}" for name in (JOURNAL, "lock.db") for end in ("", "-wal", "-shm", "-journal"))
DEPTH = 2  # a run lies in the folder itself, in it, or in a folder in it
MOST = 2_000  # runs that are found


class UnknownRun(UsageError):
    """No run has this id."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs in a folder, which may be a run itself. `root` is its real path."""

    root: Path

    @classmethod
    def of(cls, folder: Path) -> Runs:
        return cls(folder.expanduser().resolve())

    def folders(self) -> dict[str, Path]:
        """Every run by id: its path below the folder, with "~1" for "/", "~2" for "," and "~0" for "~"."""
        if _is_run(self.root):
            return {_id(self.root.name): self.root}
        found: dict[str, Path] = {}
        for path in _runs_below(self.root, DEPTH):
            found[_id(path.relative_to(self.root).as_posix())] = path
            if len(found) == MOST:
                break
        return found

    def folder(self, id: str) -> Path:
        """The folder of a run. Raises `UnknownRun`."""
        folder = self.folders().get(id)
        if folder is None:
            raise UnknownRun(f"there is no run {id[:100]!r} in {self.root}")
        return folder

    def new(self, name: str) -> Path:
        """Create the folder of a new run; a name that is taken gets the next free number. Raises `UsageError`."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(1, 1_000):
            folder = self.root / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise UsageError(f"cannot create {folder}: {error.strerror or error}") from error
            return folder
        raise UsageError(f"there are too many runs called {name} in {self.root}: choose another name")

    def id_of(self, folder: Path) -> str:
        return _id(folder.name if folder == self.root else folder.relative_to(self.root).as_posix())


def signature(folder: Path) -> tuple[object, ...]:
    """Changes if the run changed or its process began or ended. Reads no content."""
    files = (folder / name for name in (JOURNAL, f"{JOURNAL}-wal", "live.json", "stop"))
    return (*map(_stamp, files), _is_locked(folder))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _id(path: str) -> str:
    return path.replace("~", "~0").replace("/", "~1").replace(",", "~2")


def _is_run(folder: Path) -> bool:
    """True if the folder holds a journal, and all files that SQLite opens with it are files: it would wait forever for
    a pipe, and follow a link."""
    return _mode(folder / JOURNAL) is not None and all(
        mode is None or stat.S_ISREG(mode) for mode in (_mode(folder / name) for name in FILES)
    )


def _mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except OSError:
        return None


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in inside:
        path = folder / name
        if _is_run(path):
            yield path
        elif depth > 1 and not name.startswith("."):
            yield from _runs_below(path, depth - 1)
