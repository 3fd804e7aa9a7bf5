"""Unpacks a downloaded archive: plain files below one folder, bounded in size, and nothing else.

An archive comes from outside, so neither its names nor its stated sizes are trusted. Links, devices and paths that lead
out of the folder are refused by name. The content is counted while it is written, so that an archive that swells is
stopped in time.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EIO, ENOSPC, EROFS
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Self

from skilltune.errors import UsageError

LOCAL = {ENOSPC, EDQUOT, EACCES, EROFS, EIO}  # the disk's fault, not the network's or the archive's
MOST_FILES = 1_000_000
MOST_HEADER = 8192  # bytes of one header that tarfile reads whole; a path has at most 4,096
ROOM = ".unpacking"  # the folder in which an archive is unpacked; the caller lets one process in at a time
RESERVED = (".skilltune-data", ROOM)  # starts of the names of skilltune's own files in a data folder
_CHUNK = 1 << 20
_READ_WHOLE = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # zipfile: it has a password, or an unknown compression
)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of an archive. `size` is the stated number of bytes."""

    name: str
    size: int
    kind: str  # "" for a plain file, else what it is
    open: Callable[[], IO[bytes] | None]


class _Entry(tarfile.TarInfo):
    """A header of a tar file. tarfile reads a long name or a pax header whole, in a time that grows with its square."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        entry = super().frombuf(buf, encoding, errors)
        # a negative size would read all that follows
        if entry.size < 0 or (entry.type in _READ_WHOLE and entry.size > MOST_HEADER):
            raise ValueError(f"a header in it states {entry.size:,} bytes, and {MOST_HEADER:,} are allowed")
        return entry


def unpack(archive: Path, folder: Path, most: int, require_space: Callable[[int], None]) -> None:
    """Unpack an archive into a folder, into place file by file once all of it is there.

    most:          bytes of its whole content.
    require_space: called with the size of the next file; raises if the disk has no room for it.

    Raises UsageError if the archive is damaged, too large, or holds anything else than files below the folder.
    """
    room = folder / ROOM
    shutil.rmtree(room, ignore_errors=True)  # of a process that was killed
    try:
        written = 0
        for number, member in enumerate(_members(archive), 1):
            if number > MOST_FILES:
                raise UsageError(f"{archive} holds more than {MOST_FILES:,} files, so it was not unpacked")
            place = room / _inside(archive, member)
            require_space(member.size)
            place.parent.mkdir(parents=True, exist_ok=True)
            written += _write(archive, member, place, written, most)
        for path in sorted(path for path in room.rglob("*") if path.is_file()):
            place = folder / path.relative_to(room)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    except UsageError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in LOCAL:
            raise
        raise UsageError(f"{archive} cannot be unpacked ({error}): delete it and fetch again") from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _members(archive: Path) -> Iterator[_Member]:
    """The members of an archive but its folders."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                link = stat.S_ISLNK(entry.external_attr >> 16)
                if not entry.is_dir():
                    # zipfile cuts a name at a zero byte; `orig_filename` is all of it
                    yield _Member(
                        entry.orig_filename,
                        entry.file_size,
                        "a link" if link else "",
                        lambda entry=entry: packed.open(entry),
                    )
        return
    with tarfile.open(archive, tarinfo=_Entry) as packed:
        for entry in packed:
            if entry.size < 0:  # by a pax header; the next member would lie before this one
                raise ValueError(f"{entry.name[:200]!r} in it states {entry.size:,} bytes")
            kind = "a link" if entry.issym() or entry.islnk() else "" if entry.isfile() else "a device"
            if not entry.isdir():
                yield _Member(entry.name, entry.size, kind, lambda entry=entry: packed.extractfile(entry))


def _inside(archive: Path, member: _Member) -> PurePosixPath:
    """The path of a member below the folder. Raises UsageError if it has none."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in member.name:
        raise UsageError(f"{archive} was not unpacked: it holds a file outside of its folder, {member.name[:200]!r}")
    if member.kind:
        raise UsageError(f"{archive} was not unpacked: {member.name[:200]!r} in it is {member.kind}, not a file")
    if path.parts[0].startswith(RESERVED):
        raise UsageError(f"{archive} was not unpacked: {member.name[:200]!r} is a name of skilltune's own files")
    return path


def _write(archive: Path, member: _Member, place: Path, before: int, most: int) -> int:
    """Write a member to its place. Returns its bytes; `before` is the number of those that were written so far."""
    source, written = member.open(), 0
    assert source is not None
    with source, place.open("wb") as file:
        while part := source.read(_CHUNK):
            written += len(part)
            if before + written > most:
                raise UsageError(
                    f"{archive} holds more than {most:,} bytes, so it was not unpacked: if that is right, allow more "
                    "with --max-gb"
                )
            file.write(part)
    return written


__all__ = ["LOCAL", "unpack"]
