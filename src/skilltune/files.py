"""Files that are complete or do not exist."""

from __future__ import annotations

import codecs
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LONGEST_NAME = 100  # characters of a file's name in its temporary name; a name may have 255 bytes


def write_atomic(
    path: Path, data: str | bytes | Iterable[str], *, mode: int | None = 0o600, durable: bool = True
) -> None:
    """Write to a temporary file in the same folder, then rename it. A reader sees either the old file or the new one.

    `data` may come in parts, which are never all in memory. `mode` None gives the mode of an ordinary new file. The
    temporary name is random, so that two processes can write to one path (the later one wins). It contains the process
    id, so that the next write to the path removes files left by a killed process. `durable` False does not wait for
    the disk, so that a power cut may leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        kind = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, kind, 0o666 if mode is None else 0o600), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            for part in [data] if isinstance(data, str | bytes) else data:
                # half a surrogate pair, which some models return, becomes \ud800
                file.write(part.encode("utf-8", "backslashreplace") if isinstance(part, str) else part)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _prefix(path: Path) -> str:
    return f".{path.name[:LONGEST_NAME]}."


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of the path whose process has ended, and those of older versions without a process id."""
    named = re.compile(re.escape(_prefix(path)) + r"(?:(\d{1,9})-[0-9a-f]{8}\.)?tmp")
    with os.scandir(path.parent) as entries:
        left = [entry.path for entry in entries if (found := named.fullmatch(entry.name)) and not _lives(found[1])]
    for file in left:
        with suppress(OSError):
            os.unlink(file)


def _lives(process: str | None) -> bool:
    if process is None:
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True


def is_blank(path: Path) -> bool:
    """True if a file holds nothing but white space and a byte order mark."""
    with path.open("rb") as file:
        return not any(part.removeprefix(codecs.BOM_UTF8).strip() for part in iter(lambda: file.read(1 << 16), b""))


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can read and that git ignores. An existing folder stays unchanged."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # full disk: the next write reports it better
            (folder / ".gitignore").touch(mode=0o600)
            (folder / ".gitignore").write_text("*\n")
