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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EIO, ENAMETOOLONG, ENOSPC, EROFS
from lzma import LZMAError
from pathlib import Path, PurePath, PurePosixPath
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


def unpack(
    archive: Path, folder: Path, most: int, require_space: Callable[[int], None], sources: Iterable[str] = ()
) -> None:
    """Unpack an archive into a folder, into place file by file once all of it is there.

    most:          bytes of its whole content.
    require_space: called with the size of the next file; raises if the disk has no room for it.
    sources:       paths below the folder of the files that are downloaded, which no content may replace.

    Raises UsageError if the archive is damaged, too large, or holds anything else than files below the folder, or if
    something else is in the place of one of them.
    """
    room = folder / ROOM
    shutil.rmtree(room, ignore_errors=True)  # of a process that was killed
    taken = [source.casefold() for source in sources]
    try:
        written = 0
        for number, member in enumerate(_members(archive), 1):
            if number > MOST_FILES:
                raise UsageError(f"{archive} holds more than {MOST_FILES:,} files, so it was not unpacked")
            path = _inside(archive, member, taken)
            if _blocked(room, path):
                raise UsageError(f"{archive} was not unpacked: {str(path)[:200]!r} is in it as a file and as a folder")
            require_space(member.size)
            (room / path).parent.mkdir(parents=True, exist_ok=True)
            written += _write(archive, member, room / path, written, most)
        unpacked = sorted(path.relative_to(room) for path in room.rglob("*") if path.is_file())
        for path in unpacked:
            if blocked := _blocked(folder, path):
                what = "a folder" if blocked.is_dir() else "no folder"
                raise UsageError(f"{blocked} is {what}, so {path} cannot be unpacked: move it away and fetch again")
        for path in unpacked:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(room / path, place)
    except UsageError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in LOCAL:
            raise
        if isinstance(error, OSError) and error.errno == ENAMETOOLONG:
            name = Path(error.filename).relative_to(room)
            raise UsageError(
                f"{archive} was not unpacked: a name in it is too long for the disk, {str(name)[:200]!r}: name a "
                "folder with a shorter path, or on another disk, with --data or SKILLTUNE_DATA"
            ) from None
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


def _inside(archive: Path, member: _Member, taken: Sequence[str]) -> PurePosixPath:
    """The path of a member below the folder. Raises UsageError if it has none, or one that is `taken` (in lower case,
    as some disks do not tell case apart)."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in member.name:
        raise UsageError(f"{archive} was not unpacked: it holds a file outside of its folder, {member.name[:200]!r}")
    if member.kind:
        raise UsageError(f"{archive} was not unpacked: {member.name[:200]!r} in it is {member.kind}, not a file")
    lower = str(path).casefold()
    if any(lower == source or lower.startswith(f"{source}.part") for source in taken):
        raise UsageError(f"{archive} was not unpacked: {member.name[:200]!r} in it would replace a downloaded file")
    if lower.startswith(RESERVED):
        raise UsageError(f"{archive} was not unpacked: {member.name[:200]!r} is a name of skilltune's own files")
    return path


def _blocked(folder: Path, path: PurePath) -> Path | None:
    """The path that blocks a file below `folder`: a file where a folder of `path` must be, or a folder where the file
    itself must be. None if the way is free."""
    try:
        for parent in [*path.parents][-2::-1]:  # from the outermost; the last parent is "."
            if (folder / parent).is_file():
                return folder / parent
        return folder / path if (folder / path).is_dir() else None
    except OSError as error:
        if error.errno == ENAMETOOLONG:  # said when it is written
            return None
        raise


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
